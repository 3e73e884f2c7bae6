//! Callbacks (spec §5.6): registration, and deliveries that go well.

use std::time::Duration;

use efgs_gateway::{
    config::{Callback, Config, TagStyle},
    store::{Subscription, SubscriptionState},
};
use efgs_protocol::{certificate::CertificateType, wire};
use efgs_test_ca::Request as CertificateRequest;

use crate::{
    callback_server::{Behaviour, CallbackServer},
    client::{Answer, Client, Request},
    harness::{Case, PKI, Running, country, output_of, participant, tests, until},
};

tests![
    a_registered_url_is_called_with_tag_and_date,
    registering_again_changes_nothing_and_another_url_replaces,
    a_registration_is_refused_with_the_name_of_the_check,
    ids_have_1_to_64_characters_and_belong_to_the_country,
    batches_are_announced_in_their_order,
    what_was_downloaded_is_not_announced,
    a_paused_callback_is_resumed_with_the_newest_batch,
    what_the_operator_paused_only_the_operator_resumes,
    two_gateways_miss_nothing_and_repeat_nothing,
    without_a_certificate_callbacks_wait_for_an_instance_that_has_one,
    a_lease_of_a_dead_instance_is_taken_over,
    a_call_to_a_url_that_was_replaced_counts_for_nothing,
    a_country_has_256_callbacks_at_most,
    the_operator_lists_pauses_and_resumes,
    a_new_client_certificate_is_shown_as_soon_as_its_files_have_changed,
];

/// Deliveries on loopback with short waits.
pub(crate) fn calling(case: &Case) -> impl Fn(&mut Config) + use<> {
    let folder = case.folder.path().to_owned();
    move |config| {
        config.callback = Some(Callback {
            allowed_networks: vec!["127.0.0.0/8".parse().unwrap()],
            timeout: Duration::from_secs(2),
            max_attempts: 100,
            retry_initial: Duration::from_millis(50),
            retry_max: Duration::from_millis(200),
            ..Callback::new(folder.join("callback-client.pem"), folder.join("callback-client.key"))
        });
    }
}

pub(crate) fn put_request(id: &str, url: &str) -> Request {
    let url: String = url::form_urlencoded::byte_serialize(url.as_bytes()).collect();
    Request::new("PUT", format!("{}/{id}?url={url}", wire::CALLBACK_PATH))
}

pub(crate) async fn put(client: &Client, id: &str, url: &str) -> Answer {
    client.send(put_request(id, url)).await
}

/// A server of a country that is registered as `id`.
pub(crate) async fn subscribe(gateway: &Running, code: &str, id: &str) -> CallbackServer {
    let server = CallbackServer::start(&participant(code).callback, Behaviour::Answer(200)).await;
    put(&gateway.client(code), id, &server.url()).await.expect(200);
    server
}

/// Uploads something and puts it into a batch; its name.
pub(crate) async fn batch(gateway: &Running, tag: &str) -> String {
    gateway.client("IE").upload_new(tag, 1, gateway.app.clock.now()).await;
    gateway.form().await.remove(0)
}

pub(crate) async fn subscription(gateway: &Running, id: &str) -> Subscription {
    let all = gateway.app.store.subscriptions(None).await.unwrap();
    all.into_iter().find(|one| one.name == id).unwrap()
}

pub(crate) async fn called(server: &CallbackServer, tags: &[String]) {
    until("all calls", async || (server.tags().len() >= tags.len()).then_some(())).await;
    assert_eq!(server.tags(), tags);
}

/// Waits until nothing is queued for a callback and nobody works on it.
pub(crate) async fn quiet(case: &Case) {
    until("the queues are empty", async || {
        let waiting = case.db.number("SELECT COUNT(*) FROM callback_notification").await;
        let leases =
            case.db.number("SELECT COUNT(*) FROM callback_subscription WHERE owner IS NOT NULL").await;
        (waiting == 0 && leases == 0).then_some(())
    })
    .await;
}

async fn list(client: &Client) -> serde_json::Value {
    client.send(Request::get(wire::CALLBACK_PATH)).await.expect(200).json()
}

