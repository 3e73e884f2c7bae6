//! The load balancers of `deploy/`, started with the very files that an operator takes, before a real gateway.
//!
//! nginx and HAProxy come from Debian's packages; where one is missing its tests say so and pass, or fail
//! when `EFGS_TEST_REQUIRE_ALL=1`. Envoy is in no Debian package: it is tested where it is installed.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why it is skipped"
)]

mod balancers;
#[path = "../shared/free_port.rs"]
mod free_port;
mod setup;

use std::sync::Arc;

use efgs_client::{Format, Upload};
use efgs_protocol::{
    anchor::TrustAnchor,
    audit::verify_batch,
    canonical::CanonicalKeys,
    media::{MediaType, SUPPORTED},
    signature::SignaturePolicy,
    wire,
};
use efgs_test_ca::Participant;
use openssl::ssl::SslVersion;

use balancers::{Balancer, ENVOY, HAPROXY, NGINX};
use setup::{Setup, country, finish, keys, status};

/// Everything that a participant does.
fn registered_countries_work_as_usual(balancer: &Balancer) {
    let Some(setup) = Setup::new(balancer) else { return };
    let [german, dutch] = setup.uploads();
    for (reader, expected) in [(&setup.nl, &german), (&setup.de, &dutch)] {
        let client = setup.client(reader);
        let mut found = Vec::new();
        let mut tag = None;
        loop {
            let download = client.download(setup.today(), tag.as_deref(), Format::Json);
            let batch = setup.runtime.block_on(download).unwrap().unwrap();
            let audit = setup.runtime.block_on(client.audit(setup.today(), &batch.batch_tag)).unwrap();
            let anchor = TrustAnchor::from_pem(setup.pki.anchor_pair.certificate.pem()).unwrap();
            let policy = SignaturePolicy::default();
            let verdicts = verify_batch(
                &audit,
                &batch.keys,
                batch.batch_tag.parse().ok(),
                reader.country,
                &anchor,
                policy,
            )
            .unwrap();
            assert!(!verdicts.is_empty() && verdicts.iter().all(|verdict| verdict.holds()), "{verdicts:?}");
            found.extend(batch.keys.iter().map(|key| *key.key_data.as_bytes()));
            match batch.next_batch_tag {
                Some(next) => tag = Some(next),
                None => break,
            }
        }
        let expected: Vec<_> = expected.iter().map(|key| *key.key_data.as_bytes()).collect();
        assert_eq!(found, expected);
    }
}

/// The longest signature and the largest body that the gateway takes, and nothing larger.
fn the_limits_are_the_gateways(balancer: &Balancer) {
    let Some(setup) = Setup::new(balancer) else { return };
    let keys = keys(setup.de.country, 50, setup.today());
    let signature =
        setup.de.signing.signer().unwrap().sign(&CanonicalKeys::of(&keys).signed_bytes()).unwrap();
    // Spaces in it are tolerated.
    let (start, end) = signature.split_at(10);
    let signature = format!("{start}{}{end}", " ".repeat(16 * 1024 - signature.len()));
    let mut body = wire::encode(Format::Json, &keys);
    body.resize(10 * 1024 * 1024, b' ');
    let client = setup.client(&setup.de);
    let media = MediaType { format: Format::Json, version: SUPPORTED };
    let tag = "a".parse().unwrap();
    let uploading = client.upload_signed(&tag, media, body, &signature);
    assert_eq!(setup.runtime.block_on(uploading).unwrap(), Upload::Stored);

    let size = 10 * 1024 * 1024 + 1;
    let mut larger = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nbatchTag: b\r\nbatchSignature: {signature}\r\n\
         Content-Type: {media}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n",
        wire::UPLOAD_PATH,
    )
    .into_bytes();
    larger.resize(larger.len() + size, b' ');
    let answer = setup.talk(Some(&setup.de.authentication), &larger).unwrap();
    assert_eq!(status(&answer), 413, "{answer}");
}

