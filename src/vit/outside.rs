//! The sites before the first block and after the last.

use super::{Block, Site, SiteRef};
use crate::ir::{Graph, Value};

/// Sites outside the blocks, as far as they are there.
pub(super) fn sites(graph: &Graph, blocks: &[Block]) -> Vec<SiteRef> {
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return Vec::new() };
    let mut out = before(graph, &first.attention.x);
    out.extend(after(graph, &last.mlp.output));
    out
}

fn site(graph: &Graph, site: Site, weight: bool, values: &[Value]) -> SiteRef {
    let values = values.iter().map(|&v| graph.value_name(v).to_owned()).collect();
    // A convolution's weights and its output are one site of the vocabulary, two tensors; so are the position embedding
    // and the sum with it.
    let part = match (weight, site) {
        (true, Site::PatchEmbed) => Some("weight".to_owned()),
        (true, Site::Embed) => Some("position".to_owned()),
        _ => None,
    };
    SiteRef { block: None, site, part, weight, values }
}

/// Walks from the first block's input up to the graph's input.
fn before(graph: &Graph, embed: &str) -> Vec<SiteRef> {
    let Some(embed) = graph.value(embed) else { return Vec::new() };
    let mut chain = Vec::new();
    let mut at = embed;
    let mut position = None;
    if graph.is_op(at.node, "Add") {
        position = graph.inputs_of(at.node).into_iter().flatten().find(|&v| graph.constant(v).is_some());
        at = data_input(graph, at).unwrap_or(at);
    }
    // Reshape, Transpose and the joining of the class token keep the convolution's elements.
    while !graph.is_op(at.node, "Conv") {
        let passes = ["Reshape", "Transpose", "Concat", "Flatten"].iter().any(|op| graph.is_op(at.node, op));
        match data_input(graph, at) {
            Some(next) if passes => {
                chain.push(at);
                // The class token joins the patches with their codes.
                chain.extend(graph.inputs_of(at.node).into_iter().flatten().filter(|v| graph.is_op(v.node, "Expand")));
                at = next;
            }
            _ => return vec![site(graph, Site::Embed, false, &[embed])],
        }
    }
    chain.push(at);
    chain.reverse();
    let mut out = Vec::new();
    if let Some(input) = graph.input(at.node, 0) {
        out.push(site(graph, Site::Input, false, &[input]));
    }
    if let Some(w) = graph.input(at.node, 1).filter(|&w| graph.constant(w).is_some()) {
        out.push(site(graph, Site::PatchEmbed, true, &[w]));
    }
    out.push(site(graph, Site::PatchEmbed, false, &chain));
    out.extend(position.map(|p| site(graph, Site::Embed, true, &[p])));
    if chain.last() != Some(&embed) {
        out.push(site(graph, Site::Embed, false, &[embed]));
    }
    out
}

/// The input of an operator that is computed from the graph's input rather than from constants and shapes.
fn data_input(graph: &Graph, value: Value) -> Option<Value> {
    let dynamic = |v: &Value| graph.constant(*v).is_none() && !graph.is_op(v.node, "Expand");
    graph.inputs_of(value.node).into_iter().flatten().find(dynamic)
}

/// Walks from the last block's output down to the logits.
fn after(graph: &Graph, last: &str) -> Vec<SiteRef> {
    let Some(last) = graph.value(last) else { return Vec::new() };
    let only = |v: Value, op: &str| -> Option<Value> {
        let u = graph.uses(v).into_iter().find(|u| graph.is_op(u.node, op))?;
        Some(Value { node: u.node, port: 0 })
    };
    let mut out = Vec::new();
    let Some(norm) = only(last, "LayerNormalization") else { return out };
    let mut chain = vec![norm];
    let mut at = norm;
    // Picking the class token keeps the elements.
    while let Some(next) = ["Gather", "Slice", "Squeeze", "Reshape"].iter().find_map(|op| only(at, op)) {
        chain.push(next);
        at = next;
    }
    out.push(site(graph, Site::Norm, false, &chain));
    if let Some(product) = only(at, "MatMul") {
        if let Some(w) = graph.input(product.node, 1).filter(|&w| graph.constant(w).is_some()) {
            out.push(site(graph, Site::Head, true, &[w]));
        }
        let logits = only(product, "Add").unwrap_or(product);
        out.push(site(graph, Site::HeadOutput, false, &[logits]));
    }
    out
}
