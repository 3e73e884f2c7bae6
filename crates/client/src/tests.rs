#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod doctor;
pub(crate) mod server;

use std::time::Duration;

use chrono::{NaiveDate, TimeZone, Utc};
use efgs_protocol::{
    batch_tag::UploadTag,
    canonical::CanonicalKeys,
    certificate::CertificateType,
    key::{DiagnosisKey, KeyBatch, KeyData, ReportType},
    media::{MediaType, SUPPORTED},
    signature::{self, SignaturePolicy},
    wire,
};
use efgs_test_ca::{Authority, KeyKind, KeyPair, Pki, Request};

use super::{Error, Format, Gateway, Refusal, RetryAfter, Settings, SettingsError, Upload};
use server::Server;

fn keys() -> KeyBatch {
    let key = DiagnosisKey {
        key_data: KeyData::new([7; 16]),
        rolling_start_interval_number: 2_676_960,
        rolling_period: 144,
        transmission_risk_level: 3,
        origin: "NL".parse().unwrap(),
        report_type: ReportType::ConfirmedTest,
        days_since_onset_of_symptoms: -2,
    };
    let mut keys = KeyBatch::new();
    keys.push(key, &["DE".parse().unwrap(), "FR".parse().unwrap()]);
    keys.push(DiagnosisKey { key_data: KeyData::new([8; 16]), ..key }, &[]);
    keys
}

fn tag() -> UploadTag {
    "2026-11-22-NL-1".parse().unwrap()
}

fn day() -> NaiveDate {
    "2026-11-22".parse().unwrap()
}

