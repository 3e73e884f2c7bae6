//! The messages of a batch as prost reads them (spec §4.1.3).

use efgs_protocol::{
    country::Country,
    key::{KeyRef, ReportType},
};
use prost::Message;

/// `eu.interop.DiagnosisKeyBatch`.
#[derive(Clone, PartialEq, Message)]
pub struct Batch {
    /// The keys.
    #[prost(message, repeated, tag = "1")]
    pub keys: Vec<Key>,
}

/// `eu.interop.DiagnosisKey`.
#[derive(Clone, PartialEq, Message)]
pub struct Key {
    /// The key data, of any length.
    #[prost(bytes = "vec", tag = "1")]
    pub key_data: Vec<u8>,
    /// The interval in which the key came into use.
    #[prost(uint32, tag = "2")]
    pub rolling_start_interval_number: u32,
    /// For how many intervals it was in use.
    #[prost(uint32, tag = "3")]
    pub rolling_period: u32,
    /// The transmission risk level.
    #[prost(int32, tag = "4")]
    pub transmission_risk_level: i32,
    /// The visited countries, of any text.
    #[prost(string, repeated, tag = "5")]
    pub visited_countries: Vec<String>,
    /// The country of origin, of any text.
    #[prost(string, tag = "6")]
    pub origin: String,
    /// The number of the report type, of any value.
    #[prost(int32, tag = "7")]
    pub report_type: i32,
    /// The days since the onset of symptoms.
    #[prost(sint32, tag = "8")]
    pub days_since_onset_of_symptoms: i32,
}

impl Key {
    /// Whether this is a diagnosis key. Any proto3 decoder accepts the message; ours also requires 16 bytes of key
    /// data, countries of two upper-case letters and a known report type.
    pub fn is_diagnosis_key(&self) -> bool {
        self.key_data.len() == 16
            && Country::new(&self.origin).is_ok()
            && self.visited_countries.iter().all(|code| Country::new(code).is_ok())
            && ReportType::from_number(self.report_type).is_some()
    }
}

impl From<KeyRef<'_>> for Key {
    fn from(key: KeyRef<'_>) -> Self {
        Self {
            key_data: key.key_data.as_bytes().to_vec(),
            rolling_start_interval_number: key.rolling_start_interval_number,
            rolling_period: key.rolling_period,
            transmission_risk_level: key.transmission_risk_level,
            visited_countries: key.visited_countries().iter().map(ToString::to_string).collect(),
            origin: key.origin.to_string(),
            report_type: key.report_type.number(),
            days_since_onset_of_symptoms: key.days_since_onset_of_symptoms,
        }
    }
}
