//! The record of one request, and the bytes that are hashed.

use std::{borrow::Cow, collections::BTreeMap};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// A SHA-256.
pub type Hash = [u8; 32];

/// The hash before the first record of a chain.
pub const ORIGIN: Hash = [0; 32];

/// One request to the national side (spec §8.1, §8.3): who, what, when, with which result. Neither addresses
/// nor key data. Its JSON has these fields in this order.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When the request arrived.
    #[serde(serialize_with = "as_text")]
    pub at: DateTime<Utc>,
    /// The answer's `x-request-id`.
    pub request_id: String,
    /// The caller's country, if it was admitted.
    pub country: Option<String>,
    /// SHA-256 of the certificate that the caller showed, admitted or not.
    pub thumbprint: Option<String>,
    /// What was wanted.
    pub operation: Cow<'static, str>,
    /// The HTTP method.
    pub method: Cow<'static, str>,
    /// The path as the API document writes it, if it is one of those.
    pub path: Option<Cow<'static, str>>,
    /// The batch tag, upload tag or callback id that was named.
    pub tag: Option<String>,
    /// The date that was asked for.
    pub date: Option<String>,
    /// Of the answer; 499 when the caller disconnected before it.
    pub status: u16,
    /// Code of the error.
    pub error: Option<Cow<'static, str>>,
    /// Keys that this request put in, got out or took back.
    pub keys: Option<u32>,
    /// Whose keys these are, and how many of each.
    pub origins: Option<BTreeMap<String, u32>>,
    /// Bytes of the request's body, as far as it was read.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
    /// From the request's head to its answer, in microseconds; without the time for this record.
    pub duration_micros: u64,
    /// How many requests of unregistered callers it stands for, all of one minute; absent for a single request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
}

fn as_text<S: Serializer>(at: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&at.format("%Y-%m-%dT%H:%M:%S%.6fZ"))
}

/// An entry at its number in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which start of a gateway wrote it.
    pub instance: String,
    /// Its number in that instance's chain, from 1.
    pub sequence: i64,
    /// What happened.
    pub entry: Entry,
    /// Hash of the record before it.
    pub previous: Hash,
    /// SHA-256 of `previous` and the canonical bytes.
    pub hash: Hash,
}

#[derive(Serialize)]
struct Canonical<'a> {
    v: u8,
    instance: &'a str,
    sequence: i64,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// The canonical bytes of an entry at its number in a chain: compact JSON, the fields in their fixed order.
fn canonical(instance: &str, sequence: i64, entry: &Entry) -> Vec<u8> {
    // These types always serialise: text keys, no floats.
    serde_json::to_vec(&Canonical { v: 1, instance, sequence, entry }).unwrap_or_default()
}

/// The hash of an entry at its number in a chain.
pub fn hash(previous: &Hash, instance: &str, sequence: i64, entry: &Entry) -> Hash {
    Sha256::new().chain_update(previous).chain_update(canonical(instance, sequence, entry)).finalize().into()
}

impl Record {
    /// Appends an entry to the record with the hash `previous`.
    pub fn new(instance: &str, sequence: i64, previous: Hash, entry: Entry) -> Self {
        let hash = hash(&previous, instance, sequence, &entry);
        Self { instance: instance.to_owned(), sequence, entry, previous, hash }
    }

    /// Whether its hash is that of its content, its chain and its number.
    pub fn is_intact(&self) -> bool {
        self.hash == hash(&self.previous, &self.instance, self.sequence, &self.entry)
    }

    /// Reads a [`line`](Self::line); none when it is not exactly as a gateway writes it, or its hash is not that of its
    /// content.
    pub fn parse(line: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Place {
            instance: String,
            sequence: i64,
            previous: String,
            hash: String,
        }
        let place: Place = serde_json::from_str(line).ok()?;
        let record = Self {
            instance: place.instance,
            sequence: place.sequence,
            entry: serde_json::from_str(line).ok()?,
            previous: unhex(&place.previous)?,
            hash: unhex(&place.hash)?,
        };
        record.is_intact().then_some(record)
    }

    /// A line of an export: the canonical JSON with the two hashes at its end.
    pub fn line(&self) -> String {
        let mut line =
            String::from_utf8_lossy(&canonical(&self.instance, self.sequence, &self.entry)).into_owned();
        line.pop();
        line + &format!(",\"previous\":\"{}\",\"hash\":\"{}\"}}", hex(&self.previous), hex(&self.hash))
    }
}

