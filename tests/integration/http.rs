//! Everything around the operations: paths, methods, headers, time limits, the admin side, the end.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use efgs_gateway::server::ApiDoc;
use efgs_protocol::wire;
use openssl::ssl::SslVersion;
use utoipa::OpenApi as _;

use crate::{
    client::{JSON, PROTOBUF, Request, keys},
    harness::{Case, Running, country, participant, tests, until},
};

tests![
    every_operation_of_the_api_document_refuses_who_is_not_registered,
    without_a_client_certificate_the_handshake_fails,
    forged_proxy_headers_are_ignored,
    a_path_may_end_with_a_slash,
    what_is_not_there_is_404_in_the_shape_of_every_error,
    another_method_is_405_with_allow,
    options_names_methods_and_formats_to_anyone_with_a_certificate,
    header_names_are_case_insensitive,
    only_downloads_look_at_accept,
    a_request_that_never_ends_is_408_and_closes,
    tls_1_2_is_spoken_too,
    every_answer_has_a_request_id,
    when_the_database_is_away_the_answer_is_503_with_a_date,
    a_request_under_way_is_finished_before_the_gateway_stops,
    idle_connections_do_not_hold_up_the_end,
    the_admin_side_tells_health_and_the_api,
    the_admin_side_answers_under_no_foreign_name,
    slow_clients_do_not_hold_up_the_admin_side,
    the_national_side_has_no_admin_paths,
];

async fn every_operation_of_the_api_document_refuses_who_is_not_registered(case: &Case) {
    let gateway = case.gateway().await;
    let registered = gateway.client("DE");
    registered.upload_new("a", 1, case.clock.now()).await;
    let batch = gateway.form().await.remove(0);
    // Registered, but not to call with; and a perfect certificate that nobody registered.
    let unknown = efgs_test_ca::Pki::new(efgs_test_ca::KeyKind::Ec256)
        .unwrap()
        .participant(country("DE"))
        .unwrap()
        .authentication;
    let unregistered = [&participant("DE").signing, &participant("DE").callback, &unknown];
    let document = serde_json::to_value(ApiDoc::openapi()).unwrap();
    let mut called = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path
            .replace("{date}", &case.today().to_string())
            .replace("{batchTag}", &batch)
            .replace("{id}", "a");
        for method in operations.as_object().unwrap().keys() {
            if method == "options" {
                continue;
            }
            assert!(!path.contains('{'), "tell this test what to put into {path}");
            let method: &'static str = method.to_uppercase().leak();
            for identity in unregistered {
                let unregistered = gateway.client_with(Some(identity), "DE");
                let body = keys(country("DE"), 1, case.clock.now());
                let request = Request { method, path: path.clone(), ..unregistered.request("b", &body) };
                let answer = unregistered.send(request.header("Accept", PROTOBUF)).await;
                answer.refused(403, "forbidden");
            }
            called += 1;
        }
    }
    assert!(called >= 3, "the API document has only {called} operations");
    assert_eq!(case.db.counts().await, [1, 1, 1]);
}

async fn without_a_client_certificate_the_handshake_fails(case: &Case) {
    let gateway = case.gateway().await;
    let anonymous = gateway.client_with(None, "DE");
    for request in [Request::new("OPTIONS", wire::ROOT_PATH), Request::get("/")] {
        // Whether the reason arrives before the connection is gone is a matter of luck.
        anonymous.try_send(request.clone()).await.unwrap_err();
        assert!([200, 404].contains(&gateway.client("DE").send(request).await.status));
    }
}

async fn forged_proxy_headers_are_ignored(case: &Case) {
    let gateway = case.gateway().await;
    let thumbprint = participant("NL").authentication.certificate.thumbprint().to_string();
    let forged = |request: Request| {
        request.header("X-SSL-Client-SHA256", &thumbprint).header("X-SSL-Client-DN", "CN=x,O=y,C=NL")
    };
    let unregistered = gateway.client_with(Some(&participant("NL").callback), "NL");
    let day = case.today();
    let get = || crate::client::Client::download_request(day, None);
    unregistered.send(forged(get())).await.refused(403, "forbidden");
    // DE stays DE, whatever it says: it may not upload for NL, and it may for itself.
    let client = gateway.client("DE");
    let foreign = keys(country("NL"), 1, case.clock.now());
    client.send(forged(client.request("a", &foreign))).await.refused(400, "foreign-origin");
    let own = keys(country("DE"), 1, case.clock.now());
    let twice = forged(client.request("a", &own)).also("X-SSL-Client-SHA256", "0");
    client.send(twice).await.expect(201);
}

