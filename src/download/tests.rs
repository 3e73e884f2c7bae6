#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use actix_web::test::TestRequest;
use efgs_protocol::{
    batch_tag::ObjectId,
    media::{Format, SUPPORTED},
};

use super::*;

fn country(code: &str) -> Country {
    Country::new(code).unwrap()
}

#[test]
fn whatever_changes_the_bytes_changes_the_etag() {
    let record = BatchRecord {
        id: ObjectId::from_bytes([1; 12]),
        day: chrono::NaiveDate::MIN,
        sequence: 1,
        format_major: 1,
        uploads: Vec::new(),
        withdrawn: 0,
    };
    let media = |format| MediaType { format, version: SUPPORTED };
    let (dutch, protobuf) = (country("NL"), media(Format::Protobuf));
    let other = BatchRecord { id: ObjectId::from_bytes([2; 12]), ..record.clone() };
    let less = BatchRecord { withdrawn: 1, ..record.clone() };
    let etags = [
        etag(&record, dutch, protobuf, Encoding::Identity),
        etag(&record, country("IT"), protobuf, Encoding::Identity),
        etag(&record, dutch, media(Format::Json), Encoding::Identity),
        etag(&record, dutch, protobuf, Encoding::Gzip),
        etag(&record, dutch, protobuf, Encoding::Zstd),
        etag(&other, dutch, protobuf, Encoding::Identity),
        etag(&less, dutch, protobuf, Encoding::Identity),
    ];
    let distinct: std::collections::HashSet<_> = etags.iter().collect();
    assert_eq!(distinct.len(), etags.len(), "{etags:?}");
    assert!(etags.iter().all(|etag| etag.starts_with('"') && etag.ends_with('"') && !etag.contains(' ')));
}

#[test]
fn if_none_match_is_a_list_compared_weakly() {
    let request = |values: &[&str]| {
        let request = TestRequest::default();
        values.iter().fold(request, |r, v| r.append_header((header::IF_NONE_MATCH, *v))).to_http_request()
    };
    for values in
        [&["\"a\""][..], &["W/\"a\""], &["\"x\", \"a\""], &["\"x\"", "\"a\""], &["*"], &["\"x\",\"a\""]]
    {
        assert!(matches(&request(values), "\"a\""), "{values:?}");
    }
    for values in [&[][..], &["\"x\""], &["a"], &[""], &["\"A\""], &["\"a\"x"]] {
        assert!(!matches(&request(values), "\"a\""), "{values:?}");
    }
}

#[test]
fn several_accept_headers_are_one_list() {
    let request = TestRequest::default()
        .append_header((header::ACCEPT, "text/html"))
        .append_header((header::ACCEPT, "application/json; version=1.0; q=0.5"))
        .append_header((header::ACCEPT, "application/protobuf; version=1.0; q=0.4"))
        .to_http_request();
    assert_eq!(accepted(&request).unwrap().format, Format::Json);
    let none = TestRequest::default().to_http_request();
    assert!(matches!(accepted(&none), Err(DownloadError::Media(_))));
}
