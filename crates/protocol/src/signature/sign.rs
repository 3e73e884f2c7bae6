//! Making batch signatures, on the national backend's side.

use openssl::cms::{CMSOptions, CmsContentInfo};
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use zeroize::Zeroizing;

use crate::certificate::{Certificate, CertificateError, certificates, from_pkcs12};

/// Why a signer cannot be made or cannot sign. Never holds key data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The certificate is unusable.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The private key cannot be read: not a PEM private key, or its passphrase is missing or wrong.
    #[error("the private key cannot be read: not a PEM key, or its passphrase is missing or wrong")]
    Key,
    /// The PKCS#12 file holds no private key.
    #[error("the PKCS#12 file holds no private key")]
    KeyMissing,
    /// The private key belongs to another certificate.
    #[error("the private key does not belong to the certificate {0}")]
    KeyOfAnotherCertificate(String),
    /// OpenSSL could not sign.
    #[error("signing failed: {0}")]
    OpenSsl(String),
}

impl From<ErrorStack> for SignError {
    fn from(error: ErrorStack) -> Self {
        Self::OpenSsl(error.to_string())
    }
}

/// A national backend's certificate with its private key.
pub struct Identity {
    certificate: Certificate,
    issuers: Vec<Certificate>,
    x509: X509,
    key: PKey<Private>,
}

impl Identity {
    /// From PEM texts: the certificate, then those of its issuers if they are to be shown; and the private
    /// key, with its passphrase when it is encrypted.
    ///
    /// # Errors
    /// When either text is unreadable or the key belongs to another certificate.
    pub fn from_pem(
        certificates_pem: impl AsRef<[u8]>,
        key_pem: impl AsRef<[u8]>,
        passphrase: Option<&str>,
    ) -> Result<Self, SignError> {
        let mut certificates = certificates(certificates_pem.as_ref())?.into_iter();
        let certificate = certificates.next().ok_or(CertificateError::NotPem("no BEGIN CERTIFICATE line"))?;
        Self::new(certificate, certificates.collect(), private_key(key_pem.as_ref(), passphrase)?)
    }

    /// From a PKCS#12 file with certificate and private key.
    ///
    /// # Errors
    /// When the file cannot be opened with the password or lacks either.
    pub fn from_pkcs12(bytes: &[u8], password: Option<&str>) -> Result<Self, SignError> {
        let contents = from_pkcs12(bytes, password)?;
        Self::new(contents.certificate, contents.others, contents.key.ok_or(SignError::KeyMissing)?)
    }

    fn new(
        certificate: Certificate,
        issuers: Vec<Certificate>,
        key: PKey<Private>,
    ) -> Result<Self, SignError> {
        let x509 = matching_x509(&certificate, &key)?;
        Ok(Self { certificate, issuers, x509, key })
    }

    /// The certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The certificate and then those of its issuers, as PEM.
    pub fn certificates_pem(&self) -> String {
        std::iter::once(&self.certificate).chain(&self.issuers).map(Certificate::pem).collect()
    }

    /// The private key as PEM (PKCS#8), not encrypted; whoever calls this takes care where it goes.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn private_key_pem(&self) -> Result<Zeroizing<String>, SignError> {
        let pem = self.key.private_key_to_pem_pkcs8()?;
        String::from_utf8(pem).map(Zeroizing::new).map_err(|_| SignError::Key)
    }
}

/// A national backend's signing certificate with its private key.
pub struct BatchSigner(Identity);

impl From<Identity> for BatchSigner {
    fn from(identity: Identity) -> Self {
        Self(identity)
    }
}

impl BatchSigner {
    /// A signer from PEM texts. An encrypted key needs [`Identity::from_pem`].
    ///
    /// # Errors
    /// When either text is unreadable or the key belongs to another certificate.
    pub fn from_pem(certificate_pem: impl AsRef<[u8]>, key_pem: impl AsRef<[u8]>) -> Result<Self, SignError> {
        Identity::from_pem(certificate_pem, key_pem, None).map(Self)
    }

    /// A signer from a PKCS#12 file with certificate and private key.
    ///
    /// # Errors
    /// When the file cannot be opened with the password or lacks either.
    pub fn from_pkcs12(bytes: &[u8], password: Option<&str>) -> Result<Self, SignError> {
        Identity::from_pkcs12(bytes, password).map(Self)
    }

    /// The signing certificate.
    pub fn certificate(&self) -> &Certificate {
        self.0.certificate()
    }

    /// Signs the signed bytes of a batch: base64 of a detached CMS SignedData in DER, with signed attributes
    /// and SHA-256 (spec §4.1.6).
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn sign(&self, signed_bytes: &[u8]) -> Result<String, SignError> {
        let options = CMSOptions::DETACHED | CMSOptions::BINARY | CMSOptions::NOSMIMECAP;
        let cms =
            CmsContentInfo::sign(Some(&self.0.x509), Some(&self.0.key), None, Some(signed_bytes), options)?;
        Ok(STANDARD.encode(cms.to_der()?))
    }
}

/// Reads a PEM private key. Without a passphrase an encrypted key is an error: OpenSSL must not ask for one
/// at the terminal.
pub(crate) fn private_key(pem: &[u8], passphrase: Option<&str>) -> Result<PKey<Private>, SignError> {
    let passphrase = passphrase.unwrap_or_default().as_bytes();
    PKey::private_key_from_pem_passphrase(pem, passphrase).map_err(|_| SignError::Key)
}

/// The certificate as OpenSSL sees it, after a check that the key is its key.
pub(crate) fn matching_x509(certificate: &Certificate, key: &PKey<Private>) -> Result<X509, SignError> {
    let x509 = X509::from_der(certificate.der())?;
    if x509.public_key()?.public_eq(key) {
        Ok(x509)
    } else {
        Err(SignError::KeyOfAnotherCertificate(certificate.subject().to_owned()))
    }
}
