#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use efgs_protocol::{
    key::KeyBatch,
    media::{Format, MediaType, SUPPORTED},
    wire,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::*;
use crate::{
    callback::register::Callback,
    http::schema::{example_audit, example_batch},
};

/// Names of headers that are not the protocol's own.
const STANDARD: [&str; 7] =
    ["Accept", "Accept-Encoding", "Allow", "Content-Type", "ETag", "If-None-Match", "Retry-After"];

struct Document(Value);

impl Document {
    fn new() -> Self {
        Self(serde_json::to_value(ApiDoc::openapi()).unwrap())
    }

    fn schema(&self, name: &str) -> &Value {
        &self.0["components"]["schemas"][name]
    }

    /// Whether a value is what its schema says, with every field and no other.
    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let refuse = |reason: &str| Err(format!("{at}: {reason}: {value} is not {schema}"));
        if let Some(reference) = schema["$ref"].as_str() {
            let target = self.0.pointer(&reference[1..]);
            return self.check(target.ok_or(format!("{reference} leads nowhere"))?, value, at);
        }
        let within = |number: i64| {
            schema["minimum"].as_i64().is_none_or(|least| number >= least)
                && schema["maximum"].as_i64().is_none_or(|most| number <= most)
        };
        match (schema["type"].as_str(), value) {
            (Some("object"), Value::Object(fields)) => {
                let described = schema["properties"].as_object().unwrap();
                let names: BTreeSet<_> = fields.keys().collect();
                let required: BTreeSet<_> = schema["required"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|name| name.as_str().unwrap())
                    .collect();
                if names != described.keys().collect() || !names.iter().eq(&required) {
                    return refuse("other fields");
                }
                fields.iter().try_for_each(|(name, field)| {
                    self.check(&described[name], field, &format!("{at}.{name}"))
                })
            }
            (Some("array"), Value::Array(items)) => {
                items.iter().try_for_each(|item| self.check(&schema["items"], item, &format!("{at}[]")))
            }
            (Some("string"), Value::String(_)) => match schema["enum"].as_array() {
                Some(names) if !names.contains(value) => refuse("another name"),
                _ => Ok(()),
            },
            (Some("integer"), Value::Number(number)) if number.as_i64().is_some_and(within) => Ok(()),
            _ => refuse("another type or range"),
        }
    }

    /// A value that is sent is what the document says, and an example of the document is what is sent.
    fn same<T: Serialize + DeserializeOwned>(&self, name: &str, example: &Value) {
        let sent = serde_json::to_value(serde_json::from_value::<T>(example.clone()).unwrap()).unwrap();
        assert_eq!(&sent, example, "{name}");
        self.check(self.schema(name), &sent, name).unwrap();
    }

    /// All JSON objects of the document.
    fn objects(&self) -> Vec<&serde_json::Map<String, Value>> {
        let (mut found, mut waiting) = (Vec::new(), vec![&self.0]);
        while let Some(value) = waiting.pop() {
            match value {
                Value::Array(items) => waiting.extend(items),
                Value::Object(fields) => {
                    waiting.extend(fields.values());
                    found.push(fields);
                }
                _ => {}
            }
        }
        found
    }
}

fn decode(batch: &Value) -> Result<KeyBatch, wire::DecodeError> {
    wire::decode(Format::Json, batch.to_string().as_bytes(), 1)
}

fn key_with(field: &str, value: impl Into<Value>) -> Value {
    let mut batch = example_batch();
    batch["keys"][0][field] = value.into();
    batch
}

#[test]
fn what_is_sent_has_the_fields_of_the_document_and_no_others() {
    let document = Document::new();
    let batch = wire::encode(Format::Json, &decode(&example_batch()).unwrap());
    let batch: Value = serde_json::from_slice(&batch).unwrap();
    assert_eq!(batch, example_batch());
    document.check(document.schema("DiagnosisKeyBatch"), &batch, "batch").unwrap();
    for entry in example_audit().as_array().unwrap() {
        document.same::<AuditEntry>("AuditEntry", entry);
    }
    document.same::<MultiStatus>("MultiStatus", &json!({"201": [0], "409": [1], "500": [2]}));
    let callback = Callback { callback_id: "a".into(), url: "https://a.example/".into() };
    document
        .check(document.schema("Callback"), &serde_json::to_value(callback).unwrap(), "callback")
        .unwrap();
}

#[test]
fn the_names_of_report_types_and_codes_are_those_that_are_sent() {
    let document = Document::new();
    let types = ReportType::ALL.map(|report_type| json!(report_type.name()));
    assert_eq!(document.schema("ReportType")["enum"], json!(types));
    for (number, name) in types.iter().enumerate() {
        let [by_name, by_number] =
            [name.clone(), json!(number)].map(|value| decode(&key_with("reportType", value)).unwrap());
        assert_eq!(by_name, by_number);
        let sent: Value = serde_json::from_slice(&wire::encode(Format::Json, &by_number)).unwrap();
        assert_eq!(sent, key_with("reportType", name.clone()));
    }
    for code in document.schema("Code")["enum"].as_array().unwrap() {
        document.same::<ErrorBody>("ErrorBody", &json!({"message": "", "code": code}));
    }
}

