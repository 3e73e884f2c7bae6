//! Uploads that are accepted, repeated and in conflict (spec §5.4).

use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::TimeDelta;
use efgs_protocol::{
    canonical::CanonicalKeys, certificate::CertificateType, country::Country, key::KeyBatch, media::Format,
    wire,
};
use efgs_test_ca::cms::{self, Shape};
use serde_json::json;

use crate::{
    client::{Client, Request, all_at_once, join, keys, pick},
    harness::{Case, PKI, country, output_of, tests},
};

tests![
    an_upload_is_answered_201_with_its_tag_and_an_empty_body,
    a_retry_is_answered_201_and_stores_nothing_twice,
    a_retry_after_the_signing_certificate_was_replaced_is_409,
    the_same_tag_with_other_keys_is_409_and_changes_nothing,
    a_tag_that_differs_only_in_case_or_at_its_end_is_another_tag,
    two_countries_use_the_same_tag,
    a_207_stores_nothing_and_leaves_the_tag_free,
    a_key_that_repeats_is_a_conflict_of_the_later_one,
    a_conflict_in_the_last_of_2500_keys_stores_nothing,
    of_uploads_at_once_that_share_keys_one_is_stored_and_no_other_fails,
    uploads_at_once_that_overlap_in_a_ring_never_fail,
    the_same_upload_sent_eight_times_at_once_is_stored_once,
    every_signature_shape_of_real_backends_is_accepted,
    a_sha1_signature_needs_the_participants_permission,
    the_largest_values_fit_their_columns,
];

async fn an_upload_is_answered_201_with_its_tag_and_an_empty_body(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    for (tag, format) in [("2020-9-28-Ab+/c==-0", Format::Protobuf), ("1", Format::Json)] {
        let keys = keys(country("DE"), 3, case.clock.now());
        let answer = client.send(client.request_in(format, tag, &keys)).await.expect(201);
        assert_eq!(answer.tag(), tag);
        assert!(answer.body.is_empty());
        assert_eq!(answer.header("content-length"), Some("0"));
        assert_eq!(answer.header("content-type"), None);
    }
    assert_eq!(case.db.counts().await, [2, 6, 0]);
}

async fn a_retry_is_answered_201_and_stores_nothing_twice(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let keys = client.upload_new("a", 5, case.clock.now()).await;
    case.clock.set(case.clock.now() + TimeDelta::hours(2));
    let reversed = pick(&keys, (0..5).rev());
    for again in [&keys, &reversed] {
        for format in Format::ALL {
            let answer = client.send(client.request_in(format, "a", again)).await.expect(201);
            assert_eq!((answer.tag().as_str(), answer.body.len()), ("a", 0));
        }
    }
    assert_eq!(case.db.counts().await, [1, 5, 0]);
    // Also when the upload is in a batch already.
    gateway.form().await;
    client.upload("a", &reversed).await.expect(201);
    assert_eq!(case.db.counts().await, [1, 5, 1]);
    assert_eq!(gateway.client("NL").download(case.today(), None).await.expect(200).keys(), keys);
}

async fn a_retry_after_the_signing_certificate_was_replaced_is_409(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let keys = client.upload_new("a", 2, case.clock.now()).await;
    let request = efgs_test_ca::Request::new(CertificateType::Signing, "DE");
    let second = PKI.identity(country("DE"), CertificateType::Signing, &request).unwrap();
    gateway.register(&[&second]).await;
    let message = client.signing_with(&second).upload("a", &keys).await.refused(409, "upload-tag-taken");
    assert!(message.contains(" a ") && message.contains("DE"), "{message}");
    assert_eq!(case.db.counts().await, [1, 2, 0]);
}

async fn the_same_tag_with_other_keys_is_409_and_changes_nothing(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let first = client.upload_new("a", 3, case.clock.now()).await;
    let other = keys(country("DE"), 3, case.clock.now());
    client.upload("a", &other).await.refused(409, "upload-tag-taken");
    // Fewer, more, and some of the keys under the same tag are "something else" too.
    client.upload("a", &pick(&first, 0..2)).await.refused(409, "upload-tag-taken");
    client.upload("a", &join(&[&first, &other])).await.refused(409, "upload-tag-taken");
    assert_eq!(case.db.counts().await, [1, 3, 0]);
    client.upload("b", &other).await.expect(201);
}

async fn a_tag_that_differs_only_in_case_or_at_its_end_is_another_tag(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    for tag in ["tag", "TAG", "tag.", "tagg", "t%61g"] {
        client.upload_new(tag, 1, case.clock.now()).await;
    }
    assert_eq!(case.db.counts().await, [5, 5, 0]);
}

async fn two_countries_use_the_same_tag(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("1", 2, case.clock.now()).await;
    gateway.client("NL").upload_new("1", 2, case.clock.now()).await;
    assert_eq!(case.db.counts().await, [2, 4, 0]);
}

