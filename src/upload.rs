//! Accepting an upload (spec §5.4).
//!
//! The checks run in the order of the contract: caller, headers, format, size, body, keys, signature and trust,
//! tag. Only a `VerifiedUpload`, the result of all checks, can be stored.

use std::sync::Arc;

use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use efgs_protocol::{
    batch_tag::{InvalidUploadTag, UploadTag},
    country::Country,
    media::{MediaError, MediaType},
    signature::SignaturePolicy,
    wire::{self, DecodeError},
};
use serde::{Deserialize, Serialize};
use tracing::trace_span;
use utoipa::ToSchema;

use crate::{
    access_log::{self, Trail},
    clock::Clock,
    config::Config,
    health::{Health, Trouble},
    http::{self, BodyError, Code, Error, ErrorBody, HeaderError, Problem, reply},
    intake::Keyring,
    journal::Recording,
    limits::{Admitted, Held, Kind, LimitError, Limits},
    store::{Store, UploadOutcome},
    telemetry,
    trust::{Caller, RegistryUnavailable, Trust},
    workers::Workers,
};

use efgs_intake::{SignedUpload, Uploader, VerifyError};

/// The maximum length of a batch signature, in bytes of base64.
const MAX_SIGNATURE: usize = 16 * 1024;

/// Why an upload is refused.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// A header is missing or invalid.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The upload tag is malformed.
    #[error(transparent)]
    Tag(#[from] InvalidUploadTag),
    /// The signature is longer than any valid one.
    #[error("the header batchSignature has {length} characters, more than {MAX_SIGNATURE}")]
    SignatureTooLong {
        /// The number of characters sent.
        length: usize,
    },
    /// The content type is not supported.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The body could not be read.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The body is not a batch of keys.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The keys, the signature or the signer are not acceptable.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The tag belongs to another upload of the country.
    #[error(
        "the batch tag {tag} is taken by another upload of {country}: it has other keys or another signer"
    )]
    TagTaken {
        /// The upload tag.
        tag: String,
        /// The country that has used it.
        country: Country,
    },
    /// The same upload was withdrawn.
    #[error("the upload {tag} of {country} was withdrawn: its tag and its keys stay taken until they expire")]
    Withdrawn {
        /// The upload tag.
        tag: String,
        /// The country that has used it.
        country: Country,
    },
    /// The registry is unavailable, so the signer cannot be checked.
    #[error(transparent)]
    Undecidable(#[from] RegistryUnavailable),
}

impl Problem for UploadError {
    fn code(&self) -> Code {
        match self {
            Self::Header(_) | Self::Tag(_) | Self::SignatureTooLong { .. } => Code::InvalidHeader,
            Self::Media(_) => Code::NotAcceptable,
            Self::Body(error) => match error {
                BodyError::TooLarge { .. } => Code::BodyTooLarge,
                BodyError::TooSlow { .. } => Code::RequestTimeout,
                BodyError::Broken => Code::MalformedBody,
                BodyError::Encoded { .. } => Code::InvalidHeader,
                BodyError::Limit(limit) => limit.code(),
            },
            Self::Decode(error) => match error {
                DecodeError::TooManyKeys { .. } => Code::TooManyKeys,
                DecodeError::Empty => Code::NoKeys,
                DecodeError::Malformed(_) => Code::MalformedBody,
                DecodeError::InvalidKey(_) => Code::InvalidKey,
            },
            Self::Verify(error) => match error {
                VerifyError::Key(_) => Code::InvalidKey,
                VerifyError::Signature(_) => Code::InvalidSignature,
                VerifyError::SignerCountry(_)
                | VerifyError::SignerInactive { .. }
                | VerifyError::SignerRegistration { .. }
                | VerifyError::SignerNotCaller { .. } => Code::UntrustedSigner,
                VerifyError::ForeignOrigin { .. } => Code::ForeignOrigin,
                VerifyError::Encryption(_) => Code::Internal,
            },
            Self::TagTaken { .. } => Code::UploadTagTaken,
            Self::Withdrawn { .. } => Code::UploadWithdrawn,
            Self::Undecidable(_) => Code::Unavailable,
        }
    }

