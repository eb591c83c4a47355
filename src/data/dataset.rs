//! One path, many samples.

use std::path::{Path, PathBuf};

use ndarray::{ArrayD, ArrayViewD, Axis};

use super::arrays::{self, Npy};
use super::decode::{self, Channels};
use super::error::DataError;
use super::folder::{self, Entry};
use super::preprocess::Preprocess;

/// A model's input as the data must fit it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    /// The input's name in the model.
    pub name: String,
    /// Its shape without the batch axis; `None` where any length will do.
    pub shape: Vec<Option<usize>>,
}

/// How to open a dataset.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How images become tensors; needed for images, unused for arrays.
    pub preprocess: Option<Preprocess>,
    /// The channels that the model takes from an image.
    pub channels: Channels,
    /// At most this many samples: the first ones, except for one sub-folder a class, where they are spread evenly over
    /// all images so that no class is left out for its name.
    pub limit: Option<usize>,
    /// The model's inputs, against which arrays are checked. If empty, an array is `[N, C, H, W]` or `[C, H, W]`.
    pub inputs: Vec<InputSpec>,
}

/// One sample: what the model takes for one image, without a batch axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The image's path relative to the folder, or `file.npy[3]`.
    pub name: String,
    /// One array for each input in C order, with the input's name where it is known.
    pub inputs: Vec<(Option<String>, ArrayD<f32>)>,
    /// The class number.
    pub label: Option<usize>,
}

/// Samples in a fixed order, read when asked for; may be shared between threads.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    source: Source,
    /// Index in the source of every sample.
    order: Vec<usize>,
    labels: Option<Vec<usize>>,
    classes: Option<Vec<String>>,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Source {
    Images { entries: Vec<Entry>, preprocess: Preprocess, channels: Channels },
    Arrays(Vec<Column>),
}

/// One input of every sample.
#[derive(Debug)]
struct Column {
    /// The model's input, if known, else the name in the file.
    name: Option<String>,
    /// How messages call the array.
    what: String,
    data: Npy,
    /// Whether the first axis counts the samples.
    batched: bool,
    /// How many samples there are.
    len: usize,
}

impl Dataset {
    /// Opens a folder of images (with a `labels.csv` of `file,label` rows; or flat; or one sub-folder a class, whose
    /// label is its place in the order of names), one image, an `.npy` or an `.npz`.
    ///
    /// The order of the samples is that of labels.csv, else that of the names in byte order. Only the list is made here:
    /// images are decoded by [`Dataset::sample`]. In an `.npz` the arrays are named as the model's inputs, and `labels`
    /// or `y` holds the class numbers.
    ///
    /// # Errors
    /// [`DataError`] if there is nothing at the path, nothing usable in it, or the arrays do not fit `options.inputs`.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self, DataError> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(|e| DataError::read(path, &e))?;
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let mut dataset = match ending.as_deref() {
            _ if meta.is_dir() => Self::images(path, folder::list(path)?, options)?,
            Some("jpg" | "jpeg" | "png") => {
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                let entries = vec![Entry { path: path.to_path_buf(), name, label: None }];
                Self::images(path, folder::Listing { entries, ..Default::default() }, options)?
            }
            Some("npy") => Self::npy(path, options)?,
            Some("npz") => Self::npz(path, options)?,
            _ => {
                return Err(DataError::UnknownKind { path: path.to_path_buf() });
            }
        };
        if let Some(limit) = options.limit {
            dataset.limit(limit);
        }
        Ok(dataset)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none, as only a limit of 0 makes it.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The class number of every sample, if they are known.
    pub fn labels(&self) -> Option<Vec<usize>> {
        let labels = self.labels.as_ref()?;
        self.order.iter().map(|&i| labels.get(i).copied()).collect()
    }

    /// The names of the classes, if there is one sub-folder a class; the index is the label.
    pub fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    /// What was left out or may surprise, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The name of sample `index` (see [`Sample::name`]), without reading it; `None` past the end.
    pub fn name(&self, index: usize) -> Option<String> {
        let i = *self.order.get(index)?;
        match &self.source {
            Source::Images { entries, .. } => entries.get(i).map(|e| e.name.clone()),
            Source::Arrays(_) => {
                let file = self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                Some(format!("{file}[{i}]"))
            }
        }
    }

    /// Bytes of the file that sample `index` is in; 0 past the end, or if the file is gone.
    pub fn file_size(&self, index: usize) -> u64 {
        let file = match &self.source {
            Source::Images { entries, .. } => self.order.get(index).and_then(|&i| entries.get(i)).map(|e| e.path.as_path()),
            Source::Arrays(_) => Some(self.path.as_path()),
        };
        file.and_then(|f| std::fs::metadata(f).ok()).map_or(0, |m| m.len())
    }

