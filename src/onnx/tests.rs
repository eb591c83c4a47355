#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;

use super::external::Folder;
use super::file::write_within;
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorAnnotation, TensorProto, TensorShapeProto, TrainingInfoProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_proto::DataLocation, tensor_shape_proto, type_proto,
};
use super::*;
use crate::ir::{AttrValue, DType, Edit, Stored, Value};

fn typed(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(*d)),
        denotation: String::new(),
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let value = Some(type_proto::Value::TensorType(type_proto::Tensor { elem_type: 1, shape }));
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { value, ..TypeProto::default() }), ..ValueInfoProto::default() }
}

fn node(op_type: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    NodeProto { op_type: op_type.into(), input: names(inputs), output: names(outputs), ..NodeProto::default() }
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
}

fn raw(name: &str, dims: &[i64], data: &[u8]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: 2,
        raw_data: Some(Bytes::copy_from_slice(data)),
        ..TensorProto::default()
    }
}

fn beside(name: &str, dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
    TensorProto {
        raw_data: None,
        data_location: DataLocation::External as i32,
        external_data: entries.iter().map(|(k, v)| entry(k, v)).collect(),
        ..raw(name, dims, &[])
    }
}

fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: 20 }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

fn through(p: &ModelProto) -> ModelProto {
    to_proto(&from_proto(p.clone(), &NoDataFiles).unwrap())
}

fn assert_kept(p: ModelProto) {
    assert_eq!(through(&p), p);
}

/// y = Relu(x), and whatever the change adds.
fn relu(change: impl FnOnce(&mut GraphProto)) -> ModelProto {
    let mut g = GraphProto {
        name: "g".into(),
        node: vec![node("Relu", &["x"], &["y"])],
        input: vec![typed("x", &[3])],
        output: vec![typed("y", &[3])],
        ..GraphProto::default()
    };
    change(&mut g);
    model(g)
}

#[test]
fn an_input_that_is_an_output_keeps_both_descriptions() {
    let described = |doc: &str| ValueInfoProto { doc_string: doc.into(), ..typed("x", &[3]) };
    assert_kept(relu(|g| {
        g.input = vec![described("as an input")];
        g.output = vec![described("as an output"), typed("y", &[3])];
        g.value_info = vec![described("as a value"), typed("y", &[3]), typed("nobody", &[1])];
    }));
}

#[test]
fn the_first_description_counts_until_a_pass_knows_better() {
    let p = relu(|g| g.value_info = vec![typed("x", &[7])]);
    let mut m = from_proto(p, &NoDataFiles).unwrap();
    let x = Value { node: m.graph.inputs()[0], port: 0 };
    assert_eq!(m.graph.info(x).unwrap().tensor_type().unwrap().shape, Some(vec![crate::ir::Dim::Value(3)]));
    let info = m.graph.info(x).unwrap().clone();
    Edit::new(&mut m.graph).set_info(x, info);
    assert_eq!(to_proto(&m).graph.unwrap().value_info, [typed("x", &[3])]);
}

#[test]
fn a_renamed_value_keeps_its_place_in_value_info() {
    let p = relu(|g| {
        g.node.push(node("Neg", &["y"], &["z"]));
        g.output = vec![typed("z", &[3])];
        g.value_info = vec![typed("y", &[3])];
    });
    let mut m = from_proto(p, &NoDataFiles).unwrap();
    let y = m.graph.value("y").unwrap();
    let mut edit = Edit::new(&mut m.graph);
    edit.rename(y, "renamed");
    edit.commit().unwrap();
    assert_eq!(to_proto(&m).graph.unwrap().value_info, [typed("renamed", &[3])]);
}

#[test]
fn equality_sees_what_a_file_says() {
    let base = relu(|g| g.value_info = vec![typed("y", &[3])]);
    type Change = fn(&mut GraphProto);
    let changes: [Change; 6] = [
        |g| g.doc_string = "doc".into(),
        |g| g.metadata_props = vec![entry("k", "v")],
        |g| g.quantization_annotation = vec![TensorAnnotation { tensor_name: "x".into(), ..TensorAnnotation::default() }],
        |g| g.value_info.clear(),
        |g| g.value_info = vec![typed("y", &[4])],
        |g| g.node[0].doc_string = "doc".into(),
    ];
    let import = |p: &ModelProto| from_proto(p.clone(), &NoDataFiles).unwrap().graph;
    assert!(import(&base) == import(&base));
    for (i, change) in changes.into_iter().enumerate() {
        let mut other = base.clone();
        change(other.graph.as_mut().unwrap());
        assert!(import(&base) != import(&other), "change {i}");
    }
}

