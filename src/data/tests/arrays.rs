//! Arrays in and out.

use super::*;

fn spec(name: &str, shape: &[Option<usize>]) -> InputSpec {
    InputSpec {
        name: name.to_owned(),
        shape: shape.to_vec(),
    }
}

fn counted(shape: &[usize]) -> ArrayD<f32> {
    let n: usize = shape.iter().product();
    ArrayD::from_shape_vec(IxDyn(shape), (0..n).map(|v| v as f32).collect()).unwrap()
}

#[test]
fn npy_batch_and_single_sample() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npy");
    let a = counted(&[5, 3, 2, 2]);
    write_npy(&path, &a).unwrap();
    let d = open(&path, &Options::default());
    assert_eq!(d.len(), 5);
    let s = d.sample(3).unwrap();
    assert_eq!((s.name.as_str(), s.label), ("a.npy[3]", None));
    assert_eq!(
        s.inputs,
        vec![(None, a.index_axis(ndarray::Axis(0), 3).to_owned())]
    );

    write_npy(&path, &counted(&[3, 2, 2])).unwrap();
    let d = open(&path, &Options::default());
    assert_eq!(
        (d.len(), d.sample(0).unwrap().inputs[0].1.clone()),
        (1, counted(&[3, 2, 2]))
    );

    // With the model's input known, the same rank can be a batch of something smaller.
    let options = Options {
        inputs: vec![spec("x", &[None, Some(2)])],
        ..Options::default()
    };
    let d = open(&path, &options);
    assert_eq!(d.len(), 3);
    assert_eq!(d.sample(1).unwrap().inputs[0].0.as_deref(), Some("x"));
    assert_eq!(
        open(
            &path,
            &Options {
                limit: Some(2),
                ..options
            }
        )
        .len(),
        2
    );
}

#[test]
fn npy_of_other_layouts_and_types() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npy");
    let a = Array4::from_shape_fn((2, 3, 4, 5), |(n, c, h, w)| {
        (n * 1000 + c * 100 + h * 10 + w) as f32
    });
    let mut fortran = Array4::zeros((2, 3, 4, 5).f());
    fortran.assign(&a);
    write_npy(&path, &fortran).unwrap();
    let got = open(&path, &Options::default())
        .sample(1)
        .unwrap()
        .inputs
        .remove(0)
        .1;
    assert_eq!(got, a.index_axis(ndarray::Axis(0), 1).into_dyn());
    assert!(got.is_standard_layout());
    write_npy(&path, &a.mapv(f64::from)).unwrap();
    assert_eq!(
        open(&path, &Options::default()).sample(1).unwrap().inputs[0].1,
        got
    );
}

#[test]
fn npz_with_labels_and_several_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let mut npz = NpzWriter::new_compressed(fs::File::create(&path).unwrap());
    npz.add_array("mask", &Array2::<f64>::ones((3, 4))).unwrap();
    npz.add_array("x", &counted(&[3, 1, 2, 2])).unwrap();
    npz.add_array("ids", &Array1::<f32>::zeros(3)).unwrap();
    npz.add_array("y", &Array1::from(vec![4i32, 0, 2])).unwrap();
    npz.finish().unwrap();
    let inputs = vec![spec("x", &[Some(1), None, None]), spec("mask", &[Some(4)])];
    let d = open(
        &path,
        &Options {
            inputs,
            ..Options::default()
        },
    );
    assert_eq!(d.labels(), Some(vec![4, 0, 2]));
    let s = d.sample(2).unwrap();
    assert_eq!((s.label, s.name.as_str()), (Some(2), "a.npz[2]"));
    let shapes: Vec<_> = s
        .inputs
        .iter()
        .map(|(n, a)| (n.clone().unwrap(), a.shape().to_vec()))
        .collect();
    assert_eq!(
        shapes,
        [
            ("x".to_owned(), vec![1, 2, 2]),
            ("mask".to_owned(), vec![4])
        ]
    );
    assert!(d.notes()[0].contains("`ids`"), "{:?}", d.notes());
}

#[test]
fn an_npz_with_one_array_serves_a_model_with_one_input_whatever_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    save_npz(&path, &[("arr_0", counted(&[2, 3, 2, 2]).view())]).unwrap();
    let options = Options {
        inputs: vec![spec("input", &[Some(3), None, None])],
        ..Options::default()
    };
    assert_eq!(
        open(&path, &options).sample(0).unwrap().inputs[0]
            .0
            .as_deref(),
        Some("input")
    );
}

