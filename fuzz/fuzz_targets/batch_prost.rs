//! Any bytes as a batch in protobuf: our decoder and prost accept and refuse the same, and read the same fields.
#![no_main]

use efgs_fuzz::proto;
use efgs_protocol::{
    media::Format,
    wire::{self, DecodeError},
};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|body: &[u8]| {
    let ours = wire::decode(Format::Protobuf, body, usize::MAX);
    match (ours, proto::Batch::decode(body)) {
        (Ok(batch), Ok(theirs)) => {
            let ours = proto::Batch { keys: batch.iter().map(proto::Key::from).collect() };
            assert_eq!(ours, theirs);
            assert_eq!(wire::encode(Format::Protobuf, &batch), theirs.encode_to_vec());
        }
        // Stricter on purpose: a batch has at least one key …
        (Err(DecodeError::Empty), Ok(theirs)) => assert_eq!(theirs.keys, []),
        // … and each of its keys is a diagnosis key. The first that is none is named.
        (Err(DecodeError::InvalidKey(invalid)), Ok(theirs)) => {
            let first = theirs.keys.iter().position(|key| !key.is_diagnosis_key());
            assert_eq!(first, Some(invalid.index));
        }
        // A key that is none may stand before what cannot be read.
        (Err(DecodeError::Malformed(_) | DecodeError::InvalidKey(_)), Err(_)) => {}
        (ours, theirs) => panic!("ours: {ours:?}, theirs: {theirs:?}"),
    }
});
