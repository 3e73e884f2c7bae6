#![expect(clippy::unwrap_used, reason = "tests")]

use chrono::TimeZone;

use super::*;
use crate::testing::{country, key};

const NOON: u32 = 72;

fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 22, 12, 0, 0).unwrap()
}

/// The first interval of the day of [`noon`].
fn midnight() -> u32 {
    u32::try_from(noon().timestamp() / 600).unwrap() - NOON
}

/// Validates a batch whose second key is changed.
fn validate(change: impl FnOnce(&mut DiagnosisKey)) -> Result<(), InvalidKey> {
    let good = DiagnosisKey { rolling_start_interval_number: midnight(), ..key(&[1]) };
    let mut other = good;
    change(&mut other);
    let mut batch = KeyBatch::new();
    batch.push(good, &[]);
    batch.push(other, &[country("DE")]);
    batch.validate(noon())
}

#[test]
fn rolling_period_is_1_to_144() {
    for period in [1, 143, 144] {
        validate(|key| key.rolling_period = period).unwrap();
    }
    for found in [0, 145, u32::MAX] {
        let reason = InvalidReason::RollingPeriod { found };
        assert_eq!(validate(|key| key.rolling_period = found), Err(InvalidKey { index: 1, reason }));
    }
}

#[test]
fn rolling_start_is_from_the_utc_day_15_days_ago_to_the_next_interval() {
    let (earliest, latest) = (midnight() - 15 * 144, midnight() + NOON + 1);
    for start in [earliest, latest] {
        validate(|key| key.rolling_start_interval_number = start).unwrap();
    }
    for start in [0, earliest - 1] {
        let reason = InvalidReason::TooOld { rolling_start: start, earliest };
        let result = validate(|key| key.rolling_start_interval_number = start);
        assert_eq!(result, Err(InvalidKey { index: 1, reason }));
    }
    for start in [latest + 1, u32::MAX] {
        let reason = InvalidReason::InTheFuture { rolling_start: start, latest };
        let result = validate(|key| key.rolling_start_interval_number = start);
        assert_eq!(result, Err(InvalidKey { index: 1, reason }));
    }
}

#[test]
fn transmission_risk_level_is_0_to_8_or_not_given() {
    for level in [0, 8, 0x7fff_ffff, 0x07ff_ffff] {
        validate(|key| key.transmission_risk_level = level).unwrap();
    }
    for found in [-1, 9, 0x07ff_fffe, 0x7fff_fffe, i32::MIN] {
        let reason = InvalidReason::TransmissionRiskLevel { found };
        assert_eq!(validate(|key| key.transmission_risk_level = found), Err(InvalidKey { index: 1, reason }));
    }
}

#[test]
fn days_since_onset_are_not_checked() {
    for days in [i32::MIN, -14, 4000, i32::MAX] {
        validate(|key| key.days_since_onset_of_symptoms = days).unwrap();
    }
}

#[test]
fn the_first_invalid_key_is_named() {
    let mut batch = KeyBatch::new();
    for period in [144, 0, 145] {
        batch.push(
            DiagnosisKey { rolling_period: period, rolling_start_interval_number: midnight(), ..key(&[]) },
            &[],
        );
    }
    let error = batch.validate(noon()).unwrap_err();
    assert_eq!(error.to_string(), "key 1: rollingPeriod 0 is not within 1 to 144");
}

#[test]
fn validation_survives_every_clock() {
    for now in [DateTime::<Utc>::MIN_UTC, DateTime::UNIX_EPOCH, DateTime::<Utc>::MAX_UTC] {
        let mut batch = KeyBatch::new();
        batch.push(key(&[]), &[]);
        batch.validate(now).unwrap_err();
    }
}

#[test]
fn key_data_is_never_shown() {
    let mut batch = KeyBatch::new();
    batch.push(key(&[201, 202, 203]), &[]);
    let shown = format!("{batch:?} {batch:#?}");
    assert!(!shown.contains("201") && !shown.to_lowercase().contains("c9"), "{shown}");
}

#[test]
fn each_key_keeps_its_own_visited_countries() {
    let lists = [vec![country("DE"), country("FR")], vec![], vec![country("AT")]];
    let mut batch = KeyBatch::with_capacity(3);
    for (first_byte, visited) in (0..).zip(&lists) {
        batch.push(key(&[first_byte]), visited);
    }
    let found: Vec<_> = batch.iter().map(|key| key.visited_countries().to_vec()).collect();
    assert_eq!(found, lists);
    assert_eq!(batch.get(2).key_data, key(&[2]).key_data);

    let without_first: KeyBatch = batch.iter().skip(1).collect();
    assert_eq!(without_first.len(), 2);
    assert_eq!(without_first.get(1), batch.get(2));
}

#[test]
fn report_types_are_found_by_number_and_name() {
    for (number, report_type) in (0..).zip(ReportType::ALL) {
        assert_eq!(report_type.number(), number);
        assert_eq!(ReportType::from_number(number), Some(report_type));
        assert_eq!(ReportType::from_name(report_type.name()), Some(report_type));
    }
    assert_eq!(ReportType::from_number(6), None);
    assert_eq!(ReportType::from_number(-1), None);
    assert_eq!(ReportType::from_name("revoked"), None);
}