async fn a_207_stores_nothing_and_leaves_the_tag_free(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let there = client.upload_new("first", 2, case.clock.now()).await;
    let new = keys(country("DE"), 3, case.clock.now());
    // In the request's order: new, there, new, there, new.
    let mixed = pick(&join(&[&new, &there]), [0, 3, 1, 4, 2]);
    for format in Format::ALL {
        let answer = client.send(client.request_in(format, "second", &mixed)).await.expect(207);
        assert_eq!(answer.text(), r#"{"201":[0,2,4],"409":[1,3],"500":[]}"#);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(case.db.counts().await, [1, 2, 0]);
    }
    let rest = pick(&mixed, [0, 2, 4]);
    client.upload("second", &rest).await.expect(201);
    assert_eq!(case.db.counts().await, [2, 5, 0]);
    // Sent again with the keys that are there under its own tag, it is something else.
    client.upload("second", &mixed).await.refused(409, "upload-tag-taken");
    client.upload("third", &mixed).await.expect(207);
    gateway.form().await;
    assert_eq!(
        gateway.client("NL").download(case.today(), None).await.expect(200).keys(),
        join(&[&there, &rest])
    );
}

async fn a_key_that_repeats_is_a_conflict_of_the_later_one(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 2, case.clock.now());
    let answer = client.upload("a", &pick(&keys, [0, 1, 0, 1, 0])).await.expect(207);
    assert_eq!(answer.json(), json!({"201": [0, 1], "409": [2, 3, 4], "500": []}));
    assert_eq!(case.db.counts().await, [0, 0, 0]);
    client.upload("a", &keys).await.expect(201);
    let answer = client.upload("b", &pick(&keys, [0, 0])).await.expect(207);
    assert_eq!(answer.json(), json!({"201": [], "409": [0, 1], "500": []}));
}

async fn a_conflict_in_the_last_of_2500_keys_stores_nothing(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    // Hashes are written in the order of the keys' days, 2,500 in one INSERT: the largest is in the last INSERT.
    let all = keys(country("DE"), 2501, case.clock.now());
    let hashes = CanonicalKeys::of(&all).payload_hashes();
    let last = (0..all.len()).max_by_key(|i| (all.get(*i).rolling_day(), hashes[*i])).unwrap();
    let there = pick(&all, [last]);
    let new = pick(&all, (0..all.len()).filter(|i| *i != last));
    client.upload("a", &there).await.expect(201);
    let answer = client.upload("b", &join(&[&new, &there])).await.expect(207);
    assert_eq!(answer.json()["409"], json!([2500]));
    assert_eq!(case.db.counts().await, [1, 1, 0]);
    client.upload("b", &new).await.expect(201);
    assert_eq!(case.db.counts().await, [2, 2501, 0]);
}

async fn of_uploads_at_once_that_share_keys_one_is_stored_and_no_other_fails(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    for round in 0..3 {
        let before = case.db.counts().await;
        let shared = keys(country("DE"), 20, case.clock.now());
        let uploads: Vec<KeyBatch> = (0..8)
            .map(|_| {
                let mixed = join(&[&keys(country("DE"), 20, case.clock.now()), &shared]);
                let order: Vec<usize> = shuffled(mixed.len());
                pick(&mixed, order)
            })
            .collect();
        let tags: Vec<String> = (0..8).map(|i| format!("{round}-{i}")).collect();
        let answers =
            all_at_once(tags.iter().zip(&uploads).map(|(tag, keys)| client.upload(tag, keys))).await;
        let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 207, 207, 207, 207, 207, 207, 207]);
        for (answer, keys) in answers.iter().zip(&uploads).filter(|(answer, _)| answer.status == 207) {
            let conflicts: Vec<usize> = (0..keys.len())
                .filter(|i| shared.iter().any(|key| key.key_data == keys.get(*i).key_data))
                .collect();
            assert_eq!(answer.json()["409"], json!(conflicts));
        }
        let after = case.db.counts().await;
        assert_eq!([after[0] - before[0], after[1] - before[1]], [1, 40]);
    }
}

async fn uploads_at_once_that_overlap_in_a_ring_never_fail(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    for round in 0..3 {
        let parts: Vec<KeyBatch> = (0..8).map(|_| keys(country("DE"), 15, case.clock.now())).collect();
        let uploads: Vec<KeyBatch> = (0..8).map(|i| join(&[&parts[i], &parts[(i + 1) % 8]])).collect();
        let tags: Vec<String> = (0..8).map(|i| format!("{round}-{i}")).collect();
        let answers =
            all_at_once(tags.iter().zip(&uploads).map(|(tag, keys)| client.upload(tag, keys))).await;
        let stored: Vec<usize> = (0..8).filter(|i| answers[*i].status == 201).collect();
        assert!(!stored.is_empty(), "all were refused, though one came first");
        for (i, answer) in answers.iter().enumerate() {
            let neighbour = stored.contains(&((i + 1) % 8)) || stored.contains(&((i + 7) % 8));
            assert_eq!(answer.status, if stored.contains(&i) { 201 } else { 207 }, "{}", answer.text());
            assert!(stored.contains(&i) != neighbour, "upload {i} of {stored:?}");
        }
    }
}

