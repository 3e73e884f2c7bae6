//! What the API document says of answers that several features share.

use efgs_protocol::wire::KeyObject;
use serde_json::{Value, json};
use utoipa::{ToResponse, ToSchema};

use super::ErrorBody;

/// The date is before the retention.
#[derive(Debug, ToResponse)]
#[response(example = json!({"message": "the date 2026-10-01 is too old: keys are kept since 2026-11-08", "code": "gone"}))]
#[expect(dead_code, reason = "only describes the answer in the API document")]
pub struct Gone(ErrorBody);

/// A batch of diagnosis keys, as JSON (spec §4.1.3). As protobuf: message `eu.interop.DiagnosisKeyBatch`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only describes the body in the API document")]
pub struct DiagnosisKeyBatch {
    keys: Vec<KeyObject<'static>>,
}

/// An example batch for the API document, with an invented key.
pub fn example_batch() -> Value {
    json!({"keys": [{
        "keyData": "GRFfoNpVdmKu3xOrmzb7nQ==", "rollingStartIntervalNumber": 2990736, "rollingPeriod": 144,
        "transmissionRiskLevel": 3, "visitedCountries": ["DE", "FR"], "origin": "NL",
        "reportType": "CONFIRMED_TEST", "days_since_onset_of_symptoms": 2
    }]})
}

/// An example audit for the API document.
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
