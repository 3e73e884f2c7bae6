//! Counting requests: totals per country and day (spec §8.3, §8.4).

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};

use super::{Entry, operation};

/// Stands for callers who were not admitted.
pub const NOBODY: &str = "--";

/// What a country did on a day.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests of every kind and result.
    pub requests: u64,
    /// Uploads that were stored; one that is sent again counts once.
    pub uploads: u64,
    /// Keys in them.
    pub upload_keys: u64,
    /// Bytes of their bodies.
    pub upload_bytes: u64,
    /// Uploads that the country withdrew.
    pub withdrawals: u64,
    /// Keys in them.
    pub withdrawn_keys: u64,
    /// Batches that were formed on the day and have keys of the country.
    pub batches: u64,
    /// Batches that were sent to the country.
    pub downloads: u64,
    /// Answers that it has the batch already (304).
    pub unchanged: u64,
    /// Keys in what was sent.
    pub download_keys: u64,
    /// Bytes of it.
    pub download_bytes: u64,
    /// Audits.
    pub audits: u64,
    /// Callbacks that the country accepted.
    pub callbacks_delivered: u64,
    /// Callbacks that failed.
    pub callbacks_failed: u64,
    /// Answers 4xx.
    pub client_errors: u64,
    /// Answers 5xx.
    pub server_errors: u64,
    /// When it last uploaded.
    pub last_upload_at: Option<DateTime<Utc>>,
    /// When it last downloaded, or was told that it has everything.
    pub last_download_at: Option<DateTime<Utc>>,
}

impl Tally {
    /// The counters with their names in the database.
    pub fn counters(&mut self) -> [(&'static str, &mut u64); 16] {
        [
            ("requests", &mut self.requests),
            ("uploads", &mut self.uploads),
            ("upload_keys", &mut self.upload_keys),
            ("upload_bytes", &mut self.upload_bytes),
            ("withdrawals", &mut self.withdrawals),
            ("withdrawn_keys", &mut self.withdrawn_keys),
            ("batches", &mut self.batches),
            ("downloads", &mut self.downloads),
            ("unchanged", &mut self.unchanged),
            ("download_keys", &mut self.download_keys),
            ("download_bytes", &mut self.download_bytes),
            ("audits", &mut self.audits),
            ("callbacks_delivered", &mut self.callbacks_delivered),
            ("callbacks_failed", &mut self.callbacks_failed),
            ("client_errors", &mut self.client_errors),
            ("server_errors", &mut self.server_errors),
        ]
    }

    /// Counts one request.
    pub fn count(&mut self, entry: &Entry) {
        let keys = u64::from(entry.keys.unwrap_or(0));
        let requests = u64::from(entry.requests.unwrap_or(1));
        self.requests += requests;
        match (&*entry.operation, entry.status) {
            // Also when its sender did not wait for the answer: it is stored.
            (operation::UPLOAD, _) if keys > 0 => {
                self.uploads += 1;
                self.upload_keys += keys;
                self.upload_bytes += entry.request_bytes;
                self.last_upload_at = self.last_upload_at.max(Some(entry.at));
            }
            (operation::WITHDRAW, _) if keys > 0 => {
                self.withdrawals += 1;
                self.withdrawn_keys += keys;
            }
            (operation::DOWNLOAD, 200) => {
                self.downloads += 1;
                self.download_keys += keys;
                self.download_bytes += entry.response_bytes;
                self.last_download_at = self.last_download_at.max(Some(entry.at));
            }
            (operation::DOWNLOAD, 304) => {
                self.unchanged += 1;
                self.last_download_at = self.last_download_at.max(Some(entry.at));
            }
            (operation::AUDIT, 200) => self.audits += 1,
            _ => {}
        }
        match entry.status {
            400..=499 => self.client_errors += requests,
            500.. => self.server_errors += requests,
            _ => {}
        }
    }
}

/// What a batch of entries adds to the totals, in the order of their rows.
pub fn tallies<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> BTreeMap<(NaiveDate, String), Tally> {
    let mut all: BTreeMap<(NaiveDate, String), Tally> = BTreeMap::new();
    for entry in entries {
        let country = entry.country.as_deref().unwrap_or(NOBODY).to_owned();
        all.entry((entry.at.date_naive(), country)).or_default().count(entry);
    }
    all
}
