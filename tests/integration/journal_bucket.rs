//! A journal in an object store.

use std::{fs, time::Duration};

use chrono::{Days, TimeDelta};
use efgs_gateway::config::{Config, Journal};

use crate::{
    client::{all_at_once, keys},
    harness::{Case, country, tests, until},
    journal::app_on_other,
    journal_failures::warnings,
    object_store::{ACCESS_KEY, ObjectStore, REGION, SECRET_KEY},
};

tests![
    the_journal_can_be_in_an_object_store,
    only_days_that_are_too_old_are_listed_to_be_deleted,
    a_store_that_hangs_makes_no_gateway_unready,
    an_instance_that_has_lost_the_lease_leaves_the_rest_to_others,
];

fn bucket(case: &Case, store: &ObjectStore) -> Journal {
    for (name, text) in [("s3-access.key", ACCESS_KEY), ("s3-secret.key", SECRET_KEY)] {
        fs::write(case.folder.path().join(name), format!("{text}\n")).unwrap();
    }
    Journal {
        bucket: Some("efgs-journal".into()),
        endpoint: Some(store.endpoint.clone()),
        region: REGION.into(),
        prefix: "a federation/".into(),
        access_key_file: Some(case.folder.path().join("s3-access.key")),
        secret_key_file: Some(case.folder.path().join("s3-secret.key")),
        ..Journal::default()
    }
}

async fn the_journal_can_be_in_an_object_store(case: &Case) {
    let store = ObjectStore::start();
    let one = case.gateway_with(|config| config.journal = Some(bucket(case, &store))).await;
    let (de, nl) = (one.client("DE"), one.client("NL"));
    all_at_once((0..4).map(async |i| de.upload_new(&format!("d{i}"), 20, case.clock.now()).await)).await;
    one.form().await;
    let sent = keys(country("NL"), 3, case.clock.now());
    store.set_unreachable(true);
    nl.upload("n", &sent).await.refused(503, "unavailable");
    let warned = warnings(&one).await;
    assert!(
        warned.iter().any(|warning| warning.contains("503") && warning.contains("SlowDown")),
        "{warned:?}"
    );
    store.set_unreachable(false);
    nl.upload("n", &sent).await.expect(201);
    one.form().await;
    case.stop(&one).await;
    assert_eq!(store.refused(), Vec::<String>::new());
    assert!(
        store.names().len() > 3 && store.names().iter().all(|name| name.starts_with("a federation/2")),
        "{:?}",
        store.names()
    );

    let mut config = Config::clone(&app_on_other(case).await.config);
    config.journal = Some(bucket(case, &store));
    let app = efgs_gateway::server::App::new(config, case.clock.clone(), None).unwrap();
    app.store.migrate().await.unwrap();
    let done = efgs_gateway::journal::replay(&app.sources, None, false, |_| {}).await.unwrap();
    assert_eq!((done.uploads, done.keys, done.batches), (5, 83, 2));
    app.store.clone().close().await;
    store.stop().await;
}

async fn only_days_that_are_too_old_are_listed_to_be_deleted(case: &Case) {
    let store = ObjectStore::start();
    let one = case.gateway_with(|config| config.journal = Some(bucket(case, &store))).await;
    until("the first look", async || (!store.lists().is_empty()).then_some(())).await;
    let name = |day, number| format!("a federation/{day}/0000000000000001-{number:08}.efgsj");
    let first = case.today() - Days::new(20);
    // More days than are in one page of a list, and more objects of a day.
    for (day, objects) in [(0, 7), (1, 1), (2, 1), (15, 1)] {
        for number in 0..objects {
            store.insert(&name(first + Days::new(day), number), b"old");
        }
    }
    one.client("DE").upload_new("a", 1, case.clock.now()).await;
    store.lists();
    case.clock.set(case.clock.now() + TimeDelta::minutes(61));
    until("they are deleted", async || {
        (!store.names().iter().any(|name| name < &format!("a federation/{}", first + Days::new(3))))
            .then_some(())
    })
    .await;
    assert!(store.names().contains(&name(first + Days::new(15), 0)), "{:?}", store.names());
    assert!(store.names().iter().any(|name| name.contains(&case.today().to_string())));
    let mut lists = store.lists();
    lists.dedup();
    let below = |day| format!("a federation/{}/ ", first + Days::new(day));
    assert_eq!(lists, ["a federation/ /".to_owned(), below(0), below(1), below(2)]);
    case.stop(&one).await;
    store.stop().await;
}

