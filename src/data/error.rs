//! What can be wrong with data, in words a person can act on.

use std::path::PathBuf;

use super::preprocess::PreprocessError;
use crate::fs::WriteError;

/// Why data could not be opened, read or written. Every message is one paragraph that names the file and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The path does not exist.
    #[error("{}: no such file or folder. Give a folder of JPEG or PNG images, one image, an .npy or an .npz.", path.display())]
    Missing {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The operating system refused to read a file or folder.
    #[error("{}: cannot be read: {reason}.", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// A file that is neither an image nor an array.
    #[error("{}: not a kind of data that can be read. Give a folder of JPEG or PNG images, one JPEG or PNG image, an .npy or an .npz.", path.display())]
    UnknownKind {
        /// The file.
        path: PathBuf,
    },
    /// A folder in which there is no image.
    #[error("{}: no JPEG or PNG image in this folder{}. Put images into it (with a labels.csv, or in one sub-folder a class, or neither), or give another folder.", path.display(), ignored_clause(*ignored))]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
        /// How many files that are clearly no images it holds.
        ignored: usize,
    },
    /// A labels.csv that lists nothing.
    #[error("{}: lists no images. Give one row `file,label` for each image, or remove the file to use every image of the folder without labels.", path.display())]
    EmptyLabels {
        /// The labels.csv.
        path: PathBuf,
    },
    /// A labels.csv without the columns `file` and `label`.
    #[error("{}:1: the header must have the columns `file` and `label`, but it is `{found}`. Begin the file with the line `file,label`.", path.display())]
    LabelsHeader {
        /// The labels.csv.
        path: PathBuf,
        /// The header as it is.
        found: String,
    },
    /// A row of labels.csv that cannot be understood.
    #[error("{}:{line}: {reason}. Each row is `file,label`: a file name relative to this folder and a class number from 0.", path.display())]
    LabelsRow {
        /// The labels.csv.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A row of labels.csv that names a file that is not there.
    #[error("{}:{line}: names `{file}`, which does not exist in {}. Correct the name, restore the image or remove the row.", path.display(), folder.display())]
    LabelsMissingFile {
        /// The labels.csv.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The name in that row.
        file: String,
        /// The folder it should be in.
        folder: PathBuf,
    },
    /// A file among the images that is not known to be something else.
    #[error("{}: neither a JPEG nor a PNG image ({found}). Convert it, remove it, or list the wanted images in a labels.csv beside it.", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        found: String,
    },
    /// An image that cannot be decoded.
    #[error("{}: the image cannot be decoded: {reason}. Remove it or replace it by an intact JPEG or PNG.", path.display())]
    CorruptImage {
        /// The file.
        path: PathBuf,
        /// The decoder's words.
        reason: String,
    },
    /// An image that decodes but cannot be brought to the model's size.
    #[error("{}: {source}", path.display())]
    UnfitImage {
        /// The file.
        path: PathBuf,
        /// What stands in the way.
        source: PreprocessError,
    },
    /// Images, but no word on how the model wants them.
    #[error("{}: these are images, and how the model wants them is not known. Say it with --preprocess imagenet (DeiT and most others), inception (the augreg ViTs), clip or none, with a file (YAML, timm's config.json, preprocessor_config.json), or, where a command takes --config, in its section `preprocess`.", path.display())]
    NeedsPreprocess {
        /// The dataset's path.
        path: PathBuf,
    },
    /// A preprocessing that makes no sense.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// Bytes that are not an .npy or .npz file.
    #[error("{}: {what} cannot be read: {reason}. Save it again with numpy.save or numpy.savez.", path.display())]
    CorruptArray {
        /// The file.
        path: PathBuf,
        /// Which array, or the whole file.
        what: String,
        /// The reader's words.
        reason: String,
    },
    /// A label that is no class number.
    #[error("{}: {what} has the label {label} at [{at}], but labels are class numbers from 0: correct it, or leave the sample out.", path.display())]
    NoClass {
        /// The file.
        path: PathBuf,
        /// Which array.
        what: String,
        /// The label.
        label: String,
        /// Its place.
        at: usize,
    },
    /// An array of an element type that is not used.
    #[error("{}: {what} has the element type {found}, but {wanted}.", path.display())]
    ArrayDtype {
        /// The file.
        path: PathBuf,
        /// Which array.
        what: String,
        /// Its numpy descriptor.
        found: String,
        /// What is needed and how to get it.
        wanted: &'static str,
    },
    /// An array whose shape is not that of the model's input.
    #[error("{}: {what} has the shape [{}], but {wanted}.", path.display(), join(found))]
    ArrayShape {
        /// The file.
        path: PathBuf,
        /// Which array.
        what: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shapes that would do.
        wanted: String,
    },
    /// Arrays whose names are not those of the model's inputs.
    #[error("{}: holds {found}, but {wanted}.", path.display())]
    ArrayNames {
        /// The file.
        path: PathBuf,
        /// The arrays found, in words.
        found: String,
        /// The names needed.
        wanted: String,
    },
    /// NaN or infinity in an array.
    #[error("{}: {what} holds {value} at {index}. Every value must be finite: look for a division by zero or an overflow where the array was made.", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Which array or sample.
        what: String,
        /// `NaN`, `inf` or `-inf`.
        value: String,
        /// The index of the first such value.
        index: String,
    },
    /// A sample number past the end.
    #[error("{}: sample {index} was asked for, but there are {len} (counted from 0).", path.display())]
    OutOfRange {
        /// The dataset's path.
        path: PathBuf,
        /// The number asked for.
        index: usize,
        /// How many samples there are.
        len: usize,
    },
    /// An output could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl DataError {
    pub(super) fn read(path: &std::path::Path, e: &std::io::Error) -> Self {
        if e.kind() == std::io::ErrorKind::NotFound {
            return Self::Missing { path: path.to_path_buf() };
        }
        Self::Read { path: path.to_path_buf(), reason: e.to_string() }
    }
}

fn ignored_clause(ignored: usize) -> String {
    match ignored {
        0 => String::new(),
        1 => " (1 other file was ignored)".to_owned(),
        n => format!(" ({n} other files were ignored)"),
    }
}

fn join(shape: &[usize]) -> String {
    let parts: Vec<String> = shape.iter().map(ToString::to_string).collect();
    parts.join(", ")
}
