//! Uploads of many keys, from files to the gateway (spec §5.4).
//!
//! [`Uploader::run`] first reads everything: it validates each key, leaves out what repeats, and splits each file
//! into pieces of at most [`UploadOptions::max_keys`] keys, which wait in an anonymous temporary file. Memory does not
//! grow with the keys, apart from 16 bytes for each to notice repetitions. Only then it sends, so that a bad key
//! at the end of the last file is noticed before the first one has left.
//!
//! **Nothing is sent twice.** An upload's tag is a hash of the signed bytes and of the signing certificate, so
//! that whoever sends the same piece again, after a lost answer or a crash, sends the same upload, and the
//! gateway stores it once. A piece that is done is written down in the state folder and not sent again by later
//! runs, on whatever day and beside whatever other files: pieces never reach over the end of a file. Where
//! pieces have changed, the gateway knows the single keys (207), and only the others are sent again.
//!
//! Inside an upload the keys are in the order of their key data, so that their order does not say which of them
//! belong to one person.
//!
//! ```no_run
//! # async fn example(profile: efgs_client::Profile) -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use efgs_client::{source::Source, upload::{UploadOptions, RunOutcome, Uploader}};
//! use efgs_protocol::clock::Clock;
//! use tokio_util::sync::CancellationToken;
//!
//! let uploader = Uploader {
//!     gateway: &profile.gateway()?,
//!     signer: &profile.signer()?,
//!     state: &profile.state(),
//!     clock: Clock::system(),
//!     options: UploadOptions::new(profile.country()),
//! };
//! let sources = vec![Source::file("outbox/1.json"), Source::reader("standard input", std::io::stdin())];
//! let report = uploader.run(sources, &CancellationToken::new(), Arc::new(|_| {})).await?;
//! if report.outcome != RunOutcome::Complete {
//!     println!("{} keys are not at the gateway", report.keys.unsent);
//! }
//! # Ok(())
//! # }
//! ```

mod journal;
mod prepare;
mod report;
mod send;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc, time::Duration};

use efgs_protocol::{clock::Clock, country::Country, signature::BatchSigner};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

pub use report::{
    Counts, FailedUpload, FileReport, InvalidEntry, MAX_LISTED, RunOutcome, RunReport, StoredUpload,
};

use crate::{
    Error, Gateway, Retry, hex,
    source::{GaenDefaults, Source, SourceError},
    state::StateError,
};

/// The most keys that one run reads, so that an endless input ends.
pub const MAX_KEYS_READ: u64 = 100_000_000;

/// How long a reader may take to notice that it has been stopped.
const STOPPING: Duration = Duration::from_secs(1);

/// How keys are split and sent.
#[derive(Clone)]
pub struct UploadOptions {
    /// The country that uploads; the only origin that its keys may have.
    pub country: Country,
    /// The most keys in one upload: 5000 unless the gateway takes fewer.
    pub max_keys: usize,
    /// The most bytes in the body of one upload: 10 MiB unless the gateway takes fewer.
    pub max_bytes: usize,
    /// How many uploads may be under way at once. The gateway takes 4 of one country.
    pub concurrency: usize,
    /// Whether invalid keys are left out. Otherwise one of them is enough, and nothing is sent.
    pub skip_invalid: bool,
    /// Whether everything is done except sending.
    pub dry_run: bool,
    /// What to do when the gateway does not answer, or later.
    pub retry: Retry,
    /// How GAEN exports are read.
    pub gaen: GaenDefaults,
}

impl UploadOptions {
    /// The usual options of a country.
    pub fn new(country: Country) -> Self {
        Self {
            country,
            max_keys: 5000,
            max_bytes: 10 << 20,
            concurrency: 2,
            skip_invalid: false,
            dry_run: false,
            retry: Retry::default(),
            gaen: GaenDefaults { origin: country, visited_countries: Vec::new(), key: None },
        }
    }
}

