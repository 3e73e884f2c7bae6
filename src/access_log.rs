//! Who did what, provably (spec §8).
//!
//! Every request to the national side is recorded **before it is answered**. One task per instance collects what
//! arrives while it commits, chains it by hash, and inserts it with one commit: a record costs a share of a commit,
//! not one of its own. When a record cannot be made durable, the answer is 503: no request is served unrecorded.
//!
//! Records are chained by hash, one chain per start of a gateway. At intervals a signed statement says where
//! the chain stands; the statements of all instances form a chain themselves. [`verify`] walks both and names
//! whatever was changed, moved, inserted or removed. `docs/access-log.md` describes how others can do the same, and
//! what it proves.

mod grouping;
mod retention;
mod shipping;
mod spool;
mod trail;
mod unregistered;
pub mod verify;

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::mpsc;

pub use efgs_access_log::{
    ChainEnd, Entry, Hash, Key, KeyError, NOBODY, ORIGIN, Record, SignedStatement, Signer, Statement,
    StatementKind, Tally, digest, hash, hex, operation, tallies, unhex,
};
use grouping::QueuedEntry;
pub use retention::{Forgotten, RetentionError};
use spool::Spool;
pub use spool::SpoolState;
pub use trail::{Facts, Trail, note, trail};
use unregistered::Counts;
use verify::Evidence;

use crate::{
    clock::Clock,
    config::{self, ConfigError},
    health::{Health, JobWatch},
    instance::Instance,
    jobs::Shutdown,
    store::{StatementPosition, Store, StoreError},
};

/// Records in one commit.
const BATCH: usize = 256;

/// How often a log that cannot be written is tried, at least.
const PROBE: Duration = Duration::from_secs(10);

/// Takes the entries of requests.
#[derive(Clone, Debug)]
pub struct Queue {
    sink: Sink,
    patience: Duration,
    counts: Arc<Counts>,
}

#[derive(Clone, Debug)]
enum Sink {
    /// Every answer waits for the database.
    Database(mpsc::Sender<QueuedEntry>),
    /// Every answer waits for a file. The channel says whether requests still use it.
    Spool { spool: Arc<Spool>, _users: mpsc::Sender<()> },
}

impl Queue {
    /// Returns when the entry is where the end of this process cannot lose it, and where a machine's crash cannot either
    /// if the request may have changed something; with `false` when it could not be brought there in time.
    async fn write(&self, entry: Entry) -> bool {
        match &self.sink {
            Sink::Database(sender) => grouping::write(sender, self.patience, entry).await,
            Sink::Spool { spool, .. } => {
                let only_reads = matches!(&*entry.method, "GET" | "HEAD" | "OPTIONS");
                match spool.append(entry) {
                    Ok(_) if only_reads && !spool.always_syncs() => true,
                    Ok(sequence) => {
                        tokio::time::timeout(self.patience, spool.synced(sequence)).await.unwrap_or(false)
                    }
                    Err(_) => false,
                }
            }
        }
    }

    /// Counts the request of an unregistered caller.
    fn count(&self, entry: Entry) {
        self.counts.add(entry).into_iter().for_each(|entry| self.leave(entry));
    }

    /// Takes an entry that nobody waits for.
    fn leave(&self, entry: Entry) {
        match &self.sink {
            Sink::Database(sender) => grouping::leave(sender, entry),
            Sink::Spool { spool, .. } => {
                let id = entry.request_id.clone();
                if let Err(error) = spool.append(entry) {
                    tracing::warn!(request_id = id, %error, "an abandoned request has no record");
                }
            }
        }
    }
}

