//! To the phones: diagnosis keys, downloaded and a country's own, packed into signed export files per country
//! of interest.
//!
//! An [`Exporter`] takes keys ([`Exporter::add`], [`Exporter::add_batches`]) and publishes
//! ([`Exporter::publish`]) those that may be, into a folder from which a web server or a CDN serves phones.
//! What it was given it remembers in a state folder, so that each key is published once per region: in the
//! period in which its time comes.
//!
//! The rules, and why they are so, are in `docs/export.md`:
//!
//! - A key belongs to its origin and to each country its user visited, and to one archive with all keys.
//! - A key is published once its rolling period has ended and a margin has passed, since it could be used to
//!   play an infected person until then; 14 days later it is forgotten, together with its files.
//! - Keys are written in the order of their key data, which is random, so that nobody can see which belong
//!   together. For the same reason a period with few keys is withheld and joins the next one, or is padded
//!   with keys that nobody ever had.
//! - An archive that was published never changes, and has a name that it never shares.
//!
//! Killed at any moment, a run leaves what was published before, whole; the next one does all of its work.

mod bucket;
mod manifest;
mod period;
mod publish;
mod regions;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::{DateTime, Utc};
use efgs_protocol::{
    country::Country,
    key::{DiagnosisKey, ReportType},
};
use serde::Serialize;

use crate::{
    download::{Stored, StoredError},
    gaen::{ExportSigner, WriteError},
    state::{Lock, StateError},
};

pub use bucket::{Bucket, BucketError, BucketSettings, Mirrored};
use manifest::Manifest;
pub use manifest::{IndexFile, PublishedFile};
pub use period::Period;
use period::Slot;
pub use publish::{Published, RegionReport};
use regions::Regions;
use table::{Record, Table};

/// How keys become archives.
pub struct ExportSettings {
    /// The countries that get an archive.
    pub countries: Vec<Region>,
    /// The archive with all keys, if there shall be one.
    pub combined: Option<String>,
    /// How much time one archive covers.
    pub period: Period,
    /// How long after the end of its rolling period a key is held back.
    pub margin: Duration,
    /// How many keys an archive has at least; 0 and 1 publish every key.
    pub minimum: usize,
    /// Whether a period with fewer keys is filled with made-up ones. Otherwise its keys wait for the next.
    pub padding: bool,
    /// How many keys one file has at most; at least 1.
    pub max_keys: usize,
    /// For how many days keys and archives are kept.
    pub retention_days: u32,
    /// Which keys are published, by how the infection was established. Revocations take back what was
    /// published, whatever this says.
    pub report_types: Vec<ReportType>,
    /// Who signs; phones need at least one.
    pub signers: Vec<ExportSigner>,
    /// Whether the clock is right although the last run was long ago, or later than now: see
    /// [`ExportError::Clock`].
    pub trust_clock: bool,
}

/// A country of interest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// The country.
    pub country: Country,
    /// What its archives are called: in the folder, and in the archives' field `region`.
    pub code: String,
}

impl From<Country> for Region {
    fn from(country: Country) -> Self {
        Self { country, code: country.to_string() }
    }
}

impl ExportSettings {
    /// What is usual: the countries under their two letters and `EUR`, hourly, two hours of margin, withheld
    /// below 140 keys, at most 500,000 keys in a file, for 14 days.
    pub fn new(countries: impl IntoIterator<Item = Country>, signers: Vec<ExportSigner>) -> Self {
        Self {
            countries: countries.into_iter().map(Region::from).collect(),
            combined: Some("EUR".to_owned()),
            period: Period::Hourly,
            margin: Duration::from_secs(2 * 60 * 60),
            minimum: 140,
            padding: false,
            max_keys: 500_000,
            retention_days: 14,
            report_types: vec![
                ReportType::Unknown,
                ReportType::ConfirmedTest,
                ReportType::ConfirmedClinicalDiagnosis,
                ReportType::SelfReport,
            ],
            signers,
            trust_clock: false,
        }
    }

    /// The names of all archives, each once.
    fn codes(&self) -> impl Iterator<Item = &str> {
        let countries: BTreeSet<_> = self.countries.iter().map(|region| region.code.as_str()).collect();
        countries.into_iter().chain(self.combined.as_deref())
    }

    fn check(&self) -> Result<(), ExportError> {
        let refuse = |reason: String| Err(ExportError::Settings(reason));
        if self.signers.is_empty() {
            return refuse("there is no signing key, and phones take no unsigned archive".into());
        }
        if self.max_keys == 0 {
            return refuse("an archive of at most 0 keys holds none".into());
        }
        if self.codes().next().is_none() {
            return refuse("there is neither a country nor a combined archive".into());
        }
        for code in self.codes() {
            let good =
                !code.is_empty() && code.len() <= 16 && code.bytes().all(|b| b.is_ascii_alphanumeric());
            if !good {
                return refuse(format!("the region code {code:?} is not 1 to 16 letters and digits"));
            }
        }
        Ok(())
    }
}