    /// Reads sample `index`, counted from 0.
    ///
    /// # Errors
    /// [`DataError`] if the image cannot be decoded, an array holds a value that is not finite, or the index is past the
    /// end.
    pub fn sample(&self, index: usize) -> Result<Sample, DataError> {
        let out_of_range = || DataError::OutOfRange { path: self.path.clone(), index, len: self.order.len() };
        let i = *self.order.get(index).ok_or_else(out_of_range)?;
        let label = self.labels.as_ref().and_then(|l| l.get(i).copied());
        match &self.source {
            Source::Images { entries, preprocess, channels } => {
                let entry = entries.get(i).ok_or_else(out_of_range)?;
                let pixels = decode::decode(&entry.path, *channels, preprocess.exif_orientation)?;
                let image = preprocess
                    .apply(&pixels, *channels)
                    .map_err(|source| DataError::UnfitImage { path: entry.path.clone(), source })?;
                Ok(Sample { name: entry.name.clone(), inputs: vec![(None, image.into_dyn())], label })
            }
            Source::Arrays(columns) => {
                let file = self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                let inputs =
                    columns.iter().map(|c| Ok((c.name.clone(), c.sample(&self.path, i)?))).collect::<Result<_, DataError>>()?;
                Ok(Sample { name: format!("{file}[{i}]"), inputs, label })
            }
        }
    }

    fn images(path: &Path, listing: folder::Listing, options: &Options) -> Result<Self, DataError> {
        let preprocess = options.preprocess.clone().ok_or_else(|| DataError::NeedsPreprocess { path: path.to_path_buf() })?;
        preprocess.validate()?;
        let labels = listing.entries.iter().map(|e| e.label).collect();
        Ok(Self {
            path: path.to_path_buf(),
            order: (0..listing.entries.len()).collect(),
            labels,
            classes: listing.classes,
            notes: listing.notes,
            source: Source::Images { entries: listing.entries, preprocess, channels: options.channels },
        })
    }

    fn npy(path: &Path, options: &Options) -> Result<Self, DataError> {
        let data = Npy::open(path)?;
        let spec = match options.inputs.as_slice() {
            [] => None,
            [one] => Some(one),
            many => {
                let wanted =
                    format!("the model has {} inputs ({}): save them in one .npz under these names", many.len(), names(many));
                return Err(DataError::ArrayNames {
                    path: path.to_path_buf(),
                    found: "one array without a name".to_owned(),
                    wanted,
                });
            }
        };
        let column = Column::new(path, None, data, spec)?;
        Ok(Self::arrays(path, vec![column], None, Vec::new()))
    }

    fn npz(path: &Path, options: &Options) -> Result<Self, DataError> {
        let mut npz = arrays::open_npz(path)?;
        let all = arrays::npz_names(&mut npz, path)?;
        let is_input = |name: &str| options.inputs.iter().any(|s| s.name == name);
        let is_label = |name: &str| matches!(name, "labels" | "y") && !is_input(name);
        let found: Vec<&String> = all.iter().filter(|n| !is_label(n)).collect();
        let name_error = |wanted: String| {
            let quoted: Vec<String> = all.iter().map(|n| format!("`{n}`")).collect();
            let found = match all.len() {
                1 => format!("the array {}", quoted.join("")),
                _ => format!("the arrays {}", quoted.join(", ")),
            };
            DataError::ArrayNames { path: path.to_path_buf(), found, wanted }
        };
        let mut notes = Vec::new();
        // (name in the file, the input it is for)
        let chosen: Vec<(&String, Option<&InputSpec>)> = match (found.as_slice(), options.inputs.as_slice()) {
            ([], _) => return Err(name_error("one must be the model's input".to_owned())),
            (_, []) => found.iter().map(|n| (*n, None)).collect(),
            ([one], [spec]) => vec![(*one, Some(spec))],
            (_, specs) => {
                let pairs = specs.iter().map(|s| found.iter().find(|n| ***n == s.name).map(|n| (*n, Some(s))));
                let pairs: Option<Vec<_>> = pairs.collect();
                let pairs = pairs.ok_or_else(|| {
                    name_error(format!("the model's inputs are {}: use these names in numpy.savez", names(specs)))
                })?;
                let unused: Vec<_> = found.iter().filter(|n| !is_input(n)).map(|n| format!("`{n}`")).collect();
                if !unused.is_empty() {
                    notes.push(format!("{}: {} left out: no such input", path.display(), unused.join(", ")));
                }
                pairs
            }
        };
        let mut columns = Vec::with_capacity(chosen.len());
        for (name, spec) in chosen {
            let data = Npy::Memory(arrays::npz_floats(&mut npz, path, name)?);
            columns.push(Column::new(path, Some(name), data, spec)?);
        }
        check_lengths(path, &columns)?;
        let labels = match all.iter().find(|n| is_label(n)) {
            Some(name) => {
                let labels = arrays::npz_labels(&mut npz, path, name)?;
                let len = columns.first().map_or(0, |c| c.len);
                if labels.len() != len {
                    return Err(DataError::ArrayShape {
                        path: path.to_path_buf(),
                        what: arrays::what(Some(name)),
                        found: vec![labels.len()],
                        wanted: format!("there are {len} samples, and each needs one label"),
                    });
                }
                Some(labels)
            }
            None => None,
        };
        Ok(Self::arrays(path, columns, labels, notes))
    }

