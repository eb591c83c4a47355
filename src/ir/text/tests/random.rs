//! Random graphs and models through the text and back, and random texts.

use bytes::Bytes;
use proptest::prelude::*;

use super::SAMPLE;
use crate::ir::text::*;
use crate::ir::{
    AttrValue, Attrs, Dim, Edit, Header, NodeKind, Op, OpName, OpsetImport, Stored, Tensor, TensorData, TensorType, Type, Value,
    ValueInfo,
};

/// A name of a value, odd ones included.
fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z_][a-z0-9_]{0,4}",
        "/blocks\\.[0-9]/[a-z\"\\\\#=<>,: \n]{1,6}",
        Just("float".to_owned()),
        Just("seq".to_owned()),
        Just("hex".to_owned()),
        Just("nan".to_owned()),
        "\\PC{1,5}",
    ]
}

/// Any float but NaN, which equals nothing.
fn floats() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_map(|v| if v.is_nan() { f32::INFINITY } else { v })
}

fn tensors() -> impl Strategy<Value = Tensor> {
    let shape = prop::collection::vec(0usize..4, 0..4);
    (shape, prop::sample::select(DType::ALL), any::<u64>()).prop_map(|(shape, dtype, seed)| {
        let n: usize = shape.iter().product();
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        if dtype == DType::String {
            let data = TensorData::Strings((0..n).map(|_| Bytes::copy_from_slice(&next().to_le_bytes())).collect());
            return Tensor { dtype, shape, data, stored: Stored::Typed, doc: String::new(), metadata: vec![] };
        }
        let bytes: Vec<u8> = (0..dtype.bytes_for(n).unwrap()).map(|_| next() as u8).collect();
        // Payloads of NaNs are not kept, so there are none here.
        let bytes: Vec<u8> = match dtype {
            DType::F32 | DType::C64 => bytes.chunks(4).flat_map(|b| [b[0], b[1], b[2], b[3] & 0xbf]).collect(),
            DType::F64 | DType::C128 => {
                bytes.chunks(8).flat_map(|b| [b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7] & 0xbf]).collect()
            }
            _ => bytes,
        };
        Tensor::from_bytes(dtype, shape, bytes.into()).unwrap()
    })
}

fn attr_values() -> impl Strategy<Value = AttrValue> {
    let bytes = prop_oneof![any::<Vec<u8>>().prop_map(Bytes::from), "\\PC{0,6}".prop_map(Bytes::from)].boxed();
    prop_oneof![
        floats().prop_map(AttrValue::Float),
        any::<i64>().prop_map(AttrValue::Int),
        bytes.clone().prop_map(AttrValue::String),
        tensors().prop_map(AttrValue::Tensor),
        prop::collection::vec(floats(), 0..4).prop_map(AttrValue::Floats),
        prop::collection::vec(any::<i64>(), 0..4).prop_map(AttrValue::Ints),
        prop::collection::vec(bytes, 0..4).prop_map(AttrValue::Strings),
        prop::collection::vec(tensors(), 0..3).prop_map(AttrValue::Tensors),
        (names(), 0i32..15).prop_map(|(n, t)| AttrValue::Ref(n, t)),
    ]
}

fn attrs() -> impl Strategy<Value = Attrs> {
    prop::collection::btree_map(names(), attr_values(), 0..3).prop_map(|m| m.into_iter().collect())
}

fn infos() -> impl Strategy<Value = ValueInfo> {
    let dim = prop_oneof![
        (-2i64..300).prop_map(Dim::Value),
        names().prop_map(Dim::Param),
        Just(Dim::Unknown),
        Just(Dim::Param(String::new()))
    ];
    let shape = prop::option::of(prop::collection::vec(dim, 0..4));
    let ty = (prop::sample::select(DType::ALL), shape).prop_map(|(d, s)| Type::Tensor(TensorType::new(d, s)));
    prop::option::of(ty).prop_map(|ty| ValueInfo { ty, ..ValueInfo::default() })
}

/// Operators: domain, type, name, attributes, which earlier values they read, how many outputs, which of them listed.
type OpSpec =
    ((Option<String>, String, String, Option<String>), Attrs, Vec<Option<prop::sample::Index>>, usize, Option<ValueInfo>);

