//! Statements about the log, and their signatures.
//!
//! The statements of all instances form one list without gaps, each with the hash of the one before it. So a copy of
//! the newest one covers all of them, and a deleted chain of records is still named in the list.

use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use openssl::{
    error::ErrorStack,
    hash::MessageDigest,
    pkey::{HasPublic, Id, PKey, PKeyRef, Private, Public},
    sign::{Signer as OpensslSigner, Verifier},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ChainEnd, Hash, hex};

/// What a statement says.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StatementKind {
    /// An instance begins a chain.
    Start,
    /// The chain of an instance has this record and all before it.
    Head,
    /// The same, and it has no other: its gateway has stopped in order.
    End,
    /// The chain's records up to this one are deleted because of their age.
    Cut,
    /// The statements before the number `sequence` are deleted because of their age.
    Trim,
}

impl StatementKind {
    /// Whether it says which record a chain has.
    pub fn is_head(self) -> bool {
        matches!(self, Self::Head | Self::End)
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Head => "head",
            Self::End => "end",
            Self::Cut => "cut",
            Self::Trim => "trim",
        }
    }
}

/// A statement; its JSON, with these fields in this order, is what is signed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Says what this is, so that the signature cannot be used for anything else.
    pub log: String,
    /// Number in the list, from 1.
    pub number: i64,
    /// What it says.
    pub kind: StatementKind,
    /// Whose chain.
    pub instance: String,
    /// Of a start: the machine, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Number of the chain's record.
    pub sequence: i64,
    /// That record's hash, 64 hexadecimal digits.
    pub hash: String,
    /// Of a cut or a trim: why the operator forced the deletion of what was not as it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub although: Option<String>,
    /// When it was made, UTC.
    pub at: String,
    /// SHA-256 of the statement before it; zeros for the first.
    pub previous: String,
}

const LOG: &str = "efgs-access-log-v1";

impl Statement {
    /// A statement that has no number in the list yet.
    pub fn new(kind: StatementKind, instance: &str, end: &ChainEnd, at: DateTime<Utc>) -> Self {
        Self {
            log: LOG.to_owned(),
            number: 0,
            kind,
            instance: instance.to_owned(),
            host: None,
            sequence: end.sequence,
            hash: hex(&end.hash),
            although: None,
            at: at.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
            previous: hex(&super::ORIGIN),
        }
    }

    /// The text that is signed.
    pub fn text(&self) -> String {
        // Plain fields always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads such a text, and nothing that is written another way.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|read: &Self| read.log == LOG && read.text() == text)
    }
}

/// The hash by which the next statement names this one.
pub fn digest(statement: &str) -> Hash {
    Sha256::digest(statement).into()
}

/// A statement as it is kept and exported.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignedStatement {
    /// The text.
    pub statement: String,
    /// Which key signed, if one did: SHA-256 of the public key (SubjectPublicKeyInfo in DER).
    pub key_id: Option<String>,
    /// Base64 of the signature over the text.
    pub signature: Option<String>,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file is not readable.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not such a key.
    #[error("{path} is not {expected}")]
    Malformed {
        /// The file.
        path: String,
        /// What it should be, and how to make it.
        expected: &'static str,
    },
    /// The library refuses.
    #[error("the key does not sign: {0}")]
    Openssl(#[from] ErrorStack),
}

/// Signs statements.
pub struct Signer {
    key: PKey<Private>,
    public: Key,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("id", &self.public.id).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads a private key, Ed25519 or EC, in PEM.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let pem = zeroize::Zeroizing::new(read(path)?);
        let key = PKey::private_key_from_pem_passphrase(&pem, b"").ok().filter(|key| signs(key));
        let key = key.ok_or_else(|| KeyError::Malformed {
            path: path.display().to_string(),
            expected: "an Ed25519 or EC private key in PEM without a password: make one with \
                       `openssl genpkey -algorithm ed25519 -out access-log.key`",
        })?;
        let public = Key::new(PKey::public_key_from_der(&key.public_key_to_der()?)?)?;
        Ok(Self { key, public })
    }

    /// The public half, for those who verify.
    pub fn public(&self) -> &Key {
        &self.public
    }

    /// Signs a text.
    pub fn sign(&self, statement: String) -> Result<SignedStatement, KeyError> {
        let mut signer = match digest_for(&self.key) {
            None => OpensslSigner::new_without_digest(&self.key)?,
            Some(digest) => OpensslSigner::new(digest, &self.key)?,
        };
        let signature = BASE64_STANDARD.encode(signer.sign_oneshot_to_vec(statement.as_bytes())?);
        Ok(SignedStatement { statement, key_id: Some(self.public.id.clone()), signature: Some(signature) })
    }
}

