//! Whether a journal is complete.

use std::collections::{BTreeMap, HashMap};

use chrono::NaiveDate;

use super::{
    read::Contents,
    segment::{Header, ReadSegment},
};
use crate::store::PendingBatch;

/// The segments of each instance, by their numbers.
#[derive(Default)]
pub(super) struct Chains(HashMap<u64, BTreeMap<u64, SegmentLink>>);

/// What connects a segment with the one before it and the one after it.
struct SegmentLink {
    name: String,
    header: Header,
    after_day: Option<NaiveDate>,
    hashes: Vec<[u8; 32]>,
    damaged: bool,
}

impl Chains {
    pub(super) fn take(&mut self, segment: &ReadSegment) {
        let link = SegmentLink {
            name: segment.name.clone(),
            header: segment.header.clone(),
            after_day: segment.after_day,
            hashes: segment.hashes.clone(),
            damaged: !segment.problems.is_empty(),
        };
        self.0.entry(link.header.instance).or_default().insert(link.header.number, link);
    }

    /// Each segment must follow the one that it says it follows, unless that one's day is before `kept_since`: it may
    /// have been deleted.
    pub(super) fn check(&self, kept_since: NaiveDate) -> Vec<String> {
        let mut problems = Vec::new();
        for chain in self.0.values() {
            for (number, link) in chain {
                let Header { after, previous, day, .. } = link.header;
                if after == 0 {
                    continue;
                }
                match chain.get(&after) {
                    None => {
                        // A version before this one did not say of which day that was.
                        let kept = link.after_day.map_or(day > kept_since, |after| after >= kept_since);
                        if kept {
                            problems.push(format!(
                                "{}: the file with the number {after} before it is missing",
                                link.name
                            ));
                        }
                    }
                    // That file may have more frames behind that hash: frames that did not reach the disk in time do not
                    // count, although they are genuine. Damage to that file is reported with it.
                    Some(before) if !before.hashes.contains(&previous) && !before.damaged => problems.push(format!(
                        "{}: it was cut or exchanged: its end is not what {} (number {number}) was written after",
                        before.name, link.name
                    )),
                    Some(_) => {}
                }
            }
        }
        problems.sort_unstable();
        problems
    }
}

impl Contents {
    /// Every batch that has not expired needs its uploads, and no batch of a day is missing before another one of
    /// that day.
    pub(super) fn check_batches(&mut self, oldest: NaiveDate) {
        let mut last: Option<&PendingBatch> = None;
        for batch in self.batches.values() {
            let before = last.replace(batch);
            if batch.day < oldest {
                continue;
            }
            let follows = match before {
                Some(before) if before.day >= batch.day => {
                    before.day == batch.day && batch.sequence == before.sequence + 1
                }
                _ => batch.sequence == 1,
            };
            if !follows {
                let what = |batch: &PendingBatch| format!("{} ({}-{})", batch.id, batch.day, batch.sequence);
                self.problems.push(match before {
                    Some(before) => format!(
                        "between the batches {} and {} there is another one that is missing, or the database was restored \
                         from a backup in between",
                        what(before),
                        what(batch)
                    ),
                    None => format!(
                        "before the batch {} there is another one of that day that is missing, or the journal was switched \
                         on between the two: then run `journal backfill`",
                        what(batch)
                    ),
                });
            }
            let missing = batch.uploads.iter().filter(|upload| !self.uploads.contains_key(*upload));
            let amount: u32 =
                batch.uploads.iter().filter_map(|u| self.uploads.get(u)).map(|u| u.amount).sum();
            match missing.count() {
                0 if amount != batch.amount => self.problems.push(format!(
                    "batch {} has {} keys, but its uploads have {amount}",
                    batch.id, batch.amount
                )),
                0 => {}
                n => self.problems.push(format!(
                    "batch {}: {n} of its {} uploads are missing",
                    batch.id,
                    batch.uploads.len()
                )),
            }
        }
    }
}
