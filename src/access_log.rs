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

mod retention;
mod trail;
pub mod verify;

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

pub use efgs_access_log::{
    ChainEnd, Entry, Hash, Key, KeyError, NOBODY, ORIGIN, Record, SignedStatement, Signer, Statement,
    StatementKind, Tally, digest, hash, hex, operation, tallies,
};
pub use retention::{Forgotten, RetentionError};
pub use trail::{Facts, Trail, note, trail};
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

/// Entries that wait to be written; there are more only when the database does not keep up.
const WAITING: usize = 4096;

/// An entry on its way into the log, and who waits for it.
#[derive(Debug)]
struct QueuedEntry {
    entry: Entry,
    done: Option<oneshot::Sender<bool>>,
    /// Whether its request has been answered 503, because this took too long.
    refused: Arc<AtomicBool>,
}

impl QueuedEntry {
    fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Sends entries to the task that writes.
#[derive(Clone, Debug)]
pub struct Queue {
    sender: mpsc::Sender<QueuedEntry>,
    patience: Duration,
}

impl Queue {
    /// Returns when the entry is durable, with `false` when it could not be made so in time.
    async fn write(&self, entry: Entry) -> bool {
        let (done, written) = oneshot::channel();
        let refused = Arc::<AtomicBool>::default();
        if self.sender.try_send(QueuedEntry { entry, done: Some(done), refused: refused.clone() }).is_err() {
            return false;
        }
        let ok = matches!(tokio::time::timeout(self.patience, written).await, Ok(Ok(true)));
        refused.store(!ok, Ordering::Relaxed);
        ok
    }

    /// Sends an entry without waiting for it.
    fn leave(&self, entry: Entry) {
        let left = self.sender.try_send(QueuedEntry { entry, done: None, refused: Arc::default() });
        // If the channel is closed, the gateway has stopped.
        if let Err(mpsc::error::TrySendError::Full(lost)) = left {
            let id = lost.entry.request_id;
            tracing::warn!(request_id = id, "the access log is full: an abandoned request has no record");
        }
    }
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
    incoming: Mutex<Option<mpsc::Receiver<QueuedEntry>>>,
    signer: Option<Signer>,
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
        let (sender, incoming) = mpsc::channel(WAITING);
        let signer = config.signing_key.as_deref().map(Signer::read).transpose();
        let signer = signer.map_err(|e| ConfigError::Invalid(format!("`access_log.signing_key`: {e}")))?;
        let former: Result<Vec<Key>, _> = config.former_keys.iter().map(|path| Key::read(path)).collect();
        let mut keys = former.map_err(|e| ConfigError::Invalid(format!("`access_log.former_keys`: {e}")))?;
        keys.extend(signer.as_ref().map(|signer| signer.public().clone()));
        let evidence = Evidence { keys, signed_from: config.signed_from, ..Evidence::default() };
        let queue = Mutex::new(Some(Queue { sender, patience }));
        Ok(Self {
            store,
            clock,
            instance,
            settings: config.clone(),
            queue,
            incoming: Mutex::new(Some(incoming)),
            signer,
            evidence,
            newest: Default::default(),
        })
    }

    /// Where requests send their entries; `None` when the gateway has stopped.
    pub fn queue(&self) -> Option<Queue> {
        self.queue.lock().clone()
    }

    /// What signs statements, if a key is configured.
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
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

    /// States that this instance's chain begins, before its first request.
    pub async fn begin(&self) -> Result<(), StoreError> {
        if cfg!(feature = "bench-unrecorded") {
            tracing::error!(
                "this program was built for a benchmark and records no request: never let it serve"
            );
        }
        self.state(StatementKind::Start, &ChainEnd::default()).await
    }

    /// Writes a statement about this instance's chain.
    async fn state(&self, kind: StatementKind, end: &ChainEnd) -> Result<(), StoreError> {
        let host = (kind == StatementKind::Start).then(|| self.instance.host.clone());
        let statement = Statement { host, ..Statement::new(kind, &self.instance.id, end, self.clock.now()) };
        self.append(&statement).await
    }

