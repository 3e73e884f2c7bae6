//! Behind a load balancer that ends TLS (spec §7): what it says of the caller counts, in every form that
//! is in use; what anybody else says, or what is said twice or wrongly, lets nobody in.
//!
//! The load balancer is 127.0.0.2 here, and 127.0.0.1 is everybody else.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, Engine as _};
use efgs_gateway::config::AuthMode;
use efgs_protocol::{
    bundle::Bundle,
    certificate::{CertificateType, Thumbprint},
    wire,
};
use efgs_test_ca::{Identity, Request as CertificateRequest};
use socket2::{Domain, Socket, Type};

use crate::{
    client::{Client, Request, keys},
    harness::{Case, PKI, Running, country, participant, tests},
};

tests![
    every_form_that_a_load_balancer_sends_lets_a_country_in,
    an_untrusted_peer_is_refused_whatever_it_sends,
    a_load_balancer_that_says_it_wrongly_lets_nobody_in,
    several_requests_at_once_from_an_untrusted_peer_are_all_refused,
    with_mutual_tls_no_such_header_changes_anything,
];

const BALANCER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const UNTRUSTED: Ipv4Addr = Ipv4Addr::LOCALHOST;

async fn gateway(case: &Case) -> Running {
    case.gateway_with(|config| {
        config.server.auth = AuthMode::Proxy;
        config.server.trusted_proxies = vec![format!("{BALANCER}/32").parse().unwrap()];
        config.tls = None;
    })
    .await
}

/// Sends these bytes from an address; all that comes back until the gateway closes the connection, which it
/// must do.
fn talk(from: Ipv4Addr, port: u16, bytes: &[u8]) -> String {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut stream = TcpStream::from(socket);
    // It may be refused, and the connection closed, before all is written.
    drop(stream.write_all(bytes));
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "still open after {}", answer.escape_ascii());
    }
    String::from_utf8(answer).unwrap()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {answer:?}")).parse().unwrap()
}

/// The bytes of a request with more lines in its head, which may be anything.
fn with_lines(request: &Request, lines: &[u8]) -> Vec<u8> {
    let raw = request.raw();
    let at = raw.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
    [&raw[..at], lines, &raw[at..]].concat()
}

fn headers(thumbprint: &str, subject: &str) -> Vec<u8> {
    format!("X-SSL-Client-SHA256: {thumbprint}\r\nX-SSL-Client-DN: {subject}\r\n").into_bytes()
}

fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Registered for DE, with a thumbprint that begins with a zero byte and whose base64 must be URL-encoded.
async fn awkward_identity(gateway: &Running) -> Identity {
    let request = CertificateRequest::new(CertificateType::Authentication, "DE");
    let pair = loop {
        let pair = request.self_signed().unwrap();
        let thumbprint = pair.certificate.thumbprint();
        if thumbprint.as_bytes()[0] == 0 && BASE64_STANDARD.encode(thumbprint.as_bytes()).contains('+') {
            break pair;
        }
    };
    let bundle = Bundle::sign(
        &PKI.anchor,
        country("DE"),
        CertificateType::Authentication,
        pair.certificate.clone(),
        Vec::new(),
    )
    .unwrap();
    let identity = Identity { certificate: pair.certificate, key_pem: pair.key_pem, bundle };
    gateway.register(&[&identity]).await;
    identity
}

/// What load balancers send for a certificate of DE.
fn good_forms(thumbprint: Thumbprint) -> Vec<Vec<u8>> {
    let hex = thumbprint.to_string();
    let base64 = BASE64_STANDARD.encode(thumbprint.as_bytes());
    let subject = "CN=x,O=y,C=DE";
    let lower_escapes = base64.replace('+', "%2b").replace('/', "%2f").replace('=', "%3d");
    let mut forms: Vec<Vec<u8>> = [
        &hex,
        &hex.to_uppercase(),
        &base64,
        &percent_encode(&base64),
        &lower_escapes,
        &format!(" \t{hex}\t "),
    ]
    .map(|thumbprint| headers(thumbprint, subject))
    .into();
    for subject in [
        "CN=x, O=y, C=DE",
        "C=DE,O=y",
        "C=DE",
        "OU=a,OU=b,O=x,O=y,C=DE",
        r"CN=Ministry\, of Health,C=DE",
        "CN=Gesundheit äöü,C=DE",
        &percent_encode("CN=x y,O=y,C=DE"),
        "CN%3Dx%2cC%3dDE",
    ] {
        forms.push(headers(&hex, subject));
    }
    forms.push(format!("x-ssl-client-sha256: {hex}\r\nX-SSL-CLIENT-DN: {subject}\r\n").into_bytes());
    forms.push(format!("X-SSL-Client-DN:{subject}\r\nX-SSL-Client-SHA256:{hex}\r\n").into_bytes());
    forms
}

