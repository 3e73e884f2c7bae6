//! From a connection to the country that calls.

use actix_web::{FromRequest, HttpRequest, dev::Payload, web::Data};
use efgs_protocol::{
    certificate::{Certificate, CertificateType, Thumbprint},
    country::Country,
};

use super::{Inactive, RegistryUnavailable};
use crate::app::App;

/// What the certificate of a TLS connection says, read once per connection.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    thumbprint: Thumbprint,
    country: Option<Country>,
}

impl PeerIdentity {
    /// Reads a certificate in DER; `None` when it cannot be read.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        Some(Self { thumbprint: certificate.thumbprint(), country: certificate.country().ok() })
    }
}

/// A national backend that may use the gateway. Handlers that take one cannot be reached by anybody else; it
/// is decided anew for each request, so that a revocation holds for open connections too.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The country it calls for.
    pub country: Country,
    /// Number of the certificate's row.
    pub certificate_id: i64,
}

/// Why a caller is turned away.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CallerError {
    /// The connection has no certificate that can be read.
    #[error("the connection has no client certificate that can be read")]
    NoCertificate,
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

impl Caller {
    fn identify(app: &App, peer: Option<&PeerIdentity>) -> Result<Self, CallerError> {
        let &PeerIdentity { thumbprint, country } = peer.ok_or(CallerError::NoCertificate)?;
        let country = country.ok_or(CallerError::NoCountry { thumbprint })?;
        let registry = app.trust.registry()?;
        let entry = registry
            .active(thumbprint, CertificateType::Authentication, app.clock.now())
            .map_err(|reason| CallerError::Inactive { thumbprint, reason })?;
        if entry.country != country {
            return Err(CallerError::WrongCountry { thumbprint, country });
        }
        Ok(Self { country, certificate_id: entry.id })
    }
}

impl FromRequest for Caller {
    type Error = crate::http::Error;
    type Future = std::future::Ready<Result<Self, Self::Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let identified = match request.app_data::<Data<App>>() {
            Some(app) => Self::identify(app, request.conn_data::<PeerIdentity>()).map_err(Into::into),
            None => Err(crate::http::Error::Internal("the application is not set up".into())),
        };
        if let Ok(caller) = &identified {
            crate::http::note_caller(request, caller.country);
        }
        std::future::ready(identified)
    }
}