async fn a_registered_url_is_called_with_tag_and_date(case: &Case) {
    let calling = calling(case);
    let gateway = case
        .gateway_with(|config| {
            calling(config);
            config.participants.entry(country("IT")).or_default().tags = Some(TagStyle::DaySequence);
        })
        .await;
    let (nl, it) = (subscribe(&gateway, "NL", "a").await, subscribe(&gateway, "IT", "a").await);
    let batch = batch(&gateway, "1").await;
    let day = case.today();
    let user_agent = concat!("efgs-gateway/", env!("CARGO_PKG_VERSION")).to_owned();
    for (server, tag) in [(nl, batch), (it, format!("{}-1", day.format("%Y%m%d")))] {
        called(&server, std::slice::from_ref(&tag)).await;
        let line = format!("GET /notify?batchTag={tag}&date={day} HTTP/1.1");
        assert_eq!(server.calls(), [(line, user_agent.clone())]);
    }
    quiet(case).await;
    let a = subscription(&gateway, "a").await;
    assert_eq!((a.failures, a.last_error, a.queued, a.state), (0, None, 0, SubscriptionState::Active));
    assert!(a.last_success_at.is_some());
}

async fn registering_again_changes_nothing_and_another_url_replaces(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let nl = gateway.client("NL");
    assert_eq!(list(&nl).await, serde_json::json!([]));
    for url in ["https://127.0.0.1:1/a", "https://127.0.0.1:1/a", "https://127.0.0.1:2/b%20c"] {
        let answer = put(&nl, "a", url).await.expect(200);
        assert!(answer.body.is_empty(), "{}", answer.text());
        assert_eq!(list(&nl).await, serde_json::json!([{"callbackId": "a", "url": url}]));
    }
    put(&nl, "b", "https://127.0.0.1:2/b").await.expect(200);
    let delete = || Request::new("DELETE", format!("{}/a", wire::CALLBACK_PATH));
    assert!(nl.send(delete()).await.expect(200).body.is_empty());
    nl.send(delete()).await.refused(404, "callback-not-found");
    assert_eq!(list(&nl).await, serde_json::json!([{"callbackId": "b", "url": "https://127.0.0.1:2/b"}]));
    // Many at once are one in the end.
    let puts = (0..8).map(|i| {
        let nl = &nl;
        async move { put(nl, "c", &format!("https://127.0.0.1:3/{}", i % 2)).await.expect(200) }
    });
    crate::client::all_at_once(puts).await;
    assert_eq!(list(&nl).await.as_array().unwrap().len(), 2);
}

async fn a_registration_is_refused_with_the_name_of_the_check(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let nl = gateway.client("NL");
    for (url, check) in [
        ("", "syntax"),
        ("http://127.0.0.1/", "https"),
        ("https://127.0.0.1/?", "query"),
        ("https://127.0.0.1/?a=b", "query"),
        ("https://127.0.0.1/#", "fragment"),
        ("https://u@127.0.0.1/", "userinfo"),
        ("https://127.0.0.1:0/", "port"),
        ("https:\\\\127.0.0.1/", "backslash"),
        ("https://2130706433/", "host"),
        ("https://10.0.0.1/", "public-address"),
        ("https://[::1]/", "public-address"),
        ("https://this-name-does-not-exist.invalid/", "resolves"),
    ] {
        let message = put(&nl, "a", url).await.refused(406, "url-refused");
        assert!(message.contains(&format!("\"{check}\"")), "{url}: {message}");
    }
    let path = format!("{}/a", wire::CALLBACK_PATH);
    for query in ["", "?", "?uri=https://127.0.0.1/", "?url=https://127.0.0.1/&url=https://127.0.0.1/"] {
        nl.send(Request::new("PUT", format!("{path}{query}"))).await.refused(400, "invalid-callback");
    }
    // Not encoded, as some clients send it.
    nl.send(Request::new("PUT", format!("{path}?url=https://127.0.0.1:1/x"))).await.expect(200);
    let answer = nl.send(Request::get(path)).await;
    answer.refused(405, "method-not-allowed");
    assert_eq!(answer.header("allow"), Some("PUT,DELETE"));
}

