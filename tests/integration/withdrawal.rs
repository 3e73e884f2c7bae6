//! Taking an upload back (spec §5.4.2).

use efgs_gateway::store::{Withdrawal, WithdrawnBy};
use efgs_protocol::wire;

use crate::{
    client::{Request, join},
    harness::{Case, country, tests, until},
};

tests![
    what_was_withdrawn_is_gone_from_download_and_audit_and_the_chain_stays,
    only_the_country_that_uploaded_can_withdraw,
    a_withdrawn_upload_cannot_come_back_by_accident,
    an_upload_that_waits_and_is_withdrawn_never_gets_into_a_batch,
    another_instance_knows_it_within_the_refresh,
    the_operator_can_withdraw_and_it_is_recorded_why,
    a_tag_with_slashes_can_be_withdrawn,
];

fn delete(tag: &str) -> Request {
    Request::new("DELETE", format!("{}/{tag}", wire::UPLOAD_PATH))
}

async fn what_was_withdrawn_is_gone_from_download_and_audit_and_the_chain_stays(case: &Case) {
    let gateway = case.gateway().await;
    let (de, it, reader) = (gateway.client("DE"), gateway.client("IT"), gateway.client("NL"));
    let first = de.upload_new("a", 2, case.clock.now()).await;
    de.upload_new("b", 3, case.clock.now()).await;
    let last = it.upload_new("c", 1, case.clock.now()).await;
    let batch = gateway.form().await.remove(0);
    de.upload_new("d", 1, case.clock.now()).await;
    let second = gateway.form().await.remove(0);
    let before = reader.download(case.today(), None).await.expect(200);
    assert_eq!(before.keys().len(), 6);
    assert_eq!(reader.audit(case.today(), &batch).await.expect(200).header("withdrawnUploads"), Some("0"));

    let answer = de.send(delete("b")).await.expect(200);
    assert!(answer.body.is_empty());
    de.send(delete("b")).await.expect(200);

    let after = reader.download(case.today(), None).await.expect(200);
    assert_eq!(after.keys(), join(&[&first, &last]));
    assert_eq!((after.tag(), after.next()), (batch.clone(), second.clone()));
    assert_ne!(after.header("etag"), before.header("etag"));
    let request = Request::get(format!("{}/{}", wire::DOWNLOAD_PATH, case.today()))
        .header("Accept", "application/json; version=1.0")
        .header("If-None-Match", before.header("etag").unwrap());
    assert_eq!(reader.send(request).await.expect(200).keys(), join(&[&first, &last]));
    let audit = reader.audit(case.today(), &batch).await.expect(200);
    assert_eq!(audit.header("withdrawnUploads"), Some("1"));
    assert_eq!(audit.audit().iter().map(|entry| entry.amount).collect::<Vec<_>>(), [2, 1]);

    // A batch may become empty; it keeps its name and its place.
    de.send(delete("d")).await.expect(200);
    let empty = reader.download(case.today(), Some(&second)).await.expect(200);
    assert!(empty.body.is_empty());
    assert_eq!(empty.next(), "null");
    assert!(reader.audit(case.today(), &second).await.expect(200).audit().is_empty());
}

async fn only_the_country_that_uploaded_can_withdraw(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    gateway.form().await;
    gateway.client("NL").send(delete("a")).await.refused(404, "upload-not-found");
    gateway.client("DE").send(delete("unknown")).await.refused(404, "upload-not-found");
    let get = gateway.client("DE").send(Request::get(format!("{}/a", wire::UPLOAD_PATH))).await;
    get.refused(405, "method-not-allowed");
    assert_eq!(get.header("allow"), Some("DELETE"));
    assert_eq!(gateway.client("NL").download(case.today(), None).await.expect(200).keys().len(), 1);
}

