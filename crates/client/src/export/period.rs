//! The spans of time that archives cover, in UTC.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// How much time one archive covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// An hour, from minute 0.
    Hourly,
    /// A day, from midnight UTC.
    Daily,
}

/// One such span, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) start: i64,
    /// The first second that no longer belongs to it.
    pub(super) end: i64,
}

impl Period {
    /// The last one that has ended.
    pub(super) fn last_ended(self, now: DateTime<Utc>) -> Slot {
        let length = match self {
            Self::Hourly => 3_600,
            Self::Daily => 86_400,
        };
        let end = now.timestamp().div_euclid(length) * length;
        Slot { start: end - length, end }
    }
}

impl Slot {
    /// Where its archives lie in their region's folder: `2026-11-24/09`, or `2026-11-24` for a whole day.
    pub(super) fn folder(self, period: Period) -> String {
        let start = DateTime::from_timestamp(self.start, 0).unwrap_or_default();
        match period {
            Period::Hourly => start.format("%Y-%m-%d/%H"),
            Period::Daily => start.format("%Y-%m-%d"),
        }
        .to_string()
    }
}
