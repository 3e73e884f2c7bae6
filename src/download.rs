//! Serving a batch to a country (spec §5.3).
//!
//! What one upload contributes to a download never changes. Its bytes are built once, as a **sealed segment**
//! in each format, kept in a bounded memory that all requests share, and sent without a copy: a download is
//! the segments of the other countries, one after the other.

use std::{collections::BTreeMap, sync::Arc};

use actix_web::{HttpMessage, HttpRequest, HttpResponse, http::header, web};
use bytes::Bytes;
use chrono::NaiveDate;
use efgs_protocol::{
    batch_tag::{BatchTag, ObjectId},
    country::Country,
    key::KeyBatch,
    media::{Format, MediaError, MediaType},
    wire,
};
use moka::future::Cache;
use tracing::{Instrument as _, trace_span};

use crate::{
    app::App,
    chain::{self, ChainError},
    encryption::Keyring,
    http::{self, Error, ErrorBody, HeaderError, reply},
    limits::Kind,
    store::{BatchRecord, StoredPayload},
    telemetry,
    trust::Caller,
};

mod encoding;

use encoding::Encoding;

/// Why a download is refused, beside what the chain says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownloadError {
    /// A header is missing or unusable.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// No acceptable format is supported.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// No acceptable encoding is supported.
    #[error("none of the encodings in Accept-Encoding is supported: gzip, zstd or identity")]
    NoEncoding,
}

/// One upload's part of a batch, in one format.
#[derive(Clone, Debug)]
struct Segment {
    country: Country,
    bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum CacheKey {
    /// All segments of a batch, of which a number of uploads is withdrawn.
    Segments(ObjectId, u32, Format),
    /// A whole compressed body, without the uploads of a country that has some in the batch.
    Compressed(ObjectId, u32, Format, Encoding, Option<Country>),
}

impl CacheKey {
    fn batch(&self) -> ObjectId {
        match self {
            Self::Segments(id, ..) | Self::Compressed(id, ..) => *id,
        }
    }
}

#[derive(Clone, Debug)]
enum Cached {
    Segments(Arc<[Segment]>),
    Compressed(Bytes),
}

/// The bodies that are ready to send.
#[derive(Debug)]
pub struct Sealed(Cache<CacheKey, Cached>);

impl Sealed {
    /// Keeps at most about `bytes` bytes.
    pub fn new(bytes: u64) -> Self {
        let weigh = |_: &CacheKey, cached: &Cached| {
            let bytes: usize = match cached {
                Cached::Segments(all) => all.iter().map(|one| one.bytes.len() + size_of::<Segment>()).sum(),
                Cached::Compressed(bytes) => bytes.len(),
            };
            u32::try_from(bytes + 256).unwrap_or(u32::MAX)
        };
        Self(Cache::builder().max_capacity(bytes).weigher(weigh).build())
    }

    /// How many entries there are, and their bytes.
    pub async fn size(&self) -> (u64, u64) {
        // The cache counts lazily.
        self.0.run_pending_tasks().await;
        (self.0.entry_count(), self.0.weighted_size())
    }

    /// Forgets what was built of batches that are not served any more.
    pub async fn forget_before(&self, oldest: NaiveDate) {
        let outdated: Vec<_> = self.0.iter().map(|(key, _)| key.batch()).collect();
        for batch in outdated {
            if batch.timestamp().date_naive() < oldest {
                self.forget(batch).await;
            }
        }
    }

    /// Forgets what was built of a batch that has lost an upload.
    pub async fn forget(&self, batch: ObjectId) {
        let keys: Vec<_> = self.0.iter().map(|(key, _)| *key).filter(|key| key.batch() == batch).collect();
        for key in &keys {
            self.0.invalidate(key).await;
        }
    }

    /// The pieces of a body, from memory or built now.
    async fn body(
        &self,
        app: &Arc<App>,
        batch: &Arc<BatchRecord>,
        format: Format,
        encoding: Encoding,
        caller: Country,
    ) -> Result<Vec<Bytes>, Error> {
        // Countries that have nothing in the batch share one body.
        let without = batch.uploads.iter().any(|upload| upload.country == caller).then_some(caller);
        if encoding == Encoding::Identity {
            return Ok(assemble(&self.segments(app, batch, format, caller).await?, format, without));
        }
        let build = async {
            let pieces = assemble(&self.segments(app, batch, format, caller).await?, format, without);
            app.compute(caller, Kind::Downloads, move || encoding.compress(&pieces))
                .await?
                .map(Cached::Compressed)
                .map_err(internal)
        };
        let key = CacheKey::Compressed(batch.id, batch.withdrawn, format, encoding, without);
        match self.get_or_build(key, build).await? {
            Cached::Compressed(bytes) => Ok(vec![bytes]),
            Cached::Segments(_) => Err(internal("the cache holds another kind of value")),
        }
    }

