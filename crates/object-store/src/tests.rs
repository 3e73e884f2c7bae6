#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    sync::mpsc,
};

use reqwest::StatusCode;

use super::*;

fn settings(endpoint: &str) -> Settings {
    Settings {
        endpoint: endpoint.parse().unwrap(),
        name: "bucket".into(),
        region: "eu".into(),
        prefix: "p/".into(),
        path_style: true,
        ca_pem: None,
        credentials: Credentials::new("access", "secret"),
        timeout: Duration::from_secs(20),
        user_agent: "test",
    }
}

/// A store that gives one answer and hangs up; and what it was asked.
fn store(answer: Vec<u8>) -> (ObjectStore, mpsc::Receiver<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let (send, head) = mpsc::channel();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(&stream).lines().map_while(Result::ok);
        send.send(lines.take_while(|line| !line.is_empty()).collect()).unwrap();
        // A client that will not read everything may hang up first.
        drop((&stream).write_all(&answer));
    });
    (ObjectStore::new(settings(&endpoint)).unwrap(), head)
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into()
}

/// Without its length in advance.
fn in_chunks(status: &str, chunks: &[&str]) -> Vec<u8> {
    let chunks = chunks.iter().map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len())).collect::<String>();
    format!("HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n").into()
}

#[tokio::test]
async fn an_object_has_a_limit_whether_its_length_is_announced_or_not() {
    for answer in [answer("200 OK", "abcdef"), in_chunks("200 OK", &["abc", "def"])] {
        let object = store(answer.clone()).0.get("a", 6).await;
        assert_eq!(object.unwrap(), b"abcdef");
        let object = store(answer).0.get("a", 5).await;
        assert_eq!(object, Err(Error::TooLong { limit: 5 }));
    }
}

#[tokio::test]
async fn a_page_of_a_list_has_a_limit_whether_its_length_is_announced_or_not() {
    let page = " ".repeat(MAX_PAGE as usize + 1);
    for answer in [answer("200 OK", &page), in_chunks("200 OK", &[&page])] {
        for listed in [
            store(answer.clone()).0.list("", || {}).await.map(drop),
            store(answer).0.folders().await.map(drop),
        ] {
            assert_eq!(listed, Err(Error::TooLong { limit: MAX_PAGE }));
        }
    }
}

#[tokio::test]
async fn of_a_long_error_answer_the_status_is_left() {
    let code = "<Error><Code>NoSuchKey</Code></Error>";
    let refused = |code: &str| Err(Error::Refused { status: StatusCode::NOT_FOUND, code: code.to_owned() });
    assert_eq!(store(answer("404 Not Found", code)).0.delete("a").await, refused("NoSuchKey"));
    let long = code.to_owned() + &" ".repeat(MAX_REFUSAL as usize);
    assert_eq!(store(in_chunks("404 Not Found", &[&long])).0.delete("a").await, refused(""));
    let name = "a".repeat(65);
    let long = format!("<Error><Code>{name}</Code></Error>");
    assert_eq!(store(answer("404 Not Found", &long)).0.delete("a").await, refused(&name[1..]));
}

#[tokio::test]
async fn a_store_that_stops_in_the_middle_is_given_up_in_time() {
    // Answers the head and a part of the body, and keeps the connection open.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let (end, ended) = mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(&stream).lines().map_while(Result::ok);
        assert!(lines.take_while(|line| !line.is_empty()).count() > 1);
        (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc").unwrap();
        ended.recv().unwrap_err();
    });
    let settings = Settings { timeout: Duration::from_millis(200), ..settings(&endpoint) };
    let error = ObjectStore::new(settings).unwrap().get("a", 6).await.unwrap_err();
    assert!(error.is_temporary() && error.to_string().starts_with("no answer in time"), "{error}");
    drop(end);
    server.join().unwrap();
}

#[tokio::test]
async fn the_headers_of_an_object_are_sent_and_signed_and_errors_hold_no_signature() {
    let (store, head) = store(Vec::new());
    let put = store.put("a b", b"x".to_vec(), &[("content-type", "text/plain")]).await;
    let head = head.recv().unwrap();
    assert!(head[0].starts_with("PUT /bucket/p/a%20b?"), "{head:?}");
    assert!(head[0].contains("X-Amz-SignedHeaders=content-type%3Bhost"), "{head:?}");
    assert!(head.contains(&"content-type: text/plain".to_owned()), "{head:?}");
    let error = put.unwrap_err();
    assert!(error.is_temporary() && !error.to_string().contains("Amz"), "{error}");
}

#[tokio::test]
async fn an_object_without_a_size_is_no_object_of_a_list() {
    let page = "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Contents><Key>p/a</Key></Contents></ListBucketResult>";
    let error = store(answer("200 OK", page)).0.list("", || {}).await.unwrap_err();
    assert_eq!(error, Error::NotAList("p/a has no size".into()));
}

#[test]
fn a_setting_that_cannot_be_used_is_named() {
    let refused = |settings| ObjectStore::new(settings).unwrap_err().to_string();
    let text = refused(settings("ftp://store.example"));
    assert!(text.starts_with("`endpoint`: "), "{text}");
    let ca_pem = Some("nothing".to_owned());
    let text = refused(Settings { ca_pem, ..settings("https://store.example") });
    assert_eq!(text, "`ca`: there is no certificate in it");
}
