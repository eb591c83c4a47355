//! A model: a graph with its operator sets, local functions and header.

use bytes::Bytes;

use super::{Attrs, Graph, OpName};

/// The operator set of every canonical and emitted graph: the newest that onnxruntime 1.18 still loads with Q/DQ, and the
/// first that has `Gelu`.
pub const CANONICAL_OPSET: i64 = 20;

/// A domain and the version of its operator set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpsetImport {
    /// The domain, as the file spells it.
    pub domain: String,
    /// The version.
    pub version: i64,
}

/// What a model file says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The IR version of the file format.
    pub ir_version: i64,
    /// The producer's name.
    pub producer_name: String,
    /// The producer's version.
    pub producer_version: String,
    /// The model's own domain (reverse DNS).
    pub domain: String,
    /// The model's own version.
    pub model_version: i64,
    /// The documentation string.
    pub doc: String,
    /// Key-value metadata.
    pub metadata: Vec<(String, String)>,
    /// Whether the file writes out the empty name of the default domain in its operator sets; it means the same either way.
    pub spells_default_domain: bool,
    /// Encoded `ModelProto` fields that no pass reads (training information, device configurations).
    pub extra: Bytes,
}

/// A function that the model defines for itself. Its body is a graph whose inputs are the formal parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Domain, name and overload.
    pub id: OpName,
    /// Names of the attributes without a default.
    pub attributes: Vec<String>,
    /// Attributes with a default.
    pub attribute_defaults: Attrs,
    /// The operator sets of the body.
    pub opsets: Vec<OpsetImport>,
    /// The body.
    pub body: Graph,
    /// The documentation string.
    pub doc: String,
    /// Key-value metadata.
    pub metadata: Vec<(String, String)>,
}

/// A whole model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The main graph.
    pub graph: Graph,
    /// The operator sets.
    pub opsets: Vec<OpsetImport>,
    /// Model-local functions.
    pub functions: Vec<Function>,
    /// The header.
    pub header: Header,
}

impl Model {
    /// The version of a domain's operator set, if the model imports it.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let canonical = |d: &str| if d == "ai.onnx" { String::new() } else { d.to_owned() };
        self.opsets.iter().find(|o| canonical(&o.domain) == canonical(domain)).map(|o| o.version)
    }

    /// Sets the version of a domain's operator set, adding the import where it is missing.
    pub fn set_opset(&mut self, domain: &str, version: i64) {
        let same = |d: &str| d == domain || (domain.is_empty() && d == "ai.onnx");
        match self.opsets.iter_mut().find(|o| same(&o.domain)) {
            Some(o) => o.version = version,
            None => self.opsets.push(OpsetImport { domain: domain.to_owned(), version }),
        }
    }
}
