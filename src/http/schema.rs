//! What the API document says of bodies.

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// A batch of diagnosis keys, as JSON (spec §4.1.3). As protobuf: message `eu.interop.DiagnosisKeyBatch`.
#[derive(Debug, Serialize, ToSchema)]
pub struct DiagnosisKeyBatch {
    keys: Vec<DiagnosisKey>,
}

/// A diagnosis key (spec §4.1.3).
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiagnosisKey {
    /// 16 bytes, base64.
    key_data: String,
    /// Unix time divided by 600, from 15 days ago to now.
    rolling_start_interval_number: u32,
    /// Windows of 10 minutes.
    #[schema(minimum = 1, maximum = 144)]
    rolling_period: u32,
    /// 0 to 8, or 2147483647 for "not given".
    transmission_risk_level: i32,
    /// ISO 3166-1 alpha-2.
    visited_countries: Vec<String>,
    /// ISO 3166-1 alpha-2; the uploading country.
    origin: String,
    report_type: ReportType,
    /// May encode more than days; not range-checked.
    #[serde(rename = "days_since_onset_of_symptoms")]
    days_since_onset_of_symptoms: i32,
}

/// How an infection was established; a number is accepted as well.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReportType {
    /// 0
    Unknown,
    /// 1
    ConfirmedTest,
    /// 2
    ConfirmedClinicalDiagnosis,
    /// 3
    SelfReport,
    /// 4
    Recursive,
    /// 5
    Revoked,
}

/// What an auditor may see of one upload (spec §5.7.2). All fields are always there.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditEntry)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntrySchema {
    /// Who uploaded.
    country: String,
    /// When, UTC with milliseconds.
    uploaded_time: String,
    /// PEM of the certificate that the caller showed.
    uploader_certificate: String,
    /// SHA-256 of its DER, 64 lower-case hexadecimal digits.
    uploader_thumbprint: String,
    /// Base64 of the trust anchor's signature over the PEM text.
    uploader_operator_signature: String,
    /// PEM of the certificate that signed the keys.
    signing_certificate: String,
    /// SHA-256 of its DER, 64 lower-case hexadecimal digits.
    uploader_signing_thumbprint: String,
    /// Base64 of the trust anchor's signature over the PEM text.
    signing_certificate_operator_signature: String,
    /// Keys of this upload.
    amount: u32,
    /// Base64 of the CMS signature, as received.
    batch_signature: String,
}

/// A batch for the examples of the document; the key was made up for it.
pub fn example_batch() -> Value {
    json!({"keys": [{
        "keyData": "GRFfoNpVdmKu3xOrmzb7nQ==", "rollingStartIntervalNumber": 2990736, "rollingPeriod": 144,
        "transmissionRiskLevel": 3, "visitedCountries": ["DE", "FR"], "origin": "NL",
        "reportType": "CONFIRMED_TEST", "days_since_onset_of_symptoms": 2
    }]})
}

/// An audit for the examples of the document.
pub fn example_audit() -> Value {
    let pem = "-----BEGIN CERTIFICATE-----\nMIICPDCCAeKgAwIBAgIUJ5…\n-----END CERTIFICATE-----\n";
    json!([{
        "country": "NL", "uploadedTime": "2026-11-22T10:15:30.123Z", "uploaderCertificate": pem,
        "uploaderThumbprint": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "uploaderOperatorSignature": "W5z9UxuxMgAj+t3sQjoH04lvVFj2pIYX4EPHeMHR2cdEa+bV…", "signingCertificate": pem,
        "uploaderSigningThumbprint": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
        "signingCertificateOperatorSignature": "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA…",
        "amount": 1, "batchSignature": "MIIG1AYJKoZIhvcNAQcCoIIGxTCCBsECAQExDTALBg…"
    }])
}
