//! Attributes: printing.

use std::fmt::Write;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::tensor::{content, float, shape_text};
use super::{ATTR_TYPES, Dialect, PrintOptions, hex, is_identifier, name, quoted, quoted_bytes};
use crate::ir::{Attr, AttrValue, Attrs, Tensor};

/// `<axis = 1, perm = [0, 2, 1]> `, or nothing.
pub(super) fn list(attrs: &Attrs, options: &PrintOptions) -> String {
    if attrs.is_empty() {
        return String::new();
    }
    let rows: Vec<String> = attrs.iter().map(|a| attribute(a, options)).collect();
    format!("<{}> ", rows.join(", "))
}

/// The value of an attribute as snapshots show it.
pub fn attribute_value(a: &Attr) -> String {
    let mut out = String::new();
    value(&mut out, &a.value, &PrintOptions::snapshot());
    out
}

/// `axis = 1`; the type is written where the value does not tell it.
pub(super) fn attribute(a: &Attr, options: &PrintOptions) -> String {
    let mut out = if is_identifier(&a.name) { a.name.clone() } else { quoted(&a.name) };
    if let Some(ty) = type_word(&a.value) {
        let _ = write!(out, ": {ty}");
    }
    out.push_str(" = ");
    value(&mut out, &a.value, options);
    out
}

fn value(out: &mut String, value: &AttrValue, options: &PrintOptions) {
    match value {
        AttrValue::Float(v) => out.push_str(&float(*v)),
        AttrValue::Int(v) => out.push_str(&v.to_string()),
        AttrValue::String(v) => out.push_str(&quoted_bytes(v)),
        AttrValue::Tensor(t) => tensor(out, t, options),
        AttrValue::Floats(v) => bracketed(out, v, |out, &v| out.push_str(&float(v))),
        AttrValue::Ints(v) => bracketed(out, v, |out, v| out.push_str(&v.to_string())),
        AttrValue::Strings(v) => bracketed(out, v, |out, v| out.push_str(&quoted_bytes(v))),
        AttrValue::Tensors(v) => bracketed(out, v, |out, v| tensor(out, v, options)),
        AttrValue::Ref(of, _) => out.push_str(&format!("@{}", name(of))),
        AttrValue::Graph(g) => out.push_str(&stub(&g.proto)),
        AttrValue::Graphs(v) => bracketed(out, v, |out, g| out.push_str(&stub(&g.proto))),
        AttrValue::Opaque(proto) => out.push_str(&stub(proto)),
    }
}

fn type_word(value: &AttrValue) -> Option<&'static str> {
    match value {
        AttrValue::Floats(v) if v.is_empty() => Some("floats"),
        AttrValue::Ints(v) if v.is_empty() => Some("ints"),
        AttrValue::Strings(v) if v.is_empty() => Some("strings"),
        AttrValue::Tensors(_) => Some("tensors"),
        AttrValue::Graphs(_) => Some("graphs"),
        AttrValue::Ref(_, ty) => usize::try_from(*ty).ok().filter(|&i| i > 0).and_then(|i| ATTR_TYPES.get(i)).copied(),
        _ => None,
    }
}

fn bracketed<T>(out: &mut String, items: &[T], show: impl Fn(&mut String, &T)) {
    out.push('[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        show(out, item);
    }
    out.push(']');
}

fn tensor(out: &mut String, t: &Tensor, options: &PrintOptions) {
    let shown = options.shows(t.len());
    // onnx's parser takes the elements of an attribute right after its type, and the place of external data after `=`.
    let between = if shown || options.dialect == Dialect::Snapshot { " " } else { " = " };
    let _ = write!(out, "{}{between}", shape_text(t.dtype, &t.shape));
    content(out, t, options);
}

/// An empty graph in the place of what the text cannot say.
fn stub(proto: &Bytes) -> String {
    let digest = Sha256::digest(proto);
    format!("elided_{} () => () {{}}", hex(digest.get(..4).unwrap_or_default()))
}
