//! Any text as an onboarding bundle: what is understood can be written and read again.
#![no_main]

use efgs_protocol::bundle::Bundle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(bundle) = text.parse::<Bundle>() {
        assert_eq!(bundle.to_string().parse(), Ok(bundle));
    }
});
