//! The files in which a gateway keeps records until the database has them.
//!
//! A segment is a sequence of frames, `length (4 bytes) ‖ check (4 bytes) ‖ text`, and zeros up to the size that was
//! allocated. The integers are big-endian, and the check is the beginning of the text's SHA-256. The first text is a
//! [`SignedStatement`] that says which record of which instance comes before this file; its statement has the number 0,
//! because it is in no list. Every other text is the [line](Record::line) of a record, each with the hash of the one
//! before it.

use sha2::{Digest, Sha256};

use super::{Record, SignedStatement};

/// The greatest length of a text, in bytes.
pub const MAX_TEXT: usize = 64 << 10;

const PREFIX: usize = 8;

/// The bytes of a frame; none when the text is too long.
pub fn frame(text: &str) -> Option<Vec<u8>> {
    let length = u32::try_from(text.len()).ok().filter(|_| (1..=MAX_TEXT).contains(&text.len()))?;
    let mut bytes = Vec::with_capacity(PREFIX + text.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&check(text.as_bytes()));
    bytes.extend_from_slice(text.as_bytes());
    Some(bytes)
}

fn check(text: &[u8]) -> [u8; 4] {
    let hash = Sha256::digest(text);
    std::array::from_fn(|at| hash[at])
}

/// The text of the frame at the beginning, and how many bytes the frame has; none when there is no whole frame.
fn text(bytes: &[u8]) -> Option<(&str, usize)> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    let length = u32::from_be_bytes(*length) as usize;
    let text = rest.get(..length).filter(|_| (1..=MAX_TEXT).contains(&length))?;
    (check(text) == *sum).then_some(())?;
    Some((std::str::from_utf8(text).ok()?, PREFIX + length))
}

/// Reads records, at most so many, from the beginning of a part of a segment behind its statement; returns them and how
/// many bytes they take.
pub fn records(bytes: &[u8], most: usize) -> (Vec<Record>, usize) {
    let (mut records, mut read) = (Vec::new(), 0);
    while records.len() < most
        && let Some((text, size)) = bytes.get(read..).and_then(text)
    {
        let Some(record) = Record::parse(text) else { break };
        records.push(record);
        read += size;
    }
    (records, read)
}

/// What a whole segment contains.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Where the file begins; none when its first frame is damaged.
    pub statement: Option<SignedStatement>,
    /// The records that can be read, in their order.
    pub records: Vec<Record>,
    /// Where something that is no frame begins although whole records follow it.
    pub damaged_at: Option<usize>,
    /// Bytes after the last whole frame, without the zeros at the end: what was being written when the machine or its
    /// disk failed.
    pub torn: usize,
}

impl Segment {
    /// Reads a segment, whatever has become of it.
    pub fn read(bytes: &[u8]) -> Self {
        let mut segment = Self::default();
        let mut at = 0;
        let mut unread = 0;
        while at < bytes.len() {
            let size = match text(&bytes[at..]) {
                Some((text, size)) if segment.take(text, at) => size,
                _ => {
                    // No length of a frame begins with four zeros.
                    let zeros = bytes[at..].iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - at);
                    at += zeros.saturating_sub(PREFIX / 2).max(1);
                    continue;
                }
            };
            if unread < at {
                segment.damaged_at.get_or_insert(unread);
            }
            at += size;
            unread = at;
        }
        let rest = &bytes[unread..];
        segment.torn = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        segment
    }

    fn take(&mut self, text: &str, at: usize) -> bool {
        if at == 0
            && let Ok(statement) = serde_json::from_str(text)
        {
            self.statement = Some(statement);
            return true;
        }
        Record::parse(text).map(|record| self.records.push(record)).is_some()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::{ChainEnd, Entry, ORIGIN, Statement, StatementKind};

    /// A segment with a statement and three records, and where each frame ends.
    fn written() -> (Vec<u8>, Vec<Record>, Vec<usize>) {
        let statement = Statement::new(
            StatementKind::Head,
            "0123456789abcdef",
            &ChainEnd::new(7, ORIGIN),
            Default::default(),
        );
        let signed = SignedStatement { statement: statement.text(), key_id: None, signature: None };
        let mut bytes = frame(&serde_json::to_string(&signed).unwrap()).unwrap();
        let (mut records, mut ends) = (Vec::<Record>::new(), vec![bytes.len()]);
        for sequence in 8..11 {
            let entry = Entry { request_id: format!("r{sequence}"), status: 200, ..Entry::default() };
            let previous = records.last().map_or(ORIGIN, |last| last.hash);
            let record = Record::new("0123456789abcdef", sequence, previous, entry);
            bytes.extend(frame(&record.line()).unwrap());
            records.push(record);
            ends.push(bytes.len());
        }
        (bytes, records, ends)
    }

    #[test]
    fn a_segment_is_read_as_it_was_written_with_or_without_the_zeros_behind_it() {
        let (mut bytes, records, ends) = written();
        for _ in 0..2 {
            let read = Segment::read(&bytes);
            assert_eq!((&read.records, read.damaged_at, read.torn), (&records, None, 0));
            assert!(read.statement.is_some());
            assert_eq!(super::records(&bytes[ends[0]..], 9), (records.clone(), ends[3] - ends[0]));
            assert_eq!(super::records(&bytes[ends[0]..], 1).1, ends[1] - ends[0]);
            bytes.resize(bytes.len() + 1000, 0);
        }
        assert_eq!(Segment::read(&[0; 5000]), Segment::default());
    }

    #[test]
    fn a_tail_torn_at_any_byte_costs_only_the_frame_it_is_in() {
        let (bytes, records, ends) = written();
        for cut in 0..bytes.len() {
            for zeros in [0, 3, 5000] {
                let mut torn = bytes[..cut].to_vec();
                torn.resize(cut + zeros, 0);
                let read = Segment::read(&torn);
                let whole = ends.iter().filter(|end| **end <= cut).count();
                assert_eq!(read.records, records[..whole.saturating_sub(1)], "{cut}");
                assert_eq!((read.statement.is_some(), read.damaged_at), (whole > 0, None), "{cut}");
                let kept = ends.iter().rfind(|end| **end <= cut).copied().unwrap_or(0);
                // A byte of a length may be zero.
                assert!(read.torn <= cut - kept && (read.torn > 0 || cut - kept < 4), "{cut}: {}", read.torn);
            }
        }
    }

    #[test]
    fn a_byte_altered_anywhere_is_found_and_costs_only_the_frame_it_is_in() {
        let (bytes, records, ends) = written();
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            let read = Segment::read(&altered);
            let frame = ends.iter().position(|end| at < *end).unwrap();
            let mut left = records.clone();
            match frame {
                0 => assert!(read.statement.is_none()),
                frame => drop(left.remove(frame - 1)),
            }
            assert_eq!(read.records, left, "{at}");
            let begin = if frame == 0 { 0 } else { ends[frame - 1] };
            match frame {
                3 => assert!(read.damaged_at.is_none() && read.torn > 0, "{at}"),
                _ => assert_eq!(read.damaged_at, Some(begin), "{at}"),
            }
        }
    }
}
