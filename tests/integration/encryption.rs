//! Encryption at rest (spec §8.2).

use std::{
    future::{Future as _, poll_fn},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
};

use efgs_gateway::{
    config::{Config, EncryptionKey},
    intake::Keyring,
    rotation,
    server::{App, Gateway},
};
use efgs_protocol::media::Format;

use crate::{
    client::{Answer, Client},
    full::to_the_schema_before,
    harness::{Case, tests},
};

tests![
    stored_payloads_hold_nothing_in_plain_and_no_two_look_alike,
    a_flipped_byte_is_a_plain_500_with_a_request_id,
    another_key_under_the_same_id_is_refused,
    a_key_that_is_not_configured_is_a_plain_500,
    a_gateway_does_not_start_without_a_key_that_is_needed,
    a_new_key_seals_what_comes_and_the_old_one_still_opens,
    keys_are_rotated_under_load_and_the_old_one_can_go,
    an_interrupted_rotation_is_continued,
    uploads_of_the_version_before_are_given_their_key,
    a_rotation_goes_on_behind_a_payload_that_does_not_open,
    the_operator_rotates_with_the_command,
    a_payload_moved_to_another_row_is_not_served,
];

async fn stored_payloads_hold_nothing_in_plain_and_no_two_look_alike(case: &Case) {
    let gateway = case.gateway().await;
    let keys = gateway.client("DE").upload_new("a", 50, case.clock.now()).await;
    let payloads: Vec<Vec<u8>> = case.db.column("SELECT payload FROM diagnosis_key").await;
    assert_eq!(payloads.len(), 50);
    for payload in &payloads {
        let contains = |needle: &[u8]| payload.windows(needle.len()).any(|window| window == needle);
        // 100 halves in 50 payloads at fewer than 200 places: random bytes contain one in 1 of 10^13 runs.
        for key in keys.iter() {
            let halves = key.key_data.as_bytes().as_chunks::<8>().0;
            assert!(!halves.iter().any(|half| contains(half)));
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

async fn another_key_under_the_same_id_is_refused(case: &Case) {
    let gateway = case.gateway().await;
    let mut config = case.config();
    config.encryption.keys[0].file.set_file_name("payload-2.key");
    let refused = async || {
        let app = App::new(config.clone(), case.clock.clone(), None).unwrap();
        let error = Gateway::start(app, true).await.unwrap_err().to_string();
        assert!(error.starts_with("encryption key 1 is not the one that this database knows"), "{error}");
    };
    // Before anything is stored, and also when the database is older than the marks of keys.
    refused().await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    gateway.form().await;
    assert_eq!(case.db.execute("DELETE FROM encryption_key").await, 1);
    refused().await;
    // Nor does one that runs take it over; if it did, what it cannot read would be a plain 500.
    gateway.files.all(&config).await;
    gateway.client("NL").download(case.today(), None).await.expect(200);
    let wrong = case.gateway().await;
    wrong.app.keyring.replace(&Keyring::load(&config.encryption).unwrap());
    plain_500(&wrong.client("NL").download(case.today(), None).await);
}

async fn a_key_that_is_not_configured_is_a_plain_500(case: &Case) {
    let gateway = case.gateway().await;
    // Nothing is stored yet: it starts.
    let without = case.gateway_with(|config| config.encryption.keys[0].id = 2).await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    gateway.form().await;
    plain_500(&without.client("NL").download(case.today(), None).await);
}

async fn a_gateway_does_not_start_without_a_key_that_is_needed(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    let mut config = case.config();
    config.encryption.keys[0].id = 2;
    let app = App::new(config.clone(), case.clock.clone(), None).unwrap();
    let error = Gateway::start(app, true).await.unwrap_err().to_string();
    assert!(error.starts_with("1 stored uploads are sealed with encryption key 1, which"), "{error}");
    // Nor does one that runs give it up.
    gateway.files.all(&config).await;
    assert_eq!(gateway.app.keyring.ids(), [1]);
}

/// First every instance learns the new key, then it becomes the first.
fn newest_first(config: &mut Config) {
    let file = config.encryption.keys[0].file.with_file_name("payload-2.key");
    config.encryption.keys.insert(0, EncryptionKey { id: 2, file });
}

/// The key that seals each stored payload.
async fn sealed_with(case: &Case) -> Vec<u8> {
    let payloads: Vec<Vec<u8>> =
        case.db.column("SELECT payload FROM diagnosis_key ORDER BY upload_id, position").await;
    payloads.iter().map(|payload| payload[3]).collect()
}

async fn keys_are_rotated_under_load_and_the_old_one_can_go(case: &Case) {
    let gateway = case.gateway().await;
    let now = case.clock.now();
    // More than one transaction takes.
    gateway.client("DE").upload_new("large", 1200, now).await;
    gateway.client("IT").upload_new("it", 3, now).await;
    let tag = gateway.form().await.remove(0);
    let before = gateway.client("NL").download(case.today(), Some(&tag)).await.expect(200);

    let mut config = case.config();
    newest_first(&mut config);
    gateway.files.all(&config).await;
    assert_eq!(gateway.app.keyring.ids(), [2, 1]);
    // Reads from the database, not from memory.
    let other = case.gateway_with(newest_first).await;
    let done = AtomicBool::new(false);
    let load = async {
        let mut rounds = 0;
        while !done.load(Ordering::SeqCst) || rounds < 3 {
            gateway.client("DE").upload_new(&format!("load-{rounds}"), 5, now).await;
            other.app.body_cache.forget(tag.parse().unwrap()).await;
            let answer = other.client("NL").download(case.today(), Some(&tag)).await.expect(200);
            assert!(answer.body == before.body);
            rounds += 1;
        }
    };
    let rotate = async {
        let rotated = rotation::rotate(&gateway.app.store, &gateway.app.keyring, |_| {}).await.unwrap();
        done.store(true, Ordering::SeqCst);
        rotated
    };
    let ((), rotated) = tokio::join!(load, rotate);
    assert_eq!((rotated.uploads, rotated.keys), (2, 1203));
    assert!(sealed_with(case).await.iter().all(|id| *id == 2));

    let only_new = |config: &mut Config| {
        newest_first(config);
        config.encryption.keys.truncate(1);
    };
    let mut config = case.config();
    only_new(&mut config);
    gateway.files.all(&config).await;
    assert_eq!(gateway.app.keyring.ids(), [2]);
    let without = case.gateway_with(only_new).await;
    let after = without.client("NL").download(case.today(), Some(&tag)).await.expect(200);
    assert!(after.body == before.body);
    assert_eq!(after.header("etag"), before.header("etag"));
}

async fn an_interrupted_rotation_is_continued(case: &Case) {
    let gateway = case.gateway_with(newest_first).await;
    gateway.app.keyring.replace(&Keyring::load(&case.config().encryption).unwrap());
    for tag in ["a", "b"] {
        gateway.client("DE").upload_new(tag, 700, case.clock.now()).await;
    }
    let mut config = case.config();
    newest_first(&mut config);
    gateway.files.all(&config).await;
    // It stops in the middle of the second upload.
    let mut stop = Box::pin(rotation::rotate(&gateway.app.store, &gateway.app.keyring, |_| {}));
    let new = "SELECT COUNT(*) FROM diagnosis_key WHERE SUBSTR(payload, 1, 4) = X'00000002'";
    // It goes on only while it is polled.
    let mut step = async || {
        let pending = poll_fn(|context| Poll::Ready(stop.as_mut().poll(context).is_pending()));
        assert!(pending.await, "it was not interrupted");
    };
    while case.db.number(new).await < 700 {
        step().await;
    }
    for _ in 0..3 {
        step().await;
        case.db.number(new).await;
    }
    drop(stop);
    // No upload needs two keys.
    assert_eq!(sealed_with(case).await, [[2; 700], [1; 700]].concat());
    let used = gateway.app.store.encryption_keys().await.unwrap();
    let used: Vec<_> = used.iter().map(|used| (used.id, used.uploads, used.keys)).collect();
    assert_eq!(used, [(1, 1, 700), (2, 1, 700)]);
    case.db.execute("UPDATE job SET owner = NULL WHERE name = 'rotation'").await;
    // Back to the key before, and forward again.
    let mut back = config.clone();
    back.encryption.keys.reverse();
    for (config, id) in [(&back, 1), (&config, 2)] {
        gateway.files.all(config).await;
        rotation::rotate(&gateway.app.store, &gateway.app.keyring, |_| {}).await.unwrap();
        assert!(sealed_with(case).await.iter().all(|sealed| *sealed == id));
    }
    assert_eq!(rotation::rotate(&gateway.app.store, &gateway.app.keyring, |_| {}).await.unwrap().uploads, 0);
    gateway.form().await;
    gateway.client("NL").download(case.today(), None).await.expect(200);
}

async fn uploads_of_the_version_before_are_given_their_key(case: &Case) {
    let old = case.gateway().await;
    let mut keys = vec![old.client("DE").upload_new("a", 2, case.clock.now()).await];
    let new = case.gateway_with(newest_first).await;
    keys.push(new.client("DE").upload_new("b", 2, case.clock.now()).await);
    new.form().await;
    case.stop(&old).await;
    case.stop(&new).await;
    let column = "ALTER TABLE upload ADD COLUMN key_id BIGINT NOT NULL DEFAULT -1";
    let index = "CREATE INDEX upload_key ON upload (key_id, id, amount)";
    // Also after it was interrupted, and by two instances at once.
    for done in [&[][..], &[column], &[column, index]] {
        to_the_schema_before(case).await;
        for statement in done {
            case.db.execute(statement).await;
        }
        let [one, two] =
            [(); 2].map(|()| App::new(case.config(), case.clock.clone(), None).unwrap().store.clone());
        let (first, second) = tokio::join!(one.migrate(), two.migrate());
        first.unwrap();
        second.unwrap();
        assert_eq!(case.db.column::<i64>("SELECT key_id FROM upload ORDER BY id").await, [1, 2]);
        assert_eq!(one.keys_in_use().await.unwrap(), [1, 2]);
        tokio::join!(one.close(), two.close());
    }
    let gateway = case.gateway_with(newest_first).await;
    let answer = gateway.client("NL").download(case.today(), None).await.expect(200);
    assert_eq!(answer.keys(), crate::client::join(&[&keys[0], &keys[1]]));
}

async fn a_rotation_goes_on_behind_a_payload_that_does_not_open(case: &Case) {
    let gateway = case.gateway().await;
    for tag in ["a", "b", "c"] {
        gateway.client("DE").upload_new(tag, 2, case.clock.now()).await;
    }
    let broken = case.db.number("SELECT id FROM upload ORDER BY id LIMIT 1 OFFSET 1").await;
    let break_it = "UPDATE diagnosis_key SET payload_hash = X'00' WHERE position = 1 AND upload_id =";
    assert_eq!(case.db.execute(&format!("{break_it} {broken}")).await, 1);
    let mut config = case.config();
    newest_first(&mut config);
    gateway.files.all(&config).await;
    let error =
        rotation::rotate(&gateway.app.store, &gateway.app.keyring, |_| {}).await.unwrap_err().to_string();
    assert!(
        error.starts_with("1 uploads do not open") && error.contains(&format!("upload {broken}:")),
        "{error}"
    );
    let mut sealed = sealed_with(case).await;
    sealed.sort_unstable();
    assert_eq!(sealed, [1, 1, 2, 2, 2, 2]);
}

async fn the_operator_rotates_with_the_command(case: &Case) {
    let gateway = case.gateway().await;
    for tag in ["a", "b"] {
        gateway.client("DE").upload_new(tag, 2, case.clock.now()).await;
    }
    let one = "{ id = 1, file = \"payload-1.key\" }";
    let two = "{ id = 2, file = \"payload-2.key\" }";
    let run = |command: &str, keys: &str| {
        let config = case.write_config(&case.config_text().replace(one, keys));
        let mut program = Command::new(env!("CARGO_BIN_EXE_efgs-gateway"));
        let output =
            program.args(["encryption", command, "--json", "--config"]).arg(config).output().unwrap();
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.success(), String::from_utf8(text).unwrap().trim().to_owned())
    };
    let state = |id: u32, state: &str, uploads: u32, keys: u32| {
        format!("{{\"id\":{id},\"keys\":{keys},\"state\":\"{state}\",\"uploads\":{uploads}}}")
    };
    let both = [two, one].join(", ");
    let (ok, text) = run("status", &both);
    assert!(
        ok && text.contains(&[state(2, "encrypts", 0, 0), state(1, "decrypts", 2, 4)].join(",")),
        "{text}"
    );
    let (ok, text) = run("rotate", two);
    assert!(!ok && text.contains("2 stored uploads are sealed with encryption key 1"), "{text}");
    let (ok, text) = run("status", two);
    assert!(!ok && text.contains(&state(1, "missing", 2, 4)), "{text}");
    assert_eq!(run("rotate", &both), (true, r#"{"key":2,"keys":4,"left":0,"uploads":2}"#.into()));
    let (ok, text) = run("status", &both);
    assert!(ok && text.contains(&[state(2, "encrypts", 2, 4), state(1, "unused", 0, 0)].join(",")), "{text}");
    assert!(run("status", two).0);
}

async fn a_new_key_seals_what_comes_and_the_old_one_still_opens(case: &Case) {
    let gateway = case.gateway().await;
    let mut keys = vec![gateway.client("DE").upload_new("a", 2, case.clock.now()).await];
    let rotated = case.gateway_with(newest_first).await;
    keys.push(rotated.client("DE").upload_new("b", 2, case.clock.now()).await);
    rotated.form().await;
    assert_eq!(sealed_with(case).await, [1, 1, 2, 2]);
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
