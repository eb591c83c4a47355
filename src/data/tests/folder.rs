//! Folders and image files: order, labels, and what can be wrong.

use super::*;

fn png(path: &Path, value: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    GrayImage::from_pixel(2, 2, Luma([value])).save(path).unwrap();
}

fn names_of(d: &Dataset) -> Vec<String> {
    (0..d.len()).map(|i| d.sample(i).unwrap().name).collect()
}

#[test]
fn a_flat_folder_is_sorted_by_name_and_has_no_labels() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b.png", "a.png", "B.PNG", "10.png", "9.png"] {
        png(&dir.path().join(name), 1);
    }
    fs::write(dir.path().join("readme.txt"), "hello").unwrap();
    fs::copy(dir.path().join("a.png"), dir.path().join("without_ending")).unwrap();
    let d = open(dir.path(), &images(Preprocess::none(2)));
    assert_eq!(names_of(&d), ["10.png", "9.png", "B.PNG", "a.png", "b.png", "without_ending"]);
    assert_eq!((d.labels(), d.sample(0).unwrap().label), (None, None));
    assert_eq!(d.notes(), ["1 file ignored because they are clearly no images"]);
}

#[test]
fn labels_csv_gives_order_and_labels() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.png", "b.png", "sub/c.png"] {
        png(&dir.path().join(name), 1);
    }
    // A byte order mark, spaces, CRLF, a column more, and the columns in the other order.
    fs::write(dir.path().join("labels.csv"), "\u{feff}label, file ,who\r\n7,sub/c.png,x\r\n3, a.png,y\r\n").unwrap();
    let options = images(Preprocess::none(2));
    let d = open(dir.path(), &options);
    assert_eq!(names_of(&d), ["sub/c.png", "a.png"]);
    assert_eq!(d.labels(), Some(vec![7, 3]));
    let note = format!("{}: 1 image left out because labels.csv does not name it", dir.path().display());
    assert_eq!(d.notes(), [note]);
    let d = open(dir.path(), &Options { limit: Some(1), ..options });
    assert_eq!((d.len(), d.labels()), (1, Some(vec![7])));
}

#[test]
fn one_sub_folder_a_class() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["cat/2.png", "cat/1.png", "ant/deep/x.png", "ant/z.png", "dog/q.png", "dog/r.png"] {
        png(&dir.path().join(name), 1);
    }
    fs::create_dir(dir.path().join("empty")).unwrap();
    let options = images(Preprocess::none(2));
    let d = open(dir.path(), &options);
    assert_eq!(names_of(&d), ["ant/deep/x.png", "ant/z.png", "cat/1.png", "cat/2.png", "dog/q.png", "dog/r.png"]);
    assert_eq!(d.labels(), Some(vec![0, 0, 1, 1, 2, 2]));
    assert_eq!(d.classes().unwrap(), ["ant", "cat", "dog", "empty"]);
    assert_eq!(d.notes().len(), 1, "the empty class is reported: {:?}", d.notes());
    // A limit reaches every class.
    let d = open(dir.path(), &Options { limit: Some(3), ..options });
    assert_eq!(d.labels(), Some(vec![0, 1, 2]));
}

#[test]
fn class_folders_that_are_numbers_out_of_order_are_noted() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["0/a.png", "1/a.png", "10/a.png", "2/a.png"] {
        png(&dir.path().join(name), 1);
    }
    let d = open(dir.path(), &images(Preprocess::none(2)));
    assert_eq!(d.labels(), Some(vec![0, 1, 2, 3]));
    assert!(d.notes().iter().any(|n| n.contains("are numbers")), "{:?}", d.notes());
}

#[test]
fn samples_are_the_same_from_several_threads() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..8u8 {
        png(&dir.path().join(format!("{i}.png")), i * 30);
    }
    let d = open(dir.path(), &images(Preprocess::none(2)));
    let serial: Vec<Sample> = (0..8).map(|i| d.sample(i).unwrap()).collect();
    std::thread::scope(|s| {
        let parts: Vec<_> = (0..4)
            .map(|t| {
                s.spawn({
                    let d = &d;
                    move || (d.sample(t), d.sample(7 - t))
                })
            })
            .collect();
        for (t, part) in parts.into_iter().enumerate() {
            let (a, b) = part.join().unwrap();
            assert_eq!((a.unwrap(), b.unwrap()), (serial[t].clone(), serial[7 - t].clone()));
        }
    });
}