async fn every_form_that_a_load_balancer_sends_lets_a_country_in(case: &Case) {
    let gateway = gateway(case).await;
    let client = gateway.client("DE");
    let awkward = awkward_identity(&gateway).await.certificate.thumbprint();
    let usual = participant("DE").authentication.certificate.thumbprint();
    for (i, form) in [awkward, usual].into_iter().flat_map(good_forms).enumerate() {
        let name = form.escape_ascii().to_string();
        let keys = keys(country("DE"), 1, case.clock.now());
        let upload = client.request(&i.to_string(), &keys).header("Connection", "close");
        let answer = talk(BALANCER, gateway.address, &with_lines(&upload, &form));
        assert_eq!(status(&answer), 201, "{name}: {answer}");
        if i == 0 {
            gateway.form().await;
        }
        let download = Client::download_request(case.today(), None).header("Connection", "close");
        let answer = talk(BALANCER, gateway.address, &with_lines(&download, &form));
        assert_eq!(status(&answer), 200, "{name}: {answer}");
    }
}

/// One way to be somebody else.
struct Trick {
    name: &'static str,
    lines: Vec<u8>,
    /// Whether it is not even HTTP, so that the answer has no body.
    broken: bool,
}

/// What gets nobody in, not even from the load balancer's address.
fn wrong() -> Vec<Trick> {
    let de = &participant("DE");
    let thumbprint = de.authentication.certificate.thumbprint();
    let (t, s) = (thumbprint.to_string(), "CN=x,O=y,C=DE");
    let base64 = BASE64_STANDARD.encode(thumbprint.as_bytes());
    let mut all = Vec::new();
    let mut lines = |name, lines: Vec<u8>| all.push(Trick { name, lines, broken: false });
    let line = |name: &str, value: &str| format!("{name}: {value}\r\n").into_bytes();
    let (dn, sha) = (line("X-SSL-Client-DN", s), line("X-SSL-Client-SHA256", &t));

    lines("nothing", Vec::new());
    lines("no subject", sha.clone());
    lines("no thumbprint", dn.clone());

    lines("the thumbprint twice", [&sha[..], &sha, &dn].concat());
    lines("the subject twice", [&sha[..], &dn, &dn].concat());
    lines("both twice", [&sha[..], &dn, &sha, &dn].concat());
    lines("twice in two spellings", [&line("x-ssl-client-sha256", &t)[..], &sha, &dn].concat());
    let other = participant("NL").authentication.certificate.thumbprint().to_string();
    lines("another thumbprint before it", [&line("X-SSL-Client-SHA256", &other)[..], &sha, &dn].concat());
    lines("another thumbprint behind it", [&sha[..], &line("X-SSL-Client-SHA256", &other), &dn].concat());
    lines("an empty thumbprint before it", [&line("X-SSL-Client-SHA256", "")[..], &sha, &dn].concat());
    lines("an empty subject behind it", [&sha[..], &dn, &line("X-SSL-Client-DN", "")].concat());
    lines("another subject behind it", [&sha[..], &dn, &line("X-SSL-Client-DN", "C=NL")].concat());

    for (sha, dn) in [
        ("X_SSL_Client_SHA256", "X_SSL_Client_DN"),
        ("X_SSL_CLIENT_SHA256", "X-SSL-Client-DN"),
        ("X-SSL-Client-SHA256", "X-SSL-Client_DN"),
        ("X-SSL-Client-SHA-256", "X-SSL-Client-DN"),
        ("X-SSL-Client-SHA1", "X-SSL-Client-DN"),
        ("X-SSL-Client-SHA256", "X-SSL-Client-S-DN"),
        ("SSL-Client-SHA256", "SSL-Client-DN"),
        ("X.SSL.Client.SHA256", "X.SSL.Client.DN"),
        ("X-SSL-Client-SHA256.", "X-SSL-Client-DN."),
        ("XX-SSL-Client-SHA256", "XX-SSL-Client-DN"),
        ("HTTP_X_SSL_CLIENT_SHA256", "HTTP_X_SSL_CLIENT_DN"),
    ] {
        lines("other names", [line(sha, &t), line(dn, s)].concat());
    }
    let forwarded = format!("Hash={t};Subject=\"{s}\"");
    lines("another load balancer's header", line("X-Forwarded-Client-Cert", &forwarded));
    let der = BASE64_STANDARD.encode(de.authentication.certificate.der());
    lines("the certificate itself", line("Client-Cert", &format!(":{der}:")));
    lines("only that it was verified", line("X-SSL-Client-Verify", "SUCCESS"));
    lines("a cookie", line("Cookie", &format!("X-SSL-Client-SHA256={t}; X-SSL-Client-DN={s}")));

    for thumbprint in [
        "",
        &t[1..],
        &t[2..],
        &format!("{t}0"),
        &format!("{t}00"),
        &format!("0x{t}"),
        &format!("\"{t}\""),
        &format!("<{t}>"),
        &format!("{t}, {t}"),
        &format!("{t},{other}"),
        &format!("{t};"),
        &format!("{t}%00"),
        &format!("{t}%0d%0a"),
        &format!("SHA256:{t}"),
        &t.as_bytes().chunks(2).map(|b| std::str::from_utf8(b).unwrap()).collect::<Vec<_>>().join(":"),
        &format!("{} {}", &t[..32], &t[32..]),
        &format!("{}zz", &t[2..]),
        &format!("{}\u{ff11}", &t[3..]),
        &t.chars().rev().collect::<String>(),
        &t[..40],
        &percent_encode(&percent_encode(&base64)),
        &BASE64_STANDARD.encode(&t),
        &BASE64_STANDARD_NO_PAD.encode(thumbprint.as_bytes()),
        &BASE64_STANDARD.encode([thumbprint.as_bytes().as_slice(), &[0]].concat()),
        &format!("{base64}="),
        &"0".repeat(64),
        &de.signing.certificate.thumbprint().to_string(),
        &de.callback.certificate.thumbprint().to_string(),
        &"a".repeat(60_000),
    ] {
        lines("a thumbprint that is none, or not registered to call", headers(thumbprint, s));
    }
    for subject in [
        "",
        "CN=x",
        "C=",
        "C=NL",
        "CN=x,O=C=DE",
        "C=de",
        "C=DEU",
        "C=D",
        "C=Germany",
        "C=DE,C=DE",
        "C=DE, C=NL",
        "C=NL+C=DE",
        "C=DE;C=NL",
        "C=DE,",
        "DC=DE",
        "CN=C=DE",
        "/C=DE/O=y/CN=x",
        r"CN=x\,C=DE",
        r"C=DE\",
        r"C=D\45",
        r"C=DE\00",
        "CN=\"x,C=DE\"",
        "CN=\"x,C=DE",
        "C=\"DE\",C=NL",
        "C=#13024445",
        "C=DE%00",
        "C=DE%0d%0aX-SSL-Client-DN: C=NL",
        "C%253DDE",
        "%43=DE,C=NL",
        "CN=x%2CC=DE,C=NL",
        "\u{421}=DE",
        "C=\u{ff24}\u{ff25}",
        &format!("CN={}", "C=DE+".repeat(10_000)),
    ] {
        lines("a subject that does not name exactly this country", headers(&t, subject));
    }
    lines("a subject that is no text", [&sha[..], b"X-SSL-Client-DN: CN=\xff,C=DE\r\n"].concat());

    let mut broken = |name, lines| all.push(Trick { name, lines, broken: true });
    broken("a folded line", [&dn[..], b"X-SSL-Client-SHA256:\r\n ", t.as_bytes(), b"\r\n"].concat());
    broken(
        "a folded line behind another",
        [&dn[..], b"X-A: b\r\n X-SSL-Client-SHA256: x\r\n", &sha].concat(),
    );
    broken("a space before the colon", [&dn[..], &line("X-SSL-Client-SHA256 ", &t)].concat());
    broken("a tab before the name", [&dn[..], b"\t", &sha].concat());
    broken("a null byte in the value", [&sha[..], b"X-SSL-Client-DN: C=DE\0\r\n"].concat());
    broken("a null byte in the name", [&dn[..], &line("X-SSL-Client-SHA256\0", &t)].concat());
    broken("a carriage return in the value", [&sha[..], b"X-SSL-Client-DN: C=DE\rX: C=NL\r\n"].concat());
    broken("no colon", [&dn[..], b"X-SSL-Client-SHA256 ", t.as_bytes(), b"\r\n"].concat());
    broken("more headers than there may be", [&b"X-A: b\r\n".repeat(100)[..], &sha, &dn].concat());
    broken("more bytes than there may be", headers(&"0".repeat(140_000), s));
    all
}