    /// Writes down what comes in, until the gateway stops and nothing is left.
    pub async fn run(self: Arc<Self>, health: Arc<Health>, mut shutdown: Shutdown) {
        let incoming = self.incoming.lock().take();
        let Some(mut incoming) = incoming else { return };
        let every = self.settings.sign_every;
        let probe = PROBE.min(every);
        // A log that cannot be written makes the gateway unready: every answer is 503. So does a log without statements:
        // it could no longer be verified.
        let watch = health.watch("log-writer", probe);
        let signing = health.watch("log-signer", every);
        let mut writer =
            LogWriter { log: &self, end: ChainEnd::default(), stated: 0, failing: false, watch, signing };
        let ticks = |period| tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        let (mut probing, mut stating) = (ticks(probe), ticks(every));
        let mut batch = Vec::with_capacity(BATCH);
        let mut stopping = false;
        loop {
            tokio::select! {
                received = incoming.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        break;
                    }
                    // A request whose entry is lost in a panic is answered 503.
                    catching_panics(&writer.watch.clone(), writer.write(batch.drain(..))).await;
                }
                _ = probing.tick() => catching_panics(&writer.watch.clone(), writer.probe()).await,
                _ = stating.tick() => catching_panics(&writer.signing.clone(), writer.sign()).await,
                () = shutdown.requested(), if !stopping => {
                    stopping = true;
                    drop(self.queue.lock().take());
                }
            }
        }
        catching_panics(&writer.signing.clone(), writer.sign()).await;
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

struct LogWriter<'a> {
    log: &'a AccessLog,
    end: ChainEnd,
    /// The last record that a statement names.
    stated: i64,
    failing: bool,
    watch: JobWatch,
    signing: JobWatch,
}

impl LogWriter<'_> {
    async fn write(&mut self, batch: impl Iterator<Item = QueuedEntry>) {
        // New requests must not wait behind those that were refused during an outage.
        let wanted = |one: &QueuedEntry| !(self.failing && one.is_refused());
        let (entries, mut waiting): (Vec<Entry>, Vec<_>) =
            batch.filter(wanted).map(|one| (one.entry, one.done)).unzip();
        // What is still to be written, in its order; the next part is the last one.
        let mut parts = Vec::from_iter((!entries.is_empty()).then_some(&entries[..]));
        let mut waiting = waiting.drain(..);
        while let Some(part) = parts.pop() {
            let written = self.log.store.append_records(&self.log.instance.id, &mut self.end, part).await;
            if let Err(StoreError::Refused { reason, .. }) = &written
                && self.log.store.try_log(&self.log.instance.id).await.is_ok()
            {
                // The log works, and one entry is refused: the others are written without it.
                if part.len() > 1 {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                    continue;
                }
                let id = part.first().map(|entry| entry.request_id.as_str());
                tracing::error!(
                    request_id = id,
                    reason,
                    "the database refuses this record: please report it"
                );
                let _ = waiting.next().flatten().map(|done| done.send(false));
                continue;
            }
            let ok = written.is_ok();
            self.learn(written);
            for done in waiting.by_ref().take(part.len()).flatten() {
                // The request may have been dropped.
                let _ = done.send(ok);
            }
        }
    }

    /// Tries whether a log that could not be written can be written again: a gateway that is not ready may get no
    /// request that would show it.
    async fn probe(&mut self) {
        if self.failing {
            let tried = self.log.store.try_log(&self.log.instance.id).await;
            self.learn(tried);
        } else {
            // Nothing to do.
            self.watch.progressed();
        }
    }

    /// Notes whether the log can be written.
    fn learn(&mut self, written: Result<(), StoreError>) {
        match &written {
            Ok(()) => self.watch.progressed(),
            Err(error) => self.watch.failed(error.to_string()),
        }
        match written {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!("the access log is written again");
            }
            Ok(()) => {}
            // One message when it begins to fail.
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::error!(%error, "the access log cannot be written: requests are answered 503");
            }
            Err(error) => tracing::debug!(%error, "the access log still cannot be written"),
        }
    }

    /// States where the chain ends, if it has grown.
    async fn sign(&mut self) {
        if self.end.sequence == self.stated {
            // Nothing to do.
            self.signing.progressed();
            return;
        }
        match self.log.state(StatementKind::Head, &self.end).await {
            Ok(()) => {
                self.stated = self.end.sequence;
                self.signing.progressed();
            }
            Err(error) => {
                tracing::warn!(%error, "the head of the access log could not be recorded; the task retries");
                self.signing.failed(error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_at_once_and_what_was_refused_is_marked() {
        let (sender, mut incoming) = mpsc::channel(1);
        let queue = Queue { sender, patience: Duration::from_secs(10) };
        let started = tokio::time::Instant::now();
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.write(Entry::default()).await }
        });
        tokio::task::yield_now().await;
        assert!(!queue.write(Entry::default()).await);
        queue.leave(Entry::default());
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert!(!waiting.await.unwrap());
        assert!(incoming.recv().await.unwrap().is_refused());

        // A caller who disconnected was not refused: what was done is recorded.
        let gone = tokio::time::timeout(Duration::from_secs(1), queue.write(Entry::default())).await;
        assert!(gone.is_err() && !incoming.recv().await.unwrap().is_refused());
        queue.leave(Entry::default());
        assert!(!incoming.recv().await.unwrap().is_refused() && incoming.try_recv().is_err());
    }
}
