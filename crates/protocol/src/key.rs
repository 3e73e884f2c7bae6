//! Diagnosis keys and batches of them (spec §4.1.3).

use std::{
    fmt,
    ops::{Deref, RangeInclusive},
};

use chrono::{DateTime, Days, NaiveTime, Utc};

use crate::country::{Country, InvalidCountry};

/// Seconds in one interval of the exposure notification protocol: ten minutes.
const INTERVAL_SECONDS: i64 = 600;
/// A key may begin this many whole UTC days before today.
pub const OLDEST_DAYS: u64 = 15;
/// Intervals in one day.
const INTERVALS_PER_DAY: u32 = 144;
/// The longest rolling period, in intervals: one day.
const LONGEST_PERIOD: u32 = INTERVALS_PER_DAY;
/// The values of the transmission risk level that say "not given": the largest `int32`, and the same as the
/// specification prints it (spec §4.1.3).
const RISK_NOT_GIVEN: [i32; 2] = [0x7fff_ffff, 0x07ff_ffff];

/// The 16 secret bytes of a diagnosis key. They are never shown, neither by `Debug` nor in an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyData([u8; Self::LENGTH]);

impl KeyData {
    /// The length in bytes.
    pub const LENGTH: usize = 16;

    /// Takes the bytes of a key.
    pub fn new(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl fmt::Debug for KeyData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyData(…)")
    }
}

/// How an infection was established (spec §4.1.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(
        rename_all = "SCREAMING_SNAKE_CASE",
        description = "How an infection was established; a number is accepted as well."
    )
)]
pub enum ReportType {
    /// Not said.
    #[default]
    Unknown = 0,
    /// By a laboratory test.
    ConfirmedTest = 1,
    /// By a physician.
    ConfirmedClinicalDiagnosis = 2,
    /// By the user alone.
    SelfReport = 3,
    /// By contact with an infected person.
    Recursive = 4,
    /// An earlier report of the key is taken back.
    Revoked = 5,
}

impl ReportType {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Unknown,
        Self::ConfirmedTest,
        Self::ConfirmedClinicalDiagnosis,
        Self::SelfReport,
        Self::Recursive,
        Self::Revoked,
    ];

    /// The number, as protobuf and the signed bytes carry it.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// The name, as JSON carries it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::ConfirmedTest => "CONFIRMED_TEST",
            Self::ConfirmedClinicalDiagnosis => "CONFIRMED_CLINICAL_DIAGNOSIS",
            Self::SelfReport => "SELF_REPORT",
            Self::Recursive => "RECURSIVE",
            Self::Revoked => "REVOKED",
        }
    }

    /// The report type with this number, if there is one.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// The report type with exactly this name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|report_type| report_type.name() == name)
    }
}

/// The most countries that a key can have visited: as many as there are codes of two letters.
pub const MAX_VISITED: usize = 26 * 26;

/// What one diagnosis key says, apart from the countries visited, which its [`KeyBatch`] keeps (spec §4.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiagnosisKey {
    /// The key of the infected user's device.
    pub key_data: KeyData,
    /// When the key came into use: Unix time in seconds, divided by 600.
    pub rolling_start_interval_number: u32,
    /// For how many windows of ten minutes it was in use.
    pub rolling_period: u32,
    /// The risk of transmission, 0 to 8, or a value that means "not given".
    pub transmission_risk_level: i32,
    /// The country whose backend published the key.
    pub origin: Country,
    /// How the infection was established.
    pub report_type: ReportType,
    /// Days since the onset of symptoms. Backends encode other things in it too, so that any value may occur.
    pub days_since_onset_of_symptoms: i32,
}

impl DiagnosisKey {
    /// The UTC day in which it came into use, in days since 1970.
    pub fn rolling_day(&self) -> u16 {
        u16::try_from(self.rolling_start_interval_number / INTERVALS_PER_DAY).unwrap_or(u16::MAX)
    }
}

/// Diagnosis keys in the order in which they were sent (spec §4.1.3).
///
/// All lists of visited countries lie behind one another in one piece of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyBatch {
    keys: Vec<Entry>,
    visited: Vec<Country>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    key: DiagnosisKey,
    /// Where the key's visited countries end. They begin where those of the key before it end.
    visited_end: usize,
}

impl KeyBatch {
    /// A batch without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// A batch without keys that has room for some.
    pub fn with_capacity(keys: usize) -> Self {
        Self { keys: Vec::with_capacity(keys), visited: Vec::new() }
    }

    /// Appends a key and the countries that its user visited.
    pub fn push(&mut self, key: DiagnosisKey, visited_countries: &[Country]) {
        self.visited.extend_from_slice(visited_countries);
        self.close(key);
    }

    /// Appends a country to the visited ones of the key that is going to be closed next. For decoders, which
    /// meet the countries one by one.
    pub(crate) fn visit(&mut self, country: Country) {
        self.visited.push(country);
    }

    /// Appends a key whose visited countries have been appended already.
    pub(crate) fn close(&mut self, key: DiagnosisKey) {
        self.keys.push(Entry { key, visited_end: self.visited.len() });
    }

    /// Forgets the visited countries of a key that was never closed.
    pub(crate) fn abandon(&mut self) {
        self.visited.truncate(self.visited_start(self.keys.len()));
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key at an index.
    ///
    /// # Panics
    /// When there are not that many keys, as a slice does.
    pub fn get(&self, index: usize) -> KeyRef<'_> {
        let Entry { key, visited_end } = &self.keys[index];
        KeyRef { key, visited_countries: &self.visited[self.visited_start(index)..*visited_end] }
    }

