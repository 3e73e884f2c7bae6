//! What one country, one address and all callers together may use of an instance (spec §5.5, §6.3).
//!
//! A request passes these checks in order: the connections of its address and of its country (`connections`),
//! its country's request rate (`pace`), the number of its country's concurrent requests and, for an upload,
//! memory for the body (`memory`) and the daily quota. Work that costs processor time or a database connection
//! waits in queues that serve the countries in turn (`fair_queue`). One country's burst queues behind its own
//! requests.
//!
//! A request above the rate **waits** and is not rejected at once. A client that does not know the limits only
//! slows down. A client that retries immediately costs at most one request per second and connection.
//!
//! Limits apply per instance. Only the daily quotas are exact across instances: the store counts accepted
//! uploads in the transaction that accepts them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::http::Method;
use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use efgs_protocol::country::Country;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    config::{Config, CountryLimits},
    intake::Usage,
    telemetry::{self, InFlight},
};

mod connections;
mod fair_queue;
mod memory;
mod pace;
#[cfg(test)]
mod tests;

pub use connections::{Arrival, Open, UnfinishedHandshake};
pub use fair_queue::{FairQueue, Permit};
pub use memory::Held;

use connections::Connections;
use memory::Memory;
use pace::Pace;

/// The longest wait of a request above its country's rate.
const PATIENCE: Duration = Duration::from_secs(1);
/// Answers per second to all unregistered callers together, and how many may be given at once after a pause.
const UNREGISTERED: (f64, u32) = (20.0, 40);
/// When to retry after a refusal that depends on other requests.
const LATER: TimeDelta = TimeDelta::seconds(10);

/// Why a request is refused for now. The country causes all of them except [`LimitError::Overloaded`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LimitError {
    /// Too many requests per second.
    #[error("{country} sends more than {per_second} requests per second: send fewer")]
    Rate {
        /// The country.
        country: Country,
        /// The limit.
        per_second: f64,
        /// Time until the next request would be admitted.
        wait: Duration,
    },
    /// Too many requests at once.
    #[error(
        "{country} has {limit} {kind} under way, and this one waited too long for its turn: send fewer at once"
    )]
    Concurrency {
        /// The country.
        country: Country,
        /// The kind of request.
        kind: Kind,
        /// The limit.
        limit: usize,
    },
    /// Too many bytes at once.
    #[error(
        "the requests of {country} that are under way would hold more than {share} bytes: send fewer at once"
    )]
    Memory {
        /// The country.
        country: Country,
        /// The limit.
        share: u64,
    },
    /// The daily quota is exceeded.
    #[error(
        "{country} has uploaded {used} of its {limit} {what} of {day}, and this upload has {asked}: nothing was stored, send it again after midnight UTC"
    )]
    Quota {
        /// The country.
        country: Country,
        /// The UTC day.
        day: NaiveDate,
        /// Keys or bytes.
        what: &'static str,
        /// What was accepted so far.
        used: u64,
        /// What this upload would add.
        asked: u64,
        /// The limit.
        limit: u64,
    },
    /// The instance is overloaded.
    #[error("a request of {country} was shed: too many wait for {by}")]
    Overloaded {
        /// The country of the refused request. It need not be the cause.
        country: Country,
        /// The resource that is exhausted.
        by: &'static str,
    },
}

impl LimitError {
    /// When the client may retry.
    pub fn retry_at(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Rate { wait, .. } => now + TimeDelta::from_std(*wait).unwrap_or(LATER),
            Self::Quota { day, .. } => (*day + Days::new(1)).and_time(NaiveTime::MIN).and_utc(),
            Self::Concurrency { .. } | Self::Memory { .. } | Self::Overloaded { .. } => now + LATER,
        }
    }

    fn reason(&self) -> (Country, &'static str) {
        match self {
            Self::Rate { country, .. } => (*country, "rate"),
            Self::Concurrency { country, .. } => (*country, "concurrency"),
            Self::Memory { country, .. } => (*country, "memory"),
            Self::Quota { country, .. } => (*country, "quota"),
            Self::Overloaded { country, .. } => (*country, "overloaded"),
        }
    }

    /// Counts the refusal in the metrics.
    pub fn note(&self) {
        let (country, reason) = self.reason();
        refused(Some(country), reason);
    }
}

