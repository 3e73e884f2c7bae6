//! Forgetting after 14 days (spec §4.2.6).

use chrono::{Days, NaiveTime, TimeDelta};
use efgs_gateway::store::ExpiryStep;
use efgs_protocol::key::{DiagnosisKey, KeyBatch};

use crate::{
    client::{Client, keys},
    database::Kind,
    harness::{Case, country, tests, until},
};

tests![
    an_upload_that_a_batch_takes_is_not_expired_beside_it,
    what_is_too_old_is_not_served_from_the_first_moment,
    expiry_deletes_all_rows_in_steps_and_keeps_the_newest_batch,
    an_upload_whose_keys_are_gone_does_not_stop_what_comes_behind_it,
    what_was_never_in_a_batch_expires_too,
    what_is_young_enough_stays_while_older_is_deleted,
    keys_that_expired_stay_taken_until_they_are_too_old,
    expiry_goes_on_while_countries_upload_and_download,
    the_job_expires_by_itself,
    another_retention_is_heeded_everywhere,
];

/// The first moment at which what was formed now is too old.
fn end_of_life(case: &Case) -> chrono::DateTime<chrono::Utc> {
    (case.today() + Days::new(15)).and_time(NaiveTime::MIN).and_utc()
}

async fn what_is_too_old_is_not_served_from_the_first_moment(case: &Case) {
    let gateway = case.gateway().await;
    let reader = gateway.client("NL");
    gateway.client("DE").upload_new("a", 3, case.clock.now()).await;
    let batch = gateway.form().await.remove(0);
    let (day, end) = (case.today(), end_of_life(case));
    case.clock.set(end - TimeDelta::microseconds(1));
    assert_eq!(reader.download(day, None).await.expect(200).keys().len(), 3);
    assert_eq!(reader.audit(day, &batch).await.expect(200).audit().len(), 1);
    case.clock.set(end);
    // The rows are still there, and the batch was in memory a moment ago.
    assert_eq!(case.db.counts().await, [1, 3, 1]);
    for gateway in [&gateway, &case.gateway().await] {
        let reader = gateway.client("NL");
        reader.download(day, None).await.refused(410, "gone");
        reader.download(day, Some(&batch)).await.refused(410, "gone");
        reader.audit(day, &batch).await.refused(410, "gone");
        // Nor with a date that is young enough.
        let today = case.today();
        let answer = reader.download(today, Some(&batch)).await;
        assert!([400, 404].contains(&answer.status), "{}", answer.text());
        reader.audit(today, &batch).await.refused(404, "batch-not-found");
        reader.download(day + Days::new(1), None).await.refused(404, "batch-not-found");
    }
}

async fn expiry_deletes_all_rows_in_steps_and_keeps_the_newest_batch(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let mut names = Vec::new();
    for (tag, amount) in [("a", 1), ("b", 2300), ("c", 1000), ("d", 1001)] {
        client.upload_new(tag, amount, case.clock.now()).await;
        names.extend(gateway.form().await);
    }
    assert_eq!(case.db.counts().await, [4, 4302, 4]);
    case.clock.set(end_of_life(case));
    let done = gateway.app.expiry.expire_now().await.unwrap();
    assert_eq!(done, ExpiryStep { keys: 4302, uploads: 4, batches: 3 });
    assert_eq!(case.db.counts().await, [0, 0, 1]);
    assert!(gateway.app.expiry.expire_now().await.unwrap().is_empty());
    // The newest stays, so that names keep growing, even if the clock were wrong now.
    case.clock.set(case.clock.now() - Days::new(20));
    client.upload_new("e", 1, case.clock.now()).await;
    let next = gateway.form().await.remove(0);
    assert!(names.iter().all(|name| *name < next), "{names:?} {next}");
}

async fn an_upload_whose_keys_are_gone_does_not_stop_what_comes_behind_it(case: &Case) {
    let gateway = case.gateway().await;
    for (tag, amount) in [("a", 1500), ("b", 3)] {
        gateway.client("DE").upload_new(tag, amount, case.clock.now()).await;
        gateway.form().await;
    }
    let gone = "DELETE FROM diagnosis_key WHERE upload_id = (SELECT MIN(id) FROM upload)";
    assert_eq!(case.db.execute(gone).await, 1500);
    case.clock.set(end_of_life(case));
    // Keys that go with their partition are not counted one by one.
    let keys = if case.db.kind == Kind::Sqlite { 3 } else { 1503 };
    let done = gateway.app.expiry.expire_now().await.unwrap();
    assert_eq!(done, ExpiryStep { keys, uploads: 2, batches: 1 });
    assert_eq!(case.db.counts().await, [0, 0, 1]);
}

async fn what_was_never_in_a_batch_expires_too(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 5, case.clock.now()).await;
    case.clock.set(end_of_life(case) - TimeDelta::microseconds(1));
    assert!(gateway.app.expiry.expire_now().await.unwrap().is_empty());
    case.clock.set(case.clock.now() + TimeDelta::microseconds(1));
    assert_eq!(gateway.app.expiry.expire_now().await.unwrap().keys, 5);
    assert_eq!(case.db.counts().await, [0, 0, 0]);
}