/// A caller without a certificate is rejected, and so is one that is not registered.
fn without_a_registered_certificate_nobody_gets_in(balancer: &Balancer) {
    let Some(setup) = Setup::new(balancer) else { return };
    setup.uploads();
    let thumbprint = setup.de.authentication.certificate.thumbprint();
    let perfect =
        setup.download(&format!("X-SSL-Client-SHA256: {thumbprint}\r\nX-SSL-Client-DN: CN=x,C=DE\r\n"));
    // Refused in the handshake, or with an answer.
    if let Ok(answer) = setup.talk(None, &perfect) {
        assert_eq!(status(&answer), 403, "{answer}");
    }
    let unknown = setup.pki.participant(country("DE")).unwrap().authentication;
    for identity in [&setup.de.callback, &setup.de.signing, &unknown] {
        let answer = setup.talk(Some(identity), &perfect).unwrap();
        assert_eq!(status(&answer), 403, "{answer}");
        assert!(answer.contains(r#""code":"forbidden""#), "{answer}");
    }
    // Not even when it is refused while it still sends.
    let size = 4 * 1024 * 1024;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n",
        wire::UPLOAD_PATH
    );
    let upload = [head.as_bytes(), &vec![b' '; size]].concat();
    let answer = setup.talk(Some(&unknown), &upload).unwrap();
    assert_eq!(status(&answer), 403, "{answer}");
    // And the registered one needs no header.
    let answer = setup.talk(Some(&setup.de.authentication), &setup.download("")).unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
}

/// The ways to send these two headers oneself.
fn forged(thumbprint: &str, subject: &str) -> Vec<String> {
    let pair = |sha: &str, dn: &str| format!("{sha}: {thumbprint}\r\n{dn}: {subject}\r\n");
    let usual = pair("X-SSL-Client-SHA256", "X-SSL-Client-DN");
    let mut all: Vec<String> = [
        ("x-ssl-client-sha256", "x-ssl-client-dn"),
        ("X-Ssl-Client-Sha256", "X-Ssl-Client-Dn"),
        ("X-SSL-CLIENT-SHA256", "X-SSL-CLIENT-DN"),
        ("X_SSL_Client_SHA256", "X_SSL_Client_DN"),
        ("X-SSL_Client-SHA256", "X-SSL-Client_DN"),
        ("x_ssl_client_sha256", "x_ssl_client_dn"),
        ("X.SSL.Client.SHA256", "X.SSL.Client.DN"),
        ("X-SSL-Client-SHA256 ", "X-SSL-Client-DN "),
        ("X-SSL-Client-SHA256\t", "X-SSL-Client-DN\t"),
        (" X-SSL-Client-SHA256", " X-SSL-Client-DN"),
        ("X-SSL-Client-SHA256", "X_SSL_Client_DN"),
        ("X_SSL_Client_SHA256", "X-SSL-Client-DN"),
    ]
    .iter()
    .map(|(sha, dn)| pair(sha, dn))
    .collect();
    all.push(usual.clone());
    all.push(usual.repeat(2));
    all.push([pair("X_SSL_Client_SHA256", "X_SSL_Client_DN"), usual.clone()].concat());
    all.push(format!("X-SSL-Client-SHA256:\r\n {thumbprint}\r\nX-SSL-Client-DN:\r\n {subject}\r\n"));
    all.push(format!("X-A: b\r\n {usual}"));
    all.push(format!("X-A: b\r{usual}"));
    all.push(format!("X-A: b\n{usual}"));
    all.push(format!("X-A: b\0\r\n{usual}"));
    all.push(usual.replace("\r\n", ",\r\n"));
    for connection in ["X-SSL-Client-SHA256, X-SSL-Client-DN", "close, X-SSL-Client-SHA256"] {
        all.push(format!("Connection: {connection}\r\n{usual}"));
    }
    all.push(format!("X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\n{usual}"));
    all.push(format!("X-Forwarded-Client-Cert: Hash={thumbprint};Subject=\"{subject}\"\r\n{usual}"));
    all.push(format!("Transfer-Encoding: chunked\r\nTrailer: X-SSL-Client-DN\r\n\r\n0\r\n{usual}"));
    all.push(format!("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{usual}"));
    all
}

/// What a client says of itself under these names is not believed, whether it is registered or not.
fn forged_headers_change_nothing(balancer: &Balancer) {
    let Some(setup) = Setup::new(balancer) else { return };
    setup.uploads();
    let (de, nl) = (&setup.de.authentication, &setup.nl.authentication);
    let unknown = setup.pki.participant(country("NL")).unwrap().authentication;
    let body = |answer: &str| answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    let plain = setup.talk(Some(nl), &setup.download("")).unwrap();
    assert_eq!(status(&plain), 200, "{plain}");
    assert_ne!(body(&plain), body(&setup.talk(Some(de), &setup.download("")).unwrap()));
    let mut served = 0;
    for lines in forged(&de.certificate.thumbprint().to_string(), "CN=DE authentication,C=DE") {
        for identity in [nl, &unknown] {
            // A head that is no HTTP may be answered by closing the connection.
            let Ok(answer) = setup.talk(Some(identity), &setup.download(&lines)) else {
                continue;
            };
            match status(&answer) {
                200 => {
                    assert_eq!(identity.certificate, nl.certificate, "{lines:?}");
                    assert_eq!(body(&answer), body(&plain), "{lines:?}");
                    served += 1;
                }
                403 => assert_ne!(identity.certificate, nl.certificate, "{lines:?}: {answer}"),
                // No HTTP, or the rest of it taken for a second request.
                other => assert_eq!(other, 400, "{lines:?}: {answer}"),
            }
            for second in answer.split("HTTP/1.1 ").skip(2) {
                assert!(second.starts_with("400") || second.starts_with("403"), "{lines:?}: {answer}");
            }
        }
    }
    assert!(served >= 10, "the headers of a registered client are dropped, not its requests: {served}");
}

/// The load balancer shares its connections to the gateway between callers; and a resumed TLS session is still
/// its own client's.
fn clients_are_told_apart(balancer: &Balancer, resumes: bool) {
    let Some(setup) = Setup::new(balancer) else { return };
    setup.uploads();
    let answer_to = |participant: &Participant, config: Option<&Arc<rustls::ClientConfig>>| match config {
        None => (setup.talk(Some(&participant.authentication), &setup.download("")).unwrap(), false),
        Some(config) => {
            let name = "localhost".try_into().unwrap();
            let session = rustls::ClientConnection::new(config.clone(), name).unwrap();
            let mut stream = rustls::StreamOwned::new(session, setup.tcp());
            let answer = finish(&mut stream, &setup.download("")).unwrap();
            (answer, stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed))
        }
    };
    // Each country sees the other's keys only.
    let sees = |participant: &Participant, answer: &str| {
        assert_eq!(status(answer), 200, "{answer}");
        assert!(!answer.contains(&format!("\"origin\":\"{}\"", participant.country)), "{answer}");
    };
    for _ in 0..10 {
        for participant in [&setup.de, &setup.nl] {
            sees(participant, &answer_to(participant, None).0);
        }
        let answer = setup.talk(Some(&setup.de.signing), &setup.download("")).unwrap();
        assert_eq!(status(&answer), 403, "{answer}");
    }
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let configs = [&setup.de, &setup.nl].map(|participant| {
            let config = setup.rustls_config(&participant.authentication, version);
            (participant, Arc::new(config))
        });
        let mut resumed = 0;
        for _ in 0..3 {
            for (participant, config) in &configs {
                let (answer, was_resumed) = answer_to(participant, Some(config));
                sees(participant, &answer);
                resumed += usize::from(was_resumed);
            }
        }
        assert_eq!(resumed > 0, resumes, "{version:?}: {resumed} resumed");
    }
}