/// Counts a refusal in the metrics.
fn refused(country: Option<Country>, reason: &'static str) {
    let country = country.map_or("-".to_owned(), |country| country.to_string());
    metrics::counter!(telemetry::LIMITED, "country" => country, "reason" => reason).increment(1);
}

/// Requests that are counted separately, so that a country whose uploads hang can still download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Uploads and all other requests that change something.
    Uploads,
    /// Downloads and all other requests that only read.
    Downloads,
}

impl Kind {
    fn of(method: &Method) -> Self {
        if method.is_safe() { Self::Downloads } else { Self::Uploads }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Uploads => "uploads",
            Self::Downloads => "downloads",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An admitted request. It counts as one of its country's concurrent requests until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    _permit: OwnedSemaphorePermit,
    _counted: InFlight,
}

/// The limits of this instance and their current use.
#[derive(Debug)]
pub struct Limits {
    config: Config,
    countries: Mutex<HashMap<Country, Arc<State>>>,
    connections: Connections,
    unregistered: Mutex<Pace>,
    memory: Arc<Memory>,
    /// As much again, for audits that are being sent.
    audits: Arc<Memory>,
    /// Threads for expensive computation: verifying, decrypting, compressing.
    computing: FairQueue,
    /// Database connections that store uploads.
    storing: FairQueue,
    /// Database connections that read batches for requests.
    reading: FairQueue,
}

/// One country's current use.
#[derive(Debug)]
struct State {
    settings: CountryLimits,
    pace: Mutex<Pace>,
    uploads: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    /// The day and its used quota, as last read from the database. Never more than the true value.
    used: Mutex<(NaiveDate, Usage)>,
}

impl Limits {
    /// The limits of a configuration. `storing` database connections are for uploads and `reading` for
    /// everything else, so that neither waits for the other.
    pub fn new(config: &Config, storing: usize, reading: usize) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = config.limits.memory.as_u64();
        let share = (memory / 4).max(config.upload.max_bytes.as_u64());
        Arc::new(Self {
            config: config.clone(),
            countries: Mutex::default(),
            connections: Connections::default(),
            unregistered: Mutex::new(Pace::new(UNREGISTERED.0, UNREGISTERED.1)),
            memory: Memory::new(memory, share),
            audits: Memory::new(memory, share),
            // Leaves one core to the connections if there are several.
            computing: FairQueue::new("processor", (cores - 1).max(1)),
            storing: FairQueue::new("database", storing),
            reading: FairQueue::new("database", reading),
        })
    }

    fn of(&self, country: Country) -> Arc<State> {
        self.countries
            .lock()
            .entry(country)
            .or_insert_with(|| {
                let settings = self.config.limits_of(country);
                Arc::new(State {
                    settings,
                    pace: Mutex::new(Pace::new(settings.requests_per_second, settings.burst)),
                    uploads: Arc::new(Semaphore::new(settings.concurrent_uploads)),
                    downloads: Arc::new(Semaphore::new(settings.concurrent_downloads)),
                    used: Mutex::default(),
                })
            })
            .clone()
    }

