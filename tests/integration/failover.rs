//! Two zones: two gateways on a cluster of three database servers, which loses the one that is written to.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::{
    client::all_at_once,
    harness::{Case, tests, until},
    outage::{Uploading, readiness},
    process::{all_in_batches, download_all, sorted, verify},
};

tests![a_cluster_that_loses_the_server_written_to_loses_no_acknowledged_upload];

#[expect(clippy::print_stdout, reason = "docs/operations.md says how long it takes")]
async fn a_cluster_that_loses_the_server_written_to_loses_no_acknowledged_upload(case: &Case) {
    let cluster = case.server.as_ref().unwrap();
    let zone = || case.gateway_with(|config| config.batching.interval = Duration::from_secs(1));
    let zones = [zone().await, zone().await];
    let stop = AtomicBool::new(false);
    let uploading: Vec<_> = ["DE", "IT", "IE"]
        .iter()
        .flat_map(|code| {
            zones.iter().map(move |zone| Uploading::new(zone, code, format!("{code}-{}", zone.address)))
        })
        .collect();
    let uploads = all_at_once(uploading.iter().map(|uploading| uploading.until(&stop)));
    // What is in memory is read all the time, and no reader notices.
    let read = zones[0].client("DE").upload_new("read", 10, case.clock.now()).await;
    let batch = until("a batch", async || {
        let answer = zones[0].client("NL").download(case.today(), None).await;
        (answer.status == 200).then(|| answer.tag())
    })
    .await;
    let reading = all_at_once(zones.iter().map(async |zone| {
        let client = zone.client("NL");
        let (mut reads, mut slowest) = (0, Duration::ZERO);
        while !stop.load(Ordering::Relaxed) {
            let asked = Instant::now();
            for answer in
                [client.download(case.today(), Some(&batch)).await, client.audit(case.today(), &batch).await]
            {
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
            (reads, slowest) = (reads + 2, slowest.max(asked.elapsed()));
        }
        (reads, slowest)
    }));
    let losing = async {
        for how in ["kill9", "freeze"] {
            for uploading in &uploading {
                uploading.goes_on().await;
            }
            let lost = Instant::now();
            cluster.tell(how).await;
            for uploading in &uploading {
                uploading.goes_on().await;
            }
            let accepted = lost.elapsed();
            for gateway in &zones {
                until("the gateway is ready", async || (readiness(gateway).await == 200).then_some(())).await;
            }
            println!("{how}: uploads after {accepted:.1?}, ready after {:.1?}", lost.elapsed());
            cluster.tell("start").await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (sent, reads, ()) = futures_util::future::join3(uploads, reading, losing).await;
    println!("reads, and the slowest: {reads:?}");
    let mut all = Vec::new();
    for (uploading, sent) in uploading.iter().zip(sent) {
        verify(case, &uploading.gateway.client(uploading.code), &sent).await;
        all.extend(sent);
    }
    all_in_batches(case).await;
    for gateway in &zones {
        let downloaded = download_all(&gateway.client("NL"), case.today()).await;
        assert!(
            downloaded == sorted(all.iter().map(|sent| &sent.keys).chain([&read])),
            "{} keys",
            downloaded.len()
        );
    }
}
