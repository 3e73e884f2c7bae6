//! What is remembered between two runs, and the index that phones read.
//!
//! The state folder has `export.json`, which is replaced as a whole, and beside it the file with the keys that
//! it names. `export.json` is the moment of truth: what it lists is published, whatever else lies around.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ExportError, Period, Regions, Table};
use crate::{
    hex,
    state::{self, StateError},
};

/// The name of the manifest in the state folder.
const MANIFEST: &str = "export.json";
/// How the files of keys begin that stand beside it.
const KEYS: &str = "keys-";
/// How far behind the last run the clock may be. In an hour nothing is lost: a key may begin a day from now.
const BEHIND: TimeDelta = TimeDelta::hours(1);
/// How far ahead of the last run it may be. That far ahead, keys and archives are still kept for 12 days.
const AHEAD: TimeDelta = TimeDelta::days(2);
/// How many missing archives an error names.
const MAX_NAMED: usize = 10;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// Counts the files of keys.
    generation: u64,
    /// The SHA-256 of the current one, in hex; empty before the first.
    keys_sha256: String,
    /// When the last run was.
    pub(super) last_run: Option<DateTime<Utc>>,
    /// The absolute path of the folder into which it published.
    pub(super) folder: Option<String>,
    pub(super) regions: Regions,
    /// The downloaded batches whose keys have been taken.
    pub(super) batches: BTreeSet<String>,
    /// What is published.
    pub(super) files: Vec<PublishedFile>,
}

/// An archive that is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedFile {
    /// The region's code.
    pub region: String,
    /// How much time it covers.
    pub period: Period,
    /// The rest, as the index shows it.
    #[serde(flatten)]
    pub index: IndexFile,
}

/// An archive, as the index shows it to phones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexFile {
    /// Where it lies, from the folder of all archives.
    pub path: String,
    /// The beginning of the time that it covers, in Unix seconds.
    pub start: i64,
    /// The end.
    pub end: i64,
    /// Which of the period's files it is, counted from 1.
    pub batch_num: usize,
    /// How many files the period has.
    pub batch_size: usize,
    /// How many keys it has.
    pub keys: usize,
    /// Its length in bytes.
    pub size: usize,
    /// Its SHA-256, in hex.
    pub sha256: String,
}

impl Manifest {
    pub(super) fn load(folder: &Path) -> Result<Self, StateError> {
        let path = folder.join(MANIFEST);
        let Some(bytes) = state::read(&path)? else { return Ok(Self::default()) };
        serde_json::from_slice(&bytes).map_err(|error| damaged(path, &error.to_string()))
    }

    /// Refuses a time that is not plausible after the last run.
    pub(super) fn check_clock(&self, now: DateTime<Utc>) -> Result<(), ExportError> {
        match self.last_run {
            Some(last) if now < last - BEHIND || now > last + AHEAD => Err(ExportError::Clock { now, last }),
            _ => Ok(()),
        }
    }

    /// Rejects a folder that lacks archives that the index lists.
    pub(super) fn check_folder(&self, folder: &Path, absolute: &str) -> Result<(), ExportError> {
        let paths = self.files.iter().map(|file| &file.index.path);
        let missing: Vec<_> = paths.filter(|path| !folder.join(path).is_file()).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(ExportError::Folder(match &self.folder {
            Some(known) if known != absolute => format!(
                "the archives of this state folder are in {known}, not in {absolute}: export into that folder, move \
                 it there unchanged, or use a profile with another state folder for the other one"
            ),
            _ => format!(
                "{absolute} lacks {} of its archives: restore them from a backup or the bucket, or delete the state \
                 folder's `export` to publish all keys again. Missing: {}{}",
                missing.len(),
                missing[..missing.len().min(MAX_NAMED)].join(", "),
                if missing.len() > MAX_NAMED { ", …" } else { "" }
            ),
        }))
    }

    pub(super) fn load_table(&self, folder: &Path) -> Result<Table, StateError> {
        if self.keys_sha256.is_empty() {
            return Ok(Table::default());
        }
        let path = folder.join(self.keys_file());
        let bytes = fs::read(&path).map_err(StateError::io(&path))?;
        let table = Table::from_bytes(&bytes).filter(|_| hex(&Sha256::digest(&bytes)) == self.keys_sha256);
        table.ok_or_else(|| damaged(path, "it is not as it was written"))
    }

    fn keys_file(&self) -> String {
        format!("{KEYS}{}", self.generation)
    }

    /// Writes the keys under a new name, then the manifest that names them: this is the moment at which a run
    /// counts.
    pub(super) fn commit(&mut self, folder: &Path, table: &Table) -> Result<(), StateError> {
        let bytes = table.to_bytes();
        self.generation += 1;
        self.keys_sha256 = hex(&Sha256::digest(&bytes));
        let keys = self.keys_file();
        state::replace(&folder.join(&keys), &bytes)?;
        state::replace(&folder.join(MANIFEST), &json(self))?;
        for entry in fs::read_dir(folder).map_err(StateError::io(folder))?.flatten() {
            let name = entry.file_name();
            let old = name.to_str().is_some_and(|name| name.starts_with(KEYS) && name != keys);
            if old {
                // It takes room, no more; the next run tries again.
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(())
    }

    /// The files of the index: a name below the archives' folder, and what is in it. The last one shows all.
    pub(super) fn indexes(&self) -> Vec<(String, Vec<u8>)> {
        // Also those without an archive: their old ones may just have left the index.
        let names = || self.regions.names();
        let mut regions: BTreeMap<&str, Days> = names().map(|name| (name, Days::default())).collect();
        let mut lists: BTreeMap<&str, String> = names().map(|name| (name, String::new())).collect();
        for file in &self.files {
            let start = DateTime::from_timestamp(file.index.start, 0).unwrap_or_default();
            let day = regions.entry(&file.region).or_default().days.entry(start.format("%F").to_string());
            let place = match file.period {
                Period::Daily => &mut day.or_default().files,
                Period::Hourly => day.or_default().hours.entry(start.format("%H").to_string()).or_default(),
            };
            place.push(&file.index);
            let list = lists.entry(&file.region).or_default();
            list.push_str(&file.index.path);
            list.push('\n');
        }
        let mut files = Vec::new();
        for (region, list) in lists {
            files.push((format!("{region}/index.txt"), list.into_bytes()));
        }
        for (region, days) in &regions {
            files.push((format!("{region}/{INDEX}"), json(&RegionIndex { version: 1, region, days })));
        }
        files.push((INDEX.to_owned(), json(&Index { version: 1, regions })));
        files
    }
}

fn damaged(path: PathBuf, what: &str) -> StateError {
    let reason =
        format!("{what}; restore the folder's backup, or delete the folder to publish all keys again");
    StateError::Damaged(path, reason)
}

/// The name of an index.
pub(super) const INDEX: &str = "index.json";

#[derive(Serialize)]
struct Index<'a> {
    version: u32,
    regions: BTreeMap<&'a str, Days<'a>>,
}

#[derive(Serialize)]
struct RegionIndex<'a> {
    version: u32,
    region: &'a str,
    #[serde(flatten)]
    days: &'a Days<'a>,
}

#[derive(Default, Serialize)]
struct Days<'a> {
    days: BTreeMap<String, Day<'a>>,
}

#[derive(Default, Serialize)]
struct Day<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    hours: BTreeMap<String, Vec<&'a IndexFile>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<&'a IndexFile>,
}

#[expect(clippy::expect_used, reason = "only maps with other keys than texts cannot be written as JSON")]
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("texts as keys")
}