async fn ids_have_1_to_64_characters_and_belong_to_the_country(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let (nl, de) = (gateway.client("NL"), gateway.client("DE"));
    let url = "https://127.0.0.1:1/";
    for id in ["x".repeat(64), "%C3%A9".repeat(64), "A".into(), "a".into(), "a%2Fb%20c".into()] {
        put(&nl, &id, url).await.expect(200);
    }
    for id in ["x".repeat(65), "%C3%A9".repeat(65)] {
        put(&nl, &id, url).await.refused(400, "invalid-callback");
        let delete = Request::new("DELETE", format!("{}/{id}", wire::CALLBACK_PATH));
        nl.send(delete).await.refused(400, "invalid-callback");
    }
    let ids: Vec<String> =
        list(&nl).await.as_array().unwrap().iter().map(|one| one["callbackId"].to_string()).collect();
    assert_eq!(ids.len(), 5, "{ids:?}");
    assert!(ids.contains(&"\"a/b c\"".to_owned()), "{ids:?}");
    assert_eq!(list(&de).await, serde_json::json!([]));
    let delete = || Request::new("DELETE", format!("{}/a", wire::CALLBACK_PATH));
    de.send(delete()).await.refused(404, "callback-not-found");
    put(&de, "a", "https://127.0.0.1:2/").await.expect(200);
    de.send(delete()).await.expect(200);
    assert_eq!(list(&nl).await.as_array().unwrap().len(), 5);
}

async fn batches_are_announced_in_their_order(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let server = subscribe(&gateway, "NL", "a").await;
    server.behave(Behaviour::Answer(503));
    let mut batches = vec![batch(&gateway, "0").await];
    until("a failed call", async || (server.calls().len() > 1).then_some(())).await;
    for tag in ["1", "2", "3", "4"] {
        batches.push(batch(&gateway, tag).await);
    }
    server.behave(Behaviour::Answer(204));
    quiet(case).await;
    let mut tags = server.tags();
    tags.dedup();
    assert_eq!(tags, batches);
    // After a success each is called once.
    let calls = server.tags();
    assert_eq!(calls[calls.len() - 4..], batches[1..]);
}

async fn what_was_downloaded_is_not_announced(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let elsewhere = case.gateway().await;
    let server = subscribe(&gateway, "NL", "a").await;
    let other = subscribe(&gateway, "DE", "a").await;
    server.behave(Behaviour::Answer(500));
    let mut batches = Vec::new();
    for tag in ["0", "1", "2"] {
        batches.push(batch(&gateway, tag).await);
    }
    // Downloaded from the other instance: the second batch, and so the first needs no word either.
    elsewhere.client("NL").download(case.today(), Some(&batches[1])).await.expect(200);
    until("the download is written down", async || {
        (case.db.number("SELECT COUNT(*) FROM downloaded").await == 1).then_some(())
    })
    .await;
    until("the third batch is tried", async || server.tags().contains(&batches[2]).then_some(())).await;
    server.behave(Behaviour::Answer(200));
    quiet(case).await;
    let tags = server.tags();
    assert!(!tags.contains(&batches[1]), "{tags:?}");
    called(&other, &batches).await;
    // From this instance it holds at once; a download of an older batch does not undo it.
    server.behave(Behaviour::Answer(500));
    let last = batch(&gateway, "3").await;
    for tag in [&last, &batches[0]] {
        gateway.client("NL").download(case.today(), Some(tag)).await.expect(200);
    }
    quiet(case).await;
    assert_eq!(subscription(&gateway, "a").await.queued, 0);
}

