#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

const V1_0: Version = Version { major: 1, minor: 0 };

fn content_type(text: &str) -> Result<Format, MediaError> {
    MediaType::from_content_type(text).map(|media_type| media_type.format)
}

#[test]
fn content_types_in_every_spelling() {
    for text in [
        "application/json; version=1.0",
        "application/json;version=1.0",
        "Application/JSON ; VERSION=1.0",
        "  application/json;charset=utf-8;version=1.0;  ",
        "application/json; version=\"1.0\"; charset=UTF-8",
        "application/json; charset=\"a;version=9.9\\\";version=8.8\"; version=1.0",
        "application/json; version = 1.0",
        "application/json; version=1.0.0",
        "application/json; version=1.0.17; q=0",
    ] {
        assert_eq!(content_type(text), Ok(Format::Json), "{text}");
    }
    assert_eq!(content_type("application/protobuf; version=1.0"), Ok(Format::Protobuf));
}

#[test]
fn a_format_is_found_by_exactly_its_short_name() {
    for (name, format) in [("protobuf", Format::Protobuf), ("json", Format::Json)] {
        assert_eq!((format.name(), name.parse()), (name, Ok(format)));
    }
    for name in ["", "JSON", "application/json", "proto"] {
        assert!(matches!(name.parse::<Format>(), Err(MediaError::UnknownType { .. })), "{name}");
    }
}

#[test]
fn standard_media_types_are_not_accepted() {
    for text in ["application/json", "application/protobuf; charset=utf-8", "application/json; version"] {
        assert!(matches!(content_type(text), Err(MediaError::NoVersion { .. })), "{text}");
    }
}

#[test]
fn other_media_types_are_not_accepted() {
    for text in
        ["", ";", "text/plain; version=1.0", "application/x-protobuf; version=1.0", "*/*; version=1.0"]
    {
        assert!(matches!(content_type(text), Err(MediaError::UnknownType { .. })), "{text}");
    }
}

#[test]
fn only_versions_are_versions() {
    for version in
        ["", "1", "v1.0", "1.", ".0", "1.0.", "1.0.0.0", "01.0", "1.00", "+1.0", "1.x", "1.65536", "1 .0"]
    {
        let result = content_type(&format!("application/json; version={version}"));
        assert!(matches!(result, Err(MediaError::InvalidVersion { .. })), "{version}: {result:?}");
    }
    let twice = content_type("application/json; version=1.0; version=1.0");
    assert!(matches!(twice, Err(MediaError::RepeatedVersion { .. })));
}

#[test]
fn versions_that_are_too_new_or_of_another_major_are_refused() {
    for (major, minor) in [(0, 9), (1, 1), (2, 0)] {
        let found = Version { major, minor };
        let result = content_type(&format!("application/json; version={found}"));
        assert_eq!(result, Err(MediaError::UnsupportedVersion { found }));
    }
    let ours = Version { major: 2, minor: 3 };
    assert!(Version { major: 2, minor: 0 }.is_served_by(ours));
    assert!(ours.is_served_by(ours));
    assert!(!Version { major: 2, minor: 4 }.is_served_by(ours));
    assert!(!Version { major: 1, minor: 0 }.is_served_by(ours));
}

#[test]
fn the_best_supported_range_wins() {
    use Format::{Json, Protobuf};
    for (accept, expected) in [
        ("application/json; version=1.0", Json),
        ("application/protobuf;version=1.0, application/json;version=1.0", Protobuf),
        ("application/json;version=1.0, application/protobuf;version=1.0", Json),
        ("application/json;version=1.0;q=0.5, application/protobuf;version=1.0;q=0.501", Protobuf),
        ("application/json;version=1.0;q=.2,application/protobuf;version=1.0;Q=0.1", Json),
        ("application/json;q=0.9;version=1.0, application/protobuf;version=1.0;q=1.000", Protobuf),
        ("application/json;version=2.0, application/protobuf;version=1.0;q=0.1", Protobuf),
        ("application/json;version=1.0;q=0, application/protobuf;version=1.0;q=0.001", Protobuf),
        ("application/json;version=1.0;q=2, application/protobuf;version=1.0;q=0.001", Protobuf),
        ("text/html, */*, application/json, application/protobuf;version=1.0.0;q=0.1", Protobuf),
        ("text/x; a=\"b,c\\\",d\", application/json;version=1.0", Json),
    ] {
        let found = MediaType::negotiate([accept]).map(|media_type| media_type.format);
        assert_eq!(found, Ok(expected), "{accept}");
    }
}

#[test]
fn several_headers_count_as_one() {
    let accept = ["text/plain", "application/json;version=1.0;q=0.1", "application/protobuf;version=1.0"];
    let media_type = MediaType::negotiate(accept).unwrap();
    assert_eq!(media_type.to_string(), "application/protobuf; version=1.0");
}

#[test]
fn wildcards_and_bare_types_are_not_acceptable() {
    for accept in [
        "",
        "*/*",
        "application/*; version=1.0",
        "application/json",
        "application/json; version=1.0; q=0",
        "application/json; version=1.0; q=much",
        "application/json; version=1.1",
        "application/json; x=\"; version=1.0",
    ] {
        let result = MediaType::negotiate([accept]);
        assert!(matches!(result, Err(MediaError::NotAcceptable { .. })), "{accept}: {result:?}");
    }
    assert!(MediaType::negotiate([]).is_err());
}

#[test]
fn errors_are_short_and_harmless() {
    let long = format!("text/\r\n{}", "x".repeat(1 << 20));
    for error in [content_type(&long).unwrap_err(), MediaType::negotiate([&*long]).unwrap_err()] {
        let text = error.to_string();
        assert!(text.len() < 300 && !text.contains('\n'), "{text}");
    }
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "\\PC{0,40}|[a-z/;=,\"\\\\ 01.]{0,60}|application/json[;, a-z=0-9.\"\\\\]{0,40}") {
        let _ = MediaType::from_content_type(&text);
        let _ = MediaType::negotiate([&*text, &*text]);
    }

    #[test]
    fn versions_are_read_as_they_are_written(major: u16, minor: u16, patch: u16) {
        let version = Version { major, minor };
        prop_assert_eq!(version.to_string().parse::<Version>(), Ok(version));
        prop_assert_eq!(format!("{version}.{patch}").parse::<Version>(), Ok(version));
    }

    #[test]
    fn media_types_are_read_as_they_are_written(protobuf: bool) {
        let format = if protobuf { Format::Protobuf } else { Format::Json };
        let media_type = MediaType { format, version: V1_0 };
        prop_assert_eq!(MediaType::from_content_type(&media_type.to_string()), Ok(media_type));
        prop_assert_eq!(MediaType::negotiate([&*media_type.to_string()]), Ok(media_type));
    }

    #[test]
    fn weights_have_three_decimals(weight in 0..=1000u16) {
        let text = format!("{}.{:03}", weight / 1000, weight % 1000);
        prop_assert_eq!(thousandths(&text), Some(weight));
    }
}
