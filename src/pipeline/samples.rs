//! Data as a model takes it: one array an input, batch axis in front.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ndarray::{ArrayD, Axis, concatenate};
use sha2::{Digest as _, Sha256};

use super::PipelineError;
use crate::calib::run::{Failure, Named};
use crate::calib::{Digest, SampleSource, Stats};
use crate::config::{self, Preprocessing};
use crate::data::{Channels, DataError, Dataset, InputSpec, Options, PRESETS, Preprocess};
use crate::ir::{Dim, Model, NodeKind, Value};
use crate::runtime::tract::EngineOptions;

/// What a user says of the data.
#[derive(Debug, Clone, Default)]
pub struct DataOptions {
    /// Name of a preprocessing preset (`imagenet`, `inception`, `clip` or `none`) or a file that
    /// [`config::load_preprocessing`] reads. Needed for images, unless `section` is there.
    pub preprocess: Option<String>,
    /// The configuration's section, used where `preprocess` is absent.
    pub section: Option<Preprocessing>,
    /// Side of the model's input image in pixels; the model's own when it is fixed.
    pub input_size: Option<usize>,
    /// Share of the resized image that the centre crop keeps, in (0, 1]; the preset's own when absent.
    pub crop_pct: Option<f64>,
    /// At most this many samples.
    pub limit: Option<usize>,
    /// Whether an image that cannot be decoded is left out instead of being an error.
    pub skip_corrupt: bool,
}

/// How a model is fed.
#[derive(Debug, Clone)]
pub struct Feed {
    path: PathBuf,
    inputs: Vec<InputSpec>,
    /// The size of the batch axis, when the model fixes it.
    fixed: Option<usize>,
    batch: usize,
    /// Side of the square image and its channels, when the model takes images.
    image: Option<(usize, Channels)>,
    /// Why the model takes no images.
    no_image: String,
    options: DataOptions,
    preprocessing: Option<Preprocessing>,
}

impl Feed {
    /// From the model's inputs and what the user says of the data.
    ///
    /// # Errors
    /// When an input has no usable shape, or `--input-size` contradicts it.
    pub fn new(path: &Path, model: &Model, options: &DataOptions) -> Result<Feed, PipelineError> {
        let fail = |what: String| PipelineError::Input { path: path.to_owned(), what };
        let graph = &model.graph;
        let (mut inputs, mut batch) = (Vec::new(), None::<usize>);
        for &id in graph.inputs() {
            if !matches!(graph.get(id).map(|n| &n.kind), Some(NodeKind::Input)) {
                continue;
            }
            let value = Value { node: id, port: 0 };
            let name = graph.value_name(value).to_owned();
            let shape = graph.info(value).and_then(|i| i.tensor_type()).and_then(|t| t.shape.as_deref());
            let Some([first, rest @ ..]) = shape else {
                return Err(fail(format!("the input '{name}' has no shape with a batch axis: export the model with one")));
            };
            match first.value() {
                Some(0) => {
                    return Err(fail(format!("the input '{name}' takes batches of 0: export the model with an open batch")));
                }
                Some(n) if batch.replace(n).is_some_and(|b| b != n) => {
                    return Err(fail(format!(
                        "the input '{name}' takes batches of {n}, unlike another input: export the model with one batch axis"
                    )));
                }
                _ => {}
            }
            inputs.push(InputSpec { name, shape: rest.iter().map(Dim::value).collect() });
        }
        if inputs.is_empty() {
            return Err(fail("the model has no input to feed: export it again".to_owned()));
        }
        let mut feed = Feed {
            path: path.to_owned(),
            inputs,
            fixed: batch,
            batch: batch.unwrap_or(1),
            image: None,
            no_image: String::new(),
            options: options.clone(),
            preprocessing: preprocessing(options)?,
        };
        match feed.find_image().map_err(fail)? {
            Ok(image) => feed.image = Some(image),
            Err(why) => feed.no_image = why,
        }
        if let (Some((size, _)), [one]) = (feed.image, feed.inputs.as_mut_slice()) {
            for d in one.shape.iter_mut().skip(1) {
                *d = Some(size);
            }
        }
        Ok(feed)
    }

