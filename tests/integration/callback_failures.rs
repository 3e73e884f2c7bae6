//! Callbacks that do not go well (spec §5.6.6): bad servers, wrong certificates, detours, instances that die.

use std::{
    io,
    net::IpAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{DateTime, Days, Utc};
use efgs_gateway::{
    callback::Resolve,
    config::Config,
    server::App,
    store::{Subscription, SubscriptionState},
};
use efgs_protocol::{bundle::Bundle, certificate::CertificateType};
use efgs_test_ca::{Identity, Request};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    callback::{batch, called, calling, put, subscribe, subscription},
    callback_server::{Behaviour, CallbackServer},
    harness::{Case, PKI, Running, country, participant, tests, until},
};

tests![
    every_bad_server_is_paused_with_its_reason_while_nine_others_are_called_at_once,
    a_name_that_leads_elsewhere_on_the_second_look_is_not_followed,
    a_certificate_for_authentication_is_good_enough,
    with_a_ca_the_certificate_must_chain_to_it_as_well,
    a_forward_proxy_is_told_the_address_that_was_checked,
    a_call_under_way_is_finished_before_the_gateway_stops,
    when_the_delivering_gateway_is_killed_the_other_takes_over,
];

/// A certificate of a country for these hosts, valid at the time of the tests unless `change` says otherwise.
fn identity(
    code: &str,
    kind: CertificateType,
    hosts: &[&str],
    change: impl FnOnce(&mut Request),
) -> Identity {
    let hosts = hosts.iter().map(ToString::to_string).collect();
    let mut request = Request { hosts, ..Request::new(kind, code) };
    change(&mut request);
    PKI.identity(country(code), kind, &request).unwrap()
}

const LOOPBACK: &[&str] = &["127.0.0.1"];

/// Answers with the first address once for each name, then with the second.
struct SecondLook(Mutex<Vec<String>>, [IpAddr; 2]);

impl SecondLook {
    fn new(first: &str, second: &str) -> Arc<Self> {
        Arc::new(Self(Mutex::default(), [first.parse().unwrap(), second.parse().unwrap()]))
    }
}

#[async_trait::async_trait]
impl Resolve for SecondLook {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let mut seen = self.0.lock().unwrap();
        let again = seen.iter().any(|name| name == host);
        seen.push(host.to_owned());
        Ok(vec![self.1[usize::from(again)]])
    }
}

async fn paused(gateway: &Running, id: &str) -> Subscription {
    until(&format!("{id} is paused"), async || {
        Some(subscription(gateway, id).await).filter(|one| one.state == SubscriptionState::Paused)
    })
    .await
}

