//! The class token's row in the residual stream. The head reads it alone, so an error in it does more than one in any patch; and it is
//! a few times smaller than the patches' rows are at most, so that codes of its own are as much finer.

use std::collections::BTreeSet;

use super::{Site, SiteRef};
use crate::ir::shape::{self, Shapes};
use crate::ir::{CANONICAL_OPSET, Graph, NodeId, Value};

/// Puts a site for the rows that the head reads behind every residual sum that has them.
pub(super) fn add(graph: &Graph, sites: &mut Vec<SiteRef>) {
    let gathers: Vec<NodeId> = graph.ops().into_iter().filter(|&id| graph.is_op(id, "Gather")).collect();
    if gathers.is_empty() {
        return;
    }
    let shapes = shape::infer(graph, CANONICAL_OPSET);
    let ends: BTreeSet<&str> = sites
        .iter()
        .filter(|s| !s.weight && matches!(s.site, Site::Residual2 | Site::Norm))
        .flat_map(|s| s.values.iter().map(String::as_str))
        .collect();
    let read = gathers.iter().rev().find_map(|&id| {
        let from = graph.input(id, 0).filter(|&v| ends.contains(graph.value_name(v)))?;
        Read::of(graph, &shapes, from)
    });
    let Some(read) = read else { return };
    let with_rows = std::mem::take(sites).into_iter().flat_map(|site| {
        let row = read.row_of(graph, &shapes, &site);
        [Some(site), row]
    });
    *sites = with_rows.flatten().collect();
}

/// The rows that are all that is read of the stream in the end.
struct Read {
    rows: [usize; 2],
    /// Of how many.
    of: usize,
    channels: usize,
}

/// Rows and channels of a value with one matrix a sample.
fn matrix(shapes: &Shapes, value: Value) -> Option<(usize, usize)> {
    match shapes.shape(value)? {
        [_, rows, channels] => Some((rows.as_size()?, channels.as_size()?)),
        _ => None,
    }
}

impl Read {
    /// Of a value that nothing but Gathers of single rows read. `None` where the rows lie between others: what is left would be in pieces.
    fn of(graph: &Graph, shapes: &Shapes, from: Value) -> Option<Read> {
        let (of, channels) = matrix(shapes, from)?;
        if graph.is_output(from) {
            return None;
        }
        let row = |id: NodeId| {
            graph.op(id).filter(|op| op.op.is("Gather") && matches!(op.attrs.int("axis"), Some(1 | -2)))?;
            let index = graph.constant(graph.input(id, 1)?).filter(|t| t.shape.is_empty())?.to_i64().ok()?;
            let index = *index.first()?;
            usize::try_from(if index < 0 { index + of as i64 } else { index }).ok()
        };
        let rows = graph.uses(from).into_iter().map(|u| row(u.node)).collect::<Option<Vec<usize>>>()?;
        let (first, end) = (rows.iter().copied().min()?, rows.iter().copied().max()? + 1);
        let at_an_end = first == 0 || end == of;
        (end <= of && end - first < of && at_an_end).then_some(Read { rows: [first, end], of, channels })
    }

    /// The site of these rows of a residual sum.
    fn row_of(&self, graph: &Graph, shapes: &Shapes, site: &SiteRef) -> Option<SiteRef> {
        let sum = !site.weight && site.site.is_sum();
        let [name] = site.values.as_slice() else { return None };
        // What a LayerNorm writes, or tokens are joined to, is not requantised: it has the codes of all its rows at once.
        let value = graph.value(name).filter(|&v| sum && graph.is_op(v.node, "Add") && !graph.is_output(v))?;
        if matrix(shapes, value)? != (self.of, self.channels) {
            return None;
        }
        let part = site.part.as_ref().map_or("class".to_owned(), |part| format!("{part}.class"));
        let observe = unused(graph, &format!("{name}_class"));
        Some(SiteRef { part: Some(part), observe: Some(observe), rows: Some(self.rows), ..site.clone() })
    }
}

/// A name that no value has.
fn unused(graph: &Graph, stem: &str) -> String {
    let numbered = (1..).map(|n| format!("{stem}_{n}"));
    let mut names = std::iter::once(stem.to_owned()).chain(numbered);
    names.find(|name| graph.value(name).is_none()).unwrap_or_default()
}
