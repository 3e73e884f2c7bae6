//! The protobuf messages of an export file (proto2: every field is optional).

use efgs_protocol::key::{KeyData, ReportType};

use super::{DEFAULT_ROLLING_PERIOD, TemporaryExposureKey};

/// What a `TemporaryExposureKeyExport` says besides its keys.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExportHeader {
    /// The beginning of the time in which the publisher received the keys: Unix time in seconds.
    #[prost(fixed64, optional, tag = "1")]
    pub start_timestamp: Option<u64>,
    /// Its end. Phones refuse a file whose end is not after its start.
    #[prost(fixed64, optional, tag = "2")]
    pub end_timestamp: Option<u64>,
    /// For which region the file is: a country's two letters, its MCC, or a name such as `EUR`.
    #[prost(string, optional, tag = "3")]
    pub region: Option<String>,
    /// Which of the period's files this is, counted from 1.
    #[prost(int32, optional, tag = "4")]
    pub batch_num: Option<i32>,
    /// How many files the period has.
    #[prost(int32, optional, tag = "5")]
    pub batch_size: Option<i32>,
    /// With which keys the file is signed.
    #[prost(message, repeated, tag = "6")]
    pub signature_infos: Vec<SignatureInfo>,
}

/// Which key a signature was made with. Older files also have an `app_bundle_id` and an `android_package`,
/// which are passed over.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SignatureInfo {
    /// The version of the key, such as `v1`.
    #[prost(string, optional, tag = "3")]
    pub verification_key_version: Option<String>,
    /// The name of the key, often the country's MCC.
    #[prost(string, optional, tag = "4")]
    pub verification_key_id: Option<String>,
    /// The object identifier of the algorithm: ECDSA with SHA-256.
    #[prost(string, optional, tag = "5")]
    pub signature_algorithm: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SignatureList {
    #[prost(message, repeated, tag = "1")]
    pub(super) signatures: Vec<Signature>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Signature {
    #[prost(message, optional, tag = "1")]
    pub(super) signature_info: Option<SignatureInfo>,
    #[prost(int32, optional, tag = "2")]
    pub(super) batch_num: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    pub(super) batch_size: Option<i32>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub(super) signature: Option<Vec<u8>>,
}

/// A key's message. It stays inside: its derived `Debug` would show the key.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Key {
    #[prost(bytes = "vec", optional, tag = "1")]
    key_data: Option<Vec<u8>>,
    #[prost(int32, optional, tag = "2")]
    transmission_risk_level: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    rolling_start_interval_number: Option<i32>,
    #[prost(int32, optional, tag = "4")]
    rolling_period: Option<i32>,
    #[prost(int32, optional, tag = "5")]
    report_type: Option<i32>,
    #[prost(sint32, optional, tag = "6")]
    days_since_onset_of_symptoms: Option<i32>,
}

impl Key {
    /// The key, or the length of its key data when that is not 16.
    ///
    /// A negative number becomes one above every range, where a check of the ranges finds it. A report type
    /// of another number counts as not given, as in every proto2 decoder.
    pub(super) fn parse(self) -> Result<TemporaryExposureKey, usize> {
        let key_data = self.key_data.unwrap_or_default();
        Ok(TemporaryExposureKey {
            key_data: KeyData::new(key_data.try_into().map_err(|wrong: Vec<u8>| wrong.len())?),
            rolling_start_interval_number: self.rolling_start_interval_number.unwrap_or_default() as u32,
            rolling_period: self.rolling_period.map_or(DEFAULT_ROLLING_PERIOD, |period| period as u32),
            transmission_risk_level: self.transmission_risk_level,
            report_type: self.report_type.and_then(ReportType::from_number),
            days_since_onset_of_symptoms: self.days_since_onset_of_symptoms,
        })
    }
}

impl From<TemporaryExposureKey> for Key {
    fn from(key: TemporaryExposureKey) -> Self {
        Self {
            key_data: Some(key.key_data.as_bytes().to_vec()),
            transmission_risk_level: key.transmission_risk_level,
            rolling_start_interval_number: Some(key.rolling_start_interval_number as i32),
            // Written out even where it is the default: not every reader knows defaults of proto2.
            rolling_period: Some(key.rolling_period as i32),
            report_type: key.report_type.map(ReportType::number),
            days_since_onset_of_symptoms: key.days_since_onset_of_symptoms,
        }
    }
}