fn graphs() -> impl Strategy<Value = Graph> {
    let id = (prop::option::of(names()), names(), names(), prop::option::of(names()));
    let inputs = prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), 0..4);
    let op = (id, attrs(), inputs, 0usize..3, prop::option::of(infos()));
    let pool = prop::collection::vec(names(), 16).prop_map(distinct);
    (
        names(),
        pool,
        prop::collection::vec(infos(), 0..4),
        prop::collection::vec((tensors(), any::<bool>()), 0..4),
        prop::collection::vec(op, 0..4),
        prop::collection::vec((any::<prop::sample::Index>(), infos()), 0..3),
    )
        .prop_map(|(name, pool, inputs, inits, ops, outputs)| build(name, pool, inputs, inits, ops, outputs))
}

/// The same names, made different where they are not.
fn distinct(names: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    names.into_iter().enumerate().map(|(i, n)| if seen.insert(n.clone()) { n } else { format!("{n} {i}") }).collect()
}

/// Builds as an importer does: inputs, initialisers, operators, in the order of their places.
fn build(
    name: String,
    pool: Vec<String>,
    inputs: Vec<ValueInfo>,
    inits: Vec<(Tensor, bool)>,
    ops: Vec<OpSpec>,
    outputs: Vec<(prop::sample::Index, ValueInfo)>,
) -> Graph {
    let mut g = Graph { name, ..Graph::default() };
    let mut names = pool.into_iter();
    let mut e = Edit::new(&mut g);
    let (mut values, mut ord): (Vec<Value>, u64) = (Vec::new(), 0);
    let mut listed = Vec::new();
    for info in inputs {
        let n = names.next().unwrap();
        let id = e.append(NodeKind::Input, ord, vec![n.clone()]);
        e.set_info_of(n, info);
        e.push_graph_input(id);
        values.push(Value { node: id, port: 0 });
        ord += 1;
    }
    for (tensor, overridable) in inits {
        let n = names.next().unwrap();
        let id = e.append(NodeKind::Init(tensor), ord, vec![n.clone()]);
        if overridable {
            e.set_info_of(n, ValueInfo::default());
            e.push_graph_input(id);
        }
        values.push(Value { node: id, port: 0 });
        ord += 1;
    }
    for ((domain, op_type, name, overload), attrs, reads, count, info) in ops {
        let outs: Vec<String> = (0..count).map(|i| if i == 2 { String::new() } else { names.next().unwrap() }).collect();
        let op = Op {
            op: OpName { domain: domain.unwrap_or_default(), op_type, overload: overload.unwrap_or_default() },
            name,
            attrs,
            arity: reads.len(),
            doc: String::new(),
            metadata: vec![],
            extra: Bytes::new(),
        };
        let id = e.append(NodeKind::Op(op), ord, outs.clone());
        for (port, read) in (0..).zip(reads) {
            if let (Some(read), false) = (read, values.is_empty()) {
                let value = values[read.index(values.len())];
                e.connect(value, id, port);
            }
        }
        values.extend((0..count.min(2) as u32).map(|port| Value { node: id, port }));
        if let (Some(info), Some(n)) = (info, outs.first()) {
            listed.push((n.clone(), ValueInfo { listed: true, ..info }));
        }
        ord += 1;
    }
    for (at, info) in outputs {
        if !values.is_empty() {
            let value = values[at.index(values.len())];
            e.push_graph_output(value);
            if e.info(value).is_none() || info.ty.is_some() {
                e.set_info(value, info);
            }
        }
    }
    for (n, info) in listed {
        if e.info_of(&n).is_none() {
            e.set_info_of(n, info);
        }
    }
    e.finish().unwrap();
    g
}