/// Why nothing could be published. No text holds key data.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The settings contradict themselves.
    #[error("the export settings are invalid: {0}")]
    Settings(String),
    /// The state folder or the archives' folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The downloaded batches cannot be read.
    #[error(transparent)]
    Batches(#[from] StoredError),
    /// An archive could not be made.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The time is more than an hour before the last run or more than two days after it. With a wrong clock,
    /// keys would be passed over, and keys and archives deleted.
    #[error("this machine's clock says {}, and the last run was at {}: nothing is done, because a wrong clock would lose keys and archives. Set the clock. If it is correct (after a long pause, or when the last run's clock was wrong), confirm it once with --trust-clock", now.format("%F %T UTC"), last.format("%F %T UTC"))]
    Clock {
        /// What the clock says.
        now: DateTime<Utc>,
        /// When the last run was, by the clock of then.
        last: DateTime<Utc>,
    },
    /// The archives that the index lists are not in the folder, but in another one, or some are missing.
    #[error("{0}")]
    Folder(String),
}

/// What happened to the keys that were handed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Intake {
    /// How many keys were handed in.
    pub keys: usize,
    /// Of these: known before, with nothing new in them.
    pub known: usize,
    /// Of these: known before, and now reported otherwise or by users of more countries.
    pub changed: usize,
    /// Of these: not published, since their report type is not for phones.
    pub report_type: usize,
    /// Of these: not published, since their numbers are none of a key: a rolling period of more than a day,
    /// or one that begins more than a day from now.
    pub implausible: usize,
    /// Of these: not published, since they are older than the archives are kept.
    pub too_old: usize,
}

/// Packs keys for phones; see the [module](self). Its functions block: give them a thread of their own.
pub struct Exporter {
    settings: ExportSettings,
    slot: Slot,
    now: DateTime<Utc>,
    folder: PathBuf,
    state: PathBuf,
    manifest: Manifest,
    table: Table,
    intake: Intake,
    _lock: Lock,
}

impl Exporter {
    /// Opens what was remembered in `state`, or begins anew. The archives go to `folder`; `now` decides which
    /// period is published: the last one that has ended.
    ///
    /// # Errors
    /// When another command works on the state folder, when it cannot be read, or when the time is not plausible
    /// after the last run.
    pub fn open(
        settings: ExportSettings,
        state: &Path,
        folder: &Path,
        now: DateTime<Utc>,
    ) -> Result<Self, ExportError> {
        settings.check()?;
        let lock = Lock::take(state, "export.lock")?;
        let mut manifest = Manifest::load(state)?;
        if !settings.trust_clock {
            manifest.check_clock(now)?;
        }
        manifest.regions.name(settings.codes())?;
        let table = manifest.load_table(state)?;
        Ok(Self {
            slot: settings.period.last_ended(now),
            settings,
            now,
            folder: folder.to_owned(),
            state: state.to_owned(),
            manifest,
            table,
            intake: Intake::default(),
            _lock: lock,
        })
    }

    /// Takes a key. It may have been taken before.
    pub fn add(&mut self, key: &DiagnosisKey, visited: &[Country]) {
        self.intake.keys += 1;
        let allowed = match key.report_type {
            ReportType::Revoked => true,
            // Reserved for future use: phones do not know what to do with it.
            ReportType::Recursive => false,
            other => self.settings.report_types.contains(&other),
        };
        if !allowed {
            self.intake.report_type += 1;
            return;
        }
        let Some(mut record) = Record::new(key, self.now) else {
            self.intake.implausible += 1;
            return;
        };
        if record.ended_before(self.forget_before()) {
            self.intake.too_old += 1;
            return;
        }
        let countries = &self.settings.countries;
        let concerned = countries.iter().filter(|r| r.country == key.origin || visited.contains(&r.country));
        let codes = concerned.map(|region| region.code.as_str()).chain(self.settings.combined.as_deref());
        record.regions = self.manifest.regions.mask(codes);
        self.table.records.push(record);
    }

    /// Takes the keys of all batches in a download folder that were not taken by an earlier run. Only verified
    /// batches are there. One with implausible keys is taken again by the next run. Returns how many batches that
    /// were.
    ///
    /// # Errors
    /// When the folder or a batch cannot be read.
    pub fn add_batches(&mut self, folder: &Path) -> Result<usize, ExportError> {
        let mut taken = BTreeSet::new();
        let mut new = 0;
        for batch in Stored::batches(folder)? {
            if !self.manifest.batches.contains(&batch.batch_tag) {
                let implausible = self.intake.implausible;
                for key in batch.keys()?.iter() {
                    self.add(&key, key.visited_countries());
                }
                new += 1;
                // Perhaps this clock is behind: when it is right, the rest of the batch is taken.
                if self.intake.implausible > implausible {
                    continue;
                }
            }
            taken.insert(batch.batch_tag);
        }
        // Forget batches that have left the folder, so that the list does not grow without limit.
        self.manifest.batches = taken;
        Ok(new)
    }

    /// What became of the keys so far.
    pub fn intake(&self) -> Intake {
        self.intake
    }

    /// The time before which keys and archives are forgotten, in Unix seconds.
    fn forget_before(&self) -> i64 {
        self.slot.end - i64::from(self.settings.retention_days) * 86_400
    }
}
