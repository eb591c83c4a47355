//! Tensor data kept in files beside the model.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use super::proto::{AttributeProto, GraphProto, SparseTensorProto, TensorProto, tensor_proto::DataLocation};
use super::{OnnxError, types};

/// Where external tensor data comes from.
pub trait DataFiles {
    /// The whole contents of a data file.
    ///
    /// # Errors
    /// A sentence that says why the file cannot be had and what to do.
    fn open(&self, location: &str) -> Result<Bytes, String>;
}

/// No external data: for models that arrive without a folder.
#[derive(Debug, Clone, Copy)]
pub struct NoDataFiles;

impl DataFiles for NoDataFiles {
    fn open(&self, _: &str) -> Result<Bytes, String> {
        Err("the model was not read from a folder, so files beside it cannot be found; read it from its path".to_owned())
    }
}

/// Data files of one folder, each mapped once.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    open: RefCell<BTreeMap<String, Bytes>>,
}

impl Folder {
    pub(super) fn new(root: &Path) -> Self {
        Folder { root: root.to_owned(), open: RefCell::default() }
    }
}

impl DataFiles for Folder {
    fn open(&self, location: &str) -> Result<Bytes, String> {
        if let Some(bytes) = self.open.borrow().get(location) {
            return Ok(bytes.clone());
        }
        let relative = Path::new(location);
        // A model must not make us read files outside its own folder.
        if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
            return Err("the location leaves the model's folder; move the data beside the model and export it again".to_owned());
        }
        let path = self.root.join(relative);
        let bytes = map(&path).map_err(|e| format!("{e} ({}); put the data file back beside the model", path.display()))?;
        self.open.borrow_mut().insert(location.to_owned(), bytes.clone());
        Ok(bytes)
    }
}

/// A file's bytes, mapped rather than read when that pays.
pub(super) fn map(path: &Path) -> std::io::Result<Bytes> {
    const SMALL: u64 = 1 << 16;
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        // A device may have no end.
        let what = if meta.is_dir() { "it is a folder" } else { "it is not a regular file" };
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, what));
    }
    if meta.len() < SMALL {
        return std::fs::read(path).map(Bytes::from);
    }
    // SAFETY: the map is read-only and private to this process. Should another process truncate the file meanwhile, reads
    // past its end fault, as for every program that maps its inputs.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}

/// The slice that a tensor's `external_data` entries name.
pub(super) fn slice(tensor: &str, entries: &[(String, String)], files: &dyn DataFiles) -> Result<Bytes, OnnxError> {
    let get = |key: &str| entries.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    let location = get("location").unwrap_or_default();
    let fail = |what: String| OnnxError::External { tensor: tensor.to_owned(), location: location.to_owned(), what };
    if location.is_empty() {
        return Err(fail("the entry 'location' is missing; export the model again".to_owned()));
    }
    let number = |key: &str| -> Result<Option<usize>, OnnxError> {
        get(key)
            .map(|v| v.parse().map_err(|_| fail(format!("'{key}' is '{v}', not a number; export the model again"))))
            .transpose()
    };
    let all = files.open(location).map_err(fail)?;
    let offset = number("offset")?.unwrap_or(0);
    let end = match number("length")? {
        Some(length) => offset.checked_add(length),
        None => Some(all.len()),
    };
    match end {
        Some(end) if offset <= end && end <= all.len() => Ok(all.slice(offset..end)),
        _ => Err(fail(format!(
            "it has {} bytes, fewer than the tensor's offset and length need; the file is truncated or of another export",
            all.len()
        ))),
    }
}

/// Brings the external data of everything in a nested graph inside.
pub(super) fn embed_graph(g: &mut GraphProto, files: &dyn DataFiles) -> Result<(), OnnxError> {
    g.initializer.iter_mut().try_for_each(|t| embed(t, files))?;
    g.sparse_initializer.iter_mut().try_for_each(|s| embed_sparse(s, files))?;
    g.node.iter_mut().flat_map(|n| &mut n.attribute).try_for_each(|a| embed_attribute(a, files))
}

/// Brings the external data of an attribute inside, nested graphs included.
pub(super) fn embed_attribute(a: &mut AttributeProto, files: &dyn DataFiles) -> Result<(), OnnxError> {
    a.t.iter_mut().chain(&mut a.tensors).try_for_each(|t| embed(t, files))?;
    a.sparse_tensor.iter_mut().chain(&mut a.sparse_tensors).try_for_each(|s| embed_sparse(s, files))?;
    a.g.iter_mut().chain(&mut a.graphs).try_for_each(|g| embed_graph(g, files))
}

/// Brings the external data of a sparse tensor inside.
pub(super) fn embed_sparse(s: &mut SparseTensorProto, files: &dyn DataFiles) -> Result<(), OnnxError> {
    s.values.iter_mut().chain(&mut s.indices).try_for_each(|t| embed(t, files))
}

fn embed(t: &mut TensorProto, files: &dyn DataFiles) -> Result<(), OnnxError> {
    if t.data_location == DataLocation::External as i32 {
        let entries = types::import_entries(std::mem::take(&mut t.external_data));
        t.raw_data = Some(slice(t.name.as_deref().unwrap_or_default(), &entries, files)?);
        t.data_location = DataLocation::Default as i32;
    }
    Ok(())
}
