//! The report of an upload.

use serde::Serialize;

use crate::source::SourceFormat;

/// How many invalid keys a report names; all are counted.
pub const MAX_LISTED: usize = 100;

/// What became of the keys of a file, or of all. `read` is the sum of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Keys in the file, whatever became of them.
    pub read: u64,
    /// Keys that the gateway would reject, and entries that are not keys.
    pub invalid: u64,
    /// Keys left out because they began more than 15 days ago: no gateway accepts them, and no phone needs them.
    /// Most were sent when they were new.
    pub too_old: u64,
    /// Keys that occurred earlier in the input.
    pub repeated: u64,
    /// Keys that an earlier run uploaded; nothing was sent for them.
    pub done_before: u64,
    /// Keys that the gateway stored.
    pub stored: u64,
    /// Keys that the gateway already had (409 inside a 207).
    pub existing: u64,
    /// Valid keys that the gateway is not known to have: of a dry run, or because the run ended early.
    pub unsent: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.read += other.read;
        self.invalid += other.invalid;
        self.too_old += other.too_old;
        self.repeated += other.repeated;
        self.done_before += other.done_before;
        self.stored += other.stored;
        self.existing += other.existing;
        self.unsent += other.unsent;
    }
}

/// What became of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Its name.
    pub name: String,
    /// What it was; `null` for one that was not read to its end.
    pub format: Option<SourceFormat>,
    /// Its keys.
    pub keys: Counts,
}

/// A key that cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InvalidEntry {
    /// In which file.
    pub file: String,
    /// Which key of the file, counted from 0.
    pub key: u64,
    /// Why. Without key data.
    pub reason: String,
}

/// An upload that the gateway stored, by this run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoredUpload {
    /// Its tag. With it the upload can be withdrawn.
    pub tag: String,
    /// From which file.
    pub file: String,
    /// How many keys.
    pub keys: u64,
}

/// An upload that was not stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedUpload {
    /// The tag under which it was sent last.
    pub tag: String,
    /// From which file.
    pub file: String,
    /// How many keys.
    pub keys: u64,
    /// Why.
    pub reason: String,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunOutcome {
    /// The gateway has every key that is not too old; of a dry run: every such key can be sent.
    #[default]
    Complete,
    /// The same, except for invalid keys that were left out, and for uploads whose tag is taken or that were
    /// withdrawn.
    Partial,
    /// Nothing was sent, because some keys are invalid.
    Invalid,
    /// The gateway rejected an upload permanently; the run ended there.
    Refused,
    /// The gateway did not answer, or asked to wait, until the retries of an upload were used up.
    Unanswered,
    /// The caller ended it.
    Interrupted,
}

/// The report of an upload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RunReport {
    /// How it ended.
    pub outcome: RunOutcome,
    /// Whether nothing was to be sent.
    pub dry_run: bool,
    /// All keys.
    pub keys: Counts,
    /// The uploads into which the keys to be sent were split at first.
    pub planned_uploads: usize,
    /// How often a call was repeated.
    pub retries: u64,
    /// Each file.
    pub files: Vec<FileReport>,
    /// The first [`MAX_LISTED`] invalid keys.
    pub invalid: Vec<InvalidEntry>,
    /// What was stored.
    pub uploads: Vec<StoredUpload>,
    /// What was not.
    pub failed: Vec<FailedUpload>,
}

impl RunReport {
    pub(super) fn sum_up(&mut self) {
        self.keys = Counts::default();
        for file in &self.files {
            self.keys.add(&file.keys);
        }
    }
}
