//! What an upload is refused for, and in which order (spec §4.1.3, §5.2, §5.4).

use chrono::{Days, NaiveTime};
use efgs_protocol::{
    key::{DiagnosisKey, KeyBatch},
    media::Format,
    wire,
};
use serde_json::{Value, json};

use crate::{
    client::{Client, JSON, PROTOBUF, Request, keys, pick},
    harness::{Case, country, tests},
};

tests![
    a_key_out_of_range_refuses_the_upload_and_is_named,
    keys_at_the_edges_are_accepted,
    a_body_that_is_no_batch_of_keys_is_refused,
    unknown_fields_and_other_spellings_are_accepted,
    missing_repeated_and_malformed_headers_are_refused,
    media_types_are_versioned,
    a_signature_that_does_not_count_is_refused,
    the_checks_run_in_the_order_of_the_contract,
    too_many_keys_are_413,
    too_many_bytes_are_413_before_they_are_read,
    a_chunked_body_is_accepted,
];

async fn a_key_out_of_range_refuses_the_upload_and_is_named(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let now = case.clock.now();
    let oldest = (now.date_naive() - Days::new(15)).and_time(NaiveTime::MIN).and_utc().timestamp() / 600;
    let latest = now.timestamp() / 600 + 1;
    let cases = [
        ("keyData", json!("AAAAAAAAAAAAAAAAAAAA"), "keyData has 15 bytes"),
        ("keyData", json!("AAAAAAAAAAAAAAAAAAAAAAA="), "keyData has 17 bytes"),
        ("keyData", json!(""), "keyData has 0 bytes"),
        ("keyData", json!("AAAAAAAAAAAAAAAAAAAAAA"), "not padded standard base64"),
        ("rollingPeriod", json!(0), "rollingPeriod 0"),
        ("rollingPeriod", json!(145), "rollingPeriod 145"),
        ("rollingStartIntervalNumber", json!(oldest - 1), "too old"),
        ("rollingStartIntervalNumber", json!(0), "too old"),
        ("rollingStartIntervalNumber", json!(latest + 1), "in the future"),
        ("rollingStartIntervalNumber", json!(u32::MAX), "in the future"),
        ("transmissionRiskLevel", json!(9), "transmissionRiskLevel 9"),
        ("transmissionRiskLevel", json!(-1), "transmissionRiskLevel -1"),
        ("transmissionRiskLevel", json!(0x7fff_fffe), "transmissionRiskLevel 2147483646"),
        ("origin", json!("de"), "origin"),
        ("origin", json!("DEU"), "origin"),
        ("origin", json!(""), "origin"),
        ("visitedCountries", json!(["FR", "d1"]), "visitedCountries, entry 1"),
        ("reportType", json!("LOST"), "reportType \"LOST\""),
        ("reportType", json!(6), "reportType 6"),
    ];
    let good = keys(country("DE"), 3, now);
    for (field, value, reason) in cases {
        let mut body: Value = serde_json::from_slice(&wire::encode(Format::Json, &good)).unwrap();
        body["keys"][1][field] = value;
        let request = client.request_in(Format::Json, "a", &good).body(body.to_string());
        let message = client.send(request).await.refused(400, "invalid-key");
        assert!(message.starts_with("key 1: ") && message.contains(reason), "{field}: {message}");
    }
    // The same in protobuf, where the message is told alike.
    let changes: [fn(&mut DiagnosisKey); 2] =
        [|key| key.rolling_period = 145, |key| key.transmission_risk_level = -1];
    for change in changes {
        let mut bad = KeyBatch::new();
        for (i, key) in good.iter().enumerate() {
            let mut changed = *key;
            if i == 2 {
                change(&mut changed);
            }
            bad.push(changed, key.visited_countries());
        }
        let message = client.upload("a", &bad).await.refused(400, "invalid-key");
        assert!(message.starts_with("key 2: "), "{message}");
    }
    assert_eq!(case.db.counts().await, [0, 0, 0]);
}

