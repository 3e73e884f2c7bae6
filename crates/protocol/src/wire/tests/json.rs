use serde_json::{Value, json};

use super::*;
use crate::key::{DiagnosisKey, MAX_VISITED, ReportType};

fn read(body: &str) -> Result<KeyBatch, DecodeError> {
    decode(Format::Json, body.as_bytes(), 100)
}

/// A key with its fields, some of them replaced.
fn object(changes: Value) -> Value {
    let mut object = json!({
        "keyData": "AAAAAAAAAAAAAAAAAAAAAA==",
        "rollingStartIntervalNumber": 2_987_136,
        "rollingPeriod": 144,
        "transmissionRiskLevel": 3,
        "visitedCountries": ["DE", "FR"],
        "origin": "NL",
        "reportType": "CONFIRMED_TEST",
        "days_since_onset_of_symptoms": 2,
    });
    for (name, value) in changes.as_object().unwrap() {
        object[name] = value.clone();
    }
    object
}

/// Reads a batch whose second key has other fields.
fn read_changed(changes: Value) -> Result<KeyBatch, DecodeError> {
    read(&json!({"keys": [object(json!({})), object(changes)]}).to_string())
}

fn invalid(changes: Value) -> InvalidReason {
    let (index, reason) = index_and_reason(read_changed(changes));
    assert_eq!(index, 1);
    reason
}

fn malformed(body: &str) -> String {
    match read(body) {
        Err(DecodeError::Malformed(text)) => text,
        other => unreachable!("{body}: {other:?}"),
    }
}

#[test]
fn the_text_of_a_key() {
    let mut batch = KeyBatch::new();
    batch.push(key(&[]), &[country("DE"), country("FR")]);
    let text = String::from_utf8(encode(Format::Json, &batch)).unwrap();
    assert_eq!(
        text,
        r#"{"keys":[{"keyData":"AAAAAAAAAAAAAAAAAAAAAA==","rollingStartIntervalNumber":2987136,"rollingPeriod":144,"transmissionRiskLevel":3,"visitedCountries":["DE","FR"],"origin":"NL","reportType":"CONFIRMED_TEST","days_since_onset_of_symptoms":2}]}"#
    );
    assert_eq!(read(&text), Ok(batch));
}

#[test]
fn keys_are_read_one_by_one() {
    let mut batch = KeyBatch::new();
    for key in three_keys().iter() {
        let mut text = Vec::new();
        encode_key(Format::Json, key, &mut text);
        decode_json_key(&text, &mut batch).unwrap();
    }
    assert_eq!(batch, three_keys());
    let refused = object(json!({"origin": "nl"})).to_string();
    match decode_json_key(refused.as_bytes(), &mut batch) {
        Err(DecodeError::InvalidKey(InvalidKey { index: 3, reason: InvalidReason::Origin(_) })) => {}
        other => unreachable!("{other:?}"),
    }
    for text in ["", "7", "[]", "{", "{}{}", r#"{"rollingPeriod":"144"}"#] {
        let read = decode_json_key(text.as_bytes(), &mut batch);
        assert!(matches!(read, Err(DecodeError::Malformed(_))), "{text}: {read:?}");
    }
    assert_eq!(batch, three_keys());
}

#[test]
fn zeroes_are_written() {
    let mut batch = KeyBatch::new();
    let zeroes = DiagnosisKey {
        rolling_start_interval_number: 0,
        rolling_period: 0,
        transmission_risk_level: 0,
        report_type: ReportType::Unknown,
        days_since_onset_of_symptoms: 0,
        ..key(&[])
    };
    batch.push(zeroes, &[]);
    let written: Value = serde_json::from_slice(&encode(Format::Json, &batch)).unwrap();
    assert_eq!(
        written["keys"][0],
        object(json!({
            "rollingStartIntervalNumber": 0, "rollingPeriod": 0, "transmissionRiskLevel": 0,
            "visitedCountries": [], "reportType": "UNKNOWN", "days_since_onset_of_symptoms": 0,
        }))
    );
}