/// The hash that 64 hexadecimal digits stand for.
pub fn unhex(digits: &str) -> Option<Hash> {
    let mut hash = ORIGIN;
    if digits.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Entry> {
        let text = || "\\PC{0,12}";
        let who = (proptest::option::of("[A-Z]{2}"), proptest::option::of("[0-9a-f]{64}"));
        let what = (text(), text(), proptest::option::of(text()), proptest::option::of(text()));
        let result = (any::<u16>(), proptest::option::of(text()), proptest::option::of(any::<u32>()));
        let origins = proptest::option::of(proptest::collection::btree_map("[A-Z]{2}", any::<u32>(), 0..4));
        let sizes = (any::<u64>(), any::<u64>(), any::<u64>());
        (0..i64::from(u32::MAX), "[0-9a-f]{16}", who, what, result, origins, sizes).prop_map(
            |(at, request_id, who, what, result, origins, sizes)| Entry {
                at: DateTime::from_timestamp_micros(at).unwrap(),
                request_id,
                country: who.0,
                thumbprint: who.1,
                operation: what.0.into(),
                method: what.1.into(),
                path: what.2.map(Into::into),
                tag: what.3.clone(),
                date: what.3,
                status: result.0,
                error: result.1.map(Into::into),
                keys: result.2,
                origins,
                request_bytes: sizes.0,
                response_bytes: sizes.1,
                duration_micros: sizes.2,
                requests: result.2.filter(|requests| requests % 2 == 0),
            },
        )
    }

    proptest! {
        #[test]
        fn canonical_bytes_are_json_in_one_form_and_tell_entries_apart(one in entries(), other in entries()) {
            let bytes = canonical("00112233aabbccdd", 7, &one);
            let read: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(&read["requestId"], one.request_id.as_str());
            prop_assert_eq!(read.as_object().unwrap().len(), 19 + usize::from(one.requests.is_some()));
            prop_assert_eq!(bytes == canonical("00112233aabbccdd", 7, &other), one == other);
            // Nothing can be moved from one field into the next.
            let mut shifted = one.clone();
            shifted.operation = format!("{}\",\"method\":\"{}", one.operation, one.method).into();
            prop_assert_ne!(&bytes, &canonical("00112233aabbccdd", 7, &shifted));
        }

        #[test]
        fn any_flipped_bit_is_seen(entry in entries(), which in 0..14_usize, bit in 0..8_u8) {
            let record = Record::new("00112233aabbccdd", 7, [3; 32], entry);
            prop_assert!(record.is_intact());
            let mut changed = record.clone();
            let flip = |number: u64| number ^ (1 << bit);
            match which {
                0 => changed.sequence ^= 1 << bit,
                1 => changed.previous[usize::from(bit)] ^= 1 << bit,
                2 => changed.hash[31 - usize::from(bit)] ^= 1 << bit,
                3 => changed.entry.status ^= 1 << bit,
                4 => changed.entry.request_bytes = flip(changed.entry.request_bytes),
                5 => changed.entry.response_bytes = flip(changed.entry.response_bytes),
                6 => changed.entry.duration_micros = flip(changed.entry.duration_micros),
                7 => changed.entry.keys = changed.entry.keys.map_or(Some(0), |keys| Some(keys ^ (1 << bit))),
                8 => changed.entry.tag = changed.entry.tag.map_or(Some(String::new()), |tag| Some(tag + "x")),
                9 => changed.entry.country = changed.entry.country.xor(Some("XX".into())),
                10 => changed.entry.at += chrono::TimeDelta::microseconds(1 << bit),
                12 => changed.entry.requests = changed.entry.requests.map_or(Some(0), |requests| Some(requests ^ (1 << bit))),
                11 => changed.instance = "00112233aabbccde".into(),
                _ => changed.entry.origins.get_or_insert_default().insert("XX".into(), u32::from(bit)).map_or((), drop),
            }
            prop_assert!(changed == record || !changed.is_intact());
        }
    }

    #[test]
    fn the_documented_form() {
        let entry = Entry {
            at: DateTime::from_timestamp_micros(1_795_543_200_000_001).unwrap(),
            request_id: "63245d16e350ff37".into(),
            country: Some("DE".into()),
            thumbprint: None,
            operation: "download".into(),
            method: "GET".into(),
            path: Some("/diagnosiskeys/download/{date}".into()),
            tag: None,
            date: Some("2026-11-24".into()),
            status: 200,
            error: None,
            keys: Some(3),
            origins: Some(BTreeMap::from([("NL".into(), 1), ("IT".into(), 2)])),
            request_bytes: 0,
            response_bytes: 120,
            duration_micros: 77,
            requests: None,
        };
        let record = Record::new("44d3d64da67d64d5", 1, ORIGIN, entry);
        let canonical = r#"{"v":1,"instance":"44d3d64da67d64d5","sequence":1,"at":"2026-11-24T18:00:00.000001Z","requestId":"63245d16e350ff37","country":"DE","thumbprint":null,"operation":"download","method":"GET","path":"/diagnosiskeys/download/{date}","tag":null,"date":"2026-11-24","status":200,"error":null,"keys":3,"origins":{"IT":2,"NL":1},"requestBytes":0,"responseBytes":120,"durationMicros":77}"#;
        let hash = hex(&Sha256::digest([&[0; 32], canonical.as_bytes()].concat()));
        let ends = format!(",\"previous\":\"{}\",\"hash\":\"{hash}\"}}", "0".repeat(64));
        assert_eq!(record.line(), canonical.strip_suffix('}').unwrap().to_owned() + &ends);
    }
}