async fn a_paused_callback_is_resumed_with_the_newest_batch(case: &Case) {
    let calling = calling(case);
    let gateway = case
        .gateway_with(|config| {
            calling(config);
            config.callback.as_mut().unwrap().max_attempts = 3;
        })
        .await;
    let server = subscribe(&gateway, "NL", "a").await;
    server.behave(Behaviour::Answer(500));
    let first = batch(&gateway, "0").await;
    let paused = async || {
        until("it is paused", async || {
            Some(subscription(&gateway, "a").await).filter(|one| one.state == SubscriptionState::Paused)
        })
        .await
    };
    let a = paused().await;
    assert_eq!((a.failures, a.last_error.as_deref()), (3, Some("the server answered 500")));
    assert_eq!(server.tags(), [first.clone(), first.clone(), first.clone()]);
    // It collects nothing but the newest.
    let mut newest = String::new();
    for tag in ["1", "2", "3"] {
        newest = batch(&gateway, tag).await;
    }
    assert_eq!(subscription(&gateway, "a").await.queued, 1);
    server.behave(Behaviour::Answer(200));
    // The country registers it again, as some do at each start.
    put(&gateway.client("NL"), "a", &server.url()).await.expect(200);
    quiet(case).await;
    assert_eq!(server.tags()[3..], [newest]);
    let a = subscription(&gateway, "a").await;
    assert_eq!((a.state, a.failures), (SubscriptionState::Active, 0));
    // The same by the operator.
    server.behave(Behaviour::Answer(500));
    let last = batch(&gateway, "4").await;
    paused().await;
    server.behave(Behaviour::Answer(200));
    assert!(gateway.app.store.resume_subscription(country("NL"), "a").await.unwrap());
    quiet(case).await;
    assert_eq!(server.tags().last(), Some(&last));
}

async fn what_the_operator_paused_only_the_operator_resumes(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let server = subscribe(&gateway, "NL", "a").await;
    let witness = subscribe(&gateway, "DE", "b").await;
    let store = &gateway.app.store;
    assert!(!store.hold_subscription(country("DE"), "a").await.unwrap());
    assert!(store.hold_subscription(country("NL"), "a").await.unwrap());
    let mut batches = vec![batch(&gateway, "0").await];
    put(&gateway.client("NL"), "a", &server.url()).await.expect(200);
    batches.push(batch(&gateway, "1").await);
    called(&witness, &batches).await;
    assert_eq!(server.connections(), 0);
    assert_eq!(subscription(&gateway, "a").await.state, SubscriptionState::Held);
    assert!(store.resume_subscription(country("NL"), "a").await.unwrap());
    quiet(case).await;
    assert_eq!(server.tags(), batches[1..]);
}

async fn two_gateways_miss_nothing_and_repeat_nothing(case: &Case) {
    let gateways = [case.gateway_with(calling(case)).await, case.gateway_with(calling(case)).await];
    let mut servers = Vec::new();
    for (i, code) in ["DE", "NL", "IT", "DE", "NL", "IT"].into_iter().enumerate() {
        servers.push(subscribe(&gateways[i % 2], code, &format!("s{i}")).await);
    }
    let mut batches = Vec::new();
    for i in 0..8 {
        batches.push(batch(&gateways[i % 2], &i.to_string()).await);
    }
    quiet(case).await;
    for server in &servers {
        assert_eq!(server.tags(), batches);
    }
}

async fn without_a_certificate_callbacks_wait_for_an_instance_that_has_one(case: &Case) {
    let without = case.gateway().await;
    let refused = put(&without.client("NL"), "a", "https://127.0.0.1:1/").await;
    // Only the check's name: what a name leads to inside is nobody else's business.
    assert_eq!(refused.refused(406, "url-refused"), "the URL fails the check \"public-address\"");
    let with = case.gateway_with(calling(case)).await;
    let server = subscribe(&with, "NL", "a").await;
    case.stop(&with).await;
    let batch = batch(&without, "0").await;
    assert_eq!(subscription(&without, "a").await.queued, 1);
    case.gateway_with(calling(case)).await;
    called(&server, &[batch]).await;
    quiet(case).await;
}