async fn every_bad_server_is_paused_with_its_reason_while_nine_others_are_called_at_once(case: &Case) {
    let resolver = SecondLook::new("127.0.0.1", "::1");
    let mut gateways = Vec::new();
    for _ in 0..2 {
        let mut config = case.config();
        calling(case)(&mut config);
        let callback = config.callback.as_mut().unwrap();
        // The timeout is so long that waiting for a server that hangs would fail the test.
        (callback.max_attempts, callback.timeout) = (3, Duration::from_secs(600));
        let app = App::with_resolver(config, case.clock.clone(), None, resolver.clone()).unwrap();
        gateways.push(case.start(app).await);
    }
    let now: DateTime<Utc> = case.clock.now();
    let nl = |hosts, change: fn(&mut Request, DateTime<Utc>)| {
        identity("NL", CertificateType::Callback, hosts, |request| change(request, now))
    };
    let good = participant("NL").callback.clone();
    let unknown = nl(LOOPBACK, |_, _| {});
    let other_name = nl(&["backend.example"], |_, _| {});
    let expired = nl(LOOPBACK, |request, now| request.not_after = now - Days::new(1));
    let future = nl(LOOPBACK, |request, now| request.not_before = now + Days::new(1));
    let revoked = nl(LOOPBACK, |_, _| {});
    for gateway in &gateways {
        gateway.register(&[&other_name, &expired, &future, &revoked]).await;
    }
    let inside = CallbackServer::start(&good, Behaviour::Answer(200)).await;
    let answer = |status| Behaviour::Answer(status);
    let bad = [
        ("answers-500", &good, answer(500), "the server answered 500"),
        ("answers-404", &good, answer(404), "the server answered 404"),
        ("closes", &good, Behaviour::Close, "no answer: "),
        ("redirects", &good, Behaviour::Redirect(inside.url()), "302; redirects are not followed"),
        ("floods", &good, Behaviour::Flood, "no answer: "),
        ("unknown", &unknown, answer(200), "is not registered for CALLBACK or AUTHENTICATION"),
        (
            "signing",
            &participant("NL").signing,
            answer(200),
            "is not registered for CALLBACK or AUTHENTICATION",
        ),
        ("foreign", &participant("DE").callback, answer(200), "is not registered for NL"),
        ("other-name", &other_name, answer(200), "not valid for name"),
        ("expired", &expired, answer(200), "has expired"),
        ("future", &future, answer(200), "is not yet valid"),
        ("revoked", &revoked, answer(200), "has been revoked"),
        ("changed", &good, answer(200), "is not registered for CALLBACK or AUTHENTICATION"),
        ("rebinds", &good, answer(200), "rebinds.test leads to ::1"),
    ];
    let client = gateways[0].client("NL");
    let mut servers = Vec::new();
    for (id, identity, behaviour, _) in &bad {
        let server = CallbackServer::start(identity, behaviour.clone()).await;
        let url = match *id {
            "rebinds" => format!("https://rebinds.test:{}/notify", server.address.port()),
            _ => server.url(),
        };
        put(&client, id, &url).await.expect(200);
        servers.push((*id, server));
    }
    // More than there are gateways: one may hold up neither the others of its country nor a gateway.
    let mut hanging = Vec::new();
    for id in ["hangs", "hangs-too", "hangs-as-well"] {
        hanging.push(subscribe(&gateways[0], "NL", id).await);
    }
    hanging.iter().for_each(|server| server.behave(Behaviour::Hang));
    let server = |id: &str| &servers.iter().find(|(other, _)| *other == id).unwrap().1;
    gateways[0].app.store.revoke_certificate(revoked.certificate.thumbprint(), now).await.unwrap();
    server("changed").show(&unknown);
    for gateway in &gateways {
        gateway.reload().await;
    }
    let mut others = Vec::new();
    for i in 0..9 {
        others.push(subscribe(&gateways[i % 2], ["DE", "NL", "IT"][i % 3], &format!("good-{i}")).await);
    }

    let mut batches = Vec::new();
    for round in 0..4 {
        batches.push(batch(&gateways[round % 2], &round.to_string()).await);
        for server in &others {
            called(server, &batches).await;
        }
    }
    for (id, _, _, reason) in &bad {
        let one = paused(&gateways[1], id).await;
        assert!(one.last_error.as_ref().unwrap().contains(reason), "{id}: {:?}", one.last_error);
        assert_eq!(one.failures, 3, "{id}");
        assert!(one.last_success_at.is_none() && one.queued > 0, "{id}");
    }
    assert_eq!(inside.connections(), 0, "a redirect was followed");
    assert_eq!(server("rebinds").connections(), 0);
    for id in ["unknown", "signing", "foreign", "other-name", "expired", "future", "revoked", "changed"] {
        assert_eq!(server(id).calls(), [], "{id} was told something");
        assert_eq!(server(id).connections(), 3, "{id}");
    }
    for id in ["answers-500", "closes", "redirects"] {
        assert_eq!(server(id).tags(), [&*batches[0]; 3], "{id}");
    }
    // All this time they have hung in their first call. What they missed they are told when they are well again.
    for server in &hanging {
        assert_eq!(server.tags(), batches[..1]);
        server.behave(Behaviour::Answer(200));
        until("the call ends", async || {
            server.hang_up();
            (server.tags().len() > 1).then_some(())
        })
        .await;
        called(server, &[&batches[..1], &batches].concat()).await;
    }
}