/// TLS 1.2 and 1.3, nothing older.
fn only_current_tls_is_spoken(balancer: &Balancer) {
    let Some(setup) = Setup::new(balancer) else { return };
    for (version, works) in
        [(SslVersion::TLS1_1, false), (SslVersion::TLS1_2, true), (SslVersion::TLS1_3, true)]
    {
        let mut connector = setup.connector(Some(&setup.de.authentication));
        connector.set_cipher_list("DEFAULT@SECLEVEL=0").unwrap();
        connector.set_min_proto_version(Some(version)).unwrap();
        connector.set_max_proto_version(Some(version)).unwrap();
        let outcome = connector.build().connect("localhost", setup.tcp());
        match outcome {
            Ok(mut stream) if works => {
                let answer = finish(&mut stream, &setup.download("")).unwrap();
                assert_eq!(status(&answer), 404, "{answer}");
            }
            outcome => assert!(!works && outcome.is_err(), "{version:?}: {:?}", outcome.err()),
        }
    }
}

/// Without a gateway a country is told to come back, in a form that it reads.
fn without_a_gateway_the_answer_is_503(balancer: &Balancer, says_when: bool) {
    let Some(mut setup) = Setup::new(balancer) else { return };
    setup.stop_gateway();
    let answer = setup.talk(Some(&setup.de.authentication), &setup.download("")).unwrap();
    assert_eq!(status(&answer), 503, "{answer}");
    if says_when {
        assert!(answer.contains(r#""code":"unavailable""#), "{answer}");
        let later = answer.lines().find_map(|line| line.strip_prefix("Retry-After: ")).unwrap();
        let later = chrono::NaiveDateTime::parse_from_str(later, "%a, %d %b %Y %H:%M:%S GMT").unwrap();
        let wait = (later.and_utc() - setup.app.clock.now()).num_seconds();
        assert!((1..=10).contains(&wait), "{wait} s");
    }
}

macro_rules! balancers {
    ($($module:ident = $balancer:ident, $resumes:literal, $says_when:literal;)*) => {$(
        mod $module {
            #[test]
            fn registered_countries_work_as_usual() {
                super::registered_countries_work_as_usual(&super::$balancer);
            }
            #[test]
            fn the_limits_are_the_gateways() {
                super::the_limits_are_the_gateways(&super::$balancer);
            }
            #[test]
            fn without_a_registered_certificate_nobody_gets_in() {
                super::without_a_registered_certificate_nobody_gets_in(&super::$balancer);
            }
            #[test]
            fn forged_headers_change_nothing() {
                super::forged_headers_change_nothing(&super::$balancer);
            }
            #[test]
            fn clients_are_told_apart() {
                super::clients_are_told_apart(&super::$balancer, $resumes);
            }
            #[test]
            fn only_current_tls_is_spoken() {
                super::only_current_tls_is_spoken(&super::$balancer);
            }
            #[test]
            fn without_a_gateway_the_answer_is_503() {
                super::without_a_gateway_the_answer_is_503(&super::$balancer, $says_when);
            }
        }
    )*};
}

balancers! {
    nginx = NGINX, true, true;
    haproxy = HAPROXY, true, true;
    envoy = ENVOY, false, false;
}

#[test]
fn haproxy_writes_header_names_as_the_specification_does() {
    let Some(setup) = Setup::new(&HAPROXY) else { return };
    setup.uploads();
    let answer = setup.talk(Some(&setup.nl.authentication), &setup.download("")).unwrap();
    for name in ["\r\nbatchTag: ", "\r\nnextBatchTag: ", "\r\nContent-Type: "] {
        assert!(answer.contains(name), "{name:?}: {answer}");
    }
}

#[test]
fn haproxy_asks_the_gateways_health() {
    let Some(mut setup) = Setup::new(&HAPROXY) else { return };
    for server in ["gateway1", "gateway2"] {
        setup.until("a check succeeds", |setup| {
            let log = setup.log();
            let mut lines = log.lines().filter(|line| line.contains(&format!("gateways/{server}")));
            lines.any(|line| line.contains("succeeded") && line.contains("code: 200"))
        });
    }
}
