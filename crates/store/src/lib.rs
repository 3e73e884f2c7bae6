//! The only place that knows SQL.
//!
//! It speaks in types of the protocol and the domain; drivers and their errors stay inside. There is one idiom for
//! queries: SQL text with `?` for each value, the same text for all databases. `values!` binds the values, a `row::Row`
//! reads what is returned. What a table's columns are is said once, by `row!`, beside the table's queries. What the
//! databases say differently is in `sql`.
//!
//! Two drivers carry it out. `sea-orm` holds the schema's steps, the pools, the transactions and all ordinary reads and
//! writes. `mysql_async` is the bulk path on MySQL and MariaDB (`bulk`): the transaction of an upload, reading payloads,
//! and the access log, whose transaction is one text of literals in one round trip. On SQLite, `sea-orm` carries out the
//! same steps.
//!
//! `Store::tx` composes a transaction of steps, which are methods of `tx::Tx`.
//!
//! Every operation has a name and a deadline and is retried here, and only here, when the database says that
//! a retry helps (deadlock, lock time-out, failover, lost connection). A closure can therefore run twice.
//!
//! An operation that is given up at its deadline leaves its statement to the server, which ends it by itself after the
//! same time (see `sql::mysql_session`). On MySQL that holds for reads only. Its writes are bounded by their rows: each
//! names those of one step, one upload or one batch, and waits at most `sql::LOCK_WAIT` seconds for a lock. The
//! exceptions are commands of the operator that write a row for each upload (`journal backfill`, `journal replay`).
//! `KILL QUERY` is not used: behind a proxy, the number of a connection can be that of another one on another server.

