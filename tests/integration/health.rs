//! Readiness: a job that stands still, work that no instance does, certificates that have expired.

use std::time::Duration;

use chrono::{Days, TimeDelta};
use efgs_gateway::health::Severity;
use efgs_protocol::certificate::CertificateType;
use efgs_test_ca::{KeyKind, Pki, Request as CertificateRequest};
use serde_json::Value;

use crate::{
    harness::{Case, PKI, Running, noon, tests, until},
    process::Process,
};

tests![
    a_job_that_makes_no_progress_makes_the_gateway_unready,
    work_that_no_instance_does_makes_the_gateway_unready,
    a_gateway_is_ready_when_it_has_loaded_the_chain,
    an_access_log_that_is_not_forgotten_is_warned_of,
    a_certificate_of_the_gateway_that_has_expired_makes_it_unready,
    a_certificate_that_is_not_taken_over_is_warned_of_until_it_is,
    what_needs_a_restart_is_warned_of,
    an_access_log_that_is_mended_makes_the_gateway_ready_without_a_request,
    a_log_about_which_nothing_can_be_stated_makes_the_gateway_unready,
];

/// The status of `/health/ready`, and its body.
pub(crate) async fn ready(gateway: &Running) -> (u16, Value) {
    let url = format!("http://127.0.0.1:{}/health/ready", gateway.admin);
    let response = reqwest::get(url).await.unwrap();
    (response.status().as_u16(), serde_json::from_str(&response.text().await.unwrap()).unwrap())
}

