//! Who did what, provably (spec §8).
//!
//! Every request to the national side is recorded **before it is answered**. One task per instance collects
//! what has come in while it was committing, chains it by hash, and inserts it with one commit: a record costs
//! a share of a commit, not one of its own. When the record cannot be made durable, the answer is 503: nobody
//! is served unseen.
//!
//! Records are chained by hash, one chain per start of a gateway. At intervals a signed statement says where
//! the chain stands; the statements of all instances form a chain themselves. [`verify`] walks both and names
//! whatever was changed, moved, inserted or removed. `docs/access-log.md` tells how others can do the same, and
//! what it proves.

mod head;
mod record;
mod retention;
mod tally;
mod trail;
pub mod verify;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

pub use head::{Key, KeyError, Kind, SignedStatement, Signer, Statement, digest};
pub use record::{Entry, Hash, ORIGIN, Record, hash, hex};
pub use retention::{forget_now, run as run_retention};
pub use tally::{NOBODY, Tally, tallies};
pub use trail::{Facts, Trail};

use crate::{
    app::App,
    config::{self, ConfigError},
    health::JobWatch,
    jobs::Shutdown,
    store::{ChainEnd, StoreError},
};

/// Records in one commit.
const BATCH: usize = 256;

/// An entry on its way into the log, and who waits for it.
#[derive(Debug)]
struct Waiting {
    entry: Entry,
    done: Option<oneshot::Sender<bool>>,
}

/// The way to the task that writes.
#[derive(Clone, Debug)]
pub struct Queue {
    sender: mpsc::UnboundedSender<Waiting>,
    patience: Duration,
}

impl Queue {
    /// Returns when the entry is durable, with `false` when it could not be made so in time.
    async fn write(&self, entry: Entry) -> bool {
        let (done, written) = oneshot::channel();
        if self.sender.send(Waiting { entry, done: Some(done) }).is_err() {
            return false;
        }
        matches!(tokio::time::timeout(self.patience, written).await, Ok(Ok(true)))
    }

    /// Leaves an entry that nobody waits for.
    fn leave(&self, entry: Entry) {
        // Without a task that writes, the gateway has stopped.
        drop(self.sender.send(Waiting { entry, done: None }));
    }
}

/// The log of this instance.
#[derive(Debug)]
pub struct AccessLog {
    /// Taken away when the gateway stops. The log ends when the last trail has let go of its copy: what still
    /// goes on for somebody who has hung up is recorded too.
    queue: Mutex<Option<Queue>>,
    incoming: Mutex<Option<mpsc::UnboundedReceiver<Waiting>>>,
    signer: Option<Signer>,
}

impl AccessLog {
    /// Prepares it; nothing is written yet. The queue needs no limit of its own: each connection has at most
    /// one request in it.
    pub fn new(config: &config::AccessLog, patience: Duration) -> Result<Self, ConfigError> {
        let (sender, incoming) = mpsc::unbounded_channel();
        let signer = config.signing_key.as_deref().map(Signer::read).transpose();
        let signer = signer.map_err(|e| ConfigError::Invalid(format!("`access_log.signing_key`: {e}")))?;
        let queue = Mutex::new(Some(Queue { sender, patience }));
        Ok(Self { queue, incoming: Mutex::new(Some(incoming)), signer })
    }

    /// Where requests leave their entries; none when the gateway has stopped.
    pub fn queue(&self) -> Option<Queue> {
        self.queue.lock().ok().and_then(|queue| queue.clone())
    }

    /// Who signs, if anybody does.
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
    }
}

/// Announces this instance's chain, before its first request.
pub async fn begin(app: &App) -> Result<(), StoreError> {
    state(app, Kind::Start, &ChainEnd::default()).await
}

/// Writes a statement about this instance's chain.
async fn state(app: &App, kind: Kind, end: &ChainEnd) -> Result<(), StoreError> {
    let host = (kind == Kind::Start).then(|| app.instance.host.clone());
    let statement = Statement { host, ..Statement::new(kind, &app.instance.id, end, app.clock.now()) };
    app.store.append_statement(app.access_log.signer(), &statement).await
}

/// Writes down what comes in, until the gateway stops and nothing is left.
pub async fn run(app: Arc<App>, mut shutdown: Shutdown) {
    let incoming = app.access_log.incoming.lock().ok().and_then(|mut incoming| incoming.take());
    let Some(mut incoming) = incoming else { return };
    let period = app.config.access_log.sign_every;
    // A log that cannot be written makes the gateway unready: it answers nothing but 503.
    let watch = app.health.watch("log-writer", period);
    let mut writer = Writer { end: ChainEnd::default(), stated: 0, failing: false, watch };
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    let mut batch = Vec::with_capacity(BATCH);
    let mut stopping = false;
    loop {
        tokio::select! {
            received = incoming.recv_many(&mut batch, BATCH) => {
                if received == 0 {
                    break;
                }
                writer.write(&app, batch.drain(..)).await;
            }
            _ = tick.tick() => writer.sign(&app).await,
            () = shutdown.requested(), if !stopping => {
                stopping = true;
                drop(app.access_log.queue.lock().map(|mut queue| queue.take()));
            }
        }
    }
    writer.sign(&app).await;
}

struct Writer {
    end: ChainEnd,
    /// The last record that a statement names.
    stated: i64,
    failing: bool,
    watch: JobWatch,
}

impl Writer {
    async fn write(&mut self, app: &App, batch: impl Iterator<Item = Waiting>) {
        let (entries, waiting): (Vec<Entry>, Vec<_>) = batch.map(|one| (one.entry, one.done)).unzip();
        let written = app.store.append_records(&app.instance.id, &mut self.end, &entries).await;
        let ok = written.is_ok();
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
        for done in waiting.into_iter().flatten() {
            // Who does not wait any more has gone away.
            let _ = done.send(ok);
        }
    }

    /// Says where the chain stands, if it has moved.
    async fn sign(&mut self, app: &App) {
        if self.end.sequence == self.stated {
            if !self.failing {
                // There was nothing to do.
                self.watch.progressed();
            }
            return;
        }
        match state(app, Kind::Head, &self.end).await {
            Ok(()) => self.stated = self.end.sequence,
            Err(error) => {
                tracing::warn!(%error, "the head of the access log could not be recorded; it is tried again")
            }
        }
    }
}
