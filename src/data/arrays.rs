//! `.npy` and `.npz` files in and out.

use std::fs::File;
use std::io::{BufReader, Cursor, Seek, SeekFrom};
use std::path::Path;

use memmap2::Mmap;
use ndarray::{ArrayD, ArrayViewD};
use ndarray_npy::npy::header::Header;
use ndarray_npy::{NpzReader, NpzWriter, ReadNpyError, ReadNpyExt, ReadNpzError, ReadableElement, ViewNpyExt};

use super::error::DataError;
use crate::fs::{WriteError, write_atomic};

/// An array and the name it has in its file; an `.npy` has none.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedArray {
    /// The name inside the `.npz`.
    pub name: Option<String>,
    /// The values, in C order.
    pub array: ArrayD<f32>,
}

const FLOAT_WANTED: &str = "the model's inputs must be float32 (float64 is converted): \
                            preprocess the data and save it with .astype(numpy.float32)";
const LABEL_WANTED: &str = "labels must be integers: save them with .astype(numpy.int64)";

/// Reads every array of an `.npy` or `.npz` file as float32, in the file's order. float64 is converted; values are
/// checked to be finite.
///
/// # Errors
/// [`DataError`] for a missing or corrupt file, another element type, or a NaN or infinite value.
pub fn read_arrays(path: &Path) -> Result<Vec<NamedArray>, DataError> {
    let arrays = if is_npz(path) {
        let mut npz = open_npz(path)?;
        let names = npz_names(&mut npz, path)?;
        let mut arrays = Vec::with_capacity(names.len());
        for name in names {
            let array = npz_floats(&mut npz, path, &name)?;
            arrays.push(NamedArray { name: Some(name), array });
        }
        arrays
    } else {
        vec![NamedArray { name: None, array: read_npy(path)? }]
    };
    for a in &arrays {
        check_finite(path, &what(a.name.as_deref()), &a.array.view())?;
    }
    Ok(arrays)
}

