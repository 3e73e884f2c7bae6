#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
};

use super::*;

/// Lists a bucket of a store that gives these answers, one for each request, and then hangs up.
fn list(answers: impl IntoIterator<Item = String> + Send + 'static) -> Result<usize, BucketError> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = BucketSettings {
        endpoint: format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port()),
        name: "phones".into(),
        region: Some("eu".into()),
        prefix: "p/".into(),
        path_style: Some(true),
        ca: None,
        access_key_file: None,
        secret_key_file: None,
        timeout: Some(Duration::from_secs(20)),
    };
    std::thread::spawn(move || {
        for answer in answers {
            let (stream, _) = listener.accept().unwrap();
            let head = BufReader::new(&stream).lines().map_while(Result::ok);
            assert!(head.take_while(|line| !line.is_empty()).count() > 1);
            // A client that will not read everything may hang up first.
            drop((&stream).write_all(answer.as_bytes()));
        }
    });
    let bucket = Bucket::new(&settings, None, ("access".into(), "secret".into())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(bucket.list()).map(|objects| objects.len())
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn page(object: &str, next: Option<&str>) -> String {
    let next = next.map(|next| format!("<NextContinuationToken>{next}</NextContinuationToken>"));
    let body = format!(
        "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>phones</Name><Prefix>p/</Prefix><KeyCount>1</KeyCount><MaxKeys>1</MaxKeys>\
         <IsTruncated>{}</IsTruncated>{}<Contents><Key>p/{object}</Key><LastModified>2026-11-24T10:00:00Z</LastModified>\
         <ETag>0</ETag><Size>1</Size><StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>",
        next.is_some(),
        next.as_deref().unwrap_or_default()
    );
    answer("200 OK", &body)
}

#[test]
fn a_list_has_pages_and_an_end() {
    let pages = [page("a", Some("1")), page("b", Some("2")), page("c", None)];
    assert_eq!(list(pages).unwrap(), 3);
    for tokens in [&["1"][..], &["1", "2", "3"]] {
        let endless = tokens.iter().cycle().map(|token| page("a", Some(token)));
        let error = list(endless).unwrap_err();
        assert!(!error.is_temporary());
        assert!(error.to_string().contains("the list does not end"), "{error}");
    }
}

#[test]
fn a_page_has_a_limit() {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n<", (16 << 20) + 1);
    let error = list([head]).unwrap_err();
    assert!(error.to_string().contains("more than 16777216 bytes"), "{error}");
    assert!(!error.is_temporary());
}

#[test]
fn only_what_passes_by_itself_is_temporary() {
    for (status, temporary, remedy) in [
        ("408 Request Timeout", true, ""),
        ("429 Too Many Requests", true, ""),
        ("500 Internal Server Error", true, ""),
        ("503 Slow Down", true, ""),
        ("301 Moved Permanently", false, "`endpoint`"),
        ("400 Bad Request", false, "`endpoint`"),
        ("401 Unauthorized", false, "the credentials"),
        ("403 Forbidden", false, "the credentials"),
        ("404 Not Found", false, "`endpoint`"),
    ] {
        let error = list([answer(status, "<Error><Code>Why</Code></Error>")]).unwrap_err();
        assert_eq!(error.is_temporary(), temporary, "{error}");
        let text = error.to_string();
        assert!(text.contains(&status[..3]) && text.contains("Why") && text.contains(remedy), "{text}");
    }
    let error = list([]).unwrap_err();
    assert!(error.is_temporary() && error.to_string().contains("no answer from the store"), "{error}");
    assert!(!read(Path::new("not-there")).unwrap_err().is_temporary());
}
