//! The database server is stopped: readers of what is in memory do not notice.

use std::time::{Duration, Instant};

use efgs_gateway::config::Config;
use efgs_protocol::wire;

use crate::{
    access_log::{evidence, look},
    client::{Client, JSON, Request, all_at_once, keys},
    harness::{Case, Running, country, tests, until},
    health::ready,
};

tests![
    what_is_in_memory_is_served_while_the_database_is_stopped,
    after_the_grace_nobody_is_served,
    without_a_grace_nobody_is_served_without_the_database,
    a_denied_certificate_is_refused_while_the_database_is_stopped,
    a_database_that_refuses_the_registry_is_not_unreachable,
];

/// What "within two seconds" may last on a busy machine.
const SOON: Duration = Duration::from_millis(2500);

fn quick(config: &mut Config) {
    config.trust.refresh = Duration::from_secs(1);
    config.database.timeout = Duration::from_secs(4);
}

/// Two batches that NL has downloaded and audited; their names.
async fn warm(case: &Case, gateway: &Running) -> Vec<String> {
    let mut batches = Vec::new();
    for tag in ["a", "b"] {
        gateway.client("DE").upload_new(tag, 20, case.clock.now()).await;
        batches.extend(gateway.form().await);
    }
    for batch in &batches {
        for answer in read(case, &gateway.client("NL"), batch).await {
            answer.expect(200);
        }
    }
    batches
}

async fn read(case: &Case, client: &Client, batch: &str) -> [crate::client::Answer; 2] {
    [client.download(case.today(), Some(batch)).await, client.audit(case.today(), batch).await]
}

/// The status of `/health/ready`, and what it says.
async fn status(gateway: &Running) -> (u16, String) {
    let (code, body) = ready(gateway).await;
    (code, body["status"].as_str().unwrap().to_owned())
}

async fn what_is_in_memory_is_served_while_the_database_is_stopped(case: &Case) {
    let server = case.server.as_ref().unwrap();
    let seconds = std::env::var("EFGS_TEST_OUTAGE_SECONDS").map_or(20, |text| text.parse().unwrap());
    let gateway = case.gateway_with(quick).await;
    let batches = warm(case, &gateway).await;
    let nl = gateway.client("NL");
    let etag = nl.download(case.today(), Some(&batches[0])).await.header("etag").unwrap().to_owned();
    server.tell("stop").await;
    let (stopped, mut answers, mut degraded) = (Instant::now(), 0, false);
    while stopped.elapsed() < Duration::from_secs(seconds) {
        for (batch, next) in batches.iter().zip([&*batches[1], "null"]) {
            let asked = Instant::now();
            let [download, audit] = read(case, &nl, batch).await;
            assert_eq!((download.status, audit.status), (200, 200), "{} {}", download.text(), audit.text());
            assert_eq!(
                (download.next(), download.keys().len(), audit.audit().len()),
                (next.to_owned(), 20, 1)
            );
            assert!(asked.elapsed() < 2 * SOON, "{:?}", asked.elapsed());
            answers += 2;
        }
        nl.download(case.today(), None).await.expect(200);
        let again = Client::download_request(case.today(), Some(&batches[0])).header("If-None-Match", &*etag);
        nl.send(again).await.expect(304);
        answers += 2;
        let (code, says) = status(&gateway).await;
        assert_eq!(code, 200, "{says}");
        degraded |= says == "degraded";
    }
    assert!(degraded);
    // Everything else, and what is not in memory, is refused soon.
    let unknown = "20260101-9";
    let new = keys(country("DE"), 2, case.clock.now());
    let de = gateway.client("DE");
    let cold = Client::download_request(case.today(), Some(&batches[0])).header("Accept", JSON);
    let refused = all_at_once(
        [
            nl.send(cold),
            nl.send(Client::download_request(case.today(), Some(unknown))),
            nl.send(Request::get(wire::CALLBACK_PATH)),
            de.send(de.request("c", &new)),
            de.send(Request::new("DELETE", "/diagnosiskeys/upload/a")),
        ]
        .map(|request| async {
            let asked = Instant::now();
            let answer = request.await;
            let took = asked.elapsed();
            answer.refused(503, "unavailable");
            (took, answer)
        }),
    )
    .await;
    assert!(refused.iter().all(|(took, _)| *took < SOON), "{refused:?}");
    answers += refused.len() as i64;
    server.tell("start").await;
    until("the gateway is up", async || (status(&gateway).await.1 == "up").then_some(())).await;
    de.upload("c", &new).await.expect(201);
    gateway.form().await;
    let next = nl.download(case.today(), Some(&batches[1])).await.expect(200).next();
    nl.download(case.today(), Some(&next)).await.expect(200);
    // Each answer is recorded.
    case.recorded().await;
    assert_eq!(case.db.number("SELECT COUNT(*) FROM access_log").await, answers + 2 + 4 + 1 + 3);
    assert_eq!(look(case, &evidence(case)).await.findings, []);
}

