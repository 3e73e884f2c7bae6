//! A national backend that can also behave badly.

use std::io::Write as _;

use bytes::Bytes;
use chrono::{DateTime, NaiveDate, Utc};
use efgs_protocol::{
    audit::AuditEntry,
    canonical::CanonicalKeys,
    country::Country,
    key::{DiagnosisKey, KeyBatch, KeyData, ReportType},
    media::Format,
    wire,
};
use efgs_test_ca::Identity;
use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVersion};
use reqwest::header::HeaderMap;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::harness::PKI;

pub(crate) const PROTOBUF: &str = "application/protobuf; version=1.0";
pub(crate) const JSON: &str = "application/json; version=1.0";

pub(crate) fn media(format: Format) -> &'static str {
    match format {
        Format::Protobuf => PROTOBUF,
        Format::Json => JSON,
    }
}

/// New keys of a country, all different, as of `now`.
pub(crate) fn keys(country: Country, amount: usize, now: DateTime<Utc>) -> KeyBatch {
    let visited: Vec<Country> = ["DE", "FR"].iter().map(|code| Country::new(code).unwrap()).collect();
    let mut batch = KeyBatch::new();
    for i in 0..amount {
        let key = DiagnosisKey {
            key_data: KeyData::new(rand::random()),
            rolling_start_interval_number: now.timestamp() as u32 / 600 / 144 * 144 - 144 * (i % 10) as u32,
            rolling_period: 144,
            transmission_risk_level: (i % 9) as i32,
            origin: country,
            report_type: ReportType::ALL[i % 6],
            days_since_onset_of_symptoms: i as i32 % 30 - 15,
        };
        batch.push(key, &visited[..i % 3]);
    }
    batch
}

/// Some keys of a batch, in this order.
pub(crate) fn pick(keys: &KeyBatch, indexes: impl IntoIterator<Item = usize>) -> KeyBatch {
    indexes.into_iter().map(|i| keys.get(i)).collect()
}

pub(crate) fn join(parts: &[&KeyBatch]) -> KeyBatch {
    parts.iter().flat_map(|part| (0..part.len()).map(|i| part.get(i))).collect()
}