/// Why the log cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The spool cannot be used.
    #[error(
        "`access_log.spool` ({path}) cannot be used: {source}; it must be a folder that the gateway may write to"
    )]
    Spool {
        /// The folder.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Where records come from.
#[derive(Debug)]
enum Source {
    Database(mpsc::Receiver<QueuedEntry>),
    Spool(Arc<Spool>, mpsc::Receiver<()>),
}

/// The log of this instance.
#[derive(Debug)]
pub struct AccessLog {
    store: Store,
    clock: Clock,
    instance: Instance,
    settings: config::AccessLog,
    /// Taken when the gateway stops. The log ends when the last trail has dropped its copy, so that work for callers who
    /// have disconnected is recorded too.
    queue: Mutex<Option<Queue>>,
    /// What [`run`](Self::run) works with, once the log has begun.
    source: Mutex<Option<Source>>,
    spool: OnceLock<Arc<Spool>>,
    counts: Arc<Counts>,
    patience: Duration,
    signer: Option<Arc<Signer>>,
    /// What statements are verified against.
    evidence: Evidence,
    /// The newest statement that this instance has put into the list.
    newest: tokio::sync::Mutex<Option<StatementPosition>>,
}

impl AccessLog {
    /// Prepares it; nothing is written yet. An answer waits for its record no longer than `patience`.
    pub fn new(
        config: &config::AccessLog,
        patience: Duration,
        store: Store,
        clock: Clock,
        instance: Instance,
    ) -> Result<Self, ConfigError> {
        let signer = config.signing_key.as_deref().map(Signer::read).transpose();
        let signer = signer.map_err(|e| ConfigError::Invalid(format!("`access_log.signing_key`: {e}")))?;
        let former: Result<Vec<Key>, _> = config.former_keys.iter().map(|path| Key::read(path)).collect();
        let mut keys = former.map_err(|e| ConfigError::Invalid(format!("`access_log.former_keys`: {e}")))?;
        keys.extend(signer.as_ref().map(|signer| signer.public().clone()));
        let evidence = Evidence { keys, signed_from: config.signed_from, ..Evidence::default() };
        Ok(Self {
            store,
            clock,
            instance,
            settings: config.clone(),
            queue: Mutex::default(),
            source: Mutex::default(),
            spool: OnceLock::new(),
            counts: Arc::default(),
            patience,
            signer: signer.map(Arc::new),
            evidence,
            newest: Default::default(),
        })
    }

    /// Where requests send their entries; `None` before the log has begun and when the gateway has stopped.
    pub fn queue(&self) -> Option<Queue> {
        self.queue.lock().clone()
    }

    /// What signs statements, if a key is configured.
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_deref()
    }

    /// The state of the spool, if there is one and the log has begun.
    pub fn spool_state(&self) -> Option<SpoolState> {
        self.spool.get().map(|spool| spool.state())
    }

    /// Returns when everything that has been recorded so far is in the database.
    pub async fn shipped(&self) {
        if let Some(spool) = self.spool.get() {
            spool.is_shipped().await;
        }
    }

    /// What statements are verified against: the keys that may have signed, and the first statement that must be signed.
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Appends a statement to the list, and logs when the list is not as expected. It is recorded nevertheless: `verify`
    /// finds the fault where it is, and later statements stay provable.
    async fn append(&self, statement: &Statement) -> Result<(), StoreError> {
        let mut newest = self.newest.lock().await;
        let appended = self.store.append_statement(self.signer(), statement, *newest).await?;
        *newest = Some(appended.place);
        let number = appended.place.number;
        if appended.broken {
            tracing::error!(
                number,
                "statements about the access log are not in the database any more: they were removed, or the database \
                 has lost them; run `efgs-gateway access-log verify`"
            );
        }
        match (appended.behind_signed, self.signer()) {
            (Some(false), Some(_)) => tracing::warn!(
                number,
                "the statement about the access log before this one is not signed: either signing begins with this one, \
                 then set `access_log.signed_from` to its number, or signatures were removed"
            ),
            (Some(true), None) => tracing::warn!(
                number,
                "this statement about the access log is not signed, although the one before it is: set \
                 `access_log.signing_key`, or `access-log verify` finds a fault here"
            ),
            _ => {}
        }
        Ok(())
    }

    /// Begins this instance's chain, before its first request.
    pub async fn begin(&self) -> Result<(), BeginError> {
        if cfg!(feature = "bench-unrecorded") {
            tracing::error!(
                "this program was built for a benchmark and records no request: never let it serve"
            );
        }
        self.state(StatementKind::Start, &self.instance.id, &ChainEnd::default()).await?;
        let (sink, source) = match self.settings.spool() {
            None => {
                let (sender, incoming) = mpsc::channel(grouping::WAITING);
                (Sink::Database(sender), Source::Database(incoming))
            }
            Some(folder) => {
                let opened =
                    Spool::open(&self.settings, folder, &self.instance, &self.clock, self.signer.clone());
                let path = folder.display().to_string();
                let spool = Arc::new(opened.map_err(|source| BeginError::Spool { path, source })?);
                let spool = self.spool.get_or_init(|| spool).clone();
                let (users, in_use) = mpsc::channel(1);
                (Sink::Spool { spool: spool.clone(), _users: users }, Source::Spool(spool, in_use))
            }
        };
        *self.queue.lock() = Some(Queue { sink, patience: self.patience, counts: self.counts.clone() });
        *self.source.lock() = Some(source);
        Ok(())
    }

    /// Writes a statement about an instance's chain.
    async fn state(&self, kind: StatementKind, instance: &str, end: &ChainEnd) -> Result<(), StoreError> {
        let host = (kind == StatementKind::Start).then(|| self.instance.host.clone());
        let statement = Statement { host, ..Statement::new(kind, instance, end, self.clock.now()) };
        self.append(&statement).await
    }

    /// Brings what is recorded into the database, until the gateway stops and nothing is left.
    pub async fn run(self: Arc<Self>, health: Arc<Health>, shutdown: Shutdown) {
        let source = self.source.lock().take();
        if let Some(queue) = self.queue() {
            tokio::spawn(record_counts(queue, self.clock.clone(), shutdown.clone()));
        }
        match source {
            Some(Source::Database(incoming)) => grouping::run(&self, incoming, &health, shutdown).await,
            Some(Source::Spool(spool, in_use)) => {
                shipping::run(&self, spool, in_use, &health, shutdown).await
            }
            None => {}
        }
    }
}

