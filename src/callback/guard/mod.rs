//! The only place that opens outgoing connections.
//!
//! [`Guard::check`] looks at a URL and at every address that its host has; [`Guard::call`] takes nothing but
//! what came out, and connects to one of those very addresses. There is no second look at the DNS in between,
//! redirects are not followed, and the server must show a certificate that is registered for the country.

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

/// How long looking up, connecting and answering may take together when nothing is configured.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a URL must pass to be registered and called (spec §5.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It is not too long.
    Length,
    /// It has no backslash.
    Backslash,
    /// It can be read.
    Syntax,
    /// Its scheme is https.
    Https,
    /// It has no user name.
    Userinfo,
    /// It has no fragment.
    Fragment,
    /// It has no query.
    Query,
    /// Its port is one that can be connected to.
    Port,
    /// Its host is a name or an address in the usual form.
    Host,
    /// Its host has an address.
    Resolves,
    /// Every address of its host is public.
    PublicAddress,
}

impl Check {
    /// Its name, as errors and documents have it.
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

    /// Whether the reason of a failure may be shown to the country. What a name resolves to inside the gateway's
    /// network may not.
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

/// Why a URL is neither registered nor called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the URL fails the check \"{check}\": {reason}")]
pub struct Refused {
    /// The check.
    pub check: Check,
    /// What was found. For the operator's log; [`Self::shown`] is for the country.
    pub reason: String,
}

impl Refused {
    fn new(check: Check, reason: impl Into<String>) -> Self {
        Self { check, reason: reason.into() }
    }

    /// What the country may read of it.
    pub fn shown(&self) -> Shown {
        if self.check.reason_is_public() {
            Shown::Text
        } else {
            Shown::Instead(format!("the URL fails the check \"{}\"", self.check))
        }
    }
}

/// Why a call failed; the country and the operator can do something about each.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The URL leads, now, where it must not.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// This instance has no `[callback]`.
    #[error("the gateway has no certificate for callbacks")]
    NotConfigured,
    /// None of the addresses takes a connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The last that was tried.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The forward proxy does not let the connection through.
    #[error("the forward proxy refuses the connection: {0}")]
    Proxy(String),
    /// No secure connection: the certificate is not the one that is pinned, for example.
    #[error("TLS: {0}")]
    Tls(String),
    /// The connection broke, or what came is not HTTP.
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    /// An answer other than 2xx.
    #[error("the server answered {0}{redirect}", redirect = if (300..400).contains(.0) { "; redirects are not followed" } else { "" })]
    Status(u16),
    /// Too slow.
    #[error("the server did not answer within {0:?}")]
    Timeout(Duration),
    /// A defect.
    #[error("{0}")]
    Internal(String),
}

/// Looks up names, so that tests can answer otherwise the second time.
#[async_trait::async_trait]
pub trait Resolve: Send + Sync {
    /// All addresses of a host.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// Asks the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

#[async_trait::async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 443)).await?.map(|address| address.ip()).collect())
    }
}

/// A URL that may be called now, and the addresses that were checked.
#[derive(Clone, Debug)]
pub struct Target {
    url: CallbackUrl,
    addresses: Vec<SocketAddr>,
}

/// Decides where calls may lead, and makes them.
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

/// What is wrong with `[callback]`.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// A file.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A value.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Guard {
    /// Reads the files of `[callback]`. Without it URLs can be checked, but not called.
    pub fn new(config: Option<&config::Callback>, resolver: Arc<dyn Resolve>) -> Result<Self, GuardError> {
        let outgoing = config.map(Outgoing::load).transpose()?;
        Ok(Self {
            resolver,
            allowed: config.map(|config| config.allowed_networks.clone()).unwrap_or_default(),
            timeout: config.map_or(TIMEOUT, |config| config.timeout),
            outgoing: outgoing.map(|outgoing| RwLock::new(Arc::new(outgoing))),
        })
    }

    /// Reads the files again; when they are not right nothing changes.
    pub fn reload(&self, config: &config::Callback) -> Result<(), GuardError> {
        if let Some(current) = &self.outgoing {
            let new = Arc::new(Outgoing::load(config)?);
            *current.write() = new;
        }
        Ok(())
    }

    /// The certificate that the gateway shows when it calls.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        let outgoing = self.outgoing.as_ref()?.read();
        outgoing.certificate()
    }

    /// Looks at a URL, and at all addresses of its host: one that is not public is one too many.
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

    /// Calls a target with this query. The server must show a certificate that `registry` has for `country`,
    /// active at `now`. Returns when it has answered 2xx.
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
