//! The key export file of the Google/Apple exposure notification framework (GAEN): what national backends
//! publish to phones, and what the specification (§4.1.1) names as the base of all diagnosis keys.
//!
//! The file is a zip archive with two entries. `export.bin` is 16 bytes of header and a protobuf message
//! `TemporaryExposureKeyExport`; `export.sig` is a `TEKSignatureList` with signatures over the whole of
//! `export.bin`: ECDSA on the curve P-256 with SHA-256, in DER.
//!
//! [`ExportFile`] reads a file of any length in little memory, [`write()`] makes one.
//!
//! ```no_run
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::fs::{self, File};
//! use efgs_client::gaen::{ExportFile, VerifyingKey};
//!
//! let mut export = ExportFile::open(File::open("export.zip")?)?;
//! export.verify(&VerifyingKey::from_pem(&fs::read("publisher.pem")?)?)?;
//! for entry in export.keys()? {
//!     let entry = entry?;
//!     println!("{:?} {}", entry.section, entry.key.rolling_start_interval_number);
//! }
//! # Ok(())
//! # }
//! ```

mod message;
mod read;
mod sign;
#[cfg(test)]
mod tests;
mod write;

use efgs_protocol::{
    country::Country,
    key::{DiagnosisKey, KeyData, ReportType},
};

pub use message::{ExportHeader, SignatureInfo};
pub use read::{ExportFile, ExportedKey, Keys, MAX_EXPORT_BYTES, ReadError};
pub use sign::{ExportSigner, KeyError, SIGNATURE_ALGORITHM, VerifyingKey};
pub use write::{WriteError, write};

/// The entry with the keys.
pub const EXPORT_ENTRY: &str = "export.bin";
/// The entry with the signatures.
pub const SIGNATURE_ENTRY: &str = "export.sig";
/// The first bytes of `export.bin`.
const HEADER: &[u8; 16] = b"EK Export v1    ";
/// The rolling period of a key that gives none, in intervals of ten minutes: one day.
pub const DEFAULT_ROLLING_PERIOD: u32 = 144;
/// What a diagnosis key says when no transmission risk level is given (spec §4.1.3).
const RISK_NOT_GIVEN: i32 = 0x7fff_ffff;
/// What backends have agreed to say when nothing is known of symptoms.
const ONSET_NOT_GIVEN: i32 = 4000;

/// In which of its two lists an export file has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// The keys that are new.
    New,
    /// Keys that were published before and whose report type has changed since.
    Revised,
}

/// A key as an export file has it. It says neither where it comes from nor which countries its user visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemporaryExposureKey {
    /// The key of the infected user's device.
    pub key_data: KeyData,
    /// When the key came into use: Unix time in seconds, divided by 600.
    pub rolling_start_interval_number: u32,
    /// For how many windows of ten minutes it was in use; [`DEFAULT_ROLLING_PERIOD`] when the file says nothing.
    pub rolling_period: u32,
    /// The risk of transmission, 0 to 8. Deprecated in the format and still common.
    pub transmission_risk_level: Option<i32>,
    /// How the infection was established. Files of the format's first version do not say.
    pub report_type: Option<ReportType>,
    /// Days between the onset of symptoms and the key's use.
    pub days_since_onset_of_symptoms: Option<i32>,
}

impl TemporaryExposureKey {
    /// The key as the gateway exchanges it. What the file does not give becomes what backends understand as
    /// "not given": 0x7fffffff for the transmission risk level, [`ReportType::Unknown`], and 4000 for the days
    /// since the onset of symptoms (0 would be the very day of the onset).
    pub fn to_diagnosis_key(&self, origin: Country) -> DiagnosisKey {
        DiagnosisKey {
            key_data: self.key_data,
            rolling_start_interval_number: self.rolling_start_interval_number,
            rolling_period: self.rolling_period,
            transmission_risk_level: self.transmission_risk_level.unwrap_or(RISK_NOT_GIVEN),
            origin,
            report_type: self.report_type.unwrap_or_default(),
            days_since_onset_of_symptoms: self.days_since_onset_of_symptoms.unwrap_or(ONSET_NOT_GIVEN),
        }
    }
}
