//! Reading a request's body within its limits.

use std::time::Duration;

use actix_web::{HttpMessage, HttpRequest, http::header, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use tokio::time::Instant;

use crate::limits::{Held, LimitError};

/// When the first byte of a request arrived. In the extensions of the request.
#[derive(Clone, Copy, Debug)]
pub struct Began(pub Instant);

/// Why a body could not be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// The body is, or is announced to be, larger than allowed. The rest was not read.
    #[error("the body is larger than {max} bytes")]
    TooLarge {
        /// `upload.max_bytes`.
        max: u64,
    },
    /// The body did not arrive in time.
    #[error("the request was not complete after {after:?}")]
    TooSlow {
        /// `server.request_timeout`.
        after: Duration,
    },
    /// The connection broke, or the body is not framed correctly.
    #[error("the body ended early or is not framed correctly")]
    Broken,
    /// There is no memory for it at the moment.
    #[error(transparent)]
    Limit(LimitError),
    /// Compressed uploads are not supported.
    #[error("a body with Content-Encoding {encoding:?} is not supported: send it as it is")]
    Encoded {
        /// The value of Content-Encoding.
        encoding: String,
    },
}

/// Reads a body of at most `max` bytes that is complete within `timeout` of the request's first byte. Takes memory from `memory` for what has
/// arrived, not for what the request announces.
pub async fn read_body(
    request: &HttpRequest,
    mut payload: web::Payload,
    max: u64,
    timeout: Duration,
    memory: &mut Held,
) -> Result<Bytes, BodyError> {
    let encoding = request.headers().get(header::CONTENT_ENCODING).map(|value| value.as_bytes());
    if let Some(encoding) = encoding.filter(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
        return Err(BodyError::Encoded {
            encoding: String::from_utf8_lossy(&encoding[..encoding.len().min(32)]).into(),
        });
    }
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max) {
        return Err(BodyError::TooLarge { max });
    }
    let read = async {
        let mut body = BytesMut::with_capacity(announced.unwrap_or(0).min(64 * 1024) as usize);
        while let Some(piece) = payload.next().await {
            let piece = piece.map_err(|_| BodyError::Broken)?;
            if (body.len() + piece.len()) as u64 > max {
                return Err(BodyError::TooLarge { max });
            }
            memory.grow(piece.len() as u64).map_err(BodyError::Limit)?;
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    };
    // The time in which the request waited for its country's turn counts too.
    let began = request.extensions().get::<Began>().map_or_else(Instant::now, |Began(at)| *at);
    tokio::time::timeout_at(began + timeout, read).await.unwrap_or(Err(BodyError::TooSlow { after: timeout }))
}
