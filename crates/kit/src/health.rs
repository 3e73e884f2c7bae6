//! The gateway's own state: whether the jobs make progress, which certificates are about to expire, and whether
//! the gateway is ready.
//!
//! Progress is measured with the monotonic clock, so that setting the system clock makes no job look stalled.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use efgs_protocol::{
    certificate::{CertificateType, Thumbprint},
    country::Country,
};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::time::Instant;

use crate::clock::Clock;

/// How long the lease of an instance that dies stays held.
pub const LEASE_TERM: Duration = Duration::from_secs(30);

/// A job without progress for this many of its intervals makes the gateway unready.
const INTERVALS: u32 = 3;

/// The state of this instance. The server judges it.
#[derive(Debug)]
pub struct Health {
    clock: Clock,
    started_at: DateTime<Utc>,
    /// One operation of a job may take this long, so no interval counts as shorter.
    shortest: Duration,
    jobs: Mutex<Vec<JobWatch>>,
    certificates: RwLock<Arc<[WatchedCertificate]>>,
    waiting: RwLock<Waiting>,
    troubles: Mutex<BTreeMap<Trouble, String>>,
    database: RwLock<DatabaseState>,
}

/// Keeps the record of one job; clones share it.
#[derive(Clone, Debug)]
pub struct JobWatch {
    name: &'static str,
    severity: Severity,
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

/// The state of a job of this instance.
#[derive(Clone, Debug)]
pub struct JobState {
    /// Its name.
    pub name: &'static str,
    /// How often it has to make progress.
    pub interval: Duration,
    /// When a turn last completed successfully, or the job began. Looking and leaving the work to another instance counts.
    pub last_success: DateTime<Utc>,
    /// What the last turn failed with, if it did.
    pub last_error: Option<String>,
    /// For how long no turn has completed successfully.
    pub silent: Duration,
    /// For how long the work has been due without any instance having done it.
    pub overdue: Duration,
    /// Why the job does not make progress, if it does not.
    pub stalled: Option<Warning>,
}

/// How bad a warning is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Countries are affected now.
    Problem,
    /// Countries will be affected if nothing is done.
    Attention,
}

/// A warning for the operator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Warning {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, and what to do.
    pub text: String,
}

/// A problem while the gateway still serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The database refuses to write.
    Writing,
    /// New TLS certificates cannot be used.
    TlsCertificate,
    /// New certificates for callbacks cannot be used.
    CallbackCertificate,
    /// Settings have changed that need a restart.
    Settings,
    /// New encryption keys cannot be used.
    EncryptionKeys,
    /// Records of the access log are not in the database.
    AccessLogSetAside,
    /// The list of denied certificates cannot be used.
    DenyFile,
    /// Rows of the registry are rejected.
    RegistryRows,
    /// A revocation or a withdrawal is no longer in the database.
    Undone,
}

impl Trouble {
    /// What `ready` and the log say.
    pub fn text(self) -> &'static str {
        match self {
            Self::Writing => "the database refuses to write",
            Self::TlsCertificate => "the TLS certificate was not taken over, the old one stays in use",
            Self::CallbackCertificate => {
                "the certificate for callbacks was not taken over, the old one stays in use"
            }
            Self::Settings => "settings differ from those in use",
            Self::EncryptionKeys => "the encryption keys were not taken over, the old ones stay in use",
            Self::AccessLogSetAside => "records of the access log could not be brought into the database",
            Self::DenyFile => "`trust.deny_file` was not taken over completely",
            Self::RegistryRows => {
                "rows of the certificate table are rejected, they may have been tampered with"
            }
            Self::Undone => {
                "a revocation or a withdrawal was removed from the database; this instance still applies it"
            }
        }
    }

    /// How bad it is.
    pub fn severity(self) -> Severity {
        match self {
            Self::Writing | Self::DenyFile | Self::RegistryRows | Self::Undone => Severity::Problem,
            Self::TlsCertificate
            | Self::CallbackCertificate
            | Self::Settings
            | Self::EncryptionKeys
            | Self::AccessLogSetAside => Severity::Attention,
        }
    }
}

/// What a certificate that the gateway watches is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateUse {
    /// A country registered it.
    Registered(CertificateType),
    /// The gateway's own, towards national backends.
    Tls,
    /// An authority of `tls.client_ca`.
    TlsClientCa,
    /// The gateway's own, towards callbacks.
    CallbackClient,
    /// An authority of `callback.ca`.
    CallbackCa,
    /// An authority of `database.tls_ca`.
    DatabaseCa,
    /// The operator's trust anchor.
    TrustAnchor,
}

impl CertificateUse {
    /// As metrics, logs and warnings name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registered(kind) => kind.as_str(),
            Self::Tls => "TLS",
            Self::TlsClientCa => "TLS-CLIENT-CA",
            Self::CallbackClient => "CALLBACK-CLIENT",
            Self::CallbackCa => "CALLBACK-CA",
            Self::DatabaseCa => "DATABASE-CA",
            Self::TrustAnchor => "TRUST-ANCHOR",
        }
    }

    /// Whether the gateway cannot do its work when it has expired.
    pub fn is_vital(self) -> bool {
        match self {
            Self::Tls | Self::CallbackClient | Self::TrustAnchor => true,
            Self::Registered(_) | Self::TlsClientCa | Self::CallbackCa | Self::DatabaseCa => false,
        }
    }
}

