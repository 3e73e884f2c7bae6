//! Any keys, written in JSON and in protobuf by others: we read the same batch or find the same error in both, and
//! the signed bytes do not depend on the format.
#![no_main]

use base64::{Engine, prelude::BASE64_STANDARD};
use efgs_fuzz::proto;
use efgs_protocol::{canonical::CanonicalKeys, media::Format, wire};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use serde_json::{Value, json};

/// Few, so that batches with more keys than allowed occur.
const MAX_KEYS: usize = 4;

fn json(key: &proto::Key) -> Value {
    json!({
        "keyData": BASE64_STANDARD.encode(&key.key_data),
        "rollingStartIntervalNumber": key.rolling_start_interval_number,
        "rollingPeriod": key.rolling_period,
        "transmissionRiskLevel": key.transmission_risk_level,
        "visitedCountries": key.visited_countries,
        "origin": key.origin,
        "reportType": key.report_type,
        "days_since_onset_of_symptoms": key.days_since_onset_of_symptoms,
    })
}

fuzz_target!(|body: &[u8]| {
    // The body only says which keys: prost reads them, whether they are diagnosis keys or not.
    let Ok(batch) = proto::Batch::decode(body) else { return };
    let json = json!({ "keys": batch.keys.iter().map(json).collect::<Vec<_>>() }).to_string();
    let from_json = wire::decode(Format::Json, json.as_bytes(), MAX_KEYS);
    let from_protobuf = wire::decode(Format::Protobuf, &batch.encode_to_vec(), MAX_KEYS);
    assert_eq!(from_json, from_protobuf);

    let Ok(batch) = from_json else { return };
    let canonical = CanonicalKeys::of(&batch);
    for format in Format::ALL {
        let again = wire::decode(format, &wire::encode(format, &batch), MAX_KEYS);
        assert_eq!(again.as_ref(), Ok(&batch));
        let again = CanonicalKeys::of(&again.unwrap());
        assert_eq!(again.signed_bytes(), canonical.signed_bytes());
        assert_eq!(again.payload_hashes(), canonical.payload_hashes());
    }
});
