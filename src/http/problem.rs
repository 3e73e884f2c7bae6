//! How an error becomes the answer that the caller gets.
//!
//! Each feature's errors state their [`Code`] ([`Problem`]). The status follows from the code, and so does
//! whether the caller may read the reason. An unexpected error becomes a plain 500 with a request id; only the
//! log has its reason.

use std::{fmt, sync::Arc};

use actix_web::{
    HttpResponse, ResponseError,
    http::{
        StatusCode,
        header::{self, HeaderValue},
    },
};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{intake::EncryptionError, limits::LimitError, store::StoreError};

/// When to retry after a 503.
const RETRY_AFTER: TimeDelta = TimeDelta::seconds(10);

/// An error of a feature, as the caller sees it.
pub trait Problem: std::error::Error + Send + Sync + 'static {
    /// The code for programs. The status follows from it.
    fn code(&self) -> Code;

    /// What the caller may read of the error's text, if its code allows that ([`Code::detail`]).
    fn shown(&self) -> Shown {
        Shown::Text
    }

    /// The limit that the request exceeded, if any.
    fn limit(&self) -> Option<&LimitError> {
        None
    }

    /// Whether the rest of the request is not read, so that its connection cannot be reused.
    fn closes_connection(&self) -> bool {
        false
    }

    /// The methods that the path allows, for a request with another one.
    fn allow(&self) -> Option<&'static str> {
        None
    }
}

/// What the caller may read of an error's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// All of it.
    Text,
    /// This text instead, because the error's own has internal details.
    Instead(String),
}

/// Whether the caller learns the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What the error allows ([`Problem::shown`]).
    Shown,
    /// Only that the caller should retry.
    TryAgain,
    /// Only the request's id, with which the operator finds the reason in the log.
    RequestId,
}

/// The error of a request. Made from any [`Problem`] with `?`. Clones share it.
#[derive(Clone)]
pub struct Error(Arc<dyn Problem>);

impl<P: Problem> From<P> for Error {
    fn from(problem: P) -> Self {
        Self(Arc::new(problem))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A defect of the gateway, or data that it did not write. The text is for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Defect(pub String);

impl Problem for Defect {
    fn code(&self) -> Code {
        Code::Internal
    }
}

/// The request does not fit any operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoOperation {
    /// The path is not one of the API.
    #[error("there is nothing at this path")]
    Path,
    /// The path does not take this method.
    #[error("this path takes {allow} only")]
    Method {
        /// The methods that it allows.
        allow: &'static str,
    },
}

impl Problem for NoOperation {
    fn code(&self) -> Code {
        match self {
            Self::Path => Code::NoSuchPath,
            Self::Method { .. } => Code::MethodNotAllowed,
        }
    }

    fn allow(&self) -> Option<&'static str> {
        match self {
            Self::Path => None,
            Self::Method { allow } => Some(allow),
        }
    }
}

impl Problem for StoreError {
    fn code(&self) -> Code {
        if self.is_temporary() { Code::Unavailable } else { Code::Internal }
    }
}

impl Problem for EncryptionError {
    fn code(&self) -> Code {
        Code::Internal
    }
}

impl Problem for LimitError {
    fn code(&self) -> Code {
        match self {
            Self::Rate { .. } | Self::Concurrency { .. } | Self::Memory { .. } => Code::TooManyRequests,
            Self::Quota { .. } => Code::QuotaExceeded,
            Self::Overloaded { .. } => Code::Unavailable,
        }
    }

    fn limit(&self) -> Option<&LimitError> {
        Some(self)
    }
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
    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        self.answer().0
    }

    /// Whether the caller learns the reason.
    pub fn detail(self) -> Detail {
        self.answer().1
    }

    fn answer(self) -> (StatusCode, Detail) {
        match self {
            Self::InvalidHeader
            | Self::MalformedBody
            | Self::NoKeys
            | Self::InvalidKey
            | Self::InvalidSignature
            | Self::UntrustedSigner
            | Self::ForeignOrigin
            | Self::InvalidDate
            | Self::BatchBeforeDate
            | Self::InvalidCallback => (StatusCode::BAD_REQUEST, Detail::Shown),
            Self::Forbidden => (StatusCode::FORBIDDEN, Detail::Shown),
            Self::NoSuchPath | Self::UploadNotFound | Self::BatchNotFound | Self::CallbackNotFound => {
                (StatusCode::NOT_FOUND, Detail::Shown)
            }
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, Detail::Shown),
            Self::NotAcceptable | Self::UrlRefused => (StatusCode::NOT_ACCEPTABLE, Detail::Shown),
            Self::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, Detail::Shown),
            Self::UploadTagTaken | Self::UploadWithdrawn => (StatusCode::CONFLICT, Detail::Shown),
            Self::Gone => (StatusCode::GONE, Detail::Shown),
            Self::BodyTooLarge | Self::TooManyKeys => (StatusCode::PAYLOAD_TOO_LARGE, Detail::Shown),
            Self::TooManyRequests | Self::QuotaExceeded => (StatusCode::TOO_MANY_REQUESTS, Detail::Shown),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, Detail::RequestId),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, Detail::TryAgain),
        }
    }

    /// The code as it is sent.
    pub fn text(self) -> String {
        // A variant without fields serializes to a string.
        serde_json::to_value(self).ok().and_then(|code| code.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl Error {
    /// The code for programs.
    pub fn code(&self) -> Code {
        self.0.code()
    }

    /// The limit that the request exceeded, if any.
    pub fn limit(&self) -> Option<&LimitError> {
        self.0.limit()
    }

    /// The answer. Only the caller of this function knows the request's id and the time for Retry-After.
    pub fn respond(&self, request_id: &str, now: DateTime<Utc>) -> HttpResponse {
        let code = self.code();
        let message = match (code.detail(), self.0.shown()) {
            (Detail::RequestId, _) => {
                format!("something unexpected happened; tell the operator this request id: {request_id}")
            }
            (Detail::TryAgain, _) => {
                "the gateway cannot answer right now; try again a little later".to_owned()
            }
            (Detail::Shown, Shown::Instead(text)) => text,
            (Detail::Shown, Shown::Text) => self.to_string(),
        };
        let mut response = HttpResponse::build(code.status());
        if let Some(allow) = self.0.allow() {
            response.insert_header((header::ALLOW, HeaderValue::from_static(allow)));
        }
        if self.0.closes_connection() {
            response.force_close();
        }
        let later = match self.limit() {
            Some(limit) => Some(limit.retry_at(now)),
            None => (code == Code::Unavailable).then(|| now + RETRY_AFTER),
        };
        if let Some(later) = later {
            // Rounded up to whole seconds, so that the client does not come too early.
            let later = later + TimeDelta::nanoseconds(999_999_999);
            response
                .insert_header((header::RETRY_AFTER, later.format("%a, %d %b %Y %H:%M:%S GMT").to_string()));
        }
        response.json(ErrorBody { message, code })
    }
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        self.code().status()
    }

    fn error_response(&self) -> HttpResponse {
        // The caller replaces this answer where the request id is known.
        HttpResponse::new(self.status_code())
    }
}
