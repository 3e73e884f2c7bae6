//! One run: which keys go out, into which files, and in which order all of it becomes true.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Cursor,
    path::{self, Path},
};

use chrono::NaiveDate;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    ExportError, Exporter, Intake, Period, PublishedFile, manifest::IndexFile, regions::RegionSet,
    table::Record,
};
use crate::{
    gaen::{self, ExportHeader, Section, TemporaryExposureKey},
    hex,
    state::{self, StateError},
};

/// The file in the state folder from which made-up keys are derived. Nobody else may know it.
const PADDING_SECRET: &str = "padding-secret";

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// How much time its archives cover.
    pub period: Period,
    /// The beginning of that time, in Unix seconds.
    pub start: i64,
    /// Its end.
    pub end: i64,
    /// What became of the keys that were handed in.
    pub intake: Intake,
    /// What became of the keys of each region.
    pub regions: Vec<RegionReport>,
    /// The archives that were added.
    pub added: Vec<PublishedFile>,
    /// How many archives left the index because of their age.
    pub expired: usize,
}

/// What became of a region's keys. Only this report says how many are made up, never an archive or the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegionReport {
    /// The region's code.
    pub region: String,
    /// How many keys were published for the first time, made-up ones included.
    pub new: usize,
    /// How many were published once more, with another report type.
    pub revised: usize,
    /// How many of the new ones are made up.
    pub padding: usize,
    /// How many could be published and wait: there are fewer than the minimum, or the period has its archive
    /// already.
    pub withheld: usize,
    /// How many wait for the end of their rolling period and the margin.
    pub not_ended: usize,
}

impl RegionReport {
    /// Whether there is nothing to say.
    pub fn is_quiet(&self) -> bool {
        self.new + self.revised + self.withheld + self.not_ended == 0
    }
}

impl Exporter {
    /// Publishes: writes the archives of the last period that has ended, then what is remembered, then the
    /// index. With `dry_run` it only says what it would do.
    ///
    /// A region whose archive of this period is out already gets the next keys with the next period, so that
    /// running often changes nothing.
    ///
    /// # Errors
    /// See [`ExportError`]. Nothing new is published then, or all of it and only the index is old; the next
    /// run does the rest.
    pub fn publish(&mut self, dry_run: bool) -> Result<Published, ExportError> {
        let forget_before = self.forget_before();
        self.table.settle(&mut self.intake);
        self.table.forget(forget_before);
        let before = self.manifest.files.len();
        self.manifest.files.retain(|file| file.index.end >= forget_before);
        let expired = before - self.manifest.files.len();
        let absolute = path::absolute(&self.folder).map_err(StateError::io(&self.folder))?;
        let absolute = absolute.display().to_string();
        self.manifest.check_folder(&self.folder, &absolute)?;

        let codes: Vec<_> = self.settings.codes().map(str::to_owned).collect();
        if self.settings.padding {
            for code in &codes {
                self.pad(code, dry_run)?;
            }
        }
        let mut regions = Vec::new();
        let mut added = Vec::new();
        for code in codes {
            regions.push(self.pack(code, dry_run, &mut added)?);
        }
        self.manifest.files.extend(added.iter().cloned());
        // Oldest first, also after a run whose clock was ahead.
        self.manifest.files.sort_by_key(|file| file.index.start);
        if !dry_run {
            (self.manifest.last_run, self.manifest.folder) = (Some(self.now), Some(absolute));
            self.manifest.commit(&self.state, &self.table)?;
            self.write_indexes()?;
            self.clean()?;
        }
        Ok(Published {
            period: self.settings.period,
            start: self.slot.start,
            end: self.slot.end,
            intake: self.intake,
            regions,
            added,
            expired,
        })
    }

    /// The time by which a rolling period must have ended. It depends on the period that is published, not on
    /// the minute in which that is done: the same keys give the same archives.
    fn ripe(&self) -> i64 {
        self.slot.end.saturating_sub_unsigned(self.settings.margin.as_secs())
    }