use std::{
    future::Future,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use efgs_migrations::{Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tracing::{Instrument as _, Span, field::Empty, trace_span};

use efgs_kit::{
    config::{ConfigError, Database, Secret},
    telemetry,
};

mod access_log;
mod access_log_head;
mod batches;
mod bulk;
mod callback_queue;
mod callbacks;
mod certificates;
mod connect;
mod days;
mod error;
mod expiry;
mod journal;
mod lease;
mod overview;
mod participants;
mod pool;
mod quota;
mod replicas;
mod restore;
mod rotation;
mod row;
mod sizing;
mod sql;
mod statistics;
mod tx;
mod uploads;
mod withdrawals;

pub use access_log::{RecordFilter, StoredRecord};
pub use access_log_head::{Appended, StatementPosition, StoredStatement};
pub use batches::{AuditRow, BatchRecord, BatchUpload, ChainPage, Formation, Pending};
pub use callback_queue::{
    CallbackBacklog, CallbackLease, CountedCall, DueSubscription, FailedCall, Notification,
};
pub use callbacks::{Put, Subscription, SubscriptionState};
pub use certificates::{Imported, NewCertificate};
pub use error::StoreError;
pub use expiry::ExpiryStep;
pub use journal::{Journaled, PendingBatch, PendingWithdrawal};
pub use lease::{Job, Lease};
pub use overview::{Ending, Hour, KnownInstance};
pub use participants::Traffic;
pub use pool::PoolState;
pub use restore::Restored;
pub use rotation::KeyUse;
pub use sizing::Sizing;
pub use statistics::LastSeen;
pub use uploads::{ALL_POSITIONS, JournalUpload, StoredPayload, UploadOutcome};
pub use withdrawals::{ListedUpload, Withdrawal, WithdrawnBy};

use error::Failure;
use tx::Queries;

/// How long a request's operation takes at most while the database is unreachable.
pub const HURRY: Duration = Duration::from_millis(1500);

/// The longest that bringing the schema up to date may take.
const MIGRATION: Duration = Duration::from_secs(24 * 3600);

/// What of the database crates' own messages is worth an operator's time.
pub const LOG_FILTER: &str = "sea_orm_migration=warn";

/// A handle on the database; clones share its connections.
#[derive(Clone)]
pub struct Store {
    db: DatabaseConnection,
    /// Connections whose statements have no time limit; the server ends those of all others.
    patient: DatabaseConnection,
    bulk: bulk::Bulk,
    /// A connection that uploads cannot take: every answer waits for the access log.
    log: bulk::Bulk,
    timeout: Duration,
    /// Whether what is stored is to be written to a journal.
    journal: bool,
    /// Permits to look up what conflicts with an upload: that must not take all the connections that everything
    /// but bulk work shares.
    lookups: Arc<Semaphore>,
    lease_names: lease::Names,
    replicas: Arc<replicas::Replicas>,
    /// Whether there may be hashes of keys that were stored before these were divided by day.
    keys_before_days: Arc<AtomicBool>,
    /// Whether the last operation found no connection; clones share it.
    unreachable: Arc<watch::Sender<bool>>,
    /// Whether operations give up soon when there is no connection.
    hurried: bool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("backend", &self.db.get_database_backend()).finish_non_exhaustive()
    }
}

impl Store {
    /// Prepares the pools; connections are made when they are needed.
    pub fn connect(config: &Database, url: &Secret) -> Result<Self, ConfigError> {
        connect::connect(config, url)
    }

    /// With a journal: what is stored from now on is put into a batch, and served, once it is in the journal.
    pub fn with_journal(self) -> Self {
        Self { journal: true, ..self }
    }

    /// For requests: while the database is unreachable, an operation ends within [`HURRY`], not within
    /// `database.timeout`.
    pub fn hurried(&self) -> Self {
        Self { hurried: true, ..self.clone() }
    }

    /// Whether the database was unreachable for the last operation that ended.
    pub fn is_unreachable(&self) -> bool {
        *self.unreachable.borrow()
    }

    /// Returns when an operation that has `begun` then must give up, because the database is unreachable.
    async fn gives_up(&self, begun: Instant) {
        if !self.hurried {
            return std::future::pending().await;
        }
        let mut state = self.unreachable.subscribe();
        loop {
            // The sender is this value's own, so none of this fails.
            drop(state.wait_for(|unreachable| *unreachable).await);
            // A single connection that has died says nothing: the next attempt makes a new one.
            let end = (begun + HURRY).max(Instant::now() + HURRY / 3);
            tokio::select! {
                () = tokio::time::sleep_until(end) => return,
                _ = state.wait_for(|unreachable| !*unreachable) => {}
            }
        }
    }

    fn set_unreachable(&self, now: bool) {
        self.unreachable.send_if_modified(|before| std::mem::replace(before, now) != now);
    }

    /// Brings the schema up to date. Safe to call from several instances at once.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        // An unreachable database is reported soon. Changing large tables then has no such limit.
        self.ping().await?;
        let patient = Self { timeout: MIGRATION, db: self.patient.clone(), ..self.clone() };
        patient
            .repeat("migrate", || async {
                // A newer version may have been here: its steps are none of ours, and the rule of expanding before
                // contracting lets this version run on them.
                if patient.missing_steps().await? == 0 {
                    return Ok(());
                }
                Migrator::up(&patient.db, None).await.map_err(|error| match Failure::from(error) {
                    // Another instance has recorded the same step: look again.
                    Failure::Duplicate => Failure::Transient("another instance migrates".into()),
                    other => other,
                })
            })
            .await
    }

    /// Whether every step of the schema has been carried out.
    pub async fn schema_is_current(&self) -> Result<bool, StoreError> {
        self.repeat("schema", || async { Ok(self.missing_steps().await? == 0) }).await
    }

    /// Whether no step of the schema has been carried out yet.
    pub async fn is_empty(&self) -> Result<bool, StoreError> {
        self.repeat("schema", || async { Ok(self.done_steps().await?.is_empty()) }).await
    }

    /// How many of this version's steps have not been carried out.
    async fn missing_steps(&self) -> Result<usize, Failure> {
        let done = self.done_steps().await?;
        Ok(Migrator::migrations().iter().filter(|step| !done.iter().any(|done| done == step.name())).count())
    }

    /// The names of the steps that have been carried out; asking for them needs no right but to read.
    async fn done_steps(&self) -> Result<Vec<String>, Failure> {
        // The migrator's own question would make its table.
        match self.db.rows("SELECT version FROM seaql_migrations", vec![]).await {
            // There is no table of them yet.
            Err(Failure::Schema(_)) => Ok(Vec::new()),
            done => done,
        }
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.repeat("ping", || async { Ok(self.db.execute_unprepared("SELECT 1").await.map(|_| ())?) }).await
    }

    /// How many uploads are stored, and how many batches are read, at once: together all connections of the bulk
    /// path. SQLite has one writer, and waiting for it in a queue is faster than asking again and again.
    pub fn bulk_slots(&self) -> (usize, usize) {
        match self.bulk {
            bulk::Bulk::MySql { max, .. } => {
                let reading = (max / 4).max(1);
                (max.saturating_sub(reading).max(1), reading)
            }
            bulk::Bulk::Sqlite => (1, 4),
        }
    }

    /// Closes the pools after what is under way; waits no longer than one operation may take, because the end of a
    /// connection that died with its server may never be told.
    pub async fn close(self) {
        let closing = async {
            self.bulk.close().await;
            self.log.close().await;
            self.replicas.close().await;
            // The pool is gone either way.
            drop(self.patient.close().await);
            drop(self.db.close().await);
        };
        if tokio::time::timeout(self.timeout, closing).await.is_err() {
            tracing::debug!("the database connections did not close in time");
        }
    }

    /// Runs `operation` until it succeeds, fails for good, or the time for it is over.
    async fn repeat<T, F, Fut>(&self, name: &'static str, operation: F) -> Result<T, StoreError>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let begun = Instant::now();
        // As a part of something; what the jobs ask each second is not worth a trace.
        let span = if Span::current().is_none() {
            Span::none()
        } else {
            trace_span!(
                target: telemetry::SPANS, "database", otel.name = name, otel.kind = "client",
                otel.status_code = Empty, db.system.name = self.system(), db.operation.name = name, retries = Empty,
            )
        };
        let (outcome, retries) = self.attempts(name, begun, operation).instrument(span.clone()).await;
        span.record("retries", retries);
        if outcome.is_err() {
            span.record("otel.status_code", "ERROR");
        }
        metrics::counter!(telemetry::STORE_RETRIES, "operation" => name).increment(retries);
        metrics::histogram!(telemetry::STORE_SECONDS, "operation" => name)
            .record(begun.elapsed().as_secs_f64());
        outcome
    }

    /// Attempts until one succeeds or it is over; and how many there were beside the first.
    async fn attempts<T, F, Fut>(
        &self,
        name: &'static str,
        begun: Instant,
        mut operation: F,
    ) -> (Result<T, StoreError>, u64)
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let deadline = begun + self.timeout;
        let mut wait = Duration::from_millis(10);
        let mut retries = 0;
        let attempting = async {
            loop {
                let failure = match tokio::time::timeout_at(deadline, operation()).await {
                    Ok(Ok(value)) => {
                        self.set_unreachable(false);
                        break Ok(value);
                    }
                    Ok(Err(failure)) => failure,
                    Err(_) => {
                        self.set_unreachable(true);
                        break Err(StoreError::Timeout { operation: name, after: self.timeout });
                    }
                };
                let cause = match failure {
                    Failure::Transient(cause) => cause,
                    Failure::Unreachable(cause) => {
                        self.set_unreachable(true);
                        cause
                    }
                    // Another attempt would take as long.
                    Failure::TooLong => {
                        break Err(StoreError::Timeout { operation: name, after: self.timeout });
                    }
                    failure => break Err(failure.into_error(name)),
                };
                let pause = wait.mul_f64(efgs_protocol::random::jitter(0.5));
                if Instant::now() + pause >= deadline {
                    break Err(Failure::Transient(cause).into_error(name));
                }
                tracing::debug!(operation = name, cause, "the database asked for another attempt");
                retries += 1;
                tokio::time::sleep(pause).await;
                wait = (wait * 2).min(Duration::from_millis(500));
            }
        };
        let outcome = tokio::select! {
            outcome = attempting => outcome,
            () = self.gives_up(begun) => Err(StoreError::no_connection(name)),
        };
        (outcome, retries)
    }

    /// The database's name in traces.
    fn system(&self) -> &'static str {
        match self.bulk {
            bulk::Bulk::MySql { .. } => "mysql",
            bulk::Bulk::Sqlite => "sqlite",
        }
    }
}
