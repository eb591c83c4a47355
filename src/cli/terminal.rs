//! Standard output and standard error.

use std::cell::Cell;
use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};

use anstyle::{AnsiColor, Style};

use super::error::CliError;

/// Where a command's words go.
#[derive(Debug)]
pub(super) struct Terminal {
    quiet: bool,
    /// Whether standard output takes a file.
    taken: Cell<bool>,
}

impl Terminal {
    pub(super) fn new(quiet: bool) -> Self {
        Terminal { quiet, taken: Cell::new(false) }
    }

    /// From here on standard output takes a file: words go to standard error.
    pub(super) fn leave_stdout(&self) {
        self.taken.set(true);
    }

    /// The result, to standard output. A reader that has gone away is no error.
    pub(super) fn print(&self, text: &str) -> Result<(), CliError> {
        let mut out: Box<dyn Write> = if self.taken.get() { Box::new(std::io::stderr()) } else { Box::new(std::io::stdout()) };
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(CliError::Stdout(e)),
            _ => Ok(()),
        }
    }

    /// A structure as JSON, to standard output.
    pub(super) fn print_json(&self, value: &impl serde::Serialize) -> Result<(), CliError> {
        self.print(&json(value)?)
    }

    /// A summary, to standard output unless `--quiet`.
    pub(super) fn summary(&self, text: &impl Display) -> Result<(), CliError> {
        if self.quiet { Ok(()) } else { self.print(&text.to_string()) }
    }

    /// Something worth knowing, to standard error unless `--quiet`.
    pub(super) fn note(&self, text: &str) {
        self.say("note", AnsiColor::Cyan, text);
    }

    /// Something that may be wrong, to standard error unless `--quiet`.
    pub(super) fn warning(&self, text: &str) {
        self.say("warning", AnsiColor::Yellow, text);
    }

    fn say(&self, word: &str, color: AnsiColor, text: &str) {
        if !self.quiet {
            let style = Style::new().fg_color(Some(color.into())).bold();
            let _ = writeln!(anstream::stderr(), "{style}{word}:{style:#} {text}");
        }
    }

    /// What ended the command, to standard error.
    pub(super) fn error(&self, error: &CliError) {
        let style = Style::new().fg_color(Some(AnsiColor::Red.into())).bold();
        let _ = writeln!(anstream::stderr(), "{style}error:{style:#} {}", error.paragraph());
    }

    /// Whether progress may be drawn.
    pub(super) fn shows_progress(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }
}

/// Indented JSON with a line end.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::Defect(e.to_string()))?;
    Ok(text + "\n")
}