    fn limit(&self) -> Option<&LimitError> {
        match self {
            Self::Body(BodyError::Limit(limit)) => Some(limit),
            _ => None,
        }
    }

    fn closes_connection(&self) -> bool {
        // The rest of the request is not read.
        matches!(self, Self::Body(_))
    }
}

/// What uploads need.
#[derive(Clone, Debug)]
pub struct Uploads {
    /// The sections `[upload]` and `[participants]`.
    pub config: Arc<Config>,
    /// The clock.
    pub clock: Clock,
    /// The database.
    pub store: Store,
    /// The registry.
    pub trust: Arc<Trust>,
    /// Encryption at rest.
    pub keyring: Arc<Keyring>,
    /// The limits of each country.
    pub limits: Arc<Limits>,
    /// The threads that verify uploads.
    pub workers: Workers,
    /// The health of writes to the database.
    pub health: Arc<Health>,
    /// The journal, if configured.
    pub journal: Recording,
}

/// What the answer 207 says of each key, by its index in the request (spec §5.4.3).
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MultiStatus {
    /// Would be accepted: nothing has been stored, send these again without the others.
    #[serde(rename = "201")]
    #[schema(example = json!([0, 2]))]
    pub created: Vec<usize>,
    /// Are there already, or repeat an earlier key of the upload.
    #[serde(rename = "409")]
    #[schema(example = json!([1]))]
    pub conflict: Vec<usize>,
    /// Always empty: an upload is stored whole or not at all.
    #[serde(rename = "500")]
    #[schema(example = json!([]))]
    pub error: Vec<usize>,
}

impl MultiStatus {
    fn new(amount: usize, conflict: Vec<usize>) -> Self {
        let created = (0..amount).filter(|i| conflict.binary_search(i).is_err()).collect();
        Self { created, conflict, error: Vec::new() }
    }
}

