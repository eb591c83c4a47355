//! Model files on disk.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::external::{self, Folder};
use super::proto::ModelProto;
use super::{OnnxError, export, import, tensor};
use crate::fs::write_atomic;
use crate::ir::Model;

/// The largest message that protobuf readers take.
const PROTOBUF_LIMIT: usize = (1 << 31) - 1;
/// Smaller tensors stay in the model file, where shape inference can see them.
const SMALL_TENSOR: usize = 1024;

/// Whether tensors go to a data file beside the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExternalData {
    /// Only when the model would pass protobuf's limit of 2 GiB.
    #[default]
    WhenNeeded,
    /// Always, tensors under 1 KiB excepted.
    Always,
}

/// Reads a model file by mapping it; external data is mapped from the file's folder.
///
/// # Errors
/// When the file cannot be read, is no ONNX model, is newer than this build, or is malformed.
pub fn read(path: &Path) -> Result<Model, OnnxError> {
    let bytes = external::map(path).map_err(|source| OnnxError::Read { path: path.to_owned(), source })?;
    let proto = ModelProto::decode(bytes).map_err(|source| OnnxError::Decode { path: path.to_owned(), source })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    import::from_proto(proto, &Folder::new(folder))
}

/// The bytes of the model as one file with all data inside.
///
/// # Errors
/// When the model passes protobuf's limit.
pub fn encode(model: &Model) -> Result<Vec<u8>, OnnxError> {
    let proto = export::to_proto(model);
    let size = proto.encoded_len();
    if size > PROTOBUF_LIMIT { Err(OnnxError::TooLarge(size)) } else { Ok(proto.encode_to_vec()) }
}

/// Writes a model file, and `PATH.data` beside it where tensors go outside. Each file appears whole or not at all.
///
/// # Errors
/// When a file cannot be written, or the model passes protobuf's limit even with its initialisers outside.
pub fn write(model: &Model, path: &Path, external: ExternalData) -> Result<(), OnnxError> {
    write_within(model, path, external, PROTOBUF_LIMIT)
}

/// [`write`] with another limit on the model file's bytes.
pub(super) fn write_within(model: &Model, path: &Path, external: ExternalData, limit: usize) -> Result<(), OnnxError> {
    let mut proto = export::to_proto(model);
    let location = data_path(path);
    let mut chunks = Vec::new();
    if external == ExternalData::Always || proto.encoded_len() > limit {
        let name = location.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        chunks = move_outside(&mut proto, &name);
    }
    let size = proto.encoded_len();
    if size > limit {
        return Err(OnnxError::TooLargeWithoutTensors { size, limit });
    }
    if !chunks.is_empty() {
        write_atomic(&location, |w| write_chunks(w, &chunks))?;
    }
    write_atomic(path, |w| w.write_all(&proto.encode_to_vec()))?;
    Ok(())
}

fn write_chunks(w: &mut dyn Write, chunks: &[(usize, Bytes)]) -> std::io::Result<()> {
    let mut at = 0usize;
    for (offset, bytes) in chunks {
        w.write_all(&vec![0u8; offset - at])?;
        w.write_all(bytes)?;
        at = offset + bytes.len();
    }
    Ok(())
}

/// The data file of a model at `path`: `PATH.data`.
pub fn data_path(path: &Path) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(".data");
    PathBuf::from(name)
}

/// Points the main graph's large tensors at a data file; returns its chunks in ascending offset.
fn move_outside(proto: &mut ModelProto, location: &str) -> Vec<(usize, Bytes)> {
    /// Large tensors start on a page, so that a reader can map them alone.
    const PAGE: usize = 4096;
    const LINE: usize = 64;
    let (mut chunks, mut at) = (Vec::new(), 0usize);
    for t in proto.graph.iter_mut().flat_map(|g| g.initializer.iter_mut()) {
        let Some(raw) = t.raw_data.clone().filter(|b| b.len() >= SMALL_TENSOR) else { continue };
        let offset = at.next_multiple_of(if raw.len() >= 1 << 20 { PAGE } else { LINE });
        tensor::point_outside(t, location, offset, raw.len());
        at = offset + raw.len();
        chunks.push((offset, raw));
    }
    chunks
}
