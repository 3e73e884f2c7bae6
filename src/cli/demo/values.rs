//! What the countries send, and what the steps compare, as texts.

use std::error::Error as StdError;

use chrono::{NaiveDate, NaiveTime};
use efgs_client::{Download, Error, Upload};
use efgs_protocol::{
    batch_tag::{DayName, InvalidUploadTag, UploadTag},
    canonical::CanonicalKeys,
    country::Country,
    key::{DiagnosisKey, KeyBatch, KeyData, ReportType},
    random,
};
use sha2::{Digest, Sha256};

use super::report::{Check, check};
use crate::store::BatchRecord;

/// New keys of a country, one for each day until today.
pub(super) fn fresh_keys(
    origin: Country,
    today: NaiveDate,
    amount: u8,
) -> Result<KeyBatch, Box<dyn StdError>> {
    let midnight = today.and_time(NaiveTime::MIN).and_utc().timestamp() / 600;
    let midnight = u32::try_from(midnight)?;
    let mut keys = KeyBatch::new();
    for age in 0..amount {
        let key = DiagnosisKey {
            key_data: KeyData::new(random::bytes()),
            rolling_start_interval_number: midnight - 144 * u32::from(age),
            rolling_period: 144,
            transmission_risk_level: 8 - i32::from(age),
            origin,
            report_type: ReportType::ConfirmedTest,
            days_since_onset_of_symptoms: 2 - i32::from(age),
        };
        keys.push(key, &[origin, "FR".parse()?]);
    }
    Ok(keys)
}

/// An upload tag as a backend might choose it; `run` makes it a new one.
pub(super) fn upload_tag(
    country: Country,
    today: NaiveDate,
    run: &str,
    number: u32,
) -> Result<UploadTag, InvalidUploadTag> {
    format!("{today}-{country}-{run}-{number}").parse()
}

/// Eight random digits, which make the upload tags of one run of the demo different from those of another.
pub(super) fn run_id() -> String {
    random::hex::<4>()
}

pub(super) fn concat(batches: &[&KeyBatch]) -> KeyBatch {
    batches.iter().flat_map(|keys| keys.iter()).collect()
}

/// What identifies keys without showing them: the amount, and a hash over all payload hashes in order.
pub(super) fn fingerprint(keys: &KeyBatch) -> String {
    let hash = Sha256::digest(CanonicalKeys::of(keys).payload_hashes().concat());
    let hash: String = hash[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} keys ({hash}…)", keys.len())
}

/// How many keys of which country: `5 DE + 3 NL`.
pub(super) fn by_origin(keys: &KeyBatch) -> String {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for key in keys.iter() {
        let origin = key.origin.to_string();
        match counts.iter_mut().find(|(country, _)| *country == origin) {
            Some((_, count)) => *count += 1,
            None => counts.push((origin, 1)),
        }
    }
    let counts: Vec<_> = counts.iter().map(|(country, count)| format!("{count} {country}")).collect();
    if counts.is_empty() { "none".into() } else { counts.join(" + ") }
}

/// The name of a batch that is easier on the eye.
pub(super) fn day_name(batch: &BatchRecord) -> DayName {
    DayName { day: batch.day, sequence: batch.sequence }
}

/// The batch behind a download: by its ObjectId when it is one of these, whichever name the gateway says.
pub(super) fn next(download: &Download, known: &[BatchRecord]) -> String {
    let Some(tag) = &download.next_batch_tag else { return "none yet".into() };
    let named = |batch: &&BatchRecord| *tag == batch.id.to_string() || *tag == day_name(batch).to_string();
    known.iter().find(named).map_or_else(|| tag.clone(), |batch| batch.id.to_string())
}

/// An outcome in one line: status and code.
pub(super) trait Summary {
    fn short(&self) -> String;
}

impl Summary for Upload {
    fn short(&self) -> String {
        match self {
            Self::Stored => "201".into(),
            Self::Conflicts { accepted, existing } => format!("207, new: {accepted:?}, known: {existing:?}"),
        }
    }
}

impl<T> Summary for Option<T> {
    fn short(&self) -> String {
        if self.is_some() { "200".into() } else { "404".into() }
    }
}

pub(super) fn answer<T: Summary>(expected: &str, outcome: &Result<T, Error>) -> Check {
    match outcome {
        Ok(outcome) => check("answer", expected, outcome.short()),
        Err(Error::Refused(refusal)) => {
            let code = refusal.code.as_deref().unwrap_or("without a code");
            check("answer", expected, format_args!("{} {code}", refusal.status)).or_say(refusal)
        }
        Err(error) => check("answer", expected, error),
    }
}