/// Takes a signed batch of diagnosis keys (spec §5.4).
///
/// All or nothing: an upload is stored whole, in one transaction, or not at all. Sending the same upload again
/// under the same tag gives the same answer and stores nothing twice, so a lost answer is safe to retry. After
/// 207 nothing is stored and the tag is free: send the keys listed under "201" again, signed again.
#[utoipa::path(
    post,
    path = "/diagnosiskeys/upload",
    tag = "upload",
    params(
        ("batchTag" = String, Header, description = "The upload's name, unique per country: 1 to 64 visible ASCII characters.", example = "2026-11-22-1"),
        ("batchSignature" = String, Header, description = "Base64 of a detached CMS signature over the batch (spec §4.1.6); at most 16 KiB.", example = "MIIG1AYJKoZIhvcNAQcCoIIGxTCCBsECAQExDTALBg…"),
        ("Content-Type" = String, Header, description = "application/protobuf; version=1.0 or application/json; version=1.0", example = "application/json; version=1.0"),
    ),
    request_body(
        content = crate::http::schema::DiagnosisKeyBatch, content_type = "application/json; version=1.0",
        description = "The keys, at most 5,000 and 10 MiB unless the operator set other limits. As application/protobuf; version=1.0 the message eu.interop.DiagnosisKeyBatch.",
        example = json!(crate::http::schema::example_batch()),
    ),
    responses(
        (status = 201, description = "Stored, now or by an earlier identical request. The body is empty.", headers(("batchTag" = String, description = "The upload tag."))),
        (status = 207, description = "Some keys exist already or repeat. Nothing is stored, and the tag is not used up.", body = MultiStatus, content_type = "application/json", example = json!({"201": [0, 2], "409": [1], "500": []})),
        (status = 400, description = "A header, the body, a key, the signature or its signer is not acceptable.", body = ErrorBody, content_type = "application/json", example = json!({"message": "key 17: rollingPeriod 145 is not within 1 to 144", "code": "invalid-key"})),
        (status = 406, description = "The media type or its version is not supported.", body = ErrorBody, content_type = "application/json", example = json!({"message": "format version 2.0 is not supported: the newest is 1.0", "code": "not-acceptable"})),
        (status = 408, description = "The request was not complete in time; the connection closes.", body = ErrorBody, content_type = "application/json", example = json!({"message": "the request was not complete after 30s", "code": "request-timeout"})),
        (status = 409, description = "The country has stored something else under this tag.", body = ErrorBody, content_type = "application/json", example = json!({"message": "the batch tag 2026-11-22-1 is taken by another upload of NL: it has other keys or another signer", "code": "upload-tag-taken"})),
        (status = 413, description = "Too many bytes or keys.", body = ErrorBody, content_type = "application/json", example = json!({"message": "the body has more than 5000 keys", "code": "too-many-keys"})),
        (status = 429, description = "The country's limits: too many requests or bytes at once, or the quota of the day. Nothing is stored, and the tag is not used up. Try again at the time in Retry-After (an HTTP date).", body = ErrorBody, content_type = "application/json", headers(("Retry-After" = String, description = "An HTTP date; for a quota the next midnight UTC.")), example = json!({"message": "NL has uploaded 4999000 of its 5000000 keys of 2026-11-22, and this upload has 5000: nothing was stored, send it again after midnight UTC", "code": "quota-exceeded"})),
    )
)]
pub async fn upload(
    caller: Caller,
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<Uploads>,
) -> Result<HttpResponse, Error> {
    let (tag, batch_signature, media) = read_headers(&request)?;
    let admitted = request.extensions_mut().remove::<Admitted>();
    let mut memory = state.limits.memory(caller.country);
    let (max, timeout) = (state.config.upload.max_bytes.as_u64(), state.config.server.request_timeout);
    let body =
        http::read_body(&request, payload, max, timeout, &mut memory).await.map_err(UploadError::from)?;
    access_log::note(&request, |facts| facts.request_bytes = body.len() as u64);
    // Runs on the worker threads and not on this connection's thread: hashing 5,000 keys would delay the other
    // requests of that thread, and a verified upload must run to completion even if its sender disconnects.
    let upload_tag = tag.as_str().to_owned();
    let (trail, uploads) = (access_log::trail(&request), state.clone());
    let accepting = state.workers.run(async move {
        // Held to the end, also if the sender disconnects. Otherwise a client could have any number of uploads
        // in progress.
        let _held: (Option<Admitted>, Held) = (admitted, memory);
        uploads.accept(caller, tag, batch_signature, media, body, trail).await
    });
    Ok(match accepting.await?? {
        None => reply::created(&upload_tag),
        Some(conflicts) => reply::multi_status(conflicts),
    })
}

fn read_headers(request: &HttpRequest) -> Result<(UploadTag, String, MediaType), UploadError> {
    let required = |name| http::header(request, name)?.ok_or(HeaderError::Missing(name));
    let tag = required(wire::BATCH_TAG)?;
    if let Ok(tag) = tag.parse::<UploadTag>() {
        access_log::note(request, |facts| facts.tag = Some(tag.to_string()));
    }
    let batch_signature = required(wire::BATCH_SIGNATURE)?;
    let content_type = required("Content-Type")?;
    if batch_signature.len() > MAX_SIGNATURE {
        return Err(UploadError::SignatureTooLong { length: batch_signature.len() });
    }
    Ok((tag.parse()?, batch_signature.to_owned(), MediaType::from_content_type(content_type)?))
}

