#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::ir::shape::infer;
use crate::ir::{AttrValue, DType, Dim, Header, NewOp, OpsetImport, Scalar, Subgraph, ValueInfo};

/// A model under construction: graph input `x`, further nodes anchored at it.
struct Build {
    model: Model,
    x: Value,
}

impl Build {
    fn new(opset: i64, dtype: DType, dims: &[Dim]) -> Build {
        let mut graph = Graph::default();
        let mut edit = Edit::new(&mut graph);
        let id = edit.append(NodeKind::Input, 0, vec!["x".into()]);
        edit.push_graph_input(id);
        edit.set_info_of("x".into(), ValueInfo::tensor(dtype, Some(dims.to_vec())));
        let opsets = vec![OpsetImport { domain: String::new(), version: opset }];
        Build { model: Model { graph, opsets, functions: vec![], header: Header::default() }, x: Value { node: id, port: 0 } }
    }

    fn tokens(opset: i64) -> Build {
        Build::new(opset, DType::F32, &[Dim::Param("batch".into()), Dim::Value(197), Dim::Value(192)])
    }

    fn init(&mut self, name: &str, t: Tensor) -> Value {
        Edit::new(&mut self.model.graph).add_init(self.x.node, name, t)
    }

    fn ints(&mut self, v: &[i64]) -> Value {
        self.init("c", Tensor::vector(v))
    }

    /// An operator whose output is named `name`.
    fn op(&mut self, op: &str, name: &str, inputs: &[Value], attrs: &[(&str, AttrValue)]) -> Value {
        let mut new = NewOp::std(op, name).inputs(inputs.iter().copied());
        for (name, value) in attrs {
            new = new.attr(name, value.clone());
        }
        Edit::new(&mut self.model.graph).add(self.x.node, new)
    }

    fn output(&mut self, v: Value) {
        Edit::new(&mut self.model.graph).push_graph_output(v);
    }

    /// Folds and returns the operator types that remain, in topological order.
    fn fold(&mut self) -> (Vec<String>, FoldReport) {
        let report = fold(&mut self.model).unwrap();
        assert!(report.converged);
        let g = &self.model.graph;
        (g.ops().into_iter().map(|id| g.op(id).unwrap().op.op_type.clone()).collect(), report)
    }

    fn constant(&self, name: &str) -> Option<&Tensor> {
        self.model.graph.constant(self.model.graph.value(name)?)
    }
}

fn int(v: i64) -> AttrValue {
    AttrValue::Int(v)
}

fn list(v: &[i64]) -> AttrValue {
    AttrValue::Ints(v.to_vec())
}

/// Folds one operator on constants and returns its result.
fn eval(op: &str, inputs: &[Tensor], attrs: &[(&str, AttrValue)]) -> Option<Tensor> {
    let mut b = Build::tokens(13);
    let inputs: Vec<Value> = inputs.iter().map(|t| b.init("c", t.clone())).collect();
    let y = b.op(op, "y", &inputs, attrs);
    b.output(y);
    b.fold();
    b.constant("y").cloned()
}

fn floats(v: &[f32]) -> Tensor {
    Tensor::vector(v)
}

fn values<T: Scalar>(t: Option<Tensor>) -> Vec<T> {
    t.unwrap().to_vec().unwrap()
}

#[test]
fn a_view_with_symbolic_batch_gets_a_constant_target() {
    let mut b = Build::tokens(17);
    let shape = b.op("Shape", "s", &[b.x], &[]);
    let zero = b.init("z", Tensor::scalar(0i64));
    let n = b.op("Gather", "n", &[shape, zero], &[]);
    let axes = b.ints(&[0]);
    let n = b.op("Unsqueeze", "u", &[n, axes], &[]);
    let rest = b.ints(&[197, 3, 64]);
    let target = b.op("Concat", "t", &[n, rest], &[("axis", int(0))]);
    let y = b.op("Reshape", "y", &[b.x, target], &[("allowzero", int(1))]);
    b.output(y);
    assert_eq!(b.fold().0, ["Reshape"]);
    let y = b.model.graph.value("y").unwrap();
    let target = b.model.graph.input(y.node, 1).unwrap();
    assert_eq!(b.model.graph.constant(target).unwrap().to_i64().unwrap(), [0, 197, 3, 64]);
    // A 0 copies only with allowzero off.
    assert_eq!(b.model.graph.op(y.node).unwrap().attrs.int("allowzero"), None);
}

