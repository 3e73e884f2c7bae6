//! What can go wrong.

use std::{fmt, io, iter, time::Duration};

use chrono::{DateTime, Utc};
use efgs_protocol::signature::SignError;
use rustls::AlertDescription;
use serde::Deserialize;

/// Why a gateway cannot be called with these settings. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The URL.
    #[error("the gateway's URL cannot be used: {0}")]
    Url(String),
    /// The certificate authorities of the gateway's certificate.
    #[error("the gateway's certificate authority cannot be used: {0}")]
    ServerCa(String),
    /// The client certificate.
    #[error("the client certificate cannot be used: {0}")]
    Certificate(String),
    /// The private key, also when it belongs to another certificate.
    #[error("the private key of the client certificate cannot be used: {0}")]
    PrivateKey(String),
    /// The HTTP client.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
}

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The gateway rejected the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no answer, or only a part of it. It is unknown whether the gateway performed the request.
    /// Every call is safe to repeat.
    #[error("no answer from the gateway: {reason}")]
    NoAnswer {
        /// What happened.
        reason: String,
        /// Whether it took too long.
        timed_out: bool,
    },
    /// There is no secure connection: the gateway's certificate cannot be trusted, or the gateway rejects ours.
    #[error("no secure connection to the gateway: {0}; run `efgs doctor`: it says what to fix")]
    Tls(String),
    /// The request cannot be sent: a tag or a signature is no value of a header.
    #[error("the request cannot be made: {0}")]
    Request(String),
    /// The answer is longer than any that a gateway sends.
    #[error("the answer has more than {limit} bytes")]
    TooLong {
        /// How many bytes are read at most.
        limit: usize,
    },
    /// The answer is not one that a gateway gives.
    #[error("the answer does not come from a gateway: {0}")]
    Unexpected(String),
    /// The keys could not be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

impl Error {
    /// Whether the same call can succeed later without a fix: there was no answer, or the gateway is overloaded
    /// or cannot decide (408, 429, 5xx).
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::Refused(refusal) => matches!(refusal.status, 408 | 429 | 500..),
            Self::Tls(_) | Self::Request(_) | Self::TooLong { .. } | Self::Unexpected(_) | Self::Sign(_) => {
                false
            }
        }
    }

    /// Whether the gateway rejected the request with this status and code.
    pub(crate) fn is_refusal(&self, status: u16, code: &str) -> bool {
        matches!(self, Self::Refused(by) if by.status == status && by.code.as_deref() == Some(code))
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        // The outer layers only say that sending failed, and where to; the innermost says why.
        let causes = iter::successors(Some(&error as &dyn std::error::Error), |&error| error.source());
        let reason = causes.last().map(ToString::to_string).unwrap_or_default();
        if error.is_builder() {
            Self::Request(reason)
        } else if let Some(error) = tls(&error).filter(|error| is_for_good(error)) {
            Self::Tls(error.to_string())
        } else {
            Self::NoAnswer { reason, timed_out: error.is_timeout() }
        }
    }
}

/// What TLS says in an error or in one of its causes.
fn tls<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let inside = |error: &&'a (dyn std::error::Error + 'static)| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // An I/O error names as its source that of the error inside it.
            Some(inside) => Some(inside as &(dyn std::error::Error + 'static)),
            None => error.source(),
        }
    };
    iter::successors(Some(error), inside).find_map(|error| error.downcast_ref())
}

/// Whether the error is permanent: somebody must fix a certificate, ours or theirs. Only one of the alerts is
/// temporary.
fn is_for_good(error: &rustls::Error) -> bool {
    match error {
        rustls::Error::InvalidCertificate(_) => true,
        rustls::Error::AlertReceived(alert) => *alert != AlertDescription::InternalError,
        _ => false,
    }
}

/// The gateway's rejection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The error code, from the gateway's stable list. `None` if the answer is not from a gateway.
    pub code: Option<String>,
    /// The error message, for people.
    pub message: Option<String>,
    /// When to try again, if the gateway says so.
    pub retry_after: Option<RetryAfter>,
}

impl Refusal {
    pub(crate) fn new(status: u16, retry_after: Option<RetryAfter>, body: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        struct ErrorBody {
            code: Option<String>,
            message: Option<String>,
        }

        let ErrorBody { code, message } = serde_json::from_slice(body).unwrap_or_default();
        Self { status, code, message, retry_after }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the gateway answered {}", self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        Ok(())
    }
}

/// When to try again (RFC 9110 §10.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// Not before this time.
    At(DateTime<Utc>),
    /// After this long.
    In(Duration),
}

impl RetryAfter {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.parse() {
            Ok(seconds) => Some(Self::In(Duration::from_secs(seconds))),
            Err(_) => DateTime::parse_from_rfc2822(text).ok().map(|time| Self::At(time.to_utc())),
        }
    }
}
