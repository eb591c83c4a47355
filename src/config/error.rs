//! What can be wrong with a configuration, in words a person can act on.

use std::path::PathBuf;

/// Why a configuration could not be loaded. Every message is one paragraph that begins with `file:line:`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Neither a file, nor a folder, nor a preset.
    #[error("{name}: no such configuration file or folder, and no preset of this name{hint} Presets: {presets}.")]
    Missing {
        /// What was asked for.
        name: String,
        /// `: did you mean x?`, or a stop.
        hint: String,
        /// The known presets.
        presets: String,
    },
    /// The operating system refused.
    #[error("{}: cannot be read as a configuration, YAML text: {reason}. Check the path and its permissions.", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// A folder without any of the known files.
    #[error("{}: this folder has none of the files {files}. Put at least one of them into it, or give a single YAML file.", path.display())]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
        /// The known file names.
        files: String,
    },
    /// Text that is not YAML.
    #[error("{file}:{line}:{column}: not valid YAML: {reason}.")]
    Syntax {
        /// The file or preset.
        file: String,
        /// The line, from 1.
        line: u64,
        /// The column, from 1.
        column: u64,
        /// The parser's words.
        reason: String,
    },
    /// YAML that says something that is not understood.
    #[error("{file}:{line}: {reason}")]
    Invalid {
        /// The file or preset.
        file: String,
        /// The line, from 1.
        line: u64,
        /// What is wrong and what to write instead.
        reason: String,
    },
}

/// `: did you mean x?` for the nearest of the known names, if one is near enough to be a typing error.
pub(super) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let lower = name.to_lowercase();
    known
        .into_iter()
        .map(|k| (strsim::normalized_damerau_levenshtein(&lower, &k.to_lowercase()), k))
        .filter(|(s, _)| *s >= 0.6)
        // The first of equals, so that the answer does not depend on the iterator's direction.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, k)| format!(": did you mean {k}?"))
        .unwrap_or_default()
}
