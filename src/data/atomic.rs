//! Output files appear whole or not at all.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file could not be written; whatever stood at the path before is untouched.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be written: {source}. Check that the folder exists, that it may be written to and that the disk has room.", path.display())]
pub struct AtomicWriteError {
    /// The file that was to be written.
    pub path: PathBuf,
    /// What the operating system, or the code that produced the content, said.
    #[source]
    pub source: io::Error,
}

/// Writes a file through a temporary one in the same folder, which is renamed once its content is complete and on disk.
///
/// A reader therefore never sees half a file, and a failure leaves the previous content as it was. `fill` gets a
/// buffered writer. A path that exists and is no regular file (`/dev/stdout`, a pipe) is written to directly.
///
/// # Errors
/// [`AtomicWriteError`] if the temporary file cannot be made, filled, flushed or renamed.
pub fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), AtomicWriteError> {
    write(path, fill).map_err(|source| AtomicWriteError {
        path: path.to_path_buf(),
        source,
    })
}

fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        let mut w = BufWriter::new(OpenOptions::new().write(true).open(path)?);
        fill(&mut w)?;
        return w.flush();
    }
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".vitq-");
    // tempfile's files are private (0600); an output has the permissions that the user's umask gives any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    let mut w = BufWriter::new(file.as_file_mut());
    fill(&mut w)?;
    w.flush()?;
    drop(w);
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}
