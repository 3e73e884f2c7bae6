//! What the tests of several modules need.

#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    country::Country,
    key::{DiagnosisKey, KeyBatch, KeyData, ReportType},
};

/// A plain valid key with these first bytes of key data.
pub(crate) fn key(first_bytes: &[u8]) -> DiagnosisKey {
    let mut key_data = [0; KeyData::LENGTH];
    key_data[..first_bytes.len()].copy_from_slice(first_bytes);
    DiagnosisKey {
        key_data: KeyData::new(key_data),
        rolling_start_interval_number: 2_987_136,
        rolling_period: 144,
        transmission_risk_level: 3,
        origin: country("NL"),
        report_type: ReportType::ConfirmedTest,
        days_since_onset_of_symptoms: 2,
    }
}

pub(crate) fn country(code: &str) -> Country {
    Country::new(code).unwrap()
}

pub(crate) fn any_country() -> impl Strategy<Value = Country> {
    "[A-Z]{2}".prop_map(|code| country(&code))
}

/// Any key that can be written at all, and the visited countries; most numbers lie at an edge.
pub(crate) fn any_key(
    key_data: impl Strategy<Value = [u8; 16]>,
) -> impl Strategy<Value = (DiagnosisKey, Vec<Country>)> {
    let unsigned = || prop_oneof![Just(0), Just(1), Just(144), Just(u32::MAX), any::<u32>()];
    let signed = || prop_oneof![Just(0), Just(-1), Just(4000), Just(i32::MIN), Just(i32::MAX), any::<i32>()];
    let numbers = (unsigned(), unsigned(), signed(), signed());
    (key_data, numbers, any_country(), select(&ReportType::ALL[..]), vec(any_country(), 0..5)).prop_map(
        |(key_data, (start, period, risk, days), origin, report_type, visited)| {
            let key = DiagnosisKey {
                key_data: KeyData::new(key_data),
                rolling_start_interval_number: start,
                rolling_period: period,
                transmission_risk_level: risk,
                origin,
                report_type,
                days_since_onset_of_symptoms: days,
            };
            (key, visited)
        },
    )
}

pub(crate) fn batch_of(keys: Vec<(DiagnosisKey, Vec<Country>)>) -> KeyBatch {
    let mut batch = KeyBatch::new();
    for (key, visited) in keys {
        batch.push(key, &visited);
    }
    batch
}

/// A batch of at least one key.
pub(crate) fn any_batch() -> impl Strategy<Value = KeyBatch> {
    vec(any_key(any::<[u8; 16]>()), 1..6).prop_map(batch_of)
}
