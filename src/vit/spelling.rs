//! How the exporter spelt each part of a block.

use super::Block;
use crate::ir::{Graph, Value};
use crate::pattern::Forms;

/// A part of a block and the exporter's form of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PartForm {
    /// The part: `norm1`, `q, k, v`, `scale`, `softmax`, `proj`, `norm2`, `fc1`, `activation`, `fc2`.
    pub part: &'static str,
    /// The labels of the operators that a rule rewrote, else the operator as it was exported, else `none`.
    pub form: String,
}

impl Block {
    /// The exporter's form of each part, in the order of the data flow.
    pub fn spelling(&self, graph: &Graph, forms: &Forms) -> Vec<PartForm> {
        let look = Look { graph, forms };
        let mut parts = Vec::new();
        let mut push = |part, form: Option<String>| parts.extend(form.map(|form| PartForm { part, form }));
        for a in &self.attentions {
            push("norm1", a.norm.as_ref().or(a.post_norm.as_ref()).map(|v| look.value(v)));
            // The query may be a constant, and the scale goes through q: the keys tell.
            push("q, k, v", a.qkv.iter().rev().nth(1).map(|l| look.linear(&l.output)));
            push("scale", Some(look.scale(&a.scores)));
            push("softmax", Some(look.value(&a.probabilities)));
            push("proj", Some(look.linear(&a.proj.output)));
        }
        for m in &self.mlps {
            push("norm2", m.norm.as_ref().or(m.post_norm.as_ref()).map(|v| look.value(v)));
            push("fc1", Some(look.linear(&m.fc1.output)));
            push("activation", Some(look.forms.of(&m.act).map_or_else(|| m.act_op.clone(), |labels| labels.join(", "))));
            push("fc2", Some(look.linear(&m.fc2.output)));
        }
        // Branches in parallel are spelt alike, or shown as two.
        let mut once: Vec<PartForm> = Vec::new();
        for part in parts {
            if !once.contains(&part) {
                once.push(part);
            }
        }
        once
    }
}

struct Look<'a> {
    graph: &'a Graph,
    forms: &'a Forms,
}

impl Look<'_> {
    fn labels(&self, value: &str) -> Option<String> {
        self.forms.of(value).map(|labels| labels.join(", "))
    }

    fn op_type(&self, value: Value) -> &str {
        self.graph.op(value.node).map_or("", |op| op.op.op_type.as_str())
    }

    fn value(&self, name: &str) -> String {
        let plain = || self.graph.value(name).map_or_else(String::new, |v| self.op_type(v).to_owned());
        self.labels(name).unwrap_or_else(plain)
    }

    fn linear(&self, output: &str) -> String {
        let biased = self.graph.value(output).is_some_and(|v| self.op_type(v) == "Add");
        self.labels(output).unwrap_or_else(|| if biased { "MatMul + bias" } else { "MatMul" }.to_owned())
    }

    /// The scale is folded into q by now: what it was is known of the values from the scores back to their product.
    fn scale(&self, scores: &str) -> String {
        let mut labels: Vec<&str> = Vec::new();
        let mut at = self.graph.value(scores);
        while let Some(v) = at {
            for label in self.forms.of(self.graph.value_name(v)).unwrap_or_default() {
                if !labels.contains(label) {
                    labels.push(label);
                }
            }
            let computed = |v: Value| self.graph.constant(v).is_none();
            let product = self.op_type(v) == "MatMul" && self.graph.input(v.node, 1).is_some_and(computed);
            at = self.graph.inputs_of(v.node).into_iter().flatten().find(|&v| computed(v)).filter(|_| !product);
        }
        if labels.is_empty() { "none".to_owned() } else { labels.join(", ") }
    }
}