fn models() -> impl Strategy<Value = Model> {
    let opsets = prop::collection::vec((names(), any::<i64>()), 0..3)
        .prop_map(|v| v.into_iter().map(|(domain, version)| OpsetImport { domain, version }).collect::<Vec<_>>())
        .boxed();
    let header = (any::<i64>(), names(), names(), any::<i64>(), "\\PC{0,9}", prop::collection::vec((names(), names()), 0..3))
        .prop_map(|(ir_version, producer_name, domain, model_version, doc, metadata)| Header {
            ir_version,
            producer_name,
            domain,
            model_version,
            doc,
            metadata,
            ..Header::default()
        });
    let function = (names(), names(), prop::option::of(names()), prop::collection::vec(names(), 0..3), attrs(), opsets.clone());
    let function =
        (function, graphs(), "\\PC{0,9}").prop_map(|((domain, op_type, overload, attributes, defaults, opsets), body, doc)| {
            let mut body = without_constants(body);
            body.name = op_type.clone();
            let id = OpName { domain, op_type, overload: overload.unwrap_or_default() };
            Function { id, attributes, attribute_defaults: defaults, opsets, body, doc, metadata: vec![] }
        });
    (graphs(), opsets, prop::collection::vec(function, 0..2), header).prop_map(|(graph, opsets, functions, header)| Model {
        graph,
        opsets,
        functions,
        header,
    })
}

/// A function's body has no initialisers, and a typed parameter is listed.
fn without_constants(g: Graph) -> Graph {
    let text = print_graph(&g, &PrintOptions::lossless());
    let g = parse_graph(&text).unwrap();
    if g.node_ids().iter().any(|&id| g.get(id).unwrap().tensor().is_some()) {
        return Graph::default();
    }
    let mut g = g;
    let ends: Vec<String> = g
        .inputs()
        .iter()
        .map(|&id| Value { node: id, port: 0 })
        .chain(g.outputs().iter().copied())
        .map(|v| g.value_name(v).to_owned())
        .collect();
    let mut e = Edit::new(&mut g);
    for n in ends {
        let info = e.info_of(&n).cloned().unwrap_or_default();
        e.set_info_of(n, ValueInfo { listed: info.ty.is_some(), ..info });
    }
    e.finish().unwrap();
    g
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn printed_graphs_parse_to_themselves(g in graphs()) {
        let text = print_graph(&g, &PrintOptions::lossless());
        let again = parse_graph(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&again, &g, "{}", text);
        prop_assert_eq!(print_graph(&again, &PrintOptions::lossless()), text);
    }

    #[test]
    fn printed_models_parse_to_themselves(m in models()) {
        let text = print_model(&m, &PrintOptions::lossless());
        let again = parse_model(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&again, &m, "{}", text);
    }

    #[test]
    fn other_styles_print_anything(m in models()) {
        for options in [PrintOptions::elided(), PrintOptions::snapshot().with_value_types()] {
            prop_assert!(!print_model(&m, &options).is_empty());
        }
        let drawn = crate::ir::dot::print_dot(&m.graph, |_| None).lines().count();
        prop_assert!(drawn >= m.graph.ops().len());
    }

    #[test]
    fn any_text_is_read_or_refused(text in prop_oneof![
        "\\PC{0,80}",
        prop::collection::vec(prop::sample::select(TOKENS.to_vec()), 0..40).prop_map(|t| t.join(" ")),
        prop::collection::vec(prop::sample::select(TOKENS.to_vec()), 0..40).prop_map(|t| t.concat()),
    ]) {
        let _ = (parse_model(&text), parse_graph(&text), parse_function(&text));
    }

    #[test]
    fn damaged_texts_are_read_or_refused(cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6)) {
        let mut bytes = SAMPLE.as_bytes().to_vec();
        for (at, byte, how) in cuts {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let _ = (parse_model(&text), parse_graph(&text), parse_function(&text));
    }
}

const TOKENS: &[&str] = &[
    "g",
    "x",
    "y",
    "(",
    ")",
    "=>",
    "<",
    ">",
    "{",
    "}",
    "[",
    "]",
    "=",
    ",",
    ":",
    ".",
    "?",
    "@",
    "float",
    "int64",
    "seq",
    "1",
    "-1",
    "2.5",
    "inf",
    "-nan",
    "\"s\"",
    "\"",
    "hex\"00\"",
    "#",
    "\n",
    "é",
    "Op",
    "ir_version",
    "opset_import",
    "ints",
    "tensor",
    "-",
];
