//! How well every country is served, at a glance: for the operator's page and for scripts (spec §8.1).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use efgs_protocol::batch_tag::DayName;
use serde::Serialize;

use super::App;
use crate::{
    health::{JobState, Warning},
    jobs::{self, Shutdown},
    store::{BatchRecord, Ending, Hour, KnownInstance, StoreError, Subscription},
};

mod page;
mod participants;
mod plot;
mod warnings;

pub use page::{content_security_policy, page};
pub use participants::{Participant, percent};

/// How often an instance reports that it is alive.
const BEAT: Duration = Duration::from_secs(10);
/// An instance that has not reported for this long counts as dead.
const DEAD_AFTER: TimeDelta = TimeDelta::seconds(60);
/// How long one query result serves all viewers.
const FRESH: Duration = Duration::from_secs(2);
/// Hours in the plot.
const HOURS: i64 = 14 * 24;
/// The age of the uploads that are considered.
const LOOK_BACK: TimeDelta = TimeDelta::hours(24);
/// Batches in the table.
const BATCHES: usize = 10;

/// The state of the federation.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// When it was read.
    pub at: DateTime<Utc>,
    /// The version of the answering instance.
    pub version: &'static str,
    /// Warnings, the worst first.
    pub warnings: Vec<Warning>,
    /// Notes on what the operator has chosen: risks of the configuration, and callbacks that the operator
    /// paused.
    pub notes: Vec<String>,
    /// Every country that is registered or has data.
    pub countries: Vec<CountryState>,
    /// Keys uploaded per hour in the last 14 days, oldest first. The last hour is the current one.
    pub hours: Vec<Hour>,
    /// The newest batches, the newest first.
    pub batches: Vec<BatchState>,
    /// The uploads that wait for a batch.
    pub waiting: Waiting,
    /// The jobs of this instance.
    pub jobs: Vec<JobView>,
    /// Instances that run, or that ended without reporting it.
    pub instances: Vec<InstanceView>,
}

/// The state of a country.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CountryState {
    /// ISO 3166-1 alpha-2.
    pub country: String,
    /// Its last upload that is still stored.
    pub last_upload: Option<DateTime<Utc>>,
    /// Its last download within the reach of the statistics.
    pub last_download: Option<DateTime<Utc>>,
    /// Keys uploaded since midnight UTC.
    pub keys_today: u64,
    /// The used part of the daily quota of keys or of bytes, whichever is more, in percent.
    pub quota_percent: f64,
    /// How many batches it is behind the newest; `None` if it has not downloaded any.
    pub behind: Option<u64>,
    /// Active callbacks.
    pub callbacks: usize,
    /// Callbacks paused after failures.
    pub callbacks_paused: usize,
    /// Callbacks paused by the operator.
    pub callbacks_held: usize,
    /// Days until it has no active certificate of one of the types; `None` if it has no certificate.
    pub certificate_days: Option<i64>,
    /// The required types of which it has no active certificate: AUTHENTICATION, SIGNING.
    pub certificates_missing: Vec<&'static str>,
    /// Its newest uploads, if they were refused.
    pub refused: Refused,
}

/// A country's consecutive refused uploads since the last accepted one, within a day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The number of uploads.
    pub uploads: u64,
    /// The code of the newest refusal; empty if there is none.
    pub code: String,
}

impl Refused {
    /// Counts by country, from the ends of requests, newest first. Skips answers that do not concern the upload
    /// itself: wrong method (405), too many requests (429), client disconnected (499).
    fn by_country(endings: &[Ending]) -> BTreeMap<String, Self> {
        let (mut all, mut accepted) = (BTreeMap::<String, Self>::new(), BTreeSet::new());
        for ending in endings.iter().filter(|ending| ending.upload) {
            let Some(country) = &ending.country else { continue };
            match ending.status {
                200..=299 => drop(accepted.insert(country.clone())),
                400..=499 if ![405, 429, 499].contains(&ending.status) && !accepted.contains(country) => {
                    let refused = all.entry(country.clone()).or_default();
                    refused.uploads += 1;
                    if refused.code.is_empty() {
                        refused.code = ending.error.clone().unwrap_or_default();
                    }
                }
                _ => {}
            }
        }
        all
    }
}

/// A batch.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchState {
    /// Its ObjectId.
    pub tag: String,
    /// Its day name, `yyyyMMdd-N`.
    pub day_name: String,
    /// When it was formed.
    pub formed_at: DateTime<Utc>,
    /// Its uploads, without withdrawn ones.
    pub uploads: usize,
    /// Their keys.
    pub keys: u64,
    /// Withdrawn uploads.
    pub withdrawn: u32,
}

/// The uploads that wait for a batch.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Waiting {
    /// Uploads.
    pub uploads: u64,
    /// Their keys.
    pub keys: u64,
    /// When the oldest of them was uploaded.
    pub since: Option<DateTime<Utc>>,
}

/// A job of the answering instance.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobView {
    /// Its name.
    pub name: &'static str,
    /// How often it must make progress, in seconds.
    pub interval_seconds: u64,
    /// Time since its last turn that completed successfully, in seconds.
    pub silent_seconds: i64,
    /// The error of the last turn, if it failed.
    pub last_error: Option<String>,
    /// Whether it makes no progress.
    pub stalled: bool,
}

/// An instance.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceView {
    /// Its id.
    pub id: String,
    /// The host name.
    pub host: String,
    /// Its version.
    pub version: String,
    /// Seconds since its start.
    pub uptime_seconds: i64,
    /// Seconds since it last reported.
    pub silent_seconds: i64,
    /// Whether it counts as dead.
    pub dead: bool,
}

