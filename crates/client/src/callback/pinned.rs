//! The only client certificates that may call: those of the gateway, to the byte.

use std::sync::Arc;

use chrono::DateTime;
use efgs_protocol::certificate::Certificate;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

/// No authority is asked: whoever issued the gateway's certificate could issue another one. The handshake
/// proves that the caller has the key.
#[derive(Debug)]
pub(super) struct Pinned {
    certificates: Vec<Certificate>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    pub(super) fn new(certificates: Vec<Certificate>, provider: Arc<CryptoProvider>) -> Self {
        Self { certificates, provider }
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let known = self.certificates.iter().find(|known| known.der() == end_entity.as_ref());
        let known = known.ok_or(CertificateError::ApplicationVerificationFailure)?;
        let now = i64::try_from(now.as_secs()).ok().and_then(|now| DateTime::from_timestamp(now, 0));
        if now.is_some_and(|now| known.is_valid_at(now)) {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(CertificateError::Expired.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
