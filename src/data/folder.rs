//! Which files of a folder are the images, in which order, with which labels.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::decode::is_image;
use super::error::DataError;

/// One image of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Its path relative to the folder, with `/` between the parts.
    pub(super) name: String,
    /// Its class number.
    pub(super) label: Option<usize>,
}

/// The images of a folder.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// In the dataset's order.
    pub(super) entries: Vec<Entry>,
    /// Names of the classes if there is one sub-folder a class.
    pub(super) classes: Option<Vec<String>>,
    /// What was left out, in words.
    pub(super) notes: Vec<String>,
}

/// Endings of files that stand beside images and are clearly none.
const IGNORED: [&str; 13] = ["txt", "md", "csv", "tsv", "json", "yaml", "yml", "xml", "html", "db", "ini", "log", "py"];
const IGNORED_NAMES: [&str; 4] = ["README", "LICENSE", "LICENCE", "NOTICE"];
/// Deepest nesting inside a class folder; guards against symbolic links in a circle.
const MAX_DEPTH: usize = 8;

/// Lists a folder: by its labels.csv if there is one, else its images, else its sub-folders as classes.
pub(super) fn list(folder: &Path) -> Result<Listing, DataError> {
    let labels = folder.join("labels.csv");
    if labels.is_file() {
        return by_labels_csv(folder, &labels);
    }
    let mut scan = Scan::default();
    let sub_folders = scan.folder(folder, "")?;
    if !scan.found.is_empty() {
        let mut notes = scan.notes();
        if !sub_folders.is_empty() {
            notes.push(format!(
                "{}: {} are left out because there are images in the folder itself",
                folder.display(),
                count(sub_folders.len(), "sub-folder")
            ));
        }
        let entries = scan.found.into_iter().map(|(name, path)| Entry { path, name, label: None }).collect();
        return Ok(Listing { entries, classes: None, notes });
    }
    by_class(folder, sub_folders, scan.ignored)
}

fn by_class(folder: &Path, classes: Vec<String>, ignored: usize) -> Result<Listing, DataError> {
    let mut listing = Listing::default();
    let mut total = Scan { ignored, ..Scan::default() };
    for (label, class) in classes.iter().enumerate() {
        let mut scan = Scan::default();
        scan.tree(&folder.join(class), class, 0)?;
        if scan.found.is_empty() {
            listing.notes.push(format!("{}: class folder `{class}` (label {label}) has no images", folder.display()));
        }
        total.ignored += scan.ignored;
        scan.found.sort();
        let entries = scan.found.into_iter().map(|(name, path)| Entry { path, name, label: Some(label) });
        listing.entries.extend(entries);
    }
    if listing.entries.is_empty() {
        return Err(DataError::EmptyFolder { path: folder.to_path_buf(), ignored: total.ignored });
    }
    let numbers: Option<Vec<usize>> = classes.iter().map(|c| c.parse().ok()).collect();
    if numbers.is_some_and(|n| n.iter().enumerate().any(|(label, &v)| label != v)) {
        listing.notes.push(format!(
            "{}: the class folders are numbers, but a label is a folder's place in the order of names (as in \
             torchvision's ImageFolder), so `{}` is label 0 and so on; write a labels.csv if the numbers are the labels",
            folder.display(),
            classes.first().map_or("", String::as_str)
        ));
    }
    listing.notes.extend(total.notes());
    listing.classes = Some(classes);
    Ok(listing)
}

fn by_labels_csv(folder: &Path, path: &Path) -> Result<Listing, DataError> {
    let bytes = std::fs::read(path).map_err(|e| DataError::read(path, &e))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(bytes);
    let row_error = |line: u64, reason: String| DataError::LabelsRow { path: path.to_path_buf(), line, reason };
    let csv_error = |e: &csv::Error| row_error(e.position().map_or(1, csv::Position::line), describe(e));
    let header = reader.headers().map_err(|e| csv_error(&e))?.clone();
    let column = |name: &str| header.iter().position(|h| h == name);
    let (Some(file_column), Some(label_column)) = (column("file"), column("label")) else {
        let found = header.iter().collect::<Vec<_>>().join(",");
        return Err(DataError::LabelsHeader { path: path.to_path_buf(), found });
    };
    let mut entries = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| csv_error(&e))?;
        let line = record.position().map_or(0, |p| line_of(bytes, p));
        let name = record.get(file_column).filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| row_error(line, "has no file name".to_owned()))?;
        let label = record.get(label_column).unwrap_or_default();
        let label: usize = match label.parse() {
            Ok(label) => label,
            Err(_) if label.is_empty() => return Err(row_error(line, "has no label".to_owned())),
            Err(_) => return Err(row_error(line, format!("`{label}` is not a class number"))),
        };
        let image = folder.join(name);
        if !image.is_file() {
            return Err(DataError::LabelsMissingFile {
                path: path.to_path_buf(),
                line,
                file: name.to_owned(),
                folder: folder.to_path_buf(),
            });
        }
        entries.push(Entry { path: image, name: name.to_owned(), label: Some(label) });
    }
    if entries.is_empty() {
        return Err(DataError::EmptyLabels { path: path.to_path_buf() });
    }
    let notes = unlisted(folder, &entries)?;
    Ok(Listing { entries, classes: None, notes })
}

