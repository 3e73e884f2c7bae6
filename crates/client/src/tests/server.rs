//! A server that gives scripted answers over mutual TLS, and records the requests.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
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

pub(crate) struct Asked {
    pub(crate) line: String,
    /// The whole head, in lower case.
    pub(crate) head: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }
}

/// What the server does with a request.
pub(crate) enum Reply {
    Whole(Vec<u8>),
    /// Hangs up after these bytes.
    CutOff(Vec<u8>),
    Never,
}

pub(crate) struct Server {
    port: u16,
    server_ca: String,
    client: KeyPair,
    asked: mpsc::Receiver<Asked>,
}

impl Server {
    /// A server, and a client for it.
    pub(crate) fn answering(answer: impl Into<Vec<u8>>) -> (Self, Gateway) {
        let server = Self::start(answer);
        let gateway = Gateway::new(server.settings()).unwrap();
        (server, gateway)
    }

    /// Answers every request so; with an empty answer never.
    pub(crate) fn start(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::replying(move |_| match answer.is_empty() {
            true => Reply::Never,
            false => Reply::Whole(answer.clone()),
        })
    }

    /// Asks `reply` for each answer, one request at a time.
    pub(crate) fn replying(reply: impl FnMut(&Asked) -> Reply + Send + 'static) -> Self {
        let pki = Pki::new(KeyKind::Ec256).unwrap();
        let clients = Authority::new("clients", KeyKind::Ec256).unwrap();
        let client = clients.issue(&Request::new(CertificateType::Authentication, "NL")).unwrap();
        let config = Arc::new(config(&pki, &clients));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, asked) = mpsc::channel();
        let reply = Arc::new(Mutex::new(reply));
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let (config, tell, reply) = (config.clone(), tell.clone(), reply.clone());
                let tls = StreamOwned::new(ServerConnection::new(config).unwrap(), tcp.unwrap());
                std::thread::spawn(move || converse(BufReader::new(tls), &tell, &*reply));
            }
        });
        Self { port, server_ca: pki.server_ca.certificate().pem().to_owned(), client, asked }
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            url: format!("https://localhost:{}", self.port),
            server_ca_pem: self.server_ca.clone(),
            certificate_pem: self.client.certificate.pem().to_owned(),
            private_key_pem: self.client.key_pem.clone().into(),
            timeout: Duration::from_secs(20),
        }
    }

    pub(crate) fn request(&self) -> Asked {
        self.asked.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

/// One connection, until the client hangs up: also in the middle of the handshake, when it refuses the server.
fn converse(
    mut stream: BufReader<StreamOwned<ServerConnection, TcpStream>>,
    tell: &mpsc::Sender<Asked>,
    reply: &Mutex<impl FnMut(&Asked) -> Reply>,
) {
    while let Some(request) = read(&mut stream) {
        let reply = (reply.lock().unwrap())(&request);
        drop(tell.send(request));
        let (bytes, goes_on) = match reply {
            Reply::Whole(bytes) => (bytes, true),
            Reply::CutOff(bytes) => (bytes, false),
            Reply::Never => (Vec::new(), true),
        };
        // A client that will not read everything may hang up first.
        drop(stream.get_mut().write_all(&bytes).and_then(|()| stream.get_mut().flush()));
        if !goes_on {
            break;
        }
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
