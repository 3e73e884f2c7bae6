//! Bringing records from the spool to the database, behind the answers.

use std::{fs, io, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use efgs_access_log::segment::Segment;
use futures_util::FutureExt as _;
use tokio::{sync::mpsc, time::Instant};

use super::{
    AccessLog, BATCH, ChainEnd, PROBE, Record, Stated, Statement, StatementKind,
    spool::{LeftBehind, Spool, on_a_thread, set_aside},
    ticks,
};
use crate::{
    health::{Health, JobWatch, Severity, Trouble},
    jobs::Shutdown,
    store::StoreError,
};

/// How long records gather before they are shipped with one commit, unless there are enough of them.
const GATHER: Duration = Duration::from_millis(200);

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// How often it is looked for what instances that no longer run have left.
const SEARCH: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
enum ShippingError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the spool cannot be read: {0}")]
    Spool(#[from] io::Error),
    #[error("the gateway stops")]
    Stopped,
}

/// Ships what comes in until the gateway stops, and then the rest, if the database takes it.
pub(super) async fn run(
    log: &AccessLog,
    spool: Arc<Spool>,
    mut in_use: mpsc::Receiver<()>,
    health: &Health,
    mut shutdown: Shutdown,
) {
    let every = log.settings.sign_every;
    let probe = PROBE.min(every);
    let (stop_syncing, stopped) = Shutdown::new();
    let syncing = tokio::spawn(spool.clone().keep_synced(stopped));
    // Requests are answered while the spool takes their records.
    let watch = health.watch_with("log-writer", probe, Severity::Attention);
    let mut shipper = Shipper {
        log,
        health,
        spool: spool.clone(),
        shutdown: shutdown.clone(),
        watch,
        stated: Stated::new(log, health),
        shipped: ChainEnd::default(),
        left: Vec::new(),
        searched: None,
        failing: false,
    };
    if spool.set_aside().exists() {
        shipper.warn_of_set_aside();
    }
    let (mut probing, mut stating) = (ticks(probe), ticks(every));
    let mut stopping = false;
    loop {
        tokio::select! {
            () = shipper.due() => shipper.turn().await,
            _ = probing.tick(), if !shipper.failing => shipper.watch.progressed(),
            _ = stating.tick() => shipper.stated.sign(&shipper.shipped).await,
            _ = in_use.recv() => break,
            () = shutdown.requested(), if !stopping => {
                stopping = true;
                drop(log.queue.lock().take());
            }
        }
    }
    while spool.waiting() > 0 && shipper.ship().await.is_ok() {}
    if spool.waiting() == 0 {
        shipper.stated.end(&shipper.shipped).await;
    }
    stop_syncing.send_replace(true);
    drop(syncing.await);
    spool.close();
}

struct Shipper<'a> {
    log: &'a AccessLog,
    health: &'a Health,
    spool: Arc<Spool>,
    shutdown: Shutdown,
    watch: JobWatch,
    stated: Stated<'a>,
    /// Where the chain ends in the database.
    shipped: ChainEnd,
    /// What instances that no longer run have left.
    left: Vec<LeftBehind>,
    searched: Option<Instant>,
    failing: bool,
}

