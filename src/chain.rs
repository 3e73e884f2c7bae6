//! The chain of batches, in memory.
//!
//! A batch never changes once it is visible, and new batches are only appended. So what is in memory stays
//! correct, and only "is there another one?" needs the database. A request queries it exactly when its answer
//! would be "none yet" or "unknown"; concurrent requests share one query. The link to the next batch is
//! therefore always current, also when another instance formed that batch, and a country that catches up on
//! thousands of batches costs no queries.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{Days, NaiveDate};
use efgs_protocol::{
    batch_tag::{BatchTag, DayName, ObjectId},
    country::Country,
    media::SUPPORTED,
};
use parking_lot::{Mutex, RwLock};
use tracing::{Instrument as _, trace_span};

use crate::{
    clock::Clock,
    config::{ChainScope, Config, TagStyle},
    http::{Code, Error, Problem},
    store::{BatchRecord, Store, StoreError},
    telemetry,
    workers::Workers,
};

/// Why there is no batch to serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not a date.
    #[error("the date {found:?} is not of the form yyyy-MM-dd")]
    InvalidDate {
        /// What was sent, truncated.
        found: String,
    },
    /// The date is before the retention.
    #[error("the date {date} is too old: keys are kept since {oldest}")]
    TooOld {
        /// The requested date.
        date: NaiveDate,
        /// The first day that is kept.
        oldest: NaiveDate,
    },
    /// No batch has been formed since the date.
    #[error("no batch has been formed on or after {date} yet")]
    NoneSince {
        /// The requested date.
        date: NaiveDate,
    },
    /// No such batch.
    #[error("there is no batch with this tag")]
    Unknown,
    /// The batch was formed before the requested date.
    #[error("the batch was formed on {formed}, before {date}")]
    BeforeDate {
        /// The batch's day.
        formed: NaiveDate,
        /// The requested date.
        date: NaiveDate,
    },
}

impl Problem for ChainError {
    fn code(&self) -> Code {
        match self {
            Self::InvalidDate { .. } => Code::InvalidDate,
            Self::TooOld { .. } => Code::Gone,
            Self::NoneSince { .. } | Self::Unknown => Code::BatchNotFound,
            Self::BeforeDate { .. } => Code::BatchBeforeDate,
        }
    }
}

/// How long a request waits for the database when the batch that it asks for is in memory.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why the batches in memory may not be all.
enum Refresh {
    /// The database does not answer, and what is in memory counts.
    Unreachable(Error),
    Failed(Error),
}

/// A batch and the one after it.
#[derive(Clone, Debug)]
pub struct Link {
    /// The batch.
    pub batch: Arc<BatchRecord>,
    /// The next batch, if there is one yet.
    pub next: Option<Arc<BatchRecord>>,
}

/// The batches that this instance knows, oldest first.
#[derive(Debug)]
pub struct Chain {
    store: Store,
    clock: Clock,
    workers: Workers,
    config: Arc<Config>,
    batches: RwLock<Arc<Vec<Arc<BatchRecord>>>>,
    /// The uploads that are withdrawn, and those of them that the database no longer calls so.
    withdrawn: Mutex<HashSet<i64>>,
    undone: Mutex<Vec<i64>>,
    loaded: AtomicBool,
    asked: AtomicU64,
    answered: tokio::sync::Mutex<u64>,
}

/// Parses a date of the form `yyyy-MM-dd` strictly: chrono also accepts signs and more digits.
pub fn parse_date(text: &str) -> Option<NaiveDate> {
    let shape = text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() });
    text.parse().ok().filter(|_| shape)
}

impl Chain {
    /// An empty chain. [`Self::refresh`] loads the batches.
    pub fn new(store: Store, clock: Clock, workers: Workers, config: Arc<Config>) -> Self {
        Self {
            store,
            clock,
            workers,
            config,
            batches: RwLock::default(),
            withdrawn: Mutex::default(),
            undone: Mutex::default(),
            loaded: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            answered: tokio::sync::Mutex::new(0),
        }
    }

    /// The first day whose batches are still served.
    pub fn oldest(&self) -> NaiveDate {
        let today = self.clock.now().date_naive();
        today.checked_sub_days(Days::new(u64::from(self.config.retention.days))).unwrap_or(today)
    }

