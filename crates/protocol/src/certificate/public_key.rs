//! Public keys, and the one place where a signature is verified.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{self as lc, RsaParameters, RsaPssSaltLength, VerificationAlgorithm};
use x509_parser::asn1_rs::Tag;
use x509_parser::signature_algorithm::RsaSsaPssParams;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

/// A hash algorithm that the wire may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    /// Broken; only for participants with an explicit permission.
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

/// An algorithm identifier that names nothing usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AlgorithmError {
    /// Weaker than SHA-1; never allowed.
    #[error("{0}")]
    Weak(&'static str),
    #[error("{0}")]
    Unsupported(String),
}

impl Hash {
    /// Reads a digest algorithm identifier. Its parameters (NULL or absent) say nothing.
    pub(crate) fn read(algorithm: &AlgorithmIdentifier<'_>) -> Result<Self, AlgorithmError> {
        Self::from_oid(&algorithm.algorithm.to_id_string())
    }

    fn from_oid(oid: &str) -> Result<Self, AlgorithmError> {
        match oid {
            "1.3.14.3.2.26" => Ok(Self::Sha1),
            "2.16.840.1.101.3.4.2.1" => Ok(Self::Sha256),
            "2.16.840.1.101.3.4.2.2" => Ok(Self::Sha384),
            "2.16.840.1.101.3.4.2.3" => Ok(Self::Sha512),
            "1.2.840.113549.2.2" => Err(AlgorithmError::Weak("MD2")),
            "1.2.840.113549.2.5" => Err(AlgorithmError::Weak("MD5")),
            other => Err(AlgorithmError::Unsupported(format!("digest algorithm {other}"))),
        }
    }

    /// The hash of `message`.
    pub(crate) fn digest(self, message: &[u8]) -> digest::Digest {
        let algorithm = match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        };
        digest::digest(algorithm, message)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha1 => "SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
        })
    }
}

/// How a signature was made, as its algorithm identifier says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    RsaPkcs1(Hash),
    RsaPss { hash: Hash, salt: u16 },
    Ecdsa(Hash),
}

impl Scheme {
    /// Reads a signature algorithm identifier. Some name only the kind of key; then `digest`, the hash named
    /// beside it, counts.
    pub(crate) fn read(
        algorithm: &AlgorithmIdentifier<'_>,
        digest: Option<Hash>,
    ) -> Result<Self, AlgorithmError> {
        let oid = algorithm.algorithm.to_id_string();
        let unsupported = || AlgorithmError::Unsupported(format!("signature algorithm {oid}"));
        Ok(match oid.as_str() {
            "1.2.840.113549.1.1.1" => Self::RsaPkcs1(digest.ok_or_else(unsupported)?),
            "1.2.840.113549.1.1.5" => Self::RsaPkcs1(Hash::Sha1),
            "1.2.840.113549.1.1.11" => Self::RsaPkcs1(Hash::Sha256),
            "1.2.840.113549.1.1.12" => Self::RsaPkcs1(Hash::Sha384),
            "1.2.840.113549.1.1.13" => Self::RsaPkcs1(Hash::Sha512),
            "1.2.840.113549.1.1.10" => Self::read_pss(algorithm)?,
            "1.2.840.10045.2.1" => Self::Ecdsa(digest.ok_or_else(unsupported)?),
            "1.2.840.10045.4.1" => Self::Ecdsa(Hash::Sha1),
            "1.2.840.10045.4.3.2" => Self::Ecdsa(Hash::Sha256),
            "1.2.840.10045.4.3.3" => Self::Ecdsa(Hash::Sha384),
            "1.2.840.10045.4.3.4" => Self::Ecdsa(Hash::Sha512),
            "1.2.840.113549.1.1.2" => return Err(AlgorithmError::Weak("MD2")),
            "1.2.840.113549.1.1.4" => return Err(AlgorithmError::Weak("MD5")),
            _ => return Err(unsupported()),
        })
    }

