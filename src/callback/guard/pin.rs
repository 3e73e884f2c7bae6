//! Pinning: the server's certificate must be registered for the country (spec §5.6.1).

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use efgs_protocol::{
    certificate::{Certificate, CertificateType, Thumbprint},
    country::Country,
};
use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use crate::trust::{Inactive, Registry};

/// The registered certificates of one country at one time.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    pub(super) registry: Arc<Registry>,
    pub(super) country: Country,
    pub(super) now: DateTime<Utc>,
}

/// Why a server's certificate is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PinError {
    #[error("the server's certificate cannot be read")]
    Unreadable,
    #[error("the server's certificate {thumbprint} {reason} for CALLBACK or AUTHENTICATION")]
    Inactive { thumbprint: Thumbprint, reason: Inactive },
    #[error("the server's certificate {thumbprint} is not registered for {country}")]
    WrongCountry { thumbprint: Thumbprint, country: Country },
}

impl Pins {
    fn check(&self, der: &[u8]) -> Result<(), PinError> {
        let thumbprint = Certificate::from_der(der).map_err(|_| PinError::Unreadable)?.thumbprint();
        let active = |kind| self.registry.active(thumbprint, kind, self.now);
        let entry = match active(CertificateType::Callback) {
            // Report the reason for the registered certificate if there is one.
            Err(Inactive::Unknown) => active(CertificateType::Authentication),
            Err(reason) => active(CertificateType::Authentication).map_err(|_| reason),
            found => found,
        };
        match entry {
            Ok(entry) if entry.country == self.country => Ok(()),
            Ok(_) => Err(PinError::WrongCountry { thumbprint, country: self.country }),
            Err(reason) => Err(PinError::Inactive { thumbprint, reason }),
        }
    }
}

/// Checks the certificate during the handshake.
#[derive(Debug)]
pub(super) struct PinVerifier {
    pub(super) pins: Pins,
    /// Where `callback.ca` is set, the certificate must chain to it as well.
    pub(super) chain: Option<Arc<WebPkiServerVerifier>>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.pins.check(end_entity).map_err(|e| CertificateError::Other(OtherError(Arc::new(e))))?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        if let Some(chain) = &self.chain {
            let seconds = u64::try_from(self.pins.now.timestamp()).unwrap_or_default();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
