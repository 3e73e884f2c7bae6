//! Checks the keys, the signature and the signer of a decoded upload, and encrypts the keys.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use efgs_protocol::{
    batch_tag::UploadTag,
    canonical::CanonicalKeys,
    certificate::{CertificateError, CertificateType, Thumbprint},
    country::Country,
    key::{InvalidKey, KeyBatch},
    media::{Format, MediaType},
    signature::{self, SignatureError, SignaturePolicy},
    wire,
};
use sha2::{Digest, Sha256};
use tracing::trace_span;

use efgs_kit::telemetry;

use crate::{EncryptionError, Inactive, Keyring, Registry, Sealer, Usage};

/// Bytes of a typical key in protobuf.
const ENCODED_KEY: usize = 64;

/// Why a decoded upload is rejected.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A key is out of range.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// The batch signature is invalid.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The signer's certificate does not name exactly one country.
    #[error("the signing certificate is not usable: {0}")]
    SignerCountry(CertificateError),
    /// The signer's certificate is not accepted.
    #[error("the signing certificate {thumbprint} {reason} for SIGNING")]
    SignerInactive {
        /// The certificate in the signature.
        thumbprint: Thumbprint,
        /// The reason.
        reason: Inactive,
    },
    /// The registry and the signer's certificate name different countries.
    #[error("the signing certificate {thumbprint} is not registered for {country}")]
    SignerRegistration {
        /// The certificate in the signature.
        thumbprint: Thumbprint,
        /// The country in its subject.
        country: Country,
    },
    /// The signer and the caller are of different countries.
    #[error("the signing certificate is of {signer}, but the caller is {caller}")]
    SignerNotCaller {
        /// The signer's country.
        signer: Country,
        /// The caller's country.
        caller: Country,
    },
    /// A key has another country's origin.
    #[error("key {index}: its origin {origin} is not the caller's country {caller}")]
    ForeignOrigin {
        /// The key's index, from 0.
        index: usize,
        /// Its origin.
        origin: Country,
        /// The caller's country.
        caller: Country,
    },
    /// The keys cannot be encrypted.
    #[error(transparent)]
    Encryption(#[from] EncryptionError),
}

/// The authenticated national backend that sent an upload.
#[derive(Clone, Copy, Debug)]
pub struct Uploader {
    /// Its country.
    pub country: Country,
    /// The registry row that authenticates it: that of its certificate, or of the CA that issued it.
    pub certificate_id: i64,
    /// The thumbprint of its certificate.
    pub thumbprint: Thumbprint,
}

/// One key, ready to be stored.
#[derive(Clone, Debug)]
pub struct SealedKey {
    /// Its index in the request, from 0.
    pub position: u32,
    /// The UTC day in which its validity begins, in days since 1970.
    pub rolling_day: u16,
    /// SHA-256 of its key bytes (spec §4.2.4).
    pub payload_hash: [u8; 32],
    /// The number of its report type.
    pub report_type: u8,
    /// Its protobuf encoding, encrypted.
    pub payload: Vec<u8>,
}

/// A decoded upload that has not been verified.
#[derive(Debug)]
pub struct SignedUpload {
    /// The sender.
    pub uploader: Uploader,
    /// The upload tag.
    pub tag: UploadTag,
    /// Its format.
    pub media: MediaType,
    /// The signature, as received.
    pub batch_signature: String,
    /// The keys, in the order of the request.
    pub keys: KeyBatch,
    /// When it arrived.
    pub at: DateTime<Utc>,
    /// Whether the keys' encoding is kept beside the encrypted keys, for the journal.
    pub keep_encoding: bool,
}

/// What a key takes in the database beside its payload: its row, its hash and their indexes, in bytes. Measured on MySQL 9.7.
const ROW_OF_KEY: u64 = 200;
/// The same of an upload, beside its signature.
const ROW_OF_UPLOAD: u64 = 1024;

