//! The text form of a graph: a subset of ONNX's textual syntax, printed and parsed.
//!
//! What [`PrintOptions::lossless`] and [`PrintOptions::elided`] print is read by onnx's own parser
//! (`onnx.parser.parse_model`, 1.17 and later, for the double-quoted names) and by [`parse_model`]. The syntax is onnx's
//! `docs/Syntax.md`; of its corners, these matter:
//! - A name that is no plain identifier is written in double quotes; in a string, a backslash takes the next character
//!   as it is.
//! - Numbers of `float16`, `bfloat16` and the 8-bit floats are their bit patterns as unsigned integers; elements of types
//!   under 8 bits are the bytes that pack them, as in `TensorProto.int32_data`. A NaN keeps its sign and not its payload.
//! - Documentation strings of anything but a model or a function, metadata of anything but a model, nested graphs, sparse
//!   tensors and non-tensor types have no place here. They are never dropped in silence: a comment above the text counts
//!   what it leaves out. A nested graph appears as an empty graph named `elided_…`, which [`parse_model`] refuses.
//! - Beyond onnx's syntax, [`parse_model`] reads `hex"6869"` for strings that are not UTF-8, lists of tensors as attributes,
//!   and quoted domains, operator types and attribute names; the comment above the text says when these occur.
//!
//! How a file stored a tensor ([`Stored`](super::Stored)) is not part of the text: a parsed tensor is `Raw`, strings `Typed`.
//!
//! [`PrintOptions::snapshot`] is for people and for snapshot tests, and is not parsed: names without quotes, constants
//! beside their first reader, large ones as type and digest.

mod attr;
mod build;
mod lex;
mod notes;
mod parse;
mod print;
mod snapshot;
mod tensor;
#[cfg(test)]
mod tests;

pub use attr::attribute_value;
pub use parse::{parse_function, parse_graph, parse_model};
pub use tensor::{digest, shape_text as constant_type, tensor_summary, type_text, value_type};

use super::{DType, Function, Graph, Model};

/// Which syntax is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// ONNX's textual syntax.
    Onnx,
    /// Compact lines for people; not parsed.
    Snapshot,
}

/// How a graph is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrintOptions {
    /// The syntax.
    pub dialect: Dialect,
    /// Tensors of more elements than this appear without them: in the ONNX syntax as external data, whose location is the
    /// one that the file gave or else the word `elided`, in snapshots as a digest. `None` prints every element.
    pub max_elements: Option<usize>,
    /// Whether snapshots show the recorded type of each value.
    pub value_types: bool,
}

impl PrintOptions {
    /// ONNX syntax with every element: what [`parse_model`] reads back.
    pub fn lossless() -> Self {
        PrintOptions { dialect: Dialect::Onnx, max_elements: None, value_types: true }
    }

    /// ONNX syntax for reading: tensors of more than 16 elements are marked as elided.
    pub fn elided() -> Self {
        PrintOptions { dialect: Dialect::Onnx, max_elements: Some(16), value_types: true }
    }

    /// The compact style for people and snapshot tests: up to 8 elements, then a digest.
    pub fn snapshot() -> Self {
        PrintOptions { dialect: Dialect::Snapshot, max_elements: Some(8), value_types: false }
    }

    /// The same with the recorded type of each value.
    #[must_use]
    pub fn with_value_types(self) -> Self {
        PrintOptions { value_types: true, ..self }
    }

    fn shows(&self, elements: usize) -> bool {
        self.max_elements.is_none_or(|max| elements <= max)
    }
}

/// The text of a model: header, graph, functions. Equal models give equal text.
pub fn print_model(model: &Model, options: &PrintOptions) -> String {
    match options.dialect {
        Dialect::Onnx => print::model(model, options),
        Dialect::Snapshot => snapshot::model(model, options),
    }
}

/// The text of a graph. Equal graphs give equal text.
pub fn print_graph(graph: &Graph, options: &PrintOptions) -> String {
    match options.dialect {
        Dialect::Onnx => print::graph(graph, options),
        Dialect::Snapshot => snapshot::graph(graph, options),
    }
}

/// The text of a model-local function. Equal functions give equal text.
pub fn print_function(function: &Function, options: &PrintOptions) -> String {
    match options.dialect {
        Dialect::Onnx => print::function(function, options),
        Dialect::Snapshot => snapshot::function(function, options),
    }
}

/// Why a text is no model, graph or function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct TextError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

/// Names of `AttributeProto.AttributeType`, by number.
const ATTR_TYPES: [&str; 15] = [
    "undefined",
    "float",
    "int",
    "string",
    "tensor",
    "graph",
    "floats",
    "ints",
    "strings",
    "tensors",
    "graphs",
    "sparse_tensor",
    "sparse_tensors",
    "type_proto",
    "type_protos",
];

/// First words of types that are no dense tensors.
const OTHER_TYPES: [&str; 5] = ["seq", "map", "optional", "sparse_tensor", "opaque"];

/// Whether the text is a plain identifier of the syntax.
fn is_identifier(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether an identifier would be read as the start of a type.
fn is_type_word(s: &str) -> bool {
    DType::from_text(s).is_some() || OTHER_TYPES.contains(&s)
}

/// A name as the syntax wants it: bare, or quoted.
fn name(s: &str) -> String {
    if is_identifier(s) && !is_type_word(s) { s.to_owned() } else { quoted(s) }
}

/// A string in double quotes.
fn quoted(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// A byte string: quoted, or as hexadecimal digits when it is not UTF-8.
fn quoted_bytes(b: &[u8]) -> String {
    match std::str::from_utf8(b) {
        Ok(s) => quoted(s),
        Err(_) => format!("hex\"{}\"", hex(b)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
