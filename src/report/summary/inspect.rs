//! What was found in a model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter, Result};

use comfy_table::{CellAlignment, Table, presets};

use super::text::{bytes, count, entry, layers, row, sites};
use crate::ir::{Graph, Model, NodeId, Value};
use crate::vit::{Block, PartForm, Vit};

/// An input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Element type and shape: `float[batch,3,224,224]`.
    #[serde(rename = "type")]
    pub ty: String,
}

/// One recognised block.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BlockRow {
    /// Its place in the data flow, from 0.
    pub index: usize,
    /// How it is built: `pre-norm`, `post-norm`, `parallel`, `pooling`.
    pub kind: String,
    /// What it has that a plain block has not: `windows`, `position bias`, `gated`, ….
    pub features: Vec<String>,
    /// Attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Hidden width of the MLP over the width of the stream.
    pub mlp_ratio: f64,
    /// The activation's operator.
    pub activation: String,
    /// Quantisation sites.
    pub sites: usize,
    /// How the exporter spelt each part.
    pub forms: Vec<PartForm>,
}

/// What was found in a model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct InspectSummary {
    /// The file.
    pub model: String,
    /// Bytes, external data included.
    pub bytes: u64,
    /// The exporter and its version.
    pub producer: String,
    /// The IR version.
    pub ir_version: i64,
    /// Operator sets: domain (`ai.onnx` for the default) to version.
    pub opsets: BTreeMap<String, i64>,
    /// Inputs.
    pub inputs: Vec<Interface>,
    /// Outputs.
    pub outputs: Vec<Interface>,
    /// Elements of all constants.
    pub parameters: u64,
    /// Whether the model holds quantised operators already.
    pub quantised: bool,
    /// Recognised blocks.
    pub blocks: Vec<BlockRow>,
    /// Convolutions in no block, quantised by the general rules.
    pub convolutions: usize,
    /// Linears in no block, quantised by the general rules.
    pub linears: usize,
    /// All quantisation sites by full name.
    pub sites: Vec<String>,
    /// How often each canonicalisation rule applied: the exporter's forms.
    pub rules: BTreeMap<String, usize>,
    /// Places where a block or a rule all but matched.
    pub near_misses: Vec<String>,
    /// Operators of the file by type.
    pub ops: BTreeMap<String, usize>,
    /// Operators of the canonical graph that belong to no block and no site, by type.
    pub ops_left_alone: BTreeMap<String, usize>,
}

/// Blocks as rows.
fn blocks(vit: &Vit) -> Vec<BlockRow> {
    let to_row = |b: &Block| {
        let attention = b.attentions.first();
        BlockRow {
            index: b.index,
            kind: b.kind.to_owned(),
            features: b.features().into_iter().map(str::to_owned).collect(),
            heads: attention.map_or(0, |a| a.heads),
            head_dim: attention.map_or(0, |a| a.head_dim),
            dim: b.dim,
            mlp_ratio: b.mlp_ratio,
            activation: b.mlps.first().map(|m| m.act_op.clone()).unwrap_or_default(),
            sites: vit.sites.iter().filter(|s| s.block == Some(b.index)).count(),
            forms: Vec::new(),
        }
    };
    vit.blocks.iter().map(to_row).collect()
}

/// The values of the canonical graph that blocks and sites account for.
fn covered<'a>(graph: &'a Graph, vit: &'a Vit) -> BTreeSet<&'a str> {
    let mut names: BTreeSet<&str> = vit.sites.iter().flat_map(|s| &s.values).map(String::as_str).collect();
    names.extend(vit.general.inner.iter().map(String::as_str));
    for b in &vit.blocks {
        names.extend(b.inner().map(String::as_str));
    }
    // A Linear outside the blocks is a site by its sum; its product belongs to it.
    let products = |name: &&str| -> Option<&'a str> {
        let product = graph.input(graph.value(name)?.node, 0)?;
        let ours = graph.is_op(graph.value(name)?.node, "Add") && graph.is_op(product.node, "MatMul");
        ours.then(|| graph.value_name(product))
    };
    let more: Vec<&str> = names.iter().filter_map(products).collect();
    names.extend(more);
    names
}

