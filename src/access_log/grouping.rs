//! Writing records into the database before the answers, with one commit for all that have come while the commit before
//! was under way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{AccessLog, BATCH, ChainEnd, Entry, PROBE, Stated, catching_panics, ticks};
use crate::{
    health::{Health, JobWatch},
    jobs::Shutdown,
    store::StoreError,
};

/// Entries that wait to be written; there are more only when the database does not keep up.
pub(super) const WAITING: usize = 4096;

/// An entry on its way into the log, and who waits for it.
#[derive(Debug)]
pub(super) struct QueuedEntry {
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

/// Returns when the entry is in the database, with `false` when it could not be brought there in time.
pub(super) async fn write(sender: &mpsc::Sender<QueuedEntry>, patience: Duration, entry: Entry) -> bool {
    let (done, written) = oneshot::channel();
    let refused = Arc::<AtomicBool>::default();
    if sender.try_send(QueuedEntry { entry, done: Some(done), refused: refused.clone() }).is_err() {
        return false;
    }
    let ok = matches!(tokio::time::timeout(patience, written).await, Ok(Ok(true)));
    refused.store(!ok, Ordering::Relaxed);
    ok
}

/// Sends an entry without waiting for it.
pub(super) fn leave(sender: &mpsc::Sender<QueuedEntry>, entry: Entry) {
    let left = sender.try_send(QueuedEntry { entry, done: None, refused: Arc::default() });
    // If the channel is closed, the gateway has stopped.
    if let Err(mpsc::error::TrySendError::Full(lost)) = left {
        let id = lost.entry.request_id;
        tracing::warn!(request_id = id, "the access log is full: an abandoned request has no record");
    }
}

/// Writes down what comes in, until the gateway stops and nothing is left.
pub(super) async fn run(
    log: &AccessLog,
    mut incoming: mpsc::Receiver<QueuedEntry>,
    health: &Health,
    mut shutdown: Shutdown,
) {
    let every = log.settings.sign_every;
    let probe = PROBE.min(every);
    // A log that cannot be written makes the gateway unready: every answer is 503. So does a log without statements:
    // it could no longer be verified.
    let watch = health.watch("log-writer", probe);
    let mut stated = Stated::new(log, health);
    let mut writer = LogWriter { log, end: ChainEnd::default(), failing: false, watch };
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
            _ = probing.tick() => {
                catching_panics(&writer.watch.clone(), writer.probe()).await;
            }
            _ = stating.tick() => stated.sign(&writer.end).await,
            () = shutdown.requested(), if !stopping => {
                stopping = true;
                drop(log.queue.lock().take());
            }
        }
    }
    stated.end(&writer.end).await;
}

struct LogWriter<'a> {
    log: &'a AccessLog,
    end: ChainEnd,
    failing: bool,
    watch: JobWatch,
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
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_at_once_and_what_was_refused_is_marked() {
        let (sender, mut incoming) = mpsc::channel(1);
        let patience = Duration::from_secs(10);
        let started = tokio::time::Instant::now();
        let waiting = tokio::spawn({
            let sender = sender.clone();
            async move { write(&sender, patience, Entry::default()).await }
        });
        tokio::task::yield_now().await;
        assert!(!write(&sender, patience, Entry::default()).await);
        leave(&sender, Entry::default());
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert!(!waiting.await.unwrap());
        assert!(incoming.recv().await.unwrap().is_refused());

        // A caller who disconnected was not refused: what was done is recorded.
        let gone =
            tokio::time::timeout(Duration::from_secs(1), write(&sender, patience, Entry::default())).await;
        assert!(gone.is_err() && !incoming.recv().await.unwrap().is_refused());
        leave(&sender, Entry::default());
        assert!(!incoming.recv().await.unwrap().is_refused() && incoming.try_recv().is_err());
    }
}