async fn keys_at_the_edges_are_accepted(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let now = case.clock.now();
    let oldest = (now.date_naive() - Days::new(15)).and_time(NaiveTime::MIN).and_utc().timestamp() / 600;
    let latest = now.timestamp() / 600 + 1;
    let template = keys(country("DE"), 20, now);
    let mut edges = KeyBatch::new();
    let starts = [oldest as u32, latest as u32];
    let risks = [0, 8, 0x7fff_ffff, 0x07ff_ffff];
    let days = [4000, -1, i32::MIN, i32::MAX];
    for (i, key) in template.iter().enumerate() {
        let mut key = *key;
        key.rolling_period = [1, 144][i % 2];
        key.rolling_start_interval_number = starts[i % 2];
        key.transmission_risk_level = risks[i % 4];
        key.days_since_onset_of_symptoms = days[i % 4];
        edges.push(key, &[]);
    }
    client.send(client.request_in(Format::Json, "json", &pick(&edges, 0..10))).await.expect(201);
    client.upload("protobuf", &pick(&edges, 10..20)).await.expect(201);
    gateway.form().await;
    assert_eq!(gateway.client("NL").download(case.today(), None).await.keys(), edges);
}

async fn a_body_that_is_no_batch_of_keys_is_refused(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let good = keys(country("DE"), 1, case.clock.now());
    let protobuf = wire::encode(Format::Protobuf, &good);
    let secret = "Vmvn1xGWuCQ4ySbIUmVKhw==";
    let broken = format!(r#"{{"keys":[{{"keyData":"{secret}","rollingPeriod":"{secret}"}}]}}"#);
    let cases: [(&str, &[u8], &str); 11] = [
        (PROTOBUF, b"", "no-keys"),
        (JSON, b"{}", "no-keys"),
        (JSON, br#"{"keys":[]}"#, "no-keys"),
        (JSON, br#"{"keys":null}"#, "no-keys"),
        (JSON, b"", "malformed-body"),
        (JSON, b"[]", "malformed-body"),
        (JSON, br#"{"keys":["#, "malformed-body"),
        (JSON, &protobuf, "malformed-body"),
        (JSON, broken.as_bytes(), "malformed-body"),
        (PROTOBUF, &protobuf[..protobuf.len() - 1], "malformed-body"),
        (PROTOBUF, br#"{"keys":[]}"#, "malformed-body"),
    ];
    for (media, body, code) in cases {
        let request = client.request("a", &good).header("Content-Type", media).body(body);
        let message = client.send(request).await.refused(400, code);
        assert!(!message.contains(&secret[..8]), "key data in an error: {message}");
    }
}

async fn unknown_fields_and_other_spellings_are_accepted(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 2, case.clock.now());
    let mut body: Value = serde_json::from_slice(&wire::encode(Format::Json, &keys)).unwrap();
    body["comment"] = json!({"of": ["a", "later", "version"]});
    for key in body["keys"].as_array_mut().unwrap() {
        let key = key.as_object_mut().unwrap();
        let days = key.remove("days_since_onset_of_symptoms").unwrap();
        key.insert("daysSinceOnsetOfSymptoms".into(), days);
        let name = key["reportType"].as_str().unwrap().to_owned();
        key["reportType"] = json!(efgs_protocol::key::ReportType::from_name(&name).unwrap().number());
        key.insert("variant".into(), json!("alpha"));
    }
    let request = client.request_in(Format::Json, "json", &keys).body(body.to_string());
    client.send(request).await.expect(201);
    // Field 15 of the batch.
    let mut body = wire::encode(Format::Protobuf, &keys);
    body.extend([0x7a, 3, b'a', b'b', b'c']);
    client.send(client.request("json", &keys).body(body)).await.expect(201);
    assert_eq!(case.db.counts().await, [1, 2, 0]);
}

async fn missing_repeated_and_malformed_headers_are_refused(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 1, case.clock.now());
    let good = || client.request("a", &keys);
    for name in ["batchTag", "batchSignature", "Content-Type"] {
        let message = client.send(good().without(name)).await.refused(400, "invalid-header");
        assert!(message.contains(name), "{message}");
        let value = good().headers.iter().find(|(there, _)| there == name).unwrap().1.clone();
        client.send(good().also(name, value)).await.refused(400, "invalid-header");
    }
    for tag in ["", " ", "two words", "\u{e4}", &"x".repeat(65)] {
        client.send(good().header("batchTag", tag)).await.refused(400, "invalid-header");
    }
    let long = "A".repeat(16 * 1024 + 1);
    let message = client.send(good().header("batchSignature", long)).await.refused(400, "invalid-header");
    assert!(message.contains("16385"), "{message}");
    let longest = "A".repeat(16 * 1024);
    client.send(good().header("batchSignature", longest)).await.refused(400, "invalid-signature");
    client.send(good().header("Content-Encoding", "gzip")).await.refused(400, "invalid-header");
    client.send(good().header("Content-Encoding", "identity")).await.expect(201);
}

async fn media_types_are_versioned(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 1, case.clock.now());
    let accepted = [
        "application/protobuf;version=1.0",
        "Application/Protobuf ; Version=\"1.0\"",
        "application/protobuf; charset=utf-8; version=1.0.0",
        "application/protobuf; version=1.0; charset=utf-8",
    ];
    for media in accepted {
        client.send(client.request("a", &keys).header("Content-Type", media)).await.expect(201);
    }
    let refused = [
        "application/protobuf",
        "application/json",
        "application/x-protobuf; version=1.0",
        "application/octet-stream",
        "application/protobuf; version=1.1",
        "application/protobuf; version=2.0",
        "application/protobuf; version=1",
        "application/protobuf; version=one",
        "text/plain; version=1.0",
    ];
    for media in refused {
        let request = client.request("b", &keys).header("Content-Type", media);
        client.send(request).await.refused(406, "not-acceptable");
    }
    assert_eq!(case.db.counts().await, [1, 1, 0]);
}

async fn a_signature_that_does_not_count_is_refused(case: &Case) {
    use efgs_protocol::canonical::CanonicalKeys;
    use efgs_test_ca::cms::{Shape, sign};
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 2, case.clock.now());
    let bytes = CanonicalKeys::of(&keys).signed_bytes();
    let shaped = |shape: Shape| sign(&client.signing, &bytes, &shape).unwrap();
    let others = sign(&client.signing, b"something else", &Shape::default()).unwrap();
    let cases = [
        ("not base64", "***".to_owned()),
        ("not CMS", "AAAA".to_owned()),
        ("of other keys", others),
        ("with its content", shaped(Shape { attached: true, ..Shape::default() })),
        ("without the certificate", shaped(Shape { no_certificate: true, ..Shape::default() })),
    ];
    for (name, signature) in cases {
        let request = client.request("a", &keys).header("batchSignature", signature);
        let message = client.send(request).await.refused(400, "invalid-signature");
        assert!(!message.is_empty(), "{name}");
    }
    // One key more, one less, one changed: the signature is of the whole.
    let good = client.request("a", &keys);
    let fewer = wire::encode(Format::Protobuf, &pick(&keys, [0]));
    client.send(good.clone().body(fewer)).await.refused(400, "invalid-signature");
    let twice = wire::encode(Format::Protobuf, &pick(&keys, [0, 1, 0]));
    client.send(good.body(twice)).await.refused(400, "invalid-signature");
    assert_eq!(case.db.counts().await, [0, 0, 0]);
}

async fn the_checks_run_in_the_order_of_the_contract(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.upload.max_bytes = bytesize::ByteSize::b(4000);
        })
        .await;
    let client = gateway.client("DE");
    client.upload_new("taken", 1, case.clock.now()).await;
    let unregistered = gateway.client_with(Some(&gateway.client("DE").signing), "DE");
    let invalid = {
        let template = keys(country("DE"), 1, case.clock.now());
        let mut key = *template.get(0);
        key.rolling_period = 0;
        let mut batch = KeyBatch::new();
        batch.push(key, &[]);
        batch
    };
    // Everything is wrong at first; each step puts right what was complained of.
    let wrong = Request::new("POST", wire::UPLOAD_PATH).body(vec![b'x'; 5000]);
    unregistered.send(wrong.clone()).await.refused(403, "forbidden");
    client.send(wrong.clone()).await.refused(400, "invalid-header");
    let wrong = wrong.header("batchTag", "taken").header("batchSignature", "*").header("Content-Type", "*/*");
    client.send(wrong.clone()).await.refused(406, "not-acceptable");
    let wrong = wrong.header("Content-Type", PROTOBUF);
    client.send(wrong.clone()).await.refused(413, "body-too-large");
    let wrong = wrong.body([0xff]);
    client.send(wrong.clone()).await.refused(400, "malformed-body");
    let wrong = wrong.body(wire::encode(Format::Protobuf, &invalid));
    client.send(wrong.clone()).await.refused(400, "invalid-key");
    let foreign = keys(country("NL"), 1, case.clock.now());
    let wrong = wrong.body(wire::encode(Format::Protobuf, &foreign));
    client.send(wrong).await.refused(400, "invalid-signature");
    client.upload("taken", &foreign).await.refused(400, "foreign-origin");
    let own = keys(country("DE"), 1, case.clock.now());
    client.upload("taken", &own).await.refused(409, "upload-tag-taken");
    client.upload("free", &own).await.expect(201);
}