    /// Parses a date and checks it against the retention.
    pub fn date(&self, text: &str) -> Result<NaiveDate, ChainError> {
        let invalid = || ChainError::InvalidDate { found: text.chars().take(32).collect() };
        let date = parse_date(text).ok_or_else(invalid)?;
        let oldest = self.oldest();
        if date < oldest { Err(ChainError::TooOld { date, oldest }) } else { Ok(date) }
    }

    /// The answer, if it needs no query.
    pub fn known(
        &self,
        date: NaiveDate,
        tag: Option<BatchTag>,
        scope: ChainScope,
    ) -> Option<Result<Link, ChainError>> {
        match self.look(date, tag, scope) {
            Ok(link) if link.next.is_some() => Some(Ok(link)),
            Err(error @ ChainError::BeforeDate { .. }) => Some(Err(error)),
            _ => None,
        }
    }

    /// The batch with this tag, or the first one formed on or after `date`, together with the next one.
    pub fn look(
        &self,
        date: NaiveDate,
        tag: Option<BatchTag>,
        scope: ChainScope,
    ) -> Result<Link, ChainError> {
        let batches = self.snapshot();
        let mut at = match tag {
            None => batches.partition_point(|batch| batch.day < date),
            Some(BatchTag::ObjectId(id)) => {
                batches.binary_search_by_key(&id, |batch| batch.id).map_err(|_| ChainError::Unknown)?
            }
            Some(BatchTag::DayName(DayName { day, sequence })) => batches
                .binary_search_by_key(&(day, sequence), |batch| (batch.day, batch.sequence))
                .map_err(|_| ChainError::Unknown)?,
        };
        // Batches of a major version that this gateway does not support are hidden (spec §5.2).
        let served = |batch: &Arc<BatchRecord>| batch.format_major == SUPPORTED.major;
        if tag.is_none() {
            at += batches[at..].iter().position(served).ok_or(ChainError::NoneSince { date })?;
        }
        let batch = batches.get(at).filter(|batch| served(batch)).ok_or(ChainError::Unknown)?.clone();
        if batch.day < date {
            return Err(ChainError::BeforeDate { formed: batch.day, date });
        }
        if tag.is_none() && scope == ChainScope::Day && batch.day != date {
            return Err(ChainError::NoneSince { date });
        }
        let next = batches[at + 1..].iter().find(|batch| served(batch));
        let next = next.filter(|next| scope == ChainScope::SinceDate || next.day == batch.day).cloned();
        Ok(Link { batch, next })
    }

    /// The uploads that had been withdrawn and are not any more: nobody can undo that, so somebody changed the database.
    pub fn undone_withdrawals(&self) -> Vec<i64> {
        self.undone.lock().clone()
    }

    /// Removes newly withdrawn uploads from the batches in memory. Returns the batches that lost one.
    pub async fn refresh_withdrawals(&self) -> Result<Vec<ObjectId>, StoreError> {
        // The lock keeps new batches from being added meanwhile.
        let _adding = self.answered.lock().await;
        let withdrawn = self.store.withdrawn_uploads().await?;
        let missing: Vec<i64> = self.withdrawn.lock().difference(&withdrawn).copied().collect();
        // Others have expired.
        let undone = self.store.existing_uploads(&missing).await?;
        let withdrawn: HashSet<i64> = withdrawn.into_iter().chain(undone.iter().copied()).collect();
        self.withdrawn.lock().clone_from(&withdrawn);
        *self.undone.lock() = undone;
        // Every withdrawal is applied, not only new ones: a batch may have been read from a replica that lagged
        // behind.
        if withdrawn.is_empty() {
            return Ok(Vec::new());
        }
        let mut changed = Vec::new();
        let mut batches: Vec<_> = self.snapshot().to_vec();
        for batch in &mut batches {
            if batch.uploads.iter().any(|upload| withdrawn.contains(&upload.id)) {
                let mut smaller = BatchRecord::clone(batch);
                smaller.uploads.retain(|upload| !withdrawn.contains(&upload.id));
                smaller.withdrawn += (batch.uploads.len() - smaller.uploads.len()) as u32;
                changed.push(smaller.id);
                *batch = Arc::new(smaller);
            }
        }
        if !changed.is_empty() {
            *self.batches.write() = Arc::new(batches);
        }
        Ok(changed)
    }