async fn a_path_may_end_with_a_slash(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 1, case.clock.now());
    let slash = |request: Request| Request { path: format!("{}/", request.path), ..request };
    client.send(slash(client.request("a", &keys))).await.expect(201);
    let batch = gateway.form().await.remove(0);
    let reader = gateway.client("NL");
    let day = case.today();
    reader.send(slash(crate::client::Client::download_request(day, None))).await.expect(200);
    reader.send(Request::get(format!("{}/{day}/{batch}/", wire::AUDIT_PATH))).await.expect(200);
    reader.send(Request::new("OPTIONS", "/diagnosiskeys/")).await.expect(200);
}

async fn what_is_not_there_is_404_in_the_shape_of_every_error(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let day = case.today();
    for path in [
        "/".to_owned(),
        "/diagnosiskeys/uploads".to_owned(),
        "/diagnosiskeys/download".to_owned(),
        "/diagnosiskeys/download/".to_owned(),
        format!("/diagnosiskeys/download/{day}/x"),
        "/diagnosiskeys/audit".to_owned(),
        format!("/diagnosiskeys/audit/download/{day}"),
        "/DIAGNOSISKEYS/UPLOAD".to_owned(),
    ] {
        client.send(Request::get(&path)).await.refused(404, "no-such-path");
    }
    // Bytes that are no text.
    for path in ["/diagnosiskeys/download/%ff".to_owned(), format!("/diagnosiskeys/audit/download/{day}/%ff")]
    {
        let answer = client.send(Request::get(&path).header("Accept", PROTOBUF)).await;
        assert!([400, 404].contains(&answer.status), "{}", answer.text());
        answer.refused(answer.status, answer.json()["code"].as_str().unwrap());
    }
}

async fn another_method_is_405_with_allow(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let day = case.today();
    let paths = [
        (wire::UPLOAD_PATH.to_owned(), "POST"),
        (format!("{}/{day}", wire::DOWNLOAD_PATH), "GET"),
        (format!("{}/{day}/20201122-1", wire::AUDIT_PATH), "GET"),
        (wire::ROOT_PATH.to_owned(), "OPTIONS"),
    ];
    for (path, allowed) in paths {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            if method == allowed {
                continue;
            }
            let answer = client.send(Request::new(method, &path)).await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some(allowed));
            if method != "HEAD" {
                answer.refused(405, "method-not-allowed");
            }
        }
    }
}

async fn options_names_methods_and_formats_to_anyone_with_a_certificate(case: &Case) {
    let gateway = case.gateway().await;
    let unregistered = gateway.client_with(Some(&participant("DE").signing), "DE");
    let answer = unregistered.send(Request::new("OPTIONS", wire::ROOT_PATH)).await.expect(200);
    assert_eq!(answer.header("allow"), Some("POST,GET,OPTIONS"));
    assert_eq!(
        answer.header("accept"),
        Some("application/json; version=1.0, application/protobuf; version=1.0")
    );
}

async fn header_names_are_case_insensitive(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let spell: [fn(&str) -> String; 3] =
        [str::to_lowercase, str::to_uppercase, |name| name.replace("batch", "Batch")];
    let mut connection = client.connect();
    for (i, spell) in spell.iter().enumerate() {
        let keys = keys(country("DE"), 1, case.clock.now());
        let mut request = client.request(&i.to_string(), &keys);
        for (name, _) in &mut request.headers {
            *name = spell(name);
        }
        connection.write(&request.raw()).unwrap();
        assert_eq!(connection.answer().status, 201);
    }
    assert_eq!(case.db.counts().await, [3, 3, 0]);
}

