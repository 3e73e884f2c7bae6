//! Forming batches (spec §4.2.8).

use std::time::Duration;

use chrono::{Days, TimeDelta};
use efgs_gateway::{
    clock::Clock,
    store::{Formation, Job, StoreError},
};
use efgs_protocol::{batch_tag::ObjectId, key::KeyBatch};

use crate::{
    client::{all_at_once, join},
    harness::{Case, Running, tests, until},
};

tests![
    whole_uploads_in_their_order_up_to_the_limit,
    an_upload_larger_than_a_batch_forms_one_of_its_own,
    nothing_waits_and_nothing_is_formed,
    sequence_numbers_have_no_gaps_and_begin_anew_each_day,
    ids_increase_even_when_the_clock_goes_back_across_midnight,
    an_instance_with_a_slow_clock_continues_the_chain_of_the_other,
    two_instances_that_form_at_once_make_one_chain,
    a_full_batch_is_formed_at_once,
    what_waits_is_formed_when_the_interval_is_over,
    a_small_upload_is_downloadable_after_the_linger_time,
    steady_small_uploads_form_few_batches_over_two_instances,
    a_shortened_interval_holds_from_the_next_start_on,
    a_batch_that_is_visible_never_changes,
    a_lease_of_an_instance_that_died_is_taken_over,
    an_instance_whose_lease_was_taken_over_writes_nothing,
];

/// The batches in their order: name, day and number on it, upload tags.
async fn chain(case: &Case) -> Vec<(String, String, Vec<String>)> {
    let rows = case
        .db
        .rows(
            "SELECT b.id, b.day, b.sequence, u.upload_tag FROM batch b \
             LEFT JOIN upload u ON u.batch_id = b.id ORDER BY b.id, u.id",
        )
        .await;
    let mut chain: Vec<(String, String, Vec<String>)> = Vec::new();
    for row in rows {
        let id: Vec<u8> = row.try_get_by_index(0).unwrap();
        let id = ObjectId::from_bytes(id.try_into().unwrap()).to_string();
        let day: chrono::NaiveDate = row.try_get_by_index(1).unwrap();
        let sequence: i32 = row.try_get_by_index(2).unwrap();
        if chain.last().is_none_or(|last| last.0 != id) {
            chain.push((id, format!("{day} {sequence}"), Vec::new()));
        }
        let tag: Option<Vec<u8>> = row.try_get_by_index(3).unwrap();
        let tags = &mut chain.last_mut().unwrap().2;
        tags.extend(tag.map(|tag| String::from_utf8(tag).unwrap()));
    }
    chain
}

async fn whole_uploads_in_their_order_up_to_the_limit(case: &Case) {
    let gateway = case.gateway_with(|config| config.batching.max_keys = 10).await;
    let mut uploads: Vec<KeyBatch> = Vec::new();
    for (i, amount) in [4, 4, 4, 2, 4, 5, 5, 1].into_iter().enumerate() {
        let code = ["DE", "IT", "IE"][i % 3];
        uploads.push(gateway.client(code).upload_new(&i.to_string(), amount, case.clock.now()).await);
    }
    // Each full batch was formed at once; this takes what is left.
    gateway.form().await;
    let tags: Vec<Vec<String>> = chain(case).await.into_iter().map(|(_, _, tags)| tags).collect();
    assert_eq!(tags, [vec!["0", "1"], vec!["2", "3", "4"], vec!["5", "6"], vec!["7"]]);
    let reader = gateway.client("NL");
    let mut answer = reader.download(case.today(), None).await.expect(200);
    let mut seen = vec![answer.keys()];
    while answer.next() != "null" {
        answer = reader.download(case.today(), Some(&answer.next())).await.expect(200);
        seen.push(answer.keys());
    }
    assert_eq!(join(&seen.iter().collect::<Vec<_>>()), join(&uploads.iter().collect::<Vec<_>>()));
}

async fn an_upload_larger_than_a_batch_forms_one_of_its_own(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.batching.max_keys = 5;
        })
        .await;
    let client = gateway.client("DE");
    for (tag, amount) in [("a", 2), ("large", 12), ("b", 2)] {
        client.upload_new(tag, amount, case.clock.now()).await;
    }
    gateway.form().await;
    let tags: Vec<Vec<String>> = chain(case).await.into_iter().map(|(_, _, tags)| tags).collect();
    assert_eq!(tags, [["a"], ["large"], ["b"]]);
}