async fn what_is_young_enough_stays_while_older_is_deleted(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let day = case.today();
    let mut uploads = Vec::new();
    for i in 0..4 {
        uploads.push(client.upload_new(&i.to_string(), 3, case.clock.now()).await);
        gateway.form().await;
        case.clock.set(case.clock.now() + Days::new(1));
    }
    // The first two of the four days are over.
    case.clock.set((day + Days::new(16)).and_time(NaiveTime::MIN).and_utc());
    let done = gateway.app.expiry.expire_now().await.unwrap();
    assert_eq!(done, ExpiryStep { keys: 6, uploads: 2, batches: 2 });
    let reader = gateway.client("NL");
    let third = reader.download(day + Days::new(2), None).await.expect(200);
    assert_eq!(third.keys(), uploads[2]);
    let fourth = reader.download(day + Days::new(2), Some(&third.next())).await.expect(200);
    assert_eq!((fourth.keys(), fourth.next()), (uploads[3].clone(), "null".to_owned()));
}

/// The same key data, as a phone would never send it: with the date of today.
fn renewed(old: &KeyBatch, case: &Case) -> KeyBatch {
    let mut batch = KeyBatch::new();
    for key in old.iter() {
        let start = case.clock.now().timestamp() as u32 / 600 / 144 * 144;
        batch.push(DiagnosisKey { rolling_start_interval_number: start, ..*key }, key.visited_countries());
    }
    batch
}

async fn keys_that_expired_stay_taken_until_they_are_too_old(case: &Case) {
    // A key's own date is at most 15 days old, so with a retention of 5 days the very same key would still pass.
    let gateway = case.gateway_with(|config| config.retention.days = 5).await;
    let client = gateway.client("DE");
    let keys = renewed(&keys(country("DE"), 10, case.clock.now()), case);
    client.upload("a", &keys).await.expect(201);
    gateway.form().await;
    case.clock.set(case.clock.now() + Days::new(6));
    client.upload("b", &keys).await.expect(207);
    gateway.app.expiry.expire_now().await.unwrap();
    assert_eq!(case.db.counts().await, [0, 0, 1]);
    assert_eq!(case.db.number("SELECT COUNT(*) FROM key_hash").await, 10);
    client.upload("b", &keys).await.expect(207);
    // The tag is free.
    client.upload_new("a", 1, case.clock.now()).await;
    // Too old to be uploaded, the hashes go too.
    case.clock.set(case.clock.now() + Days::new(11));
    client.upload("b", &keys).await.refused(400, "invalid-key");
    gateway.app.expiry.expire_now().await.unwrap();
    assert_eq!(case.db.number("SELECT COUNT(*) FROM key_hash").await, 1);
}

async fn expiry_goes_on_while_countries_upload_and_download(case: &Case) {
    let gateway = case.gateway().await;
    let old = gateway.client("IT");
    for i in 0..4 {
        old.upload_new(&i.to_string(), 1500, case.clock.now()).await;
        gateway.form().await;
    }
    case.clock.set(end_of_life(case));
    let now = case.clock.now();
    let traffic = async {
        let mut served = 0;
        for i in 0..10 {
            gateway.client("DE").upload_new(&i.to_string(), 20, now).await;
            gateway.form().await;
            served += 1;
            let answer = gateway.client("NL").download(case.today(), None).await.expect(200);
            assert_eq!(answer.keys().len(), 20);
        }
        served
    };
    let (done, served) = futures_util::future::join(gateway.app.expiry.expire_now(), traffic).await;
    assert_eq!((done.unwrap().keys, served), (6000, 10));
    assert_eq!(case.db.number("SELECT COUNT(*) FROM diagnosis_key").await, 200);
    assert!(gateway.app.expiry.expire_now().await.unwrap().keys == 0);
}

async fn the_job_expires_by_itself(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.retention.interval = std::time::Duration::from_millis(300);
        })
        .await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    gateway.form().await;
    case.clock.set(end_of_life(case));
    until("the rows are deleted", async || (case.db.counts().await == [0, 0, 1]).then_some(())).await;
}

async fn another_retention_is_heeded_everywhere(case: &Case) {
    let gateway = case.gateway_with(|config| config.retention.days = 2).await;
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    let batch = gateway.form().await.remove(0);
    let day = case.today();
    let reader: Client = gateway.client("NL");
    case.clock.set(case.clock.now() + Days::new(2));
    reader.download(day, Some(&batch)).await.expect(200);
    case.clock.set(case.clock.now() + Days::new(1));
    let message = reader.download(day, Some(&batch)).await.refused(410, "gone");
    assert!(message.contains(&(day + Days::new(1)).to_string()), "{message}");
    assert_eq!(gateway.app.expiry.expire_now().await.unwrap().keys, 1);
}

async fn an_upload_that_a_batch_takes_is_not_expired_beside_it(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 2300, case.clock.now()).await;
    case.clock.set(case.clock.now() + Days::new(20));
    // Both jobs at once, on what was never in a batch: either takes the upload whole.
    let (formed, expired) = tokio::join!(gateway.app.batching.form_now(), gateway.app.expiry.expire_now());
    match formed.unwrap().len() {
        0 => assert_eq!(expired.unwrap().keys, 2300),
        _ => {
            assert_eq!(expired.unwrap().keys, 0);
            assert_eq!(
                gateway.client("NL").download(case.today(), None).await.expect(200).keys().len(),
                2300
            );
        }
    }
}
