//! Signatures over export files: ECDSA on P-256 with SHA-256.

use openssl::{
    ec::EcKey,
    ecdsa::EcdsaSig,
    error::ErrorStack,
    nid::Nid,
    pkey::{HasParams, PKey, Private, Public},
    x509::X509,
};

use super::SignatureInfo;

/// The object identifier of ECDSA with SHA-256, the only algorithm that phones take.
pub const SIGNATURE_ALGORITHM: &str = "1.2.840.10045.4.3.2";

/// Why a key cannot sign or verify export files. Holds nothing of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No private key as PEM, or an encrypted one.
    #[error("it is not a private key as PEM without a passphrase")]
    Private,
    /// No public key as PEM.
    #[error("it is neither a public key nor a certificate as PEM")]
    Public,
    /// Another kind of key.
    #[error("it is not a key on the curve P-256 (prime256v1), the only kind that phones verify")]
    NotP256,
}

/// A publisher's public key.
#[derive(Clone)]
pub struct VerifyingKey(EcKey<Public>);

impl VerifyingKey {
    /// Reads a public key, or the one of a certificate, as PEM.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let key = PKey::public_key_from_pem(pem).or_else(|_| X509::from_pem(pem)?.public_key());
        let key = key.map_err(|_| KeyError::Public)?.ec_key().map_err(|_| KeyError::NotP256)?;
        on_p256(key).map(Self)
    }

    /// Whether this key made a signature over what has this SHA-256.
    pub(super) fn verify(&self, digest: &[u8], signature: &[u8]) -> bool {
        EcdsaSig::from_der(signature)
            .is_ok_and(|signature| signature.verify(digest, &self.0).is_ok_and(|ok| ok))
    }
}

/// A publisher's private key, and what phones find its public key by.
pub struct ExportSigner {
    key: EcKey<Private>,
    info: SignatureInfo,
}

impl ExportSigner {
    /// Reads a private key as PEM, not encrypted. `key_id` and `key_version` are what was registered with
    /// Google and Apple together with the public key, such as `262` and `v1`.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_pem(pem: &[u8], key_id: &str, key_version: &str) -> Result<Self, KeyError> {
        // The empty passphrase keeps OpenSSL from asking for one at the terminal.
        let key = PKey::private_key_from_pem_passphrase(pem, &[]).map_err(|_| KeyError::Private)?;
        Ok(Self {
            key: on_p256(key.ec_key().map_err(|_| KeyError::NotP256)?)?,
            info: SignatureInfo {
                verification_key_version: Some(key_version.to_owned()),
                verification_key_id: Some(key_id.to_owned()),
                signature_algorithm: Some(SIGNATURE_ALGORITHM.to_owned()),
            },
        })
    }

    /// What phones find the public key by.
    pub fn info(&self) -> &SignatureInfo {
        &self.info
    }

    /// The public key, for whoever checks what was signed.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn verifying_key(&self) -> Result<VerifyingKey, ErrorStack> {
        EcKey::from_public_key(self.key.group(), self.key.public_key()).map(VerifyingKey)
    }

    /// The signature over what has this SHA-256, in DER.
    pub(super) fn sign(&self, digest: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        EcdsaSig::sign(digest, &self.key)?.to_der()
    }
}

fn on_p256<T: HasParams>(key: EcKey<T>) -> Result<EcKey<T>, KeyError> {
    match key.group().curve_name() {
        Some(Nid::X9_62_PRIME256V1) => Ok(key),
        _ => Err(KeyError::NotP256),
    }
}