async fn the_same_upload_sent_eight_times_at_once_is_stored_once(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 50, case.clock.now());
    let answers = all_at_once((0..8).map(|_| client.upload("a", &keys))).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [201; 8]);
    assert_eq!(case.db.counts().await, [1, 50, 0]);
}

async fn every_signature_shape_of_real_backends_is_accepted(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let others = vec![gateway.client("NL").signing.certificate.clone(), PKI.server.certificate.clone()];
    let shapes = [
        ("no-attributes", Shape { no_attributes: true, ..Shape::default() }),
        ("key-identifier", Shape { key_identifier: true, ..Shape::default() }),
        ("other-certificates", Shape { other_certificates: others, ..Shape::default() }),
        ("ber", Shape { ber: true, ..Shape::default() }),
    ];
    for (name, shape) in shapes {
        let keys = keys(country("DE"), 2, case.clock.now());
        let signature = sign(&client, &keys, &shape);
        client.send(client.request(name, &keys).header("batchSignature", signature)).await.expect(201);
    }
    // Without padding, and with spaces and tabs that folding left.
    let keys = keys(country("DE"), 2, case.clock.now());
    let mut folded = sign(&client, &keys, &Shape::default());
    folded.insert_str(100, " \t ");
    let folded = folded.trim_end_matches('=');
    client.send(client.request("folded", &keys).header("batchSignature", folded)).await.expect(201);
}

fn sign(client: &Client, keys: &KeyBatch, shape: &Shape) -> String {
    cms::sign(&client.signing, &CanonicalKeys::of(keys).signed_bytes(), shape).unwrap()
}

/// An upload whose signature uses SHA-1.
pub(crate) fn sha1_request(case: &Case, client: &Client, tag: &str, keys: &KeyBatch) -> Request {
    let folder = case.folder.path();
    std::fs::write(folder.join("signed-bytes"), CanonicalKeys::of(keys).signed_bytes()).unwrap();
    let pem = format!("{}{}", client.signing.certificate.pem(), client.signing.key_pem);
    std::fs::write(folder.join("signer.pem"), pem).unwrap();
    let arguments = "cms -sign -binary -md sha1 -signer signer.pem -in signed-bytes -outform DER";
    let der = output_of("openssl", &arguments.split(' ').collect::<Vec<_>>(), folder);
    client.request(tag, keys).header("batchSignature", BASE64_STANDARD.encode(der))
}

async fn a_sha1_signature_needs_the_participants_permission(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.participants.entry(country("IE")).or_default().allow_sha1_signatures = true;
        })
        .await;
    for (code, status) in [("IE", 201), ("DE", 400)] {
        let client = gateway.client(code);
        let keys = keys(country(code), 2, case.clock.now());
        let answer = client.send(sha1_request(case, &client, "a", &keys)).await.expect(status);
        if status == 400 {
            assert!(answer.refused(400, "invalid-signature").contains("SHA-1"));
        }
    }
}

async fn the_largest_values_fit_their_columns(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let tag = "~".repeat(64);
    let template = keys(country("DE"), 1, case.clock.now());
    // As many as a key may have.
    let visited: Vec<Country> = (0..676u32)
        .map(|i| country(&String::from_utf8(vec![b'A' + (i / 26) as u8, b'A' + (i % 26) as u8]).unwrap()))
        .collect();
    let mut large = KeyBatch::new();
    for _ in 0..500 {
        let mut key = *template.get(0);
        key.key_data = efgs_protocol::key::KeyData::new(rand::random());
        key.days_since_onset_of_symptoms = i32::MIN;
        large.push(key, &visited);
    }
    // As much signature as a header may hold.
    let mut shape = Shape::default();
    let mut signature = sign(&client, &large, &shape);
    while signature.len() < 15_500 {
        let request = efgs_test_ca::Request::new(CertificateType::Signing, "DE");
        shape.other_certificates.push(request.self_signed().unwrap().certificate);
        signature = sign(&client, &large, &shape);
    }
    assert!(signature.len() <= 16 * 1024);
    client.send(client.request(&tag, &large).header("batchSignature", &signature)).await.expect(201);
    let batch = gateway.form().await.remove(0);
    let reader = gateway.client("NL");
    let download = reader.download(case.today(), None).await.expect(200);
    assert_eq!(download.body, wire::encode(Format::Protobuf, &large));
    assert_eq!(reader.audit(case.today(), &batch).await.expect(200).audit()[0].batch_signature, signature);
}

/// 0..n in any order.
fn shuffled(n: usize) -> Vec<usize> {
    let mut order: Vec<(u64, usize)> = (0..n).map(|i| (rand::random(), i)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, i)| i).collect()
}
