//! From a file to a recognised model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use prost::Message;
use sha2::{Digest as _, Sha256};

use super::{PipelineError, is_quantised};
use crate::calib::Digest;
use crate::canon::{self, CanonReport};
use crate::ir::{Edit, Graph, Model, NodeKind, Stored, Tensor, Use, Value};
use crate::onnx;
use crate::quant::{ModelFacts, Reparameterized};
use crate::vit::{self, SiteRef, Vit};

/// A model in its canonical form, with what was recognised in it.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where it was read.
    pub path: PathBuf,
    /// The canonical model.
    pub model: Model,
    /// What canonicalising did.
    pub canon: CanonReport,
    /// Blocks and sites.
    pub vit: Vit,
    /// Bytes of the file and of the data files that it names.
    pub bytes: u64,
    /// The data files that it names.
    pub data: Vec<PathBuf>,
    /// The file's operators by type.
    pub ops: BTreeMap<String, usize>,
    /// Sites whose channels' scales stand in the model's constants.
    pub(super) reparameterized: Vec<Reparameterized>,
    digest: OnceLock<Digest>,
}

/// Reads a model as it is.
///
/// # Errors
/// When the file cannot be read or is no ONNX model.
pub fn read(path: &Path) -> Result<Model, PipelineError> {
    onnx::read(path).map_err(|source| PipelineError::Read { path: path.to_owned(), source })
}

/// Reads a model, brings it to the canonical form and recognises its blocks; a model without anything to quantise is no error
/// here.
///
/// # Errors
/// When the file cannot be read or has no canonical form.
pub fn load(path: &Path) -> Result<Source, PipelineError> {
    let mut model = read(path)?;
    let (bytes, data, ops) = (file_bytes(path, &model), data_files(path, &model), op_counts(&model));
    let canon = canon::canonicalise(&mut model).map_err(|source| PipelineError::Canon { path: path.to_owned(), source })?;
    let vit = vit::recognise(&model.graph);
    Ok(Source {
        path: path.to_owned(),
        model,
        canon,
        vit,
        bytes,
        data,
        ops,
        reparameterized: Vec::new(),
        digest: OnceLock::new(),
    })
}

impl Source {
    /// Digest of the canonical model: what statistics and plans are tied to. It reads every weight, so it is made when it is
    /// first asked for.
    pub fn digest(&self) -> Digest {
        *self.digest.get_or_init(|| digest(&self.model))
    }

    /// Refuses a model without a block, convolution or Linear, and one that is quantised already.
    ///
    /// # Errors
    /// [`PipelineError::NothingToQuantise`].
    pub fn require_sites(&self) -> Result<(), PipelineError> {
        let found = !self.vit.blocks.is_empty() || !self.vit.general.is_empty() && !is_quantised(&self.model);
        if found {
            return Ok(());
        }
        let nearest = self.vit.near_misses.first().or(self.canon.near_misses.first());
        Err(PipelineError::NothingToQuantise {
            path: self.path.clone(),
            ops: histogram_line(&self.ops),
            nearest: match nearest {
                _ if is_quantised(&self.model) => "It is quantised already.".to_owned(),
                Some(n) => format!("The nearest thing to a block: {n}."),
                None => "Nothing in it resembles a block.".to_owned(),
            },
        })
    }

