//! A diff as text for a terminal, without colours.

use std::fmt::{Display, Formatter, Result};

use super::{FieldChange, InitialiserChange, ModelDiff, NodeChange, NodeRef, OpCount};

/// Entries of a section that are shown unless all are asked for.
const ENTRIES: usize = 20;
/// Lines of the text diff that are shown unless all are asked for.
const LINES: usize = 200;

impl Display for ModelDiff {
    /// Sections of facts, then the text diff. Long sections are cut and say so; `{:#}` shows everything.
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if self.is_empty() {
            return f.write_str("no difference\n");
        }
        section(f, "header", &self.header, |f, c| change(f, "  ", c))?;
        section(f, "operators per type", &self.op_counts, count)?;
        section(f, "operators removed", &self.removed, |f, n| node(f, '-', n))?;
        section(f, "operators added", &self.added, |f, n| node(f, '+', n))?;
        section(f, "operators changed", &self.changed, changed)?;
        section(f, "initialisers", &self.initialisers, initialiser)?;
        section(f, "functions", &self.functions, |f, c| change(f, "  ", c))?;
        if self.text.is_empty() {
            return Ok(());
        }
        writeln!(f, "text")?;
        let (total, shown) = (self.text.lines().count(), limit(f, LINES));
        for line in self.text.lines().take(shown) {
            writeln!(f, "{line}")?;
        }
        rest(f, "", total, shown, "lines")
    }
}

fn limit(f: &Formatter<'_>, n: usize) -> usize {
    if f.alternate() { usize::MAX } else { n }
}

fn rest(f: &mut Formatter<'_>, indent: &str, total: usize, shown: usize, what: &str) -> Result {
    if total > shown { writeln!(f, "{indent}… {} more {what}", total - shown) } else { Ok(()) }
}

fn section<T>(f: &mut Formatter<'_>, title: &str, items: &[T], show: impl Fn(&mut Formatter<'_>, &T) -> Result) -> Result {
    if items.is_empty() {
        return Ok(());
    }
    writeln!(f, "{title}: {}", items.len())?;
    let shown = limit(f, ENTRIES);
    for item in items.iter().take(shown) {
        show(f, item)?;
    }
    rest(f, "  ", items.len(), shown, "entries")
}

fn change(f: &mut Formatter<'_>, indent: &str, c: &FieldChange) -> Result {
    match (&c.before, &c.after) {
        (Some(a), Some(b)) if a == b => writeln!(f, "{indent}~ {}: changed, {a} both times", c.field),
        (Some(a), Some(b)) => writeln!(f, "{indent}~ {}: {a} -> {b}", c.field),
        (Some(a), None) => writeln!(f, "{indent}- {}: {a}", c.field),
        (None, Some(b)) => writeln!(f, "{indent}+ {}: {b}", c.field),
        (None, None) => Ok(()),
    }
}

fn count(f: &mut Formatter<'_>, c: &OpCount) -> Result {
    writeln!(f, "  {}: {} -> {}", c.op, c.before, c.after)
}

fn node(f: &mut Formatter<'_>, sign: char, n: &NodeRef) -> Result {
    writeln!(f, "  {sign} {} {}", n.op, n.name)
}

fn changed(f: &mut Formatter<'_>, n: &NodeChange) -> Result {
    node(f, '~', &n.node)?;
    n.changes.iter().try_for_each(|c| change(f, "      ", c))
}

fn initialiser(f: &mut Formatter<'_>, c: &InitialiserChange) -> Result {
    match (&c.before, &c.after) {
        (Some(a), Some(b)) if a == b => {
            write!(f, "  ~ {}: {a}, {} elements differ", c.name, c.differing.unwrap_or_default())?;
            match c.max_abs_difference {
                Some(d) => writeln!(f, ", by up to {d}"),
                None => writeln!(f),
            }
        }
        (Some(a), Some(b)) => writeln!(f, "  ~ {}: {a} -> {b}", c.name),
        (Some(a), None) => writeln!(f, "  - {}: {a}", c.name),
        (None, Some(b)) => writeln!(f, "  + {}: {b}", c.name),
        (None, None) => Ok(()),
    }
}
