//! A Vision Transformer as TorchScript exports it at opset 14: LayerNorm and GELU decomposed, the bias in front of the product,
//! q, k and v gathered from one Linear, the scale on q.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used)]

use vitq::ir::{
    AttrValue, DType, Dim, Edit, Graph, Header, Model, NewOp, NodeId, NodeKind, OpsetImport, Tensor, Value, ValueInfo,
};

const TOKENS: i64 = 17;
const HEADS: i64 = 4;

/// An exporter at work.
struct Export<'g> {
    edit: Edit<'g>,
    input: NodeId,
}

fn ints(v: &[i64]) -> AttrValue {
    AttrValue::Ints(v.to_vec())
}

impl Export<'_> {
    fn op(&mut self, name: &str, inputs: &[Value]) -> Value {
        self.op_with(name, inputs, None)
    }

    /// An operator whose type is the last part of its name, up to a number.
    fn op_with(&mut self, name: &str, inputs: &[Value], attr: Option<(&str, AttrValue)>) -> Value {
        let op_type = name.rsplit('/').next().and_then(|n| n.split('_').next()).unwrap_or(name);
        let new = NewOp::std(op_type, name).inputs(inputs.iter().copied()).output(&format!("{name}_output_0"));
        let new = attr.into_iter().fold(new, |new, (key, value)| new.attr(key, value));
        self.edit.add(self.input, new)
    }

    fn weights(&mut self, name: &str, shape: &[usize]) -> Value {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
        self.edit.add_init(self.input, name, Tensor::new(shape, &values).unwrap())
    }

    fn number(&mut self, name: &str, value: f32) -> Value {
        self.edit.add_init(self.input, name, Tensor::scalar(value))
    }

    fn shape(&mut self, name: &str, sizes: &[i64]) -> Value {
        self.edit.add_init(self.input, name, Tensor::vector(sizes))
    }

    fn norm(&mut self, at: &str, x: Value, dim: usize) -> Value {
        let mean = self.op_with(&format!("{at}/ReduceMean"), &[x], Some(("axes", ints(&[-1]))));
        let centred = self.op(&format!("{at}/Sub"), &[x, mean]);
        let two = self.number(&format!("{at}/two"), 2.0);
        let square = self.op(&format!("{at}/Pow"), &[centred, two]);
        let variance = self.op_with(&format!("{at}/ReduceMean_1"), &[square], Some(("axes", ints(&[-1]))));
        let eps = self.number(&format!("{at}/eps"), 1e-6);
        let sum = self.op(&format!("{at}/Add"), &[variance, eps]);
        let deviation = self.op(&format!("{at}/Sqrt"), &[sum]);
        let normal = self.op(&format!("{at}/Div"), &[centred, deviation]);
        let (gamma, beta) = (self.weights(&format!("{at}.weight"), &[dim]), self.weights(&format!("{at}.bias"), &[dim]));
        let scaled = self.op(&format!("{at}/Mul"), &[normal, gamma]);
        self.op(&format!("{at}/Add_1"), &[scaled, beta])
    }

    fn linear(&mut self, at: &str, x: Value, from: usize, to: usize) -> Value {
        let w = self.weights(&format!("{at}.weight"), &[from, to]);
        let bias = self.weights(&format!("{at}.bias"), &[to]);
        let product = self.op(&format!("{at}/MatMul"), &[x, w]);
        self.op(&format!("{at}/Add"), &[bias, product])
    }

    fn attention(&mut self, at: &str, x: Value, dim: usize) -> Value {
        let width = dim as i64 / HEADS;
        let qkv = self.linear(&format!("{at}/qkv"), x, dim, 3 * dim);
        let split = self.shape(&format!("{at}/split"), &[-1, TOKENS, 3, HEADS, width]);
        let split = self.op(&format!("{at}/Reshape"), &[qkv, split]);
        let first = self.op_with(&format!("{at}/Transpose"), &[split], Some(("perm", ints(&[2, 0, 3, 1, 4]))));
        let [q, k, v] = [0i64, 1, 2].map(|i| {
            let index = self.edit.add_init(self.input, &format!("{at}/index"), Tensor::scalar(i));
            self.op_with(&format!("{at}/Gather_{i}"), &[first, index], Some(("axis", AttrValue::Int(0))))
        });
        let scale = self.number(&format!("{at}/scale"), (1.0 / (width as f64).sqrt()) as f32);
        let q = self.op(&format!("{at}/Mul"), &[q, scale]);
        let k = self.op_with(&format!("{at}/Transpose_1"), &[k], Some(("perm", ints(&[0, 1, 3, 2]))));
        let scores = self.op(&format!("{at}/MatMul"), &[q, k]);
        let p = self.op_with(&format!("{at}/Softmax"), &[scores], Some(("axis", AttrValue::Int(-1))));
        let context = self.op(&format!("{at}/MatMul_1"), &[p, v]);
        let context = self.op_with(&format!("{at}/Transpose_2"), &[context], Some(("perm", ints(&[0, 2, 1, 3]))));
        let merged = self.shape(&format!("{at}/merged"), &[-1, TOKENS, dim as i64]);
        let merged = self.op(&format!("{at}/Reshape_1"), &[context, merged]);
        self.linear(&format!("{at}/proj"), merged, dim, dim)
    }

    fn gelu(&mut self, at: &str, x: Value) -> Value {
        let [root, one, half] =
            [("root", std::f32::consts::SQRT_2), ("one", 1.0), ("half", 0.5)].map(|(n, c)| self.number(&format!("{at}/{n}"), c));
        let scaled = self.op(&format!("{at}/Div"), &[x, root]);
        let erf = self.op(&format!("{at}/Erf"), &[scaled]);
        let gate = self.op(&format!("{at}/Add"), &[erf, one]);
        let product = self.op(&format!("{at}/Mul"), &[x, gate]);
        self.op(&format!("{at}/Mul_1"), &[product, half])
    }

    fn block(&mut self, at: &str, x: Value, dim: usize) -> Value {
        let norm = self.norm(&format!("{at}/norm1"), x, dim);
        let attention = self.attention(&format!("{at}/attn"), norm, dim);
        let x = self.op(&format!("{at}/Add"), &[x, attention]);
        let norm = self.norm(&format!("{at}/norm2"), x, dim);
        let hidden = self.linear(&format!("{at}/mlp/fc1"), norm, dim, 4 * dim);
        let hidden = self.gelu(&format!("{at}/mlp/act"), hidden);
        let mlp = self.linear(&format!("{at}/mlp/fc2"), hidden, 4 * dim, dim);
        self.op(&format!("{at}/Add_1"), &[x, mlp])
    }
}

