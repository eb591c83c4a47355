//! Why an ONNX file cannot be read or written.

use std::path::PathBuf;

use crate::fs::WriteError;
use crate::ir::VerifyError;

/// Why an ONNX file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The file cannot be opened or mapped.
    #[error("cannot read {path}: {source}; check the path and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The bytes are no ONNX model.
    #[error(
        "{path} is not a readable ONNX model ({source}): the file is truncated or of another format; export or download it again"
    )]
    Decode {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        #[source]
        source: prost::DecodeError,
    },
    /// The file decodes but holds no graph.
    #[error("the model has no graph: the file is empty, truncated or not an ONNX model; export or download it again")]
    NoGraph,
    /// The file is of a newer format than this build knows.
    #[error(
        "the model has IR version {found}, and this build reads up to {max}: re-export it with an older onnx package, or use a newer vitq"
    )]
    IrVersion {
        /// The file's.
        found: i64,
        /// The newest known.
        max: i64,
    },
    /// A part of the model is malformed.
    #[error("{place}: {what}")]
    Malformed {
        /// Where in the model.
        place: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A tensor's external data cannot be had.
    #[error("tensor '{tensor}' keeps its data in '{location}': {what}")]
    External {
        /// The tensor.
        tensor: String,
        /// The file it names.
        location: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The graph breaks an invariant.
    #[error("the graph is invalid: {0}")]
    Verify(#[from] VerifyError),
    /// The model does not fit one protobuf file.
    #[error("the model takes {0} bytes, and an ONNX file holds less than 2 GiB: write it with --external-data")]
    TooLarge(usize),
    /// The model does not fit one protobuf file even with its initialisers outside.
    #[error(
        "the model takes {size} bytes beside its initialisers, and an ONNX file holds at most {limit}: tensors in attributes, \
         nested graphs and typed fields stay in the file; store them as raw initialisers"
    )]
    TooLargeWithoutTensors {
        /// Bytes of the model file.
        size: usize,
        /// The most it may have.
        limit: usize,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl OnnxError {
    pub(super) fn malformed(place: impl Into<String>, what: impl Into<String>) -> OnnxError {
        OnnxError::Malformed { place: place.into(), what: what.into() }
    }
}