    /// The image that the model takes, or why it takes none; an error when the user's word contradicts the model.
    fn find_image(&self) -> Result<Result<(usize, Channels), String>, String> {
        let [input] = self.inputs.as_slice() else {
            return Ok(Err(format!(
                "it has {} inputs, and an image is one: give an .npz with an array for each",
                self.inputs.len()
            )));
        };
        let name = &input.name;
        let [channels, height, width] = input.shape[..] else {
            return Ok(Err(format!(
                "its input '{name}' has {} axes, not [batch, channels, height, width]: give an .npy or .npz",
                input.shape.len() + 1
            )));
        };
        let said = self.preprocessing.as_ref().and_then(|p| p.input_size);
        let (asked, by) = match self.options.input_size {
            Some(n) => (Some(n), "--input-size"),
            None => (said, "the preprocessing's input_size"),
        };
        let size = match (height, width, asked) {
            (Some(h), Some(w), _) if h != w => {
                return Ok(Err(format!(
                    "its input '{name}' takes {w} × {h} pixels, and the preprocessing makes squares: give an .npy or .npz"
                )));
            }
            (Some(n), _, Some(asked)) | (_, Some(n), Some(asked)) if n != asked => {
                return Err(format!(
                    "{by} {asked} was given, but the model's input '{name}' takes {n} × {n} pixels: leave {by} out, or export the model for {asked} × {asked}"
                ));
            }
            (Some(n), ..) | (_, Some(n), _) | (None, None, Some(n)) => n,
            (None, None, None) => {
                return Ok(Err(format!(
                    "its input '{name}' leaves height and width open: give the side of the image with --input-size"
                )));
            }
        };
        // Exporters that leave every axis open still mean colour.
        match Channels::from_count(channels.unwrap_or(3)) {
            Some(c) => Ok(Ok((size, c))),
            None => Ok(Err(format!(
                "its input '{name}' has {} channels on axis 1, and an image file has 1 or 3: give an .npy or .npz, or export the model with the channels on axis 1",
                channels.unwrap_or(0)
            ))),
        }
    }

    /// The batch that the model is fixed to; 1 when it is open.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Refuses a model that cannot be fed what `other` is fed.
    ///
    /// # Errors
    /// When their inputs differ in name or shape, or its batch is fixed to another size.
    pub fn check_same(&self, other: &Feed) -> Result<(), PipelineError> {
        let fits = |a: &InputSpec, b: &InputSpec| {
            let open = |(x, y): (&Option<usize>, &Option<usize>)| x.is_none() || y.is_none() || x == y;
            a.name == b.name && a.shape.len() == b.shape.len() && a.shape.iter().zip(&b.shape).all(open)
        };
        let same = self.inputs.len() == other.inputs.len() && self.inputs.iter().zip(&other.inputs).all(|(a, b)| fits(a, b));
        if same && self.fixed.is_none_or(|n| n == other.batch) {
            return Ok(());
        }
        let show = |f: &Feed| {
            let dims = |i: &InputSpec| {
                i.shape.iter().map(|d| d.map_or("?".to_owned(), |d| d.to_string())).collect::<Vec<_>>().join(", ")
            };
            let list: Vec<String> = f.inputs.iter().map(|i| format!("'{}' [{}, {}]", i.name, f.batch, dims(i))).collect();
            list.join(" and ")
        };
        Err(PipelineError::Input {
            path: self.path.clone(),
            what: format!(
                "it takes {}, and {} takes {}: two models are compared on the same input",
                show(self),
                other.path.display(),
                show(other)
            ),
        })
    }

    /// The shapes that make the model concrete for the executor.
    pub fn engine_options(&self) -> EngineOptions {
        let whole = |i: &InputSpec| -> Option<(String, Vec<usize>)> {
            let mut shape = vec![self.batch];
            let open_channels = self.image.map(|(_, c)| c.count());
            for (axis, d) in i.shape.iter().enumerate() {
                shape.push(d.or(if axis == 0 { open_channels } else { None })?);
            }
            Some((i.name.clone(), shape))
        };
        EngineOptions { batch: self.batch, input_shapes: self.inputs.iter().filter_map(whole).collect() }
    }

