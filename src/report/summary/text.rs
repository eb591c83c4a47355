//! Numbers as people read them.

use std::fmt::{Formatter, Result};

use crate::vit::Site;

/// Width of the left column of a summary.
const LABEL: usize = 12;
/// Where lines of a summary end.
const WIDTH: usize = 100;

/// Bytes in decimal units: `878 kB`.
pub fn bytes(n: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 9.95);
    format!("{value:.digits$} {}", units.get(unit).unwrap_or(&""))
}

/// A share of 1 in percent with two digits: `99.72 %`.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// A duration: `0.31 s`, `42.0 s`, `3 min 20 s`.
pub fn seconds(s: f64) -> String {
    if s < 10.0 {
        format!("{s:.2} s")
    } else if s < 120.0 {
        format!("{s:.1} s")
    } else {
        format!("{} min {:.0} s", (s / 60.0).floor(), s % 60.0)
    }
}

/// A ratio in decibels.
pub fn decibels(db: f64) -> String {
    format!("{db:.2} dB")
}

/// `1 block`, `4 blocks`.
pub(super) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// What the general rules found: `9 convolutions and 1 linear by the general rules`.
pub(super) fn layers(convolutions: usize, linears: usize) -> Option<String> {
    let parts = [(convolutions, "convolution"), (linears, "linear")];
    let parts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| count(*n, what)).collect();
    (!parts.is_empty()).then(|| format!("{} by the general rules", parts.join(" and ")))
}

/// A line of a summary: a label on the left, its text wrapped on the right.
pub(super) fn row(f: &mut Formatter<'_>, label: &str, text: &str) -> Result {
    let mut label = label;
    for line in wrap(text, WIDTH - LABEL) {
        writeln!(f, "{label:<LABEL$}{line}")?;
        label = "";
    }
    Ok(())
}

/// An entry below a line: indented and marked.
pub(super) fn entry(f: &mut Formatter<'_>, text: &str) -> Result {
    let mut mark = "- ";
    for line in wrap(text, WIDTH - LABEL - mark.len()) {
        writeln!(f, "{:<LABEL$}{mark}{line}", "")?;
        mark = "  ";
    }
    Ok(())
}

/// Greedy wrapping at spaces; a word longer than the width keeps its line to itself.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let full = lines.last().is_some_and(|l| !l.is_empty() && l.chars().count() + 1 + word.chars().count() > width);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// Site names in short: `blocks.*.kv_act (4), blocks.7.mlp_act, conv.* (9), head_output`, in order of first appearance.
pub(super) fn sites<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut groups: Vec<(String, &str, usize)> = Vec::new();
    for name in names {
        let general = |kind: &str| Site::from_name(kind).is_some_and(Site::is_general);
        let short = match name.split_once('.') {
            Some(("blocks", rest)) => rest.split_once('.').map_or(name.to_owned(), |(_, site)| format!("blocks.*.{site}")),
            Some((kind, _)) if general(kind) => format!("{kind}.*"),
            _ => name.to_owned(),
        };
        match groups.iter_mut().find(|(s, _, _)| *s == short) {
            Some((_, _, n)) => *n += 1,
            None => groups.push((short, name, 1)),
        }
    }
    let show = |(short, first, n): &(String, &str, usize)| if *n == 1 { (*first).to_owned() } else { format!("{short} ({n})") };
    groups.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        let shown: Vec<String> = [0, 999, 1000, 9_940, 9_960, 877_513, 999_600, 22_900_000].map(bytes).into();
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "9.9 kB", "10 kB", "878 kB", "1.0 MB", "23 MB"]);
        assert_eq!([0.304, 42.0, 200.0].map(seconds), ["0.30 s", "42.0 s", "3 min 20 s"]);
        assert_eq!((percent(0.99722), decibels(12.345)), ("99.72 %".into(), "12.35 dB".into()));
    }

    #[test]
    fn sites_of_all_blocks_are_one_entry() {
        let names =
            ["blocks.0.kv_act", "blocks.0.sv_attn", "blocks.11.kv_act", "conv.a.weight", "conv.b", "embed.x", "head_output"];
        assert_eq!(sites(names), "blocks.*.kv_act (2), blocks.0.sv_attn, conv.* (2), embed.x, head_output");
    }

    #[test]
    fn layers_of_the_general_rules_are_counted() {
        assert_eq!(layers(9, 1).as_deref(), Some("9 convolutions and 1 linear by the general rules"));
        assert_eq!(layers(0, 2).as_deref(), Some("2 linears by the general rules"));
        assert_eq!(layers(0, 0), None);
    }

    #[test]
    fn wrapping_loses_no_word() {
        let text = "a bb ccc dddddddddd ee";
        let lines = wrap(text, 6);
        assert_eq!(lines, ["a bb", "ccc", "dddddddddd", "ee"]);
        assert_eq!(lines.join(" "), text);
    }
}