async fn nothing_waits_and_nothing_is_formed(case: &Case) {
    let gateway = case.gateway().await;
    assert!(gateway.form().await.is_empty());
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    assert_eq!(gateway.form().await.len(), 1);
    assert!(gateway.form().await.is_empty());
    assert_eq!(case.db.counts().await, [1, 1, 1]);
}

async fn form_one(gateway: &Running, tag: &str) -> String {
    gateway.client("DE").upload_new(tag, 1, gateway.app.clock.now()).await;
    gateway.form().await.remove(0)
}

async fn sequence_numbers_have_no_gaps_and_begin_anew_each_day(case: &Case) {
    let gateway = case.gateway().await;
    let day = case.today();
    let before_midnight = (day + Days::new(1)).and_time(chrono::NaiveTime::MIN).and_utc();
    form_one(&gateway, "a").await;
    case.clock.set(before_midnight - TimeDelta::microseconds(1));
    form_one(&gateway, "b").await;
    case.clock.set(before_midnight);
    form_one(&gateway, "c").await;
    form_one(&gateway, "d").await;
    case.clock.set(before_midnight + Days::new(3));
    form_one(&gateway, "e").await;
    let names: Vec<String> = chain(case).await.into_iter().map(|(_, name, _)| name).collect();
    let [next, later] = [day + Days::new(1), day + Days::new(4)];
    let expected = [format!("{day} 1"), format!("{day} 2"), format!("{next} 1"), format!("{next} 2")];
    assert_eq!(names[..4], expected);
    assert_eq!(names[4], format!("{later} 1"));
}

async fn ids_increase_even_when_the_clock_goes_back_across_midnight(case: &Case) {
    let gateway = case.gateway().await;
    let start = case.clock.now();
    let mut names = Vec::new();
    for (i, hours) in [0, -1, 13, 12, -6, -30, 13, 37].into_iter().enumerate() {
        case.clock.set(start + TimeDelta::hours(hours));
        names.push(form_one(&gateway, &i.to_string()).await);
    }
    let formed = chain(case).await;
    assert_eq!(formed.iter().map(|batch| batch.0.clone()).collect::<Vec<_>>(), names);
    assert!(names.is_sorted_by(|earlier, later| earlier < later), "{names:?}");
    let [day, next, later] = [0, 1, 2].map(|days| start.date_naive() + Days::new(days));
    let expected = [
        format!("{day} 1"),
        format!("{day} 2"),
        format!("{next} 1"),
        format!("{next} 2"),
        format!("{next} 3"),
        format!("{next} 4"),
        format!("{next} 5"),
        format!("{later} 1"),
    ];
    assert_eq!(formed.iter().map(|batch| batch.1.clone()).collect::<Vec<_>>(), expected);
    // The chain leads through all of them.
    let reader = gateway.client("NL");
    let mut answer = reader.download(day, None).await.expect(200);
    let mut seen = vec![answer.tag()];
    while answer.next() != "null" {
        answer = reader.download(day, Some(&answer.next())).await.expect(200);
        seen.push(answer.tag());
    }
    assert_eq!(seen, names);
}

async fn an_instance_with_a_slow_clock_continues_the_chain_of_the_other(case: &Case) {
    let ahead = case.gateway().await;
    let slow = Clock::manual(case.clock.now() - TimeDelta::hours(14));
    let behind = case.gateway_at(slow, |_| {}).await;
    let mut names = Vec::new();
    for tag in ["a", "b", "c", "d"] {
        names.push(form_one(&ahead, tag).await);
        names.push(form_one(&behind, &tag.to_uppercase()).await);
    }
    assert!(names.is_sorted_by(|earlier, later| earlier < later), "{names:?}");
    let days: Vec<String> = chain(case).await.into_iter().map(|(_, name, _)| name).collect();
    let expected: Vec<String> = (1..=8).map(|n| format!("{} {n}", case.today())).collect();
    assert_eq!(days, expected);
}

