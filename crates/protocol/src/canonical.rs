//! The bytes that a batch signature covers, and the hash that identifies a key (spec §4.1.5, §4.2.4).
//!
//! They are built from the parsed keys, so that they are the same whatever the format was.
//!
//! A key's *key bytes* are these items, each followed by a full stop: base64 of the key data; base64 of the 4
//! big-endian bytes of the rolling start interval number; the same of the rolling period; of the transmission
//! risk level; base64 of the visited countries in the order in which they were sent, joined by commas; base64
//! of the origin; base64 of the 4 big-endian bytes of the report type's number; the same of the days since the
//! onset of symptoms.
//!
//! The *signed bytes* are the key bytes of all keys, one after another, sorted by the base64 text of the key
//! bytes. That is not the order of the key bytes themselves.

use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use crate::{
    country::Country,
    key::{KeyBatch, KeyRef},
};

/// The key bytes of a batch's keys, in the order of the batch.
#[derive(Clone, Debug)]
pub struct CanonicalKeys {
    /// The key bytes of all keys, one after another.
    bytes: Vec<u8>,
    /// Where the key bytes of each key end. They begin where those of the key before it end.
    ends: Vec<usize>,
}

impl CanonicalKeys {
    /// Builds the key bytes of each key.
    pub fn of(batch: &KeyBatch) -> Self {
        /// Room for the key bytes of a key with about four visited countries.
        const USUAL_LENGTH: usize = 96;

        let mut bytes = Vec::with_capacity(batch.len() * USUAL_LENGTH);
        let ends = batch
            .iter()
            .map(|key| {
                append_key_bytes(key, &mut bytes);
                bytes.len()
            })
            .collect();
        Self { bytes, ends }
    }

    /// The key bytes of one key.
    ///
    /// # Panics
    /// When the batch does not have that many keys, as a slice does.
    pub fn key_bytes(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[index]]
    }

    /// The payload hash of each key, in the order of the batch: SHA-256 of its key bytes (spec §4.2.4).
    pub fn payload_hashes(&self) -> Vec<[u8; 32]> {
        (0..self.ends.len()).map(|index| Sha256::digest(self.key_bytes(index)).into()).collect()
    }

    /// The bytes that the batch signature covers (spec §4.1.5).
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut signed = Vec::with_capacity(self.bytes.len());
        for index in self.signing_order() {
            signed.extend_from_slice(self.key_bytes(index));
        }
        signed
    }

    /// The indexes of the keys, sorted by the base64 text of their key bytes.
    ///
    /// The first characters of that text nearly always decide, and fit into one number. Where they are equal,
    /// the rest of the text is made once for each key concerned, so that keys chosen to collide are sorted
    /// quickly too.
    fn signing_order(&self) -> impl Iterator<Item = usize> {
        let mut order: Vec<(u128, usize)> =
            (0..self.ends.len()).map(|index| (sort_prefix(self.key_bytes(index)), index)).collect();
        order.sort_unstable();
        for equal in order.chunk_by_mut(|left, right| left.0 == right.0).filter(|equal| equal.len() > 1) {
            equal.sort_by_cached_key(|&(_, index)| {
                BASE64_STANDARD.encode(&self.key_bytes(index)[PREFIX_BYTES..])
            });
        }
        order.into_iter().map(|(_, index)| index)
    }
}

/// As many bytes as 16 characters of base64 stand for. Key bytes are always longer.
const PREFIX_BYTES: usize = 12;

/// The first 16 characters of the base64 text of some key bytes, as a number that compares as they do.
fn sort_prefix(key_bytes: &[u8]) -> u128 {
    let (groups, _) = key_bytes[..PREFIX_BYTES].as_chunks();
    groups.iter().fold(0, |prefix, &group| prefix << 32 | u128::from(u32::from_be_bytes(base64(group))))
}

fn append_key_bytes(key: KeyRef<'_>, out: &mut Vec<u8>) {
    let (groups, rest) = key.key_data.as_bytes().as_chunks();
    for &group in groups {
        out.extend_from_slice(&base64(group));
    }
    append_last_one(rest[0], out);
    append_number(key.rolling_start_interval_number.to_be_bytes(), out);
    append_number(key.rolling_period.to_be_bytes(), out);
    append_number(key.transmission_risk_level.to_be_bytes(), out);
    match key.visited_countries().split_last() {
        Some((last, others)) => {
            // A country and its comma happen to be as many bytes as base64 takes at a time.
            for [first, second] in others.iter().map(Country::as_bytes) {
                out.extend_from_slice(&base64([*first, *second, b',']));
            }
            append_country(*last, out);
        }
        None => out.push(b'.'),
    }
    append_country(key.origin, out);
    append_number(key.report_type.number().to_be_bytes(), out);
    append_number(key.days_since_onset_of_symptoms.to_be_bytes(), out);
}

/// Appends a number as an item of its own.
fn append_number([a, b, c, d]: [u8; 4], out: &mut Vec<u8>) {
    out.extend_from_slice(&base64([a, b, c]));
    append_last_one(d, out);
}

/// Appends a country as the end of an item.
fn append_country(country: Country, out: &mut Vec<u8>) {
    let [first, second] = *country.as_bytes();
    let [a, b, c, _] = base64([first, second, 0]);
    out.extend_from_slice(&[a, b, c, b'=', b'.']);
}

/// Appends the one byte that is left at the end of an item.
fn append_last_one(byte: u8, out: &mut Vec<u8>) {
    let [a, b, ..] = base64([byte, 0, 0]);
    out.extend_from_slice(&[a, b, b'=', b'=', b'.']);
}

/// What three bytes are in base64. Written here because items of a few bytes are all there is, for which a
/// general encoder takes several times as long.
fn base64([a, b, c]: [u8; 3]) -> [u8; 4] {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u32::from_be_bytes([0, a, b, c]);
    [18, 12, 6, 0].map(|shift| ALPHABET[(bits >> shift & 63) as usize])
}

#[cfg(test)]
mod tests;
