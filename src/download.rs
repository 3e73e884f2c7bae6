//! Serving a batch to a country (spec §5.3).

use std::{collections::BTreeMap, sync::Arc};

use actix_web::{HttpMessage, HttpRequest, HttpResponse, http::header, web};
use efgs_protocol::{
    batch_tag::BatchTag,
    country::Country,
    media::{MediaError, MediaType},
    wire,
};

use crate::{
    access_log,
    body_cache::{self, BodyCache, Encoding},
    chain::{self, Chain, ChainError},
    downloaded::Downloaded,
    http::{self, Code, Error, ErrorBody, HeaderError, Problem, reply},
    limits::Admitted,
    store::BatchRecord,
    telemetry,
    trust::Reader,
};

/// What downloads need.
#[derive(Clone, Debug)]
pub struct Downloads {
    /// The batches.
    pub chain: Arc<Chain>,
    /// The download bodies.
    pub body_cache: BodyCache,
    /// What each country has downloaded.
    pub downloaded: Arc<Downloaded>,
}

/// Why a download is refused, in addition to [`ChainError`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownloadError {
    /// A header is missing or invalid.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// None of the accepted formats is supported.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// None of the accepted encodings is supported.
    #[error("none of the encodings in Accept-Encoding is supported: gzip, zstd or identity")]
    NoEncoding,
}

impl Problem for DownloadError {
    fn code(&self) -> Code {
        match self {
            Self::Header(_) => Code::InvalidHeader,
            Self::Media(_) | Self::NoEncoding => Code::NotAcceptable,
        }
    }
}

