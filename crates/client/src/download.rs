//! The download with memory: every batch once, verified, in the order of the chain (spec §5.3, §5.7).
//!
//! A [`Downloader`] walks the chain of batches from where it was, verifies each batch through the gateway's
//! audit interface against the operator's trust anchor, and stores it in a [`Target`]. What does not verify is
//! never stored there: it is put aside, with a report, and the walk stops. A process may be killed, and a
//! future dropped, at any moment: the next one goes on without a gap or a repeat.
//!
//! ```no_run
//! # async fn example(profile: efgs_client::Profile) -> Result<(), Box<dyn std::error::Error>> {
//! use efgs_client::{Format, download::{Downloader, DownloadOptions, Target}};
//!
//! let target = Target::Folder { path: "batches".into(), format: Format::Protobuf };
//! let options = DownloadOptions::new(profile.gateway()?, profile.auditor()?, profile.state());
//! let mut downloader = Downloader::open(options, target)?;
//! while let Some(batch) = downloader.next().await? {
//!     println!("{}: {} keys", batch.batch_tag, batch.keys);
//! }
//! # Ok(())
//! # }
//! ```

mod cursor;
mod error;
mod order;
mod quarantine;
mod release;
mod stored;
mod target;
mod walk;

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Days, NaiveDate, Utc};
use efgs_protocol::clock::Clock;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::{sync::Notify, time};

use crate::{Gateway, Retry, audit::Auditor, hex, state::Lock};
use cursor::Cursor;
use target::Open;

pub(crate) use order::Tag;

pub use error::DownloadError;
pub use order::ChainError;
pub use quarantine::Quarantined;
pub use stored::{Stored, StoredError};
pub use target::Target;

/// For how many days batches are served, counted back from today (spec §5.3).
const RETENTION_DAYS: u64 = 14;

/// How a download works.
#[non_exhaustive]
pub struct DownloadOptions {
    /// The gateway.
    pub gateway: Gateway,
    /// Against what each batch is verified.
    pub auditor: Auditor,
    /// The folder in which it is remembered how far each target has come, and in which batches that do not
    /// verify are put aside.
    pub state: PathBuf,
    /// Begin with the first batch formed on or after this day, unless the target is further already. The
    /// default is the oldest batch that the gateway serves.
    pub since: Option<NaiveDate>,
    /// Leave out the batch of this tag when it does not verify, instead of stopping before it. It is put aside
    /// as any other and never tried again.
    pub continue_past: Option<String>,
    /// Whether everything is done except storing: batches are fetched and verified, and nothing is written, neither in
    /// the target nor in the state. Other downloads may work with them meanwhile.
    pub dry_run: bool,
    /// How long to wait before a batch that does not verify is fetched once more: an upload may have been
    /// withdrawn between the download and the audit, and the instances of a gateway learn of it one by one.
    pub settle: Duration,
    /// How calls are repeated that failed for a passing reason.
    pub retry: Retry,
    /// Tells the day.
    pub clock: Clock,
    /// Called for each event.
    pub on_event: Box<dyn Fn(&DownloadEvent) + Send + Sync>,
}

impl DownloadOptions {
    /// The usual way.
    pub fn new(gateway: Gateway, auditor: Auditor, state: PathBuf) -> Self {
        Self {
            gateway,
            auditor,
            state,
            since: None,
            continue_past: None,
            dry_run: false,
            settle: Duration::from_secs(5),
            retry: Retry::default(),
            clock: Clock::system(),
            on_event: Box::new(|_| {}),
        }
    }
}

/// What happens during a download.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum DownloadEvent {
    /// A batch is verified and stored.
    Stored(Released),
    /// The same in a dry run, which stores nothing.
    WouldStore(Released),
    /// Batches may be missing: they were not fetched in time, and the gateway serves them no more.
    Gap {
        /// The last batch before the gap, if there is one.
        after: Option<String>,
        /// The first day from which batches may be missing.
        since: NaiveDate,
        /// The first day from which there is no gap.
        until: NaiveDate,
    },
    /// A batch does not verify, and is put aside; the walk stops before it.
    Quarantined(Quarantined),
    /// The same, but the walk goes past it, as was asked for.
    Passed(Quarantined),
    /// A batch did not verify at first and is fetched once more.
    Again {
        /// The batch.
        batch_tag: String,
        /// What was wrong.
        reason: String,
    },
    /// A call failed and is going to be repeated.
    Waiting {
        /// Why it failed.
        reason: String,
        /// How long until it is repeated.
        seconds: u64,
    },
    /// There is nothing more for now; only [`Downloader::follow`] says so.
    CaughtUp,
}