    fn is_closed(&self, code: &str) -> bool {
        // An archive of the future is from a run whose clock was wrong.
        let until_now = self.slot.end..=self.now.timestamp();
        self.manifest.files.iter().any(|file| file.region == code && until_now.contains(&file.index.end))
    }

    /// Fills a region up to the minimum. A made-up key is like a real one in everything but its key data, and
    /// goes wherever that one goes: a key that is in one region's archive and not in the one with all keys
    /// would give itself away.
    fn pad(&mut self, code: &str, dry_run: bool) -> Result<(), ExportError> {
        let region = self.manifest.regions.mask([code].into_iter());
        let ripe = self.ripe();
        let real: Vec<Record> =
            self.table.records.iter().filter(|record| record.is_new_in(region, ripe)).copied().collect();
        let revised = self.table.records.iter().filter(|record| record.revise.contains(region)).count();
        let missing = self.settings.minimum.saturating_sub(real.len() + revised);
        if real.is_empty() || missing == 0 || self.is_closed(code) {
            return Ok(());
        }
        let secret = padding_secret(&self.state, dry_run)?;
        for (number, like) in (0..missing as u64).zip(real.iter().cycle()) {
            let mut hash = Sha256::new();
            hash.update(secret);
            hash.update(self.slot.end.to_be_bytes());
            hash.update(number.to_be_bytes());
            hash.update(code);
            let [key_data, _] = *hash.finalize().as_chunks().0 else { continue };
            self.table.records.push(like.imitate(key_data));
        }
        self.table.settle(&mut Intake::default());
        Ok(())
    }

    /// Writes a region's archives, if it gets any.
    fn pack(
        &mut self,
        code: String,
        dry_run: bool,
        added: &mut Vec<PublishedFile>,
    ) -> Result<RegionReport, ExportError> {
        let region = self.manifest.regions.mask([&*code].into_iter());
        let ripe = self.ripe();
        let mut report =
            RegionReport { region: code, new: 0, revised: 0, padding: 0, withheld: 0, not_ended: 0 };
        for record in &self.table.records {
            let new = record.is_new_in(region, ripe);
            report.new += usize::from(new);
            report.padding += usize::from(new && record.padding);
            report.revised += usize::from(record.revise.contains(region));
            report.not_ended += usize::from(record.is_due_in(region) && !new);
        }
        let keys = report.new + report.revised;
        if keys == 0 {
            return Ok(report);
        }
        if keys < self.settings.minimum || self.is_closed(&report.region) {
            return Ok(RegionReport { new: 0, revised: 0, padding: 0, withheld: keys, ..report });
        }
        if !dry_run {
            self.write_archives(&report.region, region, keys, added)?;
        }
        for record in &mut self.table.records {
            if record.is_new_in(region, ripe) {
                record.published = record.published.with(region);
            }
            record.revise = record.revise.without(region);
        }
        Ok(report)
    }

    fn write_archives(
        &self,
        code: &str,
        region: RegionSet,
        keys: usize,
        added: &mut Vec<PublishedFile>,
    ) -> Result<(), ExportError> {
        let ripe = self.ripe();
        let batch_size = keys.div_ceil(self.settings.max_keys);
        // Files of about the same length, lest the last one has but a handful of keys.
        let each = keys.div_ceil(batch_size);
        let records = &self.table.records;
        let new = records.iter().filter(|record| record.is_new_in(region, ripe));
        let revised = records.iter().filter(|record| record.revise.contains(region));
        let mut entries: Box<dyn Iterator<Item = (Section, TemporaryExposureKey)>> = Box::new(
            new.map(|record| (Section::New, record.key()))
                .chain(revised.map(|record| (Section::Revised, record.key()))),
        );
        let mut left = keys;
        for batch_num in 1..=batch_size {
            let header = ExportHeader {
                start_timestamp: u64::try_from(self.slot.start).ok(),
                end_timestamp: u64::try_from(self.slot.end).ok(),
                region: Some(code.to_owned()),
                batch_num: i32::try_from(batch_num).ok(),
                batch_size: i32::try_from(batch_size).ok(),
                signature_infos: Vec::new(),
            };
            let keys = each.min(left);
            left -= keys;
            let entries = entries.by_ref().take(keys);
            let (zip, digest) =
                gaen::write(Cursor::new(Vec::new()), &header, entries, &self.settings.signers)?;
            let zip = zip.into_inner();
            // With a part of what it holds in its name, a path never means two archives: not even to a cache
            // that somebody asked for a path that he had guessed.
            let folder = self.slot.folder(self.settings.period);
            let path = format!("{code}/{folder}/{batch_num}-{}.zip", hex(&digest[..8]));
            self.write(&path, &zip)?;
            added.push(PublishedFile {
                region: code.to_owned(),
                period: self.settings.period,
                index: IndexFile {
                    path,
                    start: self.slot.start,
                    end: self.slot.end,
                    batch_num,
                    batch_size,
                    keys,
                    size: zip.len(),
                    sha256: hex(&Sha256::digest(&zip)),
                },
            });
        }
        Ok(())
    }

