//! TLS for the national backends: 1.2 and 1.3, always with a client certificate.
//!
//! The registry decides per request whether a client certificate is accepted. The handshake only proves that
//! the caller has the private key and, where `tls.client_ca` is set, that the certificate chains to one of
//! those authorities. That makes self-signed certificates possible (spec appendix A).

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use efgs_kit::{
    config::Tls,
    pem::{TlsError, load_identity, load_roots},
};

use super::PeerIdentity;

/// The server side of TLS. Its files can be reloaded while it runs.
#[derive(Debug)]
pub struct TlsSetup {
    provider: Arc<CryptoProvider>,
    files: RwLock<Files>,
}

#[derive(Debug)]
struct Files {
    identity: Arc<CertifiedKey>,
    chain: Option<Arc<dyn ClientCertVerifier>>,
}

impl TlsSetup {
    /// Reads the files.
    pub fn load(config: &Tls) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let files = RwLock::new(Files::load(config, &provider)?);
        Ok(Arc::new(Self { provider, files }))
    }

    /// Reloads the files for new connections. On an error nothing changes.
    pub fn reload(&self, config: &Tls) -> Result<(), TlsError> {
        let new = Files::load(config, &self.provider)?;
        *self.files.write() = new;
        Ok(())
    }

    /// The configuration for a listener.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_client_cert_verifier(self.clone())
            .with_cert_resolver(self.clone());
        // Early data could be replayed, and would arrive before the certificate.
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// The certificate for new connections.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.files.read().identity.cert.first().cloned()
    }

    fn chain(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        self.files.read().chain.clone()
    }
}

impl Files {
    fn load(config: &Tls, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let identity = load_identity(
            ("tls.certificate", &config.certificate),
            ("tls.private_key", &config.private_key),
            provider,
        )?;
        let chain = match &config.client_ca {
            None => None,
            Some(path) => {
                let roots = Arc::new(load_roots("tls.client_ca", path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
                Some(verifier.map_err(|e| TlsError::new("tls.client_ca", path, e.to_string()))?)
            }
        };
        Ok(Self { identity: Arc::new(identity), chain })
    }
}

impl ResolvesServerCert for TlsSetup {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        efgs_kit::telemetry::handshake::begin();
        Some(self.files.read().identity.clone())
    }
}

impl ClientCertVerifier for TlsSetup {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: clients must also send self-signed certificates.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if PeerIdentity::from_der(end_entity).is_none() {
            return Err(rustls::CertificateError::BadEncoding.into());
        }
        match self.chain() {
            Some(chain) => chain.verify_client_cert(end_entity, intermediates, now),
            None => Ok(ClientCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
