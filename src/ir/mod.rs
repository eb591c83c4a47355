//! The graph: nodes, edges, tensors, attributes; its editor, verifier and text form.
//!
//! This layer imports nothing of ours and does no I/O. Everything that produces a value is a node ([`Node`]: an input, an
//! initialiser or an operator); an edge carries the output port it leaves and the input port it enters ([`Edge`]).
//! A graph is changed through [`Edit`] alone.

mod attrs;
pub mod dot;
mod edit;
mod graph;
mod model;
mod ops;
mod opset;
pub mod shape;
mod tensor;
pub mod text;
mod types;
mod verify;

pub use attrs::{Attr, AttrValue, Attrs, Subgraph};
pub use edit::{Edit, NewOp};
pub use graph::{Edge, Graph, Node, NodeId, NodeKind, Use, Value};
pub use model::{CANONICAL_OPSET, Function, Header, Model, OpsetImport};
pub use ops::{AI_ONNX, AI_VITQ, COM_MICROSOFT, Op, OpName};
pub use opset::opset_needed;
pub use tensor::{Scalar, Stored, Tensor, TensorData, TensorError};
pub use types::{DType, Dim, TensorType, Type, ValueInfo};
pub use verify::VerifyError;
