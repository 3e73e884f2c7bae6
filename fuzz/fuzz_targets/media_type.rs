//! Any text as `Content-Type` and as `Accept`: what is understood can be written and read again.
#![no_main]

use efgs_protocol::media::MediaType;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(media_type) = MediaType::from_content_type(text) {
        assert_eq!(MediaType::from_content_type(&media_type.to_string()), Ok(media_type));
    }
    if let Ok(media_type) = MediaType::negotiate(text.lines()) {
        assert_eq!(MediaType::negotiate([&*media_type.to_string()]), Ok(media_type));
    }
});
