#![expect(clippy::unwrap_used, reason = "tests")]

use base64::prelude::BASE64_STANDARD;
use proptest::{collection::vec, prelude::*};
use serde::Deserialize;

use super::*;
use crate::{
    media::Format,
    testing::{any_batch, any_key, batch_of, key},
    wire,
};

/// The key bytes, written as plainly as the definition is.
fn plain_key_bytes(key: KeyRef<'_>) -> String {
    let visited: Vec<String> = key.visited_countries().iter().map(ToString::to_string).collect();
    [
        BASE64_STANDARD.encode(key.key_data.as_bytes()),
        BASE64_STANDARD.encode(key.rolling_start_interval_number.to_be_bytes()),
        BASE64_STANDARD.encode(key.rolling_period.to_be_bytes()),
        BASE64_STANDARD.encode(key.transmission_risk_level.to_be_bytes()),
        BASE64_STANDARD.encode(visited.join(",")),
        BASE64_STANDARD.encode(key.origin.to_string()),
        BASE64_STANDARD.encode(key.report_type.number().to_be_bytes()),
        BASE64_STANDARD.encode(key.days_since_onset_of_symptoms.to_be_bytes()),
    ]
    .map(|item| item + ".")
    .concat()
}

fn plain_signed_bytes(batch: &KeyBatch) -> String {
    let mut keys: Vec<String> = batch.iter().map(plain_key_bytes).collect();
    keys.sort_by_key(|key| BASE64_STANDARD.encode(key));
    keys.concat()
}

fn assert_like_the_plain_one(batch: &KeyBatch) -> Result<(), TestCaseError> {
    let canonical = CanonicalKeys::of(batch);
    for (index, (key, hash)) in batch.iter().zip(canonical.payload_hashes()).enumerate() {
        let plain = plain_key_bytes(key);
        prop_assert_eq!(str::from_utf8(canonical.key_bytes(index)).unwrap(), &plain);
        prop_assert_eq!(hash, <[u8; 32]>::from(Sha256::digest(&plain)));
    }
    prop_assert_eq!(String::from_utf8(canonical.signed_bytes()).unwrap(), plain_signed_bytes(batch));
    Ok(())
}

#[test]
fn vectors_of_an_independent_implementation() {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Case {
        name: String,
        batch: serde_json::Value,
        protobuf: String,
        key_bytes: Vec<String>,
        payload_hash: Vec<String>,
        signed_bytes: String,
    }

    let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/vectors/canonical.json")).unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let json = wire::decode(Format::Json, case.batch.to_string().as_bytes(), 5000).unwrap();
        let protobuf = BASE64_STANDARD.decode(&case.protobuf).unwrap();
        assert_eq!(wire::decode(Format::Protobuf, &protobuf, 5000).as_ref(), Ok(&json), "{}", case.name);
        assert_eq!(wire::encode(Format::Protobuf, &json), protobuf, "{}", case.name);
        let written: serde_json::Value = serde_json::from_slice(&wire::encode(Format::Json, &json)).unwrap();
        assert_eq!(written, case.batch, "{}", case.name);

        let canonical = CanonicalKeys::of(&json);
        let key_bytes: Vec<_> =
            (0..json.len()).map(|index| str::from_utf8(canonical.key_bytes(index)).unwrap()).collect();
        assert_eq!(key_bytes, case.key_bytes, "{}", case.name);
        let hashes: Vec<_> = canonical
            .payload_hashes()
            .iter()
            .map(|hash| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            .collect();
        assert_eq!(hashes, case.payload_hash, "{}", case.name);
        assert_eq!(String::from_utf8(canonical.signed_bytes()).unwrap(), case.signed_bytes, "{}", case.name);
    }
}

#[test]
fn a_batch_without_keys_signs_nothing() {
    assert!(CanonicalKeys::of(&KeyBatch::new()).signed_bytes().is_empty());
}

#[test]
fn keys_chosen_to_collide_are_sorted_too() {
    let mut batch = KeyBatch::new();
    for number in 0..5000u16 {
        let [high, low] = number.wrapping_mul(40503).to_be_bytes();
        batch.push(key(&[7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, high, low]), &[]);
    }
    assert_eq!(
        String::from_utf8(CanonicalKeys::of(&batch).signed_bytes()).unwrap(),
        plain_signed_bytes(&batch)
    );
}

proptest! {
    #[test]
    fn any_batch_is_like_the_plain_one(batch in any_batch()) {
        assert_like_the_plain_one(&batch)?;
    }

    #[test]
    fn shared_beginnings_are_like_the_plain_one(
        keys in vec(any_key((0..16usize, 250u8.., 0..4u8).prop_map(|(from, first, rest)| {
            let mut key_data = [0xfb; 16];
            key_data[from..].fill(rest);
            key_data[0] = first;
            key_data
        })), 0..40),
    ) {
        assert_like_the_plain_one(&batch_of(keys))?;
    }

    #[test]
    fn only_visited_countries_differ(
        lists in vec(vec(crate::testing::any_country(), 0..8), 0..20),
    ) {
        assert_like_the_plain_one(&batch_of(lists.into_iter().map(|visited| (key(&[]), visited)).collect()))?;
    }

    #[test]
    fn the_order_of_the_keys_does_not_matter(batch in any_batch()) {
        let mut keys: Vec<_> = batch.iter().collect();
        keys.reverse();
        let reversed: KeyBatch = keys.into_iter().collect();
        prop_assert_eq!(CanonicalKeys::of(&reversed).signed_bytes(), CanonicalKeys::of(&batch).signed_bytes());
    }
}
