//! Rows with codes of their own become a value of their own: the class token's in the residual sums.
//!
//! ```text
//! sum ─┬ Slice ─ class ─┬ Concat ─ what read the sum
//!      └ Slice ─ rest ──┘
//! ```
//!
//! Either gets its codes like any other value then. Rows lie one after the other in memory, so that nothing is moved where an engine takes
//! parts of a tensor as they are.

use std::collections::BTreeSet;

use super::LowerError;
use super::unread::Narrowed;
use crate::ir::shape::Shapes;
use crate::ir::{AttrValue, Edit, NewOp, NodeId, Tensor, Value};
use crate::vit::SiteRef;

/// Rows from one and up to another.
type Rows = [usize; 2];

/// Takes the values of sites that are some rows of another's apart; both sites get the new values' names. Where only some rows are left of a
/// value (`narrowed`), as many belong to either as are left of them. `shapes` are those of the graph before. Gives what is joined again.
///
/// # Errors
/// When a site's rows are none of its value, or lie between others, or are another site's too; when the value is an output of the model.
pub(super) fn lower(
    edit: &mut Edit<'_>,
    shapes: &Shapes,
    sites: &mut [&mut SiteRef],
    narrowed: Option<&Narrowed>,
) -> Result<BTreeSet<Value>, LowerError> {
    let (mut joined, mut done) = (BTreeSet::new(), BTreeSet::new());
    for i in 0..sites.len() {
        let Some(rows) = sites[i].rows.filter(|_| !sites[i].weight) else { continue };
        let (name, value) = check(edit, shapes, sites[i], rows)?;
        if !done.insert(name.clone()) {
            return Err(misfit(sites[i], "another site has rows of it already"));
        }
        let of = rows_of(shapes, value).unwrap_or(rows[1]);
        let left = narrowed.filter(|n| n.values.contains(&name));
        let (rows, of) = left.map_or((rows, of), |left| left.of(rows));
        let whole = sites.iter().position(|s| !s.weight && s.rows.is_none() && s.values.contains(&name));
        match rows {
            [first, end] if first == end => sites[i].values.clear(),
            [0, end] if end == of => {
                if let Some(w) = whole {
                    sites[w].values.retain(|v| *v != name);
                    sites[w].observe = Some(name);
                }
            }
            [first, end] if first > 0 && end < of => {
                return Err(misfit(sites[i], "rows at the beginning or at the end expected"));
            }
            _ => {
                let named = sites[i].observe.clone().unwrap_or_else(|| format!("{name}_class"));
                // What is picked of the value has its codes already.
                let picked: BTreeSet<String> = edit
                    .uses(value)
                    .into_iter()
                    .filter(|u| edit.is_op(u.node, "Slice"))
                    .map(|u| edit.value_name(Value { node: u.node, port: 0 }).to_owned())
                    .collect();
                let parts = Parts { value, rows, of };
                let [class, rest, both] = parts.take(edit, &named);
                joined.insert(both);
                sites[i].values = vec![edit.value_name(class).to_owned()];
                if let Some(w) = whole {
                    sites[w].values.retain(|v| *v != name && !picked.contains(v));
                    sites[w].values.insert(0, edit.value_name(rest).to_owned());
                }
            }
        }
    }
    Ok(joined)
}

/// The one value of a site that is some rows of it, by name.
fn check(edit: &Edit<'_>, shapes: &Shapes, site: &SiteRef, [first, end]: Rows) -> Result<(String, Value), LowerError> {
    let [name] = site.values.as_slice() else { return Err(misfit(site, "the rows of one value expected")) };
    let unknown = || LowerError::UnknownValue { site: site.full_name(), value: name.clone() };
    let value = edit.value(name).ok_or_else(unknown)?;
    let of = rows_of(shapes, value);
    if of.is_none_or(|of| first >= end || end > of) {
        let of = of.map_or("an unknown number of".to_owned(), |n| n.to_string());
        return Err(misfit(site, &format!("rows {first} to {end} asked for, and it has {of} rows")));
    }
    if edit.is_output(value) {
        return Err(misfit(site, "it is an output of the model, all of whose rows have the same codes"));
    }
    Ok((name.clone(), value))
}

fn rows_of(shapes: &Shapes, value: Value) -> Option<usize> {
    shapes.shape(value)?.iter().nth_back(1)?.as_size()
}

fn misfit(site: &SiteRef, what: &str) -> LowerError {
    let value = site.values.first().cloned().unwrap_or_default();
    LowerError::Misfit { site: site.full_name(), value, what: what.to_owned() }
}

/// A value that is taken apart.
struct Parts {
    value: Value,
    rows: Rows,
    of: usize,
}

impl Parts {
    /// Both parts, and what is joined of them for what read the value.
    fn take(&self, edit: &mut Edit<'_>, named: &str) -> [Value; 3] {
        let [first, end] = self.rows;
        let name = edit.value_name(self.value).to_owned();
        let readers: Vec<NodeId> =
            edit.uses(self.value).into_iter().map(|u| u.node).filter(|&n| !edit.is_op(n, "Shape")).collect();
        let class = self.slice(edit, self.rows, named);
        let others = if first == 0 { [end, self.of] } else { [0, first] };
        let rest = self.slice(edit, others, &format!("{name}_rest"));
        let parts = if first == 0 { [class, rest] } else { [rest, class] };
        let join = NewOp::std("Concat", &format!("{name}_rows")).inputs(parts).attr("axis", AttrValue::Int(AXIS));
        let joined = edit.add(self.value.node, join);
        for node in readers {
            if self.is_picked_by(edit, node) {
                edit.replace_uses(Value { node, port: 0 }, class, |_| true);
            } else {
                edit.replace_uses(self.value, joined, |u| u.node == node);
            }
        }
        [class, rest, joined]
    }

    fn slice(&self, edit: &mut Edit<'_>, [first, end]: Rows, name: &str) -> Value {
        let node = self.value.node;
        let mut number = |what: &str, n: i64| edit.add_init(node, &format!("{name}_{what}"), Tensor::vector(&[n]));
        let bounds = [number("from", first as i64), number("to", end as i64), number("axis", AXIS)];
        edit.add(node, NewOp::std("Slice", name).input(self.value).inputs(bounds))
    }

    /// Whether an operator picks just these rows.
    fn is_picked_by(&self, edit: &Edit<'_>, node: NodeId) -> bool {
        let number = |port| edit.constant(edit.input(node, port)?)?.to_i64().ok()?.first().copied();
        let rows = (number(1), number(2)) == (Some(self.rows[0] as i64), Some(self.rows[1] as i64));
        let output = edit.is_output(Value { node, port: 0 });
        edit.is_op(node, "Slice") && !output && rows && matches!(number(3), Some(AXIS | 1)) && edit.input(node, 4).is_none()
    }
}

/// The axis of rows.
const AXIS: i64 = -2;