#[test]
fn functions_keep_their_value_info_and_overload() {
    let mut p = relu(|g| g.node[0] = NodeProto { domain: "d".into(), overload: "o".into(), ..node("F", &["x"], &["y"]) });
    p.functions = vec![FunctionProto {
        name: "F".into(),
        domain: "d".into(),
        overload: "o".into(),
        input: vec!["p".into()],
        output: vec!["q".into()],
        attribute: vec!["a".into()],
        node: vec![node("Neg", &["p"], &["m"]), node("Neg", &["m"], &["q"])],
        value_info: vec![typed("m", &[3]), typed("p", &[3]), typed("q", &[3])],
        opset_import: p.opset_import.clone(),
        ..FunctionProto::default()
    }];
    assert_kept(p);
}

#[test]
fn tensors_in_attributes_keep_their_names() {
    let attribute = |name: &str, r#type: AttributeType| AttributeProto {
        name: name.into(),
        r#type: r#type as i32,
        ..AttributeProto::default()
    };
    let unnamed = TensorProto { name: None, ..raw("", &[1], &[5]) };
    assert_kept(relu(|g| {
        g.node[0].attribute = vec![
            AttributeProto { t: Some(raw("named", &[2], &[1, 2])), ..attribute("t", AttributeType::Tensor) },
            AttributeProto {
                tensors: vec![raw("", &[1], &[3]), unnamed.clone(), raw("c", &[1], &[4])],
                ..attribute("ts", AttributeType::Tensors)
            },
            AttributeProto { t: Some(unnamed), ..attribute("u", AttributeType::Tensor) },
        ];
    }));
}

#[test]
fn the_default_domain_is_spelt_as_the_file_spells_it() {
    for domain in [None, Some(String::new())] {
        let mut p = relu(|_| {});
        p.opset_import[0].domain = domain;
        assert_kept(p);
    }
}

#[test]
fn six_bit_elements_take_an_entry_each_in_a_typed_field() {
    for dtype in [DType::F6E2M3, DType::F6E3M2] {
        for n in 1..=5usize {
            let values: Vec<i32> = (0..n as i32).map(|i| (i * 37 + 29) & 63).collect();
            let t = TensorProto {
                dims: vec![n as i64],
                data_type: dtype.to_onnx(),
                raw_data: None,
                int32_data: values.clone(),
                ..raw("w", &[], &[])
            };
            let p = relu(|g| g.initializer = vec![t]);
            let m = from_proto(p.clone(), &NoDataFiles).unwrap();
            // The packed form by the arithmetic of onnx.proto: element i is bits 6i to 6i + 5 of one little-endian number.
            let stream = values.iter().enumerate().fold(0u64, |s, (i, &v)| s | (v as u64) << (6 * i));
            let w = m.graph.get(m.graph.value("w").unwrap().node).unwrap().tensor().unwrap().clone();
            assert_eq!((w.bytes(), &w.stored), (&stream.to_le_bytes()[..(6 * n).div_ceil(8)], &Stored::Typed));
            assert_eq!(to_proto(&m), p);
        }
    }
}

#[test]
fn newer_files_are_refused_by_number() {
    for (version, fits) in [(MAX_IR_VERSION, true), (MAX_IR_VERSION + 1, false), (1000, false)] {
        let p = ModelProto { ir_version: version, ..relu(|_| {}) };
        match from_proto(p, &NoDataFiles) {
            Ok(_) => assert!(fits),
            Err(e) => assert!(!fits && e.to_string().contains(&version.to_string()), "{e}"),
        }
    }
}

#[test]
fn claims_without_data_are_refused_without_allocating() {
    let huge = 1 << 40;
    for dims in [vec![huge], vec![huge, huge, huge], vec![-1], vec![i64::MAX, 2, 0]] {
        for data_type in [1, 8, 16, 22] {
            let t = TensorProto { dims: dims.clone(), data_type, ..raw("w", &[], &[1]) };
            let e = from_proto(relu(|g| g.initializer = vec![t]), &NoDataFiles).unwrap_err().to_string();
            assert!(e.contains("'w'"), "{e}");
        }
    }
}

fn refused(p: ModelProto, folder: &Path) -> String {
    from_proto(p, &Folder::new(folder)).unwrap_err().to_string()
}