/// Stops the database, and waits until the reader is refused; how long that took since the server began to stop, and
/// since it had stopped.
async fn refused_after(case: &Case, grace: Duration) -> [Duration; 2] {
    let gateway = case
        .gateway_with(|config| {
            quick(config);
            config.trust.read_grace = grace;
        })
        .await;
    let batches = warm(case, &gateway).await;
    let begun = Instant::now();
    case.server.as_ref().unwrap().tell("stop").await;
    let stopped = Instant::now();
    let client = gateway.client("NL");
    until("the reader is refused", async || {
        (client.download(case.today(), Some(&batches[0])).await.status == 503).then_some(())
    })
    .await;
    let took = [begun.elapsed(), stopped.elapsed()];
    until("not ready", async || (status(&gateway).await.0 == 503).then_some(())).await;
    case.server.as_ref().unwrap().tell("start").await;
    until("the gateway is up", async || (status(&gateway).await.1 == "up").then_some(())).await;
    client.download(case.today(), Some(&batches[0])).await.expect(200);
    took
}

async fn after_the_grace_nobody_is_served(case: &Case) {
    let grace = Duration::from_secs(5);
    let [begun, stopped] = refused_after(case, grace).await;
    // The last reading may be older than the outage.
    assert!(begun > grace - Duration::from_secs(2) && stopped < grace + SOON, "{begun:?} {stopped:?}");
}

async fn without_a_grace_nobody_is_served_without_the_database(case: &Case) {
    let [_, stopped] = refused_after(case, Duration::ZERO).await;
    assert!(stopped < SOON, "{stopped:?}");
}

async fn a_denied_certificate_is_refused_while_the_database_is_stopped(case: &Case) {
    let server = case.server.as_ref().unwrap();
    let path = case.folder.path().join("denied.txt");
    std::fs::write(&path, "# none\n").unwrap();
    let gateway = case
        .gateway_with(|config| {
            quick(config);
            config.trust.deny_file = Some(path.clone());
        })
        .await;
    let batches = warm(case, &gateway).await;
    let nl = gateway.client("NL");
    let raw = Client::download_request(case.today(), Some(&batches[0])).raw();
    let mut connection = nl.connect();
    server.tell("stop").await;
    connection.write(&raw).unwrap();
    assert_eq!(connection.answer().status, 200);
    let thumbprint = crate::harness::participant("NL").authentication.certificate.thumbprint();
    std::fs::write(&path, format!("{thumbprint}\n")).unwrap();
    let written = Instant::now();
    until("it is refused on the open connection", async || {
        connection.write(&raw).unwrap();
        (connection.answer().status == 403).then_some(())
    })
    .await;
    assert!(written.elapsed() < SOON, "{:?}", written.elapsed());
    gateway.client("IT").download(case.today(), Some(&batches[0])).await.expect(200);
    server.tell("start").await;
    until("the gateway is up", async || (status(&gateway).await.1 == "up").then_some(())).await;
    nl.download(case.today(), Some(&batches[0])).await.refused(403, "forbidden");
}

async fn a_database_that_refuses_the_registry_is_not_unreachable(case: &Case) {
    let gateway = case.gateway_with(quick).await;
    let batches = warm(case, &gateway).await;
    case.db.execute("ALTER TABLE certificate RENAME TO away").await;
    until("the reader is refused", async || {
        let answer = gateway.client("NL").download(case.today(), Some(&batches[0])).await;
        (answer.status == 503).then_some(())
    })
    .await;
    assert_eq!(status(&gateway).await, (503, "down".to_owned()));
    case.db.execute("ALTER TABLE away RENAME TO certificate").await;
    until("the gateway is up", async || (status(&gateway).await.1 == "up").then_some(())).await;
}
