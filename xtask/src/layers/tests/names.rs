use super::super::crates::Member;
use super::super::names::{self, Rule};
use super::super::table::NAMES;
use super::{code, crates_of, gateway};

/// The names that the repository's own rules refuse in `src/upload.rs`, with their lines.
fn refused(text: &str) -> Vec<String> {
    refused_beside(text, "")
}

/// The same, where the root has more in it.
fn refused_beside(text: &str, root: &str) -> Vec<String> {
    let root = format!("mod upload; {root}");
    let mentions = code(&[("src/lib.rs", &root), ("src/upload.rs", text)]).unwrap().mentions;
    let found = names::breaches(NAMES, &mentions);
    let shown = found.iter().filter_map(|breach| breach.strip_prefix("src/upload.rs:"));
    shown
        .filter_map(|breach| Some(breach.split_once(": ")?.0.to_owned() + " " + breach.split(": ").nth(1)?))
        .collect()
}

#[test]
fn a_status_is_decided_only_in_an_error_mapping() {
    for (text, name) in [
        ("use actix_web::HttpResponse;\nfn f() { HttpResponse::Conflict().finish() }", "2 HttpResponse::*"),
        ("use actix_web as a;\nfn f() { a::HttpResponse::Conflict().finish() }", "2 HttpResponse::*"),
        ("use actix_web::HttpResponse as R;\nfn f() { R::Conflict() }", "2 HttpResponse::*"),
        ("type R = actix_web::HttpResponse;\nfn f() { R::Conflict() }", "2 HttpResponse::*"),
        ("fn f() { <actix_web::HttpResponse>::Conflict() }", "1 HttpResponse::*"),
        ("use actix_web::*;\nfn f() { HttpResponse::Conflict() }", "2 HttpResponse::*"),
        ("use actix_web::http as h;\nfn f() { h::StatusCode::CONFLICT }", "2 StatusCode"),
        ("fn f() { use actix_web::http as h;\n h::StatusCode::CONFLICT }", "2 StatusCode"),
        (
            "use actix_web::http::StatusCode as Code;\nfn f() { json!({\"a\": Code::CONFLICT}) }",
            "2 StatusCode",
        ),
        ("use actix_web::ResponseError;\nimpl ResponseError for E {}", "2 ResponseError"),
        ("fn f() { actix_web::error::ErrorConflict(1) }", "1 actix_web::error::Error*"),
        (
            "use std::fmt::Display as Problem;\nimpl Problem for E { fn f() { StatusCode::OK } }",
            "2 StatusCode",
        ),
        ("impl E { fn f() { StatusCode::OK } }", "1 StatusCode"),
        ("impl Problem for E {}\nfn f() { StatusCode::OK }", "2 StatusCode"),
    ] {
        assert_eq!(refused(text), [name], "{text}");
    }
    let mapping = "use actix_web::http::StatusCode;\n\
                   impl crate::http::Problem for E { fn status(&self) -> StatusCode { StatusCode::CONFLICT } }\n\
                   fn f() -> actix_web::HttpResponse { reply::created() }";
    assert_eq!(refused(mapping), Vec::<String>::new());
}

#[test]
fn a_connection_is_opened_only_in_its_places() {
    for (text, name) in [
        ("use std::net::TcpStream;\nfn f() { TcpStream::connect(a) }", "2 TcpStream::connect*"),
        ("fn f() { std::net::TcpStream::connect_timeout(a, b) }", "1 TcpStream::connect*"),
        ("use tokio::net::TcpStream as T;\nfn f() { T::connect(a) }", "2 TcpStream::connect*"),
        (
            "trait C { fn f(); }\nimpl C for tokio::net::TcpStream { fn f() { Self::connect(a) } }",
            "2 TcpStream::connect*",
        ),
        ("fn f() { use tokio::net::TcpStream as T;\n T::connect(a) }", "2 TcpStream::connect*"),
        ("use socket2::{self as s};\nfn f() { s::Socket::new(a) }", "2 socket2::Socket"),
        ("use std::net::UdpSocket;", "1 UdpSocket"),
        ("fn f() { std::net::UdpSocket::bind(a) }", "1 UdpSocket"),
        ("fn f() { tokio::net::TcpSocket::new_v4() }", "1 TcpSocket"),
        ("fn f() { std::os::unix::net::UnixStream::connect(a) }", "1 UnixStream::connect*"),
        ("fn f() { (\"host\", 1).to_socket_addrs() }", "1 .to_socket_addrs"),
        ("fn f() { log!((\"host\", 1).to_socket_addrs()) }", "1 .to_socket_addrs"),
        ("fn f() { std::net::ToSocketAddrs::to_socket_addrs(a) }", "1 ToSocketAddrs"),
        ("fn f() { tokio::net::lookup_host(a) }", "1 lookup_host"),
        ("use hyper as h;\nfn f() { h::client::conn::http1::handshake(a) }", "2 hyper::*"),
        ("extern crate hyper as h;\nfn f() { h::rt() }", "2 hyper::*"),
        ("use reqwest::*;", "1 reqwest::*"),
        ("fn f() { efgs_client::Gateway::new(a) }", "1 efgs_client::*"),
        ("fn f() { log(\"http://x\"); std::net::UdpSocket::bind(a) }", "1 UdpSocket"),
    ] {
        assert_eq!(refused(text), [name], "{text}");
    }
}

