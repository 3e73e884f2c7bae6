//! What the gateway knows of its own state: whether the jobs make progress, which certificates run out, and from
//! that whether it can do its work.
//!
//! Progress is measured by the monotonic clock, so that setting the machine's clock makes no job look stuck.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use efgs_protocol::{certificate::Thumbprint, country::Country};
use tokio::time::Instant;

use crate::{
    app::App,
    clock::Clock,
    store::{Job, LEASE_TERM},
    trust,
};

/// After so many of its intervals a job without progress makes the gateway unready.
const INTERVALS: u32 = 3;

/// A certificate that expires within so many days is a warning.
const WARN_DAYS: i64 = 30;

/// The state of this instance; [`App::readiness`] judges it.
#[derive(Debug)]
pub struct Health {
    clock: Clock,
    started_at: DateTime<Utc>,
    /// One operation of a job may take this long, so no interval counts as shorter.
    shortest: Duration,
    jobs: Mutex<Vec<JobWatch>>,
    certificates: RwLock<Arc<[WatchedCertificate]>>,
    waiting: RwLock<Waiting>,
    troubles: Mutex<BTreeMap<&'static str, String>>,
}

/// Keeps the record of one job; clones share it.
#[derive(Clone, Debug)]
pub struct JobWatch {
    name: &'static str,
    interval: Duration,
    patience: Duration,
    clock: Clock,
    record: Arc<Mutex<Record>>,
}

#[derive(Debug)]
struct Record {
    progress: Instant,
    last_success: DateTime<Utc>,
    last_error: Option<String>,
    overdue: Option<(Duration, Instant)>,
}

/// How a job of this instance stands.
#[derive(Clone, Debug)]
pub struct JobState {
    /// Its name.
    pub name: &'static str,
    /// How often it has to make progress.
    pub interval: Duration,
    /// When a turn last came to its good end, or the job began. Looking and leaving the work to another instance counts.
    pub last_success: DateTime<Utc>,
    /// What the last turn failed with, if it did.
    pub last_error: Option<String>,
    /// For how long no turn has come to its good end.
    pub silent: Duration,
    /// For how long the work has been due without any instance having done it.
    pub overdue: Duration,
    /// Why the job does not make progress, if it does not.
    pub stalled: Option<String>,
}

/// A certificate whose end the gateway watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedCertificate {
    /// The country that registered it; `None` for the gateway's own.
    pub country: Option<Country>,
    /// AUTHENTICATION, SIGNING, CALLBACK; of its own TLS, TLS-CLIENT-CA, CALLBACK-CLIENT, CALLBACK-CA, DATABASE-CA,
    /// TRUST-ANCHOR.
    pub kind: &'static str,
    /// Its thumbprint.
    pub thumbprint: Thumbprint,
    /// When it expires.
    pub not_after: DateTime<Utc>,
}

/// What waits for a batch, as the batching job last saw it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiting {
    /// Uploads.
    pub uploads: u64,
    /// Their keys.
    pub keys: u64,
    /// When the oldest of them arrived.
    pub oldest: Option<DateTime<Utc>>,
    /// When the newest batch was formed.
    pub newest_batch: Option<DateTime<Utc>>,
}

/// Whether the gateway can do its work.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// Why not; empty when it can.
    pub reasons: Vec<String>,
    /// What the operator should look at soon.
    pub warnings: Vec<String>,
    /// Whether the database answers.
    pub database: bool,
}

impl Health {
    /// Nothing is known yet. `shortest` is `database.timeout`.
    pub fn new(clock: Clock, shortest: Duration) -> Self {
        Self {
            started_at: clock.now(),
            clock,
            shortest,
            jobs: Mutex::default(),
            certificates: RwLock::new([].into()),
            waiting: RwLock::default(),
            troubles: Mutex::default(),
        }
    }

    /// Begins to watch a job that has to make progress every `interval`.
    pub fn watch(&self, name: &'static str, interval: Duration) -> JobWatch {
        let record = Record {
            progress: Instant::now(),
            last_success: self.clock.now(),
            last_error: None,
            overdue: None,
        };
        let watch = JobWatch {
            name,
            interval,
            patience: interval.max(self.shortest),
            clock: self.clock.clone(),
            record: Arc::new(Mutex::new(record)),
        };
        if let Ok(mut jobs) = self.jobs.lock() {
            jobs.retain(|job| job.name != name);
            jobs.push(watch.clone());
        }
        watch
    }

    /// When this instance was started.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.started_at
    }

    /// All jobs of this instance.
    pub fn jobs(&self) -> Vec<JobState> {
        self.jobs.lock().map(|jobs| jobs.iter().filter_map(JobWatch::state).collect()).unwrap_or_default()
    }

    /// The certificates whose end is watched.
    pub fn certificates(&self) -> Arc<[WatchedCertificate]> {
        self.certificates.read().map(|all| all.clone()).unwrap_or_default()
    }

    /// Replaces them.
    pub fn set_certificates(&self, all: Vec<WatchedCertificate>) {
        if let Ok(mut current) = self.certificates.write() {
            *current = all.into();
        }
    }

    /// What is not as it should be although the gateway serves, each with its cause.
    pub fn troubles(&self) -> BTreeMap<&'static str, String> {
        self.troubles.lock().map(|all| all.clone()).unwrap_or_default()
    }

    /// Notes such a trouble, of which `ready` warns, or, with `None`, that it is over; whether that is news.
    pub fn set_trouble(&self, what: &'static str, why: Option<String>) -> bool {
        let Ok(mut all) = self.troubles.lock() else { return true };
        let before = match &why {
            Some(why) => all.insert(what, why.clone()),
            None => all.remove(what),
        };
        before != why
    }

    /// What waits for a batch.
    pub fn waiting(&self) -> Waiting {
        self.waiting.read().map(|waiting| *waiting).unwrap_or_default()
    }

    /// Notes what waits for a batch.
    pub fn set_waiting(&self, waiting: Waiting) {
        if let Ok(mut current) = self.waiting.write() {
            *current = waiting;
        }
    }
}