impl Uploads {
    /// Verifies and stores an upload. Returns the conflicts if it could not be stored.
    async fn accept(
        &self,
        caller: Caller,
        tag: UploadTag,
        batch_signature: String,
        media: MediaType,
        body: bytes::Bytes,
        trail: Option<Arc<Trail>>,
    ) -> Result<Option<MultiStatus>, Error> {
        let country = caller.country;
        let mut verified = {
            let shared = self.clone();
            let verify = move || {
                let keys = trace_span!(target: telemetry::SPANS, "decode", bytes = body.len())
                    .in_scope(|| wire::decode(media.format, &body, shared.config.upload.max_keys))?;
                let registry = shared.trust.registry()?;
                let policy =
                    SignaturePolicy { allow_sha1: shared.config.participant(country).allow_sha1_signatures };
                let Caller { country, certificate_id, thumbprint } = caller;
                let uploader = Uploader { country, certificate_id, thumbprint };
                let at = shared.clock.now();
                let keep_encoding = shared.journal.journal().is_some();
                let upload = SignedUpload { uploader, tag, media, batch_signature, keys, at, keep_encoding };
                Ok::<_, UploadError>(upload.verify(&registry, policy, &shared.keyring)?)
            };
            self.workers.compute(country, Kind::Uploads, verify).await??
        };
        let (day, asked) = (verified.uploaded_at().date_naive(), verified.usage());
        let outcome = match self.limits.known_over_quota(country, day, asked) {
            // A retry of a stored upload gets the same answer, whatever quota has been used since.
            Some(error) => self.store.find_upload(&verified).await?.ok_or(error)?,
            None => {
                let _permit = self.limits.to_store(country).await?;
                let stored = self.store.insert_upload(&verified, self.limits.quota(country)).await;
                let refused = stored.as_ref().err().filter(|error| error.refuses_writing());
                if self.health.set_trouble(Trouble::Writing, refused.map(ToString::to_string))
                    && let Some(error) = refused
                {
                    tracing::error!(%error, "uploads cannot be stored");
                }
                stored?
            }
        };
        let stored = if let UploadOutcome::Stored(_) = outcome { verified.keys().len() as u32 } else { 0 };
        if let Some(trail) = &trail {
            trail.note(|facts| facts.origins = Some([(country, stored)].into()));
        }
        let count = |outcome: &'static str| {
            metrics::counter!(telemetry::UPLOADS, "country" => country.to_string(), "outcome" => outcome)
                .increment(1);
        };
        match outcome {
            UploadOutcome::Stored(id) => {
                self.journal.upload(&mut verified, id).await?;
                count("stored");
                metrics::counter!(telemetry::KEYS_STORED, "country" => country.to_string())
                    .increment(verified.keys().len() as u64);
                tracing::info!(%country, tag = %verified.tag(), keys = verified.keys().len(), "an upload was stored");
                Ok(None)
            }
            UploadOutcome::Repeated(id) => {
                self.journal.ensure_upload(&self.workers, &verified, id).await?;
                count("repeated");
                tracing::info!(%country, tag = %verified.tag(), "an upload was sent again");
                Ok(None)
            }
            UploadOutcome::OverQuota(used) => {
                count("over-quota");
                Err(self.limits.over_quota(country, day, used, asked).into())
            }
            UploadOutcome::TagTaken => {
                count("tag-taken");
                Err(UploadError::TagTaken { tag: verified.tag().to_string(), country }.into())
            }
            UploadOutcome::Withdrawn => {
                count("withdrawn");
                Err(UploadError::Withdrawn { tag: verified.tag().to_string(), country }.into())
            }
            UploadOutcome::Conflicts(conflicts) => {
                count("conflicts");
                tracing::info!(%country, tag = %verified.tag(), conflicts = conflicts.len(), "an upload has keys that exist already; nothing was stored");
                Ok(Some(MultiStatus::new(verified.keys().len(), conflicts)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MultiStatus;

    #[test]
    fn the_multi_status_answer_names_every_key_once() {
        let answer = MultiStatus::new(4, vec![1, 3]);
        assert_eq!(answer, MultiStatus { created: vec![0, 2], conflict: vec![1, 3], error: vec![] });
        assert_eq!(
            serde_json::to_string(&answer).ok().as_deref(),
            Some(r#"{"201":[0,2],"409":[1,3],"500":[]}"#)
        );
    }
}
