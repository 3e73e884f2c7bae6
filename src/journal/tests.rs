#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::{
    pin::pin,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use chrono::NaiveDate;
use futures_util::StreamExt as _;
use proptest::prelude::*;
use prost::Message;
use sha2::{Digest, Sha256};

use super::{
    medium::Listed,
    read::read_ahead,
    record::{EndRecord, Event, Group},
    segment::{self, FIRST, Header, ReadSegment, SegmentWriter},
};
use crate::{config, intake::Keyring};

fn keyring(id: u32) -> Keyring {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, format!("{}=\n", "A".repeat(43))).unwrap();
    Keyring::load(&config::Encryption { keys: vec![config::EncryptionKey { id, file }] }).unwrap()
}

fn header() -> Header {
    let day = NaiveDate::from_ymd_opt(2026, 11, 24).unwrap();
    Header { instance: 7, number: 1, day, after: 0, previous: FIRST }
}

/// A file with so many empty groups, and where each frame ends.
fn file(keyring: &Keyring, groups: usize) -> (Vec<u8>, Vec<usize>) {
    let header = header();
    let mut bytes = header.to_bytes();
    let mut writing = SegmentWriter::new(&header);
    let mut ends = vec![bytes.len()];
    for i in 0..groups {
        let last = i + 1 == groups;
        let records = if last { vec![Event::End(EndRecord {}).into()] } else { Vec::new() };
        let frame = writing.seal(&Group { records, after_day: 0 }.encode_to_vec(), keyring).unwrap();
        bytes.extend_from_slice(&frame);
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn read(bytes: &[u8], keyring: &Keyring) -> Result<ReadSegment, String> {
    segment::read(&header().name(), bytes, keyring).map(Option::unwrap)
}

#[test]
fn a_file_that_ends_in_its_header_is_no_damage_and_another_file_is() {
    let keyring = keyring(1);
    let (bytes, ends) = file(&keyring, 1);
    let read = |bytes: &[u8]| segment::read(&header().name(), bytes, &keyring);
    for end in 0..ends[0] {
        assert!(read(&bytes[..end]).unwrap().is_none(), "{end} bytes");
    }
    assert!(read(&bytes[..ends[0]]).unwrap().is_some());
    assert!(read(b"EFGX").is_err() && read(b"something else").is_err());
}

#[test]
fn what_was_written_is_read_and_names_the_keys_that_it_needs() {
    let (bytes, _) = file(&keyring(3), 4);
    let segment = read(&bytes, &keyring(3)).unwrap();
    assert_eq!((segment.ended, segment.torn, segment.keys), (true, 0, vec![3]));
    assert_eq!((segment.header, segment.problems), (header(), Vec::new()));
    assert_eq!(header().name(), "2026-11-24/0000000000000007-00000001.efgsj");
    let other = read(&bytes, &keyring(4)).unwrap();
    assert!(other.problems[0].contains("encryption key 3"), "{:?}", other.problems);
}

#[test]
fn an_altered_byte_is_found_wherever_it_is() {
    let keyring = keyring(1);
    let (bytes, _) = file(&keyring, 3);
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 0x10;
        let problems = read(&altered, &keyring).map(|segment| segment.problems);
        assert!(problems.is_err() || problems.is_ok_and(|found| !found.is_empty()), "byte {at}");
    }
}

#[test]
fn what_was_cut_is_torn_and_its_hash_is_that_of_the_whole_frames() {
    let keyring = keyring(1);
    let (bytes, ends) = file(&keyring, 3);
    for end in ends[0]..bytes.len() {
        let segment = read(&bytes[..end], &keyring).unwrap();
        let whole = *ends.iter().rfind(|frame| **frame <= end).unwrap();
        assert_eq!((segment.torn, segment.problems.len()), (end - whole, 0), "at {end}");
        assert_eq!(segment.hashes, read(&bytes[..whole], &keyring).unwrap().hashes);
        assert_eq!(segment.hashes.last().unwrap().as_slice(), Sha256::digest(&bytes[..whole]).as_slice());
    }
}

#[test]
fn a_missing_frame_is_missed_and_the_others_are_read() {
    let keyring = keyring(1);
    let (bytes, ends) = file(&keyring, 5);
    let gone = [&bytes[..ends[1]], &bytes[ends[3]..]].concat();
    let segment = read(&gone, &keyring).unwrap();
    assert!(segment.problems[0].contains("2 groups of records are missing"), "{:?}", segment.problems);
    assert_eq!((segment.problems.len(), segment.ended), (1, true));
}

#[test]
fn a_frame_that_is_moved_or_there_twice_takes_no_other_with_it() {
    let keyring = keyring(1);
    let (bytes, ends) = file(&keyring, 6);
    let frame = |i: usize| &bytes[ends[i]..ends[i + 1]];
    let exchanged = [&bytes[..ends[1]], frame(2), frame(1), &bytes[ends[3]..]].concat();
    let segment = read(&exchanged, &keyring).unwrap();
    assert_eq!((segment.problems.len(), segment.ended), (2, true), "{:?}", segment.problems);
    assert!(segment.problems[0].contains("1 groups of records are missing"), "{:?}", segment.problems);
    assert!(segment.problems[1].contains("altered or moved"), "{:?}", segment.problems);
    let twice = [&bytes[..ends[2]], frame(1), &bytes[ends[2]..]].concat();
    let segment = read(&twice, &keyring).unwrap();
    assert_eq!((segment.problems.len(), segment.ended), (1, true), "{:?}", segment.problems);
}

#[tokio::test]
async fn no_more_bytes_are_read_ahead_than_there_is_room_for() {
    let listed: Vec<Listed> =
        [6, 6, 2, 2, 50, 1, 4].map(|bytes| Listed { name: bytes.to_string(), bytes }).into();
    let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
    let read = async |listed: &Listed| {
        let sum = now.fetch_add(listed.bytes, SeqCst) + listed.bytes;
        assert!(sum <= 10 || sum == 50, "{sum} bytes: what is larger than the room is read alone");
        most.fetch_max(sum, SeqCst);
        tokio::task::yield_now().await;
    };
    let mut reading = pin!(read_ahead(&listed, 10, &read));
    let mut order = Vec::new();
    while let Some((read, (), permit)) = reading.next().await {
        order.push(read.clone());
        now.fetch_sub(read.bytes, SeqCst);
        drop(permit);
    }
    assert_eq!(order, listed);
    assert_eq!(most.load(SeqCst), 50);
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..300) {
        let keyring = keyring(1);
        drop(segment::read(&header().name(), &bytes, &keyring));
        // The same inside a file that is right otherwise.
        let (mut file, _) = file(&keyring, 2);
        let at = at.min(file.len());
        file.splice(at.., bytes);
        drop(segment::read(&header().name(), &file, &keyring));
    }
}
