//! Operator attributes.

use bytes::Bytes;

use super::Tensor;

/// A nested graph (the body of `If`, `Loop`, …) that no pass looks into: its encoded `GraphProto`, and the outer values
/// that it reads by name. Those values are uses of the enclosing node, so that a sweep keeps them and their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subgraph {
    /// The encoded `GraphProto`.
    pub proto: Bytes,
    /// Names of the outer values that it reads, in order of first reading.
    pub captures: Vec<String>,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum AttrValue {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(Tensor),
    Graph(Subgraph),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Bytes>),
    Tensors(Vec<Tensor>),
    Graphs(Vec<Subgraph>),
    /// A reference to an attribute of the enclosing function: its name, and the `AttributeProto.type` number.
    Ref(String, i32),
    /// Sparse tensors and types: the encoded `AttributeProto`.
    Opaque(Bytes),
}

/// A named attribute.
#[derive(Debug, Clone, PartialEq)]
pub struct Attr {
    /// The name.
    pub name: String,
    /// The value.
    pub value: AttrValue,
    /// The documentation string.
    pub doc: String,
    /// The names that a file gives the tensors of the value, which mean nothing; empty when it names none.
    pub tensor_names: Vec<Option<String>>,
}

impl Attr {
    /// An attribute without documentation.
    pub fn new(name: &str, value: AttrValue) -> Self {
        Attr { name: name.to_owned(), value, doc: String::new(), tensor_names: Vec::new() }
    }
}

/// The attributes of an operator, in the order of the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attrs(Vec<Attr>);

impl Attrs {
    /// No attributes.
    pub fn new() -> Self {
        Attrs::default()
    }

    /// All attributes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Attr> {
        self.0.iter()
    }

    /// Appends without looking for an attribute of the same name.
    pub fn push(&mut self, attr: Attr) {
        self.0.push(attr);
    }

    /// Sets or replaces.
    pub fn set(&mut self, name: &str, value: AttrValue) {
        match self.0.iter_mut().find(|a| a.name == name) {
            Some(a) => {
                a.value = value;
                a.tensor_names.clear();
            }
            None => self.0.push(Attr::new(name, value)),
        }
    }

    /// The same attributes with one set.
    #[must_use]
    pub fn with(mut self, name: &str, value: AttrValue) -> Self {
        self.set(name, value);
        self
    }

    /// Removes and returns.
    pub fn remove(&mut self, name: &str) -> Option<AttrValue> {
        let at = self.0.iter().position(|a| a.name == name)?;
        Some(self.0.remove(at).value)
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&AttrValue> {
        self.0.iter().find(|a| a.name == name).map(|a| &a.value)
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            Some(AttrValue::Int(v)) => Some(*v),
            _ => None,
        }
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.get(name) {
            Some(AttrValue::Float(v)) => Some(*v),
            _ => None,
        }
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.get(name) {
            Some(AttrValue::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// A string attribute, when it is UTF-8.
    pub fn str(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(AttrValue::String(v)) => std::str::from_utf8(v).ok(),
            _ => None,
        }
    }

    /// A tensor attribute.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.get(name) {
            Some(AttrValue::Tensor(v)) => Some(v),
            _ => None,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The nested graphs of all attributes.
    pub fn subgraphs(&self) -> impl Iterator<Item = &Subgraph> {
        self.0.iter().flat_map(|a| match &a.value {
            AttrValue::Graph(g) => std::slice::from_ref(g),
            AttrValue::Graphs(gs) => gs.as_slice(),
            _ => &[],
        })
    }
}

impl FromIterator<(String, AttrValue)> for Attrs {
    fn from_iter<I: IntoIterator<Item = (String, AttrValue)>>(iter: I) -> Self {
        Attrs(iter.into_iter().map(|(name, value)| Attr::new(&name, value)).collect())
    }
}