fn json_answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn download_answer(format: Format, headers: &str, keys: &KeyBatch) -> Vec<u8> {
    let body =
        if keys.is_empty() && format == Format::Protobuf { Vec::new() } else { wire::encode(format, keys) };
    let media = MediaType { format, version: SUPPORTED };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

fn refused(error: Error) -> Refusal {
    match error {
        Error::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_upload_is_signed_and_carries_its_tag_and_format() {
    let (server, gateway) = Server::answering("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n");
    let pki = Pki::new(KeyKind::Ec256).unwrap();
    let signing = pki.participant("NL".parse().unwrap()).unwrap().signing;
    let outcome = gateway.upload(&tag(), Format::Json, &keys(), &signing.signer().unwrap()).await;
    assert_eq!(outcome, Ok(Upload::Stored));

    let request = server.request();
    assert_eq!(request.line, "POST /diagnosiskeys/upload HTTP/1.1");
    assert_eq!(request.header("content-type"), "application/json; version=1.0");
    assert_eq!(request.header("batchtag"), "2026-11-22-NL-1");
    assert_eq!(wire::decode(Format::Json, &request.body, 10).as_ref(), Ok(&keys()));
    let signed_bytes = CanonicalKeys::of(&keys()).signed_bytes();
    #[expect(clippy::disallowed_methods, reason = "the certificate was made just now")]
    let now = Utc::now();
    let signature = request.header("batchsignature");
    let by = signature::verify(signature, &signed_bytes, now, SignaturePolicy::default()).unwrap();
    assert_eq!(by.certificate, signing.certificate);
}

#[tokio::test]
async fn conflicts_are_told_apart_from_what_would_be_accepted() {
    let upload = async |answer: &str| {
        let (_server, gateway) = Server::answering(json_answer("207 Multi-Status", answer));
        let media = MediaType { format: Format::Protobuf, version: SUPPORTED };
        gateway.upload_signed(&tag(), media, vec![1, 2, 3], "c2lnbmF0dXJl").await
    };
    let conflicts = Upload::Conflicts { accepted: vec![0, 2], existing: vec![1] };
    assert_eq!(upload(r#"{"201":[0,2],"409":[1],"500":[]}"#).await, Ok(conflicts));
    for answer in [r#"{"201":[0],"409":[1],"500":[2]}"#, "{}", "[]", ""] {
        assert!(matches!(upload(answer).await, Err(Error::Unexpected(_))), "{answer}");
    }
}

#[tokio::test]
async fn a_download_carries_both_tags_in_either_format() {
    for format in Format::ALL {
        let tags = "batchtag: a1\r\nnextbatchtag: a2\r\n";
        let (server, gateway) = Server::answering(download_answer(format, tags, &keys()));
        let download = gateway.download(day(), None, format).await.unwrap().unwrap();
        assert_eq!((download.batch_tag.as_str(), download.next_batch_tag.as_deref()), ("a1", Some("a2")));
        assert_eq!(download.keys, keys());
        let request = server.request();
        assert_eq!(request.line, "GET /diagnosiskeys/download/2026-11-22 HTTP/1.1");
        assert_eq!(request.header("accept"), MediaType { format, version: SUPPORTED }.to_string());
        assert!(!request.head.contains("batchtag"), "{}", request.head);
    }
}

#[tokio::test]
async fn the_last_batch_may_be_empty() {
    for format in Format::ALL {
        let tags = "batchTag: a2\r\nnextBatchTag: null\r\n";
        let (server, gateway) = Server::answering(download_answer(format, tags, &KeyBatch::new()));
        let download = gateway.download(day(), Some("a2"), format).await.unwrap().unwrap();
        assert_eq!(download.next_batch_tag, None);
        assert!(download.keys.is_empty());
        assert_eq!(server.request().header("batchtag"), "a2");
    }
}

#[tokio::test]
async fn only_a_gateway_can_say_that_there_is_no_batch() {
    let none =
        r#"{"message":"no batch has been formed on or after 2026-11-22 yet","code":"batch-not-found"}"#;
    let (_server, gateway) = Server::answering(json_answer("404 Not Found", none));
    assert_eq!(gateway.download(day(), None, Format::Json).await, Ok(None));
    let wrong_path = r#"{"message":"there is nothing at this path","code":"no-such-path"}"#;
    for body in [wrong_path, "<html>", ""] {
        let (_server, gateway) = Server::answering(json_answer("404 Not Found", body));
        assert_eq!(refused(gateway.download(day(), None, Format::Json).await.unwrap_err()).status, 404);
    }
}

#[tokio::test]
async fn a_download_without_its_headers_is_not_believed() {
    for headers in ["", "batchTag: a1\r\n", "nextBatchTag: null\r\n"] {
        let (_server, gateway) = Server::answering(download_answer(Format::Json, headers, &keys()));
        assert!(
            matches!(gateway.download(day(), None, Format::Json).await, Err(Error::Unexpected(_))),
            "{headers}"
        );
    }
    let (_server, gateway) = Server::answering(
        "HTTP/1.1 200 OK\r\nbatchTag: a\r\nnextBatchTag: b\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(matches!(gateway.download(day(), None, Format::Json).await, Err(Error::Unexpected(_))));
}

#[tokio::test]
async fn an_audit_asks_for_its_batch_by_path() {
    let (server, gateway) = Server::answering(json_answer("200 OK", "[]"));
    assert_eq!(gateway.audit(day(), "20261122-1").await, Ok(vec![]));
    assert_eq!(server.request().line, "GET /diagnosiskeys/audit/download/2026-11-22/20261122-1 HTTP/1.1");
    let (server, gateway) = Server::answering(json_answer("200 OK", "[]"));
    assert_eq!(gateway.audit(day(), "a/b?c").await, Ok(vec![]));
    assert_eq!(server.request().line, "GET /diagnosiskeys/audit/download/2026-11-22/a%2Fb%3Fc HTTP/1.1");
}

#[tokio::test]
async fn a_refusal_carries_status_code_message_and_when_to_try_again() {
    let body = r#"{"message":"try again a little later","code":"unavailable"}"#;
    let answer = json_answer("503 Service Unavailable\r\nRetry-After: Sun, 22 Nov 2026 10:15:30 GMT", body);
    let (_server, gateway) = Server::answering(answer);
    let refusal = refused(gateway.audit(day(), "a").await.unwrap_err());
    let at = Utc.with_ymd_and_hms(2026, 11, 22, 10, 15, 30).unwrap();
    assert_eq!(
        refusal,
        Refusal {
            status: 503,
            code: Some("unavailable".into()),
            message: Some("try again a little later".into()),
            retry_after: Some(RetryAfter::At(at)),
        }
    );
    assert_eq!(refusal.to_string(), "the gateway answered 503 unavailable: try again a little later");
    assert_eq!(RetryAfter::parse("120"), Some(RetryAfter::In(Duration::from_secs(120))));
    assert_eq!(RetryAfter::parse("soon"), None);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (_server, gateway) =
        Server::answering("HTTP/1.1 302 Found\r\nLocation: https://localhost/\r\nContent-Length: 0\r\n\r\n");
    let refusal = refused(gateway.audit(day(), "a").await.unwrap_err());
    assert_eq!((refusal.status, refusal.code), (302, None));
}

#[tokio::test]
async fn no_more_is_read_than_a_gateway_would_send() {
    let announced = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n";
    let (_server, gateway) = Server::answering(announced);
    assert_eq!(gateway.audit(day(), "a").await, Err(Error::TooLong { limit: 128 << 20 }));
    // Not announced: the body comes in pieces.
    let body = format!(r#"{{"message":"{}"}}"#, "a".repeat(0x20000));
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let answer = format!("HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}");
    let (_server, gateway) = Server::answering(answer);
    let refusal = refused(gateway.audit(day(), "a").await.unwrap_err());
    assert_eq!((refusal.status, refusal.message), (400, None));
}

#[tokio::test]
async fn only_the_named_authority_counts() {
    let server = Server::start("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]");
    let settings = server.settings();
    let other = Pki::new(KeyKind::Ec256).unwrap();
    let gateway =
        Gateway::new(Settings { server_ca_pem: other.server_ca.certificate().pem().to_owned(), ..settings })
            .unwrap();
    mended_by_hand(&gateway.audit(day(), "a").await.unwrap_err(), "invalid peer certificate");
}

#[tokio::test]
async fn a_certificate_that_the_gateway_refuses_is_not_tried_again() {
    let server = Server::start("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]");
    let strange = Authority::new("strange", KeyKind::Ec256).unwrap();
    let KeyPair { certificate, key_pem } =
        strange.issue(&Request::new(CertificateType::Authentication, "NL")).unwrap();
    let settings = Settings {
        certificate_pem: certificate.pem().to_owned(),
        private_key_pem: key_pem.into(),
        ..server.settings()
    };
    let error = Gateway::new(settings).unwrap().audit(day(), "a").await.unwrap_err();
    mended_by_hand(&error, "alert");
}

/// Trouble with a certificate does not pass by itself.
fn mended_by_hand(error: &Error, what: &str) {
    let text = error.to_string();
    assert!(matches!(error, Error::Tls(_)) && !error.is_temporary(), "{error:?}");
    assert!(text.contains(what) && text.contains("run `efgs doctor`"), "{text}");
}

#[tokio::test]
async fn a_gateway_that_does_not_answer_is_not_waited_for() {
    let server = Server::start("");
    let gateway =
        Gateway::new(Settings { timeout: Duration::from_millis(200), ..server.settings() }).unwrap();
    assert!(matches!(gateway.audit(day(), "a").await, Err(Error::NoAnswer { timed_out: true, .. })));
}

#[tokio::test]
async fn what_is_no_header_is_not_sent() {
    let (_server, gateway) = Server::answering("");
    let media = MediaType { format: Format::Protobuf, version: SUPPORTED };
    let outcome = gateway.upload_signed(&tag(), media, vec![], "two\nlines").await;
    assert!(matches!(outcome, Err(Error::Request(_))), "{outcome:?}");
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let pki = Pki::new(KeyKind::Ec256).unwrap();
    let identity = Request::new(CertificateType::Authentication, "NL").self_signed().unwrap();
    let good = || Settings {
        url: "https://localhost:8443".into(),
        server_ca_pem: pki.server_ca.certificate().pem().to_owned(),
        certificate_pem: identity.certificate.pem().to_owned(),
        private_key_pem: identity.key_pem.clone().into(),
        timeout: Duration::from_secs(1),
    };
    let refuse = |settings| Gateway::new(settings).unwrap_err();
    Gateway::new(good()).unwrap();
    for url in [
        "",
        "localhost",
        "http://localhost",
        "https://u:secret@localhost",
        "https://localhost/?a",
        "https://localhost/#a",
    ] {
        let error = refuse(Settings { url: url.into(), ..good() });
        assert!(matches!(error, SettingsError::Url(_)), "{url}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    for pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(matches!(
            refuse(Settings { server_ca_pem: pem.into(), ..good() }),
            SettingsError::ServerCa(_)
        ));
    }
    assert!(matches!(
        refuse(Settings { certificate_pem: String::new(), ..good() }),
        SettingsError::Certificate(_)
    ));
    let other = Request::new(CertificateType::Authentication, "NL").self_signed().unwrap().key_pem;
    for key in [String::new(), other] {
        assert!(matches!(
            refuse(Settings { private_key_pem: key.into(), ..good() }),
            SettingsError::PrivateKey(_)
        ));
    }
}

#[test]
fn paths_are_put_behind_that_of_the_gateway() {
    let server = Server::start("");
    for (url, expected) in [
        ("https://localhost:1", "https://localhost:1/diagnosiskeys/upload"),
        ("https://localhost:1/efgs/", "https://localhost:1/efgs/diagnosiskeys/upload"),
        ("https://localhost:1/efgs", "https://localhost:1/efgs/diagnosiskeys/upload"),
    ] {
        let gateway = Gateway::new(Settings { url: url.into(), ..server.settings() }).unwrap();
        assert_eq!(gateway.endpoint(wire::UPLOAD_PATH, &[]).as_str(), expected);
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn callbacks_are_listed_put_and_deleted() {
    let list = r#"[{"callbackId":"a/b","url":"https://nl.example/x"}]"#;
    let (server, gateway) = Server::answering(json_answer("200 OK", list));
    let callbacks = gateway.callbacks().await.unwrap();
    assert_eq!(
        (callbacks[0].callback_id.as_str(), callbacks[0].url.as_str()),
        ("a/b", "https://nl.example/x")
    );
    assert_eq!(server.request().line, "GET /diagnosiskeys/callback HTTP/1.1");

    let (server, gateway) = Server::answering(OK);
    gateway.put_callback("a/b", "https://nl.example/x y&z").await.unwrap();
    let line = "PUT /diagnosiskeys/callback/a%2Fb?url=https%3A%2F%2Fnl.example%2Fx+y%26z HTTP/1.1";
    assert_eq!(server.request().line, line);

    let (server, gateway) = Server::answering(OK);
    assert_eq!(gateway.delete_callback("a").await, Ok(true));
    assert_eq!(server.request().line, "DELETE /diagnosiskeys/callback/a HTTP/1.1");
    assert!(matches!(gateway.delete_callback("..").await, Err(Error::Request(_))));
}

#[tokio::test]
async fn only_a_gateway_can_say_that_something_is_unknown() {
    let answer =
        |code: &str| json_answer("404 Not Found", &format!(r#"{{"code":"{code}","message":"none"}}"#));
    let (_server, gateway) = Server::answering(answer("callback-not-found"));
    assert_eq!(gateway.delete_callback("a").await, Ok(false));
    let (_server, gateway) = Server::answering(answer("not-found"));
    assert_eq!(refused(gateway.delete_callback("a").await.unwrap_err()).status, 404);
    let (_server, gateway) = Server::answering(answer("upload-not-found"));
    assert_eq!(gateway.withdraw(&tag()).await, Ok(false));
    let (_server, gateway) = Server::answering(answer("not-found"));
    assert_eq!(refused(gateway.withdraw(&tag()).await.unwrap_err()).status, 404);
}

#[tokio::test]
async fn a_withdrawal_names_the_upload_by_its_path() {
    let (server, gateway) = Server::answering(OK);
    assert_eq!(gateway.withdraw(&"a/b=".parse().unwrap()).await, Ok(true));
    assert_eq!(server.request().line, "DELETE /diagnosiskeys/upload/a%2Fb= HTTP/1.1");
}

#[tokio::test]
async fn a_probe_tells_the_time_and_the_formats() {
    let answer = |headers: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{headers}\r\n");
    let accept = "Accept: application/json; version=1.0, application/protobuf; version=1.0\r\n";
    let (server, gateway) =
        Server::answering(answer(&format!("Date: Tue, 24 Nov 2026 18:00:00 GMT\r\n{accept}")));
    let probe = gateway.probe().await.unwrap();
    assert_eq!(server.request().line, "OPTIONS /diagnosiskeys HTTP/1.1");
    assert_eq!(probe.date, Some(Utc.with_ymd_and_hms(2026, 11, 24, 18, 0, 0).unwrap()));
    assert_eq!(
        probe.formats.iter().map(|media| media.format).collect::<Vec<_>>(),
        [Format::Json, Format::Protobuf]
    );
    let (_server, gateway) = Server::answering(answer(accept));
    assert_eq!(gateway.probe().await.unwrap().date, None);
    // A web server knows OPTIONS, too.
    let (_server, gateway) = Server::answering(answer("Date: Tue, 24 Nov 2026 18:00:00 GMT\r\n"));
    assert!(matches!(gateway.probe().await, Err(Error::Unexpected(_))));
}