#[test]
fn what_is_wrong_with_a_folder_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let options = images(Preprocess::none(2));
    let fail = |path: PathBuf| message(d, Dataset::open(path, &options));

    snapshot!("missing_path", fail(d.join("nowhere")));
    fs::create_dir(d.join("empty")).unwrap();
    snapshot!("empty_folder", fail(d.join("empty")));
    fs::create_dir(d.join("texts")).unwrap();
    fs::write(d.join("texts/a.txt"), "").unwrap();
    fs::write(d.join("texts/b.md"), "").unwrap();
    snapshot!("folder_without_images", fail(d.join("texts")));
    png(&d.join("mixed/a.png"), 1);
    fs::write(d.join("mixed/b.webp"), "RIFF").unwrap();
    snapshot!("other_file_among_images", fail(d.join("mixed")));
    fs::write(d.join("model.onnx"), "x").unwrap();
    snapshot!("unknown_kind", fail(d.join("model.onnx")));
    png(&d.join("a.png"), 1);
    snapshot!("needs_preprocess", message(d, Dataset::open(d.join("a.png"), &Options::default())));

    png(&d.join("l/a.png"), 1);
    let csv = |text: &[u8]| {
        fs::write(d.join("l/labels.csv"), text).unwrap();
        fail(d.join("l"))
    };
    snapshot!("labels_missing_file", csv(b"file,label\na.png,1\n\nb.png,2\n"));
    snapshot!("labels_not_a_number", csv(b"file,label\na.png,cat\n"));
    snapshot!("labels_negative", csv(b"file,label\na.png,-1\n"));
    snapshot!("labels_no_label", csv(b"file,label\na.png\n"));
    snapshot!("labels_no_file", csv(b"file,label\n,4\n"));
    snapshot!("labels_header", csv(b"a.png,1\n"));
    snapshot!("labels_empty", csv(b"file,label\n"));
    snapshot!("labels_empty_file", csv(b""));
    snapshot!("labels_not_text", csv(b"file,label\n\xff\xfe,1\n"));
}

#[test]
fn what_is_wrong_with_an_image_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jpg");
    let mut text = Vec::new();
    let mut fail = |what: &str, bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let sample = open(&path, &images(Preprocess::none(8))).sample(0);
        text.push(format!("{what}: {}", message(dir.path(), sample)));
    };
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode_image(&pattern(64, 64)).unwrap();
    let mut png = std::io::Cursor::new(Vec::new());
    pattern(64, 64).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let png = png.into_inner();
    fail("empty", b"");
    fail("text", b"hello");
    fail("jpeg cut in the middle", &jpeg[..jpeg.len() / 2]);
    fail("jpeg cut in the header", &jpeg[..30]);
    fail("jpeg start only", &[0xff, 0xd8, 0xff]);
    fail("png cut in the middle", &png[..png.len() / 2]);
    let mut flipped = png.clone();
    flipped[40] ^= 0x55;
    fail("png with a flipped byte", &flipped);
    snapshot!("corrupt_images", text.join("\n\n"));
}

#[test]
fn a_png_named_jpg_is_read_by_its_content() {
    let dir = tempfile::tempdir().unwrap();
    png(&dir.path().join("a.png"), 51);
    fs::rename(dir.path().join("a.png"), dir.path().join("a.jpg")).unwrap();
    let a = first(&dir.path().join("a.jpg"), &images(Preprocess::none(2)));
    assert!(a.iter().all(|v| *v == 0.2));
}

#[test]
fn an_index_past_the_end_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    png(&dir.path().join("a.png"), 51);
    let d = open(&dir.path().join("a.png"), &images(Preprocess::none(2)));
    snapshot!("index_past_the_end", message(dir.path(), d.sample(1)));
}
