//! From what went wrong to what the caller is told.
//!
//! Features return typed errors; the mapping to a status and a code is the one exhaustive match in
//! [`Error::answer`]. What is unexpected becomes a plain 500 with a request id, and its reason goes to the log
//! alone.

use std::sync::Arc;

use actix_web::{
    HttpResponse, ResponseError,
    http::{
        StatusCode,
        header::{self, HeaderValue},
    },
};
use chrono::{DateTime, TimeDelta, Utc};
use efgs_protocol::{media::MediaError, wire::DecodeError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{BodyError, HeaderError};
use crate::{
    audit::AuditError, callback::CallbackError, chain::ChainError, download::DownloadError,
    encryption::EncryptionError, journal::JournalError, limits::LimitError, store::StoreError,
    trust::CallerError, upload::UploadError, withdrawal::WithdrawalError,
};

/// What a request can end with instead of a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is not one of the API.
    #[error("there is nothing at this path")]
    NoSuchPath,
    /// The path does not take this method.
    #[error("this path takes {allow} only")]
    MethodNotAllowed {
        /// What it takes.
        allow: &'static str,
    },
    /// The caller is turned away.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// An upload is refused.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// A download is refused.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// A withdrawal is refused.
    #[error(transparent)]
    Withdrawal(#[from] WithdrawalError),
    /// An audit is refused.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A registration of a callback is refused.
    #[error(transparent)]
    Callback(#[from] CallbackError),
    /// The batch that was asked for cannot be given.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The database did not do its part.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal did not do its part; what was asked for is done when it is asked for again.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The request cannot be recorded, and nobody is served unseen.
    #[error("the request could not be written to the access log")]
    Unrecorded,
    /// A stored payload does not open.
    #[error(transparent)]
    Encryption(#[from] EncryptionError),
    /// The country, or the instance, is at a limit.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// What another request ran into that wanted the same batch at the same time.
    #[error(transparent)]
    Shared(#[from] Arc<Error>),
    /// A defect.
    #[error("{0}")]
    Internal(String),
}

/// The body of every error (contract: `message` for people, `code` for programs).
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Names the check that failed and the offending index or value.
    #[schema(example = "key 17: rollingPeriod 145 is not within 1 to 144")]
    pub message: String,
    /// From a stable list.
    pub code: Code,
}

/// What went wrong, for programs. Codes are added, never renamed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// 404: the path is not one of the API.
    NoSuchPath,
    /// 405: the path does not take this method.
    MethodNotAllowed,
    /// 403: the caller's certificate does not let it in.
    Forbidden,
    /// 400: a header is missing, repeated or malformed.
    InvalidHeader,
    /// 406: the media type or its version is not supported.
    NotAcceptable,
    /// 413: the body has too many bytes.
    BodyTooLarge,
    /// 413: the body has too many keys.
    TooManyKeys,
    /// 408: the request did not arrive in time.
    RequestTimeout,
    /// 400: the body cannot be read.
    MalformedBody,
    /// 400: the upload has no keys.
    NoKeys,
    /// 400: a key is not a valid diagnosis key.
    InvalidKey,
    /// 400: the batch signature is not acceptable or does not verify.
    InvalidSignature,
    /// 400: the signer is not registered, not active, or of another country.
    UntrustedSigner,
    /// 400: a key's origin is not the caller's country.
    ForeignOrigin,
    /// 409: the upload tag is taken by another upload.
    UploadTagTaken,
    /// 409: the same upload was withdrawn.
    UploadWithdrawn,
    /// 404: the country has no upload with this tag.
    UploadNotFound,
    /// 400: the date is not of the form yyyy-MM-dd.
    InvalidDate,
    /// 410: the date is before the retention.
    Gone,
    /// 404: there is no such batch, or none yet.
    BatchNotFound,
    /// 400: the batch was formed before the date.
    BatchBeforeDate,
    /// 400: the id of a callback, or its parameter url, is not right, or the country has too many.
    InvalidCallback,
    /// 406: the URL of a callback fails a check.
    UrlRefused,
    /// 404: the country has no callback with this id.
    CallbackNotFound,
    /// 429: the country sends too many requests, or too much at once; try again at the time in Retry-After.
    TooManyRequests,
    /// 429: the country's quota of the day does not suffice; try again at the time in Retry-After.
    QuotaExceeded,
    /// 503: try again at the time in Retry-After.
    Unavailable,
    /// 500: a defect; the message has the request id.
    Internal,
}

impl Code {
    /// As it is written.
    pub(super) fn text(self) -> String {
        // A variant without fields is a text.
        serde_json::to_value(self).ok().and_then(|code| code.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl Error {
    /// Status and code of every error.
    pub(super) fn answer(&self) -> (StatusCode, Code) {
        const BAD: StatusCode = StatusCode::BAD_REQUEST;
        match self {
            Self::NoSuchPath => (StatusCode::NOT_FOUND, Code::NoSuchPath),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, Code::MethodNotAllowed),
            Self::Caller(CallerError::Undecidable(_)) => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
            Self::Caller(
                CallerError::NoCertificate
                | CallerError::UntrustedPeer
                | CallerError::ProxyHeader(_)
                | CallerError::NoCountry { .. }
                | CallerError::Inactive { .. }
                | CallerError::WrongCountry { .. },
            ) => (StatusCode::FORBIDDEN, Code::Forbidden),
            Self::Upload(error) => match error {
                UploadError::Header(header) => header_answer(*header),
                UploadError::Tag(_) | UploadError::SignatureTooLong { .. } => (BAD, Code::InvalidHeader),
                UploadError::Media(media) => media_answer(media),
                UploadError::Body(BodyError::TooLarge { .. }) => {
                    (StatusCode::PAYLOAD_TOO_LARGE, Code::BodyTooLarge)
                }
                UploadError::Body(BodyError::TooSlow { .. }) => {
                    (StatusCode::REQUEST_TIMEOUT, Code::RequestTimeout)
                }
                UploadError::Body(BodyError::Broken) => (BAD, Code::MalformedBody),
                UploadError::Body(BodyError::Encoded { .. }) => (BAD, Code::InvalidHeader),
                UploadError::Body(BodyError::Limit(limit)) => limit_answer(limit),
                UploadError::Decode(DecodeError::TooManyKeys { .. }) => {
                    (StatusCode::PAYLOAD_TOO_LARGE, Code::TooManyKeys)
                }
                UploadError::Decode(DecodeError::Empty) => (BAD, Code::NoKeys),
                UploadError::Decode(DecodeError::Malformed(_)) => (BAD, Code::MalformedBody),
                UploadError::Decode(DecodeError::InvalidKey(_)) | UploadError::Key(_) => {
                    (BAD, Code::InvalidKey)
                }
                UploadError::Signature(_) => (BAD, Code::InvalidSignature),
                UploadError::SignerCountry(_)
                | UploadError::SignerInactive { .. }
                | UploadError::SignerRegistration { .. }
                | UploadError::SignerNotCaller { .. } => (BAD, Code::UntrustedSigner),
                UploadError::ForeignOrigin { .. } => (BAD, Code::ForeignOrigin),
                UploadError::TagTaken { .. } => (StatusCode::CONFLICT, Code::UploadTagTaken),
                UploadError::Withdrawn { .. } => (StatusCode::CONFLICT, Code::UploadWithdrawn),
                UploadError::Undecidable(_) => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
            },
            Self::Withdrawal(WithdrawalError::Unknown) => (StatusCode::NOT_FOUND, Code::UploadNotFound),
            Self::Download(DownloadError::Header(header)) => header_answer(*header),
            Self::Download(DownloadError::Media(media)) => media_answer(media),
            Self::Download(DownloadError::NoEncoding) => (StatusCode::NOT_ACCEPTABLE, Code::NotAcceptable),
            Self::Audit(AuditError::BeforeDate { .. }) => (StatusCode::NOT_FOUND, Code::BatchNotFound),
            Self::Callback(error) => match error {
                CallbackError::InvalidId { .. }
                | CallbackError::Url { .. }
                | CallbackError::TooMany { .. } => (BAD, Code::InvalidCallback),
                CallbackError::Refused(_) => (StatusCode::NOT_ACCEPTABLE, Code::UrlRefused),
                CallbackError::Unknown => (StatusCode::NOT_FOUND, Code::CallbackNotFound),
            },
            Self::Chain(error) => match error {
                ChainError::InvalidDate { .. } => (BAD, Code::InvalidDate),
                ChainError::TooOld { .. } => (StatusCode::GONE, Code::Gone),
                ChainError::NoneSince { .. } | ChainError::Unknown => {
                    (StatusCode::NOT_FOUND, Code::BatchNotFound)
                }
                ChainError::BeforeDate { .. } => (BAD, Code::BatchBeforeDate),
            },
            Self::Limit(limit) => limit_answer(limit),
            Self::Shared(error) => error.answer(),
            Self::Journal(_) | Self::Unrecorded => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
            Self::Store(error) if error.is_temporary() => {
                (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable)
            }
            Self::Store(_) | Self::Encryption(_) | Self::Internal(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal)
            }
        }
    }

    /// The limit that the request ran into, if it was one.
    pub(super) fn limit(&self) -> Option<&LimitError> {
        match self {
            Self::Limit(limit) | Self::Upload(UploadError::Body(BodyError::Limit(limit))) => Some(limit),
            Self::Shared(error) => error.limit(),
            _ => None,
        }
    }

    /// The answer, with what only the surroundings know: the request's id, and the time for Retry-After.
    pub(super) fn respond(&self, request_id: &str, now: DateTime<Utc>) -> HttpResponse {
        let (status, code) = self.answer();
        let message = match code {
            Code::Internal => {
                format!("something unexpected happened; tell the operator this request id: {request_id}")
            }
            Code::Unavailable => "the gateway cannot answer right now; try again a little later".to_owned(),
            _ => match self {
                // What a name resolves to inside the gateway's network is nobody else's business.
                Self::Callback(CallbackError::Refused(refused))
                    if ["resolves", "public-address"].contains(&refused.check) =>
                {
                    format!("the URL fails the check \"{}\"", refused.check)
                }
                _ => self.to_string(),
            },
        };
        let mut response = HttpResponse::build(status);
        match self {
            Self::MethodNotAllowed { allow } => {
                response.insert_header((header::ALLOW, HeaderValue::from_static(allow)));
            }
            // The rest of the request is not read, so the connection cannot be used again.
            Self::Upload(UploadError::Body(_)) => {
                response.force_close();
            }
            _ => {}
        }
        let later = match self.limit() {
            Some(limit) => Some(limit.retry_at(now)),
            None => (code == Code::Unavailable).then(|| now + TimeDelta::seconds(RETRY_AFTER_SECONDS)),
        };
        if let Some(later) = later {
            // Whole seconds: rounded up, or the client comes too early.
            let later = later + TimeDelta::nanoseconds(999_999_999);
            response
                .insert_header((header::RETRY_AFTER, later.format("%a, %d %b %Y %H:%M:%S GMT").to_string()));
        }
        response.json(ErrorBody { message, code })
    }
}

const RETRY_AFTER_SECONDS: i64 = 10;

fn header_answer(_: HeaderError) -> (StatusCode, Code) {
    (StatusCode::BAD_REQUEST, Code::InvalidHeader)
}

fn limit_answer(limit: &LimitError) -> (StatusCode, Code) {
    match limit {
        LimitError::Rate { .. } | LimitError::Concurrency { .. } | LimitError::Memory { .. } => {
            (StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests)
        }
        LimitError::Quota { .. } => (StatusCode::TOO_MANY_REQUESTS, Code::QuotaExceeded),
        LimitError::Overloaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
    }
}

fn media_answer(_: &MediaError) -> (StatusCode, Code) {
    (StatusCode::NOT_ACCEPTABLE, Code::NotAcceptable)
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        self.answer().0
    }

    fn error_response(&self) -> HttpResponse {
        // The real answer is made where the request id is known.
        HttpResponse::new(self.status_code())
    }
}
