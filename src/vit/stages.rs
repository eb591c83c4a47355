//! Between blocks: the residual stream goes on as it is, or a new one begins (patch merging, a class token that joins late).

use std::collections::BTreeSet;

use super::parts::{MOVES, NORMS};
use super::{Block, Site, SiteRef};
use crate::ir::{Graph, Value};
use crate::pattern::NearMiss;

/// Sites between the blocks, and what was looked for and is not there. Values that only carry a block's output to the next
/// block are added to its last sum.
pub(super) fn sites(graph: &Graph, blocks: &mut [Block]) -> (Vec<SiteRef>, Vec<NearMiss>) {
    let mut walk = Walk { graph, sites: Vec::new(), misses: Vec::new(), stages: 0 };
    for i in 1..blocks.len() {
        let (before, after) = blocks.split_at_mut(i);
        if let (Some(last), Some(next)) = (before.last_mut(), after.first())
            && let (Some(from), Some(to)) = (graph.value(&last.output), graph.value(&next.x))
        {
            walk.between(last, from, to);
        }
    }
    (walk.sites, walk.misses)
}

struct Walk<'g> {
    graph: &'g Graph,
    sites: Vec<SiteRef>,
    misses: Vec<NearMiss>,
    stages: usize,
}

/// The values on the way from one stream to the next, last first, in runs of one computed value and what carries it.
type Runs = Vec<Vec<Value>>;

impl Walk<'_> {
    fn between(&mut self, last: &mut Block, from: Value, to: Value) {
        let Some(mut runs) = self.runs(from, to) else {
            let (tell, name) = (self.graph.describe(to.node), self.graph.value_name(to));
            let what = format!(
                "a stream that goes on from '{}', or a LayerNormalization and a Linear between, expected before the block at '{name}', found {tell}",
                last.output
            );
            return self.misses.push(NearMiss { rule: "stage", tell, what });
        };
        let names = |run: &[Value]| run.iter().map(|&v| self.graph.value_name(v).to_owned()).collect::<Vec<_>>();
        // The run that begins with the block's sum itself comes last.
        let carried = runs.pop().map(|run| names(&run)).unwrap_or_default();
        if runs.is_empty() {
            if let Some(sum) = last.sums.last_mut() {
                sum.values.extend(carried);
            }
            return;
        }
        self.stages += 1;
        let stage = self.stages;
        if let Some(merged) = carried.last() {
            self.site(Some(last.index), Site::Residual2, "merged", vec![merged.clone()]);
        }
        let runs: Vec<(Value, Vec<String>)> = runs.iter().map(|run| (run[0], names(run))).collect();
        for (i, (first, values)) in runs.into_iter().enumerate().rev() {
            let (site, part) = match (i, self.is(first, &NORMS)) {
                (0, _) => (Site::Embed, format!("stage.{stage}")),
                (_, true) => (Site::Norm, format!("stage.{stage}")),
                // A Linear: the general rules know it.
                _ => continue,
            };
            self.site(None, site, &part, values);
        }
    }

    fn site(&mut self, block: Option<usize>, site: Site, part: &str, values: Vec<String>) {
        let constant = |name: &String| self.graph.value(name).is_some_and(|v| self.graph.constant(v).is_some());
        let weight = values.iter().any(constant);
        self.sites.push(SiteRef { block, site, part: Some(part.to_owned()), weight, values, observe: None, rows: None });
    }

    fn is(&self, v: Value, ops: &[&str]) -> bool {
        ops.iter().any(|op| self.graph.is_op(v.node, op))
    }

    /// Runs from `to` back to `from`, or to a token that is given; the last run is that of `from`, without it.
    fn runs(&self, from: Value, to: Value) -> Option<Runs> {
        let mut runs: Runs = vec![Vec::new()];
        let mut at = to;
        let mut seen = BTreeSet::new();
        while at != from && seen.insert(at) {
            if let Some(run) = runs.last_mut() {
                run.insert(0, at);
            }
            at = if self.is(at, &MOVES) {
                self.graph.input(at.node, 0)?
            } else if self.is(at, &["Expand"]) || self.graph.constant(at).is_some() {
                // A token of its own: nothing of the stream before.
                runs.push(Vec::new());
                return Some(runs);
            } else if self.is(at, &NORMS) {
                runs.push(Vec::new());
                self.graph.input(at.node, 0)?
            } else {
                runs.push(Vec::new());
                self.linear_input(at)?
            };
        }
        (at == from).then_some(runs)
    }

    /// What a Linear of constant weights reads.
    fn linear_input(&self, v: Value) -> Option<Value> {
        let biased = self.is(v, &["Add"]) && self.graph.input(v.node, 1).is_some_and(|b| self.graph.constant(b).is_some());
        let product = if biased { self.graph.input(v.node, 0)? } else { v };
        let weight = self.graph.input(product.node, 1).filter(|_| self.is(product, &["MatMul"]))?;
        self.graph.constant(weight)?;
        self.graph.input(product.node, 0)
    }
}