/// Writes named arrays as an uncompressed `.npz`, atomically. Equal arrays give equal bytes.
///
/// # Errors
/// [`DataError::Write`] if the file cannot be written.
pub fn save_npz(path: &Path, arrays: &[(&str, ArrayViewD<'_, f32>)]) -> Result<(), DataError> {
    let fail =
        |e: ndarray_npy::WriteNpzError| WriteError { path: path.to_path_buf(), source: std::io::Error::other(e.to_string()) };
    let mut npz = NpzWriter::new(Cursor::new(Vec::new()));
    for (name, array) in arrays {
        npz.add_array(*name, array).map_err(fail)?;
    }
    let bytes = npz.finish().map_err(fail)?.into_inner();
    Ok(write_atomic(path, |w| w.write_all(&bytes))?)
}

/// Whether the file name ends in `.npz`.
pub(super) fn is_npz(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz"))
}

/// An `.npy` whose samples are read one at a time from a mapping of the file, or, where that is not possible (float64,
/// big-endian, Fortran order, an unaligned header), an array in memory.
#[derive(Debug)]
pub(super) enum Npy {
    /// The mapped file; known to be viewable as float32.
    Mapped(Mmap),
    /// The whole array.
    Memory(ArrayD<f32>),
}

impl Npy {
    /// Opens an `.npy` file.
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|e| DataError::read(path, &e))?;
        // SAFETY: the mapping is read-only and private to this process. A file that somebody else truncates meanwhile
        // would fault, as it would for any program that maps its input; the data is only ever read as plain f32, for
        // which every bit pattern is valid.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| DataError::read(path, &e))?;
        check_size(path, &map)?;
        let viewable = ArrayViewD::<f32>::view_npy(&map).is_ok_and(|v| v.is_standard_layout());
        if viewable { Ok(Self::Mapped(map)) } else { Ok(Self::Memory(read_npy(path)?)) }
    }

    /// Runs `f` on a view of the whole array.
    pub(super) fn with_view<T>(&self, path: &Path, f: impl FnOnce(ArrayViewD<'_, f32>) -> T) -> Result<T, DataError> {
        match self {
            Self::Mapped(map) => match ArrayViewD::<f32>::view_npy(map) {
                Ok(view) => Ok(f(view)),
                Err(e) => Err(corrupt(path, "the file", &e.to_string())),
            },
            Self::Memory(array) => Ok(f(array.view())),
        }
    }
}

/// Before anything is allocated: the data must have the length that the header's shape says.
fn check_size(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let mut cursor = Cursor::new(bytes);
    let header = Header::from_reader(&mut cursor).map_err(|e| corrupt(path, "the file", &e.to_string()))?;
    let descr = header.type_descriptor.to_string();
    let item: u64 = match descr.trim_matches('\'').trim_start_matches(['<', '>', '=']) {
        "f4" => 4,
        "f8" => 8,
        _ => return Err(dtype(path, "the array", descr, FLOAT_WANTED)),
    };
    let data = (bytes.len() as u64).saturating_sub(cursor.position());
    let want = header.shape.iter().try_fold(item, |n, &d| n.checked_mul(d as u64));
    if want != Some(data) {
        let shape = format!("{:?}", header.shape);
        let reason = format!("its header promises the shape {shape}, but {data} bytes of data follow");
        return Err(corrupt(path, "the file", &reason));
    }
    Ok(())
}

fn read_npy(path: &Path) -> Result<ArrayD<f32>, DataError> {
    let mut file = File::open(path).map_err(|e| DataError::read(path, &e))?;
    // SAFETY: as in `Npy::open`.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| DataError::read(path, &e))?;
    check_size(path, &map)?;
    drop(map);
    match ArrayD::<f32>::read_npy(BufReader::new(&file)) {
        Ok(a) => Ok(standard(a)),
        Err(ReadNpyError::WrongDescriptor(_)) => {
            file.seek(SeekFrom::Start(0)).map_err(|e| DataError::read(path, &e))?;
            let a = ArrayD::<f64>::read_npy(BufReader::new(&file)).map_err(|e| corrupt(path, "the file", &e.to_string()))?;
            Ok(standard(a.mapv(|v| v as f32)))
        }
        Err(e) => Err(corrupt(path, "the file", &e.to_string())),
    }
}

/// An open `.npz`.
pub(super) type Npz = NpzReader<BufReader<File>>;

/// Opens an `.npz` file.
pub(super) fn open_npz(path: &Path) -> Result<Npz, DataError> {
    let file = File::open(path).map_err(|e| DataError::read(path, &e))?;
    NpzReader::new(BufReader::new(file)).map_err(|e| corrupt(path, "the file", &e.to_string()))
}

/// The arrays' names in the file's order; an `.npz` without arrays is an error.
pub(super) fn npz_names(npz: &mut Npz, path: &Path) -> Result<Vec<String>, DataError> {
    let names = npz.names().map_err(|e| corrupt(path, "the file", &e.to_string()))?;
    if names.is_empty() {
        return Err(corrupt(path, "the file", "it holds no arrays"));
    }
    Ok(names)
}

/// One array as float32 in C order.
pub(super) fn npz_floats(npz: &mut Npz, path: &Path, name: &str) -> Result<ArrayD<f32>, DataError> {
    match npz_typed::<f32>(npz, path, name)? {
        Ok(a) => Ok(standard(a)),
        Err(descr) => match npz_typed::<f64>(npz, path, name)? {
            Ok(a) => Ok(standard(a.mapv(|v| v as f32))),
            Err(_) => Err(dtype(path, &what(Some(name)), descr, FLOAT_WANTED)),
        },
    }
}

/// One array of class numbers, of any integer type, flattened.
pub(super) fn npz_labels(npz: &mut Npz, path: &Path, name: &str) -> Result<Vec<usize>, DataError> {
    macro_rules! first_of {
        ($($t:ty),*) => {
            $(if let Ok(a) = npz_typed::<$t>(npz, path, name)? {
                return labels(path, name, a.iter().copied());
            })*
        };
    }
    first_of!(i64, i32, u8, u32, u64, i16, u16);
    match npz_typed::<i8>(npz, path, name)? {
        Ok(a) => labels(path, name, a.iter().copied()),
        Err(descr) => Err(dtype(path, &what(Some(name)), descr, LABEL_WANTED)),
    }
}

fn labels<T: Copy + std::fmt::Display + TryInto<usize>>(
    path: &Path,
    name: &str,
    values: impl Iterator<Item = T>,
) -> Result<Vec<usize>, DataError> {
    let label = |(i, v): (usize, T)| {
        let none = |_| DataError::NoClass { path: path.to_path_buf(), what: what(Some(name)), label: v.to_string(), at: i };
        v.try_into().map_err(none)
    };
    values.enumerate().map(label).collect()
}

/// `Ok(Err(descr))` if the array has another element type.
fn npz_typed<T: ReadableElement>(npz: &mut Npz, path: &Path, name: &str) -> Result<Result<ArrayD<T>, String>, DataError> {
    match npz.by_name::<ndarray::OwnedRepr<T>, ndarray::IxDyn>(name) {
        Ok(a) => Ok(Ok(a)),
        Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(d))) => Ok(Err(d.to_string())),
        Err(e) => Err(corrupt(path, &what(Some(name)), &e.to_string())),
    }
}

/// An error unless every value is finite.
pub(super) fn check_finite(path: &Path, what: &str, array: &ArrayViewD<'_, f32>) -> Result<(), DataError> {
    match array.indexed_iter().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some((index, v)) => Err(DataError::NotFinite {
            path: path.to_path_buf(),
            what: what.to_owned(),
            value: v.to_string(),
            index: format!("{:?}", ndarray::Dimension::slice(&index)),
        }),
    }
}

/// How messages call an array.
pub(super) fn what(name: Option<&str>) -> String {
    name.map_or_else(|| "the array".to_owned(), |n| format!("the array `{n}`"))
}

/// In C order, copied only if it was not.
pub(super) fn standard(a: ArrayD<f32>) -> ArrayD<f32> {
    if a.is_standard_layout() { a } else { a.as_standard_layout().into_owned() }
}

fn corrupt(path: &Path, what: &str, reason: &str) -> DataError {
    DataError::CorruptArray { path: path.to_path_buf(), what: what.to_owned(), reason: reason.to_owned() }
}

fn dtype(path: &Path, what: &str, found: String, wanted: &'static str) -> DataError {
    DataError::ArrayDtype { path: path.to_path_buf(), what: what.to_owned(), found, wanted }
}
