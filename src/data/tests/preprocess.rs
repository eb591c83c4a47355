//! Preprocessing and pixel conversions, against independent oracles.

use super::*;

#[test]
fn resize_and_crop_agree_with_an_independent_resize() {
    let dir = tempfile::tempdir().unwrap();
    // Landscape, portrait, square; shrinking, growing; odd and even margins.
    for (w, h, size, crop) in [(97, 61, 32, 0.9), (61, 97, 32, 0.875), (50, 50, 24, 1.0), (20, 31, 48, 0.9), (300, 64, 33, 0.95)]
    {
        let image = pattern(w, h);
        let path = dir.path().join("a.png");
        image.save(&path).unwrap();
        let p = Preprocess { crop_pct: crop, ..Preprocess::imagenet(size) };
        let got = first(&path, &images(p.clone()));
        let want = oracle(&image, &p);
        assert_eq!(got.shape(), &[3, size, size]);
        let step = 1.0 / 255.0 / 0.224;
        let (mut worst, mut sum) = (0.0f64, 0.0);
        for (g, w) in got.iter().zip(want.iter()) {
            let d = (f64::from(*g) - w).abs();
            worst = worst.max(d);
            sum += d;
        }
        // Two roundings to 8 bits, and clipping of the intermediate rows where the cubic overshoots.
        let mean = sum / want.len() as f64;
        assert!(mean < 0.6 * step, "{w}x{h}: mean {} steps", mean / step);
        assert!(worst < 12.0 * step, "{w}x{h}: worst {} steps", worst / step);
    }
}

#[test]
fn a_shift_by_one_pixel_would_be_seen() {
    // The bounds above must tell the right crop from the next one.
    let p = Preprocess::imagenet(32);
    let image = pattern(97, 61);
    let moved = RgbImage::from_fn(97, 61, |x, y| *image.get_pixel((x + 2).min(96), y));
    let (a, b) = (oracle(&image, &p), oracle(&moved, &p));
    let mean = a.iter().zip(b.iter()).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64;
    assert!(mean > 3.0 / 255.0 / 0.224);
}

#[test]
fn presets_have_timms_numbers() {
    let imagenet = Preprocess::preset("imagenet", 224).unwrap();
    assert_eq!((imagenet.mean, imagenet.std), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]));
    assert_eq!((imagenet.crop_pct, imagenet.interpolation), (0.9, Interpolation::Bicubic));
    let inception = Preprocess::preset("inception", 384).unwrap();
    assert_eq!((inception.mean, inception.std, inception.size), ([0.5; 3], [0.5; 3], 384));
    let clip = Preprocess::preset("clip", 224).unwrap();
    assert_eq!(clip.mean, [0.481_454_66, 0.457_827_5, 0.408_210_73]);
    let none = Preprocess::preset("none", 28).unwrap();
    assert_eq!((none.mean, none.std, none.crop_pct), ([0.0; 3], [1.0; 3], 1.0));
}

#[test]
fn preprocessing_out_of_range_is_an_error() {
    let bad = |p: Preprocess| p.validate().unwrap_err().to_string();
    let mut text = vec![bad(Preprocess::imagenet(0)), bad(Preprocess::imagenet(1 << 20))];
    for crop_pct in [0.0, -1.0, 1.01, f64::NAN, 1e-9] {
        text.push(bad(Preprocess { crop_pct, ..Preprocess::imagenet(224) }));
    }
    text.push(bad(Preprocess { std: [0.5, 0.0, 0.5], ..Preprocess::imagenet(224) }));
    text.push(bad(Preprocess { mean: [f32::INFINITY, 0.0, 0.0], ..Preprocess::imagenet(224) }));
    text.push(Preprocess::preset("imagnet", 224).unwrap_err().to_string());
    text.push(Preprocess::preset("x", 224).unwrap_err().to_string());
    snapshot!("preprocess_errors", text.join("\n\n"));
}

