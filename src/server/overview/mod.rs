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

/// How often an instance says that it is alive.
const BEAT: Duration = Duration::from_secs(10);
/// Without a sign of life for this long, an instance is taken for dead.
const DEAD_AFTER: TimeDelta = TimeDelta::seconds(60);
/// How long one look at the database serves everybody who asks.
const FRESH: Duration = Duration::from_secs(2);
/// Hours in the plot.
const HOURS: i64 = 14 * 24;
/// How far back uploads are looked at.
const LOOK_BACK: TimeDelta = TimeDelta::hours(24);
/// Batches in the table.
const BATCHES: usize = 10;

/// The federation at one moment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The moment.
    pub at: DateTime<Utc>,
    /// The version of the instance that answers.
    pub version: &'static str,
    /// What somebody should look at, the worst first.
    pub warnings: Vec<Warning>,
    /// What is as the operator wants it and still worth knowing: the configuration's own risks, and callbacks that the
    /// operator paused.
    pub notes: Vec<String>,
    /// Every country that is registered or has done something.
    pub countries: Vec<CountryState>,
    /// Keys uploaded in each hour of the last 14 days, the oldest first; the last one is the hour that runs.
    pub hours: Vec<Hour>,
    /// The newest batches, the newest first.
    pub batches: Vec<BatchState>,
    /// What waits to be put into a batch.
    pub waiting: Waiting,
    /// The jobs of this instance.
    pub jobs: Vec<JobView>,
    /// The instances that run, or have ended without saying so.
    pub instances: Vec<InstanceView>,
}

/// How a country is served.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CountryState {
    /// ISO 3166-1 alpha-2.
    pub country: String,
    /// Its last upload that is still stored.
    pub last_upload: Option<DateTime<Utc>>,
    /// Its last download, as far as the statistics reach.
    pub last_download: Option<DateTime<Utc>>,
    /// Keys uploaded since midnight, UTC.
    pub keys_today: u64,
    /// How much of the day's quota of keys or of bytes is used up, whichever is more, in percent.
    pub quota_percent: f64,
    /// Batches behind the newest one; `None` while it has not downloaded any.
    pub behind: Option<u64>,
    /// Callbacks that are called.
    pub callbacks: usize,
    /// Callbacks that are not called because of failures.
    pub callbacks_paused: usize,
    /// Callbacks that are not called because the operator paused them.
    pub callbacks_held: usize,
    /// Days until it has no active certificate left of a type; `None` when it has none at all.
    pub certificate_days: Option<i64>,
    /// The types that it needs and of which it has no active certificate: AUTHENTICATION, SIGNING.
    pub certificates_missing: Vec<&'static str>,
    /// Its newest uploads, as far as each was refused.
    pub refused: Refused,
}

/// Uploads of a country that were refused one after another since the last that was accepted, within a day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// How many.
    pub uploads: u64,
    /// The code of the newest refusal; empty when there is none.
    pub code: String,
}

impl Refused {
    /// By country, from the endings of requests, the newest first. What is not a POST
    /// (405), comes too fast (429) or goes away (499) is not refused for what the upload is.
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
    /// Uploads in it that were not withdrawn.
    pub uploads: usize,
    /// Their keys.
    pub keys: u64,
    /// Uploads that were withdrawn.
    pub withdrawn: u32,
}

/// What waits to be put into a batch.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Waiting {
    /// Uploads.
    pub uploads: u64,
    /// Their keys.
    pub keys: u64,
    /// When the oldest of them came.
    pub since: Option<DateTime<Utc>>,
}

/// A job of the instance that answers.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobView {
    /// Its name.
    pub name: &'static str,
    /// How often it has to make progress.
    pub interval_seconds: u64,
    /// How long ago its last turn came to a good end.
    pub silent_seconds: i64,
    /// What the last turn failed with, if it did.
    pub last_error: Option<String>,
    /// Whether it makes no progress.
    pub stalled: bool,
}

/// An instance.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceView {
    /// Which.
    pub id: String,
    /// The machine's name.
    pub host: String,
    /// Its version.
    pub version: String,
    /// Seconds since its start.
    pub uptime_seconds: i64,
    /// Seconds since its last sign of life.
    pub silent_seconds: i64,
    /// Whether that is too long.
    pub dead: bool,
}

/// The last look, so that many who watch cost no more than one.
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

/// Says again and again that this instance is alive, and at the end that it is not.
pub(super) async fn run(app: Arc<App>, shutdown: Shutdown) {
    let watch = app.health.watch("instance", BEAT);
    jobs::repeat(watch, BEAT, shutdown, std::future::pending, || app.store.beat(&app.instance)).await;
    if let Err(error) = app.store.forget_instance(&app.instance).await {
        // It is taken for dead a minute from now, and forgotten after a day.
        tracing::debug!(%error, "the end of this instance could not be recorded");
    }
}

impl Overview {
    /// Asks the database and the registry.
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
    // Without a registry nobody is served, which is said as a problem.
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

/// The hour that runs now.
fn hour_of(now: DateTime<Utc>) -> DateTime<Utc> {
    now - TimeDelta::seconds(now.timestamp().rem_euclid(3600))
        - TimeDelta::nanoseconds(i64::from(now.nanosecond()))
}

fn first_hour(now: DateTime<Utc>) -> DateTime<Utc> {
    hour_of(now) - TimeDelta::hours(HOURS - 1)
}

/// Every hour of the plot, also those without uploads.
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