#[test]
fn a_name_is_found_behind_re_exports() {
    let net = "pub mod net { pub use tokio::net::TcpStream as Connection; pub use hyper::*; }";
    for (text, name) in [
        ("use crate::net::Connection;\nfn f() { Connection::connect(a) }", "2 TcpStream::connect*"),
        ("use crate::net::*;\nfn f() { Connection::connect(a) }", "2 TcpStream::connect*"),
        ("use super::net as n;\nfn f() { n::Connection::connect(a) }", "2 TcpStream::connect*"),
    ] {
        assert_eq!(refused_beside(text, net), [name], "{text}");
    }
}

#[test]
fn a_name_is_found_behind_a_re_export_of_another_crate() {
    let files = [
        ("src/lib.rs", "mod upload;"),
        (
            "src/upload.rs",
            "use efgs_kit::Code;\nfn f() { Code::OK }\nmod b { use efgs_kit;\nfn f() { efgs_kit::Code::OK } }",
        ),
        ("crates/kit/src/lib.rs", "mod http; pub use http::Code;"),
        ("crates/kit/src/http.rs", "pub use actix_web::http::StatusCode as Code;"),
    ];
    let kit = Member {
        name: "efgs-kit".to_owned(),
        manifest: "crates/kit/Cargo.toml".to_owned(),
        dependencies: vec![],
        library: Some(("efgs_kit".to_owned(), "crates/kit/src/lib.rs".to_owned())),
        programs: vec![],
    };
    let mentions = crates_of(&files, vec![gateway(&files), kit]).unwrap().mentions;
    let found = names::breaches(NAMES, &mentions);
    for place in ["src/upload.rs:2", "src/upload.rs:4"] {
        assert!(
            found.iter().any(|breach| breach.starts_with(&format!("{place}: StatusCode: "))),
            "{found:?}"
        );
    }
}

#[test]
fn what_only_looks_like_a_name_is_left_alone() {
    for text in [
        "// StatusCode::CONFLICT",
        "/// `UdpSocket`\nfn f() { log(\"TcpStream::connect(a) // StatusCode\") }",
        "fn f(stream: tokio::net::TcpStream) -> TlsStream<TcpStream> { stream.connected() }",
        "#[cfg(test)] mod tests { use reqwest::Client; }",
        "fn f() { #[cfg(test)] use tokio::net::TcpStream as T; T::connect(a) }",
        "fn f() { to_socket_addrs() }",
        "struct MyStatusCode; fn f(hyper: u8) -> u8 { hyper }",
        "fn f() { info!(hyper = 1, status.StatusCode = 2); a..connect }",
    ] {
        assert_eq!(refused(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn an_exception_that_nothing_needs_is_a_breach() {
    let rule =
        |except| Rule { within: &["src"], except, except_impl_of: &[], names: &["UdpSocket"], reason: "why" };
    let files = [
        ("src/lib.rs", "mod guard;"),
        ("src/guard.rs", "use std::net::UdpSocket; mod inner;"),
        ("src/guard/inner.rs", "use std::net::UdpSocket;"),
    ];
    let mentions = code(&files).unwrap().mentions;
    assert_eq!(names::breaches(&[rule(&["src/guard"])], &mentions), Vec::<String>::new());
    assert_eq!(
        names::breaches(&[rule(&["src/guard", "src/gua"])], &mentions),
        ["src/gua needs no exception any more: remove it from the rule \"why\""]
    );
    assert_eq!(
        names::breaches(&[rule(&["src/guard/inner"])], &mentions),
        ["src/guard.rs:1: UdpSocket: why"],
        "a file's exception does not reach the module above it"
    );
}