/// A certificate whose end the gateway watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedCertificate {
    /// The country that registered it; `None` for the gateway's own.
    pub country: Option<Country>,
    /// What it is for.
    pub kind: CertificateUse,
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

/// What an operator has to prepare in the database in time.
#[derive(Clone, Debug, Default)]
pub struct DatabaseState {
    /// How many days after today the database can store keys of; none if that is not known yet.
    pub days_ahead: Option<i64>,
    /// Settings of its server that are too small for what is stored, and what to do.
    pub too_small: Vec<String>,
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
            database: RwLock::default(),
        }
    }

    /// Begins to watch a job that has to make progress every `interval`: without it the instance is not ready.
    pub fn watch(&self, name: &'static str, interval: Duration) -> JobWatch {
        self.watch_with(name, interval, Severity::Problem)
    }

    /// Begins to watch a job; `severity` says what it is when it makes no progress.
    pub fn watch_with(&self, name: &'static str, interval: Duration, severity: Severity) -> JobWatch {
        let record = Record {
            progress: Instant::now(),
            last_success: self.clock.now(),
            last_error: None,
            overdue: None,
        };
        let watch = JobWatch {
            name,
            severity,
            interval,
            patience: interval.max(self.shortest),
            clock: self.clock.clone(),
            record: Arc::new(Mutex::new(record)),
        };
        let mut jobs = self.jobs.lock();
        jobs.retain(|job| job.name != name);
        jobs.push(watch.clone());
        watch
    }

    /// When this instance was started.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.started_at
    }

    /// All jobs of this instance.
    pub fn jobs(&self) -> Vec<JobState> {
        self.jobs.lock().iter().map(JobWatch::state).collect()
    }

    /// The certificates whose end is watched.
    pub fn certificates(&self) -> Arc<[WatchedCertificate]> {
        self.certificates.read().clone()
    }

    /// Replaces them.
    pub fn set_certificates(&self, all: Vec<WatchedCertificate>) {
        *self.certificates.write() = all.into();
    }

    /// What is not as it should be although the gateway serves, each with its cause.
    pub fn troubles(&self) -> BTreeMap<Trouble, String> {
        self.troubles.lock().clone()
    }

    /// Sets a trouble, of which `ready` warns, or clears it with `None`; returns whether it changed.
    pub fn set_trouble(&self, what: Trouble, why: Option<String>) -> bool {
        let mut all = self.troubles.lock();
        let before = match &why {
            Some(why) => all.insert(what, why.clone()),
            None => all.remove(&what),
        };
        before != why
    }

    /// The database as it was last looked at.
    pub fn database(&self) -> DatabaseState {
        self.database.read().clone()
    }

    /// Notes how the database is.
    pub fn set_database(&self, state: DatabaseState) {
        *self.database.write() = state;
    }

    /// What waits for a batch.
    pub fn waiting(&self) -> Waiting {
        *self.waiting.read()
    }

    /// Notes what waits for a batch.
    pub fn set_waiting(&self, waiting: Waiting) {
        *self.waiting.write() = waiting;
    }
}

impl JobWatch {
    /// The job's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A turn, or a step of a long one, completed successfully.
    pub fn progressed(&self) {
        let mut record = self.record.lock();
        record.progress = Instant::now();
        record.last_success = self.clock.now();
        record.last_error = None;
    }

    /// A turn failed.
    pub fn failed(&self, error: String) {
        self.record.lock().last_error = Some(error);
    }

    /// For how long the work has been due without any instance having done it; `None` when it is not due.
    pub fn set_overdue(&self, overdue: Option<Duration>) {
        self.record.lock().overdue = overdue.map(|overdue| (overdue, Instant::now()));
    }

    fn state(&self) -> JobState {
        let record = self.record.lock();
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
        let stalled = stalled.map(|text| Warning { severity: self.severity, text });
        JobState {
            name,
            interval: self.interval,
            last_success: record.last_success,
            last_error: record.last_error.clone(),
            silent,
            overdue,
            stalled,
        }
    }
}

impl WatchedCertificate {
    /// Whole days until it expires; 0 or less once it has.
    pub fn days_left(&self, now: DateTime<Utc>) -> i64 {
        days_left(self.not_after, now)
    }

    /// For people.
    pub fn name(&self) -> String {
        let (kind, thumbprint) = (self.kind.name(), self.thumbprint);
        match self.country {
            Some(country) => format!("the {kind} certificate {thumbprint} of {country}"),
            None => format!("the gateway's {kind} certificate {thumbprint}"),
        }
    }
}

/// Whole days until a certificate expires; 0 or less once it has.
pub fn days_left(not_after: DateTime<Utc>, now: DateTime<Utc>) -> i64 {
    let left = not_after - now;
    if left < chrono::TimeDelta::zero() { left.num_days().min(0) } else { left.num_days() + 1 }
}

/// A duration for people, to the second.
pub fn short(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds if seconds < 7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests;
