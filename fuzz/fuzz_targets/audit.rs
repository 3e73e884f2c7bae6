//! Any JSON as the audit entries of a batch, and any protobuf as its download: an error or one verdict for each
//! entry, and entries that are written are read as the same.
#![no_main]

use std::sync::LazyLock;

use efgs_protocol::{
    anchor::TrustAnchor,
    audit::{AuditEntry, verify_batch},
    key::KeyBatch,
    media::Format,
    signature::SignaturePolicy,
    wire,
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static ANCHOR: LazyLock<TrustAnchor> = LazyLock::new(|| {
    let vectors: Value =
        serde_json::from_str(include_str!("../../crates/protocol/tests/vectors/operator.json")).unwrap();
    TrustAnchor::from_pem(vectors["anchor"].as_str().unwrap()).unwrap()
});

// The entries, a zero byte, and the batch. JSON has no zero byte.
fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let Ok(entries) = serde_json::from_slice::<Vec<AuditEntry>>(&bytes[..end]) else { return };
    // An entry's time is written to the millisecond, so that the text decides, not the entry.
    let text = serde_json::to_string(&entries).unwrap();
    let again: Vec<AuditEntry> = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), text);

    let body = bytes.get(end + 1..).unwrap_or_default();
    let keys = wire::decode(Format::Protobuf, body, 5000).unwrap_or_else(|_| KeyBatch::new());
    for batch in [None, "20261122-1".parse().ok()] {
        let policy = SignaturePolicy { allow_sha1: true };
        let verdicts = verify_batch(&entries, &keys, batch, "DE".parse().unwrap(), &ANCHOR, policy);
        if let Ok(verdicts) = verdicts {
            assert_eq!(verdicts.len(), entries.len());
            let told: usize = verdicts.iter().filter_map(|verdict| Some(verdict.keys.as_ref()?.len())).sum();
            assert_eq!(told, keys.len());
        }
    }
});
