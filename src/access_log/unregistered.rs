//! The requests of unregistered callers, counted: one record for each operation and status of a minute, so that nobody
//! who is not registered can fill the log. Their addresses and certificates are in the process's log.

use std::{borrow::Cow, collections::BTreeMap};

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use super::Entry;

/// Records of one minute. What exceeds them is counted in one more, with the operation `other`, status 0 and the error
/// `capped`.
const MOST: usize = 64;

/// What was counted and is not recorded yet.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<Minute>);

#[derive(Debug, Default)]
struct Minute {
    number: i64,
    records: BTreeMap<(Cow<'static, str>, u16), Entry>,
    /// Nothing is collected any more: the gateway stops.
    closed: bool,
}

impl Counts {
    /// Counts a request. Returns the records of the minute before, when this one is of another.
    pub(super) fn add(&self, entry: Entry) -> Vec<Entry> {
        let mut minute = self.0.lock();
        let number = number(entry.at);
        let mut complete = if minute.number == number { Vec::new() } else { minute.take() };
        minute.number = number;
        let mut kind = (entry.operation.clone(), entry.status);
        if minute.records.len() >= MOST && !minute.records.contains_key(&kind) {
            kind = ("other".into(), 0);
        }
        let capped = kind.1 == 0;
        let record = minute.records.entry(kind).or_insert_with_key(|(operation, status)| Entry {
            at: DateTime::from_timestamp(number * 60, 0).unwrap_or(entry.at),
            request_id: entry.request_id.clone(),
            operation: operation.clone(),
            method: "*".into(),
            status: *status,
            error: if capped { Some("capped".into()) } else { entry.error.clone() },
            requests: Some(0),
            ..Entry::default()
        });
        record.requests = record.requests.map(|requests| requests.saturating_add(1));
        record.request_bytes += entry.request_bytes;
        record.response_bytes += entry.response_bytes;
        if minute.closed {
            complete.extend(minute.take());
        }
        complete
    }

    /// The records of minutes that are over.
    pub(super) fn complete(&self, now: DateTime<Utc>) -> Vec<Entry> {
        let mut minute = self.0.lock();
        // A clock that was turned back has left that minute too.
        if minute.number == number(now) { Vec::new() } else { minute.take() }
    }

    /// All records. From now on nothing is collected.
    pub(super) fn close(&self) -> Vec<Entry> {
        let mut minute = self.0.lock();
        minute.closed = true;
        minute.take()
    }
}

impl Minute {
    fn take(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.records).into_values().collect()
    }
}

fn number(at: DateTime<Utc>) -> i64 {
    at.timestamp().div_euclid(TimeDelta::minutes(1).num_seconds())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn entry(at: &str, operation: &'static str, status: u16) -> Entry {
        Entry {
            at: at.parse().unwrap(),
            request_id: "a".into(),
            thumbprint: Some("b".into()),
            operation: operation.into(),
            method: "GET".into(),
            status,
            request_bytes: 2,
            duration_micros: 7,
            ..Entry::default()
        }
    }

    fn kinds(records: &[Entry]) -> Vec<(&str, u16, Option<u32>)> {
        records.iter().map(|record| (&*record.operation, record.status, record.requests)).collect()
    }

    #[test]
    fn a_minute_has_one_record_for_each_operation_and_status() {
        let counts = Counts::default();
        for (second, operation, status) in
            [("01", "download", 403), ("02", "upload", 403), ("59", "download", 403), ("59", "download", 503)]
        {
            assert_eq!(counts.add(entry(&format!("2026-11-22T10:15:{second}Z"), operation, status)), []);
        }
        assert_eq!(counts.complete("2026-11-22T10:15:59.9Z".parse().unwrap()), []);
        let complete = counts.add(entry("2026-11-22T10:16:00Z", "audit", 403));
        let expected = [("download", 403, Some(2)), ("download", 503, Some(1)), ("upload", 403, Some(1))];
        assert_eq!(kinds(&complete), expected);
        assert_eq!(complete[0].at, "2026-11-22T10:15:00Z".parse::<DateTime<Utc>>().unwrap());
        assert_eq!((complete[0].request_bytes, complete[0].thumbprint.as_ref()), (4, None));
        assert_eq!(
            kinds(&counts.complete("2026-11-22T10:17:00Z".parse().unwrap())),
            [("audit", 403, Some(1))]
        );
        assert_eq!(counts.close(), []);
        // What ends while the gateway stops.
        assert_eq!(counts.add(entry("2026-11-22T10:17:00Z", "audit", 499)).len(), 1);
    }

    #[test]
    fn the_records_of_a_minute_are_bounded() {
        let counts = Counts::default();
        for status in 400..500 {
            counts.add(entry("2026-11-22T10:15:00Z", "download", status));
        }
        let records = counts.close();
        assert_eq!(records.len(), MOST + 1);
        let capped = records.iter().find(|record| record.status == 0).unwrap();
        assert_eq!((capped.requests, capped.error.as_deref()), (Some(100 - MOST as u32), Some("capped")));
    }
}
