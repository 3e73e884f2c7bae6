//! Before anything is sent: reading, checking, splitting.

use std::{collections::HashSet, fs::File, io::Write, ops::ControlFlow, path::PathBuf, sync::Arc};

use chrono::{DateTime, Utc};
use efgs_protocol::{
    canonical::CanonicalKeys,
    key::{InvalidReason, KeyBatch, KeyRef},
    media::Format,
    wire,
};
use tokio_util::sync::CancellationToken;

use super::{
    Counts, FileReport, InvalidEntry, MAX_KEYS_READ, MAX_LISTED, Progress, RunReport, UploadError,
    UploadEvent, UploadOptions, digest, journal::Journal,
};
use crate::{
    source::{Source, SourceProblem},
    state::StateError,
};

/// How many keys are remembered to notice repetitions: as many as a table of 4,194,304 places of 17 bytes holds.
/// Beyond that the gateway notices them (207).
const MAX_REMEMBERED: usize = 3_670_016;
/// The most bytes that a key has in an upload, apart from its visited countries.
const KEY_BYTES: usize = 64;
/// The bytes of a visited country.
const COUNTRY_BYTES: usize = 4;

/// What it takes to read.
pub(super) struct Reading {
    pub(super) state: PathBuf,
    /// The URL of the gateway: what another gateway has says nothing about this one.
    pub(super) gateway: String,
    pub(super) options: UploadOptions,
    pub(super) now: DateTime<Utc>,
    pub(super) stop: CancellationToken,
    pub(super) progress: Arc<Progress>,
}

/// What is going to be sent.
pub(super) struct Prepared {
    pub(super) journal: Journal,
    pub(super) report: RunReport,
    /// The bodies of all pieces, one after another, in protobuf. It has no name and ends with the process.
    pub(super) spool: File,
    pub(super) pieces: Vec<Piece>,
}

/// Keys of one file that are sent as one upload at first.
pub(super) struct Piece {
    /// Its name in the journal.
    pub(super) id: String,
    /// Which file.
    pub(super) file: usize,
    pub(super) keys: usize,
    /// Where its body begins in the spool.
    pub(super) start: u64,
    pub(super) length: usize,
}

/// The keys that will be a piece.
#[derive(Default)]
struct Group {
    keys: KeyBatch,
    /// Which key of the file each is.
    indexes: Vec<u64>,
    /// As many bytes as the body has at most.
    bytes: usize,
}

/// Why the gateway would refuse a key.
enum Unsendable {
    TooOld,
    Invalid(String),
}

struct Preparing {
    reading: Reading,
    prepared: Prepared,
    spooled: u64,
    /// The first half of each payload hash. Two different keys with the same one would have to be sought for
    /// longer than anybody can.
    seen: HashSet<[u8; 16]>,
    group: Group,
    read: u64,
}

impl Reading {
    pub(super) fn prepare(self, sources: Vec<Source>) -> Result<Prepared, UploadError> {
        let journal = Journal::open(&self.state, self.now)?;
        let spool = tempfile::tempfile_in(&self.state).map_err(StateError::io(&self.state))?;
        let mut preparing = Preparing {
            prepared: Prepared {
                journal,
                report: RunReport { dry_run: self.options.dry_run, ..RunReport::default() },
                spool,
                pieces: Vec::new(),
            },
            spooled: 0,
            seen: HashSet::new(),
            group: Group::default(),
            read: 0,
            reading: self,
        };
        for source in sources {
            preparing.source(source)?;
        }
        let mut prepared = preparing.prepared;
        prepared.report.planned_uploads = prepared.pieces.len();
        Ok(prepared)
    }
}