    /// Requests that need the same at once build it once.
    async fn get_or_build(
        &self,
        key: CacheKey,
        build: impl Future<Output = Result<Cached, Error>>,
    ) -> Result<Cached, Error> {
        let name = if matches!(key, CacheKey::Segments(..)) { "build batch" } else { "compress" };
        let build = build.instrument(trace_span!(target: telemetry::SPANS, "build", otel.name = name));
        let entry = self.0.entry(key).or_try_insert_with(build).await.map_err(Error::Shared)?;
        let outcome = if entry.is_fresh() { "built" } else { "ready" };
        metrics::counter!(telemetry::CACHE_LOOKUPS, "outcome" => outcome).increment(1);
        Ok(entry.into_value())
    }

    async fn segments(
        &self,
        app: &Arc<App>,
        batch: &Arc<BatchRecord>,
        format: Format,
        caller: Country,
    ) -> Result<Arc<[Segment]>, Error> {
        let build = async {
            let ids: Vec<i64> = batch.uploads.iter().map(|upload| upload.id).collect();
            let shared = app.clone();
            let read = async move {
                let _place = shared.limits.to_read(caller).await?;
                Ok::<_, Error>(shared.store.payloads(&ids).await?)
            };
            let payloads = app.clone().background(read).await??;
            let (shared, batch) = (app.clone(), batch.clone());
            let seal = move || seal(&batch, payloads, format, &shared.keyring);
            app.compute(caller, Kind::Downloads, seal).await?.map(Cached::Segments)
        };
        match self.get_or_build(CacheKey::Segments(batch.id, batch.withdrawn, format), build).await? {
            Cached::Segments(segments) => Ok(segments),
            Cached::Compressed(_) => Err(internal("the cache holds another kind of value")),
        }
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::Internal(error.to_string())
}

/// Decrypts the keys of a batch and writes them in a format, one segment per upload.
fn seal(
    batch: &BatchRecord,
    payloads: Vec<StoredPayload>,
    format: Format,
    keyring: &Keyring,
) -> Result<Arc<[Segment]>, Error> {
    let mut payloads = payloads.into_iter().peekable();
    let mut segments = Vec::with_capacity(batch.uploads.len());
    for upload in &batch.uploads {
        let mut bytes = Vec::new();
        let mut keys = 0;
        while let Some(mut row) = payloads.next_if(|row| row.upload_id == upload.id) {
            let plain = keyring.open(&row.payload_hash, &mut row.payload)?;
            match format {
                Format::Protobuf => wire::append_protobuf_field(plain, &mut bytes),
                Format::Json => {
                    let mut key = KeyBatch::with_capacity(1);
                    wire::decode_protobuf_key(plain, &mut key).map_err(internal)?;
                    if keys > 0 {
                        bytes.extend_from_slice(wire::JSON_SEPARATOR);
                    }
                    wire::encode_key(Format::Json, key.get(0), &mut bytes);
                }
            }
            keys += 1;
        }
        if keys != upload.amount {
            // Never serve a part of an upload: nobody could verify it.
            return Err(internal(format!(
                "upload {} has {keys} keys in the database instead of {}",
                upload.id, upload.amount
            )));
        }
        bytes.shrink_to_fit();
        segments.push(Segment { country: upload.country, bytes: bytes.into() });
    }
    Ok(segments.into())
}

/// Puts the segments of all other countries together.
fn assemble(segments: &[Segment], format: Format, without: Option<Country>) -> Vec<Bytes> {
    let kept = segments
        .iter()
        .filter(|segment| Some(segment.country) != without)
        .map(|segment| segment.bytes.clone());
    match format {
        Format::Protobuf => kept.collect(),
        Format::Json => {
            let mut pieces = vec![Bytes::from_static(wire::JSON_OPEN)];
            for (i, segment) in kept.enumerate() {
                if i > 0 {
                    pieces.push(Bytes::from_static(wire::JSON_SEPARATOR));
                }
                pieces.push(segment);
            }
            pieces.push(Bytes::from_static(wire::JSON_CLOSE));
            pieces
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
        (status = 200, description = "The keys. A batch that has only the caller's own keys is empty.", body = crate::http::DiagnosisKeyBatch, content_type = "application/json; version=1.0",
            headers(("batchTag" = String, description = "This batch."), ("nextBatchTag" = String, description = "The next batch, or the text null."), ("ETag" = String, description = "Strong validator.")),
            example = json!(crate::http::example_batch())),
        (status = 304, description = "The client has these bytes; the headers say where the chain goes on now.", headers(("batchTag" = String, description = "This batch."), ("nextBatchTag" = String, description = "The next batch, or the text null."), ("ETag" = String, description = "Strong validator."))),
        (status = 400, description = "The date is not a date, or the batch was formed before it.", body = ErrorBody, content_type = "application/json", example = json!({"message": "the batch was formed on 2026-11-20, before 2026-11-22", "code": "batch-before-date"})),
        (status = 404, description = "There is no such batch, or none since the date.", body = ErrorBody, content_type = "application/json", example = json!({"message": "no batch has been formed on or after 2026-11-22 yet", "code": "batch-not-found"})),
        (status = 406, description = "None of the accepted media types is supported.", body = ErrorBody, content_type = "application/json", example = json!({"message": "the header Accept is missing", "code": "not-acceptable"})),
        (status = 410, response = crate::http::Gone),
    )
)]
pub async fn download(
    caller: Caller,
    request: HttpRequest,
    date: web::Path<String>,
    app: web::Data<App>,
) -> Result<HttpResponse, Error> {
    let app = app.into_inner();
    let media = accepted(&request)?;
    let encoding = encoding::negotiate(&request).ok_or(DownloadError::NoEncoding)?;
    http::note(&request, |facts| facts.date = chain::parse_date(&date));
    let date = app.chain.date(&date)?;
    let tag = match http::header(&request, wire::BATCH_TAG).map_err(DownloadError::from)? {
        None => None,
        Some(text) => Some(text.parse::<BatchTag>().map_err(|_| ChainError::Unknown)?),
    };
    http::note(&request, |facts| facts.tag = tag.map(|tag| tag.to_string()));
    let link = app.find_batch(&caller, date, tag).await?;
    let batch = &link.batch;
    // Without a tag in the request, it is known from here on which batch is meant.
    http::note(&request, |facts| facts.tag = Some(batch.id.to_string()));
    let etag = etag(batch, caller.country, media, encoding);
    let headers = reply::BatchHeaders {
        batch_tag: chain::tag_for(&app, &caller, batch),
        next_batch_tag: link
            .next
            .map_or(wire::NO_NEXT_BATCH.to_owned(), |next| chain::tag_for(&app, &caller, &next)),
        content_type: media.to_string(),
        content_encoding: encoding.name(),
        etag,
    };
    if matches(&request, &headers.etag) {
        app.downloaded.note(caller.country, batch.id);
        return Ok(headers.not_modified());
    }
    let body = app.sealed.body(&app, batch, media.format, encoding, caller.country).await?;
    http::note(&request, |facts| facts.origins = Some(origins(batch, caller.country)));
    app.downloaded.note(caller.country, batch.id);
    let others = batch.uploads.iter().filter(|upload| upload.country != caller.country);
    metrics::counter!(telemetry::KEYS_DOWNLOADED, "country" => caller.country.to_string())
        .increment(others.map(|upload| u64::from(upload.amount)).sum());
    Ok(headers.ok(body, request.extensions_mut().remove()))
}

/// Whose keys a country gets with a batch.
fn origins(batch: &BatchRecord, caller: Country) -> BTreeMap<Country, u32> {
    let mut origins = BTreeMap::new();
    for upload in batch.uploads.iter().filter(|upload| upload.country != caller) {
        *origins.entry(upload.country).or_default() += upload.amount;
    }
    origins
}

/// The format for this request: the best of all its `Accept` headers.
fn accepted(request: &HttpRequest) -> Result<MediaType, DownloadError> {
    let mut ranges = Vec::new();
    for value in request.headers().get_all(header::ACCEPT) {
        ranges.push(value.to_str().map_err(|_| HeaderError::NotText("Accept"))?);
    }
    Ok(MediaType::negotiate(ranges)?)
}

/// Everything that the bytes depend on; a batch changes only by losing withdrawn uploads.
fn etag(batch: &BatchRecord, caller: Country, media: MediaType, encoding: Encoding) -> String {
    let format = match media.format {
        Format::Protobuf => "protobuf",
        Format::Json => "json",
    };
    let (withdrawn, encoding) = (batch.withdrawn, encoding.suffix());
    format!("\"{}-{}-{}-{format}-{withdrawn}{encoding}\"", batch.id, caller, media.version)
}

/// `If-None-Match` (RFC 9110 §13.1.2): any of the listed tags, compared weakly, or `*`.
fn matches(request: &HttpRequest, etag: &str) -> bool {
    let values = request.headers().get_all(header::IF_NONE_MATCH);
    let tags = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    tags.map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[cfg(test)]
mod tests;