/// Records what was counted of unregistered callers, minute by minute, and the rest when the gateway stops.
async fn record_counts(queue: Queue, clock: Clock, mut shutdown: Shutdown) {
    let mut looking = ticks(Duration::from_secs(1));
    loop {
        let records = tokio::select! {
            _ = looking.tick() => queue.counts.complete(clock.now()),
            () = shutdown.requested() => break,
        };
        records.into_iter().for_each(|entry| queue.leave(entry));
    }
    queue.counts.close().into_iter().for_each(|entry| queue.leave(entry));
}

/// Ticks that begin after the first period.
fn ticks(period: Duration) -> tokio::time::Interval {
    tokio::time::interval_at(tokio::time::Instant::now() + period, period)
}

/// What the statements in the database say of this instance's chain.
struct Stated<'a> {
    log: &'a AccessLog,
    /// The last record that a statement names.
    last: i64,
    watch: JobWatch,
}

impl<'a> Stated<'a> {
    fn new(log: &'a AccessLog, health: &Health) -> Self {
        Self { log, last: 0, watch: health.watch("log-signer", log.settings.sign_every) }
    }

    /// States where the chain ends, if it has grown.
    async fn sign(&mut self, end: &ChainEnd) {
        let watch = self.watch.clone();
        let signing = async {
            match self.state(end).await {
                Ok(()) => self.watch.progressed(),
                Err(error) => {
                    tracing::warn!(%error, "the head of the access log could not be recorded; the task retries");
                    self.watch.failed(error.to_string());
                }
            }
        };
        catching_panics(&watch, signing).await;
    }

    /// States that the chain ends here, because the gateway stops in order.
    async fn end(&mut self, end: &ChainEnd) {
        let stating = async {
            if let Err(error) = self.log.state(StatementKind::End, &self.log.instance.id, end).await {
                tracing::warn!(%error, "the end of the access log could not be recorded");
            }
        };
        catching_panics(&self.watch, stating).await;
    }

    /// States that the chain has this record, unless that is stated already.
    async fn state(&mut self, end: &ChainEnd) -> Result<(), StoreError> {
        if end.sequence > self.last {
            self.log.state(StatementKind::Head, &self.log.instance.id, end).await?;
            self.last = end.sequence;
        }
        Ok(())
    }
}

/// Catches a panic, which is a defect and has been logged. If it ended the task, every request would be answered 503
/// until the gateway is restarted.
async fn catching_panics(watch: &JobWatch, work: impl Future<Output = ()>) {
    if AssertUnwindSafe(work).catch_unwind().await.is_err() {
        watch.failed("a panic: please report it".into());
        tracing::error!(job = watch.name(), "the access log continues after a panic: please report it");
    }
}
