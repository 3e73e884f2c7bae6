//! What can go wrong.

use std::{error, io};

use reqwest::StatusCode;
use rustls::AlertDescription;

/// Why a bucket cannot be used with these settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The endpoint.
    #[error("`endpoint`: {0}")]
    Endpoint(String),
    /// The certificate authorities.
    #[error("`ca`: {0}")]
    Ca(String),
    /// The HTTP client.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
}

/// Why a request did not succeed. Holds neither a credential nor a signed URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no answer, or only a part of it. Whether the store did what it was asked to do is unknown.
    #[error("{0}")]
    NoAnswer(String),
    /// There is no safe connection: the store's certificate is not trusted, or the store rejects ours.
    #[error("no safe connection to the store: {0}")]
    Tls(String),
    /// The store answered, and refused.
    #[error("{}", format!("the store answered {status} {code}").trim_end())]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The store's own name for the reason, at most 64 characters; may be empty.
        code: String,
    },
    /// The answer is longer than the limit.
    #[error("the answer has more than {limit} bytes")]
    TooLong {
        /// How many bytes are read at most.
        limit: u64,
    },
    /// The answer is no list of objects.
    #[error("the answer is no list of objects: {0}")]
    NotAList(String),
    /// The pages of a list repeat, or there are too many.
    #[error("the list does not end")]
    Endless,
}

impl Error {
    /// Whether the same request can succeed later without a change at either end: the store did not answer, or is
    /// overloaded (408, 429, 5xx).
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::NoAnswer(_) => true,
            Self::Refused { status, .. } => matches!(status.as_u16(), 408 | 429 | 500..),
            Self::Tls(_) | Self::TooLong { .. } | Self::NotAList(_) | Self::Endless => false,
        }
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        // The outermost error has the URL, which is signed; its causes do not.
        let mut causes = String::new();
        let mut cause = error::Error::source(&error);
        while let Some(inner) = cause {
            causes = format!("{causes}: {inner}");
            cause = inner.source();
        }
        if let Some(error) = tls(&error).filter(|error| is_permanent(error)) {
            return Self::Tls(error.to_string());
        }
        let what = match error {
            _ if error.is_timeout() => "no answer in time",
            _ if error.is_connect() => "no connection",
            _ => "the connection broke",
        };
        Self::NoAnswer(format!("{what}{causes}"))
    }
}

/// What TLS says in an error or in one of its causes.
fn tls<'a>(error: &'a (dyn error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // An I/O error names as its source that of the error inside it.
            Some(inside) => Some(inside),
            None => error.source(),
        };
    }
    None
}

/// Whether the operator must change a certificate. Only one of the alerts is temporary.
fn is_permanent(error: &rustls::Error) -> bool {
    match error {
        rustls::Error::InvalidCertificate(_) => true,
        rustls::Error::AlertReceived(alert) => *alert != AlertDescription::InternalError,
        _ => false,
    }
}