#[test]
fn the_ranges_of_a_keys_numbers_are_those_that_are_accepted() {
    let document = Document::new();
    let mut ranges = 0;
    for (field, schema) in document.schema("DiagnosisKey")["properties"].as_object().unwrap() {
        if schema["type"] != "integer" {
            continue;
        }
        // A number below the range is refused, and so is one above; without a limit the type's is.
        let valid = |number: i64| {
            let now = "2026-11-22T12:00:00Z".parse().unwrap();
            decode(&key_with(field, number)).is_ok_and(|keys| match schema.get("maximum") {
                Some(_) => keys.validate(now).is_ok(),
                None => true,
            })
        };
        let least = schema["minimum"].as_i64().unwrap_or(i32::MIN.into());
        assert!(valid(least) && !valid(least - 1), "{field}");
        if let Some(most) = schema["maximum"].as_i64() {
            assert!(valid(most) && !valid(most + 1), "{field}");
            ranges += 1;
        }
    }
    assert_eq!(ranges, 1, "the rolling period has a range");
}

#[test]
fn every_example_of_a_body_is_what_its_schema_says() {
    let document = Document::new();
    let mut bodies = 0;
    for object in document.objects() {
        // Those of parameters are texts.
        if let (Some(schema), Some(example @ (Value::Object(_) | Value::Array(_)))) =
            (object.get("schema"), object.get("example"))
        {
            document.check(schema, example, "an example").unwrap();
            bodies += 1;
        }
    }
    assert!(bodies > 20, "{bodies}");
}

#[test]
fn a_value_that_is_not_as_the_schema_says_is_noticed() {
    let document = Document::new();
    let key = &example_batch()["keys"][0];
    let check = |field: &str, value: Option<Value>| {
        let mut key = key.clone();
        match value {
            Some(value) => drop(key.as_object_mut().unwrap().insert(field.to_owned(), value)),
            None => drop(key.as_object_mut().unwrap().remove(field)),
        }
        document.check(document.schema("DiagnosisKey"), &key, "key")
    };
    check("origin", Some(json!("DE"))).unwrap();
    for (field, value) in [
        ("origin", None),
        ("origin", Some(json!(1))),
        ("more", Some(json!(1))),
        ("rollingPeriod", Some(json!(145))),
        ("rollingPeriod", Some(json!("1"))),
        ("reportType", Some(json!("GUESSED"))),
        ("visitedCountries", Some(json!([1]))),
    ] {
        assert!(check(field, value.clone()).is_err(), "{field}: {value:?}");
    }
}

#[test]
fn every_format_and_header_is_named_as_it_is_on_the_wire() {
    let document = Document::new();
    let named = |format| MediaType { format, version: SUPPORTED }.to_string();
    for text in [
        &document.0["paths"][wire::ROOT_PATH]["options"]["responses"]["200"]["headers"]["Accept"]["description"],
        &document.0["paths"][wire::UPLOAD_PATH]["post"]["parameters"][2]["description"],
        &document.0["paths"][wire::DOWNLOAD_PATH.to_owned() + "/{date}"]["get"]["parameters"][2]["description"],
    ] {
        let text = text.as_str().unwrap();
        for format in Format::ALL {
            // A new format does not compile here until it is in ALL.
            match format {
                Format::Protobuf | Format::Json => assert!(text.contains(&named(format)), "{text}"),
            }
        }
    }
    let (mut headers, mut contents) = (BTreeSet::new(), BTreeSet::new());
    for object in document.objects() {
        if object.get("in") == Some(&json!("header")) {
            headers.insert(object["name"].as_str().unwrap());
        }
        let names =
            |key: &str| object.get(key).and_then(Value::as_object).into_iter().flat_map(|map| map.keys());
        headers.extend(names("headers").map(String::as_str));
        contents.extend(names("content").map(String::as_str));
    }
    let own = [wire::BATCH_TAG, wire::NEXT_BATCH_TAG, wire::BATCH_SIGNATURE, wire::WITHDRAWN_UPLOADS];
    headers.retain(|name| !STANDARD.contains(name));
    assert_eq!(headers, own.into());
    // What is versioned, and what is not.
    assert_eq!(contents, [named(Format::Json).as_str(), "application/json"].into());
}

#[test]
fn answers_that_all_operations_share_are_written_once() {
    let document = Document::new();
    let answers = document.0["components"]["responses"].as_object().unwrap();
    assert_eq!(answers.len(), 4);
    let mut operations = 0;
    for (path, methods) in document.0["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap().iter().filter(|(name, _)| *name != "options")
        {
            operations += 1;
            for status in ["403", "429", "503"] {
                let answer = &operation["responses"][status];
                let shared =
                    answer["$ref"].as_str().map(|reference| document.0.pointer(&reference[1..]).unwrap());
                let own = answer["description"].is_string();
                assert!(shared.is_some() || own, "{method} {path}: {status}");
                assert!(!shared.is_some_and(Value::is_null));
            }
        }
    }
    assert_eq!(operations, 7);
}
