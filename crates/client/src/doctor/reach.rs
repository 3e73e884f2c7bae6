//! Connects to the gateway step by step, so that each failure has its own remedy: name, address, TLS in both
//! directions.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use reqwest::Url;
use rustls::{CertificateError, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::Check;
use crate::{Settings, connection};
use efgs_protocol::wire;

/// The limit for each step.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the gateway cannot be reached.
fn trouble(detail: impl ToString, remedy: &str) -> Check {
    Check::failed("connection", detail, remedy)
}

/// Connects and reads the first bytes of an answer. With TLS 1.3 a server only then accepts or rejects the
/// client's certificate.
pub(super) async fn reach(settings: &Settings) -> Result<String, Check> {
    let profile = |error: crate::SettingsError| trouble(error, "fix the profile");
    let url = connection::base(&settings.url).map_err(profile)?;
    let config = connection::tls(settings).map_err(profile)?;
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(trouble("the URL has no host", "fix `gateway.url`"));
    };
    let (tcp, address) = connect(host, port).await?;
    let unusual = || trouble(format!("{host:?} is not a valid server name"), "fix `gateway.url`");
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|_| unusual())?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    let stream = timed(handshake, "the TLS handshake").await?.map_err(|error| tls(&error))?;
    let version =
        stream.get_ref().1.protocol_version().map_or("TLS", |version| version.as_str().unwrap_or("TLS"));
    timed(ask(stream, &url), "the first answer").await?.map_err(|error| tls(&error))?;
    Ok(format!("{address}, {version}"))
}

async fn connect(host: &str, port: u16) -> Result<(TcpStream, SocketAddr), Check> {
    let looking = lookup_host((host.trim_matches(['[', ']']), port));
    let addresses = timed(looking, "looking up the name").await?.map_err(|error| {
        trouble(
            format!("the name {host} cannot be looked up: {error}"),
            "is `gateway.url` correct? Ask your network administrators whether this machine may use DNS",
        )
    })?;
    let mut last = trouble(format!("the name {host} has no address"), "is `gateway.url` correct?");
    for address in addresses {
        last = match timeout(PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok((tcp, address)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => trouble(
                format!("nothing listens at {address}"),
                "is the port in `gateway.url` correct? Ask the operator whether the gateway is running",
            ),
            Ok(Err(error)) => {
                trouble(format!("{address}: {error}"), "ask your network administrators for a route to it")
            }
            Err(_) => trouble(
                format!("{address} does not answer"),
                "probably a firewall: ask your network administrators, and ask the operator whether your address is allowed",
            ),
        };
    }
    Err(last)
}

async fn ask(mut stream: tokio_rustls::client::TlsStream<TcpStream>, url: &Url) -> io::Result<()> {
    let path = url.path().trim_end_matches('/');
    let host = url.authority();
    let request =
        format!("OPTIONS {path}{} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n", wire::ROOT_PATH);
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    stream.read_exact(&mut [0]).await.map(|_| ())
}

async fn timed<T>(step: impl Future<Output = T>, what: &str) -> Result<T, Check> {
    timeout(PATIENCE, step).await.map_err(|_| {
        trouble(format!("{what} takes longer than {}s", PATIENCE.as_secs()), "retry; then ask the operator")
    })
}

/// An error after the connection was established.
fn tls(error: &io::Error) -> Check {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    let remedy = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "`gateway.ca` did not issue the gateway's certificate: ask the operator for the correct authority, and \
             do not copy it from the connection"
        }
        Some(InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => {
            "the host in `gateway.url` is not one of the gateway's names: use the one that the operator gave you"
        }
        Some(InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            "the gateway's certificate has expired: contact the operator; or is this machine's clock wrong?"
        }
        Some(InvalidCertificate(_)) => "the gateway's certificate cannot be trusted: contact the operator",
        Some(AlertReceived(_)) => {
            "the gateway rejects the client certificate of `[authentication]`: is it the registered one?"
        }
        Some(_) => {
            "the server there does not use TLS as a gateway does: is the port in `gateway.url` correct?"
        }
        None => {
            "the connection broke, perhaps because of a firewall or proxy; ask your network administrators"
        }
    };
    trouble(error, remedy)
}
