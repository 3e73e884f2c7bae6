//! All keys of the last 14 days, in the order of their key data: what is to be published, and what was.

use chrono::{DateTime, Utc};
use efgs_protocol::key::{DiagnosisKey, KeyData, ReportType};

use super::{Intake, regions::RegionSet};
use crate::gaen::TemporaryExposureKey;

/// Seconds in one interval of the exposure notification protocol.
const INTERVAL_SECONDS: i64 = 600;
/// The longest rolling period, in intervals: one day.
const LONGEST_PERIOD: u32 = 144;
/// The days since the onset of symptoms that phones understand.
const ONSET: std::ops::RangeInclusive<i32> = -14..=14;
/// The transmission risk levels that phones understand.
const RISK: std::ops::RangeInclusive<i32> = 0..=8;
/// Stands for a number that is not given.
const NOT_GIVEN: i8 = i8::MIN;

/// What is kept of a key. 56 bytes, so that a million keys have room in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    key_data: [u8; 16],
    start: u32,
    period: u8,
    risk: i8,
    days: i8,
    report: u8,
    /// Whether it was made up.
    pub(super) padding: bool,
    /// Whom the key concerns.
    pub(super) regions: RegionSet,
    /// Where it was published.
    pub(super) published: RegionSet,
    /// Where it must be published once more, because its report has changed since.
    pub(super) revise: RegionSet,
}

impl Record {
    /// What phones need of a key: no risk level and no days since onset that they do not understand. `None`
    /// when the numbers are none of a key.
    pub(super) fn new(key: &DiagnosisKey, now: DateTime<Utc>) -> Option<Self> {
        let begins = i64::from(key.rolling_start_interval_number) * INTERVAL_SECONDS;
        if !(1..=LONGEST_PERIOD).contains(&key.rolling_period) || begins > now.timestamp() + 86_400 {
            return None;
        }
        let number = |number: i32, range: std::ops::RangeInclusive<i32>| {
            i8::try_from(number).ok().filter(|_| range.contains(&number)).unwrap_or(NOT_GIVEN)
        };
        Some(Self {
            key_data: *key.key_data.as_bytes(),
            start: key.rolling_start_interval_number,
            period: u8::try_from(key.rolling_period).ok()?,
            risk: number(key.transmission_risk_level, RISK),
            days: number(key.days_since_onset_of_symptoms, ONSET),
            report: key.report_type.number() as u8,
            padding: false,
            regions: RegionSet::default(),
            published: RegionSet::default(),
            revise: RegionSet::default(),
        })
    }

    /// The end of the rolling period, in Unix seconds.
    fn ends(&self) -> i64 {
        (i64::from(self.start) + i64::from(self.period)) * INTERVAL_SECONDS
    }

    pub(super) fn ended_before(&self, time: i64) -> bool {
        self.ends() < time
    }

    /// Whether the key may be published for the first time in a region, when its rolling period must have
    /// ended by `ripe`.
    pub(super) fn is_new_in(&self, region: RegionSet, ripe: i64) -> bool {
        self.is_due_in(region) && self.ends() <= ripe
    }

    /// The same, whether its rolling period has ended or not.
    pub(super) fn is_due_in(&self, region: RegionSet) -> bool {
        self.regions.without(self.published).contains(region) && self.report() != ReportType::Revoked
    }

    fn report(&self) -> ReportType {
        ReportType::from_number(self.report.into()).unwrap_or_default()
    }

    /// Takes over what a later report of the same key says. Returns whether anything was new.
    fn absorb(&mut self, later: &Self) -> bool {
        let before = *self;
        self.regions = self.regions.with(later.regions);
        // A report only ever grows more certain, and a revocation is final: so the order in which reports
        // arrive is no matter, and nobody can have a key published again and again.
        if certainty(later.report()) > certainty(self.report()) {
            (self.report, self.risk, self.days) = (later.report, later.risk, later.days);
            self.revise = self.published;
        }
        *self != before
    }