#[test]
fn external_data_stays_in_the_model_s_folder() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(root.path().join("secret"), [1u8; 8]).unwrap();
    std::fs::write(folder.join("data"), [7u8; 8]).unwrap();
    let absolute = root.path().join("secret");
    for location in ["../secret", "./../secret", "sub/../../secret", absolute.to_str().unwrap()] {
        let t = beside("w", &[8], &[("location", location)]);
        let e = refused(relu(|g| g.initializer = vec![t]), &folder);
        assert!(e.contains("leaves the model's folder"), "{e}");
    }
    for (entries, what) in [
        (&[("location", "data"), ("offset", "4"), ("length", "8")][..], "has 8 bytes"),
        (&[("location", "data"), ("offset", "18446744073709551615"), ("length", "8")], "has 8 bytes"),
        (&[("location", "data"), ("offset", "-1")], "not a number"),
        (&[("location", "data"), ("length", "4")], "needs 8 bytes and has 4"),
        (&[("location", "absent")], "put the data file back"),
        (&[("location", "")], "'location' is missing"),
        (&[], "'location' is missing"),
    ] {
        let e = refused(relu(|g| g.initializer = vec![beside("w", &[8], entries)]), &folder);
        assert!(e.contains(what) && e.contains("'w'"), "{e}");
    }
    let good = relu(|g| g.initializer = vec![beside("w", &[8], &[("location", "./data")])]);
    assert!(from_proto(good.clone(), &Folder::new(&folder)).is_ok());
    assert!(from_proto(good, &NoDataFiles).unwrap_err().to_string().contains("read it from its path"));
}

#[test]
fn external_data_of_what_passes_do_not_read_comes_inside() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data"), [9u8, 8, 7]).unwrap();
    let away = |name: &str| beside(name, &[1], &[("location", "data"), ("offset", "1"), ("length", "1")]);
    let sparse = |t: TensorProto| SparseTensorProto { values: Some(t), indices: None, dims: vec![3] };
    let nested =
        |t: fn(&str) -> TensorProto| GraphProto { name: "nested".into(), initializer: vec![t("n")], ..GraphProto::default() };
    let make = |t: &dyn Fn(&str) -> TensorProto| {
        let mut p = relu(|g| {
            let body = GraphProto { initializer: vec![t("n")], ..nested(|n| raw(n, &[1], &[8])) };
            let outer = NodeProto {
                attribute: vec![AttributeProto {
                    name: "body".into(),
                    g: Some(body.clone()),
                    r#type: 5,
                    ..AttributeProto::default()
                }],
                ..node("If", &["x"], &["b"])
            };
            g.node.push(outer.clone());
            let deep = GraphProto { node: vec![outer], ..GraphProto::default() };
            g.node[0].attribute = vec![
                AttributeProto { name: "deep".into(), g: Some(deep), r#type: 5, ..AttributeProto::default() },
                AttributeProto { name: "s".into(), sparse_tensor: Some(sparse(t("s"))), r#type: 11, ..AttributeProto::default() },
            ];
            g.sparse_initializer = vec![sparse(t("i"))];
        });
        p.training_info = vec![TrainingInfoProto {
            algorithm: Some(GraphProto { initializer: vec![t("t")], ..GraphProto::default() }),
            ..TrainingInfoProto::default()
        }];
        p
    };
    let inside = make(&|name| raw(name, &[1], &[8]));
    let read = from_proto(make(&away), &Folder::new(folder.path())).unwrap();
    assert_eq!(to_proto(&read), inside);
}

#[test]
fn a_model_past_the_limit_goes_outside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let data = folder.path().join("m.onnx.data");
    let weights = |n: usize, by: usize| -> Vec<u8> { (0..n).map(|i| (i * by % 251) as u8).collect() };
    let p = relu(|g| {
        g.initializer =
            vec![raw("a", &[5000], &weights(5000, 3)), raw("small", &[4], &[1, 2, 3, 4]), raw("b", &[1024], &weights(1024, 7))];
    });
    let m = from_proto(p.clone(), &NoDataFiles).unwrap();
    let size = p.encoded_len();
    write_within(&m, &path, ExternalData::WhenNeeded, size).unwrap();
    assert!(!data.exists() && std::fs::read(&path).unwrap() == p.encode_to_vec());
    for (external, limit) in [(ExternalData::WhenNeeded, size - 1), (ExternalData::Always, size)] {
        write_within(&m, &path, external, limit).unwrap();
        let small = std::fs::read(&path).unwrap();
        assert!(small.len() < 1000);
        let bare = ModelProto::decode(Bytes::from(small)).unwrap().graph.unwrap();
        let entries: Vec<_> = bare.initializer.iter().map(|t| types::import_entries(t.external_data.clone())).collect();
        let expected = |offset: &str, length: &str| {
            [("location", "m.onnx.data"), ("offset", offset), ("length", length)]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .to_vec()
        };
        assert_eq!(entries, [expected("0", "5000"), vec![], expected("5056", "1024")]);
        assert_eq!(std::fs::metadata(&data).unwrap().len(), 5056 + 1024);
        // Back in one piece, the file is what it was.
        assert_eq!(encode(&read(&path).unwrap()).unwrap(), p.encode_to_vec());
        // The limit holds of the model file whatever goes outside; nothing is written then.
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(&data).unwrap();
        let e = write_within(&m, &path, external, 100).unwrap_err().to_string();
        assert!(e.contains("at most 100") && !path.exists() && !data.exists(), "{e}");
    }
}

