#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::{
    key::InvalidReason,
    testing::{any_batch, country, key},
};

mod json;
mod protobuf;

fn index_and_reason(result: Result<KeyBatch, DecodeError>) -> (usize, InvalidReason) {
    match result {
        Err(DecodeError::InvalidKey(InvalidKey { index, reason })) => (index, reason),
        other => unreachable!("{other:?}"),
    }
}

fn three_keys() -> KeyBatch {
    let mut batch = KeyBatch::new();
    for first_byte in 0..3 {
        batch.push(key(&[first_byte]), &[country("DE"), country("FR")]);
    }
    batch
}

#[test]
fn no_more_keys_than_allowed() {
    for format in Format::ALL {
        let body = encode(format, &three_keys());
        assert_eq!(decode(format, &body, 3).unwrap(), three_keys());
        assert_eq!(decode(format, &body, 2), Err(DecodeError::TooManyKeys { max: 2 }));
        assert_eq!(decode(format, &body, 0), Err(DecodeError::TooManyKeys { max: 0 }));
    }
}

#[test]
fn no_keys_are_an_error_of_their_own() {
    for format in Format::ALL {
        assert_eq!(decode(format, &encode(format, &KeyBatch::new()), 3), Err(DecodeError::Empty));
    }
    assert_eq!(encode(Format::Protobuf, &KeyBatch::new()), b"");
    assert_eq!(encode(Format::Json, &KeyBatch::new()), br#"{"keys":[]}"#);
}

#[test]
fn a_batch_is_made_of_its_framed_keys() {
    let batch = three_keys();
    let (mut protobuf, mut json) = (Vec::new(), JSON_OPEN.to_vec());
    for (index, key) in batch.iter().enumerate() {
        let mut message = Vec::new();
        encode_key(Format::Protobuf, key, &mut message);
        append_protobuf_field(&message, &mut protobuf);
        if index > 0 {
            json.extend_from_slice(JSON_SEPARATOR);
        }
        encode_key(Format::Json, key, &mut json);
    }
    json.extend_from_slice(JSON_CLOSE);
    assert_eq!(protobuf, encode(Format::Protobuf, &batch));
    assert_eq!(json, encode(Format::Json, &batch));
}

proptest! {
    #[test]
    fn what_is_written_can_be_read(batch in any_batch()) {
        for format in Format::ALL {
            let read = decode(format, &encode(format, &batch), 100);
            prop_assert_eq!(read.as_ref(), Ok(&batch));
        }
    }

    #[test]
    fn a_single_key_that_is_written_can_be_read(batch in any_batch()) {
        let mut read = KeyBatch::new();
        for key in batch.iter() {
            let mut message = Vec::new();
            encode_key(Format::Protobuf, key, &mut message);
            decode_protobuf_key(&message, &mut read).unwrap();
        }
        prop_assert_eq!(read, batch);
    }

    #[test]
    fn damaged_bodies_are_answered(
        batch in any_batch(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        for format in Format::ALL {
            let mut body = encode(format, &batch);
            for (index, byte) in &damage {
                let index = index.index(body.len());
                body[index] = *byte;
            }
            let _ = decode(format, &body, 100);
            let _ = decode(format, &body[..cut.index(body.len())], 100);
        }
    }
}

#[test]
fn a_file_s_format_is_told_by_its_beginning() {
    for (file, format) in [
        (&b"{\"keys\":[]}"[..], Format::Json),
        (b"  \r\n\t{", Format::Json),
        (b"\n{", Format::Protobuf),
        (b"\n\x1e\n\x10", Format::Protobuf),
        (b"", Format::Protobuf),
    ] {
        assert_eq!(format_of(file), format, "{file:?}");
    }
}