/// Perfect headers, beside which somebody tries to look like the load balancer.
fn pretending() -> Vec<Trick> {
    let thumbprint = participant("DE").authentication.certificate.thumbprint();
    let perfect = headers(&thumbprint.to_string(), "CN=x,O=y,C=DE");
    let mut all: Vec<Trick> = [
        ("X-Forwarded-For", "127.0.0.2"),
        ("X-Forwarded-For", "127.0.0.2, 127.0.0.2"),
        ("Forwarded", "for=127.0.0.2;by=127.0.0.2"),
        ("X-Real-IP", "127.0.0.2"),
        ("X-Client-IP", "127.0.0.2"),
        ("True-Client-IP", "127.0.0.2"),
        ("X-Cluster-Client-IP", "127.0.0.2"),
        ("X-Remote-Addr", "127.0.0.2"),
        ("X-ProxyUser-Ip", "127.0.0.2"),
        ("Via", "1.1 127.0.0.2"),
        ("X-Forwarded-Host", "127.0.0.2"),
        ("X-Forwarded-Proto", "https"),
        ("Connection", "X-Forwarded-For, X-SSL-Client-DN"),
    ]
    .iter()
    .map(|(name, value)| Trick {
        name,
        lines: [format!("{name}: {value}\r\n").as_bytes(), &perfect].concat(),
        broken: false,
    })
    .collect();
    let bare = String::from_utf8(perfect.clone()).unwrap().replace("\r\n", "\n").into_bytes();
    all.push(Trick { name: "lines that end without a carriage return", lines: bare, broken: false });
    all.extend(good_forms(thumbprint).into_iter().map(|lines| Trick {
        name: "a perfect form",
        lines,
        broken: false,
    }));
    all
}

