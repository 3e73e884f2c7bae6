//! Identifying the country that calls.

use std::sync::Arc;

use actix_web::{FromRequest, HttpMessage, HttpRequest, dev::Payload, web::Data};
use efgs_protocol::{
    certificate::{Certificate, CertificateType, Thumbprint},
    country::Country,
};
use futures_util::future::LocalBoxFuture;

use super::{Inactive, Registry, RegistryUnavailable, Trust, proxy};
use crate::{
    access_log,
    clock::Clock,
    config::{AuthMode, Server},
    http::{Code, Defect, Error, Problem},
    limits::Limits,
};

/// The facts of a client certificate: read once per TLS connection, or from a load balancer's headers.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    pub(super) thumbprint: Thumbprint,
    pub(super) country: Option<Country>,
    /// Unknown behind a load balancer, where therefore only registered certificates count, not those issued by
    /// a CA.
    pub(super) certificate: Option<Arc<Certificate>>,
}

impl PeerIdentity {
    /// Reads a certificate in DER; `None` if it cannot be parsed.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        Some(Self {
            thumbprint: certificate.thumbprint(),
            country: certificate.country().ok(),
            certificate: Some(Arc::new(certificate)),
        })
    }
}

/// An authenticated national backend. A handler that takes one is unreachable for others. It is checked for
/// each request, so that a revocation also applies to open connections.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The country of the certificate.
    pub country: Country,
    /// The registry row that authenticates it: that of its certificate, or of the CA that issued it.
    pub certificate_id: i64,
    /// The thumbprint of its certificate.
    pub thumbprint: Thumbprint,
}