#[test]
fn a_very_thin_image_is_an_error_not_an_allocation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("thin.png");
    RgbImage::new(1, 60000).save(&path).unwrap();
    let dataset = open(&path, &images(Preprocess::imagenet(224)));
    snapshot!("image_too_thin", message(dir.path(), dataset.sample(0)));
}

// Conversions, against Pillow's rules.

#[test]
fn every_png_form_becomes_rgb_as_pillow_converts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    // Two pixels high so that a resize to size 1 would mix; size equal to the image, so nothing is resized.
    let rgb = |path: &Path| {
        let a = first(path, &images(Preprocess::none(1)));
        [0, 1, 2].map(|c| (a[[c, 0, 0]] * 255.0).round() as u8)
    };
    GrayImage::from_pixel(1, 1, Luma([77])).save(&path).unwrap();
    assert_eq!(rgb(&path), [77, 77, 77]);
    ImageBuffer::from_pixel(1, 1, LumaA([77u8, 3])).save(&path).unwrap();
    assert_eq!(rgb(&path), [77, 77, 77]);
    ImageBuffer::from_pixel(1, 1, Rgba([10u8, 20, 30, 0])).save(&path).unwrap();
    assert_eq!(rgb(&path), [10, 20, 30], "alpha is dropped, not blended");
    ImageBuffer::from_pixel(1, 1, Rgb([0x12ffu16, 0x0080, 0xff00])).save(&path).unwrap();
    assert_eq!(rgb(&path), [0x12, 0x00, 0xff], "the high byte, not rounded");
    ImageBuffer::from_pixel(1, 1, Rgba([0x12ffu16, 0x0080, 0xff00, 7])).save(&path).unwrap();
    assert_eq!(rgb(&path), [0x12, 0x00, 0xff]);
    ImageBuffer::from_pixel(1, 1, Luma([200u16])).save(&path).unwrap();
    assert_eq!(rgb(&path), [200, 200, 200], "16-bit grey is clipped, not scaled");
    ImageBuffer::from_pixel(1, 1, Luma([0x1234u16])).save(&path).unwrap();
    assert_eq!(rgb(&path), [255, 255, 255]);
}

#[test]
fn grey_models_get_itu_601_luma() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    let grey = Options { channels: Channels::Grey, ..images(Preprocess::none(1)) };
    // Pillow: Image.new("RGB", (1, 1), rgb).convert("L")
    for (rgb, l) in [([255, 0, 0], 76), ([0, 255, 0], 150), ([0, 0, 255], 29), ([12, 200, 99], 132), ([255; 3], 255)] {
        RgbImage::from_pixel(1, 1, Rgb(rgb)).save(&path).unwrap();
        let a = first(&path, &grey);
        assert_eq!(a.shape(), &[1, 1, 1]);
        assert_eq!((a[[0, 0, 0]] * 255.0).round() as u8, l, "{rgb:?}");
    }
    assert_eq!(Channels::from_count(1), Some(Channels::Grey));
    assert_eq!(Channels::from_count(4), None);
}

#[test]
fn a_jpeg_is_decoded_within_two_steps() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jpg");
    let image = RgbImage::from_fn(32, 32, |x, y| Rgb([(x * 7) as u8, (y * 7) as u8, 128]));
    image::codecs::jpeg::JpegEncoder::new_with_quality(fs::File::create(&path).unwrap(), 100).encode_image(&image).unwrap();
    let a = first(&path, &images(Preprocess::none(32)));
    for (x, y, p) in image.enumerate_pixels() {
        for c in 0..3 {
            let got = a[[c, y as usize, x as usize]] * 255.0;
            assert!((got - f32::from(p.0[c])).abs() <= 4.0, "({x},{y}) channel {c}: {got} for {p:?}");
        }
    }
}