#[track_caller]
fn assert_refused(trick: &Trick, answer: &str) {
    let shown = &trick.lines[..trick.lines.len().min(300)].escape_ascii();
    let expected: &[u16] = if trick.broken { &[400, 431] } else { &[403] };
    assert!(expected.contains(&status(answer)), "{}: {shown}: {answer}", trick.name);
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{}: {shown}: {answer}", trick.name);
    if !trick.broken {
        assert!(answer.contains("\r\nconnection: close\r\n"), "{}: {answer}", trick.name);
        assert!(answer.contains(r#""code":"forbidden""#), "{}: {answer}", trick.name);
    }
}

/// An upload and a download, each perfect but for who sends it.
fn requests(case: &Case, gateway: &Running) -> [Request; 2] {
    let keys = keys(country("DE"), 1, case.clock.now());
    [gateway.client("DE").request("a", &keys), Client::download_request(case.today(), None)]
}

async fn an_untrusted_peer_is_refused_whatever_it_sends(case: &Case) {
    let gateway = gateway(case).await;
    let corpus: Vec<Trick> = wrong().into_iter().chain(pretending()).collect();
    assert!(corpus.len() > 100, "{} cases", corpus.len());
    for request in requests(case, &gateway) {
        for trick in &corpus {
            let answer = talk(UNTRUSTED, gateway.address, &with_lines(&request, &trick.lines));
            assert_refused(trick, &answer);
        }
        let perfect = with_lines(&request, &pretending()[0].lines);
        let preface = b"PROXY TCP4 127.0.0.2 127.0.0.2 40000 8443\r\n";
        let answer = talk(UNTRUSTED, gateway.address, &[preface, &perfect[..]].concat());
        assert_eq!(status(&answer), 400, "{answer}");
        // The target and the host are not the peer either; nor does an older version of HTTP help.
        for (from, to) in [
            (" /diagnosiskeys", " http://127.0.0.2/diagnosiskeys"),
            ("Host: localhost", "Host: 127.0.0.2"),
            ("HTTP/1.1", "HTTP/1.0"),
        ] {
            let head = perfect.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
            let text = std::str::from_utf8(&perfect[..head]).unwrap().replacen(from, to, 1);
            let answer = talk(UNTRUSTED, gateway.address, &[text.as_bytes(), &perfect[head..]].concat());
            assert_eq!(status(&answer), 403, "{from} → {to}: {answer}");
        }
    }
    assert_eq!(case.db.counts().await, [0, 0, 0]);
}

async fn a_load_balancer_that_says_it_wrongly_lets_nobody_in(case: &Case) {
    let gateway = gateway(case).await;
    for request in requests(case, &gateway) {
        for trick in wrong() {
            let answer = talk(BALANCER, gateway.address, &with_lines(&request, &trick.lines));
            assert_refused(&trick, &answer);
        }
    }
    // What comes with the path or behind the body is no header.
    let thumbprint = participant("DE").authentication.certificate.thumbprint().to_string();
    let [upload, download] = requests(case, &gateway);
    let path = format!("{}?X-SSL-Client-SHA256={thumbprint}&X-SSL-Client-DN=C=DE", download.path);
    let answer = talk(BALANCER, gateway.address, &Request { path, ..download }.raw());
    assert_eq!(status(&answer), 403, "{answer}");
    let mut raw = format!("POST {} HTTP/1.1\r\nHost: localhost\r\n", wire::UPLOAD_PATH).into_bytes();
    for (name, value) in &upload.headers {
        write!(raw, "{name}: {value}\r\n").unwrap();
    }
    let trailers = headers(&thumbprint, "C=DE");
    write!(raw, "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", upload.body.len()).unwrap();
    raw.extend([&upload.body[..], b"\r\n0\r\n", &trailers, b"\r\n"].concat());
    let answer = talk(BALANCER, gateway.address, &raw);
    assert_eq!(status(&answer), 403, "{answer}");
    assert_eq!(case.db.counts().await, [0, 0, 0]);
}

async fn several_requests_at_once_from_an_untrusted_peer_are_all_refused(case: &Case) {
    let gateway = gateway(case).await;
    let perfect = &pretending()[0].lines;
    let [upload, download] = requests(case, &gateway).map(|request| with_lines(&request, perfect));
    let answer = talk(UNTRUSTED, gateway.address, &[&download[..], &upload, &download, &upload].concat());
    assert!(answer.contains("HTTP/1.1 403 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), answer.matches("HTTP/1.1 403 ").count(), "{answer}");
    assert_eq!(case.db.counts().await, [0, 0, 0]);
}

async fn with_mutual_tls_no_such_header_changes_anything(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("NL");
    gateway.client("DE").upload_new("a", 3, case.clock.now()).await;
    client.upload_new("b", 2, case.clock.now()).await;
    gateway.form().await;
    let request = Client::download_request(case.today(), None);
    let own = client.send(request.clone()).await.expect(200).keys();
    assert_eq!(own.len(), 3);
    for trick in wrong().into_iter().chain(pretending()).filter(|trick| !trick.broken) {
        let mut connection = client.connect();
        connection.write(&with_lines(&request, &trick.lines)).unwrap();
        let answer = connection.answer();
        assert_eq!(answer.status, 200, "{}: {}", trick.name, trick.lines.escape_ascii());
        assert_eq!(answer.keys(), own, "{}", trick.name);
    }
}
