//! ONNX files in and out: the protobuf schema, import to the IR and export back. A round trip loses nothing.

mod attr;
mod error;
mod export;
mod external;
mod file;
mod import;
mod tensor;
mod types;

#[cfg(test)]
mod tests;

/// The messages of `proto/onnx.proto3`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

pub use error::OnnxError;
pub use export::to_proto;
pub use external::{DataFiles, NoDataFiles};
pub use file::{ExternalData, data_path, encode, read, write};
pub use import::{MAX_IR_VERSION, from_proto};
