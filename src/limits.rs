//! What one country, one address and all together may take of an instance (spec §5.5, §6.3).
//!
//! A request passes, in this order: its address's and its country's share of the connections (`doors`), its
//! country's pace (`pace`), its country's share of what is under way at once, and, for an upload, memory for its
//! body (`memory`) and the day's quota. Work that costs processor time or a connection to the database waits in
//! queues in which the countries take turns (`fair`). So a storm of one country waits for itself.
//!
//! Who comes too fast **waits** for its turn rather than being sent away at once: a client that does not know the
//! limits is only slowed down, and one that tries again at once costs a request per second and connection.
//!
//! Limits hold for each instance. Only the quotas of a day are exact over all of them: the store counts what was
//! accepted in the transaction that accepts it.

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

pub use connections::{Arrival, Open};
pub use fair_queue::{FairQueue, Permit};
pub use memory::Held;

use connections::Connections;
use memory::Memory;
use pace::Pace;

/// How long a request waits because its country sends too many in a second.
const PATIENCE: Duration = Duration::from_secs(1);
/// When to try again after a refusal that depends on what others do meanwhile.
const LATER: TimeDelta = TimeDelta::seconds(10);

/// Why a request is not served now. All but [`LimitError::Overloaded`] are the country's own doing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LimitError {
    /// Too many requests in a second.
    #[error("{country} sends more than {per_second} requests per second: send fewer")]
    Rate {
        /// Whose.
        country: Country,
        /// The limit.
        per_second: f64,
        /// Until the next one would be let through.
        wait: Duration,
    },
    /// Too many requests at once.
    #[error(
        "{country} has {limit} {kind} under way, and this one waited too long for its turn: send fewer at once"
    )]
    Concurrency {
        /// Whose.
        country: Country,
        /// Of what.
        kind: Kind,
        /// The limit.
        limit: usize,
    },
    /// Too many bytes at once.
    #[error(
        "the uploads of {country} that are under way would hold more than {share} bytes: send fewer at once"
    )]
    Memory {
        /// Whose.
        country: Country,
        /// The limit.
        share: u64,
    },
    /// The quota of the day.
    #[error(
        "{country} has uploaded {used} of its {limit} {what} of {day}, and this upload has {asked}: nothing was stored, send it again after midnight UTC"
    )]
    Quota {
        /// Whose.
        country: Country,
        /// The UTC day.
        day: NaiveDate,
        /// Keys or bytes.
        what: &'static str,
        /// Accepted so far.
        used: u64,
        /// What this upload has.
        asked: u64,
        /// The limit.
        limit: u64,
    },
    /// The instance has more to do than it can.
    #[error("a request of {country} was shed: too many wait for {by}")]
    Overloaded {
        /// Whose request is turned away; it need not be the cause.
        country: Country,
        /// What there is too little of.
        by: &'static str,
    },
}

impl LimitError {
    /// When to try again.
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

    /// Counts the refusal.
    pub fn note(&self) {
        let (country, reason) = self.reason();
        refused(Some(country), reason);
    }
}

/// Counts somebody who was turned away.
fn refused(country: Option<Country>, reason: &'static str) {
    let country = country.map_or("-".to_owned(), |country| country.to_string());
    metrics::counter!(telemetry::LIMITED, "country" => country, "reason" => reason).increment(1);
}

/// What is counted apart, so that a country whose uploads hang can still download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Uploads, and everything else that changes something.
    Uploads,
    /// Downloads, and everything else that reads.
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

/// A request's share of what its country may have under way, until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    _permit: OwnedSemaphorePermit,
    _counted: InFlight,
}

/// The limits of this instance, and what is taken of them.
#[derive(Debug)]
pub struct Limits {
    config: Config,
    countries: Mutex<HashMap<Country, Arc<State>>>,
    connections: Connections,
    memory: Arc<Memory>,
    /// Threads that compute for long: verify, decrypt, compress.
    computing: FairQueue,
    /// Connections to the database that store uploads.
    storing: FairQueue,
    /// Connections to the database that read batches for requests.
    reading: FairQueue,
}

/// What is taken by one country.
#[derive(Debug)]
struct State {
    settings: CountryLimits,
    pace: Mutex<Pace>,
    uploads: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    /// Of the quota of this day, as the database last said it; never more than is true.
    used: Mutex<(NaiveDate, Usage)>,
}

impl Limits {
    /// All limits of a configuration, with nothing taken. Of the connections to the database `storing` are for
    /// uploads and `reading` for the rest, so that neither waits for the other.
    pub fn new(config: &Config, storing: usize, reading: usize) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = config.limits.memory.as_u64();
        let share = (memory / 4).max(config.upload.max_bytes.as_u64());
        Arc::new(Self {
            config: config.clone(),
            countries: Mutex::default(),
            connections: Connections::default(),
            memory: Memory::new(memory, share),
            // One core is left to the connections, where there are several.
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

    /// Lets a request go on when its country's pace and what the country has under way allow it.
    pub async fn admit(&self, country: Country, method: &Method) -> Result<Admitted, LimitError> {
        let state = self.of(country);
        let taken = state.pace.lock().take(Instant::now(), PATIENCE);
        match taken {
            Ok(Duration::ZERO) => {}
            Ok(wait) => tokio::time::sleep(wait).await,
            Err(wait) => {
                // A client that does not care for the answer must not be able to ask for the next one at once.
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

    /// Memory for the body of an upload; to be grown as the body arrives.
    pub fn memory(&self, country: Country) -> Held {
        self.memory.nothing(country)
    }

    /// A thread to compute on.
    pub async fn to_compute(&self, country: Country, kind: Kind) -> Result<Permit, LimitError> {
        self.computing.permit(country, self.most(kind), self.patience()).await
    }

    /// A connection to the database to store an upload on.
    pub async fn to_store(&self, country: Country) -> Result<Permit, LimitError> {
        self.storing.permit(country, self.most(Kind::Uploads), self.patience()).await
    }

    /// A connection to the database to read on.
    pub async fn to_read(&self, country: Country) -> Result<Permit, LimitError> {
        self.reading.permit(country, self.most(Kind::Downloads), self.patience()).await
    }

    /// How long a request waits for its turn.
    fn patience(&self) -> Duration {
        self.config.server.request_timeout
    }

    /// How many may wait: uploads are shed first. Downloads are few in any case, by what each country may have
    /// under way.
    fn most(&self, kind: Kind) -> usize {
        match kind {
            Kind::Uploads => self.config.limits.queue,
            Kind::Downloads => usize::MAX,
        }
    }

    /// What a country may upload in a day.
    pub fn quota(&self, country: Country) -> Usage {
        let settings = self.of(country).settings;
        Usage { keys: settings.keys_per_day, bytes: settings.bytes_per_day }
    }

    /// Whether it is known already that the quota of the day does not suffice. The database need not be asked:
    /// what is used of a day only grows.
    pub fn known_over_quota(&self, country: Country, day: NaiveDate, asked: Usage) -> Option<LimitError> {
        let (of_day, used) = *self.of(country).used.lock();
        if of_day != day || (used + asked).fits(self.quota(country)) {
            return None;
        }
        Some(self.over_quota(country, day, used, asked))
    }

    /// The quota of the day does not suffice, says the database: remembers it.
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