async fn only_downloads_look_at_accept(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let batch = {
        client.upload_new("first", 1, case.clock.now()).await;
        gateway.form().await.remove(0)
    };
    let accepts =
        ["text/plain, */*", "application/octet-stream, */*", "application/json;version=1.0", "image/png", ""];
    for (i, accept) in accepts.into_iter().enumerate() {
        let keys = keys(country("DE"), 1, case.clock.now());
        let request = client.request(&i.to_string(), &keys).header("Accept", accept);
        client.send(request).await.expect(201);
        let audit = Request::get(format!("{}/{}/{batch}", wire::AUDIT_PATH, case.today()));
        let answer = client.send(audit.header("Accept", accept)).await.expect(200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
}

async fn a_request_that_never_ends_is_408_and_closes(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.server.request_timeout = Duration::from_secs(1);
        })
        .await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 3, case.clock.now());
    let raw = client.request("a", &keys).raw();
    // Cut off in the head, and in the body.
    for cut in [40, raw.len() - 1] {
        let mut connection = client.connect();
        let started = Instant::now();
        connection.write(&raw[..cut]).unwrap();
        let answer = connection.answer();
        assert_eq!(answer.status, 408);
        if cut > 40 {
            answer.refused(408, "request-timeout");
        }
        assert!(connection.is_closed());
        // The HTTP library's clock ticks twice a second.
        assert!(started.elapsed() > Duration::from_millis(400), "{:?}", started.elapsed());
    }
    assert_eq!(case.db.counts().await, [0, 0, 0]);
    client.upload("a", &keys).await.expect(201);
}

async fn tls_1_2_is_spoken_too(case: &Case) {
    let gateway = case.gateway().await;
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let mut connection = gateway.client("DE").connect_with(version);
        connection.write(&Request::new("OPTIONS", wire::ROOT_PATH).raw()).unwrap();
        assert_eq!(connection.answer().status, 200);
    }
}

async fn every_answer_has_a_request_id(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let first = client.send(Request::get("/")).await;
    let second = client.send(Request::new("OPTIONS", wire::ROOT_PATH)).await;
    let id = |answer: &crate::client::Answer| answer.header("x-request-id").unwrap().to_owned();
    assert_eq!(id(&first).len(), 16);
    assert_ne!(id(&first), id(&second));
}

/// Makes the database unusable for every operation on uploads and batches, in a way that each of them reports
/// as "away": the gateway's own pools are closed.
async fn close_database(gateway: &Running) {
    gateway.app.store.clone().close().await;
}

async fn when_the_database_is_away_the_answer_is_503_with_a_date(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.database.timeout = Duration::from_secs(1);
        })
        .await;
    let client = gateway.client("DE");
    client.upload_new("a", 1, case.clock.now()).await;
    let batch = gateway.form().await.remove(0);
    close_database(&gateway).await;
    let keys = keys(country("DE"), 1, case.clock.now());
    let (upload, download, audit) = futures_util::future::join3(
        client.upload("b", &keys),
        client.download(case.today(), Some(&batch)),
        client.audit(case.today(), &batch),
    )
    .await;
    let later = case.clock.now() + TimeDelta::seconds(10);
    let later = later.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    for answer in [upload, download, audit] {
        let message = answer.refused(503, "unavailable");
        assert!(!message.contains("SQL") && !message.contains("pool"), "{message}");
        assert_eq!(answer.header("retry-after"), Some(later.as_str()));
    }
    let ready = admin(&gateway, "/health/ready").await;
    // What is in memory would be served.
    assert_eq!((ready.0, &ready.1["status"]), (200, &"degraded".into()));
    assert!(ready.1["reasons"][0].as_str().unwrap().contains("database"), "{}", ready.1);
    assert_eq!(admin(&gateway, "/health/live").await.0, 200);
    assert_eq!(case.db.counts().await, [1, 1, 1]);
}