#[test]
fn what_is_wrong_with_an_array_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npy");
    let options = Options {
        inputs: vec![spec("x", &[Some(3), Some(2), Some(2)])],
        ..Options::default()
    };
    let fail = |options: &Options| message(dir.path(), Dataset::open(&path, options));
    let mut text = Vec::new();

    write_npy(&path, &counted(&[2, 3])).unwrap();
    text.push(fail(&Options::default()));
    text.push(fail(&options));
    write_npy(&path, &counted(&[4, 3, 2, 5])).unwrap();
    text.push(fail(&options));
    write_npy(&path, &ArrayD::<u8>::zeros(IxDyn(&[2, 3, 2, 2]))).unwrap();
    text.push(fail(&options));
    write_npy(&path, &ArrayD::<f32>::zeros(IxDyn(&[0, 3, 2, 2]))).unwrap();
    text.push(fail(&options));
    let mut two = options.clone();
    two.inputs.push(spec("mask", &[Some(4)]));
    write_npy(&path, &counted(&[2, 3, 2, 2])).unwrap();
    text.push(fail(&two));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    text.push(fail(&options));
    fs::write(&path, b"not an array").unwrap();
    text.push(fail(&options));
    fs::write(&path, b"").unwrap();
    text.push(fail(&options));
    snapshot!("array_errors", text.join("\n\n"));

    let mut a = counted(&[2, 3, 2, 2]);
    a[[1, 2, 0, 1]] = f32::NAN;
    write_npy(&path, &a).unwrap();
    let d = open(&path, &options);
    assert!(
        d.sample(0).is_ok(),
        "only the sample with the NaN is refused"
    );
    let nan = message(dir.path(), d.sample(1));
    a[[1, 2, 0, 1]] = f32::NEG_INFINITY;
    write_npy(&path, &a).unwrap();
    let inf = message(dir.path(), open(&path, &options).sample(1));
    snapshot!(
        "array_not_finite",
        format!(
            "{nan}\n\n{inf}\n\n{}",
            message(dir.path(), read_arrays(&path))
        )
    );
}

#[test]
fn what_is_wrong_with_an_npz_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let mut text = Vec::new();
    let mut fail = |build: &dyn Fn(&mut NpzWriter<fs::File>)| {
        let mut npz = NpzWriter::new(fs::File::create(&path).unwrap());
        build(&mut npz);
        npz.finish().unwrap();
        let inputs = vec![spec("x", &[Some(3), None, None]), spec("mask", &[Some(4)])];
        text.push(message(
            dir.path(),
            Dataset::open(
                &path,
                &Options {
                    inputs,
                    ..Options::default()
                },
            ),
        ));
    };
    let x = counted(&[2, 3, 2, 2]);
    let mask = counted(&[2, 4]);
    fail(&|_| {});
    fail(&|w| w.add_array("labels", &Array1::from(vec![1i64])).unwrap());
    fail(&|w| w.add_array("x", &x).unwrap());
    fail(&|w| {
        w.add_array("x", &x).unwrap();
        w.add_array("mask", &counted(&[3, 4])).unwrap();
    });
    fail(&|w| {
        w.add_array("x", &x).unwrap();
        w.add_array("mask", &mask.mapv(|v| v as i32)).unwrap();
    });
    for labels in [vec![1i64], vec![1, -1]] {
        fail(&|w| {
            w.add_array("x", &x).unwrap();
            w.add_array("mask", &mask).unwrap();
            w.add_array("labels", &Array1::from(labels.clone()))
                .unwrap();
        });
    }
    fail(&|w| {
        w.add_array("x", &x).unwrap();
        w.add_array("mask", &mask).unwrap();
        w.add_array("labels", &Array1::from(vec![0.5f32, 1.0]))
            .unwrap();
    });
    fs::write(&path, b"PK\x03\x04 broken").unwrap();
    text.push(message(
        dir.path(),
        Dataset::open(&path, &Options::default()),
    ));
    snapshot!("npz_errors", text.join("\n\n"));
}

#[test]
fn npz_round_trip_is_exact_and_deterministic() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (
        counted(&[2, 3]),
        ArrayD::from_elem(IxDyn(&[]), f32::MIN_POSITIVE),
    );
    // Names as exporters make them.
    let arrays = [
        ("logits", a.view()),
        ("/blocks.0/attn/MatMul_output_0", b.view()),
    ];
    let (p, q) = (dir.path().join("p.npz"), dir.path().join("q.npz"));
    save_npz(&p, &arrays).unwrap();
    save_npz(&q, &arrays).unwrap();
    assert_eq!(fs::read(&p).unwrap(), fs::read(&q).unwrap());
    let back = read_arrays(&p).unwrap();
    assert_eq!(
        back[0],
        NamedArray {
            name: Some("logits".into()),
            array: a
        }
    );
    assert_eq!(
        back[1],
        NamedArray {
            name: Some("/blocks.0/attn/MatMul_output_0".into()),
            array: b
        }
    );
    let missing = read_arrays(&dir.path().join("none.npz")).unwrap_err();
    assert!(matches!(missing, DataError::Missing { .. }));
}