/// Gives a batch of diagnosis keys, without those that the caller's own country uploaded (spec §5.3).
///
/// Without `batchTag` it is the first batch formed on or after the date. Follow `nextBatchTag` until it says
/// `null`; the link is live, so asking for the same batch later shows the next one when it is there. Batches
/// never change.
#[utoipa::path(
    get,
    path = "/diagnosiskeys/download/{date}",
    tag = "download",
    params(
        ("date" = String, Path, description = "A UTC date, yyyy-MM-dd, at most 14 days ago.", example = "2026-11-22"),
        ("batchTag" = Option<String>, Header, description = "The batch: its ObjectId or its name yyyyMMdd-N.", example = "20261122-1"),
        ("Accept" = String, Header, description = "application/protobuf; version=1.0 or application/json; version=1.0", example = "application/json; version=1.0"),
        ("Accept-Encoding" = Option<String>, Header, description = "gzip and zstd are supported.", example = "gzip"),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of an earlier download.", example = "\"6924b3c00102030405000001-DE-protobuf\""),
    ),
    responses(
        (status = 200, description = "The keys. A batch that has only the caller's own keys is empty.", body = crate::http::schema::DiagnosisKeyBatch, content_type = "application/json; version=1.0",
            headers(("batchTag" = String, description = "This batch."), ("nextBatchTag" = String, description = "The next batch, or the text null."), ("ETag" = String, description = "Strong validator.")),
            example = json!(crate::http::schema::example_batch())),
        (status = 304, description = "The client has these bytes; the headers say where the chain goes on now.", headers(("batchTag" = String, description = "This batch."), ("nextBatchTag" = String, description = "The next batch, or the text null."), ("ETag" = String, description = "Strong validator."))),
        (status = 400, description = "The date is not a date, or the batch was formed before it.", body = ErrorBody, content_type = "application/json", example = json!({"message": "the batch was formed on 2026-11-20, before 2026-11-22", "code": "batch-before-date"})),
        (status = 404, description = "There is no such batch, or none since the date.", body = ErrorBody, content_type = "application/json", example = json!({"message": "no batch has been formed on or after 2026-11-22 yet", "code": "batch-not-found"})),
        (status = 406, description = "None of the accepted media types is supported.", body = ErrorBody, content_type = "application/json", example = json!({"message": "the header Accept is missing", "code": "not-acceptable"})),
        (status = 410, response = crate::http::schema::Gone),
    )
)]
pub async fn download(
    Reader(caller): Reader,
    request: HttpRequest,
    date: web::Path<String>,
    state: web::Data<Downloads>,
) -> Result<HttpResponse, Error> {
    let media = accepted(&request)?;
    let encoding = body_cache::negotiate(&request).ok_or(DownloadError::NoEncoding)?;
    access_log::note(&request, |facts| facts.date = chain::parse_date(&date));
    let date = state.chain.date(&date)?;
    let tag = match http::header(&request, wire::BATCH_TAG).map_err(DownloadError::from)? {
        None => None,
        Some(text) => Some(text.parse::<BatchTag>().map_err(|_| ChainError::Unknown)?),
    };
    access_log::note(&request, |facts| facts.tag = tag.map(|tag| tag.to_string()));
    let link = state.chain.find(caller.country, date, tag).await??;
    let batch = &link.batch;
    // From here on the batch is known, also when the request had no tag.
    access_log::note(&request, |facts| facts.tag = Some(batch.id.to_string()));
    let etag = etag(batch, caller.country, media, encoding);
    let headers = reply::BatchHeaders {
        batch_tag: state.chain.tag_for(caller.country, batch),
        next_batch_tag: link
            .next
            .as_ref()
            .map_or(wire::NO_NEXT_BATCH.to_owned(), |next| state.chain.tag_for(caller.country, next)),
        content_type: media.to_string(),
        content_encoding: encoding.name(),
        etag,
    };
    if matches(&request, &headers.etag) {
        state.downloaded.note(caller.country, batch.id);
        return Ok(headers.not_modified());
    }
    let body = state.body_cache.get(batch, media.format, encoding, caller.country).await?;
    if let Some(next) = &link.next {
        state.body_cache.read_ahead(next, media.format, encoding, caller.country);
    }
    access_log::note(&request, |facts| facts.origins = Some(origins(batch, caller.country)));
    state.downloaded.note(caller.country, batch.id);
    let others = batch.uploads.iter().filter(|upload| upload.country != caller.country);
    metrics::counter!(telemetry::KEYS_DOWNLOADED, "country" => caller.country.to_string())
        .increment(others.map(|upload| u64::from(upload.amount)).sum());
    let admitted: Option<Admitted> = request.extensions_mut().remove();
    Ok(headers.ok(body, admitted))
}

/// Which countries' keys a download has.
fn origins(batch: &BatchRecord, caller: Country) -> BTreeMap<Country, u32> {
    let mut origins = BTreeMap::new();
    for upload in batch.uploads.iter().filter(|upload| upload.country != caller) {
        *origins.entry(upload.country).or_default() += upload.amount;
    }
    origins
}

/// The best supported format of all `Accept` headers.
fn accepted(request: &HttpRequest) -> Result<MediaType, DownloadError> {
    let mut ranges = Vec::new();
    for value in request.headers().get_all(header::ACCEPT) {
        ranges.push(value.to_str().map_err(|_| HeaderError::NotText("Accept"))?);
    }
    Ok(MediaType::negotiate(ranges)?)
}

/// The ETag covers everything that the bytes depend on. A batch changes only when it loses withdrawn uploads.
fn etag(batch: &BatchRecord, caller: Country, media: MediaType, encoding: Encoding) -> String {
    let (format, withdrawn, encoding) = (media.format.name(), batch.withdrawn, encoding.suffix());
    format!("\"{}-{}-{}-{format}-{withdrawn}{encoding}\"", batch.id, caller, media.version)
}

/// `If-None-Match` (RFC 9110 §13.1.2): any of the listed tags in a weak comparison, or `*`.
fn matches(request: &HttpRequest, etag: &str) -> bool {
    let values = request.headers().get_all(header::IF_NONE_MATCH);
    let tags = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    tags.map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[cfg(test)]
mod tests;
