#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;
use crate::ir::{AttrValue, Attrs, DType, Edit, NewOp, OpName, Tensor, ValueInfo};

fn batch() -> DimExpr {
    DimExpr::symbol("batch")
}

/// A graph under construction; its nodes are anchored at its first input.
struct Build {
    graph: Graph,
    anchor: NodeId,
}

impl Build {
    fn new(dtype: DType, dims: &[Dim]) -> (Build, Value) {
        let mut graph = Graph::default();
        let mut edit = Edit::new(&mut graph);
        let id = edit.append(NodeKind::Input, 0, vec!["x".into()]);
        edit.push_graph_input(id);
        edit.set_info_of("x".into(), ValueInfo::tensor(dtype, Some(dims.to_vec())));
        (Build { graph, anchor: id }, Value { node: id, port: 0 })
    }

    fn init(&mut self, t: Tensor) -> Value {
        Edit::new(&mut self.graph).add_init(self.anchor, "c", t)
    }

    fn ints(&mut self, v: &[i64]) -> Value {
        self.init(Tensor::vector(v))
    }

    fn weight(&mut self, shape: &[usize]) -> Value {
        let n = shape.iter().product();
        self.init(Tensor::new(shape, &vec![0f32; n]).unwrap())
    }

    fn op(&mut self, new: NewOp) -> Value {
        Edit::new(&mut self.graph).add(self.anchor, new)
    }
}

fn std(op: &str, inputs: &[Value]) -> NewOp {
    NewOp::std(op, op).inputs(inputs.iter().copied())
}

fn param(name: &str) -> Dim {
    Dim::Param(name.into())
}

fn image() -> [Dim; 4] {
    [param("batch"), Dim::Value(3), Dim::Value(224), Dim::Value(224)]
}

/// The text of the inferred shape of the only output of an operator on `x` and constants.
fn shape_of(dims: &[Dim], opset: i64, make: impl FnOnce(&mut Build, Value) -> Value) -> String {
    let (mut b, x) = Build::new(DType::F32, dims);
    let y = make(&mut b, x);
    let shapes = infer(&b.graph, opset);
    assert_eq!(shapes.problems(), &[]);
    text(&shapes, y)
}

