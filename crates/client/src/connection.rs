//! How the gateway is reached: TLS, time limits, and how much of an answer is read.

use std::{sync::Arc, time::Duration};

use reqwest::{Client, Response, StatusCode, Url, redirect::Policy};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{Error, Settings, SettingsError};

/// The longest body that is read. The largest real ones are audits of batches with thousands of small uploads.
const MAX_BODY: usize = 128 << 20;
/// The same for the bodies of refusals.
const MAX_REFUSAL: usize = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the paths of the API begin.
pub(crate) fn base(url: &str) -> Result<Url, SettingsError> {
    // The reasons do not repeat the URL: somebody may have written a password into it.
    let refuse = |reason: &str| Err(SettingsError::Url(reason.to_owned()));
    let url = Url::parse(url).map_err(|e| SettingsError::Url(e.to_string()))?;
    if url.scheme() != "https" {
        return refuse("it does not begin with https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("it has a user name; the client certificate says who calls");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("it has a query or a fragment");
    }
    Ok(url)
}

pub(crate) fn client(settings: &Settings) -> Result<Client, SettingsError> {
    Client::builder()
        .tls_backend_preconfigured(tls(settings)?)
        .https_only(true)
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT.min(settings.timeout))
        .timeout(settings.timeout)
        .user_agent(concat!("efgs-client/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| SettingsError::Client(e.to_string()))
}

/// With a provider of our own, so that nothing depends on which one the program has made the default.
fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
}

pub(crate) fn tls(settings: &Settings) -> Result<ClientConfig, SettingsError> {
    let roots = roots(&settings.server_ca_pem).map_err(SettingsError::ServerCa)?;
    let chain = certificates(&settings.certificate_pem).map_err(SettingsError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(settings.private_key_pem.as_bytes())
        .map_err(|e| SettingsError::PrivateKey(e.to_string()))?;
    builder()
        .map_err(|e| SettingsError::Client(e.to_string()))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|e| SettingsError::PrivateKey(e.to_string()))
}

fn roots(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for root in certificates(pem)? {
        roots.add(root).map_err(|e| e.to_string())?;
    }
    Ok(roots)
}

pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if all.is_empty() => Err("there is no certificate in it".into()),
        all => all.map_err(|e| e.to_string()),
    }
}

/// Reads a body, unless it is longer than any that a gateway sends.
pub(crate) async fn read(response: Response) -> Result<Vec<u8>, Error> {
    let good = matches!(response.status(), StatusCode::OK | StatusCode::MULTI_STATUS);
    read_up_to(response, if good { MAX_BODY } else { MAX_REFUSAL }).await
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read_up_to(mut response: Response, limit: usize) -> Result<Vec<u8>, Error> {
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(Error::TooLong { limit });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Err(Error::TooLong { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