/// A request that can still be changed.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &'static str, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path)
    }

    /// Sets a header, or replaces it.
    pub(crate) fn header(self, name: &str, value: impl Into<String>) -> Self {
        self.without(name).also(name, value)
    }

    /// Adds a header beside one that may be there.
    pub(crate) fn also(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(there, _)| !there.eq_ignore_ascii_case(name));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The bytes on the wire, with the headers' names as they are.
    pub(crate) fn raw(&self) -> Vec<u8> {
        let mut raw = format!("{} {} HTTP/1.1\r\nHost: localhost\r\n", self.method, self.path).into_bytes();
        for (name, value) in &self.headers {
            write!(raw, "{name}: {value}\r\n").unwrap();
        }
        write!(raw, "Content-Length: {}\r\n\r\n", self.body.len()).unwrap();
        raw.extend_from_slice(&self.body);
        raw
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The status, and the body's text where it says what is wrong.
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// An error in the contract's shape, with this code; its message.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body = self.json();
        let fields: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["code", "message"], "{body}");
        assert_eq!(body["code"], code, "{body}");
        body["message"].as_str().unwrap().to_owned()
    }

    pub(crate) fn tag(&self) -> String {
        self.header("batchTag").unwrap().to_owned()
    }

    pub(crate) fn next(&self) -> String {
        self.header("nextBatchTag").unwrap().to_owned()
    }

    /// The keys of a download in whichever format it says it is.
    pub(crate) fn keys(&self) -> KeyBatch {
        let format = match self.header("content-type").unwrap() {
            PROTOBUF => Format::Protobuf,
            JSON => Format::Json,
            other => panic!("{other}"),
        };
        if self.body.is_empty() || self.body == r#"{"keys":[]}"# {
            return KeyBatch::new();
        }
        wire::decode(format, &self.body, usize::MAX).unwrap()
    }

    pub(crate) fn audit(&self) -> Vec<AuditEntry> {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One country's way to one gateway.
pub(crate) struct Client {
    http: reqwest::Client,
    port: u16,
    identity: Option<Identity>,
    pub(crate) signing: Identity,
}

impl Client {
    pub(crate) fn new(port: u16, identity: Option<&Identity>, signing: Identity) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(PKI.server_ca.certificate().der().to_vec())).unwrap();
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots);
        let tls = match identity {
            Some(identity) => {
                let certificate = CertificateDer::from(identity.certificate.der().to_vec());
                let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
                tls.with_client_auth_cert(vec![certificate], key).unwrap()
            }
            None => tls.with_no_client_auth(),
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            // An idle connection would hold up the end of the gateway.
            .pool_max_idle_per_host(0)
            .build()
            .unwrap();
        Self { http, port, identity: identity.cloned(), signing }
    }

    /// The same caller, who signs with another certificate.
    pub(crate) fn signing_with(&self, signing: &Identity) -> Self {
        Self::new(self.port, self.identity.as_ref(), signing.clone())
    }

    /// The country that it signs for.
    pub(crate) fn country(&self) -> Country {
        self.signing.bundle.country
    }

    pub(crate) async fn try_send(&self, request: Request) -> Result<Answer, reqwest::Error> {
        let method = reqwest::Method::from_bytes(request.method.as_bytes()).unwrap();
        let mut sending =
            self.http.request(method, format!("https://localhost:{}{}", self.port, request.path));
        for (name, value) in &request.headers {
            sending = sending.header(name, value);
        }
        let response = sending.body(request.body).send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await? })
    }

    pub(crate) async fn send(&self, request: Request) -> Answer {
        self.try_send(request).await.unwrap()
    }

    /// An upload as the contract wants it, in this format.
    pub(crate) fn request_in(&self, format: Format, tag: &str, keys: &KeyBatch) -> Request {
        let signature = self.signing.signer().unwrap().sign(&CanonicalKeys::of(keys).signed_bytes());
        Request::new("POST", wire::UPLOAD_PATH)
            .header("batchTag", tag)
            .header("batchSignature", signature.unwrap())
            .header("Content-Type", media(format))
            .body(wire::encode(format, keys))
    }

    pub(crate) fn request(&self, tag: &str, keys: &KeyBatch) -> Request {
        self.request_in(Format::Protobuf, tag, keys)
    }

    pub(crate) async fn upload(&self, tag: &str, keys: &KeyBatch) -> Answer {
        self.send(self.request(tag, keys)).await
    }

    /// Uploads new keys, which must succeed.
    pub(crate) async fn upload_new(&self, tag: &str, amount: usize, now: DateTime<Utc>) -> KeyBatch {
        let keys = keys(self.country(), amount, now);
        self.upload(tag, &keys).await.expect(201);
        keys
    }

    pub(crate) fn download_request(date: NaiveDate, tag: Option<&str>) -> Request {
        let request = Request::get(format!("{}/{date}", wire::DOWNLOAD_PATH)).header("Accept", PROTOBUF);
        match tag {
            Some(tag) => request.header("batchTag", tag),
            None => request,
        }
    }

    pub(crate) async fn download(&self, date: NaiveDate, tag: Option<&str>) -> Answer {
        self.send(Self::download_request(date, tag)).await
    }

    pub(crate) async fn audit(&self, date: NaiveDate, tag: &str) -> Answer {
        self.send(Request::get(format!("{}/{date}/{tag}", wire::AUDIT_PATH))).await
    }

    /// A TLS connection of its own, to write whatever one likes.
    pub(crate) fn connect(&self) -> Connection {
        self.connect_with(SslVersion::TLS1_3)
    }

    /// The same with this version of TLS.
    pub(crate) fn connect_with(&self, version: SslVersion) -> Connection {
        let identity = self.identity.as_ref().unwrap();
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        connector.set_min_proto_version(Some(version)).unwrap();
        connector.set_max_proto_version(Some(version)).unwrap();
        let x509 = |der: &[u8]| openssl::x509::X509::from_der(der).unwrap();
        connector.cert_store_mut().add_cert(x509(PKI.server_ca.certificate().der())).unwrap();
        connector.set_certificate(&x509(identity.certificate.der())).unwrap();
        let key = openssl::pkey::PKey::private_key_from_pem(identity.key_pem.as_bytes()).unwrap();
        connector.set_private_key(&key).unwrap();
        let tcp = std::net::TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        tcp.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        Connection(connector.build().connect("localhost", tcp).unwrap())
    }
}

/// A raw connection; it blocks the test, not the server.
pub(crate) struct Connection(SslStream<std::net::TcpStream>);

impl Connection {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Reads the head of an answer.
    pub(crate) fn head(&mut self) -> String {
        use std::io::Read as _;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(self.0.read(&mut byte).unwrap(), 1, "closed after {}", head.escape_ascii());
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// Reads one answer: head and as many bytes as it announces.
    pub(crate) fn answer(&mut self) -> Answer {
        use std::io::Read as _;
        let head = self.head();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            let name = reqwest::header::HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, value.parse().unwrap());
        }
        let length =
            headers.get("content-length").map_or(0, |value| value.to_str().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        Answer { status, headers, body: body.into() }
    }

    /// The certificate that the server showed, in DER.
    pub(crate) fn server_certificate(&self) -> Vec<u8> {
        self.0.ssl().peer_certificate().unwrap().to_der().unwrap()
    }

    /// Whether the server closes the connection now.
    pub(crate) fn is_closed(&mut self) -> bool {
        use std::io::Read as _;
        self.0.read(&mut [0]).is_ok_and(|n| n == 0)
    }
}

/// Several clients at once.
pub(crate) async fn all_at_once<T>(tasks: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    futures_util::future::join_all(tasks).await
}
