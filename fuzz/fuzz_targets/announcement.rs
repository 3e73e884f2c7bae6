//! Any text as the query with which the gateway announces a batch to a country: what is understood can be written
//! and read again, and nothing else is.
#![no_main]

use efgs_client::callback::Announcement;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|query: &str| {
    if let Ok(Announcement { batch_tag, date }) = Announcement::from_query(query) {
        let forms =
            [format!("batchTag={batch_tag}&date={date}"), format!("date={date}&batchTag={batch_tag}")];
        assert!(forms.iter().any(|form| form == query));
    }
});