/// Caches the last result, so that many viewers cost no more than one.
#[derive(Debug, Default)]
pub struct Cache(tokio::sync::Mutex<Option<(Instant, Arc<Overview>)>>);

impl Cache {
    /// The federation as it was at most two seconds ago.
    pub async fn look(&self, app: &App) -> Result<Arc<Overview>, StoreError> {
        let mut last = self.0.lock().await;
        if let Some((at, overview)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return Ok(overview.clone());
        }
        let overview = Arc::new(Overview::gather(app).await?);
        *last = Some((Instant::now(), overview.clone()));
        Ok(overview)
    }
}

/// Reports regularly that this instance is alive, and finally that it has stopped.
pub(super) async fn run(app: Arc<App>, shutdown: Shutdown) {
    let watch = app.health.watch("instance", BEAT);
    jobs::repeat(watch, BEAT, shutdown, std::future::pending, || app.store.beat(&app.instance)).await;
    if let Err(error) = app.store.forget_instance(&app.instance).await {
        // Without the report it counts as dead after a minute and is forgotten after a day.
        tracing::debug!(%error, "the end of this instance could not be recorded");
    }
}

impl Overview {
    /// Reads the database and the registry.
    pub async fn gather(app: &App) -> Result<Self, StoreError> {
        let now = app.clock.now();
        app.chain.refresh().await?;
        let subscriptions = app.store.subscriptions(None).await?;
        let pending = app.store.pending().await?;
        let endings = app.store.endings(now - LOOK_BACK).await?;
        let mut overview = Self {
            at: now,
            version: env!("CARGO_PKG_VERSION"),
            warnings: Vec::new(),
            notes: Vec::new(),
            countries: countries(app, now, &subscriptions, Refused::by_country(&endings)).await?,
            hours: hours(now, &app.store.keys_by_hour(first_hour(now)).await?),
            batches: app.chain.newest(BATCHES).iter().map(|batch| BatchState::of(batch)).collect(),
            waiting: Waiting { uploads: pending.uploads, keys: pending.keys, since: pending.oldest },
            jobs: app.health.jobs().iter().map(|job| JobView::of(job, now)).collect(),
            instances: app.store.instances().await?.iter().map(InstanceView::of).collect(),
        };
        (overview.warnings, overview.notes) = warnings::find(app, &overview, &subscriptions, &endings).await;
        Ok(overview)
    }
}

async fn countries(
    app: &App,
    now: DateTime<Utc>,
    subscriptions: &[Subscription],
    mut refused: BTreeMap<String, Refused>,
) -> Result<Vec<CountryState>, StoreError> {
    // Without a registry nothing is served, which `problem` already reports.
    let registry = app.trust.registry().unwrap_or_default();
    let mut last = app.store.last_seen().await?;
    let participants = Participant::all(app, &registry, subscriptions, now).await?;
    let state = |(country, participant): (String, Participant)| CountryState {
        last_upload: participant.traffic.last_upload,
        last_download: last.remove(&country).and_then(|seen| seen.download),
        keys_today: participant.traffic.today.keys,
        quota_percent: participant.quota_percent(),
        behind: participant.traffic.downloaded.map(|_| participant.traffic.behind),
        callbacks: participant.callbacks[0],
        callbacks_paused: participant.callbacks[1],
        callbacks_held: participant.callbacks[2],
        certificate_days: participant.days(),
        certificates_missing: participant.missing(),
        refused: refused.remove(&country).unwrap_or_default(),
        country,
    };
    Ok(participants.into_iter().map(state).collect())
}

/// The current hour.
fn hour_of(now: DateTime<Utc>) -> DateTime<Utc> {
    now - TimeDelta::seconds(now.timestamp().rem_euclid(3600))
        - TimeDelta::nanoseconds(i64::from(now.nanosecond()))
}

fn first_hour(now: DateTime<Utc>) -> DateTime<Utc> {
    hour_of(now) - TimeDelta::hours(HOURS - 1)
}

/// Every hour of the plot, including those without uploads.
fn hours(now: DateTime<Utc>, found: &[Hour]) -> Vec<Hour> {
    let mut found = found.iter().copied().peekable();
    let all = (0..HOURS).map(|i| first_hour(now) + TimeDelta::hours(i));
    all.map(|at| {
        while found.next_if(|hour| hour.at < at).is_some() {}
        found.next_if(|hour| hour.at == at).unwrap_or(Hour { at, uploads: 0, keys: 0 })
    })
    .collect()
}

impl BatchState {
    fn of(batch: &BatchRecord) -> Self {
        Self {
            tag: batch.id.to_string(),
            day_name: DayName { day: batch.day, sequence: batch.sequence }.to_string(),
            formed_at: batch.id.timestamp(),
            uploads: batch.uploads.len(),
            keys: batch.amount(),
            withdrawn: batch.withdrawn,
        }
    }
}

impl JobView {
    fn of(job: &JobState, now: DateTime<Utc>) -> Self {
        Self {
            name: job.name,
            interval_seconds: job.interval.as_secs(),
            silent_seconds: (now - job.last_success).num_seconds().max(0),
            last_error: job.last_error.clone(),
            stalled: job.stalled.is_some(),
        }
    }
}

impl InstanceView {
    fn of(known: &KnownInstance) -> Self {
        Self {
            id: known.instance.id.clone(),
            host: known.instance.host.clone(),
            version: known.version.clone(),
            uptime_seconds: known.uptime.num_seconds(),
            silent_seconds: known.silent.num_seconds().max(0),
            dead: known.silent > DEAD_AFTER,
        }
    }
}