#[test]
fn a_target_with_two_moved_symbols_stays() {
    // [a, b] → [b, a]: one −1 is not enough.
    let mut b = Build::new(17, DType::F32, &[Dim::Param("a".into()), Dim::Param("b".into())]);
    let back = b.op("Transpose", "t", &[b.x], &[]);
    let shape = b.op("Shape", "s", &[back], &[]);
    let y = b.op("Reshape", "y", &[b.x, shape], &[]);
    b.output(y);
    assert_eq!(b.fold().0.last().unwrap(), "Reshape");
    let y = b.model.graph.value("y").unwrap();
    assert!(b.model.graph.constant(b.model.graph.input(y.node, 1).unwrap()).is_none());
}

#[test]
fn the_shape_of_a_class_token_is_shortened_and_keeps_the_batch() {
    for (opset, expected) in [(14, vec!["Shape", "Gather", "Concat", "Expand"]), (17, vec!["Shape", "Concat", "Expand"])] {
        let mut b = Build::tokens(opset);
        let shape = b.op("Shape", "s", &[b.x], &[]);
        let zero = b.init("z", Tensor::scalar(0i64));
        let n = b.op("Gather", "n", &[shape, zero], &[]);
        let axes = b.ints(&[0]);
        let n = b.op("Unsqueeze", "u", &[n, axes], &[]);
        let minus = b.ints(&[-1]);
        let target = b.op("Concat", "t", &[n, minus, minus], &[("axis", int(0))]);
        let rank = b.op("Shape", "r", &[target], &[]);
        let ones = b.op("ConstantOfShape", "o", &[rank], &[("value", AttrValue::Tensor(Tensor::vector(&[1i64])))]);
        let marks = b.op("Mul", "m", &[ones, minus], &[]);
        let same = b.op("Equal", "e", &[target, marks], &[]);
        let target = b.op("Where", "w", &[same, ones, target], &[]);
        let token = b.init("token", Tensor::new(&[1, 1, 192], &[0.5f32; 192]).unwrap());
        let y = b.op("Expand", "y", &[token, target], &[]);
        b.output(y);
        assert_eq!(b.fold().0, expected);
        let y = b.model.graph.value("y").unwrap();
        let shapes = infer(&b.model.graph, opset);
        let text: Vec<String> = shapes.shape(y).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(text, ["batch", "1", "192"]);
    }
}

#[test]
fn attention_scale_from_a_shape_becomes_a_number() {
    // 1 / √(last size), as exporters of scaled dot product attention write it.
    let mut b = Build::tokens(14);
    let shape = b.op("Shape", "s", &[b.x], &[]);
    let (last, end) = (b.ints(&[-1]), b.ints(&[i64::MAX]));
    let n = b.op("Slice", "n", &[shape, last, end], &[]);
    let n = b.op("Cast", "f", &[n], &[("to", int(1))]);
    let root = b.op("Sqrt", "q", &[n], &[]);
    let one = b.init("one", floats(&[1.0]));
    let scale = b.op("Div", "scale", &[one, root], &[]);
    let y = b.op("Mul", "y", &[b.x, scale], &[]);
    b.output(y);
    assert_eq!(b.fold().0, ["Mul"]);
    // In f32: the root is rounded before the division.
    let expected = 1.0 / ((192f64).sqrt() as f32);
    assert_eq!(values::<f32>(b.constant("scale").cloned()), [expected]);
}

#[test]
fn kernels_transposed_through_a_merged_batch_are_one_transpose() {
    let dims = [Dim::Param("batch".into()), Dim::Value(3), Dim::Value(197), Dim::Value(64)];
    for (perm, split, expected) in [
        ([0, 2, 1], [-1, 3, 64, 197], vec!["Transpose"]),
        // The heads are split off wrongly: not a transpose of the axes.
        ([0, 2, 1], [-1, 1, 64, 197], vec!["Reshape", "Transpose", "Reshape"]),
        ([1, 0, 2], [-1, 3, 64, 197], vec!["Reshape", "Transpose", "Reshape"]),
    ] {
        let mut b = Build::new(18, DType::F32, &dims);
        let merged = b.ints(&[-1, 197, 64]);
        let m = b.op("Reshape", "m", &[b.x, merged], &[]);
        let t = b.op("Transpose", "t", &[m], &[("perm", list(&perm))]);
        let split = b.ints(&split);
        let y = b.op("Reshape", "y", &[t, split], &[]);
        b.output(y);
        assert_eq!(b.fold().0, expected);
        if let [_] = expected.as_slice() {
            let y = b.model.graph.value("y").unwrap();
            assert_eq!(b.model.graph.op(y.node).unwrap().attrs.ints("perm"), Some(&[0, 1, 3, 2][..]));
        }
    }
}

