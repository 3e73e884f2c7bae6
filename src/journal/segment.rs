//! The form of a journal's files and objects.
//!
//! A **segment** is a header and frames. The header says which instance wrote it, its number among that
//! instance's segments, its day, and the number and hash of the segment before. A frame is `length (4 bytes) ‖ check (4
//! bytes) ‖ key id ‖ nonce ‖ ciphertext ‖ tag`: a group of records, encrypted with the gateway's key
//! ([`Keyring`]), authenticated together with the header and the frame's number. So a frame that is altered, moved
//! or missing does not open, and the others do; a missing segment is noticed by its number, and a segment that
//! was cut at its end by the hash in the next one. (The last one of an instance may have been cut by a crash.)

use chrono::{Datelike, NaiveDate};
use prost::Message;
use sha2::{Digest, Sha256};

use super::record::{Event, Group};
use efgs_protocol::random;

use crate::intake::{EncryptionError, Keyring};

const MAGIC: &[u8; 8] = b"EFGSJRN1";
const HEADER: usize = 68;
const PREFIX: usize = 8;
/// How many missing frames in a row are recognised as such.
const GAP: u64 = 64;

/// The `previous` of a segment that has no predecessor.
pub(super) const FIRST: [u8; 32] = [0; 32];

/// The header of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// [`crate::instance::Instance::id`].
    pub(super) instance: u64,
    /// From 1.
    pub(super) number: u64,
    /// The UTC day it was begun on.
    pub(super) day: NaiveDate,
    /// The number of the last segment before that was written; numbers of failed attempts are left out.
    pub(super) after: u64,
    /// The hash of that segment.
    pub(super) previous: [u8; 32],
}

impl Header {
    /// Where the segment is, below the journal's folder or prefix.
    pub(super) fn name(&self) -> String {
        name(self.day, self.instance, self.number)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.instance.to_be_bytes());
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(&self.day.num_days_from_ce().to_be_bytes());
        bytes.extend_from_slice(&self.after.to_be_bytes());
        bytes.extend_from_slice(&self.previous);
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER)?.strip_prefix(MAGIC)?;
        let (instance, bytes) = bytes.split_first_chunk()?;
        let (number, bytes) = bytes.split_first_chunk()?;
        let (day, bytes) = bytes.split_first_chunk()?;
        let (after, bytes) = bytes.split_first_chunk()?;
        let (previous, _) = bytes.split_first_chunk()?;
        Some(Self {
            instance: u64::from_be_bytes(*instance),
            number: u64::from_be_bytes(*number),
            day: NaiveDate::from_num_days_from_ce_opt(i32::from_be_bytes(*day))?,
            after: u64::from_be_bytes(*after),
            previous: *previous,
        })
    }
}

/// Where a segment is, below the journal's folder or prefix.
pub(super) fn name(day: NaiveDate, instance: u64, number: u64) -> String {
    format!("{day}/{instance:016x}-{number:08}.efgsj")
}

/// A segment while it is written.
pub(super) struct SegmentWriter {
    header_hash: [u8; 32],
    frames: u64,
    hash: Sha256,
}

impl SegmentWriter {
    pub(super) fn new(header: &Header) -> Self {
        let bytes = header.to_bytes();
        Self { header_hash: Sha256::digest(&bytes).into(), frames: 0, hash: Sha256::new_with_prefix(&bytes) }
    }

    /// The next frame, as it is to be written. When that fails, the segment cannot be continued.
    pub(super) fn seal(&mut self, group: &[u8], keyring: &Keyring) -> Result<Vec<u8>, EncryptionError> {
        let nonce = random::bytes();
        let sealed = keyring.seal(&binding(&self.header_hash, self.frames), nonce, group)?;
        let length = (sealed.len() as u32).to_be_bytes();
        let mut frame = Vec::with_capacity(PREFIX + sealed.len());
        frame.extend_from_slice(&length);
        frame.extend_from_slice(&check(length));
        frame.extend_from_slice(&sealed);
        self.frames += 1;
        self.hash.update(&frame);
        Ok(frame)
    }

    /// The hash of the header and all frames.
    pub(super) fn hash(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }
}

/// What a frame's encryption is bound to: its segment and its number.
fn binding(header_hash: &[u8; 32], frame: u64) -> [u8; 32] {
    Sha256::new_with_prefix(b"EFGS journal frame")
        .chain_update(header_hash)
        .chain_update(frame.to_be_bytes())
        .finalize()
        .into()
}

/// Distinguishes a damaged length from a frame that was not written completely.
fn check(length: [u8; 4]) -> [u8; 4] {
    let hash = Sha256::digest(length);
    [hash[0], hash[1], hash[2], hash[3]]
}