    /// Opens a folder of images, an image, an .npy or an .npz.
    ///
    /// # Errors
    /// When there is no such data, or it does not fit the model.
    pub fn open(&self, path: &Path) -> Result<Samples, PipelineError> {
        let mut preprocess = None;
        if let (Some(wanted), false) = (&self.preprocessing, is_array(path)) {
            let Some((size, _)) = self.image else {
                return Err(PipelineError::Input {
                    path: self.path.clone(),
                    what: format!("the model takes no images: {}", self.no_image),
                });
            };
            let mut p = wanted.resolve(size)?;
            if let Some(crop) = self.options.crop_pct {
                p.crop_pct = crop;
            }
            p.validate()?;
            preprocess = Some(p);
        }
        let options = Options {
            preprocess: preprocess.clone(),
            channels: self.image.map(|(_, c)| c).unwrap_or_default(),
            limit: self.options.limit,
            inputs: self.inputs.clone(),
        };
        let dataset = Dataset::open(path, &options)?;
        if dataset.is_empty() {
            return Err(DataError::EmptyFolder { path: path.to_owned(), ignored: 0 }.into());
        }
        let inputs = self.inputs.iter().map(|i| i.name.clone()).collect();
        let mut notes = dataset.notes().to_vec();
        if is_array(path) && (self.options.preprocess.is_some() || self.options.crop_pct.is_some()) {
            notes.push(format!(
                "{} holds what the model reads: preprocessing is for images and changes nothing in it",
                path.display()
            ));
        }
        Ok(Samples {
            dataset,
            notes,
            inputs,
            batch: self.batch,
            preprocess,
            skip_corrupt: self.options.skip_corrupt,
            skipped: Mutex::default(),
            digest: OnceLock::new(),
        })
    }
}

/// What the user says of the preprocessing: a preset goes before a file of the same name.
fn preprocessing(options: &DataOptions) -> Result<Option<Preprocessing>, PipelineError> {
    match &options.preprocess {
        None => Ok(options.section.clone()),
        Some(name) if !PRESETS.contains(&name.as_str()) && Path::new(name).is_file() => {
            Ok(Some(config::load_preprocessing(Path::new(name))?))
        }
        Some(name) => {
            Preprocess::preset(name, 1)?;
            Ok(Some(Preprocessing::preset(name)))
        }
    }
}

fn is_array(path: &Path) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    path.is_file() && matches!(ending.as_deref(), Some("npy" | "npz"))
}

/// Samples in groups of the model's batch.
#[derive(Debug)]
pub struct Samples {
    dataset: Dataset,
    notes: Vec<String>,
    inputs: Vec<String>,
    batch: usize,
    preprocess: Option<Preprocess>,
    skip_corrupt: bool,
    /// Why groups were skipped, in words.
    skipped: Mutex<BTreeMap<usize, String>>,
    digest: OnceLock<Digest>,
}

/// One batch as the model takes it.
#[derive(Debug)]
pub struct Group {
    /// An array for each input.
    pub inputs: Named,
    /// The samples' names; shorter than the batch when the data end within it.
    pub names: Vec<String>,
    /// The samples' labels.
    pub labels: Vec<Option<usize>>,
}

impl Samples {
    /// The data.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// How many samples the model takes at once.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// What was left out or may surprise, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// How many groups cover all samples; the last may be padded.
    pub fn groups(&self) -> usize {
        self.dataset.len().div_ceil(self.batch)
    }

    /// The samples of a calibration that whole batches leave over.
    pub fn left_over(&self) -> usize {
        if self.dataset.len() < self.batch { 0 } else { self.dataset.len() % self.batch }
    }

