//! A throw-away public-key infrastructure for demos and tests.
//!
//! [`Pki`] makes, in memory and with fresh keys each time, everything that a gateway and its participants need:
//! the operator's trust anchor, a certificate authority with the gateway's server certificate, the gateway's
//! client certificate for callbacks, and for each country the three certificates of spec §6.1.3 with their
//! onboarding bundles. [`Request`] also makes the certificates that a gateway must refuse.
//!
//! Never use its output in production: the private keys are passed around in plain text.
//!
//! ```
//! let pki = efgs_test_ca::Pki::new(efgs_test_ca::KeyKind::Ec256)?;
//! let germany = pki.participant("DE".parse()?)?;
//! germany.signing.bundle.verify(pki.anchor.anchor())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cms;
mod issue;
mod write;

use efgs_protocol::anchor::{AnchorError, AnchorKey};
use efgs_protocol::bundle::Bundle;
use efgs_protocol::certificate::{Certificate, CertificateError, CertificateType};
use efgs_protocol::country::Country;
use efgs_protocol::signature::{BatchSigner, SignError};
use openssl::error::ErrorStack;

// The protocol crate's own tests see a second build of it, and need the name of this one.
#[doc(no_inline)]
pub use efgs_protocol;

pub use issue::{Authority, KeyKind, KeyPair, Request};

/// Why something could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// OpenSSL refused.
    #[error("OpenSSL: {0}")]
    OpenSsl(#[from] ErrorStack),
    /// What was made is not a certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The trust anchor could not sign.
    #[error(transparent)]
    Anchor(#[from] AnchorError),
    /// A batch could not be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file or folder.
        path: std::path::PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
}

/// The operator's side: trust anchor, server certificate, client certificate for callbacks.
pub struct Pki {
    /// The trust anchor with its private key.
    pub anchor: AnchorKey,
    /// The trust anchor's certificate and private key as PEM.
    pub anchor_pair: KeyPair,
    /// The authority that issued the server certificate, for clients to trust.
    pub server_ca: Authority,
    /// The gateway's server certificate, for `localhost`, `127.0.0.1` and `::1`.
    pub server: KeyPair,
    /// The gateway's client certificate for callbacks.
    pub callback_client: KeyPair,
}

impl Pki {
    /// Makes the operator's side. The trust anchor gets a key of kind `anchor` (operators use RSA 3072; EC is
    /// faster to make), everything else an EC key.
    ///
    /// # Errors
    /// When OpenSSL fails, or the trust anchor's key is too weak.
    pub fn new(anchor: KeyKind) -> Result<Self, Error> {
        let anchor_pair = Authority::new("EFGS test trust anchor", anchor)?.into_pair();
        let anchor = AnchorKey::from_pem(anchor_pair.certificate.pem(), &anchor_pair.key_pem, None)?;
        let server_ca = Authority::new("EFGS test server CA", KeyKind::Ec256)?;
        let server = server_ca.issue(&Request {
            common_name: "localhost".into(),
            ..Request::new(CertificateType::Callback, "EU")
        })?;
        let callback_client = Request {
            common_name: "EFGS test gateway".into(),
            ..Request::new(CertificateType::Authentication, "EU")
        }
        .self_signed()?;
        Ok(Self { anchor, anchor_pair, server_ca, server, callback_client })
    }

    /// Makes a country's three certificates, with EC keys.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn participant(&self, country: Country) -> Result<Participant, Error> {
        self.participant_with(country, |request| request)
    }

    /// Makes a country's three certificates, each as the usual request for it is changed: with other keys or dates.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn participant_with(
        &self,
        country: Country,
        change: impl Fn(Request) -> Request,
    ) -> Result<Participant, Error> {
        let identity = |kind| self.identity(country, kind, &change(Request::new(kind, country.as_str())));
        Ok(Participant {
            country,
            authentication: identity(CertificateType::Authentication)?,
            signing: identity(CertificateType::Signing)?,
            callback: identity(CertificateType::Callback)?,
        })
    }

    /// Makes one self-signed certificate as requested, and registers it for a country and a use, whether it
    /// suits them or not.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn identity(
        &self,
        country: Country,
        kind: CertificateType,
        request: &Request,
    ) -> Result<Identity, Error> {
        let KeyPair { certificate, key_pem } = request.self_signed()?;
        let bundle = Bundle::sign(&self.anchor, country, kind, certificate.clone(), Vec::new())?;
        Ok(Identity { certificate, key_pem, bundle })
    }
}

/// A country's side.
#[derive(Clone)]
pub struct Participant {
    /// The country.
    pub country: Country,
    /// What it calls the gateway with.
    pub authentication: Identity,
    /// What it signs batches with.
    pub signing: Identity,
    /// What it receives callbacks with, for `localhost`, `127.0.0.1` and `::1`.
    pub callback: Identity,
}

/// A certificate with its private key and its onboarding bundle.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: Certificate,
    /// The private key, PKCS#8 in PEM, not encrypted.
    pub key_pem: String,
    /// The certificate as the operator signed it.
    pub bundle: Bundle,
}

impl Identity {
    /// A signer with this certificate and key.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn signer(&self) -> Result<BatchSigner, Error> {
        Ok(BatchSigner::from_pem(self.certificate.pem(), &self.key_pem)?)
    }
}

#[cfg(test)]
mod tests;