async fn a_store_that_hangs_makes_no_gateway_unready(case: &Case) {
    let store = ObjectStore::start();
    let one = case
        .gateway_with(|config| {
            config.journal = Some(Journal { timeout: Duration::from_secs(4), ..bucket(case, &store) });
            config.database.timeout = Duration::from_millis(500);
            config.batching.interval = Duration::from_millis(200);
        })
        .await;
    one.client("DE").upload_new("a", 1, case.clock.now()).await;
    until("a batch", async || (case.db.number("SELECT COUNT(*) FROM batch").await == 1).then_some(())).await;
    store.set_silent(true);
    let sent = keys(country("DE"), 1, case.clock.now());
    let uploading = one.client("DE");
    let uploading = async { uploading.upload("b", &sent).await.refused(503, "unavailable") };
    // Until after the second attempt: the first one is the upload's.
    let failing = || warnings(&one);
    let looking = async {
        until("it has failed", async || {
            let reasons = one.app.readiness(Duration::from_secs(5)).await.reasons;
            assert_eq!(reasons, Vec::<String>::new());
            failing().await.iter().any(|w| w.contains("no answer in time")).then_some(())
        })
        .await;
        let since = std::time::Instant::now();
        until("the job has tried again", async || {
            let reasons = one.app.readiness(Duration::from_secs(5)).await.reasons;
            assert_eq!(reasons, Vec::<String>::new());
            (since.elapsed() > Duration::from_secs(5)).then_some(())
        })
        .await;
    };
    futures_util::future::join(uploading, looking).await;
    store.set_silent(false);
    one.client("DE").upload("b", &sent).await.expect(201);
    until("a batch", async || (case.db.number("SELECT COUNT(*) FROM batch").await == 2).then_some(())).await;
    case.stop(&one).await;
    store.stop().await;
}

async fn an_instance_that_has_lost_the_lease_leaves_the_rest_to_others(case: &Case) {
    let store = ObjectStore::start();
    let one = case
        .gateway_with(|config| {
            config.journal = Some(Journal { timeout: Duration::from_secs(50), ..bucket(case, &store) });
        })
        .await;
    for i in 0..10 {
        one.client("DE").upload_new(&format!("a{i}"), 1, case.clock.now()).await;
    }
    store.set_silent(true);
    case.clock.set(case.clock.now() + TimeDelta::seconds(11));
    one.app.store.journal_everything().await.unwrap();
    let held = "SELECT COUNT(*) FROM job WHERE name = 'journal' AND owner IS NOT NULL";
    until("it has the lease", async || (case.db.number(held).await == 1).then_some(())).await;
    // It seems to be dead: another one takes over.
    let taken = "UPDATE job SET owner = 'another', token = token + 1, expires_at = 9000000000000 WHERE name = 'journal'";
    case.db.execute(taken).await;
    store.set_silent(false);
    until("it notices", async || {
        let job = one.app.health.jobs().into_iter().find(|job| job.name == "journal").unwrap();
        job.last_error.filter(|error| error.contains("has passed to another instance"))
    })
    .await;
    let waiting = case.db.number("SELECT COUNT(*) FROM journal_pending_upload").await;
    assert!(waiting >= 2, "{waiting} are left");
    case.db.execute("UPDATE job SET owner = NULL, expires_at = 0 WHERE name = 'journal'").await;
    case.stop(&one).await;
    store.stop().await;
}