#[test]
fn missing_fields_and_null_are_zero() {
    let zeroes = json!({
        "rollingStartIntervalNumber": null, "rollingPeriod": null, "transmissionRiskLevel": null,
        "visitedCountries": null, "reportType": null, "days_since_onset_of_symptoms": null,
    });
    let with_null = read_changed(zeroes).unwrap();
    let missing = read(r#"{"keys":[{"keyData":"AAAAAAAAAAAAAAAAAAAAAA==","origin":"NL"}]}"#).unwrap();
    assert_eq!(with_null.get(1), missing.get(0));
    assert_eq!(missing.get(0).report_type, ReportType::Unknown);
    assert!(missing.get(0).visited_countries().is_empty());

    for body in ["{}", r#"{"keys":null}"#, r#"{"keys":[]}"#] {
        assert_eq!(read(body), Err(DecodeError::Empty), "{body}");
    }
    let (index, reason) = index_and_reason(read(r#"{"keys":[{}]}"#));
    assert_eq!((index, reason), (0, InvalidReason::KeyDataLength { found: 0 }));
}

#[test]
fn both_names_of_the_days_since_onset() {
    let mut key = object(json!({"daysSinceOnsetOfSymptoms": -14}));
    key.as_object_mut().unwrap().remove("days_since_onset_of_symptoms");
    let batch = read(&json!({"keys": [key]}).to_string()).unwrap();
    assert_eq!(batch.get(0).days_since_onset_of_symptoms, -14);
}

#[test]
fn report_types_by_name_and_number() {
    for report_type in ReportType::ALL {
        for value in [json!(report_type.name()), json!(report_type.number())] {
            let batch = read_changed(json!({"reportType": value})).unwrap();
            assert_eq!(batch.get(1).report_type, report_type);
        }
    }
    for (value, found) in [
        (json!(6), "6"),
        (json!(-1), "-1"),
        (json!(u64::MAX), "18446744073709551615"),
        (json!(4_294_967_297u64), "4294967297"),
        (json!("confirmed_test"), r#""confirmed_test""#),
    ] {
        assert_eq!(invalid(json!({"reportType": value})), InvalidReason::ReportType { found: found.into() });
    }
}

#[test]
fn a_key_that_is_none_is_named() {
    for (text, found) in [("", 0), ("AAAAAAAAAAAAAAAAAAAA", 15), ("AAAAAAAAAAAAAAAAAAAAAAA=", 17)] {
        assert_eq!(invalid(json!({"keyData": text})), InvalidReason::KeyDataLength { found });
    }
    for text in ["AAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAA_A==", "AAAAAAAAAAAAAAAAAAAAAB=="] {
        assert_eq!(invalid(json!({"keyData": text})), InvalidReason::KeyDataNotBase64);
    }
    assert!(matches!(invalid(json!({"origin": "nl"})), InvalidReason::Origin(_)));
    assert!(matches!(
        invalid(json!({"visitedCountries": ["DE", "D", "also wrong"]})),
        InvalidReason::VisitedCountry { position: 1, .. }
    ));
    let visited = vec!["DE"; MAX_VISITED + 1];
    assert!(matches!(invalid(json!({"visitedCountries": visited})), InvalidReason::TooManyVisitedCountries));
    assert_ne!(
        invalid(json!({"visitedCountries": visited[1..], "keyData": ""})),
        InvalidReason::TooManyVisitedCountries
    );
}

#[test]
fn escapes_are_understood() {
    let batch = read(
        r#"{"\u006beys":[{"keyData":"\u0041AAAAAAAAAAAAAAAAAAAAA==","origin":"\u004eL","visitedCountries":["\u0044E"],"reportType":"\u0052EVOKED"}]}"#,
    );
    let batch = batch.unwrap();
    assert_eq!((batch.get(0).origin, batch.get(0).report_type), (country("NL"), ReportType::Revoked));
    assert_eq!(batch.get(0).visited_countries(), [country("DE")]);
}

#[test]
fn unknown_fields_are_ignored() {
    let body = json!({"a": [{}], "keys": [object(json!({"new": {"deep": [1, null]}}))], "z": 1.5});
    assert_eq!(read(&body.to_string()).unwrap().len(), 1);
}

#[test]
fn other_shapes_are_malformed() {
    let good = json!({"keys": [object(json!({}))]}).to_string();
    for body in [
        "",
        " ",
        "[]",
        "null",
        "1",
        r#"{"keys":{}}"#,
        r#"{"keys":[null]}"#,
        r#"{"keys":[["AAAAAAAAAAAAAAAAAAAAAA==",1,1,1,[],"NL",1,1]]}"#,
        r#"{"keys":[],"keys":[]}"#,
        r#"{"keys":[{"origin":"NL","origin":"DE"}]}"#,
        r#"{"keys":[{"days_since_onset_of_symptoms":1,"daysSinceOnsetOfSymptoms":1}]}"#,
        r#"{"keys":[{"rollingPeriod":-1}]}"#,
        r#"{"keys":[{"rollingPeriod":4294967296}]}"#,
        r#"{"keys":[{"rollingPeriod":"144"}]}"#,
        r#"{"keys":[{"visitedCountries":[null]}]}"#,
        r#"{"keys":[{"reportType":1.5}]}"#,
        r#"{"keys":[{"keyData":[0]}]}"#,
        &format!("{good}x"),
        &format!("{good}{good}"),
        &good[..good.len() - 1],
    ] {
        malformed(body);
    }
    assert_eq!(read(&format!(" {good}\n")).unwrap().len(), 1);
    assert!(matches!(
        decode(Format::Json, b"{\"keys\":[{\"origin\":\"\xff\xff\"}]}", 9),
        Err(DecodeError::Malformed(_))
    ));
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let depth = 1 << 20;
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let nest = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        let key = object(json!({})).to_string();
        let key = key.trim_end_matches('}');
        for body in [
            nest.clone(),
            format!(r#"{{"keys":{nest}}}"#),
            format!(r#"{{"unknown":{nest}}}"#),
            format!(r#"{{"keys":[{key},"unknown":{nest}}}]}}"#),
            format!(r#"{{"keys":[{{"visitedCountries":{nest}}}]}}"#),
        ] {
            let _ = read(&body);
        }
    }
}

#[test]
fn errors_say_where_but_quote_nothing() {
    let secret = "c2VjcmV0IGtleSBkYXRhIQ==";
    let text = malformed(&format!("{{\"keys\":[\n{{\"rollingPeriod\":\"{secret}\"}}]}}"));
    assert_eq!(
        text,
        "a JSON value of a wrong type or range, or a field that is given twice, at line 2 column 43, after 0 keys"
    );
    for changes in [json!({"keyData": format!("{secret}=")}), json!({"keyData": "c2VjcmV0"})] {
        let text = read_changed(changes).unwrap_err().to_string();
        assert!(!text.contains("c2VjcmV0"), "{text}");
    }
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "\\PC{0,60}|[\\[\\]{}\",:a-z0-9 ]{0,60}|\\{\"keys\":\\[[\\[\\]{}\",:a-z0-9]{0,40}") {
        let _ = read(&text);
    }

    #[test]
    fn any_value_in_any_field_is_answered(
        name in prop::sample::select(vec![
            "keyData", "rollingStartIntervalNumber", "rollingPeriod", "transmissionRiskLevel", "visitedCountries",
            "origin", "reportType", "days_since_onset_of_symptoms", "unknown",
        ]),
        value in prop::sample::select(vec![
            json!(null), json!(true), json!(0), json!(-1), json!(i64::MIN), json!(u64::MAX), json!(1.5), json!(1e300),
            json!(""), json!("NL"), json!([]), json!(["NL"]), json!([[]]), json!({}), json!({"a": {}}),
        ]),
    ) {
        if let Ok(batch) = read_changed(json!({name: value})) {
            prop_assert_eq!(decode(Format::Json, &encode(Format::Json, &batch), 100), Ok(batch));
        }
    }
}