#[test]
fn a_data_file_may_be_replaced_by_the_model_that_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let weights: Vec<u8> = (0..200_000).map(|i| (i % 253) as u8).collect();
    let m = from_proto(relu(|g| g.initializer = vec![raw("w", &[200_000], &weights)]), &NoDataFiles).unwrap();
    write(&m, &path, ExternalData::Always).unwrap();
    let again = read(&path).unwrap();
    write(&again, &path, ExternalData::Always).unwrap();
    assert_eq!(encode(&read(&path).unwrap()).unwrap(), encode(&m).unwrap());
}

#[test]
fn strings_as_raw_bytes_are_refused() {
    let t = TensorProto { data_type: 8, ..raw("s", &[1], b"x") };
    let e = from_proto(relu(|g| g.initializer = vec![t]), &NoDataFiles).unwrap_err().to_string();
    assert!(e.contains("tensor 's' ") || e.contains("tensor 's':"), "{e}");
}

#[test]
fn an_opaque_attribute_is_not_lost() {
    let types = AttributeProto {
        name: "tp".into(),
        r#type: AttributeType::TypeProto as i32,
        tp: typed("x", &[1]).r#type,
        ..AttributeProto::default()
    };
    let p = relu(|g| g.node[0].attribute = vec![types]);
    let m = from_proto(p.clone(), &NoDataFiles).unwrap();
    assert!(matches!(m.graph.op(m.graph.ops()[0]).unwrap().attrs.get("tp"), Some(AttrValue::Opaque(_))));
    assert_kept(p);
}

proptest! {
    /// A typed field keeps any element, whatever its bits.
    #[test]
    fn typed_elements_keep_their_bits(bits in proptest::collection::vec(any::<u64>(), 1..9)) {
        for &dtype in DType::ALL {
            let n = bits.len() as i64;
            let mut t = TensorProto { dims: vec![n], data_type: dtype.to_onnx(), raw_data: None, ..raw("w", &[], &[]) };
            match dtype {
                DType::F32 => t.float_data = bits.iter().map(|&b| f32::from_bits(b as u32)).collect(),
                DType::F64 => t.double_data = bits.iter().map(|&b| f64::from_bits(b)).collect(),
                DType::I64 => t.int64_data = bits.iter().map(|&b| b as i64).collect(),
                DType::U64 => t.uint64_data.clone_from(&bits),
                DType::U32 => t.uint64_data = bits.iter().map(|&b| u64::from(b as u32)).collect(),
                DType::I32 => t.int32_data = bits.iter().map(|&b| b as i32).collect(),
                DType::I16 => t.int32_data = bits.iter().map(|&b| i32::from(b as i16)).collect(),
                DType::I8 => t.int32_data = bits.iter().map(|&b| i32::from(b as i8)).collect(),
                DType::U16 | DType::F16 | DType::BF16 => t.int32_data = bits.iter().map(|&b| i32::from(b as u16)).collect(),
                DType::String => t.string_data = bits.iter().map(|b| Bytes::copy_from_slice(&b.to_le_bytes())).collect(),
                DType::C64 | DType::C128 => continue,
                _ if dtype.bits() == 8 => t.int32_data = bits.iter().map(|&b| i32::from(b as u8)).collect(),
                _ => continue,
            }
            let p = relu(|g| g.initializer = vec![t]);
            prop_assert_eq!(through(&p).encode_to_vec(), p.encode_to_vec(), "{}", dtype);
        }
    }
}
