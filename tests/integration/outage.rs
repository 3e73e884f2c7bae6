//! The database server is killed and comes back.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use efgs_gateway::store::{Job, Store};

use crate::{
    client::{all_at_once, keys},
    harness::{Case, Running, tests, until},
    process::{Sent, all_in_batches, download_all, sorted, verify},
};

tests![
    a_killed_database_server_loses_no_acknowledged_upload,
    a_lease_that_could_not_be_given_back_is_taken_again_at_once,
];

/// One country that uploads all the time.
pub(crate) struct Uploading<'a> {
    pub(crate) gateway: &'a Running,
    pub(crate) code: &'a str,
    /// What its tags begin with.
    name: String,
    acknowledged: AtomicUsize,
}

impl<'a> Uploading<'a> {
    pub(crate) fn new(gateway: &'a Running, code: &'a str, name: String) -> Self {
        Self { gateway, code, name, acknowledged: AtomicUsize::new(0) }
    }

    /// One upload after another until told to stop. An outage may be told as 503, and as nothing else.
    pub(crate) async fn until(&self, stop: &AtomicBool) -> Vec<Sent> {
        let client = self.gateway.client(self.code);
        let mut sent = Vec::new();
        for i in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let keys = keys(client.country(), 1 + rand::random_range(0..40), self.gateway.app.clock.now());
            let tag = format!("{}-{i}", self.name);
            let answer = client.upload(&tag, &keys).await;
            assert!([201, 503].contains(&answer.status), "{}: {}", answer.status, answer.text());
            self.acknowledged.fetch_add(usize::from(answer.status == 201), Ordering::Relaxed);
            sent.push(Sent { tag, keys, acknowledged: answer.status == 201 });
        }
        sent
    }

    /// Waits until more of its uploads have been acknowledged.
    pub(crate) async fn goes_on(&self) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        until("uploads are acknowledged", async || {
            (self.acknowledged.load(Ordering::Relaxed) > before + 2).then_some(())
        })
        .await;
    }
}

/// 503 also when only reads are served.
pub(crate) async fn readiness(gateway: &Running) -> u16 {
    let (code, body) = crate::health::ready(gateway).await;
    // Readers are served.
    if body["status"] == "degraded" { 503 } else { code }
}

async fn a_killed_database_server_loses_no_acknowledged_upload(case: &Case) {
    let server = case.server.as_ref().unwrap();
    let gateway = case
        .gateway_with(|config| {
            config.database.timeout = Duration::from_secs(2);
            config.batching.interval = Duration::from_millis(200);
            config.batching.max_keys = 100;
        })
        .await;
    let stop = AtomicBool::new(false);
    let uploading: Vec<_> = ["DE", "IT", "IE", "DE"]
        .iter()
        .enumerate()
        .map(|(i, code)| Uploading::new(&gateway, code, i.to_string()))
        .collect();
    let uploads = all_at_once(uploading.iter().map(|uploading| uploading.until(&stop)));
    let killing = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            server.tell("kill9").await;
            assert_eq!(readiness(&gateway).await, 503);
            server.tell("start").await;
            until("the gateway is ready again", async || (readiness(&gateway).await == 200).then_some(()))
                .await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.store(true, Ordering::Relaxed);
    };
    let (sent, ()) = futures_util::future::join(uploads, killing).await;
    let mut all = Vec::new();
    for (uploading, sent) in uploading.iter().zip(sent) {
        verify(case, &gateway.client(uploading.code), &sent).await;
        all.extend(sent);
    }
    assert!(all.iter().filter(|sent| sent.acknowledged).count() > 10, "{} uploads", all.len());
    all_in_batches(case).await;
    let downloaded = download_all(&gateway.client("NL"), case.today()).await;
    assert!(downloaded == sorted(all.iter().map(|sent| &sent.keys)), "{} keys", downloaded.len());
}

async fn a_lease_that_could_not_be_given_back_is_taken_again_at_once(case: &Case) {
    let server = case.server.as_ref().unwrap();
    let gateway = || case.gateway_with(|config| config.database.timeout = Duration::from_secs(1));
    let (gateway, other) = (gateway().await, gateway().await);
    let [store, other] = [&gateway, &other].map(|gateway| &gateway.app.store);
    let acquired = async |store: &Store| {
        until("the database answers", async || store.acquire_lease(Job::Batching).await.ok()).await
    };
    let lease = acquired(store).await.unwrap();
    server.tell("kill9").await;
    store.release_lease(lease).await.unwrap_err();
    store.acquire_lease(Job::Batching).await.unwrap_err();
    server.tell("start").await;
    assert!(acquired(other).await.is_none(), "it is still held");
    let lease = acquired(store).await.unwrap();
    assert!(acquired(store).await.is_none(), "now somebody does");
    store.release_lease(lease).await.unwrap();
    let lease = acquired(other).await.unwrap();
    other.release_lease(lease).await.unwrap();
}
