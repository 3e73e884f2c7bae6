//! The decoder against prost, which decides what proto3 means.

use proptest::{collection::vec, sample::select};
use prost::{Message, encoding::encode_varint};

use super::*;
use crate::{country::Country, key::ReportType};

#[derive(Clone, PartialEq, Message)]
struct ProstBatch {
    #[prost(message, repeated, tag = "1")]
    keys: Vec<ProstKey>,
}

#[derive(Clone, PartialEq, Message)]
struct ProstKey {
    #[prost(bytes = "vec", tag = "1")]
    key_data: Vec<u8>,
    #[prost(uint32, tag = "2")]
    rolling_start_interval_number: u32,
    #[prost(uint32, tag = "3")]
    rolling_period: u32,
    #[prost(int32, tag = "4")]
    transmission_risk_level: i32,
    #[prost(string, repeated, tag = "5")]
    visited_countries: Vec<String>,
    #[prost(string, tag = "6")]
    origin: String,
    #[prost(int32, tag = "7")]
    report_type: i32,
    #[prost(sint32, tag = "8")]
    days_since_onset_of_symptoms: i32,
}

impl From<KeyRef<'_>> for ProstKey {
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

impl ProstKey {
    fn is_diagnosis_key(&self) -> bool {
        self.key_data.len() == 16
            && Country::new(&self.origin).is_ok()
            && self.visited_countries.iter().all(|code| Country::new(code).is_ok())
            && ReportType::from_number(self.report_type).is_some()
    }
}

/// Asserts that we read what prost reads, and that prost agrees with every refusal.
fn assert_like_prost(body: &[u8]) -> Result<(), TestCaseError> {
    let ours = decode(Format::Protobuf, body, usize::MAX);
    match (&ours, ProstBatch::decode(body)) {
        (Ok(batch), Ok(theirs)) => {
            prop_assert_eq!(batch.iter().map(ProstKey::from).collect::<Vec<_>>(), theirs.keys);
        }
        (Err(DecodeError::Empty), Ok(theirs)) => prop_assert!(theirs.keys.is_empty()),
        (Err(DecodeError::InvalidKey(invalid)), Ok(theirs)) => {
            let first = theirs.keys.iter().position(|key| !key.is_diagnosis_key());
            prop_assert_eq!(first, Some(invalid.index));
        }
        (Err(DecodeError::Malformed(_) | DecodeError::InvalidKey(_)), Err(_)) => {}
        (_, theirs) => prop_assert!(false, "ours {ours:?}, theirs {theirs:?}"),
    }
    Ok(())
}

fn tag(field: u32, wire_type: u32) -> Vec<u8> {
    varint(u64::from(field) << 3 | u64::from(wire_type))
}

fn varint(number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(number, &mut out);
    out
}

fn delimited(field: u32, content: &[u8]) -> Vec<u8> {
    [&tag(field, 2)[..], &varint(content.len() as u64), content].concat()
}

/// A batch of one key: a valid one with something appended to its message.
fn key_with(more: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    encode_key(Format::Protobuf, three_keys().get(0), &mut message);
    delimited(1, &[&message, more].concat())
}

/// One field that may or may not belong to a key, well-formed as far as it goes.
fn any_field() -> impl Strategy<Value = Vec<u8>> {
    let number = || prop_oneof![8 => 1..10u32, 1 => Just(0), 1 => Just((1 << 29) - 1), 1 => any::<u32>()];
    // Also longer than needed, and too long.
    let any_varint = prop_oneof![
        4 => (0..8u64).prop_map(varint),
        4 => any::<u64>().prop_map(varint),
        1 => (0..12usize, 0..3u8).prop_map(|(longer, last)| [vec![0x80; longer], vec![last]].concat()),
    ];
    let content = prop_oneof![
        "[A-Z]{2}".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..3),
        vec(any::<u8>(), 15..18),
        select(vec!["é".as_bytes(), b"\xff\xff", b"nl"]).prop_map(<[u8]>::to_vec),
    ];
    let plain = prop_oneof![
        4 => (number(), any_varint).prop_map(|(field, value)| [tag(field, 0), value].concat()),
        1 => (number(), any::<u64>()).prop_map(|(field, value)| [&tag(field, 1)[..], &value.to_le_bytes()].concat()),
        4 => (number(), content).prop_map(|(field, content)| delimited(field, &content)),
        1 => (number(), any::<u32>()).prop_map(|(field, value)| [&tag(field, 5)[..], &value.to_le_bytes()].concat()),
        1 => (number(), 0..8u32).prop_map(|(field, wire_type)| tag(field, wire_type)),
    ];
    plain.prop_recursive(3, 12, 3, move |inner| {
        (number(), prop::option::weighted(0.1, number()), vec(inner, 0..3)).prop_map(|(field, end, inner)| {
            [tag(field, 3), inner.concat(), tag(end.unwrap_or(field), 4)].concat()
        })
    })
}

#[test]
fn a_known_field_of_another_wire_type_is_refused() {
    let values = [varint(7), vec![0; 8], vec![0], tag(1, 4), vec![], vec![0; 4]];
    for field in 1..=8 {
        for (wire_type, value) in (0..).zip(&values) {
            let expected = if matches!(field, 1 | 5 | 6) { 2 } else { 0 };
            let body = key_with(&[&tag(field, wire_type)[..], value].concat());
            let decoded = decode(Format::Protobuf, &body, usize::MAX);
            let malformed = matches!(decoded, Err(DecodeError::Malformed(_)));
            assert_eq!(malformed, wire_type != expected, "field {field}, type {wire_type}: {decoded:?}");
            assert_like_prost(&body).unwrap();
        }
    }
}