    /// The parameters of RSASSA-PSS (RFC 4055). What is absent means SHA-1.
    fn read_pss(algorithm: &AlgorithmIdentifier<'_>) -> Result<Self, AlgorithmError> {
        let unsupported = |what: &str| AlgorithmError::Unsupported(format!("RSASSA-PSS with {what}"));
        let Some(parameters) = algorithm.parameters() else {
            return Ok(Self::RsaPss { hash: Hash::Sha1, salt: 20 });
        };
        let pss = RsaSsaPssParams::try_from(parameters).map_err(|_| unsupported("unreadable parameters"))?;
        let hash = Hash::from_oid(&pss.hash_algorithm_oid().to_id_string())?;
        let mask = pss.mask_gen_algorithm().map_err(|_| unsupported("an unreadable mask function"))?;
        if mask.mgf.to_id_string() != "1.2.840.113549.1.1.8" {
            return Err(unsupported("another mask function than MGF1"));
        }
        if Hash::from_oid(&mask.hash.to_id_string())? != hash {
            return Err(unsupported("two different hashes"));
        }
        if pss.trailer_field() != 1 {
            return Err(unsupported("an unknown trailer"));
        }
        let salt = u16::try_from(pss.salt_length()).map_err(|_| unsupported("too long a salt"))?;
        Ok(Self::RsaPss { hash, salt })
    }

    pub(crate) fn hash(self) -> Hash {
        match self {
            Self::RsaPkcs1(hash) | Self::RsaPss { hash, .. } | Self::Ecdsa(hash) => hash,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RsaPkcs1(hash) => write!(f, "RSA PKCS#1 with {hash}"),
            Self::RsaPss { hash, .. } => write!(f, "RSASSA-PSS with {hash}"),
            Self::Ecdsa(hash) => write!(f, "ECDSA with {hash}"),
        }
    }
}

/// Why a signature counts for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VerifyError {
    /// Key and scheme do not go together, or the combination is not implemented.
    Unsupported,
    /// The signature is not one of this key over this message.
    Mismatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
}

/// A certificate's public key, as far as it can be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublicKey {
    /// An RSA key of up to 8192 bits; `der` is its RSAPublicKey (RFC 8017).
    Rsa {
        bits: u32,
        der: Vec<u8>,
    },
    Ec {
        curve: Curve,
        point: Vec<u8>,
    },
    /// Any other key. `bits` is its size where that is known.
    Unsupported {
        description: String,
        bits: Option<u32>,
    },
}

impl PublicKey {
    pub(super) fn read(spki: &SubjectPublicKeyInfo<'_>) -> Self {
        let key = spki.subject_public_key.data.as_ref();
        match spki.algorithm.algorithm.to_id_string().as_str() {
            "1.2.840.113549.1.1.1" | "1.2.840.113549.1.1.10" => {
                match RsaParameters::public_modulus_len(key) {
                    Ok(bits @ 0..=8192) => Self::Rsa { bits, der: key.to_vec() },
                    Ok(bits) => Self::Unsupported { description: format!("RSA {bits}"), bits: Some(bits) },
                    Err(_) => Self::Unsupported { description: "RSA, unreadable".into(), bits: None },
                }
            }
            "1.2.840.10045.2.1" => Self::read_ec(spki, key),
            other => Self::Unsupported { description: format!("algorithm {other}"), bits: None },
        }
    }

    fn read_ec(spki: &SubjectPublicKeyInfo<'_>, point: &[u8]) -> Self {
        let parameters = spki.algorithm.parameters();
        let name = parameters.filter(|p| p.tag() == Tag::Oid).and_then(|p| p.as_oid().ok());
        let curve = match name.map(|oid| oid.to_id_string()).as_deref() {
            Some("1.2.840.10045.3.1.7") => Curve::P256,
            Some("1.3.132.0.34") => Curve::P384,
            Some("1.3.132.0.35") => Curve::P521,
            other => {
                let description = match other {
                    Some(oid) => format!("EC curve {oid}"),
                    None => "EC with explicit parameters".into(),
                };
                // The point is one byte of form and then one or, uncompressed, two coordinates.
                let coordinates = point.len().saturating_sub(1);
                let bytes = if point.first() == Some(&4) { coordinates / 2 } else { coordinates };
                return Self::Unsupported { description, bits: u32::try_from(bytes * 8).ok() };
            }
        };
        Self::Ec { curve, point: point.to_vec() }
    }

