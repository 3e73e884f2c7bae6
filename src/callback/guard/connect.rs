//! One call: TCP to a checked address, mutual TLS, one GET.

use std::{convert::Infallible, future::pending, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{Method, Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{
    CertificateError, ClientConfig, OtherError,
    client::{Resumption, WebPkiServerVerifier},
    crypto::CryptoProvider,
    pki_types::CertificateDer,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use url::Url;

use super::{
    CallError, GuardError, Target,
    pin::{PinVerifier, Pins},
};
use crate::{
    config::{Callback, ConfigError},
    pem::{load_identity, load_roots},
};

const USER_AGENT: &str = concat!("efgs-gateway/", env!("CARGO_PKG_VERSION"));

/// The maximum size of an answer's head. The body is not read.
const MAX_HEAD: usize = 16 * 1024;

/// The contents of the files of `[callback]`.
pub(super) struct Outgoing {
    provider: Arc<CryptoProvider>,
    identity: Arc<CertifiedKey>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// Host and port.
    proxy: Option<String>,
}

impl Outgoing {
    pub(super) fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.identity.cert.first().cloned()
    }

    pub(super) fn load(config: &Callback) -> Result<Self, GuardError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let identity = load_identity(
            ("callback.certificate", &config.certificate),
            ("callback.private_key", &config.private_key),
            &provider,
        )?;
        let chain = match &config.ca {
            None => None,
            Some(path) => {
                let roots = Arc::new(load_roots("callback.ca", path)?);
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
                Some(verifier.map_err(|e| ConfigError::Invalid(format!("`callback.ca`: {e}")))?)
            }
        };
        let proxy = config.proxy.as_deref().map(proxy_address).transpose()?;
        Ok(Self { provider, identity: Arc::new(identity), chain, proxy })
    }

    pub(super) async fn call(
        &self,
        target: &Target,
        query: &str,
        pins: Pins,
        timeout: Duration,
    ) -> Result<(), CallError> {
        let verifier = PinVerifier { pins, chain: self.chain.clone(), provider: self.provider.clone() };
        let mut tls = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|e| CallError::Internal(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.identity.clone())));
        // Each call verifies the certificate again.
        tls.resumption = Resumption::disabled();
        let tls = TlsConnector::from(Arc::new(tls));
        let name = target.url.name.clone();

        let each = timeout / u32::try_from(target.addresses.len()).unwrap_or(u32::MAX).max(1);
        match &self.proxy {
            None => {
                let tcp = connect(&target.addresses, each).await?;
                get(tls.connect(name, tcp).await.map_err(tls_failed)?, target, query).await
            }
            Some(proxy) => {
                let tunnel = tunnel(proxy, target, each).await?;
                get(tls.connect(name, tunnel).await.map_err(tls_failed)?, target, query).await
            }
        }
    }
}

/// Parses `http://host:port` into what can be connected to.
fn proxy_address(text: &str) -> Result<String, ConfigError> {
    let invalid = || ConfigError::Invalid(format!("`callback.proxy` is {text:?}: write http://host:port"));
    let url = Url::parse(text).map_err(|_| invalid())?;
    let bare =
        url.scheme() == "http" && url.path() == "/" && url.query().is_none() && url.username().is_empty();
    match (url.host(), url.port_or_known_default()) {
        (Some(host), Some(port)) if bare => Ok(format!("{host}:{port}")),
        _ => Err(invalid()),
    }
}

/// The verifier's own message if there is one: the library's is its debug output.
fn tls_failed(error: io::Error) -> CallError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) => {
            CallError::Tls(reason.to_string())
        }
        _ => CallError::Tls(error.to_string()),
    }
}

/// Tries the addresses in order, each with a share of the time, so that every one is tried.
async fn connect(addresses: &[SocketAddr], each: Duration) -> Result<TcpStream, CallError> {
    let mut last = CallError::Internal("a target has no address".into());
    for address in addresses {
        let connected = tokio::time::timeout(each, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(source) => last = CallError::Connect { address: address.to_string(), source },
        }
    }
    Err(last)
}

/// A tunnel through the forward proxy. The proxy gets the address and not the name, so that it resolves
/// nothing.
async fn tunnel(
    proxy: &str,
    target: &Target,
    each: Duration,
) -> Result<TokioIo<hyper::upgrade::Upgraded>, CallError> {
    let mut last = CallError::Internal("a target has no address".into());
    for address in &target.addresses {
        let attempt = async {
            let tcp = TcpStream::connect(proxy)
                .await
                .map_err(|source| CallError::Connect { address: proxy.to_owned(), source })?;
            let (mut sender, connection) =
                http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(tcp)).await?;
            let request = Request::builder()
                .method(Method::CONNECT)
                .uri(address.to_string())
                .header(header::HOST, address.to_string())
                .body(String::new())
                .map_err(|e| CallError::Internal(e.to_string()))?;
            drive(connection.with_upgrades(), async {
                let response = sender.send_request(request).await?;
                match response.status() {
                    status if status.is_success() => Ok(TokioIo::new(hyper::upgrade::on(response).await?)),
                    status => Err(CallError::Proxy(format!("it answered {}", status.as_u16()))),
                }
            })
            .await
        };
        match tokio::time::timeout(each, attempt).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = CallError::Proxy(format!("no connection to {address} within {each:?}")),
        }
    }
    Err(last)
}

/// Sends the request and reads the status only.
async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
    query: &str,
) -> Result<(), CallError> {
    let url = &target.url;
    let host = if url.port == 443 { url.host.to_string() } else { format!("{}:{}", url.host, url.port) };
    let request = Request::get(format!("{}?{query}", url.path))
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(String::new())
        .map_err(|e| CallError::Internal(e.to_string()))?;
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
    let response = drive(connection, async { Ok(sender.send_request(request).await?) }).await?;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(CallError::Status(status.as_u16())),
    }
}

/// Drives a connection until `work` is done. Errors of the connection show in `work`.
async fn drive<T>(
    connection: impl Future<Output = hyper::Result<()>>,
    work: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let connection = async {
        drop(connection.await);
        pending::<Infallible>().await
    };
    tokio::select! {
        result = work => result,
        never = connection => match never {},
    }
}