async fn too_many_keys_are_413(case: &Case) {
    let gateway = case.gateway_with(|config| config.upload.max_keys = 3).await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 4, case.clock.now());
    for format in Format::ALL {
        let message = client.send(client.request_in(format, "a", &keys)).await.refused(413, "too-many-keys");
        assert!(message.contains('3'), "{message}");
    }
    client.upload("a", &pick(&keys, 0..3)).await.expect(201);
}

async fn too_many_bytes_are_413_before_they_are_read(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.upload.max_bytes = bytesize::ByteSize::kib(64);
        })
        .await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 1, case.clock.now());
    let head = |framing: &str| {
        let raw = client.request("a", &keys).body("").raw();
        String::from_utf8(raw).unwrap().replace("Content-Length: 0", framing)
    };
    // Announced: answered without a byte of it.
    let mut connection = client.connect();
    connection.write(head("Content-Length: 65537").as_bytes()).unwrap();
    connection.answer().refused(413, "body-too-large");
    assert!(connection.is_closed());
    // Not announced: answered when the limit is passed, although the end never comes.
    let mut connection = client.connect();
    connection.write(head("Transfer-Encoding: chunked").as_bytes()).unwrap();
    let chunk = [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat();
    for _ in 0..5 {
        connection.write(&chunk).unwrap();
    }
    connection.answer().refused(413, "body-too-large");
    // The connection of a good client is not affected.
    client.upload("a", &keys).await.expect(201);
}

async fn a_chunked_body_is_accepted(case: &Case) {
    let gateway = case.gateway().await;
    let client: Client = gateway.client("DE");
    let keys = keys(country("DE"), 5, case.clock.now());
    let body = wire::encode(Format::Protobuf, &keys);
    let head = String::from_utf8(client.request("a", &keys).body("").raw()).unwrap();
    let mut raw = head.replace("Content-Length: 0", "Transfer-Encoding: chunked").into_bytes();
    for piece in body.chunks(50) {
        raw.extend(format!("{:x}\r\n", piece.len()).bytes());
        raw.extend_from_slice(piece);
        raw.extend_from_slice(b"\r\n");
    }
    raw.extend_from_slice(b"0\r\n\r\n");
    let mut connection = client.connect();
    connection.write(&raw).unwrap();
    assert_eq!(connection.answer().status, 201);
    assert_eq!(case.db.counts().await, [1, 5, 0]);
}