async fn two_instances_that_form_at_once_make_one_chain(case: &Case) {
    let small = |config: &mut efgs_gateway::config::Config| config.batching.max_keys = 4;
    let gateways = [case.gateway_with(small).await, case.gateway_with(small).await];
    for round in 0..5 {
        let uploads = (0..8).map(|i| {
            let (gateway, tag) = (&gateways[i % 2], format!("{round}-{i}"));
            async move { gateway.client("DE").upload_new(&tag, 2, gateway.app.clock.now()).await }
        });
        all_at_once(uploads).await;
        let formed = all_at_once((0..4).map(|i| gateways[i % 2].app.batching.form_now())).await;
        for result in formed {
            result.unwrap();
        }
    }
    let chain = chain(case).await;
    let mut tags: Vec<String> = chain.iter().flat_map(|(_, _, tags)| tags.clone()).collect();
    assert_eq!(tags.len(), 40, "each upload is in one batch");
    tags.sort_unstable();
    tags.dedup();
    assert_eq!(tags.len(), 40);
    assert_eq!(case.db.number("SELECT COUNT(*) FROM upload WHERE batch_id IS NULL").await, 0);
    // Both instances tell the same chain.
    for gateway in &gateways {
        let reader = gateway.client("NL");
        let mut answer = reader.download(case.today(), None).await.expect(200);
        let mut keys = answer.keys().len();
        while answer.next() != "null" {
            answer = reader.download(case.today(), Some(&answer.next())).await.expect(200);
            keys += answer.keys().len();
        }
        assert_eq!(keys, 80);
    }
}

async fn a_full_batch_is_formed_at_once(case: &Case) {
    let gateway = case.gateway_with(|config| config.batching.max_keys = 10).await;
    let client = gateway.client("DE");
    client.upload_new("a", 4, case.clock.now()).await;
    client.upload_new("b", 4, case.clock.now()).await;
    let reader = gateway.client("NL");
    reader.download(case.today(), None).await.refused(404, "batch-not-found");
    client.upload_new("c", 4, case.clock.now()).await;
    let answer = until("the full batch is formed", async || {
        let answer = reader.download(case.today(), None).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    // No further upload would have fitted; what is left waits for the interval.
    assert_eq!((answer.keys().len(), answer.next()), (8, "null".to_owned()));
    assert_eq!(case.db.number("SELECT COUNT(*) FROM upload WHERE batch_id IS NULL").await, 1);
}

async fn what_waits_is_formed_when_the_interval_is_over(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.batching.interval = Duration::from_millis(500);
        })
        .await;
    for tag in ["a", "b"] {
        let keys = gateway.client("DE").upload_new(tag, 2, case.clock.now()).await;
        until("the upload is in a batch", async || {
            let waiting = case.db.number("SELECT COUNT(*) FROM upload WHERE batch_id IS NULL").await;
            (waiting == 0).then_some(())
        })
        .await;
        let last = chain(case).await.pop().unwrap();
        let answer = gateway.client("NL").download(case.today(), Some(&last.0)).await.expect(200);
        assert_eq!(answer.keys(), keys);
    }
}

/// Waits until the job of an instance has completed a turn that began after this call.
async fn turn(case: &Case, gateway: &Running) {
    let job = || gateway.app.health.jobs().into_iter().find(|job| job.name == "batching").unwrap();
    // A turn that is under way may have begun before.
    for _ in 0..2 {
        case.clock.set(case.clock.now() + TimeDelta::microseconds(1));
        let now = case.clock.now();
        until("a turn of the job", async || (job().last_success >= now).then_some(())).await;
    }
}

/// As an operator has it without settings of his own.
fn defaults(config: &mut efgs_gateway::config::Config) {
    config.batching = efgs_gateway::config::Batching::default();
}

async fn a_small_upload_is_downloadable_after_the_linger_time(case: &Case) {
    let gateway = case.gateway_with(defaults).await;
    let reader = gateway.client("NL");
    let start = case.clock.now();
    let at = |ms| case.clock.set(start + TimeDelta::milliseconds(ms));
    let keys = gateway.client("DE").upload_new("a", 3, start).await;
    at(4900);
    turn(case, &gateway).await;
    reader.download(case.today(), None).await.refused(404, "batch-not-found");
    at(5000);
    turn(case, &gateway).await;
    assert_eq!(reader.download(case.today(), None).await.expect(200).keys(), keys);
    // The next one within the minute waits for its end, unless the batch is full.
    at(10_000);
    gateway.client("DE").upload_new("b", 3, start).await;
    at(64_900);
    turn(case, &gateway).await;
    assert_eq!(chain(case).await.len(), 1);
    at(65_100);
    turn(case, &gateway).await;
    assert_eq!(chain(case).await.len(), 2);
    at(66_000);
    gateway.client("DE").upload_new("c", 3000, start).await;
    gateway.client("IT").upload_new("d", 3000, start).await;
    turn(case, &gateway).await;
    let tags: Vec<Vec<String>> = chain(case).await.into_iter().map(|(_, _, tags)| tags).collect();
    assert_eq!(tags, [["a"], ["b"], ["c"]]);
}

