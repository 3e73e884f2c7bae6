#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use efgs_protocol::{certificate::CertificateType, signature::Identity};
use efgs_test_ca::{KeyPair, Request};
use tokio::{sync::oneshot, task::JoinHandle};

use super::*;
use crate::{Settings, connection};

fn pair(kind: CertificateType, country: &str) -> KeyPair {
    Request::new(kind, country).self_signed().unwrap()
}

/// A receiver at `/notify` that lets `gateway` in.
struct Listening {
    server: KeyPair,
    port: u16,
    events: Arc<Mutex<Vec<ReceiverEvent>>>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl Listening {
    async fn start(gateway: &KeyPair) -> Self {
        let server = pair(CertificateType::Callback, "NL");
        let identity = Identity::from_pem(server.certificate.pem(), &server.key_pem, None).unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let pins = vec![gateway.certificate.clone()];
        let receiver = Receiver::bind(listen, "/notify", &identity, pins).await.unwrap();
        let port = receiver.address().unwrap().port();
        let events = Arc::<Mutex<Vec<ReceiverEvent>>>::default();
        let (stop, stopped) = oneshot::channel();
        let seen = events.clone();
        let running = tokio::spawn(
            receiver.run(async { drop(stopped.await) }, move |event| seen.lock().unwrap().push(event)),
        );
        Self { server, port, events, stop: Some(stop), running }
    }

    /// Somebody who calls with this certificate.
    fn caller(&self, identity: &KeyPair) -> reqwest::Client {
        let settings = Settings {
            url: String::new(),
            server_ca_pem: self.server.certificate.pem().to_owned(),
            certificate_pem: identity.certificate.pem().to_owned(),
            private_key_pem: identity.key_pem.clone().into(),
            timeout: Duration::from_secs(20),
        };
        connection::client(&settings).unwrap()
    }

    fn url(&self, rest: &str) -> String {
        format!("https://localhost:{}{rest}", self.port)
    }

    /// Stops, and tells what happened.
    async fn events(mut self) -> Vec<ReceiverEvent> {
        self.stop.take().unwrap().send(()).unwrap();
        self.running.await.unwrap();
        std::mem::take(&mut *self.events.lock().unwrap())
    }
}

const GOOD: &str = "/notify?batchTag=20261124-3&date=2026-11-24";

#[tokio::test]
async fn the_gateway_is_answered_at_once_and_told_what_is_wrong() {
    let gateway = pair(CertificateType::Callback, "EU");
    let listening = Listening::start(&gateway).await;
    let caller = listening.caller(&gateway);
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    assert_eq!(status(caller.get(listening.url(GOOD))).await, 200);
    for (path, code) in
        [("/", 404), ("/notify/?batchTag=1", 404), ("/notify", 400), ("/notify?batchTag=x", 400)]
    {
        assert_eq!(status(caller.get(listening.url(path))).await, code, "{path}");
    }
    assert_eq!(status(caller.post(listening.url(GOOD)).body("x")).await, 405);
    let events = listening.events().await;
    let announcement = Announcement::from_query("batchTag=20261124-3&date=2026-11-24").unwrap();
    assert_eq!(events[0], ReceiverEvent::Announced(announcement));
    assert_eq!(
        events.iter().filter(|event| matches!(event, ReceiverEvent::TurnedAway { .. })).count(),
        5,
        "{events:?}"
    );
}

#[tokio::test]
async fn nobody_else_gets_beyond_the_handshake() {
    let gateway = pair(CertificateType::Callback, "EU");
    let listening = Listening::start(&gateway).await;
    // The same names in another certificate, and the receiver's own.
    for other in [pair(CertificateType::Callback, "EU"), listening.server.clone()] {
        listening.caller(&other).get(listening.url(GOOD)).send().await.unwrap_err();
    }
    let anonymous = reqwest::Client::builder()
        .tls_backend_preconfigured({
            let mut roots = rustls::RootCertStore::empty();
            roots.add(listening.server.certificate.der().to_vec().into()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth()
        })
        .build()
        .unwrap();
    anonymous.get(listening.url(GOOD)).send().await.unwrap_err();
    let events = listening.events().await;
    assert_eq!(events.len(), 3, "{events:?}");
    assert!(events.iter().all(|event| matches!(event, ReceiverEvent::TurnedAway { .. })), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_not_waited_for() {
    let gateway = pair(CertificateType::Callback, "EU");
    let listening = Listening::start(&gateway).await;
    let silent: Vec<_> =
        (0..3).map(|_| std::net::TcpStream::connect(("127.0.0.1", listening.port)).unwrap()).collect();
    while listening.events.lock().unwrap().len() < silent.len() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let events = listening.events().await;
    for event in &events {
        assert!(
            matches!(event, ReceiverEvent::TurnedAway { reason, .. } if reason.contains("handshake took longer than 3s")),
            "{event:?}"
        );
    }
}

#[tokio::test]
async fn without_a_certificate_of_the_gateway_it_does_not_start() {
    let server = pair(CertificateType::Callback, "NL");
    let identity = Identity::from_pem(server.certificate.pem(), &server.key_pem, None).unwrap();
    let refused = Receiver::bind("127.0.0.1:0".parse().unwrap(), "/", &identity, Vec::new()).await;
    assert!(matches!(refused, Err(ReceiverError::NoGateway)));
}