    /// Whether it has been read to its end once.
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Relaxed)
    }

    /// The number of batches in memory.
    pub fn len(&self) -> usize {
        self.snapshot().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The newest known batches, newest first.
    pub fn newest(&self, amount: usize) -> Vec<Arc<BatchRecord>> {
        self.snapshot().iter().rev().take(amount).cloned().collect()
    }

    fn snapshot(&self) -> Arc<Vec<Arc<BatchRecord>>> {
        self.batches.read().clone()
    }

    /// Loads the batches after the newest one. If the database fails, the batches read so far are kept and the
    /// next call continues from there. Until the end has been reached, no request is told that there is no
    /// further batch.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let before = self.asked.load(Ordering::SeqCst);
        let mut answered = self.answered.lock().await;
        if *answered > before {
            // Another request has queried since we started waiting.
            return Ok(());
        }
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let oldest = self.oldest();
        let span = trace_span!(target: telemetry::SPANS, "refresh chain");
        self.read_on(oldest).instrument(span).await?;
        *answered = number;
        Ok(())
    }

    /// Reads pages until the last one.
    async fn read_on(&self, oldest: NaiveDate) -> Result<(), StoreError> {
        loop {
            let known = self.snapshot();
            let after = known.last().map(|batch| batch.id);
            let page = self.store.batches_after(after, oldest).await?;
            let new = page.batches;
            let outdated = known.partition_point(|batch| batch.day < oldest);
            if !new.is_empty() || outdated > 0 {
                // The newest batch stays even when it has expired: the next query starts from it.
                let outdated = if new.is_empty() { outdated.min(known.len() - 1) } else { outdated };
                let batches =
                    known[outdated..].iter().cloned().chain(new.into_iter().map(Arc::new)).collect();
                *self.batches.write() = Arc::new(batches);
            }
            if page.is_last {
                self.loaded.store(true, Ordering::Relaxed);
                return Ok(());
            }
        }
    }

    /// The batch with this tag, or the first one formed on or after `date`, and the next one that the country
    /// may see.
    pub async fn find(
        self: &Arc<Self>,
        country: Country,
        date: NaiveDate,
        tag: Option<BatchTag>,
    ) -> Result<Result<Link, ChainError>, Error> {
        let scope = self.config.participant(country).chain;
        if let Some(answer) = self.known(date, tag, scope) {
            return Ok(answer);
        }
        let refreshed = self.refreshed().await;
        let found = self.look(date, tag, scope);
        match (refreshed, &found) {
            (Ok(()), _) => Ok(found),
            // Its link says `null`, as it did when the database was last asked. A batch that is not known may exist.
            (Err(Refresh::Unreachable(_)), Ok(_)) => Ok(found),
            (Err(Refresh::Unreachable(error) | Refresh::Failed(error)), _) => Err(error),
        }
    }

    /// Asks the database for new batches, and does not wait for long while it is unreachable.
    async fn refreshed(self: &Arc<Self>) -> Result<(), Refresh> {
        let serves = !self.config.trust.read_grace.is_zero();
        let unreachable = || Refresh::Unreachable(StoreError::no_connection("batches").into());
        if serves && self.store.is_unreachable() {
            return Err(unreachable());
        }
        let chain = self.clone();
        let refreshing = self.workers.run(async move { chain.refresh().await });
        let patience = if serves { PATIENCE } else { Duration::MAX };
        match tokio::time::timeout(patience, refreshing).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) if serves && error.is_unreachable() => Err(Refresh::Unreachable(error.into())),
            Ok(Ok(Err(error))) => Err(Refresh::Failed(error.into())),
            Ok(Err(error)) => Err(Refresh::Failed(error.into())),
            Err(_) => Err(unreachable()),
        }
    }

    /// The name under which the country knows a batch.
    pub fn tag_for(&self, country: Country, batch: &BatchRecord) -> String {
        self.name_for(country, batch.id, DayName { day: batch.day, sequence: batch.sequence })
    }

    /// Which of its two names the country knows.
    pub fn name_for(&self, country: Country, id: ObjectId, day_name: DayName) -> String {
        match self.config.participant(country).tags.unwrap_or(self.config.batching.tags) {
            TagStyle::ObjectId => id.to_string(),
            TagStyle::DaySequence => day_name.to_string(),
        }
    }
}
