//! The block pattern on a real model: every site is there, and one altered operator is named.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::OnceLock;

use vitq::ir::{AttrValue, Edit, Model, NewOp, NodeId, OpName, Tensor, Value};
use vitq::vit::{Block, Site, SiteRef, Vit, recognise};
use vitq::{canon, onnx};

/// The canonical form of the small real model.
fn digits() -> Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    let read = || {
        let mut model = onnx::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits/vit_digits.onnx")).unwrap();
        let report = canon::canonicalise(&mut model).unwrap();
        assert!(report.near_misses.is_empty(), "{:?}", report.near_misses);
        model
    };
    MODEL.get_or_init(read).clone()
}

fn snapshot(name: &str, text: &str) {
    insta::with_settings!({ snapshot_path => "../snapshots/blocks", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

#[test]
fn every_site_of_every_block_is_found() {
    let vit = recognise(&digits().graph);
    assert_eq!(vit.blocks.len(), 4);
    assert!(vit.near_misses.is_empty(), "{:?}", vit.near_misses);
    let mut counts: BTreeMap<(Option<usize>, &str, bool), usize> = BTreeMap::new();
    let (rows, whole): (Vec<&SiteRef>, Vec<_>) = vit.sites.iter().partition(|s| s.rows.is_some());
    for site in whole {
        *counts.entry((site.block, site.site.name(), site.weight)).or_default() += 1;
    }
    // Weights of q, k and v are three tensors, as are their outputs; everything else in a block is one.
    let inside: &[(&str, bool, usize)] = &[
        ("norm1", false, 1),
        ("attn_qkv", true, 3),
        ("attn_qkv_output", false, 3),
        ("kv_act", false, 1),
        ("intSoft", false, 1),
        ("sv_attn", false, 1),
        ("attn_proj", true, 1),
        ("attn_proj_output", false, 1),
        ("residual1", false, 1),
        ("norm2", false, 1),
        ("mlp_fc1", true, 1),
        ("mlp_fc1_output", false, 1),
        ("mlp_act", false, 1),
        ("mlp_fc2", true, 1),
        ("mlp_act2", false, 1),
        ("residual2", false, 1),
    ];
    let outside: &[(&str, bool)] = &[
        ("input", false),
        ("patch_embed", true),
        ("patch_embed", false),
        ("embed", true),
        ("embed", false),
        ("norm", false),
        ("head", true),
        ("head_output", false),
    ];
    let blocks = (0..4).flat_map(|b| inside.iter().map(move |&(s, w, n)| ((Some(b), s, w), n)));
    let wanted: BTreeMap<_, _> = blocks.chain(outside.iter().map(|&(s, w)| ((None, s, w), 1))).collect();
    assert_eq!(counts, wanted);
    // The class token's row of every residual sum, and of the first.
    let sums = [Site::Embed, Site::Residual1, Site::Residual2];
    assert!(rows.len() == 9 && rows.iter().all(|s| sums.contains(&s.site) && s.rows == Some([0, 1]) && !s.weight));
    // The others are of families with more between attention and MLP.
    const ELSEWHERE: [&str; 7] = ["qk_norm", "qk_rope", "talking_heads", "talking_output", "attn_norm", "mlp_gate", "mlp_norm"];
    let of_blocks: Vec<&Site> = Site::ALL.iter().filter(|s| !s.is_general() && !ELSEWHERE.contains(&s.name())).collect();
    assert!(of_blocks.len() == 22 && of_blocks.into_iter().all(|s| vit.sites.iter().any(|r| r.site == *s)));
    assert!(vit.general.is_empty(), "nothing is left for the general rules: {:?}", vit.general);
}

#[test]
fn sites_are_listed_in_the_order_of_the_data() {
    let vit = recognise(&digits().graph);
    let first = &vit.blocks[0];
    assert_eq!((first.dim, first.attentions[0].heads * first.attentions[0].head_dim), (first.dim, first.dim));
    let mut out = String::new();
    for b in &vit.blocks {
        let a = &b.attentions[0];
        let _ = writeln!(out, "block {}: dim {}, {} heads of {}, MLP ratio {}", b.index, b.dim, a.heads, a.head_dim, b.mlp_ratio);
    }
    for site in vit.sites.iter().filter(|s| s.block.is_none_or(|b| b == 0 || b == 3)) {
        let kind = if site.weight { "constant" } else { "value" };
        let _ = writeln!(out, "{} ({kind}): {}", site.full_name(), site.values.join(" → "));
    }
    snapshot("sites", &out);
}

/// Every value of a site exists, and no value is in two sites but a sum, some of whose rows are a site of their own.
#[test]
fn sites_name_values_of_the_graph_once() {
    let model = digits();
    let vit = recognise(&model.graph);
    let mut seen = BTreeMap::new();
    for site in vit.sites.iter().filter(|s| s.rows.is_none()) {
        for value in &site.values {
            let found = model.graph.value(value).unwrap_or_else(|| panic!("{} names '{value}'", site.full_name()));
            assert_eq!(model.graph.constant(found).is_some(), site.weight, "{value}");
            assert_eq!(seen.insert(value.clone(), site.full_name()), None, "{value}");
        }
    }
}

struct Change<'g> {
    edit: Edit<'g>,
    block: Block,
    sites: Vec<SiteRef>,
}

impl Change<'_> {
    fn value(&self, name: &str) -> Value {
        self.edit.value(name).unwrap()
    }

    /// The values of a site of the block.
    fn site(&self, name: &str) -> Vec<String> {
        let full = format!("blocks.{}.{name}", self.block.index);
        self.sites.iter().find(|s| s.full_name() == full).unwrap().values.clone()
    }

    fn node(&self, name: &str) -> NodeId {
        self.value(name).node
    }

    fn set(&mut self, name: &str, attr: &str, value: AttrValue) {
        let node = self.node(name);
        self.edit.set_attr(node, attr, value);
    }

    /// Makes the producer of a value another operator.
    fn become_op(&mut self, name: &str, op_type: &str) {
        let node = self.node(name);
        self.edit.op_mut(node).unwrap().op = OpName::std(op_type);
    }

    /// Puts an operator between a value and its readers.
    fn insert(&mut self, name: &str, op_type: &str, with: Option<f32>) {
        let value = self.value(name);
        let constant = with.map(|c| self.edit.add_init(value.node, "extra_constant", Tensor::scalar(c)));
        let new = NewOp::std(op_type, "extra").input(value);
        let new = constant.into_iter().fold(new, NewOp::input);
        let out = self.edit.add(value.node, new);
        self.edit.replace_uses(value, out, |u| u.node != out.node);
    }

    /// Exchanges the two operands of the producer of a value.
    fn swap(&mut self, name: &str) {
        let node = self.node(name);
        let inputs = self.edit.inputs_of(node);
        self.edit.set_input(node, 0, inputs[1]);
        self.edit.set_input(node, 1, inputs[0]);
    }
}

/// Recognises the model with block 1 altered.
fn altered(change: fn(&mut Change<'_>)) -> (Model, Vit) {
    let mut model = digits();
    let vit = recognise(&model.graph);
    let mut c = Change { edit: Edit::new(&mut model.graph), block: vit.blocks[1].clone(), sites: vit.sites };
    change(&mut c);
    c.edit.commit().unwrap();
    let vit = recognise(&model.graph);
    (model, vit)
}

type Alteration = fn(&mut Change<'_>);

const ALTERATIONS: &[(&str, Alteration, &str)] = &[
    (
        "q transposed otherwise",
        |c| {
            let v = c.site("attn_qkv_output.q").remove(2);
            c.set(&v, "perm", AttrValue::Ints(vec![0, 1, 2, 3]));
        },
        "perm [0, 2, 1, 3] expected, found [0, 1, 2, 3], at Transpose '",
    ),
    (
        "the context transposed otherwise",
        |c| {
            let v = c.site("sv_attn").remove(1);
            c.set(&v, "perm", AttrValue::Ints(vec![0, 1, 2, 3]));
        },
        "perm [0, 2, 1, 3] expected, found [0, 1, 2, 3], at Transpose '",
    ),
    (
        "another activation",
        |c| {
            let v = c.block.mlps[0].act.clone();
            c.become_op(&v, "Elu");
        },
        "Gelu expected, found Elu '",
    ),
    (
        "a factor on the attention's branch",
        |c| {
            let v = c.block.attentions[0].proj.output.clone();
            c.insert(&v, "Mul", Some(2.0));
        },
        "found Mul 'extra'",
    ),
    (
        "a factor on the MLP's branch",
        |c| {
            let v = c.block.mlps[0].fc2.output.clone();
            c.insert(&v, "Mul", Some(2.0));
        },
        "found Mul 'extra'",
    ),
    (
        "a function on the scores",
        |c| {
            let v = c.block.attentions[0].scores.clone();
            c.insert(&v, "Tanh", None);
        },
        "MatMul expected, found Tanh 'extra'",
    ),
    (
        "LayerNorm over the tokens",
        |c| {
            let v = c.site("norm1").remove(0);
            c.set(&v, "axis", AttrValue::Int(1));
        },
        "LayerNormalization over the last axis expected, found axis 1, at LayerNormalization '",
    ),
    (
        "another norm before the MLP",
        |c| {
            let v = c.site("norm2").remove(0);
            c.become_op(&v, "InstanceNormalization");
        },
        "LayerNormalization expected, found InstanceNormalization '",
    ),
    (
        "softmax over the heads",
        |c| {
            let v = c.block.attentions[0].probabilities.clone();
            c.set(&v, "axis", AttrValue::Int(1));
        },
        "Softmax over the last axis expected, found axis 1, at Softmax '",
    ),
    (
        "no softmax",
        |c| {
            let v = c.block.attentions[0].probabilities.clone();
            c.become_op(&v, "Sigmoid");
        },
        "Softmax expected, found Sigmoid '",
    ),
    (
        "v from the residual stream itself",
        |c| {
            let product = c.node(&c.block.attentions[0].qkv[2].product);
            let x = c.value(&c.block.attentions[0].x);
            c.edit.set_input(product, 0, Some(x));
        },
        "LayerNormalization expected, found Add '",
    ),
    (
        "the norm's output as the residual",
        |c| {
            let (sum, x, norm) = (c.node(&c.block.output), c.value(&c.block.mlps[0].x), c.value(&c.site("norm2")[0]));
            let port = c.edit.uses(x).into_iter().find(|u| u.node == sum).unwrap().port;
            c.edit.set_input(sum, port, Some(norm));
        },
        "expected again as x, found '",
    ),
    (
        "weights computed at run time",
        |c| {
            let v = c.block.mlps[0].fc1.weight.clone();
            c.insert(&v, "Relu", None);
        },
        "a constant expected, found Relu 'extra'",
    ),
];

#[test]
fn one_altered_operator_is_named() {
    let mut out = String::new();
    for (what, change, says) in ALTERATIONS {
        let (_, vit) = altered(*change);
        assert_eq!(vit.blocks.len(), 3, "{what}");
        let _ = writeln!(out, "{what}:");
        for miss in &vit.near_misses {
            let _ = writeln!(out, "  around {}\n    {miss}", miss.tell);
        }
        let texts: Vec<String> = vit.near_misses.iter().map(ToString::to_string).collect();
        assert!(texts.iter().any(|t| t.contains(says)), "{what}: {texts:#?}");
        // Nothing of the other blocks is blamed.
        let other = |t: &String| ["blocks.0", "blocks.2", "blocks.3"].iter().any(|b| t.contains(&format!("/{b}/mlp")));
        assert!(!texts.iter().any(other), "{what}: {texts:#?}");
    }
    snapshot("near_misses", &out);
}

#[test]
fn what_makes_no_difference_still_matches() {
    let same: &[(&str, Alteration)] = &[
        ("residual operands exchanged", |c| {
            let (a, b) = (c.site("residual1").remove(0), c.block.output.clone());
            c.swap(&a);
            c.swap(&b);
        }),
        ("no bias in the projection and in q", |c| {
            for linear in [c.block.attentions[0].proj.clone(), c.block.attentions[0].qkv[0].clone()] {
                let (sum, product) = (c.value(&linear.output), c.value(&linear.product));
                c.edit.replace(sum, product);
            }
        }),
        ("the number of heads left to be computed", |c| {
            for heads in ["q", "k", "v"].map(|part| c.site(&format!("attn_qkv_output.{part}"))) {
                let reshape = c.node(&heads[1]);
                let shape = c.edit.input(reshape, 1).unwrap();
                let mut sizes = c.edit.constant(shape).unwrap().to_i64().unwrap();
                // The batch is 0, "as it is", so that one −1 is left.
                (sizes[0], sizes[2]) = (0, -1);
                let new = c.edit.add_init(reshape, "other_shape", Tensor::vector(&sizes));
                c.edit.set_input(reshape, 1, Some(new));
            }
        }),
        ("another activation with a table", |c| {
            let v = c.block.mlps[0].act.clone();
            c.become_op(&v, "Tanh");
        }),
    ];
    let whole = recognise(&digits().graph);
    for (what, change) in same {
        let (_, vit) = altered(*change);
        assert!(vit.near_misses.is_empty(), "{what}: {:#?}", vit.near_misses);
        assert_eq!(vit.blocks.len(), 4, "{what}");
        assert_eq!(vit.sites.len(), whole.sites.len(), "{what}");
        assert_eq!(vit.blocks[1].attentions[0].heads, whole.blocks[1].attentions[0].heads, "{what}");
        assert_eq!(vit.blocks[1].attentions[0].head_dim, whole.blocks[1].attentions[0].head_dim, "{what}");
    }
}

/// The bias in front of the product is not canonical: canonicalisation mends it.
#[test]
fn a_bias_in_front_is_mended_by_canonicalisation() {
    let (mut model, vit) = altered(|c| {
        let v = c.block.mlps[0].fc1.output.clone();
        c.swap(&v);
    });
    assert_eq!(vit.blocks.len(), 3);
    let report = canon::canonicalise(&mut model).unwrap();
    assert_eq!(report.applied, BTreeMap::from([("linear-bias-last", 1)]));
    assert_eq!(recognise(&model.graph).sites, recognise(&digits().graph).sites);
}

#[test]
fn a_network_without_blocks_has_sites_of_the_general_rules_alone() {
    let mut model = onnx::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits/cnn_digits.onnx")).unwrap();
    canon::canonicalise(&mut model).unwrap();
    let vit = recognise(&model.graph);
    assert!(vit.blocks.is_empty() && vit.near_misses.is_empty());
    assert_eq!((vit.general.convolutions, vit.general.linears), (8, 1));
    let counts = vit.sites.iter().fold(BTreeMap::new(), |mut counts, s| {
        assert!(s.block.is_none() && !s.values.is_empty());
        *counts.entry(s.site.name()).or_insert(0) += 1;
        counts
    });
    let wanted = [("add_output", 3), ("conv", 8), ("conv_output", 8), ("head_output", 1), ("input", 1), ("linear", 1)];
    assert_eq!(counts, wanted.into_iter().chain([("pool_output", 1)]).collect());
}