/// An upload that passed every check. The only way to get one is [`SignedUpload::verify`].
#[derive(Debug)]
pub struct VerifiedUpload {
    country: Country,
    tag: UploadTag,
    media: MediaType,
    batch_signature: String,
    uploader_certificate_id: i64,
    uploader_thumbprint: Thumbprint,
    signing_certificate_id: i64,
    signing_thumbprint: Thumbprint,
    content_hash: [u8; 32],
    uploaded_at: DateTime<Utc>,
    key_id: u32,
    keys: Vec<SealedKey>,
    encoding: Option<Vec<u8>>,
    repeats: Vec<usize>,
}

impl SignedUpload {
    /// Checks keys, signature and trust, and encrypts.
    pub fn verify(
        self,
        registry: &Registry,
        policy: SignaturePolicy,
        keyring: &Keyring,
    ) -> Result<VerifiedUpload, VerifyError> {
        let Self { uploader, tag, media, batch_signature, keys, at, keep_encoding } = self;
        keys.validate(at)?;
        let canonical = CanonicalKeys::of(&keys);
        let signed_bytes = canonical.signed_bytes();
        let (signing_certificate_id, signing_thumbprint) = trace_span!(target: telemetry::SPANS, "verify")
            .in_scope(|| {
                trusted_signer(&batch_signature, &signed_bytes, at, policy, registry, uploader.country)
            })?;
        let foreign = keys.iter().enumerate().find(|(_, key)| key.origin != uploader.country);
        if let Some((index, key)) = foreign {
            return Err(VerifyError::ForeignOrigin { index, origin: key.origin, caller: uploader.country });
        }
        let hashes = canonical.payload_hashes();
        let repeats = repeats(&hashes);
        // One key seals them all, also if the keyring is replaced meanwhile.
        let sealer = keyring.sealer();
        let mut encoding = keep_encoding.then(|| Vec::with_capacity(keys.len() * ENCODED_KEY));
        let sealed = trace_span!(target: telemetry::SPANS, "encrypt", keys = keys.len())
            .in_scope(|| seal(&keys, &hashes, &sealer, encoding.as_mut()))?;
        Ok(VerifiedUpload {
            country: uploader.country,
            tag,
            media,
            batch_signature,
            uploader_certificate_id: uploader.certificate_id,
            uploader_thumbprint: uploader.thumbprint,
            signing_certificate_id,
            signing_thumbprint,
            content_hash: Sha256::digest(&signed_bytes).into(),
            uploaded_at: at,
            key_id: sealer.id()?,
            keys: sealed,
            encoding,
            repeats,
        })
    }
}

/// Verifies the signature, and that the signer may sign for the caller's country. Returns the registry row of
/// the signer (or of its CA) and the signer's thumbprint.
fn trusted_signer(
    batch_signature: &str,
    signed_bytes: &[u8],
    at: DateTime<Utc>,
    policy: SignaturePolicy,
    registry: &Registry,
    caller: Country,
) -> Result<(i64, Thumbprint), VerifyError> {
    let signed_by = signature::verify(batch_signature, signed_bytes, at, policy)?;
    let thumbprint = signed_by.certificate.thumbprint();
    let signer = signed_by.certificate.country().map_err(VerifyError::SignerCountry)?;
    let entry = registry
        .admit(&signed_by.certificate, CertificateType::Signing, at)
        .map_err(|reason| VerifyError::SignerInactive { thumbprint, reason })?;
    if entry.country != signer {
        return Err(VerifyError::SignerRegistration { thumbprint, country: signer });
    }
    if signer != caller {
        return Err(VerifyError::SignerNotCaller { signer, caller });
    }
    if signed_by.used_sha1 {
        tracing::warn!(country = %caller, %thumbprint, "a signature with SHA-1 was accepted, as this participant's settings allow");
        metrics::counter!(telemetry::SHA1_UPLOADS, "country" => caller.to_string()).increment(1);
    }
    Ok((entry.id, thumbprint))
}

/// The indexes of keys that repeat an earlier key.
fn repeats(hashes: &[[u8; 32]]) -> Vec<usize> {
    let mut seen = HashSet::with_capacity(hashes.len());
    (0..hashes.len()).filter(|i| !seen.insert(&hashes[*i])).collect()
}

