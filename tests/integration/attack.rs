//! What somebody does who wants to harm: an unregistered caller, or a country whose backend is broken.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use chrono::TimeDelta;

use crate::{
    client::{Client, Request, keys},
    harness::{Case, country, participant, tests, until},
    process::Process,
};

tests![
    requests_sent_behind_a_refusal_are_neither_served_nor_recorded,
    a_body_without_end_ends_with_the_answer,
    the_time_for_a_request_includes_the_wait_for_its_turn,
    a_second_head_that_never_ends_is_408_and_closes,
    connections_that_send_nothing_do_not_hold_up_others,
    a_body_that_is_framed_wrongly_is_400,
    what_an_unregistered_caller_does_is_a_few_lines_in_the_log,
    a_revocation_or_withdrawal_that_is_removed_from_the_database_stays_in_force,
];

/// A client whose certificate is not registered to call.
fn unregistered(port: u16) -> Client {
    Client::new(port, Some(&participant("DE").callback), participant("DE").signing.clone())
}

async fn requests_sent_behind_a_refusal_are_neither_served_nor_recorded(case: &Case) {
    let gateway = case.gateway().await;
    let mut connection = unregistered(gateway.address).connect();
    let request = Client::download_request(case.today(), None).raw();
    connection.write(&request.repeat(100)).unwrap();
    connection.answer().refused(403, "forbidden");
    assert!(connection.is_closed());
    case.clock.set(case.clock.now() + TimeDelta::minutes(1));
    until("the minute's record", async || {
        let counted = case.db.column::<i64>("SELECT request_count FROM access_log WHERE status = 403").await;
        (counted == [1]).then_some(())
    })
    .await;
}

async fn a_body_without_end_ends_with_the_answer(case: &Case) {
    let gateway = case.gateway().await;
    let head = "POST /diagnosiskeys/upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut connection = gateway.client("DE").connect();
    connection.write(head.as_bytes()).unwrap();
    connection.answer().refused(400, "invalid-header");
    let started = Instant::now();
    let chunk = [b"400\r\n".as_slice(), &[b'x'; 1024], b"\r\n"].concat();
    while connection.write(&chunk).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(10), "the gateway still reads");
    }
}

async fn the_time_for_a_request_includes_the_wait_for_its_turn(case: &Case) {
    let timeout = Duration::from_secs(3);
    let gateway = case
        .gateway_with(|config| {
            config.server.request_timeout = timeout;
            config.limits.concurrent_uploads = 1;
        })
        .await;
    let client = gateway.client("DE");
    let raw = client.request("a", &keys(country("DE"), 3, case.clock.now())).raw();
    let [mut first, mut second] = [client.connect(), client.connect()];
    let started = Instant::now();
    first.write(&raw[..raw.len() - 1]).unwrap();
    until("half of its time has passed", async || (started.elapsed() > timeout / 2).then_some(())).await;
    let started = Instant::now();
    second.write(&raw[..raw.len() - 1]).unwrap();
    assert_eq!(first.answer().status, 408);
    // It had its turn when the first one ended.
    second.answer().refused(408, "request-timeout");
    let took = started.elapsed();
    assert!(took < timeout + timeout / 3, "{took:?}");
}

async fn a_second_head_that_never_ends_is_408_and_closes(case: &Case) {
    let gateway = case.gateway_with(|config| config.server.request_timeout = Duration::from_secs(1)).await;
    let request = Client::download_request(case.today(), None).raw();
    // With the request before it, and by itself.
    for together in [true, false] {
        let mut connection = gateway.client("DE").connect();
        let (first, rest) = if together { (25, &b""[..]) } else { (0, &request[..25]) };
        connection.write(&[&request, &request[..first]].concat()).unwrap();
        connection.answer().refused(404, "batch-not-found");
        connection.write(rest).unwrap();
        if !together {
            assert_eq!(connection.answer().status, 408);
            assert!(connection.is_closed());
        }
    }
}

