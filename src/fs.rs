//! Output files appear whole or not at all.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

/// Temporary files of this process that are being filled.
static PENDING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn pending() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the temporary files of outputs that are being written, and lets no new one appear as long as the result lives:
/// what a handler of Ctrl-C does before it ends the process.
#[must_use]
pub fn discard_unfinished() -> impl Drop {
    let mut pending = pending();
    for path in std::mem::take(&mut *pending) {
        // One that has been renamed meanwhile is complete.
        let _ = std::fs::remove_file(path);
    }
    pending
}

/// A temporary file that [`discard_unfinished`] knows.
struct Temporary {
    file: NamedTempFile,
    path: PathBuf,
}

impl Temporary {
    /// In the folder where `path` will be.
    fn beside(path: &Path) -> io::Result<Self> {
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".vitq-");
        // tempfile's files are private (0600); an output has the permissions that the user's umask gives any new file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        // Under the lock, so that no file exists that is not in the list.
        let mut pending = pending();
        let file = builder.tempfile_in(folder)?;
        let path = file.path().to_owned();
        pending.insert(path.clone());
        Ok(Self { file, path })
    }

    /// Gives it its name.
    fn persist(self, path: &Path) -> io::Result<()> {
        let result = self.file.persist(path);
        pending().remove(&self.path);
        result.map(drop).map_err(|e| e.error)
    }

    /// Removes it.
    fn remove(self) {
        drop(self.file);
        pending().remove(&self.path);
    }
}

/// Whether a file can be made where `path` shall be: one is made beside it and removed.
///
/// # Errors
/// The system's refusal.
pub fn check_writable(path: &Path) -> io::Result<()> {
    Temporary::beside(path).map(Temporary::remove)
}

/// A file could not be written; whatever stood at the path before is untouched.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be written: {source}. Check that the folder exists, that it may be written to and that the disk has room.", path.display())]
pub struct WriteError {
    /// The file that was to be written.
    pub path: PathBuf,
    /// What the operating system, or the code that produced the content, said.
    #[source]
    pub source: io::Error,
}

/// Writes a file through a temporary one in the same folder, which is renamed once its content is complete and on disk.
///
/// A reader therefore never sees half a file, and a failure leaves the previous content as it was. `fill` gets a
/// buffered writer. A link's target is replaced, not the link. A path that exists and is no regular file (a pipe, a device), and an open
/// file by its number (`/dev/stdout`), is written to directly.
///
/// # Errors
/// [`WriteError`] if the temporary file cannot be made, filled, flushed or renamed.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), WriteError> {
    write(path, fill).map_err(|source| WriteError { path: path.to_path_buf(), source })
}

fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    if is_direct(path) {
        let mut w = BufWriter::new(OpenOptions::new().write(true).open(path)?);
        fill(&mut w)?;
        return w.flush();
    }
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut temporary = Temporary::beside(&target)?;
    match fill_file(&mut temporary.file, fill) {
        Ok(()) => temporary.persist(&target),
        Err(e) => {
            temporary.remove();
            Err(e)
        }
    }
}

/// Whether a path is written to directly, not through a temporary file.
pub fn is_direct(path: &Path) -> bool {
    is_open_file(path) || std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// Whether a path names a file that this process has open: what it leads to may look like any other file.
fn is_open_file(path: &Path) -> bool {
    ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc/self/fd"].iter().any(|open| path.starts_with(open))
}

/// Whether what is written to a path comes out of standard output.
pub fn is_stdout(path: &Path) -> bool {
    ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|open| path == Path::new(open))
}

fn fill_file(file: &mut NamedTempFile, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut w = BufWriter::new(file.as_file_mut());
    fill(&mut w)?;
    w.flush()?;
    drop(w);
    file.as_file().sync_all()
}

#[cfg(test)]
mod tests;