/// Says how many images of the folder itself a labels.csv does not name.
fn unlisted(folder: &Path, entries: &[Entry]) -> Result<Vec<String>, DataError> {
    let listed: BTreeSet<&Path> = entries.iter().map(|e| e.path.as_path()).collect();
    let mut left = 0;
    for item in std::fs::read_dir(folder).map_err(|e| DataError::read(folder, &e))? {
        let item = item.map_err(|e| DataError::read(folder, &e))?;
        if item.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = item.path();
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let image = matches!(ending.as_deref(), Some("jpg" | "jpeg" | "png"));
        left += usize::from(image && !listed.contains(path.as_path()));
    }
    Ok(match left {
        0 => Vec::new(),
        n => vec![format!(
            "{}: {} left out because labels.csv does not name {}",
            folder.display(),
            count(n, "image"),
            if n == 1 { "it" } else { "them" }
        )],
    })
}

/// The line of a record, from 1. The reader's own number is that of the blank lines before the record, if there are any.
fn line_of(bytes: &[u8], position: &csv::Position) -> u64 {
    let rest = bytes.get(position.byte() as usize..).unwrap_or_default();
    let blank = rest.iter().take_while(|b| b.is_ascii_whitespace());
    position.line() + blank.filter(|b| **b == b'\n').count() as u64
}

fn describe(e: &csv::Error) -> String {
    match e.kind() {
        csv::ErrorKind::Utf8 { .. } => "is not UTF-8 text".to_owned(),
        csv::ErrorKind::Io(e) => e.to_string(),
        _ => e.to_string(),
    }
}

/// What a walk has come by.
#[derive(Debug, Default)]
struct Scan {
    found: Vec<(String, PathBuf)>,
    ignored: usize,
}

impl Scan {
    /// Takes the images of one folder, in byte order of their names, and returns the names of its sub-folders.
    fn folder(&mut self, folder: &Path, prefix: &str) -> Result<Vec<String>, DataError> {
        let read = |e: std::io::Error| DataError::read(folder, &e);
        let mut names = Vec::new();
        for item in std::fs::read_dir(folder).map_err(read)? {
            let item = item.map_err(read)?;
            names.push((item.file_name().to_string_lossy().into_owned(), item.path()));
        }
        names.sort();
        let mut sub_folders = Vec::new();
        for (name, path) in names {
            if name.starts_with('.') {
                self.ignored += 1;
            } else if path.is_dir() {
                sub_folders.push(name);
            } else if classify(&path, &name)? {
                let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
                self.found.push((name, path));
            } else {
                self.ignored += 1;
            }
        }
        Ok(sub_folders)
    }

    /// Takes the images of a folder and of everything below it.
    fn tree(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<(), DataError> {
        let sub_folders = self.folder(folder, prefix)?;
        if depth < MAX_DEPTH {
            for sub in sub_folders {
                self.tree(&folder.join(&sub), &format!("{prefix}/{sub}"), depth + 1)?;
            }
        }
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        match self.ignored {
            0 => Vec::new(),
            n => vec![format!("{} ignored because they are clearly no images", count(n, "file"))],
        }
    }
}

/// `true` for an image, `false` for what is clearly none; anything else is an error, because leaving it out silently
/// would change the data.
fn classify(path: &Path, name: &str) -> Result<bool, DataError> {
    let ending = Path::new(name).extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    match ending.as_deref() {
        Some("jpg" | "jpeg" | "png") => return Ok(true),
        Some(e) if IGNORED.contains(&e) => return Ok(false),
        None if IGNORED_NAMES.contains(&name) => return Ok(false),
        _ => {}
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(|e| DataError::read(path, &e))?;
    file.take(16).read_to_end(&mut head).map_err(|e| DataError::read(path, &e))?;
    if is_image(&head) {
        return Ok(true);
    }
    let found = match ending {
        Some(e) => format!("its name ends in .{e}"),
        None => "its name has no ending".to_owned(),
    };
    Err(DataError::NotAnImage { path: path.to_path_buf(), found })
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