    /// Reads group `g` as [`Samples::group`] does; `None` if an image in it cannot be decoded and such are to be skipped.
    ///
    /// # Errors
    /// When a sample cannot be read.
    pub fn group_or_skip(&self, g: usize) -> Result<Option<Group>, DataError> {
        match self.group(g) {
            Err(e @ (DataError::CorruptImage { .. } | DataError::UnfitImage { .. })) if self.skip_corrupt => {
                self.skipped.lock().unwrap_or_else(PoisonError::into_inner).insert(g, e.to_string());
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// What `--skip-corrupt` left out of a calibration, one sentence; the same whatever the threads and however often the
    /// calibration was resumed, save that a reason is known only of what this run has tried itself.
    pub fn skipped_note(&self, stats: &Stats) -> Option<String> {
        const NAMED: usize = 10;
        let skipped = stats.skipped();
        if skipped.is_empty() {
            return None;
        }
        let reasons = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        let why = |&index: &u64| {
            let group = usize::try_from(index).unwrap_or(usize::MAX);
            let known = reasons.get(&group).map(|r| r.trim_end_matches('.').to_owned());
            known.unwrap_or_else(|| self.name(group))
        };
        let mut list: Vec<String> = skipped.iter().take(NAMED).map(why).collect();
        if skipped.len() > NAMED {
            list.push(format!("and {} more", skipped.len() - NAMED));
        }
        let what = if self.batch == 1 { "samples" } else { "batches" };
        let seen = stats.samples().len() + skipped.len();
        Some(format!("{} of {seen} {what} were skipped: {}", skipped.len(), list.join("; ")))
    }

    /// Reads group `g`; a short last group is padded with its last sample.
    ///
    /// # Errors
    /// When a sample cannot be read.
    pub fn group(&self, g: usize) -> Result<Group, DataError> {
        let first = g * self.batch;
        let last = (first + self.batch).min(self.dataset.len());
        let mut out = Group { inputs: Vec::new(), names: Vec::new(), labels: Vec::new() };
        let mut columns: Vec<Vec<ArrayD<f32>>> = vec![Vec::new(); self.inputs.len()];
        for i in first..last {
            let sample = self.dataset.sample(i)?;
            out.names.push(sample.name);
            out.labels.push(sample.label);
            for (position, (name, array)) in sample.inputs.into_iter().enumerate() {
                let at = name.and_then(|n| self.inputs.iter().position(|i| *i == n)).unwrap_or(position);
                if let Some(column) = columns.get_mut(at) {
                    column.push(array.insert_axis(Axis(0)));
                }
            }
        }
        for (name, mut column) in self.inputs.iter().zip(columns) {
            while let (Some(pad), true) = (column.last().cloned(), column.len() < self.batch) {
                column.push(pad);
            }
            let array = match column.len() {
                1 => column.remove(0),
                _ => {
                    let views: Vec<_> = column.iter().map(|a| a.view()).collect();
                    concatenate(Axis(0), &views).map_err(|e| DataError::ArrayShape {
                        path: self.dataset.path().to_owned(),
                        what: format!("the batch of '{name}'"),
                        found: Vec::new(),
                        wanted: format!("samples of one batch need one shape ({e})"),
                    })?
                }
            };
            out.inputs.push((name.clone(), array));
        }
        Ok(out)
    }
}

/// For calibration a sample is a whole batch: nothing is padded, because a repeated image would count twice.
impl SampleSource for Samples {
    fn len(&self) -> usize {
        self.dataset.len() / self.batch
    }

    fn get(&self, i: usize) -> Result<Option<Named>, Failure> {
        Ok(self.group_or_skip(i)?.map(|group| group.inputs))
    }

    fn name(&self, i: usize) -> String {
        self.dataset.name(i * self.batch).unwrap_or_else(|| i.to_string())
    }

    fn digest(&self) -> Digest {
        // Names and file sizes, not contents: those would be read twice. Nothing of where the folder is.
        *self.digest.get_or_init(|| {
            let mut hash = Sha256::new();
            hash.update(format!("{:?} {} {}\n", self.preprocess, self.batch, self.dataset.len()));
            for i in 0..self.dataset.len() {
                hash.update(self.dataset.name(i).unwrap_or_default());
                hash.update(format!("\n{}\n", self.dataset.file_size(i)));
            }
            Digest(hash.finalize().into())
        })
    }
}