/// Why a caller is rejected.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CallerError {
    /// The connection has no readable client certificate.
    #[error("the connection has no client certificate that can be read")]
    NoCertificate,
    /// Callers are identified by headers, and this peer is not trusted to send them.
    #[error("this peer is not one of `server.trusted_proxies`")]
    UntrustedPeer,
    /// A header of the load balancer is missing, repeated or malformed.
    #[error("the load balancer's header {0} is not there exactly once in one of its forms")]
    ProxyHeader(&'static str),
    /// The subject does not name exactly one country.
    #[error("the subject of the client certificate {thumbprint} does not name exactly one country (C)")]
    NoCountry {
        /// The certificate.
        thumbprint: Thumbprint,
    },
    /// The certificate is not valid for authentication.
    #[error("the client certificate {thumbprint} {reason} for AUTHENTICATION")]
    Inactive {
        /// The certificate.
        thumbprint: Thumbprint,
        /// The reason.
        reason: Inactive,
    },
    /// The registry and the certificate name different countries.
    #[error("the client certificate {thumbprint} is not registered for {country}")]
    WrongCountry {
        /// The certificate.
        thumbprint: Thumbprint,
        /// The country in its subject.
        country: Country,
    },
    /// The registry is unavailable, so nobody is admitted.
    #[error(transparent)]
    Undecidable(#[from] RegistryUnavailable),
}

/// Identifies callers and admits them within their country's limits.
#[derive(Clone, Debug)]
pub struct Admission {
    server: Arc<Server>,
    trust: Arc<Trust>,
    clock: Clock,
    limits: Arc<Limits>,
}

impl Admission {
    /// With these settings and this registry.
    pub fn new(server: Server, trust: Arc<Trust>, clock: Clock, limits: Arc<Limits>) -> Self {
        Self { server: Arc::new(server), trust, clock, limits }
    }

    /// The certificate's facts, registered or not.
    fn shown(&self, request: &HttpRequest) -> Result<PeerIdentity, CallerError> {
        match self.server.auth {
            // Backends send these headers by habit: without a trusted proxy they are ignored.
            AuthMode::Mtls => request.conn_data().cloned().ok_or(CallerError::NoCertificate),
            AuthMode::Proxy => {
                let all =
                    |name| -> Vec<&[u8]> { request.headers().get_all(name).map(|v| v.as_bytes()).collect() };
                let peer = request.peer_addr().map(|address| address.ip());
                let trusted = &self.server.trusted_proxies;
                proxy::identify(peer, trusted, &all(proxy::THUMBPRINT), &all(proxy::SUBJECT))
            }
        }
    }

    /// The thumbprint of the caller's certificate, registered or not.
    pub fn shown_certificate(&self, request: &HttpRequest) -> Option<Thumbprint> {
        self.shown(request).ok().map(|identity| identity.thumbprint)
    }

    /// Whether the request may be that of a registered caller, whatever it asks for. While nobody can be told apart,
    /// everybody may be.
    pub fn may_know(&self, request: &HttpRequest) -> bool {
        let Ok(registry) = self.trust.registry_for_reads() else { return true };
        self.shown(request).is_ok_and(|identity| self.caller(&identity, &registry).is_ok())
    }

    /// Delays the answer to an unregistered caller: all of them together are served slowly.
    pub async fn delay_unregistered(&self) {
        self.limits.delay_unregistered().await;
    }

    /// The country whose connection this is, if it may read.
    pub fn country(&self, identity: &PeerIdentity) -> Option<Country> {
        let registry = self.trust.registry_for_reads().ok()?;
        self.caller(identity, &registry).ok().map(|caller| caller.country)
    }

    /// The national backend of this certificate, as this registry decides.
    fn caller(&self, identity: &PeerIdentity, registry: &Registry) -> Result<Caller, CallerError> {
        let PeerIdentity { thumbprint, country, certificate } = identity;
        let thumbprint = *thumbprint;
        let country = country.ok_or(CallerError::NoCountry { thumbprint })?;
        let (kind, now) = (CertificateType::Authentication, self.clock.now());
        let entry = match certificate {
            Some(certificate) => registry.admit(certificate, kind, now),
            None => registry.active(thumbprint, kind, now),
        };
        let entry = entry.map_err(|reason| CallerError::Inactive { thumbprint, reason })?;
        if entry.country != country {
            return Err(CallerError::WrongCountry { thumbprint, country });
        }
        Ok(Caller { country, certificate_id: entry.id, thumbprint })
    }
}

#[derive(Clone, Copy)]
struct KnownCaller(Country);

/// The country of this request, once it is admitted.
pub fn known_caller(request: &HttpRequest) -> Option<Country> {
    request.extensions().get::<KnownCaller>().map(|KnownCaller(country)| *country)
}

/// A caller of a request that only reads what may be in memory. While the database is unreachable, it is admitted for
/// `trust.read_grace`.
#[derive(Clone, Copy, Debug)]
pub struct Reader(pub Caller);

type Registered = fn(&Trust) -> Result<Arc<Registry>, RegistryUnavailable>;

async fn admit(request: HttpRequest, registry: Registered) -> Result<Caller, Error> {
    let admission = request.app_data::<Data<Admission>>().cloned();
    let admission = admission.ok_or_else(|| Defect("the application state is missing".into()))?;
    let identity = admission.shown(&request)?;
    let registry = registry(&admission.trust).map_err(CallerError::from)?;
    let caller = admission.caller(&identity, &registry)?;
    request.extensions_mut().insert(KnownCaller(caller.country));
    access_log::note(&request, |facts| facts.country = Some(caller.country));
    // Identification comes first. A handler that takes a caller is reachable only within the caller's limits.
    let admitted = admission.limits.admit(caller.country, request.method()).await?;
    request.extensions_mut().insert(admitted);
    Ok(caller)
}

impl FromRequest for Caller {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        Box::pin(admit(request.clone(), Trust::registry))
    }
}

impl FromRequest for Reader {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let admitting = admit(request.clone(), Trust::registry_for_reads);
        Box::pin(async move { admitting.await.map(Self) })
    }
}

impl Problem for CallerError {
    fn code(&self) -> Code {
        match self {
            Self::NoCertificate
            | Self::UntrustedPeer
            | Self::ProxyHeader(_)
            | Self::NoCountry { .. }
            | Self::Inactive { .. }
            | Self::WrongCountry { .. } => Code::Forbidden,
            Self::Undecidable(_) => Code::Unavailable,
        }
    }
}
