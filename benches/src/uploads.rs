//! Uploads as national backends make them, prepared before anything is measured.

use chrono::{DateTime, Utc};
use efgs_protocol::{
    canonical::CanonicalKeys,
    country::Country,
    key::{DiagnosisKey, KeyBatch, KeyData, ReportType},
    media::Format,
    signature::BatchSigner,
    wire,
};
use efgs_test_ca::Participant;

use crate::Outcome;

/// Keys of a full upload.
pub(crate) const KEYS: usize = 5000;
/// What the gateway adds to a payload when it encrypts it: key id, nonce and tag.
const ENCRYPTION: usize = 32;

/// A request, and the rows that it leads to.
pub(crate) struct Upload {
    pub(crate) country: Country,
    pub(crate) tag: String,
    pub(crate) signature: String,
    pub(crate) content_hash: [u8; 32],
    pub(crate) at: DateTime<Utc>,
    /// The id of the batch that a bare insert puts it into.
    pub(crate) batch: Option<[u8; 12]>,
    /// Head and body.
    pub(crate) request: Vec<u8>,
    /// In the order of the request.
    pub(crate) rows: Vec<Row>,
}

/// One key as a bare insert stores it.
pub(crate) struct Row {
    pub(crate) position: u32,
    pub(crate) rolling_day: u16,
    pub(crate) payload_hash: [u8; 32],
    pub(crate) report_type: u8,
    /// Random bytes of the size that the encrypted key has.
    pub(crate) payload: Vec<u8>,
}

/// Makes the uploads of one country.
pub(crate) struct Maker {
    country: Country,
    signer: BatchSigner,
}

impl Maker {
    pub(crate) fn new(participant: &Participant) -> Outcome<Self> {
        Ok(Self { country: participant.country, signer: participant.signing.signer()? })
    }

    /// An upload of new keys.
    pub(crate) fn upload(&self, amount: usize) -> Outcome<Upload> {
        let at = now();
        let keys = keys(self.country, amount, at)?;
        let canonical = CanonicalKeys::of(&keys);
        let signature = self.signer.sign(&canonical.signed_bytes())?;
        let body = wire::encode(Format::Protobuf, &keys);
        let tag = format!("{:016x}", rand::random::<u64>());
        let mut request = format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/protobuf; version=1.0\r\n\
             {}: {tag}\r\n{}: {signature}\r\nContent-Length: {}\r\n\r\n",
            wire::UPLOAD_PATH,
            wire::BATCH_TAG,
            wire::BATCH_SIGNATURE,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(&body);
        let mut rows = Vec::with_capacity(amount);
        let mut plain = Vec::new();
        for (position, (key, payload_hash)) in keys.iter().zip(canonical.payload_hashes()).enumerate() {
            plain.clear();
            wire::encode_key(Format::Protobuf, key, &mut plain);
            let mut payload = vec![0; plain.len() + ENCRYPTION];
            rand::fill(&mut payload[..]);
            let report_type = key.report_type as u8;
            let (position, rolling_day) = (position as u32, key.rolling_day());
            rows.push(Row { position, rolling_day, payload_hash, report_type, payload });
        }
        let (country, content_hash) = (self.country, rand::random());
        Ok(Upload { country, tag, signature, content_hash, at, batch: None, request, rows })
    }
}

#[expect(clippy::disallowed_methods, reason = "the server that is measured goes by the real time")]
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now()
}

/// Keys of the last two weeks with two to five visited countries, as on a day with many cases.
fn keys(origin: Country, amount: usize, at: DateTime<Utc>) -> Outcome<KeyBatch> {
    let countries: Vec<Country> = ["AT", "BE", "DE", "ES", "FR", "IE", "IT", "NL"]
        .map(Country::new)
        .into_iter()
        .collect::<Result<_, _>>()?;
    let today = u32::try_from(at.timestamp() / 600 / 144 * 144)?;
    let mut batch = KeyBatch::with_capacity(amount);
    for _ in 0..amount {
        let [age, risk, days, first, visited, report]: [u8; 6] = rand::random();
        let key = DiagnosisKey {
            key_data: KeyData::new(rand::random()),
            rolling_start_interval_number: today - 144 * u32::from(age % 14),
            rolling_period: 144,
            transmission_risk_level: i32::from(risk % 9),
            origin,
            report_type: if report < 200 { ReportType::ConfirmedTest } else { ReportType::SelfReport },
            days_since_onset_of_symptoms: i32::from(days % 28) - 14,
        };
        let first = usize::from(first % 4);
        batch.push(key, &countries[first..first + 2 + usize::from(visited % 4)]);
    }
    Ok(batch)
}