async fn a_withdrawn_upload_cannot_come_back_by_accident(case: &Case) {
    let gateway = case.gateway().await;
    let de = gateway.client("DE");
    let keys = de.upload_new("a", 2, case.clock.now()).await;
    de.send(delete("a")).await.expect(200);
    // A lost answer's retry must not be told that the keys are there.
    de.upload("a", &keys).await.refused(409, "upload-withdrawn");
    assert_eq!(de.upload("b", &keys).await.expect(207).json()["409"], serde_json::json!([0, 1]));
    gateway.form().await;
    gateway.client("NL").download(case.today(), None).await.refused(404, "batch-not-found");
}

async fn an_upload_that_waits_and_is_withdrawn_never_gets_into_a_batch(case: &Case) {
    let gateway = case.gateway().await;
    let de = gateway.client("DE");
    de.upload_new("a", 2, case.clock.now()).await;
    let kept = de.upload_new("b", 1, case.clock.now()).await;
    de.send(delete("a")).await.expect(200);
    let pending = gateway.app.store.pending().await.unwrap();
    assert_eq!((pending.uploads, pending.keys), (1, 1));
    let batch = gateway.form().await.remove(0);
    let reader = gateway.client("NL");
    assert_eq!(reader.download(case.today(), None).await.expect(200).keys(), kept);
    let audit = reader.audit(case.today(), &batch).await.expect(200);
    assert_eq!(audit.header("withdrawnUploads"), Some("0"));
}

async fn another_instance_knows_it_within_the_refresh(case: &Case) {
    let short = |config: &mut efgs_gateway::config::Config| {
        config.trust.refresh = std::time::Duration::from_secs(2);
    };
    let one = case.gateway_with(short).await;
    let other = case.gateway_with(short).await;
    one.client("DE").upload_new("a", 2, case.clock.now()).await;
    one.form().await;
    let reader = other.client("NL");
    assert_eq!(reader.download(case.today(), None).await.expect(200).keys().len(), 2);
    one.client("DE").send(delete("a")).await.expect(200);
    let asked = std::time::Instant::now();
    until("the withdrawal on the other instance", async || {
        let answer = reader.download(case.today(), None).await.expect(200);
        answer.body.is_empty().then_some(())
    })
    .await;
    assert!(asked.elapsed() <= std::time::Duration::from_secs(3), "{:?}", asked.elapsed());
}

async fn the_operator_can_withdraw_and_it_is_recorded_why(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    gateway.form().await;
    let app = &gateway.app;
    let withdraw = async |tag: &str| {
        let by = WithdrawnBy::Operator;
        app.withdrawals.withdraw(country("DE"), tag, by, "a laboratory's mistake").await.unwrap()
    };
    assert_eq!(withdraw("b").await, Withdrawal::Unknown);
    assert_eq!(withdraw("a").await, Withdrawal::Done { keys: 2 });
    assert_eq!(withdraw("a").await, Withdrawal::Already);
    let uploads = app.store.uploads(Some(country("DE")), Some("a"), 1).await.unwrap();
    let (_, by, reason) = uploads[0].withdrawn.clone().unwrap();
    assert_eq!((by.as_str(), reason.as_str()), ("operator", "a laboratory's mistake"));
    assert!(gateway.client("NL").download(case.today(), None).await.expect(200).body.is_empty());
}

async fn a_tag_with_slashes_can_be_withdrawn(case: &Case) {
    let gateway = case.gateway().await;
    let de = gateway.client("DE");
    de.upload_new("2020-9-28-Ab+/c==-0", 1, case.clock.now()).await;
    de.upload_new("x/y", 1, case.clock.now()).await;
    de.send(delete("2020-9-28-Ab+%2Fc==-0")).await.expect(200);
    // Slashes count: this is another tag.
    de.send(delete("x//y")).await.refused(404, "upload-not-found");
    de.send(delete("x/y")).await.expect(200);
    assert_eq!(gateway.app.store.pending().await.unwrap().uploads, 0);
}