/// A batch that was verified and stored, or would be stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Released {
    /// Its batch tag.
    pub batch_tag: String,
    /// The UTC day on which it was formed.
    pub date: NaiveDate,
    /// How many keys it has; possibly none.
    pub keys: usize,
    /// How many uploads of other countries they come from.
    pub uploads: usize,
    /// How many batches were stored in this target, with this one.
    pub number: u64,
    /// Its file, when the target is a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// Walks the chain of batches into a target. Only one at a time can have the same target and state.
pub struct Downloader {
    options: DownloadOptions,
    position: Arc<Mutex<Position>>,
    /// The gateway's time in the first answer about the next batch, if it was sent.
    told: Mutex<Option<DateTime<Utc>>>,
}

/// Where the walk is. Changed only together with what is on the disk, except in a dry run.
struct Position {
    cursor: Cursor,
    cursor_path: PathBuf,
    target: Open,
    /// The batch behind the cursor's, as far as is known.
    next: Option<Tag>,
    _lock: Option<Lock>,
}

impl Downloader {
    /// Takes up a download where it was left, or begins one.
    ///
    /// # Errors
    /// When the state or the target cannot be used, or another process works with them.
    pub fn open(options: DownloadOptions, target: Target) -> Result<Self, DownloadError> {
        let name = target.name()?;
        let folder = options.state.join("download").join(folder_name(&name));
        let lock = if options.dry_run { None } else { Some(Lock::take(&folder, "lock")?) };
        let cursor_path = folder.join("cursor.json");
        let mut cursor = Cursor::load(&cursor_path)?;
        let target = match options.dry_run {
            true => target.look(&mut cursor, &name)?,
            false => target.open(&mut cursor, &cursor_path, &name)?,
        };
        let cursor = cursor.unwrap_or_else(|| Cursor::new(name));
        if !options.dry_run {
            cursor.save(&cursor_path)?;
        }
        let position = Position { cursor, cursor_path, target, next: None, _lock: lock };
        Ok(Self { options, position: Arc::new(Mutex::new(position)), told: Mutex::default() })
    }

    /// Stores all batches that there are, and those that come, for as long as it is let: asks every `interval`
    /// (a little more or less, so that not all countries ask at once), and at once when `wake` is notified, for
    /// example by a callback. Reasons that pass by themselves do not end it.
    ///
    /// # Errors
    /// See [`Downloader::next`]. It never ends otherwise: drop the future to end it.
    pub async fn follow(&mut self, interval: Duration, wake: &Notify) -> Result<Infallible, DownloadError> {
        loop {
            let wait = interval.mul_f64(efgs_protocol::random::jitter(0.1));
            match self.next().await {
                Ok(Some(_)) => continue,
                Ok(None) => self.tell(&DownloadEvent::CaughtUp),
                Err(error) if error.is_temporary() => {
                    let (reason, seconds) = (error.to_string(), wait.as_secs());
                    self.tell(&DownloadEvent::Waiting { reason, seconds });
                }
                Err(error) => return Err(error),
            }
            drop(time::timeout(wait, wake.notified()).await);
        }
    }

    fn tell(&self, event: &DownloadEvent) {
        (self.options.on_event)(event);
    }

    fn today(&self) -> NaiveDate {
        self.options.clock.now().date_naive()
    }

    /// Works with the place on a thread that may wait for the disk. It runs to its end even when nobody waits
    /// for it any more.
    async fn with_position<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Position) -> Result<T, DownloadError> + Send + 'static,
    ) -> Result<T, DownloadError> {
        let position = self.position.clone();
        // A panic leaves the place as it was: each change is made whole, last.
        let work = move || work(&mut position.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(DownloadError::Interrupted))
    }
}

/// The folder of a target in the state: readable, and different for each target.
fn folder_name(target: &str) -> String {
    let hash = hex(&Sha256::digest(target)[..6]);
    let last = target.rsplit(['/', '\\']).next().unwrap_or_default();
    let readable: String = last.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(32).collect();
    format!("{readable}_{hash}")
}

/// The first day of which a gateway still serves batches on this day.
fn oldest(today: NaiveDate) -> NaiveDate {
    today.checked_sub_days(Days::new(RETENTION_DAYS)).unwrap_or(today)
}

#[cfg(test)]
mod tests;
