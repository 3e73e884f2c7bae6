//! What was sent, so that nothing is sent again: `upload.journal` in the state folder.
//!
//! One JSON object on each line, appended and synced: which upload is about to be sent, before it is; that it
//! was stored; and that a piece of a source is done, once the gateway has every key of it. The first two are
//! for people, who find here every tag that the gateway may know (and can withdraw). Only the last one decides:
//! a piece that is done is not sent again. When the process dies before it is written, the piece is sent again
//! under the same tag, and the gateway stores nothing twice.

use std::{
    collections::HashMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::state::{self, Lock, StateError};

const NAME: &str = "upload.journal";
/// For how long a line is kept. The gateway refuses keys older than 15 days and forgets what is older than 14.
const KEPT_DAYS: i64 = 30;
/// How old the line of a piece may be when the piece is met again: then it is written anew, so that what lies in an
/// outbox for months stays known.
const RENEWED_DAYS: i64 = KEPT_DAYS / 2;

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "lowercase", tag = "event")]
pub(super) enum Step {
    /// An upload is going to be sent.
    Sending { tag: String, keys: usize },
    /// It was answered 201.
    Stored { tag: String },
    /// The gateway has every key of a piece: see [`Journal::done`].
    Done { piece: String },
}

#[derive(Deserialize, Serialize)]
struct Line {
    at: DateTime<Utc>,
    #[serde(flatten)]
    event: Step,
}

pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// When each piece was written down last.
    done: HashMap<String, DateTime<Utc>>,
    _lock: Lock,
}

impl Journal {
    /// Opens the journal of a state folder, for this process alone.
    pub(super) fn open(folder: &Path, now: DateTime<Utc>) -> Result<Self, StateError> {
        let lock = Lock::take(folder, "upload.lock")?;
        let path = folder.join(NAME);
        let bytes = state::read(&path)?.unwrap_or_default();
        // What stands behind the last line feed was being written when the process died.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut kept = Vec::with_capacity(whole);
        let mut done = HashMap::new();
        for (number, line) in (1..).zip(bytes[..whole].split_inclusive(|byte| *byte == b'\n')) {
            let Line { at, event } = serde_json::from_slice(line).map_err(|_| {
                let reason = format!(
                    "line {number} is not an entry; move the file away: its uploads are then sent again, and the \
                     gateway stores nothing twice"
                );
                StateError::Damaged(path.clone(), reason)
            })?;
            if now - at > TimeDelta::days(KEPT_DAYS) {
                continue;
            }
            kept.extend_from_slice(line);
            if let Step::Done { piece } = event {
                done.insert(piece, at);
            }
        }
        if kept.len() < bytes.len() || bytes.is_empty() {
            state::replace(&path, &kept)?;
        }
        let file = File::options().append(true).open(&path).map_err(StateError::io(&path))?;
        Ok(Self { path, file, done, _lock: lock })
    }

    /// Whether the gateway has every key of a piece, which is met at this time.
    pub(super) fn is_done(&mut self, piece: &str, now: DateTime<Utc>) -> Result<bool, StateError> {
        let Some(at) = self.done.get(piece) else { return Ok(false) };
        if now - *at > TimeDelta::days(RENEWED_DAYS) {
            self.done(piece, now)?;
        }
        Ok(true)
    }

    /// The gateway has every key of a piece.
    pub(super) fn done(&mut self, piece: &str, at: DateTime<Utc>) -> Result<(), StateError> {
        self.append(at, Step::Done { piece: piece.to_owned() })?;
        self.done.insert(piece.to_owned(), at);
        Ok(())
    }

    /// Writes down a step, before anything else is done.
    pub(super) fn append(&mut self, at: DateTime<Utc>, event: Step) -> Result<(), StateError> {
        let write = || {
            let mut text = serde_json::to_vec(&Line { at, event })?;
            text.push(b'\n');
            self.file.write_all(&text)?;
            self.file.sync_data()
        };
        write().map_err(StateError::io(&self.path))
    }
}