    /// The keys in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = KeyRef<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Checks the ranges that an upload's keys must keep to, as of `now` (spec §4.1.3, §4.2):
    ///
    /// - the rolling period is 1 to 144;
    /// - the key began at the start of the UTC day 15 days ago or later, and at most one interval from now;
    /// - the transmission risk level is 0 to 8, or 0x7fffffff or 0x7ffffff for "not given".
    ///
    /// # Errors
    /// The first key that fails, and why.
    pub fn validate(&self, now: DateTime<Utc>) -> Result<(), InvalidKey> {
        let (earliest, latest) = accepted_starts(now).into_inner();
        for (index, Entry { key, .. }) in self.keys.iter().enumerate() {
            let start = key.rolling_start_interval_number;
            let risk = key.transmission_risk_level;
            let reason = if !(1..=LONGEST_PERIOD).contains(&key.rolling_period) {
                InvalidReason::RollingPeriod { found: key.rolling_period }
            } else if start < earliest {
                InvalidReason::TooOld { rolling_start: start, earliest }
            } else if start > latest {
                InvalidReason::InTheFuture { rolling_start: start, latest }
            } else if !(0..=8).contains(&risk) && !RISK_NOT_GIVEN.contains(&risk) {
                InvalidReason::TransmissionRiskLevel { found: risk }
            } else {
                continue;
            };
            return Err(InvalidKey { index, reason });
        }
        Ok(())
    }

    fn visited_start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.keys[before].visited_end)
    }
}

impl<'a> FromIterator<KeyRef<'a>> for KeyBatch {
    fn from_iter<I: IntoIterator<Item = KeyRef<'a>>>(keys: I) -> Self {
        let mut batch = Self::new();
        for key in keys {
            batch.push(*key, key.visited_countries());
        }
        batch
    }
}

/// The intervals in which a key may have begun that is uploaded at this time (spec §4.1.3): from the start of the
/// UTC day 15 days ago to one interval from then.
pub(crate) fn accepted_starts(at: DateTime<Utc>) -> RangeInclusive<u32> {
    let oldest_day = at.date_naive().checked_sub_days(Days::new(OLDEST_DAYS)).unwrap_or_default();
    interval(oldest_day.and_time(NaiveTime::MIN).and_utc())..=interval(at).saturating_add(1)
}

/// The interval in which a moment lies, kept inside what the wire can carry.
fn interval(time: DateTime<Utc>) -> u32 {
    let interval = time.timestamp().div_euclid(INTERVAL_SECONDS).max(0);
    u32::try_from(interval).unwrap_or(u32::MAX)
}

/// One key of a [`KeyBatch`], together with the countries visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRef<'a> {
    key: &'a DiagnosisKey,
    visited_countries: &'a [Country],
}

impl<'a> KeyRef<'a> {
    /// The countries that the user visited, in the order in which they were sent.
    pub fn visited_countries(&self) -> &'a [Country] {
        self.visited_countries
    }
}

impl Deref for KeyRef<'_> {
    type Target = DiagnosisKey;

    fn deref(&self) -> &DiagnosisKey {
        self.key
    }
}

/// A key that an upload may not contain. It rejects the upload as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key {index}: {reason}")]
pub struct InvalidKey {
    /// Which key, in the order of the request, counted from 0.
    pub index: usize,
    /// What is wrong with it.
    pub reason: InvalidReason,
}

/// What is wrong with a key. None of the texts contains key data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReason {
    /// The key data has another length.
    #[error("keyData has {found} bytes instead of 16")]
    KeyDataLength {
        /// The number of bytes found.
        found: usize,
    },
    /// The key data of a JSON key is not base64 of the standard alphabet with padding.
    #[error("keyData is not padded standard base64")]
    KeyDataNotBase64,
    /// The country of origin is missing or malformed.
    #[error("origin: {0}")]
    Origin(InvalidCountry),
    /// A visited country is malformed.
    #[error("visitedCountries, entry {position}: {invalid}")]
    VisitedCountry {
        /// Which of the visited countries, counted from 0.
        position: usize,
        /// What was found there.
        invalid: InvalidCountry,
    },
    /// More visited countries than there are country codes.
    #[error("visitedCountries has more than {MAX_VISITED} entries")]
    TooManyVisitedCountries,
    /// No such report type.
    #[error("reportType {found} is none of the six")]
    ReportType {
        /// The number, or the beginning of the name, quoted and escaped.
        found: String,
    },
    /// The rolling period is not between 1 and 144 intervals.
    #[error("rollingPeriod {found} is not within 1 to 144")]
    RollingPeriod {
        /// The value found.
        found: u32,
    },
    /// The key began before the first UTC day that may still be uploaded.
    #[error(
        "rollingStartIntervalNumber {rolling_start} is too old: the earliest accepted today is {earliest}"
    )]
    TooOld {
        /// The interval in which the key began.
        rolling_start: u32,
        /// The first interval that is accepted.
        earliest: u32,
    },
    /// The key begins more than one interval from now.
    #[error(
        "rollingStartIntervalNumber {rolling_start} is in the future: the latest accepted now is {latest}"
    )]
    InTheFuture {
        /// The interval in which the key begins.
        rolling_start: u32,
        /// The last interval that is accepted.
        latest: u32,
    },
    /// The transmission risk level is neither 0 to 8 nor "not given".
    #[error("transmissionRiskLevel {found} is neither within 0 to 8 nor 2147483647 (not given)")]
    TransmissionRiskLevel {
        /// The value found.
        found: i32,
    },
}

#[cfg(test)]
mod tests;
