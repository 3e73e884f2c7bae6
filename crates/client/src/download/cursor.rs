//! The memory of a download: how far it has come.

use std::{io, path::Path};

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use super::order::{Passed, Tag};
use crate::state::{self, Replacement, StateError};

/// The version of the file's form.
const VERSION: u32 = 1;

/// How far a download into one target has come. Written as a whole, after a batch is safely on the disk under its
/// final name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cursor {
    version: u32,
    /// The target, for people.
    pub(super) target: String,
    /// How many batches were stored.
    pub(super) number: u64,
    /// The last batch that was passed.
    pub(super) last: Option<Last>,
    /// The length of the target when it is one file.
    pub(super) length: u64,
    /// Since when the walk has certainly seen all batches: the day on which the chain was at its end,
    /// by the gateway's clock or this machine's, whichever was behind.
    pub(super) complete_on: Option<NaiveDate>,
    pub(super) passed: Passed,
}

/// A batch that was passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Last {
    pub(super) tag: Tag,
    /// The day on which it was formed, or if its name does not tell, one on or before it.
    pub(super) date: NaiveDate,
    pub(super) etag: Option<String>,
}

impl Cursor {
    pub(super) fn new(target: String) -> Self {
        Self {
            version: VERSION,
            target,
            number: 0,
            last: None,
            length: 0,
            complete_on: None,
            passed: Passed::default(),
        }
    }

    /// Goes on to a batch.
    pub(super) fn pass(&mut self, last: Last, today: NaiveDate) {
        self.passed.pass(&last.tag, today);
        self.last = Some(last);
    }

    /// Reads a cursor, if there is one.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, StateError> {
        let Some(bytes) = state::read(path)? else { return Ok(None) };
        let invalid = |reason: String| StateError::io(path)(io::Error::other(reason));
        let cursor: Self = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
        match cursor.version {
            VERSION => Ok(Some(cursor)),
            other => Err(invalid(format!("its format has version {other}; this efgs supports {VERSION}"))),
        }
    }

    pub(super) fn save(&self, path: &Path) -> Result<(), StateError> {
        self.prepare(path)?.take_effect()
    }

    /// Writes all of it, so that only a moment is left until it is saved.
    pub(super) fn prepare(&self, path: &Path) -> Result<Replacement, StateError> {
        let bytes = serde_json::to_vec_pretty(self).map_err(|e| StateError::io(path)(e.into()))?;
        Replacement::prepare(path, &bytes)
    }
}
