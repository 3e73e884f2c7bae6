//! One connection of the load generator: HTTP/1.1 over mutual TLS, as little work per byte as possible.
//!
//! The generator shares the machine's few cores with the server that it measures. It reads a whole socket
//! buffer at once, which the buffered interface of rustls would not, and looks only at the answer's head.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use efgs_test_ca::{Identity, Pki};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    client::{Resumption, UnbufferedClientConnection},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    unbuffered::{ConnectionState, UnbufferedStatus},
};
use socket2::{Domain, Socket, Type};

use crate::Outcome;

/// Bytes read from the socket at once.
const BUFFER: usize = 256 * 1024;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client's side of TLS: 1.3, one cipher, so that every server is asked for the same work.
pub(crate) fn client(pki: &Pki, identity: &Identity, resume: bool) -> Outcome<Arc<ClientConfig>> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(pki.server_ca.certificate().der().to_vec()))?;
    let certificate = CertificateDer::from(identity.certificate.der().to_vec());
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())?;
    let mut config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)?;
    if !resume {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// What a step of TLS leaves to do.
#[derive(PartialEq)]
enum Next {
    /// Another step.
    Again,
    /// The handshake needs bytes of the server.
    Read,
    /// Nothing: requests can be sent, and answers need bytes of the server.
    Idle,
}

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct Head(String);

impl Head {
    pub(crate) fn status(&self) -> u16 {
        self.0.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
    }

    /// A header's value; names are compared without regard to case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// A connection that is kept alive.
pub(crate) struct Connection {
    tcp: TcpStream,
    tls: UnbufferedClientConnection,
    /// Encrypted bytes that were read, `start..end` of which have not been looked at.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    outgoing: Vec<u8>,
}

impl Connection {
    /// Connects to a port of this machine; returns when the handshake is over.
    pub(crate) fn open(port: u16, config: &Arc<ClientConfig>) -> Outcome<Self> {
        Self::open_from(Ipv4Addr::LOCALHOST, port, config)
    }

    /// The same from another address of this machine.
    pub(crate) fn open_from(source: Ipv4Addr, port: u16, config: &Arc<ClientConfig>) -> Outcome<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        let tcp = TcpStream::from(socket);
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let tls = UnbufferedClientConnection::new(config.clone(), ServerName::try_from("localhost")?)?;
        let mut connection =
            Self { tcp, tls, incoming: vec![0; BUFFER], start: 0, end: 0, outgoing: Vec::new() };
        connection.drive(&[])?;
        Ok(connection)
    }

    /// Whether the handshake resumed an earlier session.
    pub(crate) fn was_resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Sends bytes without waiting for an answer.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Outcome {
        self.drive(bytes)
    }

    /// Sends a request and reads the answer, whose body goes piece by piece to `body`.
    pub(crate) fn exchange(&mut self, request: &[u8], mut body: impl FnMut(&[u8])) -> Outcome<Head> {
        self.drive(request)?;
        let mut head = Vec::new();
        let mut parsed: Option<(Head, usize)> = None;
        loop {
            let mut failed = None;
            let next = self.turn(&[], &mut |piece| {
                if let Some((_, rest)) = &mut parsed {
                    *rest = rest.saturating_sub(piece.len());
                    return body(piece);
                }
                head.extend_from_slice(piece);
                match split(&head) {
                    Ok(None) => {}
                    Ok(Some((found, length, begin))) => {
                        body(&head[begin..]);
                        parsed = Some((found, length.saturating_sub(head.len() - begin)));
                    }
                    Err(error) => failed = Some(error),
                }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            if let Some((head, 0)) = parsed {
                return Ok(head);
            }
            if next != Next::Again {
                self.read()?;
            }
        }
    }

    /// Brings the handshake to its end and sends `request`, if there is one.
    fn drive(&mut self, request: &[u8]) -> Outcome {
        loop {
            match self.turn(request, &mut |_| {})? {
                Next::Again => {}
                Next::Read => self.read()?,
                Next::Idle => return Ok(()),
            }
        }
    }

    /// Waits for bytes of the server.
    fn read(&mut self) -> Outcome {
        self.incoming.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        match self.tcp.read(&mut self.incoming[self.end..])? {
            0 => Err("the server closed the connection".into()),
            read => {
                self.end += read;
                Ok(())
            }
        }
    }

    /// One step of TLS. When nothing else is left to do it sends `request`, if there is one.
    fn turn(&mut self, request: &[u8], data: &mut dyn FnMut(&[u8])) -> Outcome<Next> {
        let UnbufferedStatus { mut discard, state } =
            self.tls.process_tls_records(&mut self.incoming[self.start..self.end]);
        let mut next = Next::Again;
        match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    data(record.payload);
                }
            }
            ConnectionState::EncodeTlsData(mut data) => {
                // A handshake message fits one record.
                let at = self.outgoing.len();
                self.outgoing.resize(at + 20_000, 0);
                let written = data.encode(&mut self.outgoing[at..]).map_err(|e| e.to_string())?;
                self.outgoing.truncate(at + written);
            }
            ConnectionState::TransmitTlsData(data) => {
                self.tcp.write_all(&self.outgoing)?;
                self.outgoing.clear();
                data.done();
            }
            ConnectionState::WriteTraffic(mut traffic) => {
                next = Next::Idle;
                if !request.is_empty() {
                    self.outgoing.resize(request.len() + (request.len() / 16_384 + 1) * 64, 0);
                    let written = traffic.encrypt(request, &mut self.outgoing).map_err(|e| e.to_string())?;
                    self.tcp.write_all(&self.outgoing[..written])?;
                    self.outgoing.clear();
                }
            }
            ConnectionState::BlockedHandshake => next = Next::Read,
            _ => return Err("the server closed the connection".into()),
        }
        self.start += discard;
        Ok(next)
    }
}

/// Splits an answer that has begun to arrive into its head, its body's length, and where the body begins.
fn split(answer: &[u8]) -> Outcome<Option<(Head, usize, usize)>> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let head = Head(String::from_utf8(answer[..end].to_vec())?);
    let length = match (head.header("content-length"), head.status()) {
        (Some(length), _) => length.parse()?,
        (None, 204 | 304) => 0,
        (None, status) => return Err(format!("an answer {status} without Content-Length").into()),
    };
    Ok(Some((head, length, end + 4)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::split;

    #[test]
    fn an_answer_is_split_when_its_head_is_complete() {
        assert!(split(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r").unwrap().is_none());
        let (head, length, begin) =
            split(b"HTTP/1.1 200 OK\r\nbatchtag: a b\r\ncontent-length: 3\r\n\r\nab").unwrap().unwrap();
        assert_eq!((head.status(), head.header("batchTag"), length, begin), (200, Some("a b"), 3, 53));
        assert!(split(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