/// Encodes and encrypts each key, and appends what it encoded to `encoding`.
fn seal(
    keys: &KeyBatch,
    hashes: &[[u8; 32]],
    sealer: &Sealer,
    mut encoding: Option<&mut Vec<u8>>,
) -> Result<Vec<SealedKey>, EncryptionError> {
    let nonces = Keyring::nonces(keys.len());
    let mut plain = Vec::with_capacity(128);
    let mut sealed = Vec::with_capacity(keys.len());
    for (position, (key, (payload_hash, nonce))) in keys.iter().zip(hashes.iter().zip(nonces)).enumerate() {
        plain.clear();
        wire::encode_key(Format::Protobuf, key, &mut plain);
        if let Some(encoding) = &mut encoding {
            wire::append_protobuf_field(&plain, encoding);
        }
        sealed.push(SealedKey {
            position: position as u32,
            rolling_day: key.rolling_day(),
            payload_hash: *payload_hash,
            report_type: key.report_type as u8,
            payload: sealer.seal(payload_hash, nonce, &plain)?,
        });
    }
    Ok(sealed)
}

impl VerifiedUpload {
    /// The same, let in by this row of the registry: of a CA that was renewed there are several, and an audit shows
    /// the one of that time.
    pub fn signed_under(self, certificate_id: i64) -> Self {
        Self { signing_certificate_id: certificate_id, ..self }
    }

    /// Whose upload it is: caller, signer and origin of every key.
    pub fn country(&self) -> Country {
        self.country
    }

    /// The country's name for it.
    pub fn tag(&self) -> &UploadTag {
        &self.tag
    }

    /// The format it came in.
    pub fn media(&self) -> MediaType {
        self.media
    }

    /// The format's name in the database.
    pub fn format_name(&self) -> &'static str {
        self.media.format.name()
    }

    /// The signature, as received: auditors get it back.
    pub fn batch_signature(&self) -> &str {
        &self.batch_signature
    }

    /// Thumbprint of the certificate that the caller showed.
    pub fn uploader_thumbprint(&self) -> Thumbprint {
        self.uploader_thumbprint
    }

    /// Thumbprint of the certificate that signed.
    pub fn signing_thumbprint(&self) -> Thumbprint {
        self.signing_thumbprint
    }

    /// Number of the caller's certificate, or of the CA that issued it.
    pub fn uploader_certificate_id(&self) -> i64 {
        self.uploader_certificate_id
    }

    /// Number of the signer's certificate, or of the CA that issued it.
    pub fn signing_certificate_id(&self) -> i64 {
        self.signing_certificate_id
    }

    /// SHA-256 of the signed bytes: the same for the same keys in whatever order and format.
    pub fn content_hash(&self) -> &[u8; 32] {
        &self.content_hash
    }

    /// When it arrived.
    pub fn uploaded_at(&self) -> DateTime<Utc> {
        self.uploaded_at
    }

    /// The id of the encryption key that all keys are sealed with.
    pub fn key_id(&self) -> u32 {
        self.key_id
    }

    /// The keys, in the order of their hashes.
    pub fn keys(&self) -> &[SealedKey] {
        &self.keys
    }

    /// Takes out the keys in the order of the request, as a protobuf `DiagnosisKeyBatch`; `None` unless
    /// [`SignedUpload::keep_encoding`] was set, or when it has been taken.
    pub fn take_encoding(&mut self) -> Option<Vec<u8>> {
        self.encoding.take()
    }

    /// Bytes of all payloads.
    pub fn payload_bytes(&self) -> u64 {
        self.keys.iter().map(|key| key.payload.len() as u64).sum()
    }

    /// What it takes of the day's quota: its keys, and the bytes that it occupies in the database, whatever format it
    /// came in.
    pub fn usage(&self) -> Usage {
        let keys = self.keys.len() as u64;
        let bytes =
            self.payload_bytes() + keys * ROW_OF_KEY + self.batch_signature.len() as u64 + ROW_OF_UPLOAD;
        Usage { keys, bytes }
    }

    /// Positions of keys that are the same as an earlier one in the upload, ascending.
    pub fn repeats(&self) -> &[usize] {
        &self.repeats
    }
}

#[cfg(test)]
mod tests;