    /// Writes a file below the archives' folder, durably and as a whole.
    fn write(&self, path: &str, content: &[u8]) -> Result<(), StateError> {
        let path = self.folder.join(path);
        let parents = path.ancestors().skip(1).take_while(|parent| parent.starts_with(&self.folder));
        let new: Vec<_> = parents.take_while(|parent| !parent.exists()).collect();
        if let Some(deepest) = new.first() {
            fs::create_dir_all(deepest).map_err(StateError::io(deepest))?;
        }
        state::publish(&path, content)?;
        new.into_iter().try_for_each(state::sync_folder_of)
    }

    /// Writes what has changed of the index; the file with everything comes last.
    fn write_indexes(&self) -> Result<(), StateError> {
        for (path, content) in self.manifest.indexes() {
            if fs::read(self.folder.join(&path)).ok().as_ref() != Some(&content) {
                self.write(&path, &content)?;
            }
        }
        Ok(())
    }

    /// Deletes what is no longer in the index, and what a killed run left: only in folders of days, so that
    /// other files beside the archives are safe.
    fn clean(&self) -> Result<(), StateError> {
        let published: BTreeSet<_> =
            self.manifest.files.iter().map(|file| self.folder.join(&file.index.path)).collect();
        for code in self.manifest.regions.names() {
            let region = self.folder.join(code);
            for entry in entries(&region)? {
                let name = entry.file_name();
                if name.to_str().is_some_and(|name| name.parse::<NaiveDate>().is_ok()) {
                    clean(&entry.path(), &published)?;
                }
            }
        }
        Ok(())
    }
}

/// Deletes all files below a folder but those, and the folder when nothing is left.
fn clean(folder: &Path, keep: &BTreeSet<std::path::PathBuf>) -> Result<(), StateError> {
    let mut empty = true;
    for entry in entries(folder)? {
        let path = entry.path();
        if entry.file_type().map_err(StateError::io(&path))?.is_dir() {
            clean(&path, keep)?;
            empty &= !path.exists();
        } else if keep.contains(&path) {
            empty = false;
        } else {
            fs::remove_file(&path).map_err(StateError::io(&path))?;
        }
    }
    if empty { fs::remove_dir(folder).map_err(StateError::io(folder)) } else { Ok(()) }
}

fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>, StateError> {
    match fs::read_dir(folder).and_then(Iterator::collect) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.map_err(StateError::io(folder)),
    }
}

/// The secret of this state folder; made when it is first needed.
fn padding_secret(folder: &Path, dry_run: bool) -> Result<[u8; 32], ExportError> {
    let path = folder.join(PADDING_SECRET);
    if let Some(bytes) = state::read(&path)? {
        return bytes.try_into().map_err(|_| {
            let reason = "it has not 32 bytes; put back its backup, or delete it".into();
            StateError::Damaged(path, reason).into()
        });
    }
    let secret = efgs_protocol::random::bytes();
    if !dry_run {
        state::replace(&path, &secret)?;
    }
    Ok(secret)
}