/// A segment that has been read.
#[derive(Debug)]
pub(super) struct ReadSegment {
    /// Where it was found.
    pub(super) name: String,
    pub(super) header: Header,
    /// The day of the segment before, if it says so.
    pub(super) after_day: Option<NaiveDate>,
    /// What it records, in order.
    pub(super) events: Vec<Event>,
    /// Whether it was closed properly.
    pub(super) ended: bool,
    /// Bytes at its end that were not written completely.
    pub(super) torn: usize,
    /// Its hash where its header ends, and where each frame does: the last one is that of the whole, without what is
    /// torn.
    pub(super) hashes: Vec<[u8; 32]>,
    /// The numbers of the encryption keys that it needs, ascending.
    pub(super) keys: Vec<u32>,
    /// What is wrong with it.
    pub(super) problems: Vec<String>,
}

/// Reads a segment, as far as it can be read; `None` when it ends before its header does, as after a crash right after
/// the file was made.
pub(super) fn read(name: &str, bytes: &[u8], keyring: &Keyring) -> Result<Option<ReadSegment>, String> {
    if bytes.len() < HEADER && MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
        return Ok(None);
    }
    let header = Header::parse(bytes).ok_or_else(|| format!("{name}: it is not a file of the journal"))?;
    let mut segment = ReadSegment {
        name: name.to_owned(),
        after_day: None,
        events: Vec::new(),
        ended: false,
        torn: 0,
        hashes: Vec::new(),
        keys: Vec::new(),
        problems: Vec::new(),
        header,
    };
    if segment.header.name() != name {
        segment
            .problems
            .push(format!("{name}: it is in the wrong place: it says that it is {}", segment.header.name()));
    }
    let header_hash: [u8; 32] = Sha256::digest(&bytes[..HEADER]).into();
    let (mut at, mut number) = (HEADER, NextFrame::default());
    let mut hash = Sha256::new_with_prefix(&bytes[..HEADER]);
    segment.hashes.push(hash.clone().finalize().into());
    while at < bytes.len() {
        let rest = &bytes[at..];
        let Some((length, prefix)) = rest.split_first_chunk::<4>() else { break };
        let Some((found, _)) = prefix.split_first_chunk::<4>() else { break };
        if *found != check(*length) {
            segment.problems.push(format!("{name}: altered at byte {at}: what follows cannot be read"));
            at = bytes.len();
            break;
        }
        let length = u32::from_be_bytes(*length) as usize;
        let Some(sealed) = rest.get(PREFIX..PREFIX + length) else { break };
        segment.take_frame(&mut number, at, sealed, &header_hash, keyring);
        hash.update(&bytes[at..at + PREFIX + length]);
        segment.hashes.push(hash.clone().finalize().into());
        at += PREFIX + length;
    }
    segment.torn = bytes.len() - at;
    segment.keys.sort_unstable();
    segment.keys.dedup();
    Ok(Some(segment))
}

/// Which number the next frame of a segment can have: `next`, unless frames before it are missing, or frames that
/// did not open do not belong here. It is at least `first`.
#[derive(Clone, Copy, Default)]
struct NextFrame {
    first: u64,
    next: u64,
}

impl ReadSegment {
    /// Opens one frame, which has one of those numbers.
    fn take_frame(
        &mut self,
        number: &mut NextFrame,
        at: usize,
        sealed: &[u8],
        header_hash: &[u8; 32],
        keyring: &Keyring,
    ) {
        let name = &self.name;
        if self.ended {
            self.problems.push(format!("{name}: records at byte {at}, behind its end"));
        }
        self.keys.extend(sealed.first_chunk().map(|id| u32::from_be_bytes(*id)));
        let open = |number: u64| {
            let mut sealed = sealed.to_vec();
            keyring.open(&binding(header_hash, number), &mut sealed).map(<[u8]>::to_vec)
        };
        let NextFrame { first, next } = *number;
        let mut opened = open(next);
        if matches!(opened, Err(EncryptionError::Altered(_)))
            && let Some((found, group)) = (first..next)
                .chain(next + 1..=next + GAP)
                .find_map(|number| Some((number, open(number).ok()?)))
        {
            if found > next {
                let gap = found - next;
                self.problems.push(format!("{name}: {gap} groups of records are missing before byte {at}"));
            }
            *number = NextFrame { first: found + 1, next: found + 1 };
            opened = Ok(group);
        } else {
            number.next += 1;
            if opened.is_ok() {
                number.first = number.next;
            }
        }
        match opened.map(|group| Group::decode(group.as_slice())) {
            Ok(Ok(group)) => {
                if group.after_day != 0 {
                    self.after_day = NaiveDate::from_num_days_from_ce_opt(group.after_day);
                }
                let events = group.records.into_iter().filter_map(|record| record.event);
                self.events.extend(events);
                self.ended = matches!(self.events.last(), Some(Event::End(_)));
            }
            Ok(Err(_)) => self.problems.push(format!("{name}: the records at byte {at} cannot be read by this version")),
            Err(EncryptionError::UnknownKey(id)) => self.problems.push(format!(
                "{name}: the records at byte {at} need encryption key {id}, which `encryption.keys` does not name"
            )),
            Err(_) => self.problems.push(format!("{name}: the records at byte {at} were altered or moved")),
        }
    }
}
