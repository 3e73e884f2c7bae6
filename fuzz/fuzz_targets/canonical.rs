//! Any batch: its signed bytes are those of the plain definition (spec §4.1.5).
#![no_main]

use base64::{Engine, prelude::BASE64_STANDARD};
use efgs_protocol::{
    canonical::CanonicalKeys,
    country::Country,
    key::{DiagnosisKey, KeyBatch, KeyData, ReportType},
};
use libfuzzer_sys::fuzz_target;

fn country(byte: u8) -> Country {
    let letters = [b'A' + byte % 26, b'A' + byte / 26];
    Country::new(str::from_utf8(&letters).unwrap()).unwrap()
}

/// Makes a key of each 23 bytes. The first is repeated in the key data, so that keys often begin alike.
fn batch(bytes: &[u8]) -> KeyBatch {
    let mut batch = KeyBatch::new();
    for chunk in bytes.as_chunks::<23>().0 {
        let mut key_data = [chunk[0]; 16];
        let same = usize::from(chunk[1] % 17);
        key_data[same..].copy_from_slice(&chunk[2..18 - same]);
        let number = u32::from_be_bytes([chunk[18], chunk[18], chunk[19], chunk[19]]);
        let key = DiagnosisKey {
            key_data: KeyData::new(key_data),
            rolling_start_interval_number: number,
            rolling_period: number.rotate_left(8),
            transmission_risk_level: number.rotate_left(16) as i32,
            origin: country(chunk[20]),
            report_type: ReportType::ALL[usize::from(chunk[21] % 6)],
            days_since_onset_of_symptoms: -i32::from(chunk[21]),
        };
        let visited: Vec<Country> = (0..chunk[22] % 8).map(|n| country(chunk[22].wrapping_mul(n))).collect();
        batch.push(key, &visited);
    }
    batch
}

fuzz_target!(|bytes: &[u8]| {
    let batch = batch(bytes);
    let mut keys: Vec<String> = batch
        .iter()
        .map(|key| {
            let visited: Vec<&str> = key.visited_countries().iter().map(Country::as_str).collect();
            [
                BASE64_STANDARD.encode(key.key_data.as_bytes()),
                BASE64_STANDARD.encode(key.rolling_start_interval_number.to_be_bytes()),
                BASE64_STANDARD.encode(key.rolling_period.to_be_bytes()),
                BASE64_STANDARD.encode(key.transmission_risk_level.to_be_bytes()),
                BASE64_STANDARD.encode(visited.join(",")),
                BASE64_STANDARD.encode(key.origin.as_str()),
                BASE64_STANDARD.encode(key.report_type.number().to_be_bytes()),
                BASE64_STANDARD.encode(key.days_since_onset_of_symptoms.to_be_bytes()),
            ]
            .map(|item| item + ".")
            .concat()
        })
        .collect();
    keys.sort_by_key(|key| BASE64_STANDARD.encode(key));
    assert_eq!(CanonicalKeys::of(&batch).signed_bytes(), keys.concat().into_bytes());
});
