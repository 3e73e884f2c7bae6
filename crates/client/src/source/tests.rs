#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{Write as _, repeat};

use openssl::{
    ec::{EcGroup, EcKey},
    nid::Nid,
};

use efgs_protocol::{
    country::Country,
    key::{DiagnosisKey, KeyData, ReportType},
    media::Format,
    wire,
};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::gaen::{self, ExportHeader, ExportSigner, Section, TemporaryExposureKey};

fn country(code: &str) -> Country {
    code.parse().unwrap()
}

fn defaults() -> GaenDefaults {
    GaenDefaults { origin: country("NL"), visited_countries: vec![country("DE")], key: None }
}

fn key(number: u32) -> DiagnosisKey {
    let mut key_data = [0; 16];
    key_data[..4].copy_from_slice(&number.to_be_bytes());
    DiagnosisKey {
        key_data: KeyData::new(key_data),
        rolling_start_interval_number: 2_676_960,
        rolling_period: 144,
        transmission_risk_level: 3,
        origin: country("NL"),
        report_type: ReportType::ConfirmedTest,
        days_since_onset_of_symptoms: -2,
    }
}

fn keys(amount: u32) -> KeyBatch {
    let mut batch = KeyBatch::new();
    for number in 0..amount {
        batch.push(key(number), &[country("FR"), country("IT")][..number as usize % 3]);
    }
    batch
}

fn lines(keys: &KeyBatch) -> Vec<u8> {
    let mut text = Vec::new();
    for key in keys.iter() {
        wire::encode_key(Format::Json, key, &mut text);
        text.push(b'\n');
    }
    text
}

/// What a source has: its format, its keys, and the reasons of what is none, each with its index.
type Content = (SourceFormat, KeyBatch, Vec<(u64, String)>);

fn read_source(source: Source) -> Result<Content, SourceError> {
    let (mut keys, mut reasons, mut index) = (KeyBatch::new(), Vec::new(), 0);
    let format = source.read(&defaults(), &CancellationToken::new(), &mut |key| {
        match key {
            Ok(key) => keys.push(*key, key.visited_countries()),
            Err(reason) => reasons.push((index, reason)),
        }
        index += 1;
        ControlFlow::Continue(())
    })?;
    Ok((format, keys, reasons))
}

fn read_bytes(bytes: impl Into<Vec<u8>>) -> Result<Content, SourceError> {
    read_source(Source::reader("input", Cursor::new(bytes.into())))
}

fn problem(bytes: impl Into<Vec<u8>>) -> String {
    match read_bytes(bytes) {
        Err(error) => error.to_string(),
        Ok(content) => panic!("{content:?}"),
    }
}