fn left_alone(graph: &Graph, vit: &Vit) -> BTreeMap<String, usize> {
    let names = covered(graph, vit);
    let mut counts = BTreeMap::new();
    let ours = |id: NodeId| graph.get(id).is_some_and(|n| n.outputs.iter().any(|o| names.contains(o.as_str())));
    for id in graph.ops().into_iter().filter(|&id| !ours(id)) {
        if let Some(op) = graph.op(id) {
            *counts.entry(op.op.to_string()).or_default() += 1;
        }
    }
    counts
}

/// What is to be told of a model: `original` as it was read, `canonical` after canonicalisation with what was recognised.
pub fn inspect(path: &str, bytes: u64, original: &Model, canonical: &Model, vit: &Vit) -> InspectSummary {
    let graph = &original.graph;
    let interface = |v: Value| Interface {
        name: graph.value_name(v).to_owned(),
        ty: crate::ir::text::value_type(graph, v).unwrap_or_else(|| "unknown".to_owned()),
    };
    let domain = |d: &str| if d.is_empty() { "ai.onnx".to_owned() } else { d.to_owned() };
    let elements = |id: NodeId| graph.get(id).and_then(|n| n.tensor()).map_or(0, |t| t.shape.iter().map(|&d| d as u64).product());
    let header = &original.header;
    InspectSummary {
        model: path.to_owned(),
        bytes,
        producer: format!("{} {}", header.producer_name, header.producer_version).trim().to_owned(),
        ir_version: header.ir_version,
        opsets: original.opsets.iter().map(|o| (domain(&o.domain), o.version)).collect(),
        inputs: graph.inputs().iter().map(|&node| interface(Value { node, port: 0 })).collect(),
        outputs: graph.outputs().iter().map(|&v| interface(v)).collect(),
        parameters: graph.node_ids().into_iter().map(elements).sum(),
        quantised: false,
        blocks: blocks(vit),
        convolutions: vit.general.convolutions,
        linears: vit.general.linears,
        sites: vit.sites.iter().map(crate::vit::SiteRef::full_name).collect(),
        rules: BTreeMap::new(),
        near_misses: vit.near_misses.iter().map(ToString::to_string).collect(),
        ops: BTreeMap::new(),
        ops_left_alone: left_alone(&canonical.graph, vit),
    }
}