impl Shipper<'_> {
    /// Returns when there is something to do.
    async fn due(&self) {
        if self.failing {
            return tokio::time::sleep(RETRY).await;
        }
        let searching = self.searched.map_or(Duration::ZERO, |at| SEARCH.saturating_sub(at.elapsed()));
        if self.shutdown.is_requested() || self.left.is_empty() {
            tokio::select! {
                () = tokio::time::sleep(searching), if !self.shutdown.is_requested() => return,
                () = self.spool.has_records() => {}
            }
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = self.spool.has_many(BATCH as i64) => {}
            }
        }
    }

    async fn turn(&mut self) {
        let outcome = self.step().await;
        match &outcome {
            Ok(()) => self.watch.progressed(),
            Err(error) => self.watch.failed(error.to_string()),
        }
        match outcome {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!("the database takes the records of the access log again");
            }
            Ok(()) | Err(ShippingError::Stopped) => {}
            // One message when it begins to fail.
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::error!(%error, "the database does not take the records of the access log: they stay in the spool");
            }
            Err(error) => {
                tracing::debug!(%error, "the database still does not take the records of the access log")
            }
        }
    }

    async fn step(&mut self) -> Result<(), ShippingError> {
        if !self.shutdown.is_requested() && self.searched.is_none_or(|at| at.elapsed() >= SEARCH) {
            self.searched = Some(Instant::now());
            let spool = self.spool.clone();
            self.left.extend(on_a_thread(move || Ok(spool.take_over())).await?);
            self.spool.set_left_behind(&self.left);
        }
        // New records first: what is left may be much, or not readable.
        while self.spool.waiting() > 0 {
            self.ship().await?;
            if self.spool.waiting() < BATCH as i64 {
                break;
            }
        }
        if let Some(left) = self.left.last()
            && !self.shutdown.is_requested()
        {
            match self.ship_left(left).await {
                Err(ShippingError::Spool(error)) => tracing::error!(
                    folder = %left.folder.display(), %error,
                    "what an instance has left in the spool cannot be read now; it is tried again within a minute"
                ),
                shipped => shipped?,
            }
            self.left.pop();
            self.spool.set_left_behind(&self.left);
        }
        Ok(())
    }

    /// Ships the next records of this instance.
    async fn ship(&mut self) -> Result<(), ShippingError> {
        let parcel = self.spool.next(BATCH).await?;
        if let Some(before) = &parcel.before {
            // A file begins with this statement: if the records before it are lost, the statement names them.
            self.stated.state(before).await?;
        }
        self.deliver(&self.log.instance.id, &parcel.records).await?;
        self.spool.has_shipped(&parcel);
        if let Some(last) = parcel.records.last() {
            self.shipped = ChainEnd::new(last.sequence, last.hash);
        }
        Ok(())
    }

    /// Brings records of an instance into the database. A record that it refuses is set aside: the others must not wait
    /// behind it.
    async fn deliver(&self, instance: &str, records: &[Record]) -> Result<(), ShippingError> {
        let store = &self.log.store;
        // What is still to be written, in its order; the next part is the last one.
        let mut parts = vec![records];
        while let Some(part) = parts.pop() {
            let reason = match AssertUnwindSafe(store.ship_records(part)).catch_unwind().await {
                Ok(Ok(others)) if others.is_empty() => continue,
                Ok(Ok(others)) => {
                    let mine =
                        part.iter().filter(|record| others.contains(&record.sequence)).cloned().collect();
                    self.set_aside(instance, mine, "others have put a record into its place").await?;
                    continue;
                }
                Ok(Err(StoreError::Refused { reason, .. })) if store.try_log(instance).await.is_ok() => {
                    reason
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => "a panic: please report it".to_owned(),
            };
            if part.len() > 1 {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            } else {
                self.set_aside(instance, part.to_vec(), &reason).await?;
            }
        }
        Ok(())
    }

    async fn set_aside(&self, instance: &str, records: Vec<Record>, reason: &str) -> io::Result<()> {
        let sequence = records.first().map(|first| first.sequence);
        tracing::error!(
            instance,
            sequence,
            records = records.len(),
            reason,
            "the database refuses records of the access log: they are in the spool's folder {}/refused.jsonl",
            self.spool.set_aside().display()
        );
        self.warn_of_set_aside();
        let spool = self.spool.clone();
        on_a_thread(move || spool.keep_refused(&records)).await
    }

    fn warn_of_set_aside(&self) {
        let why = format!("look at {}, then remove it", self.spool.set_aside().display());
        self.health.set_trouble(Trouble::AccessLogSetAside, Some(why));
    }

    /// Ships what another instance has left, under its own chain. It may have been shipped before.
    async fn ship_left(&self, left: &LeftBehind) -> Result<(), ShippingError> {
        let instance = &*left.instance;
        // Where the chain ends, as long as everything follows.
        let mut end: Option<ChainEnd> = None;
        let mut sound = true;
        let mut records = 0;
        for path in left.files()? {
            let reading = path.clone();
            let segment = on_a_thread(move || Ok(Segment::read(&fs::read(reading)?))).await?;
            if segment == Segment::default() {
                // Allocated, and never begun.
                continue;
            }
            let faults = self.faults(instance, &segment, end.as_ref());
            for part in segment.records.chunks(BATCH) {
                if self.shutdown.is_requested() {
                    return Err(ShippingError::Stopped);
                }
                self.deliver(instance, part).await?;
                self.watch.progressed();
            }
            records += segment.records.len();
            if segment.torn > 0 {
                tracing::info!(
                    path = %path.display(), bytes = segment.torn,
                    "the last record in this file of the spool is not whole: it was being written, and is discarded"
                );
            }
            if let Some(last) = segment.records.last() {
                end = Some(ChainEnd::new(last.sequence, last.hash));
            } else if end.is_none() {
                end = begin(&segment);
            }
            if !faults.is_empty() {
                sound = false;
                let folder = self.spool.set_aside();
                tracing::error!(
                    path = %path.display(), faults = faults.join("; "),
                    "this file of the spool is not as the gateway wrote it: what can be read of it is in the database; the \
                     file is kept in {}, and `efgs-gateway access-log verify` names the records that are missing",
                    folder.display()
                );
                self.warn_of_set_aside();
                on_a_thread(move || set_aside(&folder, &path)).await?;
            }
        }
        // Signing a statement about records that do not follow each other would legitimise them.
        if let Some(end) = end.filter(|end| sound && end.sequence > 0) {
            self.log.state(StatementKind::Head, instance, &end).await?;
        }
        let folder = left.folder.clone();
        on_a_thread(move || fs::remove_dir_all(folder)).await?;
        tracing::warn!(
            instance,
            records,
            "what an instance that did not stop in order has left in the spool was shipped"
        );
        Ok(())
    }

    /// What is wrong with a file of an instance whose records before it end at `end`.
    fn faults(&self, instance: &str, segment: &Segment, end: Option<&ChainEnd>) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(at) = segment.damaged_at {
            faults.push(format!("damaged at byte {at}"));
        }
        let evidence = self.log.evidence();
        let stated = segment.statement.as_ref().and_then(|signed| Statement::parse(&signed.statement));
        match (&segment.statement, stated.filter(|stated| stated.instance == instance)) {
            (Some(signed), Some(_)) if evidence.keys.is_empty() || evidence.verifies(signed) => {}
            _ => faults
                .push("no statement of this instance at its beginning, signed with a known key".to_owned()),
        }
        let begin = begin(segment);
        if let (Some(end), Some(begin)) = (end, &begin)
            && end != begin
        {
            faults.push(format!(
                "begins after record {}, and the one before ends with {}",
                begin.sequence, end.sequence
            ));
        }
        let mut before = begin;
        for record in &segment.records {
            if record.instance != instance {
                faults.push(format!("record {} is of instance {}", record.sequence, record.instance));
            }
            let follows =
                |before: &ChainEnd| before.sequence + 1 == record.sequence && before.hash == record.previous;
            if !before.as_ref().is_some_and(follows) {
                faults.push(format!("record {} does not follow the one before it", record.sequence));
            }
            before = Some(ChainEnd::new(record.sequence, record.hash));
        }
        faults
    }
}

/// The chain before a file, as its statement says.
fn begin(segment: &Segment) -> Option<ChainEnd> {
    let stated = Statement::parse(&segment.statement.as_ref()?.statement)?;
    Some(ChainEnd::new(stated.sequence, super::unhex(&stated.hash)?))
}