fn text(shapes: &Shapes, v: Value) -> String {
    let Some(shape) = shapes.shape(v) else { return "unknown".into() };
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn a_view_with_symbolic_batch_is_followed_to_its_reshape() {
    let (mut b, x) = Build::new(DType::F32, &[param("batch"), Dim::Value(197), Dim::Value(576)]);
    let shape = b.op(std("Shape", &[x]));
    let zero = b.init(Tensor::scalar(0i64));
    let n = b.op(std("Gather", &[shape, zero]));
    let axes = b.ints(&[0]);
    let n = b.op(std("Unsqueeze", &[n, axes]));
    let rest = b.ints(&[-1, 3, 3, 64]);
    let target = b.op(std("Concat", &[n, rest]).attr("axis", AttrValue::Int(0)));
    let y = b.op(std("Reshape", &[x, target]));
    let shapes = infer(&b.graph, 17);
    assert_eq!(text(&shapes, y), "batch,197,3,3,64");
    assert_eq!(shapes.contents(target).unwrap()[0], Some(batch()));
    assert_eq!(shapes.dtype(target), Some(DType::I64));
}

#[test]
fn the_expand_of_a_class_token_resolves_its_where() {
    // Where(Equal(shape, −1), 1, shape): a symbolic batch is never −1.
    let (mut b, x) = Build::new(DType::F32, &image());
    let shape = b.op(std("Shape", &[x]).attr("end", AttrValue::Int(1)));
    let minus = b.ints(&[-1, -1]);
    let shape = b.op(std("Concat", &[shape, minus]).attr("axis", AttrValue::Int(0)));
    let one = b.ints(&[1, 1, 1]);
    let marks = b.ints(&[-1]);
    let same = b.op(std("Equal", &[shape, marks]));
    let target = b.op(std("Where", &[same, one, shape]));
    let token = b.weight(&[1, 1, 192]);
    let y = b.op(std("Expand", &[token, target]));
    let shapes = infer(&b.graph, 17);
    assert_eq!(text(&shapes, y), "batch,1,192");
}

#[test]
fn shapes_of_single_operators() {
    let tokens = [param("batch"), Dim::Value(197), Dim::Value(192)];
    let ints = |v: &[i64]| AttrValue::Ints(v.to_vec());
    let conv = |dims: &[Dim], kernel: usize, stride: i64, pad: i64| {
        shape_of(dims, 17, |b, x| {
            let w = b.weight(&[8, 3, kernel, kernel]);
            b.op(std("Conv", &[x, w]).attr("strides", ints(&[stride; 2])).attr("pads", ints(&[pad; 4])))
        })
    };
    assert_eq!(conv(&image(), 16, 16, 0), "batch,8,14,14");
    let free = [param("batch"), Dim::Value(3), param("H"), Dim::Value(224)];
    assert_eq!(conv(&free, 16, 16, 0), "batch,8,floor((H)/16),14");
    assert_eq!(conv(&free, 3, 2, 1), "batch,8,floor((H + 1)/2),112");
    assert_eq!(conv(&free, 3, 1, 1), "batch,8,H,224");
    let matmul = |b: &mut Build, x| {
        let w = b.weight(&[192, 576]);
        b.op(std("MatMul", &[x, w]))
    };
    assert_eq!(shape_of(&tokens, 17, matmul), "batch,197,576");
    let reshape = |b: &mut Build, x| {
        let t = b.ints(&[-1, 192]);
        b.op(std("Reshape", &[x, t]))
    };
    assert_eq!(shape_of(&tokens, 17, reshape), "197*batch,192");
    let flatten = |b: &mut Build, x| b.op(std("Flatten", &[x]));
    assert_eq!(shape_of(&tokens, 17, flatten), "batch,37824");
    let transpose = |b: &mut Build, x| b.op(std("Transpose", &[x]).attr("perm", ints(&[2, 0, 1])));
    assert_eq!(shape_of(&tokens, 17, transpose), "192,batch,197");
    let mean = |b: &mut Build, x| b.op(std("ReduceMean", &[x]).attr("axes", ints(&[-1])).attr("keepdims", AttrValue::Int(0)));
    assert_eq!(shape_of(&tokens, 17, mean), "batch,197");
    let gather = |b: &mut Build, x| {
        let i = b.init(Tensor::scalar(0i64));
        b.op(std("Gather", &[x, i]).attr("axis", AttrValue::Int(1)))
    };
    assert_eq!(shape_of(&tokens, 17, gather), "batch,192");
    let slice = |b: &mut Build, x| {
        let (starts, ends, axes) = (b.ints(&[1]), b.ints(&[i64::MAX]), b.ints(&[1]));
        b.op(std("Slice", &[x, starts, ends, axes]))
    };
    assert_eq!(shape_of(&tokens, 17, slice), "batch,196,192");
    let old_slice = |b: &mut Build, x| {
        let s = std("Slice", &[x]).attr("starts", ints(&[-2])).attr("ends", ints(&[9000])).attr("axes", ints(&[2]));
        b.op(s)
    };
    assert_eq!(shape_of(&tokens, 9, old_slice), "batch,197,2");
    let sum = |b: &mut Build, x| {
        let w = b.weight(&[197, 1]);
        b.op(std("Add", &[w, x]))
    };
    assert_eq!(shape_of(&tokens, 17, sum), "batch,197,192");
    let pad = |b: &mut Build, x| {
        let p = b.ints(&[1, 0, 2, 0]);
        let axes = b.ints(&[0, 1]);
        let none = b.init(Tensor::scalar(0f32));
        b.op(std("Pad", &[x, p, none, axes]))
    };
    assert_eq!(shape_of(&tokens, 18, pad), "batch + 3,197,192");
    let einsum = |b: &mut Build, x| b.op(std("Einsum", &[x, x]).attr("equation", AttrValue::String("bnc,bmc->bnm".into())));
    assert_eq!(shape_of(&tokens, 17, einsum), "batch,197,197");
}

#[test]
fn a_clamp_that_depends_on_a_symbol_is_not_guessed() {
    // batch[0:2] has 2 elements only if the batch is that large.
    let y = shape_of(&image(), 17, |b, x| {
        let (starts, ends) = (b.ints(&[0]), b.ints(&[2]));
        b.op(std("Slice", &[x, starts, ends]))
    });
    assert_eq!(y, "?,3,224,224");
}

#[test]
fn symbolic_axes_that_may_be_one_are_not_squeezed() {
    let y = shape_of(&[param("batch"), Dim::Value(1)], 17, |b, x| b.op(std("Squeeze", &[x])));
    assert_eq!(y, "unknown");
}

#[test]
fn unnamed_sizes_are_equal_to_themselves_alone() {
    let (mut b, x) = Build::new(DType::F32, &[Dim::Unknown, Dim::Unknown]);
    let y = b.op(std("Relu", &[x]));
    let shapes = infer(&b.graph, 17);
    assert_eq!(shapes.shape(x), shapes.shape(y));
    let dims = shapes.shape(x).unwrap();
    assert_ne!(dims[0], dims[1]);
}

#[test]
fn custom_operators_take_the_table_type() {
    let (mut b, x) = Build::new(DType::I8, &image());
    let table = b.init(Tensor::vector(&[0u8; 4]));
    let custom = |op: &str| NewOp::new(OpName::new(crate::ir::AI_VITQ, op), op);
    let lut = b.op(custom("LutGelu").input(x).input(table));
    let channels = b.op(custom("ChannelLutGelu").input(x).input(table).input(table));
    let lis = b.op(custom("LogIntSoftmax").input(x).input(table));
    let norm = b.op(custom("PtfLayerNorm").input(x).input(table));
    let shapes = infer(&b.graph, 17);
    for y in [lut, channels, lis, norm] {
        assert_eq!(shapes.dtype(y), Some(DType::U8));
        assert_eq!(shapes.shape(y), shapes.shape(x));
    }
}

#[test]
fn records_fill_gaps_and_contradictions_are_reported() {
    let (mut b, x) = Build::new(DType::F32, &image());
    let known = b.op(std("Relu", &[x]));
    let gap = b.op(NewOp::new(OpName::new("other", "Thing"), "gap").input(x));
    let mut edit = Edit::new(&mut b.graph);
    let rank3 = Some(vec![param("batch"), Dim::Value(7), Dim::Unknown]);
    edit.set_info(known, ValueInfo::tensor(DType::F32, rank3.clone()));
    edit.set_info(gap, ValueInfo::tensor(DType::F16, rank3));
    let shapes = infer(&b.graph, 17);
    assert_eq!(text(&shapes, known), "batch,3,224,224");
    assert_eq!(text(&shapes, gap), "batch,7,?");
    assert_eq!(shapes.dtype(gap), Some(DType::F16));
    let [problem] = shapes.problems() else { panic!("{:?}", shapes.problems()) };
    assert!(problem.to_string().contains("rank 3"), "{problem}");
}

#[test]
fn a_stale_record_does_not_pin_an_input_made_dynamic() {
    // The input's unnamed batch flows through Relu, whose record still says 1.
    let (mut b, x) = Build::new(DType::F32, &[Dim::Unknown, Dim::Value(3)]);
    let y = b.op(std("Relu", &[x]));
    Edit::new(&mut b.graph).set_info(y, ValueInfo::tensor(DType::F32, Some(vec![Dim::Value(1), Dim::Value(3)])));
    assert_eq!(text(&infer(&b.graph, 17), y), "?,3");
}

#[test]
fn malformed_nodes_are_reported_and_never_panic() {
    let lists: [Vec<i64>; 6] = [vec![], vec![-9], vec![0, 0], vec![i64::MIN, i64::MAX], vec![5; 70], vec![-1, -1]];
    let names = ["axis", "k", "blocksize", "group", "start", "end", "q_num_heads", "kv_num_heads", "to", "batch_dims"];
    let list_names =
        ["axes", "perm", "pads", "strides", "dilations", "kernel_shape", "shape", "split", "starts", "ends", "steps"];
    for op in OPS {
        for list in &lists {
            for dims in [vec![], vec![Dim::Value(-3)], image().to_vec(), vec![Dim::Value(i64::MAX); 3]] {
                let (mut b, x) = Build::new(DType::F32, &dims);
                let constant = b.ints(list);
                let mut attrs = Attrs::new();
                for (i, name) in names.iter().enumerate() {
                    attrs.set(name, AttrValue::Int(list.get(i % list.len().max(1)).copied().unwrap_or(-7)));
                }
                for inputs in
                    [vec![], vec![x], vec![x, constant], vec![constant, x, constant, constant, constant], vec![constant; 3]]
                {
                    b.op(std(op, &inputs).attrs(attrs.clone()).output("a").output("b"));
                    b.op(std(op, &inputs).attr("equation", AttrValue::String("ab,->..".into())));
                    let mut more = attrs.clone();
                    list_names.iter().for_each(|n| more.set(n, AttrValue::Ints(list.clone())));
                    b.op(std(op, &inputs).attrs(more));
                }
                infer(&b.graph, 17);
            }
        }
    }
}

const OPS: &[&str] = &[
    "Add",
    "Where",
    "Relu",
    "Dropout",
    "Cast",
    "LayerNormalization",
    "BatchNormalization",
    "MatMul",
    "Gemm",
    "Einsum",
    "Attention",
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "GlobalAveragePool",
    "Resize",
    "Upsample",
    "DepthToSpace",
    "SpaceToDepth",
    "ReduceSum",
    "ReduceMax",
    "ArgMax",
    "TopK",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Concat",
    "Split",
    "Slice",
    "Expand",
    "Tile",
    "Pad",
    "Gather",
    "GatherElements",
    "GatherND",
    "OneHot",
    "NonZero",
    "Constant",
    "ConstantOfShape",
    "Shape",
    "Size",
    "Range",
    "RandomNormal",
    "Mod",
    "Div",
    "QLinearMatMul",
    "QLinearConv",
    "DequantizeLinear",
    "QuantizeLinear",
    "Max",
    "Equal",
    "Not",
    "Identity",
];

#[test]
fn expressions_print_as_people_write_them() {
    let e = batch().times(197).unwrap().mul(&DimExpr::symbol("T")).unwrap().plus(-3).unwrap();
    assert_eq!(e.to_string(), "197*T*batch - 3");
    assert_eq!(batch().neg().unwrap().plus(1).unwrap().to_string(), "-batch + 1");
}

#[test]
fn floors_draw_out_what_divides() {
    let h = DimExpr::symbol("H");
    let patches = h.plus(-16).unwrap().floor_div(16).unwrap().plus(1).unwrap();
    assert_eq!(patches, h.floor_div(16).unwrap());
    assert_eq!(h.times(4).unwrap().floor_div(2).unwrap(), h.times(2).unwrap());
    assert_eq!(h.floor_div(2).unwrap().floor_div(3).unwrap(), h.floor_div(6).unwrap());
}

/// Trees of arithmetic over two symbols, with the value that i128 arithmetic gives them.
fn trees() -> impl Strategy<Value = (Option<DimExpr>, Option<i128>, [i64; 2])> {
    ([0i64..50, 0i64..50], prop::collection::vec((0u8..6, -20i64..20), 1..8)).prop_map(|(sizes, steps)| {
        let symbols = [DimExpr::symbol("a"), DimExpr::symbol("b")];
        let (mut e, mut v) = (Some(symbols[0].clone()), Some(i128::from(sizes[0])));
        for (kind, n) in steps {
            let (other, number) = if n % 2 == 0 { (n.into(), i128::from(n)) } else { (symbols[1].clone(), sizes[1].into()) };
            let divisor = n.abs() + 1;
            (e, v) = match kind {
                0 => (e.and_then(|e| e.add(&other)), v.map(|v| v + number)),
                1 => (e.and_then(|e| e.sub(&other)), v.map(|v| v - number)),
                2 => (e.and_then(|e| e.mul(&other)), v.and_then(|v| v.checked_mul(number))),
                3 => (e.and_then(|e| e.floor_div(divisor)), v.map(|v| v.div_euclid(divisor.into()))),
                4 => (e.and_then(|e| e.ceil_div(divisor)), v.map(|v| -(-v).div_euclid(divisor.into()))),
                _ => (e.and_then(|e| e.modulo(divisor)), v.map(|v| v.rem_euclid(divisor.into()))),
            };
        }
        (e, v, sizes)
    })
}

proptest! {
    #[test]
    fn expressions_compute_what_integers_do((e, v, sizes) in trees()) {
        let sizes = |name: &str| Some(if name == "a" { sizes[0] } else { sizes[1] });
        if let Some(found) = e.as_ref().and_then(|e| e.evaluate(&sizes)) {
            prop_assert_eq!(Some(i128::from(found)), v);
            // A bound must hold for every size.
            if let Some(low) = e.and_then(|e| e.lower_bound()) {
                prop_assert!(found >= low);
            }
        }
    }

    #[test]
    fn comparisons_that_are_decided_are_true((x, u, sizes) in trees(), n in -100i64..100) {
        let number = DimExpr::from(n);
        let known = |name: &str| Some(if name == "a" { sizes[0] } else { sizes[1] });
        if let (Some(x), Some(u)) = (x.filter(|x| x.evaluate(&known).is_some()), u) {
            if let Some(equal) = x.equals(&number) {
                prop_assert_eq!(equal, u == i128::from(n));
            }
            if let Some(less) = x.less(&number) {
                prop_assert_eq!(less, u < i128::from(n));
            }
            if let Some(less) = number.less(&x) {
                prop_assert_eq!(less, i128::from(n) < u);
            }
        }
    }
}