/// A ViT of so many blocks, which takes embedded tokens `[batch, 17, dim]` and gives a head's logits.
pub fn vit(depth: usize, dim: usize) -> Model {
    let mut graph = Graph::default();
    let mut edit = Edit::new(&mut graph);
    let input = edit.append(NodeKind::Input, 0, vec!["tokens".to_owned()]);
    edit.push_graph_input(input);
    let mut x = Value { node: input, port: 0 };
    let sizes = vec![Dim::Param("batch".to_owned()), Dim::Value(TOKENS), Dim::Value(dim as i64)];
    edit.set_info(x, ValueInfo::tensor(DType::F32, Some(sizes)));
    let mut export = Export { edit, input };
    for i in 0..depth {
        x = export.block(&format!("/blocks.{i}"), x, dim);
    }
    let norm = export.norm("/norm", x, dim);
    let index = export.edit.add_init(input, "/index", Tensor::scalar(0i64));
    let token = export.op_with("/Gather", &[norm, index], Some(("axis", AttrValue::Int(1))));
    let logits = export.linear("/head", token, dim, 10);
    export.edit.push_graph_output(logits);
    export.edit.commit().unwrap();
    let opsets = vec![OpsetImport { domain: String::new(), version: 14 }];
    Model { graph, opsets, functions: vec![], header: Header { ir_version: 8, ..Header::default() } }
}
