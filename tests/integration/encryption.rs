//! Encryption at rest (spec §8.2).

use efgs_gateway::config::{Config, EncryptionKey};
use efgs_protocol::media::Format;

use crate::{
    client::{Answer, Client},
    harness::{Case, tests},
};

tests![
    stored_payloads_hold_nothing_in_plain_and_no_two_look_alike,
    a_flipped_byte_is_a_plain_500_with_a_request_id,
    another_key_under_the_same_id_is_a_plain_500,
    a_key_that_is_not_configured_is_a_plain_500,
    keys_can_be_rotated,
    a_payload_moved_to_another_row_is_not_served,
];

async fn stored_payloads_hold_nothing_in_plain_and_no_two_look_alike(case: &Case) {
    let gateway = case.gateway().await;
    let keys = gateway.client("DE").upload_new("a", 50, case.clock.now()).await;
    let payloads: Vec<Vec<u8>> = case.db.column("SELECT payload FROM diagnosis_key").await;
    assert_eq!(payloads.len(), 50);
    for payload in &payloads {
        let contains = |needle: &[u8]| payload.windows(needle.len()).any(|window| window == needle);
        for key in keys.iter() {
            assert!(!contains(&key.key_data.as_bytes()[..4]));
        }
        assert_eq!(payload[..4], [0, 0, 0, 1], "the key's id");
    }
    let nonces: std::collections::HashSet<&[u8]> = payloads.iter().map(|payload| &payload[4..16]).collect();
    assert_eq!(nonces.len(), 50);
}

/// A plain 500: nothing of the reason, but an id that is also in the log.
fn plain_500(answer: &Answer) {
    let message = answer.refused(500, "internal");
    let id = answer.header("x-request-id").unwrap();
    assert!(message.contains(id), "{message}");
    for leak in ["encryption", "key ", "payload", "upload", "src/"] {
        assert!(!message.contains(leak), "{message}");
    }
}

async fn a_flipped_byte_is_a_plain_500_with_a_request_id(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 3, case.clock.now()).await;
    gateway.form().await;
    let payload: Vec<Vec<u8>> = case.db.column("SELECT payload FROM diagnosis_key WHERE position = 1").await;
    for at in [4, 16, payload[0].len() - 1] {
        let mut flipped = payload[0].clone();
        flipped[at] ^= 1;
        let hex: String = flipped.iter().map(|byte| format!("{byte:02x}")).collect();
        let update = format!("UPDATE diagnosis_key SET payload = X'{hex}' WHERE position = 1");
        assert_eq!(case.db.execute(&update).await, 1);
        for format in Format::ALL {
            let media = crate::client::media(format);
            let request = Client::download_request(case.today(), None).header("Accept", media);
            plain_500(&gateway.client("NL").send(request.clone()).await);
            plain_500(&gateway.client("NL").send(request.header("Accept-Encoding", "gzip")).await);
        }
    }
    // Put right again it is served: the failure was not remembered.
    let hex: String = payload[0].iter().map(|byte| format!("{byte:02x}")).collect();
    case.db.execute(&format!("UPDATE diagnosis_key SET payload = X'{hex}' WHERE position = 1")).await;
    gateway.client("NL").download(case.today(), None).await.expect(200);
}

async fn another_key_under_the_same_id_is_a_plain_500(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    gateway.form().await;
    let other = |config: &mut Config| config.encryption.keys[0].file.set_file_name("payload-2.key");
    let wrong = case.gateway_with(other).await;
    plain_500(&wrong.client("NL").download(case.today(), None).await);
    gateway.client("NL").download(case.today(), None).await.expect(200);
}

async fn a_key_that_is_not_configured_is_a_plain_500(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    gateway.form().await;
    let without = case.gateway_with(|config| config.encryption.keys[0].id = 2).await;
    plain_500(&without.client("NL").download(case.today(), None).await);
}

async fn keys_can_be_rotated(case: &Case) {
    let gateway = case.gateway().await;
    let mut keys = vec![gateway.client("DE").upload_new("a", 2, case.clock.now()).await];
    // First every instance learns the new key, then it becomes the first.
    let newest_first = |config: &mut Config| {
        let file = config.encryption.keys[0].file.with_file_name("payload-2.key");
        config.encryption.keys.insert(0, EncryptionKey { id: 2, file });
    };
    let rotated = case.gateway_with(newest_first).await;
    keys.push(rotated.client("DE").upload_new("b", 2, case.clock.now()).await);
    rotated.form().await;
    let ids: Vec<Vec<u8>> = case.db.column("SELECT payload FROM diagnosis_key ORDER BY upload_id").await;
    assert_eq!(ids.iter().map(|payload| payload[3]).collect::<Vec<_>>(), [1, 1, 2, 2]);
    let answer = rotated.client("NL").download(case.today(), None).await.expect(200);
    assert_eq!(answer.keys(), crate::client::join(&[&keys[0], &keys[1]]));
}

async fn a_payload_moved_to_another_row_is_not_served(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    gateway.form().await;
    let first: Vec<Vec<u8>> = case.db.column("SELECT payload FROM diagnosis_key WHERE position = 0").await;
    let hex: String = first[0].iter().map(|byte| format!("{byte:02x}")).collect();
    case.db.execute(&format!("UPDATE diagnosis_key SET payload = X'{hex}' WHERE position = 1")).await;
    plain_500(&gateway.client("NL").download(case.today(), None).await);
}