#[test]
fn what_does_nothing_goes_and_what_does_something_stays() {
    /// Operator, constant inputs, attributes, whether it does nothing.
    type Case<'a> = (&'a str, Vec<Vec<i64>>, Vec<(&'a str, AttrValue)>, bool);
    let same: [Case; 12] = [
        ("Identity", vec![], vec![], true),
        ("Dropout", vec![], vec![], true),
        ("Cast", vec![], vec![("to", int(1))], true),
        ("Cast", vec![], vec![("to", int(10))], false),
        ("Reshape", vec![vec![0, -1, 192]], vec![], true),
        ("Reshape", vec![vec![-1, 192]], vec![], false),
        ("Transpose", vec![], vec![("perm", list(&[0, 1, 2]))], true),
        ("Transpose", vec![], vec![("perm", list(&[0, 2, 1]))], false),
        ("Slice", vec![vec![0], vec![i64::MAX], vec![1]], vec![], true),
        ("Slice", vec![vec![1], vec![i64::MAX], vec![1]], vec![], false),
        ("Slice", vec![vec![-1], vec![i64::MIN], vec![1], vec![-1]], vec![], false),
        ("Expand", vec![vec![1, 197, 1]], vec![], true),
    ];
    for (op, constants, attrs, goes) in same {
        let mut b = Build::tokens(13);
        let before = b.op("Relu", "before", &[b.x], &[]);
        let mut inputs = vec![before];
        inputs.extend(constants.iter().map(|c| b.ints(c)).collect::<Vec<_>>());
        let mid = b.op(op, "mid", &inputs, &attrs);
        let y = b.op("Relu", "y", &[mid], &[]);
        b.output(y);
        let left = b.fold().0;
        assert_eq!(!left.contains(&op.to_owned()), goes, "{op} {constants:?}");
        // The value that still exists keeps its name.
        assert!(b.model.graph.value("before").is_some());
    }
}

#[test]
fn names_of_graph_outputs_survive() {
    // From an operator: the operator takes the output's name. From a graph input: the Identity stays.
    let mut b = Build::tokens(17);
    let r = b.op("Relu", "r", &[b.x], &[]);
    let (a, c) = (b.op("Identity", "a", &[r], &[]), b.op("Identity", "b", &[b.x], &[]));
    b.output(a);
    b.output(c);
    assert_eq!(b.fold().0, ["Relu", "Identity"]);
    let g = &b.model.graph;
    let names: Vec<&str> = g.outputs().iter().map(|&v| g.value_name(v)).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(g.is_op(g.value("a").unwrap().node, "Relu"));
    assert_eq!(g.value_name(Value { node: g.inputs()[0], port: 0 }), "x");
}

#[test]
fn two_outputs_of_one_value_stay_two() {
    let mut b = Build::tokens(17);
    let r = b.op("Relu", "r", &[b.x], &[]);
    let i = b.op("Identity", "i", &[r], &[]);
    b.output(r);
    b.output(i);
    assert_eq!(b.fold().0, ["Relu", "Identity"]);
}

#[test]
fn names_that_nested_graphs_read_survive() {
    let mut b = Build::tokens(17);
    let r = b.op("Relu", "r", &[b.x], &[]);
    let i = b.op("Identity", "read_inside", &[r], &[]);
    let cond = b.init("cond", Tensor::from_bytes(DType::Bool, vec![], vec![1u8].into()).unwrap());
    let body = Subgraph { proto: Default::default(), captures: vec!["read_inside".into()] };
    let y = b.op("If", "y", &[cond], &[("then_branch", AttrValue::Graph(body.clone())), ("else_branch", AttrValue::Graph(body))]);
    Edit::new(&mut b.model.graph).connect(i, y.node, 1);
    b.output(y);
    let (left, report) = b.fold();
    assert_eq!(left, ["Relu", "If"]);
    assert!(b.model.graph.is_op(b.model.graph.value("read_inside").unwrap().node, "Relu"));
    assert!(report.left_alone[0].contains("nested"), "{:?}", report.left_alone);
}

#[test]
fn initializers_that_a_caller_may_override_are_not_folded() {
    let mut b = Build::tokens(17);
    let w = b.init("w", floats(&[4.0]));
    Edit::new(&mut b.model.graph).push_graph_input(w.node);
    let y = b.op("Sqrt", "y", &[w], &[]);
    b.output(y);
    let (left, report) = b.fold();
    assert_eq!(left, ["Sqrt"]);
    assert_eq!(report.left_alone.len(), 1);
}

#[test]
fn an_expand_does_not_blow_the_model_up() {
    let big = |n: i64| eval("Expand", &[floats(&[1.5]), Tensor::vector(&[n])], &[]);
    // 16 Ki floats are 64 KiB.
    assert_eq!(values::<f32>(big(1 << 14)), vec![1.5; 1 << 14]);
    assert!(big((1 << 14) + 1).is_none());
    assert!(big(i64::MAX).is_none());
    assert!(eval("ConstantOfShape", &[Tensor::vector(&[i64::MAX, i64::MAX])], &[]).is_none());
    assert!(eval("Tile", &[floats(&[1.0]), Tensor::vector(&[1i64 << 40])], &[]).is_none());
}

#[test]
fn results_round_as_their_type_does() {
    let add = |a: f32, b: f32| values::<f32>(eval("Add", &[floats(&[a]), floats(&[b])], &[]))[0];
    assert_eq!(add(16_777_216.0, 1.0), 16_777_216.0);
    let halves = |v: f32| Tensor::vector(&[half::f16::from_f32(v)]);
    let sum = values::<half::f16>(eval("Add", &[halves(2048.0), halves(1.0)], &[]))[0];
    assert_eq!(sum.to_f32(), 2048.0);
    let ints = |v: &[i64]| Tensor::vector(v);
    assert_eq!(values::<i64>(eval("Div", &[ints(&[-7, 7, -6]), ints(&[2])], &[])), [-3, 3, -3]);
    assert_eq!(values::<i64>(eval("Mod", &[ints(&[-7, 7, -6]), ints(&[3])], &[])), [2, 1, 0]);
    assert_eq!(values::<i64>(eval("Mod", &[ints(&[-7, 7]), ints(&[3])], &[("fmod", int(1))])), [-1, 1]);
    assert!(eval("Div", &[ints(&[1]), ints(&[0])], &[]).is_none());
    let cast = |v: f32, to: DType| eval("Cast", &[floats(&[v])], &[("to", int(to.to_onnx().into()))]);
    assert_eq!(values::<i64>(cast(-2.9, DType::I64)), [-2]);
    assert_eq!(values::<half::f16>(cast(2049.0, DType::F16))[0].to_f32(), 2048.0);
    // C leaves it undefined.
    assert!(cast(300.0, DType::U8).is_none());
    assert!(cast(f32::NAN, DType::I32).is_none());
    let wide = eval("Cast", &[Tensor::vector(&[(1i64 << 53) + 1])], &[("to", int(1))]);
    assert_eq!(values::<f32>(wide), [9_007_199_254_740_992.0]);
    // 0.1 as f32, a thousand times: the mean of equal numbers is the number.
    let mean = eval("ReduceMean", &[floats(&[0.1; 1000])], &[("keepdims", int(0))]);
    assert_eq!(values::<f32>(mean), [0.1]);
}

#[test]
fn elements_move_as_numpy_moves_them() {
    let t = Tensor::new(&[2, 3], &[0i64, 1, 2, 3, 4, 5]).unwrap();
    let ints = |v: &[i64]| Tensor::vector(v);
    let run = |op: &str, rest: &[Tensor], attrs: &[(&str, AttrValue)]| {
        let inputs: Vec<Tensor> = std::iter::once(t.clone()).chain(rest.iter().cloned()).collect();
        let y = eval(op, &inputs, attrs).unwrap();
        (y.shape.clone(), y.to_vec::<i64>().unwrap())
    };
    assert_eq!(run("Transpose", &[], &[]), (vec![3, 2], vec![0, 3, 1, 4, 2, 5]));
    let reversed = run("Slice", &[ints(&[-1]), ints(&[i64::MIN]), ints(&[1]), ints(&[-2])], &[]);
    assert_eq!(reversed, (vec![2, 2], vec![2, 0, 5, 3]));
    assert_eq!(run("Slice", &[ints(&[1, 1]), ints(&[9, 2])], &[]), (vec![1, 1], vec![4]));
    assert_eq!(run("Gather", &[ints(&[-1, 0])], &[("axis", int(1))]), (vec![2, 2], vec![2, 0, 5, 3]));
    assert_eq!(run("Tile", &[ints(&[1, 2])], &[]), (vec![2, 6], vec![0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]));
    let joined = run("Concat", std::slice::from_ref(&t), &[("axis", int(1))]);
    assert_eq!(joined, (vec![2, 6], vec![0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]));
    assert_eq!(run("Expand", &[ints(&[2, 1, 1])], &[]).0, [2, 2, 3]);
    assert_eq!(run("ReduceSum", &[ints(&[0])], &[]), (vec![1, 3], vec![3, 5, 7]));
    assert_eq!(run("ReduceMax", &[], &[("axes", list(&[1])), ("keepdims", int(0))]), (vec![2], vec![2, 5]));
}

#[test]
fn joins_only_casts_that_lose_nothing() {
    for (middle, last, expected) in [
        (DType::F64, DType::F32, vec!["Relu"]),
        (DType::F64, DType::F16, vec!["Cast", "Relu"]),
        (DType::F16, DType::F32, vec!["Cast", "Cast", "Relu"]),
        (DType::I32, DType::F32, vec!["Cast", "Cast", "Relu"]),
    ] {
        let mut b = Build::tokens(17);
        let m = b.op("Cast", "m", &[b.x], &[("to", int(middle.to_onnx().into()))]);
        let l = b.op("Cast", "l", &[m], &[("to", int(last.to_onnx().into()))]);
        let y = b.op("Relu", "y", &[l], &[]);
        b.output(y);
        assert_eq!(b.fold().0, expected, "{middle} {last}");
    }
}

#[test]
fn folding_malformed_operators_never_panics() {
    let tensors = [Tensor::scalar(3i64), Tensor::vector(&[i64::MIN, i64::MAX]), Tensor::vector::<i64>(&[]), floats(&[1.0, -0.0])];
    let ops = "Add Div Mod Pow Equal And Not Sqrt Abs Clip Cast Reshape Flatten Squeeze Unsqueeze Transpose Slice Expand Tile Concat Split \
               Gather Where ConstantOfShape Range Shape Size ReduceSum ReduceMean MatMul Constant Identity Dropout Pad";
    for op in ops.split_whitespace() {
        for n in [i64::MIN, -1, 0, 5, i64::MAX] {
            for count in 0..6usize {
                for first in 0..tensors.len() {
                    let mut b = Build::tokens(17);
                    let inputs: Vec<Value> =
                        (0..count).map(|i| b.init("c", tensors[(first + i) % tensors.len()].clone())).collect();
                    let attrs =
                        [("axis", int(n)), ("to", int(n)), ("axes", list(&[n, n])), ("start", int(n)), ("perm", list(&[n]))];
                    let y = b.op(op, "y", &inputs, &attrs);
                    let z = b.op(op, "z", &inputs, &[]);
                    b.output(y);
                    b.output(z);
                    b.fold();
                }
            }
        }
    }
}

#[test]
fn a_deep_model_folds_in_well_under_a_second() {
    let mut b = Build::tokens(17);
    let mut x = b.x;
    for i in 0..600 {
        let shape = b.op("Shape", &format!("s{i}"), &[x], &[]);
        let zero = b.op("Constant", &format!("z{i}"), &[], &[("value_int", int(0))]);
        let n = b.op("Gather", &format!("g{i}"), &[shape, zero], &[]);
        let axes = b.op("Constant", &format!("a{i}"), &[], &[("value_ints", list(&[0]))]);
        let n = b.op("Unsqueeze", &format!("u{i}"), &[n, axes], &[]);
        let rest = b.ints(if i % 2 == 0 { &[192, 197] } else { &[197, 192] });
        let target = b.op("Concat", &format!("c{i}"), &[n, rest], &[("axis", int(0))]);
        let y = b.op("Reshape", &format!("y{i}"), &[x, target], &[]);
        x = b.op("Relu", &format!("r{i}"), &[y], &[]);
    }
    b.output(x);
    let start = std::time::Instant::now();
    let (left, report) = b.fold();
    assert_eq!(left.len(), 1200);
    assert_eq!(report.rounds, 2);
    assert!(start.elapsed().as_secs_f64() < 5.0, "{:?}", start.elapsed());
}
