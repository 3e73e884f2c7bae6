//! The answers of the wire contract.

use actix_web::{
    HttpResponse,
    body::{BodySize, MessageBody},
    http::header::{self, HeaderName, HeaderValue},
};
use bytes::Bytes;
use serde::Serialize;

/// The headers of the wire contract, as the HTTP library takes them.
pub const BATCH_TAG: HeaderName = HeaderName::from_static("batchtag");
/// See [`BATCH_TAG`].
pub const NEXT_BATCH_TAG: HeaderName = HeaderName::from_static("nextbatchtag");

/// See [`BATCH_TAG`].
pub const WITHDRAWN_UPLOADS: HeaderName = HeaderName::from_static("withdrawnuploads");

/// 201 with the upload tag and no body.
pub fn created(upload_tag: &str) -> HttpResponse {
    HttpResponse::Created().insert_header((BATCH_TAG, upload_tag)).finish()
}

/// 200 without a body.
pub fn empty() -> HttpResponse {
    HttpResponse::Ok().finish()
}

/// 207 with a JSON body.
pub fn multi_status(body: impl Serialize) -> HttpResponse {
    HttpResponse::MultiStatus().json(body)
}

/// 200 with a JSON body.
pub fn json(body: impl Serialize) -> HttpResponse {
    HttpResponse::Ok().json(body)
}

/// 200 with the entries of an audit, in JSON, and the number of the batch's withdrawn uploads. `until_sent` is
/// dropped after the body has been sent.
pub fn audit(entries: Vec<Bytes>, withdrawn: u32, until_sent: impl Unpin + 'static) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response.insert_header((WITHDRAWN_UPLOADS, withdrawn.to_string()));
    response.content_type("application/json").body(Chunks::new(entries, until_sent))
}

/// 200 for OPTIONS.
pub fn options(allow: &'static str, accept: String) -> HttpResponse {
    HttpResponse::Ok().insert_header((header::ALLOW, allow)).insert_header((header::ACCEPT, accept)).finish()
}

/// The headers of a download, for 200 and 304.
#[derive(Debug)]
pub struct BatchHeaders {
    /// The served batch.
    pub batch_tag: String,
    /// The next batch, or `null`.
    pub next_batch_tag: String,
    /// A strong validator, with its quotes.
    pub etag: String,
    /// The media type with its version.
    pub content_type: String,
    /// The Content-Encoding, if the body is compressed.
    pub content_encoding: Option<&'static str>,
}

impl BatchHeaders {
    fn apply(self, response: &mut actix_web::HttpResponseBuilder) {
        response
            .insert_header((BATCH_TAG, self.batch_tag))
            .insert_header((NEXT_BATCH_TAG, self.next_batch_tag))
            .insert_header((header::ETAG, self.etag))
            .insert_header((header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache")))
            .insert_header((header::VARY, HeaderValue::from_static("accept, accept-encoding")));
    }

    /// 200 with the keys. `until_sent` is dropped after the body has been sent.
    pub fn ok(mut self, body: Vec<Bytes>, until_sent: impl Unpin + 'static) -> HttpResponse {
        let content_type = std::mem::take(&mut self.content_type);
        let encoding = self.content_encoding;
        let mut response = HttpResponse::Ok();
        response.insert_header((header::CONTENT_TYPE, content_type));
        if let Some(encoding) = encoding {
            response.insert_header((header::CONTENT_ENCODING, encoding));
        }
        self.apply(&mut response);
        response.body(Chunks::new(body, until_sent))
    }

    /// 304: the client already has these bytes.
    pub fn not_modified(self) -> HttpResponse {
        let mut response = HttpResponse::NotModified();
        self.apply(&mut response);
        response.finish()
    }
}

/// Bytes that are given to a connection at once. It copies them into a buffer of its own: larger ones would take as
/// much memory again for each request that is being answered.
const CHUNK: usize = 32 << 10;

/// A body of known length, in pieces that requests share.
struct Chunks<T> {
    size: u64,
    /// What is left of the current piece.
    piece: Bytes,
    pieces: std::vec::IntoIter<Bytes>,
    /// What the request counts in until it is answered.
    _until_sent: T,
}

impl<T> Chunks<T> {
    fn new(pieces: Vec<Bytes>, until_sent: T) -> Self {
        let size = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self { size, piece: Bytes::new(), pieces: pieces.into_iter(), _until_sent: until_sent }
    }
}

impl<T: Unpin> MessageBody for Chunks<T> {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.size)
    }

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Bytes, Self::Error>>> {
        // An empty chunk would end the body.
        if self.piece.is_empty() {
            self.piece = self.pieces.find(|piece| !piece.is_empty()).unwrap_or_default();
        }
        let length = self.piece.len().min(CHUNK);
        std::task::Poll::Ready((length > 0).then(|| Ok(self.piece.split_to(length))))
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, task::Poll};

    use super::*;

    #[test]
    fn a_body_comes_whole_in_small_chunks() {
        let sizes = [0, 1, CHUNK, 0, CHUNK + 1, 3 * CHUNK, 0];
        let pieces: Vec<Bytes> = (1..).zip(sizes).map(|(byte, size)| vec![byte; size].into()).collect();
        let mut body = Chunks::new(pieces.clone(), ());
        assert_eq!(body.size(), BodySize::Sized(5 * CHUNK as u64 + 2));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut sent = Vec::new();
        while let Poll::Ready(Some(Ok(chunk))) = Pin::new(&mut body).poll_next(&mut context) {
            assert!((1..=CHUNK).contains(&chunk.len()));
            sent.extend_from_slice(&chunk);
        }
        assert_eq!(sent, pieces.concat());
    }
}
