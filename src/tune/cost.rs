//! What a model's products cost: multiply-accumulates, and who reads which site.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::shape::{self, Shapes};
use crate::ir::{CANONICAL_OPSET, Graph, NodeId, Value};
use crate::quant::QuantPlan;
use crate::vit::SiteRef;

/// A matrix product or convolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// Multiply-accumulates of one sample.
    pub macs: u64,
    /// The sites that it multiplies, by full name: activations and weights.
    pub operands: Vec<String>,
    /// The site that its output is, where a product is integer only with codes on both sides (a convolution).
    pub output: Option<String>,
}

/// All products of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cost {
    /// In the order of the data flow.
    pub products: Vec<Product>,
    /// Elements of the weights, by site.
    pub weights: BTreeMap<String, u64>,
}

impl Cost {
    /// Of a canonical graph. Open axes count as 1.
    pub fn of(graph: &Graph, sites: &[SiteRef]) -> Cost {
        let shapes = shape::infer(graph, CANONICAL_OPSET);
        let mut by_value: BTreeMap<&str, String> = BTreeMap::new();
        for site in sites {
            for value in &site.values {
                by_value.entry(value).or_insert_with(|| site.full_name());
            }
        }
        let site_of = |v: Value| by_value.get(graph.value_name(v)).cloned();
        let mut cost = Cost::default();
        for id in graph.ops() {
            let Some(macs) = macs(graph, &shapes, id) else { continue };
            let operands = [0, 1].into_iter().filter_map(|port| site_of(graph.input(id, port)?)).collect();
            let output = graph.is_op(id, "Conv").then(|| site_of(Value { node: id, port: 0 })).flatten();
            cost.products.push(Product { macs, operands, output });
        }
        for site in sites.iter().filter(|s| s.weight) {
            let tensors = site.values.iter().filter_map(|v| graph.constant(graph.value(v)?));
            cost.weights.insert(site.full_name(), tensors.map(|t| t.shape.iter().product::<usize>() as u64).sum());
        }
        cost
    }

    /// Multiply-accumulates of one sample.
    pub fn macs(&self) -> u64 {
        self.products.iter().map(|p| p.macs).sum()
    }

    /// Bits of all weights together, as a plan has them; those that it has no codes for are in float.
    pub fn weight_bits(&self, plan: &QuantPlan) -> u64 {
        self.weights.iter().map(|(name, &n)| plan.site(name).map_or(n * FLOAT, |site| site.scheme.stored_bits(n))).sum()
    }

    /// Σ multiply-accumulates × bits of one operand × bits of the other, of one sample.
    pub fn mac_bits(&self, bits: &BTreeMap<String, u8>) -> u64 {
        let product = |p: &Product| {
            p.macs * p.operands.iter().map(|o| width(bits, o)).chain(std::iter::repeat(FLOAT)).take(2).product::<u64>()
        };
        self.products.iter().map(product).sum()
    }

    /// What becomes float with a site: its products' multiply-accumulates, and every site that no other product multiplies.
    pub fn with(&self, site: &str) -> (u64, BTreeSet<String>) {
        let reads = |p: &Product, name: &str| p.operands.iter().any(|o| o == name);
        let (mine, others): (Vec<&Product>, Vec<&Product>) = self.products.iter().partition(|p| reads(p, site));
        let named = mine.iter().flat_map(|p| p.operands.iter().chain(&p.output));
        let sites = named.filter(|name| !others.iter().any(|p| reads(p, name))).cloned().collect();
        (mine.iter().map(|p| p.macs).sum(), sites)
    }
}

/// Bits of what has no codes.
const FLOAT: u64 = 32;

fn width(bits: &BTreeMap<String, u8>, site: &str) -> u64 {
    bits.get(site).map_or(FLOAT, |&b| u64::from(b))
}

fn macs(graph: &Graph, shapes: &Shapes, id: NodeId) -> Option<u64> {
    let sizes = |v: Value| -> Option<Vec<u64>> {
        let dims = shapes.shape(v)?;
        Some(dims.iter().map(|d| d.as_size().unwrap_or(1) as u64).collect())
    };
    let out: u64 = sizes(Value { node: id, port: 0 })?.iter().product();
    let inner = if graph.is_op(id, "MatMul") || graph.is_op(id, "Gemm") {
        *sizes(graph.input(id, 0)?)?.last()?
    } else if graph.is_op(id, "Conv") {
        sizes(graph.input(id, 1)?)?.iter().skip(1).product()
    } else {
        return None;
    };
    Some(out * inner)
}
