//! The answers of the wire contract.

use actix_web::{
    HttpResponse,
    body::{BodySize, MessageBody},
    http::header::{self, HeaderName, HeaderValue},
};
use bytes::Bytes;
use serde::Serialize;

use crate::limits::Admitted;

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

/// 200 with an audit in JSON and the number of the batch's withdrawn uploads.
pub fn audit(body: Bytes, withdrawn: u32) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((WITHDRAWN_UPLOADS, withdrawn.to_string()))
        .content_type(header::ContentType::json())
        .body(body)
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

    /// 200 with the keys. `admitted` is released after the body has been sent, so that the request counts until
    /// then.
    pub fn ok(mut self, body: Vec<Bytes>, admitted: Option<Admitted>) -> HttpResponse {
        let content_type = std::mem::take(&mut self.content_type);
        let encoding = self.content_encoding;
        let mut response = HttpResponse::Ok();
        response.insert_header((header::CONTENT_TYPE, content_type));
        if let Some(encoding) = encoding {
            response.insert_header((header::CONTENT_ENCODING, encoding));
        }
        self.apply(&mut response);
        response.body(Chunks::new(body, admitted))
    }

    /// 304: the client already has these bytes.
    pub fn not_modified(self) -> HttpResponse {
        let mut response = HttpResponse::NotModified();
        self.apply(&mut response);
        response.finish()
    }
}

/// A body of known length, in pieces that requests share and that are sent without a copy.
struct Chunks {
    size: u64,
    pieces: std::vec::IntoIter<Bytes>,
    _admitted: Option<Admitted>,
}

impl Chunks {
    fn new(pieces: Vec<Bytes>, admitted: Option<Admitted>) -> Self {
        let size = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self { size, pieces: pieces.into_iter(), _admitted: admitted }
    }
}

impl MessageBody for Chunks {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.size)
    }

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Bytes, Self::Error>>> {
        // An empty piece would end the body.
        std::task::Poll::Ready(self.pieces.find(|piece| !piece.is_empty()).map(Ok))
    }
}