fn texts(body: &Value, field: &str) -> Vec<String> {
    body[field].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// Waits for unready, runs a statement, and waits for ready; why it was not.
async fn unready_until(case: &Case, gateway: &Running, fix: &str) -> Vec<String> {
    let reasons = until("unready", async || {
        let (status, body) = ready(gateway).await;
        (status == 503).then(|| texts(&body, "reasons"))
    })
    .await;
    case.db.execute(fix).await;
    until("ready again", async || (ready(gateway).await.0 == 200).then_some(())).await;
    reasons
}

/// A gateway whose batching job has to make progress every one and a half seconds, which a slow disk allows.
async fn hurried(case: &Case) -> Running {
    case.gateway_with(|config| {
        config.batching.interval = Duration::from_millis(200);
        config.database.timeout = Duration::from_millis(1500);
    })
    .await
}

async fn a_job_that_makes_no_progress_makes_the_gateway_unready(case: &Case) {
    let gateway = hurried(case).await;
    assert_eq!(ready(&gateway).await.0, 200);
    // A lease that cannot be given back ends by itself, but of the other jobs nobody comes for it in this test's time.
    until("the others' first turns are over", async || {
        let leases = "SELECT COUNT(*) FROM job WHERE owner IS NOT NULL AND name <> 'batching'";
        (case.db.number(leases).await == 0).then_some(())
    })
    .await;
    case.db.execute("ALTER TABLE job RENAME TO job_renamed").await;
    let reasons = unready_until(case, &gateway, "ALTER TABLE job_renamed RENAME TO job").await;
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(reasons[0].starts_with("the job batching has made no progress for "), "{reasons:?}");
    assert!(reasons[0].contains("\"job due\""), "the last error: {reasons:?}");
}

async fn work_that_no_instance_does_makes_the_gateway_unready(case: &Case) {
    let gateway = hurried(case).await;
    // Another instance holds the lease and does nothing.
    let hang = "UPDATE job SET owner = 'x', expires_at = 9999999999999, due_at = 1 WHERE name = 'batching'";
    case.db.execute(hang).await;
    let fix = "UPDATE job SET owner = NULL WHERE owner = 'x'";
    let reasons = unready_until(case, &gateway, fix).await;
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(reasons[0].starts_with("no instance has done the job batching"), "{reasons:?}");
}

async fn a_gateway_is_ready_when_it_has_loaded_the_chain(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    gateway.form().await;
    case.stop(&gateway).await;
    // The chain asks for withdrawals, and nothing else does that a start needs.
    case.db.execute("ALTER TABLE withdrawal RENAME TO withdrawal_renamed").await;
    let process = Process::start(&case.write_config(&case.config_text()));
    let ready = async || {
        let response =
            reqwest::get(format!("http://127.0.0.1:{}/health/ready", process.admin)).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let (status, body) = ready().await;
    assert!(status == 503 && body.contains("the chain of batches is being loaded: 0 so far"), "{body}");
    case.db.execute("ALTER TABLE withdrawal_renamed RENAME TO withdrawal").await;
    until("ready", async || (ready().await.0 == 200).then_some(())).await;
    process.stop().await;
}

async fn an_access_log_that_is_not_forgotten_is_warned_of(case: &Case) {
    let gateway = hurried(case).await;
    let hang = "UPDATE job SET owner = 'x', expires_at = 9999999999999, due_at = 1 WHERE name = 'access-log'";
    case.db.execute(hang).await;
    gateway
        .app
        .health
        .watch_with("access-log", Duration::from_secs(1), Severity::Attention)
        .set_overdue(Some(Duration::from_secs(100)));
    let (status, body) = ready(&gateway).await;
    let warned = |text: &String| text.starts_with("no instance has done the job access-log");
    assert!(status == 200 && texts(&body, "warnings").iter().any(warned), "{status}: {body}");
    case.db.execute("UPDATE job SET owner = NULL WHERE owner = 'x'").await;
}

async fn a_certificate_of_the_gateway_that_has_expired_makes_it_unready(case: &Case) {
    let gateway = case.gateway().await;
    let (status, body) = ready(&gateway).await;
    assert!(status == 200 && !body["warnings"].to_string().contains("TLS certificate"), "{status}: {body}");
    let watched = gateway.app.health.certificates();
    let tls = watched.iter().find(|certificate| certificate.kind.name() == "TLS").unwrap();

    case.clock.set(tls.not_after - TimeDelta::days(5));
    let (status, body) = ready(&gateway).await;
    assert_eq!((status, texts(&body, "reasons")), (200, vec![]));
    let expected = format!("the gateway's TLS certificate {} expires in 6 days or less", tls.thumbprint);
    assert!(texts(&body, "warnings").contains(&expected), "{body}");
    assert!(body["warnings"].to_string().contains("AUTHENTICATION certificate"), "countries' too: {body}");

    case.clock.set(tls.not_after + Days::new(1));
    let (status, body) = ready(&gateway).await;
    let expected = format!("the gateway's TLS certificate {} has expired", tls.thumbprint);
    assert!(status == 503 && texts(&body, "reasons").contains(&expected), "{status}: {body}");
    // A country's certificate that has expired is the country's matter.
    assert!(!body["reasons"].to_string().contains("AUTHENTICATION"), "{body}");
    case.clock.set(noon());
    assert_eq!(ready(&gateway).await.0, 200);
}

async fn a_certificate_that_is_not_taken_over_is_warned_of_until_it_is(case: &Case) {
    let gateway = case.gateway().await;
    let tls = || {
        gateway.files.look_at_certificates();
        let watched = gateway.app.health.certificates();
        watched.iter().find(|certificate| certificate.kind.name() == "TLS").unwrap().thumbprint
    };
    let warned = async || {
        let (status, body) = ready(&gateway).await;
        assert_eq!(status, 200);
        texts(&body, "warnings").iter().any(|text| text.starts_with("the TLS certificate was not taken over"))
    };
    let old = tls();
    let new = PKI.server_ca.issue(&CertificateRequest {
        common_name: "localhost".into(),
        ..CertificateRequest::new(CertificateType::Callback, "EU")
    });
    let new = new.unwrap();
    let write = |name: &str, text: &str| std::fs::write(case.folder.path().join(name), text).unwrap();
    // Somebody forgot the key: what is watched is what callers get, not what lies there.
    write("server.pem", new.certificate.pem());
    gateway.files.changed_files();
    assert!(warned().await && tls() == old);
    gateway.files.changed_files();
    assert!(warned().await, "it is so still");
    write("server.key", &new.key_pem);
    gateway.files.changed_files();
    assert!(!warned().await && tls() == new.certificate.thumbprint());
}

async fn what_needs_a_restart_is_warned_of(case: &Case) {
    let gateway = case.gateway().await;
    let warned = async || {
        let (_, body) = ready(&gateway).await;
        texts(&body, "warnings")
            .into_iter()
            .find(|text| text.starts_with("settings differ from those in use"))
    };
    gateway.files.all(&case.config()).await;
    assert_eq!(warned().await, None);
    let mut new = case.config();
    new.limits.keys_per_day = 1;
    let anchor = case.folder.path().join("trust-anchor.pem");
    let other = Pki::new(KeyKind::Ec256).unwrap();
    std::fs::write(&anchor, other.anchor_pair.certificate.pem()).unwrap();
    gateway.files.all(&new).await;
    let restart = format!(": restart to use them: [limits], the trust anchor in {}", anchor.display());
    assert!(warned().await.is_some_and(|text| text.ends_with(&restart)), "{:?}", warned().await);
    // The days left are those of the anchor that counts.
    let watched = gateway.app.health.certificates();
    let anchors: Vec<_> =
        watched.iter().filter(|certificate| certificate.kind.name() == "TRUST-ANCHOR").collect();
    assert!(anchors.len() == 1 && anchors[0].thumbprint == PKI.anchor_pair.certificate.thumbprint());
    std::fs::write(&anchor, PKI.anchor_pair.certificate.pem()).unwrap();
    gateway.files.all(&case.config()).await;
    assert_eq!(warned().await, None);
}

async fn an_access_log_that_is_mended_makes_the_gateway_ready_without_a_request(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            // Every answer waits for the database.
            config.access_log.spool = std::path::PathBuf::new();
            config.access_log.sign_every = Duration::from_millis(200);
            config.database.timeout = Duration::from_secs(1);
        })
        .await;
    case.db.execute("ALTER TABLE access_log RENAME TO away").await;
    gateway.client("DE").download(case.today(), None).await.refused(503, "unavailable");
    // From here on a load balancer sends nothing.
    let reasons = unready_until(case, &gateway, "ALTER TABLE away RENAME TO access_log").await;
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(reasons[0].starts_with("the job log-writer has made no progress for "), "{reasons:?}");
    assert_eq!(case.db.number("SELECT COUNT(*) FROM access_log").await, 0);
    gateway.client("DE").download(case.today(), None).await.expect(404);
}

async fn a_log_about_which_nothing_can_be_stated_makes_the_gateway_unready(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.access_log.sign_every = Duration::from_millis(200);
            config.database.timeout = Duration::from_secs(1);
        })
        .await;
    case.db.execute("ALTER TABLE access_log_head RENAME TO away").await;
    gateway.client("DE").download(case.today(), None).await.expect(404);
    let reasons = unready_until(case, &gateway, "ALTER TABLE away RENAME TO access_log_head").await;
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(reasons[0].starts_with("the job log-signer has made no progress for "), "{reasons:?}");
}
