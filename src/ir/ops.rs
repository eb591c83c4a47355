//! Operators by name: most pass through untouched, so this is no closed enum.

use bytes::Bytes;

use super::Attrs;

/// The default ONNX domain (also spelt as the empty string in files).
pub const AI_ONNX: &str = "";
/// The domain of our custom operators.
pub const AI_VITQ: &str = "ai.vitq";
/// The domain of onnxruntime's contributed operators.
pub const COM_MICROSOFT: &str = "com.microsoft";

/// The identity of an operator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpName {
    /// The domain as the file spells it; `""` and `"ai.onnx"` are the same domain.
    pub domain: String,
    /// The operator type.
    pub op_type: String,
    /// The overload of a model-local function (IR version 10 and later).
    pub overload: String,
}

impl OpName {
    /// An operator of the default domain.
    pub fn std(op_type: &str) -> Self {
        OpName::new(AI_ONNX, op_type)
    }

    /// An operator of a domain.
    pub fn new(domain: &str, op_type: &str) -> Self {
        OpName { domain: domain.to_owned(), op_type: op_type.to_owned(), overload: String::new() }
    }

    /// The domain with the two spellings of the default made one.
    pub fn canonical_domain(&self) -> &str {
        if self.domain == "ai.onnx" { AI_ONNX } else { &self.domain }
    }

    /// Whether this is the default domain's operator of that type.
    pub fn is(&self, op_type: &str) -> bool {
        self.op_type == op_type && self.canonical_domain() == AI_ONNX
    }

    /// Whether this is that domain's operator of that type.
    pub fn is_in(&self, domain: &str, op_type: &str) -> bool {
        self.op_type == op_type && self.canonical_domain() == domain
    }
}

impl std::fmt::Display for OpName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.domain.is_empty() { f.write_str(&self.op_type) } else { write!(f, "{}.{}", self.domain, self.op_type) }
    }
}

/// An operator node's own content; its inputs are the graph's edges.
#[derive(Debug, Clone, PartialEq)]
pub struct Op {
    /// Which operator.
    pub op: OpName,
    /// The node's name; may be empty.
    pub name: String,
    /// Attributes.
    pub attrs: Attrs,
    /// The number of input ports, absent optional ones included. Captures of nested graphs use the ports after these.
    pub arity: usize,
    /// The documentation string.
    pub doc: String,
    /// Key-value metadata.
    pub metadata: Vec<(String, String)>,
    /// Encoded `NodeProto` fields that no pass reads (device configurations).
    pub extra: Bytes,
}
