//! Any bytes as a batch signature, as they are and in base64: never a panic, and never one that verifies over
//! two different texts.
#![no_main]

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::DateTime;
use efgs_protocol::signature::{SignaturePolicy, verify};
use libfuzzer_sys::fuzz_target;

/// A moment when the certificates of the test vectors are valid.
const NOW: i64 = 1_800_000_000;

fuzz_target!(|bytes: &[u8]| {
    let now = DateTime::from_timestamp(NOW, 0).unwrap();
    let policy = SignaturePolicy { allow_sha1: true };
    let texts = [String::from_utf8_lossy(bytes).into_owned(), BASE64_STANDARD.encode(bytes)];
    for text in texts {
        let first = verify(&text, b"one text", now, policy);
        let second = verify(&text, b"another text", now, policy);
        assert!(first.is_err() || second.is_err());
    }
});
