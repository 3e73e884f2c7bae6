//! Any bytes as a batch in protobuf: an error or a batch that can be written and read again.
#![no_main]

use efgs_protocol::{media::Format, wire};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(batch) = wire::decode(Format::Protobuf, body, 5000) {
        for format in Format::ALL {
            assert_eq!(wire::decode(format, &wire::encode(format, &batch), 5000).as_ref(), Ok(&batch));
        }
        let _ = batch.validate(chrono::DateTime::UNIX_EPOCH);
    }
});