async fn steady_small_uploads_form_few_batches_over_two_instances(case: &Case) {
    let gateways = [case.gateway_with(defaults).await, case.gateway_with(defaults).await];
    for i in 0..8 {
        let gateway = &gateways[i % 2];
        gateway.client("DE").upload_new(&i.to_string(), 1, case.clock.now()).await;
        case.clock.set(case.clock.now() + TimeDelta::seconds(20));
        for gateway in &gateways {
            turn(case, gateway).await;
        }
    }
    // At 20 s, 80 s and 140 s.
    let sizes: Vec<usize> = chain(case).await.iter().map(|(_, _, tags)| tags.len()).collect();
    assert_eq!(sizes, [1, 3, 3]);
}

async fn a_shortened_interval_holds_from_the_next_start_on(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    case.stop(&gateway).await;
    assert_eq!(chain(case).await.len(), 0);
    let gateway = case.gateway_with(|config| config.batching.interval = Duration::from_millis(500)).await;
    until("the upload is in a batch", async || (chain(case).await.len() == 1).then_some(())).await;
    case.stop(&gateway).await;
}

async fn a_batch_that_is_visible_never_changes(case: &Case) {
    let gateway = case.gateway().await;
    let reader = gateway.client("NL");
    let name = form_one(&gateway, "a").await;
    let before = reader.download(case.today(), Some(&name)).await.expect(200);
    for tag in ["b", "c"] {
        form_one(&gateway, tag).await;
        gateway.client("DE").upload_new(&format!("{tag} waits").replace(' ', "-"), 1, case.clock.now()).await;
    }
    for gateway in [&gateway, &case.gateway().await] {
        let after = gateway.client("NL").download(case.today(), Some(&name)).await.expect(200);
        assert_eq!(
            (after.body, after.headers.get("etag")),
            (before.body.clone(), before.headers.get("etag"))
        );
    }
}

async fn a_lease_of_an_instance_that_died_is_taken_over(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    // Another instance took it and was killed; by the database's clock its time is over soon.
    let now_ms = match case.db.kind {
        crate::database::Kind::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        _ => "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000 AS SIGNED)",
    };
    let taken = format!("UPDATE job SET owner = 'x', token = token + 1, expires_at = {now_ms} + 600");
    assert_eq!(case.db.execute(&format!("{taken} WHERE name = 'batching'")).await, 1);
    let started = std::time::Instant::now();
    assert_eq!(gateway.form().await.len(), 1);
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
}

async fn an_instance_whose_lease_was_taken_over_writes_nothing(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    let store = &gateway.app.store;
    // It was stopped for so long (a debugger, a full disk) that its time was over, and does not know it.
    let [batching, expiry] = [Job::Batching, Job::Expiry].map(|job| store.acquire_lease(job));
    let (batching, expiry) = (batching.await.unwrap().unwrap(), expiry.await.unwrap().unwrap());
    assert!(store.acquire_lease(Job::Batching).await.unwrap().is_none(), "one holder at a time");
    case.db.execute("UPDATE job SET expires_at = 0").await;
    let successor = store.acquire_lease(Job::Batching).await.unwrap().unwrap();
    let successor_of_expiry = store.acquire_lease(Job::Expiry).await.unwrap().unwrap();
    let how = Formation { now: case.clock.now(), max_keys: 10, only_full: false };
    let lost = store.form_batch(&batching, how).await.unwrap_err();
    assert!(matches!(lost, StoreError::LeaseLost), "{lost}");
    let tomorrow = case.today() + Days::new(1);
    let lost = store.expire_batched(&expiry, tomorrow).await.unwrap_err();
    assert!(matches!(lost, StoreError::LeaseLost), "{lost}");
    // Nor does it take its successor's lease away when it gives up its own.
    store.release_lease(batching).await.unwrap();
    assert!(store.acquire_lease(Job::Batching).await.unwrap().is_none());
    assert_eq!(case.db.counts().await, [1, 1, 0]);
    assert!(store.form_batch(&successor, how).await.unwrap().is_some());
    for lease in [successor, successor_of_expiry] {
        store.release_lease(lease).await.unwrap();
    }
}