#[test]
fn every_format_is_known_by_its_content() {
    let keys = keys(50);
    let json = wire::encode(Format::Json, &keys);
    let mut pretty: serde_json::Value = serde_json::from_slice(&json).unwrap();
    pretty["unknown"] = serde_json::json!({"keys": [1, 2]});
    let pretty = serde_json::to_string_pretty(&pretty).unwrap();
    for (bytes, format) in [
        (json.clone(), SourceFormat::Json),
        ([b"\n \n".to_vec(), json].concat(), SourceFormat::Json),
        (pretty.into_bytes(), SourceFormat::Json),
        (lines(&keys), SourceFormat::JsonLines),
        ([b"\n\r\n".to_vec(), lines(&keys), b"\n \n".to_vec()].concat(), SourceFormat::JsonLines),
        (lines(&keys).trim_ascii_end().to_vec(), SourceFormat::JsonLines),
        (wire::encode(Format::Protobuf, &keys), SourceFormat::Protobuf),
    ] {
        assert_eq!(read_bytes(bytes).unwrap(), (format, keys.clone(), vec![]), "{format:?}");
    }
    for (bytes, format) in [("", SourceFormat::Protobuf), (r#"{"keys":[]}"#, SourceFormat::Json)] {
        assert_eq!(read_bytes(bytes).unwrap(), (format, KeyBatch::new(), vec![]));
    }
}

#[test]
fn a_delete_character_in_a_text_does_not_make_json_protobuf() {
    let mut text = b"{\"note\":\"\x7f\",\"keys\":[".to_vec();
    wire::encode_key(Format::Json, keys(1).get(0), &mut text);
    text.extend(b"]}");
    assert_eq!(read_bytes(text).unwrap(), (SourceFormat::Json, keys(1), Vec::new()));
}

#[test]
fn what_is_no_key_is_named_and_the_rest_is_read() {
    let reasons = |content: Content| content.2;
    let text = String::from_utf8(lines(&keys(3))).unwrap();
    let bad = text.replacen("\"origin\":\"NL\"", "\"origin\":\"nl\"", 1);
    let bad = bad.replacen("\"rollingPeriod\":144", "\"rollingPeriod\":-1", 2).replacen(":-1", ":144", 1);
    let expected = |content: &Content| {
        assert_eq!(content.1.len(), 1);
        assert_eq!(content.2.len(), 2, "{content:?}");
        assert!(content.2[0].1.starts_with("origin: \"nl\""), "{content:?}");
        assert!(content.2[1].1.contains("wrong type or range"), "{content:?}");
    };
    expected(&read_bytes(bad.clone()).unwrap());
    let batch = format!("{{\"keys\":[{}]}}", bad.trim_end().replace('\n', ","));
    expected(&read_bytes(batch).unwrap());
    // A line that is not even JSON; nothing of it is repeated.
    let content = read_bytes(format!("{text}{{\"keyData\":\"secret\n{text}")).unwrap();
    assert_eq!((content.1.len(), content.2.len(), content.2[0].0), (6, 1, 3));
    assert!(!content.2[0].1.contains("secret"), "{content:?}");

    let mut protobuf = wire::encode(Format::Protobuf, &keys(2));
    wire::append_protobuf_field(&[0x0a, 1, 7], &mut protobuf);
    let third = wire::encode(Format::Protobuf, &keys(1));
    let found = reasons(read_bytes([protobuf, third].concat()).unwrap());
    assert_eq!(found, [(2, "keyData has 1 bytes instead of 16".to_owned())]);
}

#[test]
fn a_file_that_is_cut_off_or_none_of_the_formats_is_an_error() {
    let json = String::from_utf8(wire::encode(Format::Json, &keys(3))).unwrap();
    for (bytes, expected) in [
        (json[..json.len() - 1].to_owned(), "input: not {\"keys\":[…]} as JSON: it ends too early"),
        (json[..json.len() - 20].to_owned(), "(after 2 keys)"),
        (format!("{json}{json}"), "unexpected content"),
        (json.replace("\"keys\"", "\"keis\"").replace('}', "}\n"), "unexpected content"),
        (r#"{"keys":{}}"#.into(), "unexpected content"),
        (r#"{"keys":[],"keys":[]}"#.into(), "unexpected content"),
        ("<html></html>".into(), "neither JSON"),
        ("PK\x03\x04 but no archive".into(), "input:"),
    ] {
        let problem = problem(bytes.clone());
        assert!(problem.contains(expected), "{bytes}: {problem}");
    }
    let protobuf = wire::encode(Format::Protobuf, &keys(3));
    assert!(problem(&protobuf[..protobuf.len() - 1]).contains("ends in the middle"), "cut off");
    for bytes in [
        &[0x0a, 0xff, 0xff, 0xff, 0x7f, 1][..],
        &[0x0b, 0],
        &[8, 1],
        &[0, 0],
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0],
        // A bit beyond the 64th, without which it would be an unknown field.
        &[0x90, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2, 0],
    ] {
        assert!(problem(bytes).contains("not a protobuf batch"), "{bytes:?}");
    }
    let missing = read_source(Source::file("/no/such/file")).unwrap_err().to_string();
    assert!(missing.starts_with("/no/such/file: cannot read it: No such file"), "{missing}");
}

#[test]
fn unknown_fields_of_protobuf_are_passed_over() {
    let keys = keys(2);
    let mut bytes = vec![0x10, 0x96, 1, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 0x22, 3, 9, 9, 9, 0x2d, 1, 2, 3, 4];
    bytes.extend(wire::encode(Format::Protobuf, &keys));
    assert_eq!(read_bytes(bytes).unwrap().1, keys);
}

#[test]
fn endless_input_ends() {
    let endless = |start: &str, byte: u8| {
        let read = read_source(Source::reader("input", Cursor::new(start.to_owned()).chain(repeat(byte))));
        read.unwrap_err().to_string()
    };
    let key = String::from_utf8(lines(&keys(1))).unwrap();
    for (start, byte) in [
        ("{\"keys\":[{\"keyData\":\"", b'A'),
        ("{\"keys\":[", b' '),
        ("{\"keys\":", b'['),
        ("{\"", b'A'),
        (key.as_str(), b'\n'),
        (key.as_str(), b'A'),
        // A field of 2^56 bytes, and fields without end.
        ("\x12\x7f\x7f\x7f", 0x10),
        ("\x12\x01", 0x10),
    ] {
        let problem = endless(start, byte);
        assert!(problem.contains("262144 bytes") || problem.contains("too early"), "{start}: {problem}");
    }
}

fn signer() -> ExportSigner {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let pem = EcKey::generate(&group).unwrap().private_key_to_pem().unwrap();
    ExportSigner::from_pem(&pem, "204", "v1").unwrap()
}

fn export(new: &[u8], revised: &[u8], signer: &ExportSigner) -> Vec<u8> {
    let entry = |section| {
        move |byte: &u8| {
            let key = TemporaryExposureKey {
                key_data: KeyData::new([*byte; 16]),
                rolling_start_interval_number: 2_676_960,
                rolling_period: 144,
                transmission_risk_level: byte.is_multiple_of(2).then_some(5),
                report_type: None,
                days_since_onset_of_symptoms: None,
            };
            (section, key)
        }
    };
    let keys = new.iter().map(entry(Section::New)).chain(revised.iter().map(entry(Section::Revised)));
    let out = Cursor::new(Vec::new());
    gaen::write(out, &ExportHeader::default(), keys, std::slice::from_ref(signer)).unwrap().0.into_inner()
}

#[test]
fn keys_of_both_lists_of_an_export_get_what_it_does_not_say() {
    let bytes = export(&[1, 2], &[3], &signer());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let on_disk = read_source(Source::file(file.path())).unwrap();
    let (format, keys, reasons) = read_bytes(bytes).unwrap();
    assert_eq!((format, &keys, &reasons), (on_disk.0, &on_disk.1, &on_disk.2));
    assert_eq!((format, reasons), (SourceFormat::Gaen, vec![]));
    let bytes: Vec<u8> = keys.iter().map(|key| key.key_data.as_bytes()[0]).collect();
    assert_eq!(bytes, [1, 2, 3]);
    let risks: Vec<i32> = keys.iter().map(|key| key.transmission_risk_level).collect();
    assert_eq!(risks, [0x7fff_ffff, 5, 0x7fff_ffff]);
    for key in keys.iter() {
        assert_eq!((key.origin, key.visited_countries()), (country("NL"), &[country("DE")][..]));
        assert_eq!(key.report_type, ReportType::Unknown);
    }
}

#[test]
fn an_export_of_another_signer_is_refused_when_one_is_named() {
    let signer = signer();
    let bytes = export(&[1], &[], &signer);
    let read = |key| {
        let defaults = GaenDefaults { key: Some(key), ..defaults() };
        let source = Source::reader("input", Cursor::new(bytes.clone()));
        source.read(&defaults, &CancellationToken::new(), &mut |_| ControlFlow::Continue(()))
    };
    assert!(read(signer.verifying_key().unwrap()).is_ok());
    let refused = read(self::signer().verifying_key().unwrap()).unwrap_err();
    assert!(matches!(refused.problem, SourceProblem::Gaen(_)), "{refused}");
    assert_eq!(refused.keys, 0);
}

#[test]
fn reading_can_be_broken_off_and_stopped() {
    for bytes in [
        wire::encode(Format::Json, &keys(9)),
        lines(&keys(9)),
        wire::encode(Format::Protobuf, &keys(9)),
        export(&[1, 2, 3], &[4], &signer()),
    ] {
        let mut read = 0;
        let source = Source::reader("input", Cursor::new(bytes.clone()));
        let broken_off = source.read(&defaults(), &CancellationToken::new(), &mut |_| {
            read += 1;
            if read == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(broken_off.is_ok(), "{broken_off:?}");
        assert_eq!(read, 2);
        let stop = CancellationToken::new();
        stop.cancel();
        let source = Source::reader("input", Cursor::new(bytes));
        let stopped = source.read(&defaults(), &stop, &mut |_| ControlFlow::Continue(()));
        assert!(matches!(stopped.unwrap_err().problem, SourceProblem::Stopped));
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_in_every_format(numbers in vec(any::<u32>(), 0..40)) {
        let mut batch = KeyBatch::new();
        for number in numbers {
            let key = DiagnosisKey { days_since_onset_of_symptoms: number as i32, ..key(number) };
            batch.push(key, &vec![country("ES"); number as usize % 4]);
        }
        for bytes in [wire::encode(Format::Json, &batch), lines(&batch), wire::encode(Format::Protobuf, &batch)] {
            prop_assert_eq!(read_bytes(bytes).unwrap().1, batch.clone());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        start in prop::sample::select(vec![&b""[..], b"{\"keys\":[{\"keyData\":", b"\x0a", b"PK\x03\x04", b"{\"a\":1}\n{"]),
        bytes in vec(any::<u8>(), 0..200),
    ) {
        drop(read_bytes([start, &bytes].concat()));
    }

    #[test]
    fn a_changed_file_is_read_or_refused_but_never_longer(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), format in 0..3_usize
    ) {
        let keys = keys(4);
        let mut bytes =
            [wire::encode(Format::Json, &keys), lines(&keys), wire::encode(Format::Protobuf, &keys)][format].clone();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok((_, read, reasons)) = read_bytes(bytes) {
            prop_assert!(read.len() + reasons.len() <= 5);
        }
    }
}