    /// The same source with its graph changed, in values that keep their names: plans and statistics of it are the source's.
    ///
    /// # Errors
    /// When the change leaves no valid graph.
    pub fn with_model(&self, change: impl FnOnce(&mut Edit<'_>)) -> Result<Source, PipelineError> {
        let mut model = self.model.clone();
        let mut edit = Edit::new(&mut model.graph);
        change(&mut edit);
        edit.commit().map_err(|e| PipelineError::Lower(e.into()))?;
        Ok(Source {
            path: self.path.clone(),
            model,
            canon: self.canon.clone(),
            vit: self.vit.clone(),
            bytes: self.bytes,
            data: self.data.clone(),
            ops: self.ops.clone(),
            reparameterized: self.reparameterized.clone(),
            digest: OnceLock::from(self.digest()),
        })
    }

    /// What a plan needs to know of the model.
    pub fn facts(&self) -> ModelFacts {
        let graph = &self.model.graph;
        let constant = |name: &String| Some((name.clone(), graph.constant(graph.value(name)?)?.clone()));
        ModelFacts {
            digest: self.digest().to_string(),
            sites: self.vit.sites.clone(),
            multiplied: self.vit.multiplied.clone(),
            accumulated: self.vit.accumulated.clone(),
            norms: self.vit.norms.clone(),
            reparameterized: self.reparameterized.clone(),
            constants: self.vit.sites.iter().filter(|s| s.weight).flat_map(|s| &s.values).filter_map(constant).collect(),
            before_gelu: self.vit.sites.iter().filter(|s| before_gelu(graph, s)).map(SiteRef::full_name).collect(),
        }
    }
}

/// Whether nothing but GELU reads a site's values.
fn before_gelu(graph: &Graph, site: &SiteRef) -> bool {
    let values: Vec<Value> = site.values.iter().filter_map(|name| graph.value(name)).collect();
    let carried = |u: &Use| values.contains(&Value { node: u.node, port: 0 });
    let readers: Vec<Use> = values.iter().flat_map(|&v| graph.uses(v)).filter(|u| !carried(u)).collect();
    !site.weight && !readers.is_empty() && readers.iter().all(|u| graph.is_op(u.node, "Gelu"))
}

/// SHA-256 over the model's encoded bytes; the contents of initialisers are hashed where they lie, after the rest, each behind
/// its length, so that no copy of the weights is made.
pub fn digest(model: &Model) -> Digest {
    let mut proto = onnx::to_proto(model);
    let tensors = proto.graph.iter_mut().flat_map(|g| g.initializer.iter_mut());
    let contents: Vec<bytes::Bytes> = tensors.filter_map(|t| t.raw_data.take()).collect();
    let mut hash = Sha256::new();
    hash.update(proto.encode_to_vec());
    for bytes in contents {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    Digest(hash.finalize().into())
}

/// Operators by type.
pub fn op_counts(model: &Model) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for id in model.graph.ops() {
        if let Some(op) = model.graph.op(id) {
            *counts.entry(op.op.to_string()).or_default() += 1;
        }
    }
    counts
}

/// Bytes of a model file and of the data files that its tensors name; a file that is not there counts nothing.
pub fn file_bytes(path: &Path, model: &Model) -> u64 {
    let size = |p: &Path| std::fs::metadata(p).map_or(0, |m| m.len());
    size(path) + data_files(path, model).iter().map(|f| size(f)).sum::<u64>()
}

/// The data files that a model read from `path` has its tensors in.
pub fn data_files(path: &Path, model: &Model) -> Vec<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let files: BTreeSet<&str> = model.graph.node_ids().into_iter().filter_map(|id| location(model, id)).collect();
    files.into_iter().map(|f| folder.join(f)).collect()
}

/// Bytes of a model as one file.
pub fn encoded_bytes(model: &Model) -> u64 {
    onnx::to_proto(model).encoded_len() as u64
}

fn location(model: &Model, id: crate::ir::NodeId) -> Option<&str> {
    let NodeKind::Init(Tensor { stored: Stored::External(entries), .. }) = &model.graph.get(id)?.kind else { return None };
    entries.iter().find(|(k, _)| k == "location").map(|(_, v)| v.as_str())
}

/// `31 Conv, 12 Relu and 4 other types`, the most frequent first.
fn histogram_line(ops: &BTreeMap<String, usize>) -> String {
    const SHOWN: usize = 8;
    let mut rows: Vec<(&String, &usize)> = ops.iter().collect();
    rows.sort_by_key(|&(name, n)| (std::cmp::Reverse(n), name));
    let shown: Vec<String> = rows.iter().take(SHOWN).map(|(name, n)| format!("{n} {name}")).collect();
    match rows.len().saturating_sub(SHOWN) {
        _ if rows.is_empty() => "no operators".to_owned(),
        0 => shown.join(", "),
        more => format!("{} and {more} other types", shown.join(", ")),
    }
}