/// The border and the squash of timm, in plain arithmetic: nothing is resized where the sizes are equal already.
#[test]
fn crop_modes_place_the_image_as_timm_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    let image = RgbImage::from_fn(5, 2, |x, y| Rgb([(10 * x + y) as u8; 3]));
    image.save(&path).unwrap();
    let at = |p: Preprocess| first(&path, &images(p)).mapv(|v| (v * 255.0).round() as i32);
    // 5 × 2 in 5 × 5: one row above, two below (the odd one at the end), in the colour of the mean.
    let border = Preprocess { crop_mode: CropMode::Border, ..Preprocess::none(5) };
    let a = at(Preprocess { mean: [0.25, 0.0, 0.0], ..border.clone() });
    let rows = |y: usize| (0..5).map(|x| a[[1, y, x]]).collect::<Vec<_>>();
    assert_eq!((rows(0), rows(3), rows(4)), (vec![0; 5], vec![0; 5], vec![0; 5]));
    assert_eq!((rows(1), rows(2)), (vec![0, 10, 20, 30, 40], vec![1, 11, 21, 31, 41]));
    // round(255 · 0.25) = 64, less the mean of 63.75.
    assert_eq!((a[[0, 0, 0]], a[[0, 1, 1]]), (0, 10 - 64));
    // 6 × 4 resized to 6 and cropped to 5 (crop_pct 0.8): the long side loses (6 − 5) / 2 = 0.5 → 0 pixels at its start.
    let wide = RgbImage::from_fn(6, 4, |x, y| Rgb([(10 * x + y) as u8; 3]));
    wide.save(&path).unwrap();
    let a = at(Preprocess { crop_pct: 0.8, ..border });
    assert_eq!((a[[0, 0, 0]], a[[0, 3, 4]], a[[0, 4, 0]]), (0, 43, 0));
    // Squash takes both sides to the size: a column keeps its grey whatever the height.
    let columns = RgbImage::from_fn(4, 9, |x, _| Rgb([(50 * x) as u8; 3]));
    columns.save(&path).unwrap();
    let a = at(Preprocess { crop_mode: CropMode::Squash, ..Preprocess::none(4) });
    for x in 0..4 {
        assert_eq!((0..4).map(|y| a[[0, y, x]]).collect::<Vec<_>>(), vec![50 * x as i32; 4]);
    }
}

/// All eight orientations of a JPEG with an EXIF segment, against the definition: which corner the stored first row and column are.
#[test]
fn exif_orientations_turn_the_image_upright() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jpg");
    let mut jpeg = Vec::new();
    // Quadrants large enough that the JPEG keeps their grey: 20 40 over 60 80.
    let stored = GrayImage::from_fn(32, 32, |x, y| Luma([20 + 20 * (x / 16) as u8 + 40 * (y / 16) as u8]));
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 100).encode_image(&stored).unwrap();
    let read = |orientation: u8, p: &Preprocess| {
        let mut bytes = jpeg[..2].to_vec();
        bytes.extend([0xff, 0xe1, 0, 34]);
        bytes.extend(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0");
        bytes.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(&jpeg[2..]);
        fs::write(&path, bytes).unwrap();
        let a = first(&path, &images(p.clone()));
        [(8, 8), (8, 24), (24, 8), (24, 24)].map(|(y, x)| (a[[0, y, x]] * 255.0 / 10.0).round() as i32 * 10)
    };
    let upright = [
        (1, [20, 40, 60, 80]),
        (2, [40, 20, 80, 60]), // mirrored left to right
        (3, [80, 60, 40, 20]), // half a turn
        (4, [60, 80, 20, 40]), // mirrored top to bottom
        (5, [20, 60, 40, 80]), // transposed
        (6, [60, 20, 80, 40]), // a quarter turn clockwise sets it right
        (7, [80, 40, 60, 20]), // transversed
        (8, [40, 80, 20, 60]), // a quarter turn counter-clockwise sets it right
        (9, [20, 40, 60, 80]), // no such orientation
    ];
    for (orientation, expected) in upright {
        assert_eq!(read(orientation, &Preprocess::none(32)), expected, "orientation {orientation}");
        let as_stored = Preprocess { exif_orientation: false, ..Preprocess::none(32) };
        assert_eq!(read(orientation, &as_stored), [20, 40, 60, 80]);
    }
}