async fn a_lease_of_a_dead_instance_is_taken_over(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let server = subscribe(&gateway, "NL", "a").await;
    // Another instance took it and was killed; by the database's clock its time is over soon.
    let now_ms = match case.db.kind {
        crate::database::Kind::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        _ => "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000 AS SIGNED)",
    };
    let taken = format!("UPDATE callback_subscription SET owner = 'x', lease_expires_at = {now_ms} + 1500");
    assert_eq!(case.db.execute(&taken).await, 1);
    let started = std::time::Instant::now();
    let batch = batch(&gateway, "0").await;
    called(&server, &[batch]).await;
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    quiet(case).await;
}

async fn a_call_to_a_url_that_was_replaced_counts_for_nothing(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let former = subscribe(&gateway, "NL", "a").await;
    former.behave(Behaviour::Hang);
    let batch = batch(&gateway, "0").await;
    until("the call hangs", async || (!former.calls().is_empty()).then_some(())).await;
    let new = subscribe(&gateway, "NL", "a").await;
    called(&new, &[batch]).await;
    case.stop(&gateway).await;
    assert_eq!(case.db.number("SELECT COUNT(last_error) FROM callback_subscription").await, 0);
}

async fn a_country_has_256_callbacks_at_most(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let store = &gateway.app.store;
    for i in 0..256 {
        store.put_subscription(country("NL"), &format!("x{i}"), "https://127.0.0.1:1/", 256).await.unwrap();
    }
    let (nl, url) = (gateway.client("NL"), "https://127.0.0.1:2/");
    put(&nl, "one-more", url).await.refused(400, "invalid-callback");
    put(&nl, "x7", url).await.expect(200);
    put(&gateway.client("DE"), "one-more", url).await.expect(200);
    assert_eq!(case.db.number("SELECT COUNT(*) FROM callback_subscription").await, 257);
}

async fn the_operator_lists_pauses_and_resumes(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let server = subscribe(&gateway, "NL", "a b").await;
    let tag = batch(&gateway, "0").await;
    called(&server, std::slice::from_ref(&tag)).await;
    quiet(case).await;
    let config = case.write_config(&case.config_text());
    let run = |arguments: &[&str]| {
        let config = config.to_str().unwrap();
        let arguments = [&["callback"], arguments, &["--config", config, "--json"]].concat();
        let output = output_of(env!("CARGO_BIN_EXE_efgs-gateway"), &arguments, case.folder.path());
        serde_json::from_slice::<serde_json::Value>(&output).unwrap()
    };
    let one = &run(&["list"])[0];
    assert_eq!((&one["country"], &one["id"], &one["state"]), (&"NL".into(), &"a b".into(), &"active".into()));
    assert!(one["lastSuccess"].is_string() && one["queued"] == 0, "{one}");
    assert_eq!(run(&["pause", "--country", "NL", "a b"])["state"], "paused");
    let one = &run(&["list"])[0];
    assert_eq!((&one["state"], &one["pausedBy"]), (&"paused".into(), &"operator".into()));
    let missed = batch(&gateway, "1").await;
    assert_eq!(run(&["list"])[0]["queued"], 1);
    assert_eq!(run(&["resume", "--country", "NL", "a b"])["state"], "active");
    called(&server, &[tag, missed]).await;
    quiet(case).await;
}

async fn a_new_client_certificate_is_shown_as_soon_as_its_files_have_changed(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let server = subscribe(&gateway, "NL", "notify").await;
    let mut batches = vec![batch(&gateway, "0").await];
    called(&server, &batches).await;

    let request = CertificateRequest {
        common_name: "callback client".into(),
        ..CertificateRequest::new(CertificateType::Callback, "EU")
    };
    let new = PKI.server_ca.issue(&request).unwrap();
    let write = |name: &str, text: &str| std::fs::write(case.folder.path().join(name), text).unwrap();
    // Half of the pair is refused: the old one is shown until the other half is there.
    write("callback-client.pem", new.certificate.pem());
    gateway.files.changed_files();
    batches.push(batch(&gateway, "1").await);
    called(&server, &batches).await;

    write("callback-client.key", &new.key_pem);
    gateway.files.changed_files();
    server.accept_client(new.certificate.der());
    batches.push(batch(&gateway, "2").await);
    called(&server, &batches).await;
}