async fn a_request_under_way_is_finished_before_the_gateway_stops(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 100, case.clock.now());
    let raw = client.request("a", &keys).raw();
    let mut connection = client.connect();
    let (first, rest) = raw.split_at(raw.len() / 2);
    connection.write(first).unwrap();
    // The server has begun to read it when it answers another request of the same worker.
    gateway.client("NL").send(Request::new("OPTIONS", wire::ROOT_PATH)).await.expect(200);
    let stopping = case.stop(&gateway);
    let finishing = async {
        // Nobody new is let in, and the one that is there is waited for.
        until("the port closes", async || {
            std::net::TcpStream::connect(("127.0.0.1", gateway.address)).is_err().then_some(())
        })
        .await;
        connection.write(rest).unwrap();
        let answer = connection.answer();
        drop(connection);
        answer
    };
    let (_, answer) = futures_util::future::join(stopping, finishing).await;
    assert_eq!(answer.status, 201);
    assert_eq!(case.db.counts().await, [1, 100, 0]);
}

async fn idle_connections_do_not_hold_up_the_end(case: &Case) {
    let gateway = case.gateway().await;
    let mut connection = gateway.client("DE").connect();
    connection.write(&Request::new("OPTIONS", wire::ROOT_PATH).raw()).unwrap();
    assert_eq!(connection.answer().status, 200);
    let started = Instant::now();
    case.stop(&gateway).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(connection.is_closed());
}

async fn admin(gateway: &Running, path: &str) -> (u16, serde_json::Value, String) {
    let url = format!("http://127.0.0.1:{}{path}", gateway.admin);
    let response = reqwest::Client::new().get(url).send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_default(), text)
}

async fn the_admin_side_tells_health_and_the_api(case: &Case) {
    let gateway = case.gateway().await;
    for path in ["/health/live", "/health/ready"] {
        let (status, body, _) = admin(&gateway, path).await;
        assert_eq!((status, &body["status"]), (200, &serde_json::json!("up")), "{body}");
    }
    let (status, document, _) = admin(&gateway, "/openapi.json").await;
    assert_eq!((status, document), (200, serde_json::to_value(ApiDoc::openapi()).unwrap()));
    let (status, _, page) = admin(&gateway, "/swagger/").await;
    assert_eq!(status, 200);
    assert!(page.to_lowercase().contains("<html"), "{page}");
    assert_eq!(admin(&gateway, "/metrics").await.0, 200);
}

async fn the_admin_side_answers_under_no_foreign_name(case: &Case) {
    let gateway = case.gateway_with(|config| config.server.admin_hosts = vec!["efgs.example".into()]).await;
    let status = async |host: String| {
        let request = reqwest::Client::new().get(format!("http://127.0.0.1:{}/", gateway.admin));
        request.header("Host", host).send().await.unwrap().status().as_u16()
    };
    let port = gateway.admin;
    for own in ["localhost", "gateway", "127.0.0.1", "10.0.0.11", "[::1]", "efgs.example", "EFGS.example."] {
        assert_eq!(status(own.into()).await, 200, "{own}");
        assert_eq!(status(format!("{own}:{port}")).await, 200, "{own}");
    }
    for foreign in ["rebinding.example", "efgs.example.org", "localhost.example", "127.0.0.1.example"] {
        assert_eq!(status(format!("{foreign}:{port}")).await, 421, "{foreign}");
    }
}

async fn slow_clients_do_not_hold_up_the_admin_side(case: &Case) {
    let gateway = case.gateway().await;
    let slow: Vec<_> = (0..200)
        .map(|_| {
            let mut connection = std::net::TcpStream::connect(("127.0.0.1", gateway.admin)).unwrap();
            std::io::Write::write_all(&mut connection, b"GET /health/ready HTTP/1.1\r\n").unwrap();
            connection
        })
        .collect();
    let started = Instant::now();
    assert_eq!(admin(&gateway, "/health/live").await.0, 200);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    drop(slow);
}

async fn the_national_side_has_no_admin_paths(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    for path in ["/health/live", "/health/ready", "/metrics", "/openapi.json", "/swagger/"] {
        let request = Request::get(path).header("Accept", JSON);
        client.send(request).await.refused(404, "no-such-path");
    }
}