/// A public key that verifies statements.
#[derive(Clone, Debug)]
pub struct Key {
    key: PKey<Public>,
    id: String,
}

impl Key {
    /// Reads a public key in PEM.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let key = PKey::public_key_from_pem(&read(path)?).ok().filter(|key| signs(key));
        Self::new(key.ok_or_else(|| KeyError::Malformed {
            path: path.display().to_string(),
            expected: "an Ed25519 or EC public key in PEM: `openssl pkey -in access-log.key -pubout` prints it",
        })?)
    }

    fn new(key: PKey<Public>) -> Result<Self, KeyError> {
        let id = hex(&Sha256::digest(key.public_key_to_der()?));
        Ok(Self { key, id })
    }

    /// SHA-256 of the key (SubjectPublicKeyInfo in DER), 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether this key has signed the statement.
    pub fn verifies(&self, signed: &SignedStatement) -> bool {
        let verify = || -> Option<bool> {
            let signature = BASE64_STANDARD.decode(signed.signature.as_deref()?).ok()?;
            let mut verifier = match digest_for(&self.key) {
                None => Verifier::new_without_digest(&self.key),
                Some(digest) => Verifier::new(digest, &self.key),
            }
            .ok()?;
            verifier.verify_oneshot(&signature, signed.statement.as_bytes()).ok()
        };
        signed.key_id.as_deref() == Some(&self.id) && verify().unwrap_or(false)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KeyError> {
    std::fs::read(path).map_err(|source| KeyError::Unreadable { path: path.display().to_string(), source })
}

fn signs<T: HasPublic>(key: &PKeyRef<T>) -> bool {
    [Id::ED25519, Id::EC].contains(&key.id())
}

/// Ed25519 hashes by itself.
fn digest_for<T: HasPublic>(key: &PKeyRef<T>) -> Option<MessageDigest> {
    (key.id() != Id::ED25519).then(MessageDigest::sha256)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use openssl::{
        ec::{EcGroup, EcKey},
        nid::Nid,
        rsa::Rsa,
    };

    use super::*;

    fn signer(key: PKey<Private>) -> Result<Signer, KeyError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        Signer::read(file.path())
    }

    #[test]
    fn ed25519_and_ec_keys_sign_and_others_are_refused_with_a_remedy() {
        let ec = EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap();
        for key in [PKey::generate_ed25519().unwrap(), PKey::from_ec_key(ec).unwrap()] {
            let signer = signer(key).unwrap();
            let signed = signer.sign("a statement".into()).unwrap();
            assert!(signer.public().verifies(&signed));
            assert!(!format!("{signer:?}").contains("PRIVATE"));
            let other = self::signer(PKey::generate_ed25519().unwrap()).unwrap();
            assert!(!other.public().verifies(&signed));
            let changed = SignedStatement { statement: "another one".into(), ..signed.clone() };
            assert!(!signer.public().verifies(&changed));
            let unsigned = SignedStatement { signature: None, ..signed };
            assert!(!signer.public().verifies(&unsigned));
        }
        let error = signer(PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()).unwrap_err().to_string();
        assert!(error.contains("openssl genpkey -algorithm ed25519"), "{error}");
    }

    #[test]
    fn a_statement_is_read_in_one_form_only() {
        let at = DateTime::from_timestamp_micros(1_795_543_200_000_001).unwrap();
        let statement = Statement::new(StatementKind::Head, "44d3d64da67d64d5", &ChainEnd::default(), at);
        let text = statement.text();
        assert!(text.contains(r#""kind":"head","instance":"44d3d64da67d64d5","sequence":0"#), "{text}");
        assert_eq!(Statement::parse(&text), Some(statement));
        for changed in [
            text.replace(':', ": "),
            text.replace("access-log", "another-log"),
            text.replace('}', ",\"more\":1}"),
            text.replace("\"head\"", "\"tail\""),
        ] {
            assert_eq!(Statement::parse(&changed), None, "{changed}");
        }
    }
}
