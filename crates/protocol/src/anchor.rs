//! The operator's trust anchor, which signs the certificates of the participants (spec §5.7.2, §6.1.3).
//!
//! The anchor's private key is never on the gateway. It makes two signatures for each certificate, both in
//! base64, with the hash of the anchor certificate's own signature algorithm: RSA PKCS#1 v1.5 for an RSA
//! anchor, ECDSA for an EC one.
//!
//! - The *operator signature* covers the certificate's PEM text. Auditors verify it.
//! - The *registration signature* covers country, type and thumbprint, see [`registration_text`]. It keeps a
//!   certificate from being moved to another country or another use inside the database.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;

use crate::certificate::{
    Certificate, CertificateError, CertificateType, Hash, PublicKey, Scheme, Thumbprint,
};
use crate::country::Country;
use crate::signature::{SignError, decode_base64, matching_x509, private_key};

/// Why an anchor is unusable, or a signature not one of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// The anchor's certificate cannot be read.
    #[error("the trust anchor's certificate is unusable: {0}")]
    Certificate(#[from] CertificateError),
    /// The anchor's key or hash is too weak or unknown.
    #[error(
        "the trust anchor cannot sign: {0}; RSA (2048 bits or more) or EC and SHA-256 or better are needed"
    )]
    Unsuitable(String),
    /// The anchor's private key cannot be used.
    #[error("the trust anchor's private key is unusable: {0}")]
    Key(#[from] SignError),
    /// A signature is not base64.
    #[error("the {0} signature is not base64")]
    NotBase64(&'static str),
    /// A signature is not one of this anchor over this text.
    #[error("the {0} signature does not verify with the trust anchor")]
    Mismatch(&'static str),
}

/// The public half of the trust anchor: verifies what the operator signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustAnchor {
    certificate: Certificate,
    scheme: Scheme,
}

impl TrustAnchor {
    /// Reads the anchor's certificate.
    ///
    /// # Errors
    /// When it is unreadable, or its key or hash cannot make operator signatures.
    pub fn from_pem(pem: impl AsRef<[u8]>) -> Result<Self, AnchorError> {
        let certificate = Certificate::from_pem(pem)?;
        let hash = match certificate.signature_hash() {
            Ok(Hash::Sha1) | Err(_) => {
                return Err(AnchorError::Unsuitable(format!(
                    "it is signed with {}",
                    certificate.hash_description()
                )));
            }
            Ok(hash) => *hash,
        };
        let scheme = match certificate.key() {
            PublicKey::Rsa { bits: 2048.., .. } => Scheme::RsaPkcs1(hash),
            PublicKey::Ec { .. } => Scheme::Ecdsa(hash),
            other => return Err(AnchorError::Unsuitable(format!("its key is {other}"))),
        };
        Ok(Self { certificate, scheme })
    }

    /// The anchor's certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Verifies an operator signature over a certificate's PEM text.
    ///
    /// # Errors
    /// When the signature is not base64 or not the anchor's over exactly this text.
    pub fn verify_operator_signature(
        &self,
        pem_text: &str,
        signature_base64: &str,
    ) -> Result<(), AnchorError> {
        self.verify("operator", pem_text, signature_base64)
    }

    /// Verifies a registration signature over [`registration_text`].
    ///
    /// # Errors
    /// When the signature is not base64 or not the anchor's over exactly this registration.
    pub fn verify_registration(
        &self,
        country: Country,
        kind: CertificateType,
        thumbprint: Thumbprint,
        signature_base64: &str,
    ) -> Result<(), AnchorError> {
        self.verify("registration", &registration_text(country, kind, thumbprint), signature_base64)
    }

    fn verify(&self, name: &'static str, text: &str, signature_base64: &str) -> Result<(), AnchorError> {
        let signature = decode_base64(signature_base64).ok_or(AnchorError::NotBase64(name))?;
        self.certificate
            .key()
            .verify(self.scheme, text.as_bytes(), &signature)
            .map_err(|_| AnchorError::Mismatch(name))
    }
}

/// What a registration signature covers: a version line, country, type and thumbprint, each with its line feed.
pub fn registration_text(country: Country, kind: CertificateType, thumbprint: Thumbprint) -> String {
    format!("efgs-registration-v1\n{country}\n{kind}\n{thumbprint}\n")
}

/// The offline half of the trust anchor: its private key. Belongs on a machine without a network.
pub struct AnchorKey {
    anchor: TrustAnchor,
    key: PKey<Private>,
}

impl AnchorKey {
    /// Reads the anchor's certificate and private key.
    ///
    /// # Errors
    /// When one of them is unreadable or unsuitable, the passphrase is missing or wrong, or they do not belong
    /// together.
    pub fn from_pem(
        certificate_pem: impl AsRef<[u8]>,
        key_pem: impl AsRef<[u8]>,
        passphrase: Option<&str>,
    ) -> Result<Self, AnchorError> {
        let anchor = TrustAnchor::from_pem(certificate_pem)?;
        let key = private_key(key_pem.as_ref(), passphrase)?;
        matching_x509(&anchor.certificate, &key)?;
        Ok(Self { anchor, key })
    }

    /// The public half.
    pub fn anchor(&self) -> &TrustAnchor {
        &self.anchor
    }

    /// The operator signature over a certificate's PEM text, in base64.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn sign_operator(&self, pem_text: &str) -> Result<String, AnchorError> {
        self.sign(pem_text)
    }

    /// The registration signature over [`registration_text`], in base64.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn sign_registration(
        &self,
        country: Country,
        kind: CertificateType,
        thumbprint: Thumbprint,
    ) -> Result<String, AnchorError> {
        self.sign(&registration_text(country, kind, thumbprint))
    }

    fn sign(&self, text: &str) -> Result<String, AnchorError> {
        let digest = match self.anchor.scheme.hash() {
            Hash::Sha1 => MessageDigest::sha1(),
            Hash::Sha256 => MessageDigest::sha256(),
            Hash::Sha384 => MessageDigest::sha384(),
            Hash::Sha512 => MessageDigest::sha512(),
        };
        let signature = Signer::new(digest, &self.key)
            .and_then(|mut signer| signer.sign_oneshot_to_vec(text.as_bytes()))
            .map_err(SignError::from)?;
        Ok(STANDARD.encode(signature))
    }
}

#[cfg(test)]
mod tests;