    /// A made-up key that looks like this one.
    pub(super) fn imitate(&self, key_data: [u8; 16]) -> Self {
        Self {
            key_data,
            padding: true,
            published: RegionSet::default(),
            revise: RegionSet::default(),
            ..*self
        }
    }

    /// The key, as archives have it.
    pub(super) fn key(&self) -> TemporaryExposureKey {
        let given = |number: i8| Some(number).filter(|number| *number != NOT_GIVEN).map(i32::from);
        TemporaryExposureKey {
            key_data: KeyData::new(self.key_data),
            rolling_start_interval_number: self.start,
            rolling_period: self.period.into(),
            transmission_risk_level: given(self.risk),
            // Phones have a setting of their own for keys without a report type.
            report_type: Some(self.report()).filter(|report| *report != ReportType::Unknown),
            days_since_onset_of_symptoms: given(self.days),
        }
    }
}

fn certainty(report: ReportType) -> u8 {
    match report {
        ReportType::Unknown | ReportType::Recursive => 0,
        ReportType::SelfReport => 1,
        ReportType::ConfirmedClinicalDiagnosis => 2,
        ReportType::ConfirmedTest => 3,
        ReportType::Revoked => 4,
    }
}

/// The keys. Those that were pushed are in their places after [`Table::settle`].
#[derive(Default)]
pub(super) struct Table {
    pub(super) records: Vec<Record>,
    settled: usize,
}

impl Table {
    /// Brings the keys into order, each once; counts those that were known.
    pub(super) fn settle(&mut self, intake: &mut Intake) {
        if self.settled == self.records.len() {
            return;
        }
        // Stable: of equal keys, the earlier one absorbs the later.
        self.records.sort_by_key(|record| record.key_data);
        self.records.dedup_by(|later, earlier| {
            let same = later.key_data == earlier.key_data;
            if same {
                if earlier.absorb(later) { intake.changed += 1 } else { intake.known += 1 }
            }
            same
        });
        self.settled = self.records.len();
    }

    /// Forgets the keys whose rolling period ended before a time.
    pub(super) fn forget(&mut self, before: i64) {
        self.records.retain(|record| !record.ended_before(before));
        self.settled = self.records.len();
    }

    /// The length of a key in a file.
    const LENGTH: usize = 16 + 4 + 5 + 3 * 8;

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.records.len() * Self::LENGTH);
        for record in &self.records {
            let Record { key_data, start, period, risk, days, report, padding, regions, published, revise } =
                record;
            bytes.extend_from_slice(key_data);
            bytes.extend_from_slice(&start.to_le_bytes());
            bytes.extend_from_slice(&[*period, *risk as u8, *days as u8, *report, (*padding).into()]);
            for set in [regions, published, revise] {
                bytes.extend_from_slice(&set.0.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads what [`Table::to_bytes`] wrote; whoever kept it has checked that it is unchanged.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (rows, []) = bytes.as_chunks::<{ Self::LENGTH }>() else { return None };
        let records: Vec<_> = rows.iter().map(read).collect::<Option<_>>()?;
        Some(Self { settled: records.len(), records })
    }
}

fn read(row: &[u8; Table::LENGTH]) -> Option<Record> {
    let (key_data, rest) = row.split_first_chunk()?;
    let (start, rest) = rest.split_first_chunk()?;
    let (&[period, risk, days, report, padding], rest) = rest.split_first_chunk()?;
    let (sets, []) = rest.as_chunks() else { return None };
    let [regions, published, revise] = *sets else { return None };
    let set = |bytes| RegionSet(u64::from_le_bytes(bytes));
    Some(Record {
        key_data: *key_data,
        start: u32::from_le_bytes(*start),
        period,
        risk: risk as i8,
        days: days as i8,
        report,
        padding: padding != 0,
        regions: set(regions),
        published: set(published),
        revise: set(revise),
    })
}