async fn a_name_that_leads_elsewhere_on_the_second_look_is_not_followed(case: &Case) {
    let mut config = case.config();
    calling(case)(&mut config);
    let callback = config.callback.as_mut().unwrap();
    callback.allowed_networks = vec!["127.1.0.0/16".parse().unwrap()];
    callback.max_attempts = 1;
    let resolver = SecondLook::new("127.1.0.1", "127.0.0.1");
    let gateway = case.start(App::with_resolver(config, case.clock.clone(), None, resolver).unwrap()).await;
    let named = identity("NL", CertificateType::Callback, &["localhost", "rebinds.test"], |_| {});
    gateway.register(&[&named]).await;
    // Any server at this address would be accepted without pinning.
    let inside = CallbackServer::start(&named, Behaviour::Answer(200)).await;
    let url = format!("https://rebinds.test:{}/", inside.address.port());
    put(&gateway.client("NL"), "a", &url).await.expect(200);
    batch(&gateway, "0").await;
    let error = paused(&gateway, "a").await.last_error.unwrap();
    assert_eq!(error, "the URL fails the check \"public-address\": rebinds.test leads to 127.0.0.1");
    assert_eq!(inside.connections(), 0);
}

async fn a_certificate_for_authentication_is_good_enough(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let both = identity("NL", CertificateType::Authentication, LOOPBACK, |_| {});
    gateway.register(&[&both]).await;
    let server = CallbackServer::start(&both, Behaviour::Answer(200)).await;
    put(&gateway.client("NL"), "a", &server.url()).await.expect(200);
    let batch = batch(&gateway, "0").await;
    called(&server, &[batch]).await;
}

async fn with_a_ca_the_certificate_must_chain_to_it_as_well(case: &Case) {
    let calling = calling(case);
    let gateway = case
        .gateway_with(|config| {
            calling(config);
            let callback = config.callback.as_mut().unwrap();
            callback.ca = Some(case.folder.path().join("server-ca.pem"));
            callback.max_attempts = 1;
        })
        .await;
    let request =
        Request { hosts: vec!["127.0.0.1".into()], ..Request::new(CertificateType::Callback, "NL") };
    let pair = PKI.server_ca.issue(&request).unwrap();
    let bundle = |certificate| {
        Bundle::sign(&PKI.anchor, country("NL"), CertificateType::Callback, certificate, vec![])
    };
    let bundle = bundle(pair.certificate.clone()).unwrap();
    let issued = Identity { certificate: pair.certificate, key_pem: pair.key_pem, bundle };
    let server = CallbackServer::start(&issued, Behaviour::Answer(200)).await;
    let client = gateway.client("NL");
    put(&client, "issued", &server.url()).await.expect(200);
    let self_signed = subscribe(&gateway, "NL", "self-signed").await;
    // Issued, but not registered; then both.
    batch(&gateway, "0").await;
    let error = paused(&gateway, "issued").await.last_error.unwrap();
    assert!(error.contains("is not registered"), "{error}");
    let error = paused(&gateway, "self-signed").await.last_error.unwrap();
    assert!(error.contains("UnknownIssuer") || error.contains("unknown issuer"), "{error}");
    gateway.register(&[&issued]).await;
    let newest = batch(&gateway, "1").await;
    put(&client, "issued", &server.url()).await.expect(200);
    called(&server, &[newest]).await;
    assert_eq!(self_signed.calls(), []);
}

/// A forward proxy: what it was asked for, and a tunnel to there.
async fn proxy(asked: Arc<Mutex<Vec<String>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut inner, _) = listener.accept().await.unwrap();
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(inner.read_u8().await.unwrap());
                }
                let line = String::from_utf8(head).unwrap().lines().next().unwrap().to_owned();
                let address = line.split(' ').nth(1).unwrap().to_owned();
                asked.lock().unwrap().push(line);
                let mut outer = TcpStream::connect(address).await.unwrap();
                inner.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut inner, &mut outer).await);
            });
        }
    });
    url
}