    fn arrays(path: &Path, columns: Vec<Column>, labels: Option<Vec<usize>>, notes: Vec<String>) -> Self {
        let len = columns.first().map_or(0, |c| c.len);
        Self {
            path: path.to_path_buf(),
            source: Source::Arrays(columns),
            order: (0..len).collect(),
            labels,
            classes: None,
            notes,
        }
    }

    fn limit(&mut self, limit: usize) {
        let n = self.order.len();
        if limit >= n {
            return;
        }
        if self.classes.is_some() {
            self.order = (0..limit).map(|i| (i as u128 * n as u128 / limit as u128) as usize).collect();
        } else {
            self.order.truncate(limit);
        }
    }
}

impl Column {
    /// `name` is the array's name in the file.
    fn new(path: &Path, name: Option<&str>, data: Npy, spec: Option<&InputSpec>) -> Result<Self, DataError> {
        let shape = data.with_view(path, |v| v.shape().to_vec())?;
        let what = arrays::what(name);
        let error =
            |wanted: String| DataError::ArrayShape { path: path.to_path_buf(), what: what.clone(), found: shape.clone(), wanted };
        let batched = match spec {
            None => match shape.len() {
                4 => true,
                3 => false,
                _ => {
                    return Err(error("samples are [N, C, H, W], or one sample [C, H, W]".to_owned()));
                }
            },
            Some(spec) => {
                let fits = |s: &[usize]| {
                    s.len() == spec.shape.len() && s.iter().zip(&spec.shape).all(|(d, w)| w.is_none_or(|w| w == *d))
                };
                if fits(&shape) {
                    false
                } else if shape.get(1..).is_some_and(fits) {
                    true
                } else {
                    let dims: Vec<String> = spec.shape.iter().map(|d| d.map_or("any".to_owned(), |d| d.to_string())).collect();
                    let dims = dims.join(", ");
                    return Err(error(format!("the model's input `{}` takes [N, {dims}], or one sample [{dims}]", spec.name)));
                }
            }
        };
        let len = if batched { shape.first().copied().unwrap_or(0) } else { 1 };
        if shape.contains(&0) {
            return Err(error("it must hold at least one sample of at least one value".to_owned()));
        }
        let name = spec.map(|s| s.name.as_str()).or(name).map(str::to_owned);
        Ok(Self { name, what, data, batched, len })
    }

    /// Sample `i` as its own array.
    fn sample(&self, path: &Path, i: usize) -> Result<ArrayD<f32>, DataError> {
        let what = match self.batched {
            true => format!("sample {i} of {}", self.what),
            false => self.what.clone(),
        };
        self.data.with_view(path, |view: ArrayViewD<'_, f32>| {
            let one = if self.batched { view.index_axis_move(Axis(0), i) } else { view };
            arrays::check_finite(path, &what, &one)?;
            Ok(arrays::standard(one.to_owned()))
        })?
    }
}

fn check_lengths(path: &Path, columns: &[Column]) -> Result<(), DataError> {
    let Some(first) = columns.first() else {
        return Ok(());
    };
    for c in columns {
        if c.len != first.len {
            return Err(DataError::ArrayShape {
                path: path.to_path_buf(),
                what: c.what.clone(),
                found: c.data.with_view(path, |v| v.shape().to_vec())?,
                wanted: format!("{} holds {} samples: every array must hold the same number", first.what, first.len),
            });
        }
    }
    Ok(())
}

fn names(specs: &[InputSpec]) -> String {
    specs.iter().map(|s| format!("`{}`", s.name)).collect::<Vec<_>>().join(", ")
}