#[test]
fn unknown_fields_of_every_wire_type_are_passed_over() {
    let group = [tag(9, 3), tag(1, 0), varint(300), tag(9, 4)].concat();
    for unknown in [
        [tag(9, 0), varint(u64::MAX)].concat(),
        [tag(9, 1), vec![0xff; 8]].concat(),
        delimited(9, &[0xff; 300]),
        group,
        [tag(9, 5), vec![0xff; 4]].concat(),
    ] {
        let decoded = decode(Format::Protobuf, &key_with(&unknown), usize::MAX).unwrap();
        assert_eq!(ProstKey::from(decoded.get(0)), ProstKey::from(three_keys().get(0)), "{unknown:?}");
    }
}

#[test]
fn empty_messages_fail_at_the_first_key() {
    let (index, reason) = index_and_reason(decode(Format::Protobuf, &[0x0a, 0].repeat(1000), usize::MAX));
    assert_eq!((index, reason), (0, InvalidReason::KeyDataLength { found: 0 }));
}

#[test]
fn a_key_that_is_none_is_named() {
    let good = encode(Format::Protobuf, &three_keys());
    for (more, text) in [
        (delimited(1, &[0; 15]), "key 3: keyData has 15 bytes instead of 16"),
        (
            delimited(5, b"de"),
            r#"key 3: visitedCountries, entry 2: "de" is not a country code of two upper-case letters"#,
        ),
        (delimited(6, b""), r#"key 3: origin: "" is not a country code of two upper-case letters"#),
        ([tag(7, 0), varint(6)].concat(), "key 3: reportType 6 is none of the six"),
        ([tag(7, 0), varint(u64::MAX)].concat(), "key 3: reportType -1 is none of the six"),
    ] {
        let error = decode(Format::Protobuf, &[&good[..], &key_with(&more)].concat(), 5).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn a_malformed_body_is_told_where() {
    let text = decode(Format::Protobuf, &[0x0a, 200], 5).unwrap_err().to_string();
    assert_eq!(text, "the body cannot be read: a number that does not end at byte 1");
}

#[test]
fn numbers_have_64_bits_at_most() {
    for (last, fits) in [(&[1][..], true), (&[2], false), (&[0x80, 0], false)] {
        for field in [3, 99] {
            let body = key_with(&[&tag(field, 0)[..], &[0x80; 9], last].concat());
            assert_eq!(decode(Format::Protobuf, &body, 1).is_ok(), fits, "{last:?}");
            assert_like_prost(&body).unwrap();
        }
    }
}

#[test]
fn strings_are_utf_8_even_where_a_later_one_counts() {
    let body = key_with(&[delimited(6, b"\xff\xff"), delimited(6, b"NL")].concat());
    assert!(matches!(decode(Format::Protobuf, &body, 1), Err(DecodeError::Malformed(_))));
    assert_like_prost(&body).unwrap();
}

#[test]
fn the_last_value_of_a_field_counts() {
    let more =
        [delimited(6, b"x"), delimited(6, b"ES"), tag(3, 0), varint(7), tag(3, 0), varint((1 << 32) + 9)];
    let batch = decode(Format::Protobuf, &key_with(&more.concat()), 1).unwrap();
    assert_eq!((batch.get(0).origin, batch.get(0).rolling_period), (country("ES"), 9));
}

#[test]
fn a_failed_key_leaves_the_batch_as_it_was() {
    let mut batch = three_keys();
    decode_protobuf_key(&delimited(5, b"AT"), &mut batch).unwrap_err();
    assert_eq!(batch, three_keys());
    batch.push(key(&[9]), &[country("BE")]);
    assert_eq!(batch.get(3).visited_countries(), [country("BE")]);
}

#[test]
fn groups_nest_as_deeply_as_in_prost() {
    for depth in 95..=105 {
        for inside in [&b""[..], &[0x50, 1]] {
            let groups = [tag(9, 3).repeat(depth), inside.to_vec(), tag(9, 4).repeat(depth)].concat();
            assert_like_prost(&[&key_with(&[])[..], &groups].concat()).unwrap();
            assert_like_prost(&key_with(&groups)).unwrap();
        }
    }
    assert_like_prost(&tag(9, 3).repeat(1 << 20)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_bytes_are_read_like_prost(body in vec(any::<u8>(), 0..64)) {
        assert_like_prost(&body)?;
        assert_like_prost(&key_with(&body))?;
    }

    #[test]
    fn any_fields_are_read_like_prost(
        in_key in vec(any_field(), 0..4),
        in_batch in vec(any_field(), 0..3),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut body = [key_with(&in_key.concat()), in_batch.concat()].concat();
        if let Some(cut) = cut {
            body.truncate(cut.index(body.len()));
        }
        assert_like_prost(&body)?;
    }

    #[test]
    fn batches_are_written_like_prost(batch in any_batch()) {
        let prost = ProstBatch { keys: batch.iter().map(ProstKey::from).collect() };
        prop_assert_eq!(encode(Format::Protobuf, &batch), prost.encode_to_vec());
    }
}