/// `0-5, 8`.
fn ranges(ascending: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &i in ascending {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == i => *end = i,
            _ => runs.push((i, i)),
        }
    }
    let text = |&(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn histogram(counts: &BTreeMap<String, usize>) -> String {
    let mut rows: Vec<(&String, &usize)> = counts.iter().collect();
    rows.sort_by_key(|&(name, n)| (std::cmp::Reverse(n), name));
    let shown: Vec<String> = rows.into_iter().map(|(name, n)| format!("{n} {name}")).collect();
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

impl Display for InspectSummary {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        row(f, "Model", &format!("{} ({}, {} parameters)", self.model, bytes(self.bytes), self.parameters))?;
        let opsets: Vec<String> = self.opsets.iter().map(|(d, v)| format!("{d} {v}")).collect();
        let producer = if self.producer.is_empty() { "an unnamed exporter" } else { &self.producer };
        row(f, "Exported by", &format!("{producer}; operator sets {}; IR version {}", opsets.join(", "), self.ir_version))?;
        let list = |v: &[Interface]| v.iter().map(|i| format!("{} {}", i.name, i.ty)).collect::<Vec<_>>().join(", ");
        row(f, "Inputs", &list(&self.inputs))?;
        row(f, "Outputs", &list(&self.outputs))?;
        row(f, "Operators", &histogram(&self.ops))?;
        if self.quantised {
            row(f, "Note", "this model is quantised already: compile the float model instead")?;
        }
        let general = layers(self.convolutions, self.linears);
        if self.blocks.is_empty() {
            let general = general.map_or(String::new(), |g| format!("; {g}"));
            row(f, "Blocks", &format!("none{general}"))?;
            if !self.sites.is_empty() {
                let sites = sites(self.sites.iter().map(String::as_str));
                row(f, "Sites", &format!("{}: {sites}", self.sites.len()))?;
            }
        } else {
            writeln!(f, "\n{}\n", self.table())?;
            if self.blocks.iter().any(|b| !b.forms.is_empty()) {
                writeln!(f, "{}\n", self.forms())?;
            }
            let inside: usize = self.blocks.iter().map(|b| b.sites).sum();
            let outside = self.sites.len().saturating_sub(inside);
            row(
                f,
                "Sites",
                &format!("{}: {inside} in {}, {outside} outside", self.sites.len(), count(self.blocks.len(), "block")),
            )?;
            if let Some(general) = general {
                row(f, "Outside", &general)?;
            }
        }
        let rules: Vec<String> = self.rules.iter().map(|(name, n)| format!("{name} {n}")).collect();
        row(f, "Rules", if rules.is_empty() { "none applied".to_owned() } else { rules.join(", ") }.as_str())?;
        row(
            f,
            "Near misses",
            &if self.near_misses.is_empty() { "none".to_owned() } else { count(self.near_misses.len(), "place") },
        )?;
        self.near_misses.iter().try_for_each(|n| entry(f, n))?;
        row(f, "Left alone", &histogram(&self.ops_left_alone))
    }
}

impl InspectSummary {
    /// One line a block; equal blocks in a row share one.
    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["block", "kind", "heads", "head dim", "dim", "MLP ratio", "activation", "sites"]);
        let plain = |b: &BlockRow| BlockRow { index: 0, forms: Vec::new(), ..b.clone() };
        let same = |a: &BlockRow, b: &BlockRow| plain(a) == plain(b);
        let mut rest = self.blocks.as_slice();
        while let Some(first) = rest.first() {
            let n = rest.iter().take_while(|b| same(first, b)).count();
            let name = if n == 1 { first.index.to_string() } else { format!("{}-{}", first.index, first.index + n - 1) };
            let cells = [
                name,
                [std::slice::from_ref(&first.kind), first.features.as_slice()].concat().join(", "),
                first.heads.to_string(),
                first.head_dim.to_string(),
                first.dim.to_string(),
                format!("{}", (first.mlp_ratio * 100.0).round() / 100.0),
                first.activation.clone(),
                format!("{}{}", first.sites, if n == 1 { "" } else { " each" }),
            ];
            table.add_row(cells);
            rest = rest.get(n..).unwrap_or_default();
        }
        for column in table.column_iter_mut().skip(2).take(4) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// One line an exporter's form: the parts that have it, and in which blocks.
    fn forms(&self) -> Table {
        let mut rows: Vec<(&'static str, &str, Vec<usize>)> = Vec::new();
        for block in &self.blocks {
            for PartForm { part, form } in &block.forms {
                match rows.iter_mut().find(|(p, f, _)| (p, f) == (part, &form.as_str())) {
                    Some((.., blocks)) => blocks.push(block.index),
                    None => {
                        // Beside the other forms of the same part.
                        let at = rows.iter().rposition(|(p, ..)| p == part).map_or(rows.len(), |i| i + 1);
                        rows.insert(at, (part, form, vec![block.index]));
                    }
                }
            }
        }
        let mut lines: Vec<(Vec<&str>, &str, Vec<usize>)> = Vec::new();
        for (part, form, blocks) in rows {
            match lines.iter_mut().find(|(_, f, b)| (*f, b) == (form, &blocks)) {
                Some((parts, ..)) => parts.push(part),
                None => lines.push((vec![part], form, blocks)),
            }
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["part", "exported as", "blocks"]);
        for (parts, form, blocks) in lines {
            table.add_row([parts.join(", "), form.to_owned(), ranges(&blocks)]);
        }
        table
    }
}