    /// Admits a request within its country's rate and number of concurrent requests; waits if necessary.
    ///
    ///
    /// Fails with [`LimitError::Rate`] or [`LimitError::Concurrency`].
    pub async fn admit(&self, country: Country, method: &Method) -> Result<Admitted, LimitError> {
        let state = self.of(country);
        let taken = state.pace.lock().take(Instant::now(), PATIENCE);
        match taken {
            Ok(Duration::ZERO) => {}
            Ok(wait) => tokio::time::sleep(wait).await,
            Err(wait) => {
                // Otherwise a client that ignores the answer could send the next request at once.
                tokio::time::sleep(PATIENCE).await;
                let per_second = state.settings.requests_per_second;
                return Err(LimitError::Rate { country, per_second, wait: wait - PATIENCE });
            }
        }
        let kind = Kind::of(method);
        let (turns, limit) = match kind {
            Kind::Uploads => (&state.uploads, state.settings.concurrent_uploads),
            Kind::Downloads => (&state.downloads, state.settings.concurrent_downloads),
        };
        match tokio::time::timeout(self.patience(), turns.clone().acquire_owned()).await {
            Ok(Ok(permit)) => {
                let (country, kind) = (country.to_string(), kind.name());
                let gauge =
                    metrics::gauge!(telemetry::COUNTRY_IN_FLIGHT, "country" => country, "kind" => kind);
                Ok(Admitted { _permit: permit, _counted: InFlight::new(gauge) })
            }
            _ => Err(LimitError::Concurrency { country, kind, limit }),
        }
    }

    /// Waits until it is the turn of an answer to an unregistered caller, at most for a second.
    pub async fn delay_unregistered(&self) {
        let turn = self.unregistered.lock().take(Instant::now(), PATIENCE);
        tokio::time::sleep(turn.unwrap_or(PATIENCE)).await;
    }

    /// Memory for the body of an upload, initially none. It grows as the body arrives.
    pub fn memory(&self, country: Country) -> Held {
        self.memory.nothing(country)
    }

    /// Memory for an audit of `bytes` that is being sent. An audit that several requests share counts for each.
    /// Fails with [`LimitError::Memory`] or [`LimitError::Overloaded`].
    pub fn audit_memory(&self, country: Country, bytes: u64) -> Result<Held, LimitError> {
        let mut held = self.audits.nothing(country);
        held.grow(bytes).map(|()| held)
    }

    /// A permit to compute on a thread.
    pub async fn to_compute(&self, country: Country, kind: Kind) -> Result<Permit, LimitError> {
        self.computing.permit(country, self.most(kind), self.patience()).await
    }

    /// A permit to store an upload.
    pub async fn to_store(&self, country: Country) -> Result<Permit, LimitError> {
        self.storing.permit(country, self.most(Kind::Uploads), self.patience()).await
    }

    /// A permit to read from the database.
    pub async fn to_read(&self, country: Country) -> Result<Permit, LimitError> {
        self.reading.permit(country, self.most(Kind::Downloads), self.patience()).await
    }

    /// The longest wait for a permit.
    fn patience(&self) -> Duration {
        self.config.server.request_timeout
    }

    /// How many requests may wait. Only uploads are shed: the number of downloads is already limited by each
    /// country's concurrent requests.
    fn most(&self, kind: Kind) -> usize {
        match kind {
            Kind::Uploads => self.config.limits.queue,
            Kind::Downloads => usize::MAX,
        }
    }

    /// What a country may upload per day.
    pub fn quota(&self, country: Country) -> Usage {
        let settings = self.of(country).settings;
        Usage { keys: settings.keys_per_day, bytes: settings.bytes_per_day }
    }

    /// Fails early if the daily quota is known to be exceeded. This needs no query, because the used part of a
    /// day's quota only grows.
    pub fn known_over_quota(&self, country: Country, day: NaiveDate, asked: Usage) -> Option<LimitError> {
        let (of_day, used) = *self.of(country).used.lock();
        if of_day != day || (used + asked).fits(self.quota(country)) {
            return None;
        }
        Some(self.over_quota(country, day, used, asked))
    }

    /// Remembers the used quota that the database reported, and returns the error for it.
    pub fn over_quota(&self, country: Country, day: NaiveDate, used: Usage, asked: Usage) -> LimitError {
        *self.of(country).used.lock() = (day, used);
        let quota = self.quota(country);
        let (what, used, asked, limit) = if used.keys + asked.keys > quota.keys {
            ("keys", used.keys, asked.keys, quota.keys)
        } else {
            ("bytes", used.bytes, asked.bytes, quota.bytes)
        };
        LimitError::Quota { country, day, what, used, asked, limit }
    }
}
