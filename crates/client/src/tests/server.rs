//! A server that gives one answer over mutual TLS, and remembers what it was asked.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{Arc, mpsc},
    time::Duration,
};

use efgs_protocol::certificate::CertificateType;
use efgs_test_ca::{Authority, KeyKind, KeyPair, Pki, Request};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::{Gateway, Settings};

pub(super) struct Asked {
    pub(super) line: String,
    /// The whole head, in lower case.
    pub(super) head: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }
}

pub(super) struct Server {
    port: u16,
    server_ca: String,
    client: KeyPair,
    asked: mpsc::Receiver<Asked>,
}

impl Server {
    /// A server, and a client for it.
    pub(super) fn answering(answer: impl Into<Vec<u8>>) -> (Self, Gateway) {
        let server = Self::start(answer);
        let gateway = Gateway::new(server.settings()).unwrap();
        (server, gateway)
    }

    /// Answers one connection; with an empty answer never.
    pub(super) fn start(answer: impl Into<Vec<u8>>) -> Self {
        let pki = Pki::new(KeyKind::Ec256).unwrap();
        let clients = Authority::new("clients", KeyKind::Ec256).unwrap();
        let client = clients.issue(&Request::new(CertificateType::Authentication, "NL")).unwrap();
        let config = Arc::new(config(&pki, &clients));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, asked) = mpsc::channel();
        let answer = answer.into();
        std::thread::spawn(move || {
            let (tcp, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config).unwrap(), tcp));
            // A client that refuses the server leaves in the middle of the handshake.
            let Some(request) = read(&mut stream) else { return };
            drop(tell.send(request));
            if !answer.is_empty() {
                // A client that will not read everything may hang up first.
                drop(stream.get_mut().write_all(&answer).and_then(|()| stream.get_mut().flush()));
            }
            // Until the client hangs up.
            drop(stream.read(&mut [0]));
        });
        Self { port, server_ca: pki.server_ca.certificate().pem().to_owned(), client, asked }
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            url: format!("https://localhost:{}", self.port),
            server_ca_pem: self.server_ca.clone(),
            certificate_pem: self.client.certificate.pem().to_owned(),
            private_key_pem: self.client.key_pem.clone().into(),
            timeout: Duration::from_secs(20),
        }
    }

    pub(super) fn request(&self) -> Asked {
        self.asked.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

fn config(pki: &Pki, clients: &Authority) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_slice(clients.certificate().der())).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let chain = vec![
        CertificateDer::from(pki.server.certificate.der().to_vec()),
        CertificateDer::from(pki.server_ca.certificate().der().to_vec()),
    ];
    let key = PrivateKeyDer::from_pem_slice(pki.server.key_pem.as_bytes()).unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap()
}

fn read(stream: &mut impl BufRead) -> Option<Asked> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        match stream.read_line(&mut head) {
            Ok(1..) => {}
            _ => return None,
        }
    }
    let mut lines = head.lines();
    let line = lines.next().unwrap().to_owned();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let head = head.to_lowercase();
    let mut asked = Asked { line, head, headers, body: Vec::new() };
    asked.body = vec![0; asked.header("content-length").parse().unwrap_or(0)];
    stream.read_exact(&mut asked.body).ok()?;
    Some(asked)
}