impl JobWatch {
    /// The job's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A turn, or a step of a long one, came to its good end.
    pub fn progressed(&self) {
        if let Ok(mut record) = self.record.lock() {
            record.progress = Instant::now();
            record.last_success = self.clock.now();
            record.last_error = None;
        }
    }

    /// A turn failed.
    pub fn failed(&self, error: String) {
        if let Ok(mut record) = self.record.lock() {
            record.last_error = Some(error);
        }
    }

    /// For how long the work has been due without any instance having done it; `None` when it is not due.
    pub fn set_overdue(&self, overdue: Option<Duration>) {
        if let Ok(mut record) = self.record.lock() {
            record.overdue = overdue.map(|overdue| (overdue, Instant::now()));
        }
    }

    fn state(&self) -> Option<JobState> {
        let record = self.record.lock().ok()?;
        let silent = record.progress.elapsed();
        let overdue = record.overdue.map_or(Duration::ZERO, |(overdue, seen)| overdue + seen.elapsed());
        let cause = record.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        let name = self.name;
        let stalled = if silent > self.patience * INTERVALS {
            Some(format!("the job {name} has made no progress for {}{cause}", short(silent)))
        } else if overdue > (self.patience * (INTERVALS - 1)).max(self.patience + LEASE_TERM) {
            // An instance that dies at work leaves its lease behind, and the others have to wait for its end.
            let since = short(overdue);
            Some(format!("no instance has done the job {name}, which is overdue by {since}{cause}"))
        } else {
            None
        };
        Some(JobState {
            name,
            interval: self.interval,
            last_success: record.last_success,
            last_error: record.last_error.clone(),
            silent,
            overdue,
            stalled,
        })
    }
}

impl WatchedCertificate {
    /// Whole days until it expires; 0 or less once it has.
    pub fn days_left(&self, now: DateTime<Utc>) -> i64 {
        trust::days_left(self.not_after, now)
    }

    /// For people.
    fn name(&self) -> String {
        let (kind, thumbprint) = (self.kind, self.thumbprint);
        match self.country {
            Some(country) => format!("the {kind} certificate {thumbprint} of {country}"),
            None => format!("the gateway's {kind} certificate {thumbprint}"),
        }
    }

    /// Whether the gateway cannot do its work without it.
    fn is_vital(&self) -> bool {
        self.country.is_none() && matches!(self.kind, "TLS" | "CALLBACK-CLIENT" | "TRUST-ANCHOR")
    }
}

/// A duration for people, to the second.
fn short(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds if seconds < 7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

impl App {
    /// Judges whether this instance can do its work; waits for the database at most `patience`.
    pub async fn readiness(self: &Arc<Self>, patience: Duration) -> Readiness {
        let mut readiness = Readiness::default();
        if let Err(error) = self.trust.registry() {
            readiness.reasons.push(error.to_string());
        }
        let store = self.store.clone();
        let ping = self.clone().background(async move { store.ping().await });
        match tokio::time::timeout(patience, ping).await {
            Ok(Ok(Ok(()))) => readiness.database = true,
            Ok(Ok(Err(error))) => readiness.reasons.push(error.to_string()),
            Ok(Err(error)) => readiness.reasons.push(error.to_string()),
            Err(_) => {
                readiness.reasons.push(format!("the database does not answer within {}", short(patience)));
            }
        }
        for job in self.health.jobs() {
            // Old records of the access log that stay, because somebody has changed them, disturb nobody: whoever can
            // write to the database must not be able to take the gateways away by that.
            let of = if job.name == Job::AccessLog.name() {
                &mut readiness.warnings
            } else {
                &mut readiness.reasons
            };
            of.extend(job.stalled);
        }
        if let Some(error) = self.journal.as_ref().and_then(|journal| journal.failing()) {
            readiness.warnings.push(format!("uploads are refused: {error}"));
        }
        readiness.warnings.extend(self.journal.iter().flat_map(|journal| journal.warnings()));
        readiness.warnings.extend(self.health.troubles().iter().map(|(what, why)| format!("{what}: {why}")));
        let now = self.clock.now();
        for certificate in self.health.certificates().iter() {
            let name = certificate.name();
            match certificate.days_left(now) {
                ..=0 if certificate.is_vital() => readiness.reasons.push(format!("{name} has expired")),
                ..=0 => readiness.warnings.push(format!("{name} has expired")),
                days @ 1..=WARN_DAYS => {
                    readiness.warnings.push(format!("{name} expires in {days} days or less"));
                }
                _ => {}
            }
        }
        readiness
    }
}

#[cfg(test)]
mod tests;
