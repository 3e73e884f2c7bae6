//! How long a batch of 5,000 realistic keys takes: `cargo bench -p efgs-protocol`.

#![expect(clippy::unwrap_used, reason = "a benchmark may stop")]

use divan::{Bencher, black_box};
use efgs_protocol::{
    canonical::CanonicalKeys,
    country::Country,
    key::{DiagnosisKey, KeyBatch, KeyData, ReportType},
    media::Format,
    wire,
};
use sha2::{Digest, Sha256};

const KEYS: u32 = 5000;

fn main() {
    divan::main();
}

/// Keys that look like those of a real upload; the same ones each time.
fn batch() -> KeyBatch {
    let visited = ["AT", "BE", "DE", "ES", "FR"].map(|code| Country::new(code).unwrap());
    let mut batch = KeyBatch::with_capacity(KEYS as usize);
    for number in 0..KEYS {
        let random: [u8; 32] = Sha256::digest(number.to_be_bytes()).into();
        let key = DiagnosisKey {
            key_data: KeyData::new(random[..16].try_into().unwrap()),
            rolling_start_interval_number: 2_987_136 - 144 * (number % 14),
            rolling_period: 144,
            transmission_risk_level: i32::from(random[16] % 9),
            origin: Country::new("NL").unwrap(),
            report_type: ReportType::ConfirmedTest,
            days_since_onset_of_symptoms: i32::from(random[17] % 28) - 14,
        };
        batch.push(key, &visited[..usize::from(random[18] % 6)]);
    }
    batch
}

#[divan::bench(args = Format::ALL)]
fn decode(bencher: Bencher<'_, '_>, format: Format) {
    let body = wire::encode(format, &batch());
    bencher.bench(|| wire::decode(format, black_box(&body), 5000).unwrap());
}

#[divan::bench(args = Format::ALL)]
fn encode(bencher: Bencher<'_, '_>, format: Format) {
    let batch = batch();
    bencher.bench(|| wire::encode(format, black_box(&batch)));
}

#[divan::bench]
fn key_bytes(bencher: Bencher<'_, '_>) {
    let batch = batch();
    bencher.bench(|| CanonicalKeys::of(black_box(&batch)));
}

#[divan::bench]
fn signed_bytes(bencher: Bencher<'_, '_>) {
    let canonical = CanonicalKeys::of(&batch());
    bencher.bench(|| black_box(&canonical).signed_bytes());
}

/// Key data that the sender chose so that the text of all keys begins alike.
#[divan::bench]
fn signed_bytes_of_colliding_keys(bencher: Bencher<'_, '_>) {
    let mut colliding = KeyBatch::new();
    for key in batch().iter() {
        let mut key_data = *key.key_data.as_bytes();
        key_data[..9].fill(0);
        colliding.push(DiagnosisKey { key_data: KeyData::new(key_data), ..*key }, key.visited_countries());
    }
    let canonical = CanonicalKeys::of(&colliding);
    bencher.bench(|| black_box(&canonical).signed_bytes());
}

#[divan::bench]
fn payload_hashes(bencher: Bencher<'_, '_>) {
    let canonical = CanonicalKeys::of(&batch());
    bencher.bench(|| black_box(&canonical).payload_hashes());
}
