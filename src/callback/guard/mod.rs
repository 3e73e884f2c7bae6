//! The only place that opens outgoing connections.
//!
//! [`Guard::check`] checks a URL and every address of its host. [`Guard::call`] takes only the result and
//! connects to one of those addresses. There is no second DNS lookup in between, redirects are not followed,
//! and the server must present a certificate that is registered for the country.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use efgs_protocol::country::Country;
use ipnet::IpNet;
use parking_lot::RwLock;
use rustls::pki_types::CertificateDer;

use crate::{
    config::{self, ConfigError},
    http::Shown,
    pem::TlsError,
    trust::Registry,
};

mod address;
mod connect;
mod pin;
#[cfg(test)]
mod tests;
mod url;

use connect::Outgoing;
use url::CallbackUrl;

/// The default time for the lookup, the connection and the answer together.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The checks that a URL must pass to be registered and called (spec §5.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Its length is at most the limit.
    Length,
    /// It has no backslash.
    Backslash,
    /// It can be parsed.
    Syntax,
    /// Its scheme is https.
    Https,
    /// It has no user name.
    Userinfo,
    /// It has no fragment.
    Fragment,
    /// It has no query.
    Query,
    /// Its port can be connected to.
    Port,
    /// Its host is a name or an address in the usual notation.
    Host,
    /// Its host has an address.
    Resolves,
    /// Every address of its host is public.
    PublicAddress,
}

impl Check {
    /// The check's name in errors and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Backslash => "backslash",
            Self::Syntax => "syntax",
            Self::Https => "https",
            Self::Userinfo => "userinfo",
            Self::Fragment => "fragment",
            Self::Query => "query",
            Self::Port => "port",
            Self::Host => "host",
            Self::Resolves => "resolves",
            Self::PublicAddress => "public-address",
        }
    }

    /// Whether the country may read why the check failed. It must not learn what a name resolves to inside the
    /// gateway's network.
    fn reason_is_public(self) -> bool {
        match self {
            Self::Resolves | Self::PublicAddress => false,
            Self::Length
            | Self::Backslash
            | Self::Syntax
            | Self::Https
            | Self::Userinfo
            | Self::Fragment
            | Self::Query
            | Self::Port
            | Self::Host => true,
        }
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a URL cannot be registered or called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the URL fails the check \"{check}\": {reason}")]
pub struct Refused {
    /// The check.
    pub check: Check,
    /// What was found, for the operator's log. [`Self::shown`] is for the country.
    pub reason: String,
}

impl Refused {
    fn new(check: Check, reason: impl Into<String>) -> Self {
        Self { check, reason: reason.into() }
    }

    /// What the country may read.
    pub fn shown(&self) -> Shown {
        if self.check.reason_is_public() {
            Shown::Text
        } else {
            Shown::Instead(format!("the URL fails the check \"{}\"", self.check))
        }
    }
}

/// Why a call failed, as the country and the operator see it.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The URL is no longer allowed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// This instance has no `[callback]`.
    #[error("the gateway has no certificate for callbacks")]
    NotConfigured,
    /// None of the addresses accepts a connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The last address tried.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// The forward proxy refuses the connection.
    #[error("the forward proxy refuses the connection: {0}")]
    Proxy(String),
    /// The TLS handshake failed, for example because the certificate is not registered.
    #[error("TLS: {0}")]
    Tls(String),
    /// The connection broke, or the answer is not HTTP.
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    /// The status is not 2xx.
    #[error("the server answered {0}{redirect}", redirect = if (300..400).contains(.0) { "; redirects are not followed" } else { "" })]
    Status(u16),
    /// The answer took too long.
    #[error("the server did not answer within {0:?}")]
    Timeout(Duration),
    /// A defect.
    #[error("{0}")]
    Internal(String),
}

/// Resolves names. A trait, so that tests can change the answers.
#[async_trait::async_trait]
pub trait Resolve: Send + Sync {
    /// All addresses of a host.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// The system's resolver.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

#[async_trait::async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 443)).await?.map(|address| address.ip()).collect())
    }
}

/// A URL that may be called, with its checked addresses.
#[derive(Clone, Debug)]
pub struct Target {
    url: CallbackUrl,
    addresses: Vec<SocketAddr>,
}

/// Decides which URLs may be called, and calls them.
pub struct Guard {
    resolver: Arc<dyn Resolve>,
    allowed: Vec<IpNet>,
    timeout: Duration,
    outgoing: Option<RwLock<Arc<Outgoing>>>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

/// Why `[callback]` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// A file is invalid.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A value is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Guard {
    /// Reads the files of `[callback]`. Without that section URLs can be checked but not called.
    pub fn new(config: Option<&config::Callback>, resolver: Arc<dyn Resolve>) -> Result<Self, GuardError> {
        let outgoing = config.map(Outgoing::load).transpose()?;
        Ok(Self {
            resolver,
            allowed: config.map(|config| config.allowed_networks.clone()).unwrap_or_default(),
            timeout: config.map_or(TIMEOUT, |config| config.timeout),
            outgoing: outgoing.map(|outgoing| RwLock::new(Arc::new(outgoing))),
        })
    }

    /// Reloads the files. On an error nothing changes.
    pub fn reload(&self, config: &config::Callback) -> Result<(), GuardError> {
        if let Some(current) = &self.outgoing {
            let new = Arc::new(Outgoing::load(config)?);
            *current.write() = new;
        }
        Ok(())
    }

    /// The client certificate for callbacks.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        let outgoing = self.outgoing.as_ref()?.read();
        outgoing.certificate()
    }

    /// Checks a URL and all addresses of its host. Every address must be public.
    pub async fn check(&self, url: &str) -> Result<Target, Refused> {
        let url = CallbackUrl::parse(url)?;
        let addresses = match url.address() {
            Some(address) => vec![address],
            None => {
                let host = url.host.to_string();
                let fails = |reason: String| Refused::new(Check::Resolves, format!("{host}: {reason}"));
                match tokio::time::timeout(self.timeout, self.resolver.resolve(&host)).await {
                    Ok(Ok(addresses)) if addresses.is_empty() => {
                        return Err(fails("it has no address".into()));
                    }
                    Ok(Ok(addresses)) => addresses,
                    Ok(Err(error)) => return Err(fails(error.to_string())),
                    Err(_) => return Err(fails(format!("no answer within {:?}", self.timeout))),
                }
            }
        };
        if let Some(address) = addresses.iter().find(|address| !self.is_allowed(**address)) {
            let reason = format!("{} leads to {address}", url.host);
            return Err(Refused::new(Check::PublicAddress, reason));
        }
        let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, url.port)).collect();
        Ok(Target { url, addresses })
    }

    fn is_allowed(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address::is_public(address) || self.allowed.iter().any(|network| network.contains(&address))
    }

    /// Calls a target with this query. The server must present a certificate that `registry` has for `country`
    /// and that is active at `now`. Returns after a 2xx answer.
    pub async fn call(
        &self,
        target: &Target,
        query: &str,
        country: Country,
        registry: Arc<Registry>,
        now: DateTime<Utc>,
    ) -> Result<(), CallError> {
        let outgoing = self.outgoing.as_ref().ok_or(CallError::NotConfigured)?;
        let outgoing = outgoing.read().clone();
        let call = outgoing.call(target, query, pin::Pins { registry, country, now }, self.timeout);
        tokio::time::timeout(self.timeout, call).await.unwrap_or(Err(CallError::Timeout(self.timeout)))
    }
}