    /// Whether the key is below what a batch signature may be made with: RSA 2048 or EC 250 bits.
    pub(crate) fn is_too_short(&self) -> bool {
        match self {
            Self::Rsa { bits, .. } => *bits < 2048,
            Self::Ec { .. } => false,
            Self::Unsupported { bits, .. } => bits.is_some_and(|bits| bits < 250),
        }
    }

    /// Whether [`PublicKey::verify`] can succeed with any scheme, but for the key's size.
    pub(crate) fn is_supported(&self) -> bool {
        !matches!(self, Self::Unsupported { .. })
    }

    /// Verifies `signature` over `message`. RSA keys below 2048 bits are refused.
    pub(crate) fn verify(&self, scheme: Scheme, message: &[u8], signature: &[u8]) -> Result<(), VerifyError> {
        use Curve::{P256, P384, P521};
        use Hash::{Sha1, Sha256, Sha384, Sha512};
        let rsa_parameters;
        let (algorithm, key): (&dyn VerificationAlgorithm, &[u8]) = match (self, scheme) {
            (Self::Rsa { bits: 2048.., der }, Scheme::RsaPkcs1(hash)) => (
                match hash {
                    Sha1 => &lc::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
                    Sha256 => &lc::RSA_PKCS1_2048_8192_SHA256,
                    Sha384 => &lc::RSA_PKCS1_2048_8192_SHA384,
                    Sha512 => &lc::RSA_PKCS1_2048_8192_SHA512,
                },
                der,
            ),
            (Self::Rsa { bits: 2048.., der }, Scheme::RsaPss { hash, salt }) => {
                let parameters = match hash {
                    Sha1 => return Err(VerifyError::Unsupported),
                    Sha256 => lc::RSA_PSS_2048_8192_SHA256,
                    Sha384 => lc::RSA_PSS_2048_8192_SHA384,
                    Sha512 => lc::RSA_PSS_2048_8192_SHA512,
                };
                rsa_parameters = parameters.with_pss_salt_length(RsaPssSaltLength::Custom(salt));
                (&rsa_parameters, der)
            }
            (Self::Ec { curve, point }, Scheme::Ecdsa(hash)) => (
                match (curve, hash) {
                    (P256, Sha1) => &lc::ECDSA_P256_SHA1_ASN1,
                    (P256, Sha256) => &lc::ECDSA_P256_SHA256_ASN1,
                    (P256, Sha384) => &lc::ECDSA_P256_SHA384_ASN1,
                    (P256, Sha512) => &lc::ECDSA_P256_SHA512_ASN1,
                    (P384, Sha1) => return Err(VerifyError::Unsupported),
                    (P384, Sha256) => &lc::ECDSA_P384_SHA256_ASN1,
                    (P384, Sha384) => &lc::ECDSA_P384_SHA384_ASN1,
                    (P384, Sha512) => &lc::ECDSA_P384_SHA512_ASN1,
                    (P521, Sha1) => &lc::ECDSA_P521_SHA1_ASN1,
                    (P521, Sha256) => &lc::ECDSA_P521_SHA256_ASN1,
                    (P521, Sha384) => &lc::ECDSA_P521_SHA384_ASN1,
                    (P521, Sha512) => &lc::ECDSA_P521_SHA512_ASN1,
                },
                point,
            ),
            _ => return Err(VerifyError::Unsupported),
        };
        algorithm.verify_sig(key, message, signature).map_err(|_| VerifyError::Mismatch)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa { bits, .. } => write!(f, "RSA {bits}"),
            Self::Ec { curve: Curve::P256, .. } => f.write_str("EC P-256"),
            Self::Ec { curve: Curve::P384, .. } => f.write_str("EC P-384"),
            Self::Ec { curve: Curve::P521, .. } => f.write_str("EC P-521"),
            Self::Unsupported { description, .. } => f.write_str(description),
        }
    }
}