async fn a_forward_proxy_is_told_the_address_that_was_checked(case: &Case) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let url = proxy(asked.clone()).await;
    let mut config = case.config();
    calling(case)(&mut config);
    config.callback.as_mut().unwrap().proxy = Some(url);
    let resolver = SecondLook::new("127.0.0.1", "127.0.0.1");
    let gateway = case.start(App::with_resolver(config, case.clock.clone(), None, resolver).unwrap()).await;
    let named = identity("NL", CertificateType::Callback, &["backend.test"], |_| {});
    gateway.register(&[&named]).await;
    let server = CallbackServer::start(&named, Behaviour::Answer(200)).await;
    let port = server.address.port();
    put(&gateway.client("NL"), "a", &format!("https://backend.test:{port}/notify")).await.expect(200);
    let batch = batch(&gateway, "0").await;
    called(&server, &[batch]).await;
    assert_eq!(*asked.lock().unwrap(), [format!("CONNECT 127.0.0.1:{port} HTTP/1.1")]);
}

async fn a_call_under_way_is_finished_before_the_gateway_stops(case: &Case) {
    let gateway = case.gateway_with(calling(case)).await;
    let server = subscribe(&gateway, "NL", "a").await;
    server.behave(Behaviour::Hang);
    batch(&gateway, "0").await;
    until("the call hangs", async || (!server.calls().is_empty()).then_some(())).await;
    case.stop(&gateway).await;
    assert_eq!(case.db.number("SELECT failures FROM callback_subscription").await, 1);
    let errors: Vec<String> = case.db.column("SELECT last_error FROM callback_subscription").await;
    assert!(errors[0].contains("the server did not answer within 2s"), "{errors:?}");
    let leases = "SELECT COUNT(*) FROM callback_subscription WHERE owner IS NOT NULL";
    assert_eq!(case.db.number(leases).await, 0);
}

/// A gateway in a process of its own, which ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

async fn when_the_delivering_gateway_is_killed_the_other_takes_over(case: &Case) {
    let short = |case: &Case| {
        let calling = calling(case);
        move |config: &mut Config| {
            calling(config);
            config.callback.as_mut().unwrap().timeout = Duration::from_secs(1);
        }
    };
    let other = case.gateway_with(short(case)).await;
    let server = subscribe(&other, "NL", "a").await;
    server.behave(Behaviour::Hang);
    case.stop(&other).await;
    let forms = case.gateway().await;

    let config = case.folder.path().join("killed.toml");
    let callback = "[callback]\ncertificate = \"callback-client.pem\"\nprivate_key = \"callback-client.key\"\n\
         allowed_networks = [\"127.0.0.0/8\"]\ntimeout = \"1s\"\n";
    // A short lease, so that the other takes over soon.
    let text = case.config_text().replace("[database]\n", "[database]\ntimeout = \"5s\"\n");
    std::fs::write(&config, text + callback).unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_efgs-gateway"));
    serve.args(["serve", "--config"]).arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
    let killed = Process(serve.spawn().unwrap());

    let mut batches = vec![batch(&forms, "0").await];
    until("the other process calls", async || (!server.calls().is_empty()).then_some(())).await;
    drop(killed);
    let leases = "SELECT COUNT(*) FROM callback_subscription WHERE owner IS NOT NULL";
    assert_eq!(case.db.number(leases).await, 1, "it died before it could give its lease back");
    server.behave(Behaviour::Answer(200));
    let survivor = case.gateway_with(short(case)).await;
    batches.push(batch(&survivor, "1").await);
    // The first was told twice: once by the one that died, whose call nobody recorded.
    batches.insert(0, batches[0].clone());
    called(&server, &batches).await;
    until("the lease is given back", async || (case.db.number(leases).await == 0).then_some(())).await;
}
