//! Why a download stops.

use std::{io, path::PathBuf};

use super::{ChainError, Quarantined, StoredError};
use crate::{Error, state::StateError};

/// Why a download stops. Nothing is lost: the next one goes on where this one was.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The gateway did not answer, or said no.
    #[error(transparent)]
    Gateway(#[from] Error),
    /// The gateway's chain of batches cannot be followed.
    #[error("{0}; nothing of this was stored")]
    Chain(#[from] ChainError),
    /// A batch does not verify. It was put aside, and is tried again by the next download.
    #[error("batch {} does not verify: {}. {}", .0.batch_tag, .0.reason, consequence(.0))]
    Quarantined(Quarantined),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The folder of batches cannot be read.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// Another download works with the target.
    #[error("another efgs uses {}: wait until it ends; two downloads need two targets", .0.display())]
    TargetInUse(PathBuf),
    /// The target has a file of the same name and another content.
    #[error("{} already exists with other content: move it away. Does another efgs write into this folder?", .0.display())]
    Occupied(PathBuf),
    /// The file has content of which the state knows nothing.
    #[error(
        "{} already has content, but the state folder has no record of it: move it away, or name another \
         file",
        .0.display()
    )]
    Foreign(PathBuf),
    /// The file has lost what was written to it.
    #[error(
        "{} has {length} bytes, but {expected} were written: restore them, or move the file away to begin a new \
         one",
        path.display()
    )]
    Shortened {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
        /// How much was written to it.
        expected: u64,
    },
    /// The reader of the stream closed it.
    #[error("the keys cannot be written: {0}")]
    Output(io::Error),
    /// The program was stopped.
    #[error("the download was interrupted; the next one resumes")]
    Interrupted,
}

fn consequence(Quarantined { folder, .. }: &Quarantined) -> String {
    match folder {
        Some(folder) => format!(
            "It was not stored, and no batch after it was. It is in {} with a report. Ask the gateway's operator. \
             The next download retries it",
            folder.display()
        ),
        None => "A download would quarantine it and store no batch after it".to_owned(),
    }
}

impl DownloadError {
    /// Whether the error is temporary: the same operation can succeed later without a fix.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Gateway(error) => error.is_temporary(),
            Self::State(StateError::InUse(_)) | Self::TargetInUse(_) | Self::Interrupted => true,
            _ => false,
        }
    }
}
