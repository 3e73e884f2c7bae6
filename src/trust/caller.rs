//! From a connection to the country that calls.

use std::sync::Arc;

use actix_web::{FromRequest, HttpMessage, HttpRequest, dev::Payload, web::Data};
use efgs_protocol::{
    certificate::{Certificate, CertificateType, Thumbprint},
    country::Country,
};
use futures_util::future::LocalBoxFuture;

use super::{Inactive, RegistryUnavailable, Trust, proxy};
use crate::{
    access_log,
    clock::Clock,
    config::{AuthMode, Server},
    http::{Code, Defect, Error, Problem},
    limits::Limits,
};

/// What a client certificate says: read once per TLS connection, or from a load balancer's headers.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    pub(super) thumbprint: Thumbprint,
    pub(super) country: Option<Country>,
    /// Not known behind a load balancer, so that there only registered certificates count, not those of a CA.
    pub(super) certificate: Option<Arc<Certificate>>,
}

impl PeerIdentity {
    /// Reads a certificate in DER; `None` when it cannot be read.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        Some(Self {
            thumbprint: certificate.thumbprint(),
            country: certificate.country().ok(),
            certificate: Some(Arc::new(certificate)),
        })
    }
}

/// A national backend that may use the gateway. Handlers that take one cannot be reached by anybody else; it
/// is decided anew for each request, so that a revocation holds for open connections too.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The country it calls for.
    pub country: Country,
    /// Number of the row that lets it in: its certificate's, or that of the CA that issued it.
    pub certificate_id: i64,
    /// Of the certificate that it showed.
    pub thumbprint: Thumbprint,
}

/// Why a caller is turned away.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CallerError {
    /// The connection has no certificate that can be read.
    #[error("the connection has no client certificate that can be read")]
    NoCertificate,
    /// Callers are known by headers, and this peer may not say who calls.
    #[error("this peer is not one of `server.trusted_proxies`")]
    UntrustedPeer,
    /// A header of the load balancer is missing, there twice, or malformed.
    #[error("the load balancer's header {0} is not there exactly once in one of its forms")]
    ProxyHeader(&'static str),
    /// The subject does not name exactly one country.
    #[error("the subject of the client certificate {thumbprint} does not name exactly one country (C)")]
    NoCountry {
        /// Of the certificate.
        thumbprint: Thumbprint,
    },
    /// The certificate does not let its owner in.
    #[error("the client certificate {thumbprint} {reason} for AUTHENTICATION")]
    Inactive {
        /// Of the certificate.
        thumbprint: Thumbprint,
        /// Why.
        reason: Inactive,
    },
    /// The registry says another country than the certificate.
    #[error("the client certificate {thumbprint} is not registered for {country}")]
    WrongCountry {
        /// Of the certificate.
        thumbprint: Thumbprint,
        /// In its subject.
        country: Country,
    },
    /// It cannot be decided now, so nobody is let in.
    #[error(transparent)]
    Undecidable(#[from] RegistryUnavailable),
}

/// Decides who calls, and lets a country in when its limits allow it.
#[derive(Clone, Debug)]
pub struct Admission {
    server: Arc<Server>,
    trust: Arc<Trust>,
    clock: Clock,
    limits: Arc<Limits>,
}

impl Admission {
    /// By these settings and this registry.
    pub fn new(server: Server, trust: Arc<Trust>, clock: Clock, limits: Arc<Limits>) -> Self {
        Self { server: Arc::new(server), trust, clock, limits }
    }

    /// What the caller has shown, registered or not.
    fn shown(&self, request: &HttpRequest) -> Result<PeerIdentity, CallerError> {
        match self.server.auth {
            // Headers that look like a load balancer's are ignored: backends send them by habit.
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

    /// The certificate that the caller has shown, also when it does not let it in.
    pub fn shown_certificate(&self, request: &HttpRequest) -> Option<Thumbprint> {
        self.shown(request).ok().map(|identity| identity.thumbprint)
    }

    /// The national backend that shows this certificate.
    pub fn caller(&self, identity: &PeerIdentity) -> Result<Caller, CallerError> {
        let PeerIdentity { thumbprint, country, certificate } = identity;
        let thumbprint = *thumbprint;
        let country = country.ok_or(CallerError::NoCountry { thumbprint })?;
        let registry = self.trust.registry()?;
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

/// The country that this request was let in for.
pub fn known_caller(request: &HttpRequest) -> Option<Country> {
    request.extensions().get::<KnownCaller>().map(|KnownCaller(country)| *country)
}

impl FromRequest for Caller {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let admission = request.app_data::<Data<Admission>>().cloned();
            let admission = admission.ok_or_else(|| Defect("the application is not set up".into()))?;
            let caller = admission.caller(&admission.shown(&request)?)?;
            request.extensions_mut().insert(KnownCaller(caller.country));
            access_log::note(&request, |facts| facts.country = Some(caller.country));
            // Who calls comes first; a handler that takes a caller cannot be reached past its limits.
            let admitted = admission.limits.admit(caller.country, request.method()).await?;
            request.extensions_mut().insert(admitted);
            Ok(caller)
        })
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