impl Preparing {
    fn source(&mut self, source: Source) -> Result<(), UploadError> {
        let name = source.name().to_owned();
        self.prepared.report.files.push(FileReport { name, format: None, keys: Counts::default() });
        let mut failed = None;
        let defaults = self.reading.options.gaen.clone();
        let stop = self.reading.stop.clone();
        let format = source.read(&defaults, &stop, &mut |key| match self.take(key) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        self.file().format = Some(format.map_err(|error| match error.problem {
            SourceProblem::Stopped => UploadError::Stopped,
            _ => error.into(),
        })?);
        self.close()
    }

    fn file(&mut self) -> &mut FileReport {
        #[expect(clippy::expect_used, reason = "it is pushed before the file is read")]
        self.prepared.report.files.last_mut().expect("a file")
    }

    /// Takes the next key of the file.
    fn take(&mut self, key: Result<KeyRef<'_>, String>) -> Result<(), UploadError> {
        let index = self.file().keys.read;
        self.file().keys.read += 1;
        self.read += 1;
        if self.read > MAX_KEYS_READ {
            return Err(UploadError::TooManyKeys);
        }
        let key = match key {
            Ok(key) => key,
            Err(reason) => {
                self.refuse(index, reason);
                return Ok(());
            }
        };
        let UploadOptions { max_keys, max_bytes, .. } = self.reading.options;
        let bytes = KEY_BYTES + COUNTRY_BYTES * key.visited_countries().len();
        let full = self.group.keys.len() >= max_keys || self.group.bytes + bytes > max_bytes;
        if full && !self.group.keys.is_empty() {
            self.close()?;
        }
        self.group.keys.push(*key, key.visited_countries());
        self.group.indexes.push(index);
        self.group.bytes += bytes;
        Ok(())
    }

    fn refuse(&mut self, key: u64, reason: String) {
        let file = self.file();
        file.keys.invalid += 1;
        let file = file.name.clone();
        if self.prepared.report.invalid.len() < MAX_LISTED {
            self.prepared.report.invalid.push(InvalidEntry { file, key, reason });
        }
    }

    /// Makes a piece of the keys that were taken, unless it is done or nothing is left of it.
    fn close(&mut self) -> Result<(), UploadError> {
        let Group { keys, indexes, .. } = std::mem::take(&mut self.group);
        if keys.is_empty() {
            return Ok(());
        }
        if self.reading.stop.is_cancelled() {
            return Err(UploadError::Stopped);
        }
        let progress = self.reading.progress.clone();
        progress(UploadEvent::Read { file: &self.file().name, keys: keys.len() as u64 });
        let canonical = CanonicalKeys::of(&keys);
        let new: Vec<usize> = canonical
            .payload_hashes()
            .iter()
            .enumerate()
            .filter_map(|(at, hash)| self.remember(hash).then_some(at))
            .collect();
        // What is done is known under the name of the keys that were sent: of all of them, or of those that were
        // new or valid at that time, since what was left out then may have to be sent another day. The keys are
        // checked after that: what has grown too old since it was sent is no mistake.
        let mut id = self.id(&canonical);
        if self.is_done(&id)? {
            self.file().keys.done_before += keys.len() as u64;
            return Ok(());
        }
        self.file().keys.repeated += (keys.len() - new.len()) as u64;
        if new.len() < keys.len() {
            id = self.id(&CanonicalKeys::of(&pick(&keys, &new)));
        }
        if self.is_done(&id)? {
            self.file().keys.done_before += new.len() as u64;
            return Ok(());
        }
        let mut valid = Vec::with_capacity(new.len());
        for &at in &new {
            match self.unsendable(keys.get(at)) {
                None => valid.push(at),
                // It was sent when it was new, or it is too late. Neither is an error.
                Some(Unsendable::TooOld) => self.file().keys.too_old += 1,
                Some(Unsendable::Invalid(reason)) => self.refuse(indexes[at], reason),
            }
        }
        valid.sort_unstable_by_key(|at| *keys.get(*at).key_data.as_bytes());
        let chosen = pick(&keys, &valid);
        if valid.len() < new.len() {
            id = self.id(&CanonicalKeys::of(&chosen));
        }
        if self.is_done(&id)? {
            self.file().keys.done_before += chosen.len() as u64;
            return Ok(());
        }
        if chosen.is_empty() { Ok(()) } else { self.spool(id, &chosen) }
    }

    fn spool(&mut self, id: String, keys: &KeyBatch) -> Result<(), UploadError> {
        let body = wire::encode(Format::Protobuf, keys);
        self.prepared.spool.write_all(&body).map_err(StateError::io(&self.reading.state))?;
        let file = self.prepared.report.files.len() - 1;
        self.prepared.pieces.push(Piece {
            id,
            file,
            keys: keys.len(),
            start: self.spooled,
            length: body.len(),
        });
        self.spooled += body.len() as u64;
        self.file().keys.unsent += keys.len() as u64;
        Ok(())
    }

    fn is_done(&mut self, id: &str) -> Result<bool, StateError> {
        self.prepared.journal.is_done(id, self.reading.now)
    }

    fn id(&self, keys: &CanonicalKeys) -> String {
        digest(&[self.reading.gateway.as_bytes(), b"\n", &keys.signed_bytes()])
    }

    /// Why the gateway would refuse a key (spec §4.1.3, §4.2).
    fn unsendable(&self, key: KeyRef<'_>) -> Option<Unsendable> {
        let country = self.reading.options.country;
        if key.origin != country {
            let reason = format!("origin {} is not {country}, which uploads and signs", key.origin);
            return Some(Unsendable::Invalid(reason));
        }
        let one: KeyBatch = [key].into_iter().collect();
        Some(match one.validate(self.reading.now).err()?.reason {
            InvalidReason::TooOld { .. } => Unsendable::TooOld,
            reason => Unsendable::Invalid(reason.to_string()),
        })
    }

    /// Whether a key is met for the first time, as far as that is remembered.
    fn remember(&mut self, hash: &[u8; 32]) -> bool {
        let (halves, _) = hash.as_chunks();
        if self.seen.len() < MAX_REMEMBERED {
            self.seen.insert(halves[0])
        } else {
            !self.seen.contains(&halves[0])
        }
    }
}

/// Some keys of a batch, in this order.
pub(super) fn pick(keys: &KeyBatch, indexes: &[usize]) -> KeyBatch {
    indexes.iter().map(|at| keys.get(*at)).collect()
}
