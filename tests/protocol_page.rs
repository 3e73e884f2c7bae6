//! The example of docs/protocol.md, byte by byte, and the message definitions beside it.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::{TimeZone, Utc};
use efgs_protocol::{
    canonical::CanonicalKeys,
    media::Format,
    signature::{self, SignaturePolicy},
    wire,
};

/// The text of the block with this word behind its language.
fn block(word: &str) -> &'static str {
    let page = include_str!("../docs/protocol.md");
    let mut fenced = page.split("\n```").filter_map(|part| part.split_once('\n'));
    let found = fenced.find(|(head, _)| head.split_once(' ').is_some_and(|(_, name)| name == word));
    found.expect("the page has the block").1
}

#[test]
fn the_example_of_the_page_is_right_to_the_byte() {
    let keys = wire::decode(Format::Json, block("example").as_bytes(), 2).unwrap();
    let signed: &str = block("signed-bytes");
    let canonical = CanonicalKeys::of(&keys);
    assert_eq!(canonical.signed_bytes(), signed.as_bytes());

    let key_bytes: Vec<&str> = block("key-bytes").lines().collect();
    let sort_keys: Vec<&str> = block("sort-keys").lines().collect();
    for (i, text) in key_bytes.iter().enumerate() {
        assert_eq!(BASE64_STANDARD.encode(text), sort_keys[i]);
        assert_eq!(canonical.payload_hashes()[i], openssl::sha::sha256(text.as_bytes()), "key {i}");
    }
    assert!(sort_keys[1] < sort_keys[0]);
    assert_eq!(signed, [key_bytes[1], key_bytes[0]].concat());
    let digest = openssl::sha::sha256(signed.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, block("sha256"));

    let at = Utc.with_ymd_and_hms(2027, 1, 1, 0, 0, 0).unwrap();
    let text: String = block("signature").lines().collect();
    let signed_by =
        signature::verify(&text, signed.as_bytes(), at, SignaturePolicy { allow_sha1: false }).unwrap();
    assert_eq!(signed_by.certificate.country().unwrap().as_str(), "NL");
    signature::verify(&text, b"other bytes", at, SignaturePolicy { allow_sha1: false }).unwrap_err();
}

#[test]
fn every_operation_and_field_of_the_page_is_one_of_the_gateways() {
    let page = include_str!("../docs/protocol.md");
    for operation in &efgs_gateway::server::OPERATIONS {
        assert!(page.contains(operation.path), "{}", operation.path);
    }
    let proto = include_str!("../openapi/efgs.proto");
    for field in wire::decode(Format::Json, block("example").as_bytes(), 2)
        .map(|keys| wire::encode(Format::Json, &keys))
        .map(|json| serde_json::from_slice::<serde_json::Value>(&json).unwrap())
        .map(|json| json["keys"][0].as_object().unwrap().keys().cloned().collect::<Vec<_>>())
        .unwrap()
    {
        assert!(proto.contains(&format!(" {field} = ")), "{field}");
    }
    for kind in efgs_protocol::key::ReportType::ALL {
        let line = format!("{} = {};", kind.name(), kind as u8);
        assert!(proto.contains(&line), "{line}");
    }
}