/// What happens during a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum UploadEvent<'a> {
    /// This many keys more have been read.
    Read {
        /// Of which file.
        file: &'a str,
        /// How many.
        keys: u64,
    },
    /// Everything has been read, and sending begins.
    Ready {
        /// How many keys are going to be sent.
        keys: u64,
        /// In how many uploads, if none of the keys is known to the gateway.
        uploads: usize,
    },
    /// This many keys more have been dealt with.
    Sent {
        /// How many.
        keys: u64,
    },
    /// A call is going to be repeated.
    Waiting {
        /// Why.
        error: &'a Error,
        /// For how long.
        wait: Duration,
    },
}

/// Called for each event, from any thread. It must not block.
pub type Progress = dyn Fn(UploadEvent<'_>) + Send + Sync;

/// Why a run could not be made. Apart from [`UploadError::State`], nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// A file.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The state folder. If it was noticed late, some uploads may have been sent; the next run finds out.
    #[error(transparent)]
    State(#[from] StateError),
    /// The caller stopped it before anything was sent.
    #[error("stopped before anything was sent")]
    Stopped,
    /// The input does not seem to end.
    #[error("there are more than {MAX_KEYS_READ} keys: upload them in several runs")]
    TooManyKeys,
}

/// Uploads keys as one country.
pub struct Uploader<'a> {
    /// Where to.
    pub gateway: &'a Gateway,
    /// Who signs.
    pub signer: &'a BatchSigner,
    /// The folder that remembers what was sent.
    pub state: &'a Path,
    /// The time.
    pub clock: Clock,
    /// How.
    pub options: UploadOptions,
}

impl Uploader<'_> {
    /// Uploads all keys of the sources, in order. May be repeated with the same or with more sources at any time:
    /// the gateway gets each key once.
    ///
    /// When `stop` is cancelled, what is under way is brought to its end and nothing else begun. When the future
    /// is dropped, calls are cut off; the next run finds out what became of them.
    ///
    /// # Errors
    /// See [`UploadError`]. What the gateway says is in the report.
    pub async fn run(
        &self,
        sources: Vec<Source>,
        stop: &CancellationToken,
        progress: Arc<Progress>,
    ) -> Result<RunReport, UploadError> {
        let now = self.clock.now();
        let reading = prepare::Reading {
            state: self.state.to_owned(),
            gateway: self.gateway.url().to_owned(),
            options: self.options.clone(),
            now,
            // Also ends the reading when this future is dropped.
            stop: stop.child_token(),
            progress: progress.clone(),
        };
        let _dropped = reading.stop.clone().drop_guard();
        let mut preparing = tokio::task::spawn_blocking(move || reading.prepare(sources));
        let prepared = tokio::select! {
            prepared = &mut preparing => prepared,
            // It ends by itself, unless it waits for an input that does not come.
            () = async {
                stop.cancelled().await;
                tokio::time::sleep(STOPPING).await;
            } => return Err(UploadError::Stopped),
        };
        // The task is never aborted, so that it can only have panicked.
        let mut prepared = prepared.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;

        let report = &mut prepared.report;
        report.sum_up();
        if report.keys.invalid > 0 && !self.options.skip_invalid {
            report.outcome = RunOutcome::Invalid;
        } else if !self.options.dry_run {
            progress(UploadEvent::Ready { keys: report.keys.unsent, uploads: prepared.pieces.len() });
            let sender = send::Sender::new(self, prepared.journal, prepared.spool, stop, &*progress);
            sender.send_all(&prepared.pieces, report).await?;
        }
        let mut report = prepared.report;
        report.sum_up();
        if report.outcome == RunOutcome::Complete && (report.keys.invalid > 0 || !report.failed.is_empty()) {
            report.outcome = RunOutcome::Partial;
        }
        Ok(report)
    }
}

/// SHA-256 of what stands behind one another, as 64 hexadecimal digits.
fn digest(parts: &[&[u8]]) -> String {
    let mut sha256 = Sha256::new();
    for part in parts {
        sha256.update(part);
    }
    hex(&sha256.finalize())
}
