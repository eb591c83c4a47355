//! What ends a command.

use crate::data::DataError;
use crate::fs::WriteError;
use crate::pipeline::PipelineError;

/// What ends a command: one paragraph for a person.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Pipeline(Box<PipelineError>),
    #[error(transparent)]
    Data(Box<DataError>),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{0}")]
    Refused(String),
    /// Options that make no sense together.
    #[error("{0}")]
    Usage(String),
    #[error("cannot write to standard output: {0}; check that its file or device has room")]
    Stdout(std::io::Error),
    #[error("this is a defect of vitq ({0}); please report it with the command and the model")]
    Defect(String),
}

impl From<PipelineError> for CliError {
    fn from(e: PipelineError) -> Self {
        CliError::Pipeline(Box::new(e))
    }
}

impl From<DataError> for CliError {
    fn from(e: DataError) -> Self {
        CliError::Data(Box::new(e))
    }
}

impl CliError {
    /// The process's exit code.
    pub(super) fn code(&self) -> u8 {
        if matches!(self, CliError::Usage(_)) { 2 } else { 1 }
    }

    /// The error and its causes as one line. A cause that the text names already is not named twice.
    pub(super) fn paragraph(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(c) = cause {
            let said = c.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            cause = c.source();
        }
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}