async fn connections_that_send_nothing_do_not_hold_up_others(case: &Case) {
    let gateway = case.gateway_with(|config| config.server.max_connections = 64).await;
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, gateway.address));
    let mut held = Vec::new();
    for address in 2..7 {
        for _ in 0..40 {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, address), 0)).into()).unwrap();
            socket.connect(&server.into()).unwrap();
            held.push(TcpStream::from(socket));
        }
    }
    let started = Instant::now();
    for _ in 0..3 {
        // While the others still arrive, its handshake may be the one that has to make room.
        let served = async || {
            let request = Client::download_request(case.today(), None);
            gateway.client("DE").try_send(request).await.ok().filter(|answer| answer.status == 404)
        };
        until("DE is served", served).await;
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    drop(held);
}

async fn a_body_that_is_framed_wrongly_is_400(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let request = client.request("a", &keys(country("DE"), 3, case.clock.now()));
    let head = Request { body: vec![], ..request }.header("Transfer-Encoding", "chunked").raw();
    let head = String::from_utf8(head).unwrap().replace("Content-Length: 0\r\n", "");
    let mut connection = client.connect();
    connection.write(head.as_bytes()).unwrap();
    connection.write(b"5\r\nhello\r\nzz\r\n").unwrap();
    let answer = connection.answer();
    answer.refused(400, "malformed-body");
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(connection.is_closed());
    assert_eq!(case.db.counts().await, [0, 0, 0]);
}

async fn what_an_unregistered_caller_does_is_a_few_lines_in_the_log(case: &Case) {
    case.prepare().await;
    let process = Process::start(&case.write_config(&case.config_text()));
    let before = process.log().len();
    let client = unregistered(process.port);
    for path in ["/diagnosiskeys/download/2026-11-22", "/nowhere", "/diagnosiskeys/upload"] {
        for _ in 0..50 {
            let mut connection = client.connect();
            connection.write(&Request::get(path).raw().repeat(3)).unwrap();
            assert!((400..500).contains(&connection.answer().status));
        }
    }
    for _ in 0..50 {
        let mut connection = client.connect();
        connection.write(b"NOT HTTP\r\n\r\n").unwrap();
        assert_eq!(connection.answer().status, 400);
    }
    for _ in 0..50 {
        let mut connection = TcpStream::connect(("127.0.0.1", process.port)).unwrap();
        connection.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        drop(connection.read(&mut [0; 100]));
    }
    let lines = process.log().split_off(before);
    assert!(lines.len() < 12, "{} lines, for example {:?}", lines.len(), &lines[lines.len() - 5..]);
    process.stop().await;
}

async fn a_revocation_or_withdrawal_that_is_removed_from_the_database_stays_in_force(case: &Case) {
    let gateway = case.gateway_with(|config| config.trust.refresh = Duration::from_millis(400)).await;
    let (de, nl) = (gateway.client("DE"), gateway.client("NL"));
    de.upload_new("a", 3, case.clock.now()).await;
    de.upload_new("b", 2, case.clock.now()).await;
    let batch = gateway.form().await.remove(0);
    de.send(Request::new("DELETE", "/diagnosiskeys/upload/a")).await.expect(200);
    let thumbprint = participant("IT").authentication.certificate.thumbprint();
    assert_eq!(gateway.app.store.revoke_certificate(thumbprint, case.clock.now()).await.unwrap(), 1);
    let it = gateway.client("IT");
    until("IT is refused", async || (it.download(case.today(), None).await.status == 403).then_some(()))
        .await;

    let ready = async || {
        let url = format!("http://127.0.0.1:{}/health/ready", gateway.admin);
        reqwest::get(url).await.unwrap().text().await.unwrap()
    };
    assert!(!ready().await.contains("removed from the database"));
    case.db.execute("UPDATE certificate SET revoked_at = NULL").await;
    case.db.execute("DELETE FROM withdrawal").await;
    let warned = async || {
        let warnings = ready().await;
        let both = warnings.contains("the revocation of") && warnings.contains("the withdrawal of upload");
        both.then_some(warnings)
    };
    let warnings = until("both are warnings", warned).await;
    assert!(warnings.contains(&thumbprint.to_string()), "{warnings}");
    it.download(case.today(), None).await.refused(403, "forbidden");
    assert_eq!(nl.download(case.today(), Some(&batch)).await.expect(200).keys().len(), 2);
    // A row that does not verify is a warning too.
    case.db.execute("UPDATE certificate SET country = 'FR' WHERE country = 'IE'").await;
    until("rejected rows", async || ready().await.contains("certificate table are rejected").then_some(()))
        .await;
}
