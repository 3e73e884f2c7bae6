//! The batch signature: a detached CMS SignedData, parsed and verified (spec §4.1.5, §4.1.6).
//!
//! [`verify`] says who signed. Whether that signer is trusted is another question, which the gateway answers
//! from its registry and an auditor from the operator's signatures.
//!
//! The signer is read by the `cms` crate, from DER. What it cannot do is done before, by a small reader of our
//! own: it takes the SignedData apart whatever the form of its lengths and strings, keeps each certificate to
//! the byte (a thumbprint needs that), skips what is ignored (so that no oddity beside the signer's
//! certificate makes a good signature unreadable), and rewrites the one signer as DER.

pub(crate) mod ber;
mod sign;
mod signed_data;
#[cfg(test)]
mod tests;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use chrono::{DateTime, SecondsFormat, Utc};

use crate::certificate::{AlgorithmError, Certificate, CertificateError, Hash, VerifyError};

pub use sign::{BatchSigner, Identity, SignError};
pub(crate) use sign::{matching_x509, private_key};
use signed_data::SignedData;

/// What is tolerated in a batch signature. The default is what the specification asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignaturePolicy {
    /// Accept SHA-1 as digest or inside the signature. Broken; for backends that cannot do better yet.
    pub allow_sha1: bool,
}

/// Who made a batch signature that verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedBy {
    /// The signer's certificate, to the byte as it was sent in the signature.
    pub certificate: Certificate,
    /// Whether SHA-1 was used, which [`SignaturePolicy::allow_sha1`] must have allowed.
    pub used_sha1: bool,
}

/// Why a batch signature is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The text is not base64.
    #[error("the batch signature is not base64")]
    NotBase64,
    /// The bytes are not a CMS SignedData.
    #[error("the batch signature is not a CMS SignedData: {0}")]
    NotCms(String),
    /// The content was sent along; a batch signature is detached.
    #[error("content present in the batch signature, which must be detached")]
    ContentPresent,
    /// The signed content is not of type data.
    #[error("the batch signature's content type is not data")]
    ContentTypeNotData,
    /// Nobody signed.
    #[error("no signer in the batch signature")]
    NoSigner,
    /// More than one signer.
    #[error("more than one signer in the batch signature: {0}")]
    SeveralSigners(usize),
    /// No certificate is the one that the signer identifier names.
    #[error(
        "signer's certificate missing in the batch signature: none of its {present} certificates is the one \
         that the signer identifier names, {unreadable} of them unreadable"
    )]
    CertificateMissing {
        /// How many certificates the signature carries.
        present: usize,
        /// How many of them cannot be read.
        unreadable: usize,
    },
    /// The signer's certificate cannot be used.
    #[error("the signer's certificate is unusable: {0}")]
    Certificate(#[from] CertificateError),
    /// The signer's certificate is not valid yet.
    #[error("the signer's certificate is not valid before {}", seconds(not_before))]
    NotYetValid {
        /// The first moment of its validity.
        not_before: DateTime<Utc>,
    },
    /// The signer's certificate is not valid any more.
    #[error("the signer's certificate expired at {}", seconds(not_after))]
    Expired {
        /// The last moment of its validity.
        not_after: DateTime<Utc>,
    },
    /// RSA below 2048 bits or EC below 250 bits.
    #[error("the signer's key is too short ({0}): key too short, at least RSA 2048 or EC 250 is needed")]
    KeyTooShort(String),
    /// A key of a kind that is not supported, such as EC with explicit parameters.
    #[error("the signer's key is not supported: {0}")]
    KeyUnsupported(String),
    /// SHA-1 or weaker.
    #[error("{0} is too weak for a batch signature; SHA-256, SHA-384 or SHA-512 is needed")]
    WeakHash(&'static str),
    /// An algorithm that is not supported, or that does not go with the signer's key.
    #[error("the batch signature's algorithm is not supported: {0}")]
    AlgorithmUnsupported(String),
    /// Signed attributes without a messageDigest.
    #[error("the batch signature's signed attributes have no messageDigest")]
    MessageDigestMissing,
    /// The messageDigest attribute belongs to other content.
    #[error("signature does not verify for these keys: messageDigest does not match")]
    MessageDigestMismatch,
    /// The signature is not one of this key over these keys.
    #[error("signature does not verify with the key of the signer's certificate")]
    Mismatch,
}

impl From<ber::BerError> for SignatureError {
    fn from(error: ber::BerError) -> Self {
        Self::NotCms(error.to_string())
    }
}

impl From<AlgorithmError> for SignatureError {
    fn from(error: AlgorithmError) -> Self {
        match error {
            AlgorithmError::Weak(name) => Self::WeakHash(name),
            AlgorithmError::Unsupported(what) => Self::AlgorithmUnsupported(what),
        }
    }
}

/// Verifies a `batchSignature` over the signed bytes of a batch, and says who made it (spec §4.1.6).
///
/// The signature may be DER or BER, with signed attributes or without; certificates beside the signer's,
/// revocation lists and unsigned attributes are ignored. The signer's certificate must be valid at `now`.
///
/// # Errors
/// See [`SignatureError`]: one variant for each reason.
pub fn verify(
    batch_signature: &str,
    signed_bytes: &[u8],
    now: DateTime<Utc>,
    policy: SignaturePolicy,
) -> Result<SignedBy, SignatureError> {
    let bytes = decode_base64(batch_signature).ok_or(SignatureError::NotBase64)?;
    let signed_data = SignedData::parse(&bytes)?;
    let certificate = Certificate::from_der(signed_data.signer_certificate()?)?;
    if now < certificate.not_before() {
        return Err(SignatureError::NotYetValid { not_before: certificate.not_before() });
    }
    if !certificate.is_valid_at(now) {
        return Err(SignatureError::Expired { not_after: certificate.not_after() });
    }
    let key = certificate.key();
    if key.is_too_short() {
        return Err(SignatureError::KeyTooShort(key.to_string()));
    }
    if !key.is_supported() {
        return Err(SignatureError::KeyUnsupported(key.to_string()));
    }
    let digest = signed_data.digest()?;
    let scheme = signed_data.scheme(digest)?;
    let used_sha1 = digest == Hash::Sha1 || scheme.hash() == Hash::Sha1;
    if used_sha1 && !policy.allow_sha1 {
        return Err(SignatureError::WeakHash("SHA-1"));
    }
    let attributes = signed_data.signed_attributes()?;
    if let Some(attributes) = &attributes
        && attributes.message_digest.as_bytes() != digest.digest(signed_bytes).as_ref()
    {
        return Err(SignatureError::MessageDigestMismatch);
    }
    let message = attributes.as_ref().map_or(signed_bytes, |attributes| &attributes.der);
    match key.verify(scheme, message, signed_data.signature()) {
        Ok(()) => Ok(SignedBy { certificate, used_sha1 }),
        Err(VerifyError::Mismatch) => Err(SignatureError::Mismatch),
        Err(VerifyError::Unsupported) => {
            Err(SignatureError::AlgorithmUnsupported(format!("{scheme} with a key {key}")))
        }
    }
}

/// Standard base64 without insisting on padding, after white space left by folding is gone.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let compact: Vec<u8> = text.bytes().filter(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n')).collect();
    ENGINE.decode(compact).ok()
}

fn seconds(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}
