//! Any text as the name of a batch or of an upload: what is understood is shown exactly as it came.
#![no_main]

use efgs_protocol::batch_tag::{BatchTag, UploadTag};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(tag) = text.parse::<BatchTag>() {
        assert_eq!(tag.to_string(), text);
    }
    if let Ok(tag) = text.parse::<UploadTag>() {
        assert_eq!(tag.as_str(), text);
    }
});
