//! Finds the blocks of a Vision Transformer in a canonical graph and names their quantisation sites; what is in no block gets
//! sites by the general rules.
//!
//! Nothing is rewritten here: the result, [`Vit`], speaks of values by name, so that it outlives every pass.

mod attention;
mod block;
mod class_token;
mod general;
mod mlp;
mod norm;
mod outside;
mod parts;
mod site;
mod spelling;
mod stages;

pub use attention::Attention;
pub use block::{Block, find};
pub use general::General;
pub use mlp::Mlp;
pub use norm::Norm;
pub use parts::Linear;
pub use site::{Accumulated, Section, Site, SiteRef};
pub use spelling::PartForm;

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::{Graph, NodeId, Value};
use crate::pattern::NearMiss;

/// What was recognised in a graph.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Vit {
    /// The blocks, in the order of the data flow.
    pub blocks: Vec<Block>,
    /// What the general rules found outside the blocks.
    pub general: General,
    /// Every quantisation site: block by block, then those around the blocks, then those of the general rules.
    pub sites: Vec<SiteRef>,
    /// Full names of the sites that a MatMul or convolution reads: they need codes wherever products are computed in integers.
    #[serde(skip)]
    pub multiplied: BTreeSet<String>,
    /// Full names of the sites that are a product's own output which nothing but additions read, and of the constants added: the sum
    /// could be made in the accumulator.
    #[serde(skip)]
    pub accumulated: BTreeMap<String, Accumulated>,
    /// Full names of the sites that are a LayerNorm's output which nothing but Linears read, and what is around each.
    #[serde(skip)]
    pub norms: BTreeMap<String, Norm>,
    /// Where a block was all but matched, and what was not found around them.
    #[serde(skip)]
    pub near_misses: Vec<NearMiss>,
}

/// Recognises the blocks and lists all sites.
pub fn recognise(graph: &Graph) -> Vit {
    let (mut blocks, mut near_misses) = find(graph);
    let (between, misses) = stages::sites(graph, &mut blocks);
    if near_misses.is_empty() {
        // A block that is not recognised breaks the stream: that is said already.
        near_misses.extend(misses);
    }
    let mut sites: Vec<SiteRef> = blocks.iter().flat_map(Block::sites).collect();
    sites.extend(between);
    let (outside, misses) = outside::sites(graph, &blocks, &sites);
    sites.extend(outside);
    near_misses.extend(misses);
    class_token::add(graph, &mut sites);
    let (general, more) = general::sites(graph, &sites);
    sites.extend(more);
    let multiplied = sites.iter().filter(|s| !s.weight && s.values.iter().any(|v| is_multiplied(graph, v)));
    let multiplied = multiplied.map(SiteRef::full_name).collect();
    let mut in_accumulators = BTreeMap::new();
    for site in &sites {
        let found = accumulated(graph, site, &sites, &in_accumulators);
        in_accumulators.extend(found.into_iter().flatten());
    }
    let norms = sites.iter().filter_map(|s| Some((s.full_name(), norm::find(graph, s)?))).collect();
    Vit { blocks, general, sites, multiplied, accumulated: in_accumulators, norms, near_misses }
}

/// A site that is a product's own output which nothing but additions read, and the constants that are added to it. Whatever else is added
/// has codes, and so has the sum; of two products that are added to each other the first is in `taken` and the second has codes.
fn accumulated(
    graph: &Graph,
    site: &SiteRef,
    sites: &[SiteRef],
    taken: &BTreeMap<String, Accumulated>,
) -> Option<Vec<(String, Accumulated)>> {
    let values: BTreeSet<Value> = site.values.iter().filter_map(|v| graph.value(v)).collect();
    let first = graph.value(site.values.first()?)?;
    let biased = graph.is_op(first.node, "Add") && graph.constant(graph.input(first.node, 1)?).is_some();
    let product = if biased { graph.input(first.node, 0)?.node } else { first.node };
    let multiplies = graph.is_op(product, "Conv") || graph.is_op(product, "MatMul");
    if site.weight || !multiplies || graph.constant(graph.input(product, 1)?).is_none() {
        return None;
    }
    if values.iter().any(|&v| graph.is_output(v)) {
        return None;
    }
    let of = |value: Value, weight: bool| {
        let name = graph.value_name(value);
        sites.iter().find(|s| s.weight == weight && s.values.iter().any(|v| v == name))
    };
    let carries = |id: NodeId| values.contains(&Value { node: id, port: 0 }) || graph.is_op(id, "Shape");
    let readers: Vec<_> = values.iter().flat_map(|&v| graph.uses(v)).filter(|u| !carries(u.node)).collect();
    let mut found = vec![site.full_name()];
    let mut beside = vec![of(graph.input(product, 0)?, false)?.full_name(), of(graph.input(product, 1)?, true)?.full_name()];
    for reader in &readers {
        let other = graph.input(reader.node, 1 - reader.port.min(1)).filter(|_| graph.is_op(reader.node, "Add"))?;
        if graph.constant(other).is_some() {
            found.push(of(other, true)?.full_name());
        } else {
            let coded = of(other, false).filter(|s| !values.contains(&other) && !taken.contains_key(&s.full_name()));
            beside.push(coded?.full_name());
        }
        beside.push(of(Value { node: reader.node, port: 0 }, false)?.full_name());
    }
    let accumulated = Accumulated { product: site.full_name(), beside };
    (!readers.is_empty()).then(|| found.into_iter().map(|name| (name, accumulated.clone())).collect())
}

fn is_multiplied(graph: &Graph, value: &str) -> bool {
    let uses = graph.value(value).map(|v| graph.uses(v)).unwrap_or_default();
    uses.into_iter().any(|u| graph.is_op(u.node, "MatMul") || graph.is_op(u.node, "Conv"))
}
