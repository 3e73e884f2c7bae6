//! A cache of the bodies of downloads, in plaintext, and of audits (spec §5.3, §5.7).
//!
//! What one upload contributes to a download never changes. Its bytes are built once per format, as a
//! **segment**, kept in a bounded cache that all requests share, and sent without a copy. A download is the
//! segments of the other countries, one after the other.

use std::sync::Arc;

use bytes::Bytes;
use chrono::NaiveDate;
use efgs_protocol::{batch_tag::ObjectId, country::Country, key::KeyBatch, media::Format, wire};
use moka::future::Cache;
use tracing::{Instrument as _, trace_span};

use crate::{
    http::{Defect, Error},
    intake::Keyring,
    limits::{Kind, Limits},
    store::{BatchRecord, Store, StoredPayload},
    telemetry,
    workers::Workers,
};

mod encoding;
#[cfg(test)]
mod tests;

pub use encoding::{Encoding, negotiate};

/// One upload's part of a batch, in one format.
#[derive(Clone, Debug)]
struct Segment {
    country: Country,
    bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum CacheKey {
    /// All segments of a batch with this number of withdrawn uploads.
    Segments(ObjectId, u32, Format),
    /// A whole compressed body, without the uploads of one country that has some in the batch.
    Compressed(ObjectId, u32, Format, Encoding, Option<Country>),
    /// The audit of a batch with this number of withdrawn uploads, for a country that has some in the batch.
    Audit(ObjectId, u32, Option<Country>),
}

impl CacheKey {
    fn batch(&self) -> ObjectId {
        match self {
            Self::Segments(id, ..) | Self::Compressed(id, ..) | Self::Audit(id, ..) => *id,
        }
    }
}

#[derive(Clone, Debug)]
enum Cached {
    Segments(Arc<[Segment]>),
    /// A whole body.
    Body(Bytes),
}

/// The cache of download bodies, and what it needs to build them.
#[derive(Clone, Debug)]
pub struct BodyCache {
    cache: Cache<CacheKey, Cached>,
    store: Store,
    keyring: Arc<Keyring>,
    limits: Arc<Limits>,
    workers: Workers,
}

impl BodyCache {
    /// A cache of about `bytes` bytes.
    pub fn new(
        bytes: u64,
        store: Store,
        keyring: Arc<Keyring>,
        limits: Arc<Limits>,
        workers: Workers,
    ) -> Self {
        let weigh = |_: &CacheKey, cached: &Cached| {
            let bytes: usize = match cached {
                Cached::Segments(all) => all.iter().map(|one| one.bytes.len() + size_of::<Segment>()).sum(),
                Cached::Body(bytes) => bytes.len(),
            };
            u32::try_from(bytes + 256).unwrap_or(u32::MAX)
        };
        let cache = Cache::builder().max_capacity(bytes).weigher(weigh).build();
        Self { cache, store, keyring, limits, workers }
    }

    /// The number of entries and their size in bytes.
    pub async fn size(&self) -> (u64, u64) {
        // The cache updates its counts lazily.
        self.cache.run_pending_tasks().await;
        (self.cache.entry_count(), self.cache.weighted_size())
    }

    /// Drops batches that are no longer served.
    pub async fn forget_before(&self, oldest: NaiveDate) {
        let outdated: Vec<_> = self.cache.iter().map(|(key, _)| key.batch()).collect();
        for batch in outdated {
            if batch.timestamp().date_naive() < oldest {
                self.forget(batch).await;
            }
        }
    }

    /// Drops a batch that has lost an upload.
    pub async fn forget(&self, batch: ObjectId) {
        let keys: Vec<_> =
            self.cache.iter().map(|(key, _)| *key).filter(|key| key.batch() == batch).collect();
        for key in &keys {
            self.cache.invalidate(key).await;
        }
    }

    /// The pieces of a body, from the cache or built now.
    pub async fn get(
        &self,
        batch: &Arc<BatchRecord>,
        format: Format,
        encoding: Encoding,
        caller: Country,
    ) -> Result<Vec<Bytes>, Error> {
        let without = own(batch, caller);
        if encoding == Encoding::Identity {
            return Ok(assemble(&self.segments(batch, format, caller).await?, format, without));
        }
        let build = async {
            let pieces = assemble(&self.segments(batch, format, caller).await?, format, without);
            self.workers
                .compute(caller, Kind::Downloads, move || encoding.compress(&pieces))
                .await?
                .map(Cached::Body)
                .map_err(internal)
        };
        let key = CacheKey::Compressed(batch.id, batch.withdrawn, format, encoding, without);
        match self.get_or_build(key, build).await? {
            Cached::Body(bytes) => Ok(vec![bytes]),
            Cached::Segments(_) => Err(internal("the cache holds another kind of value")),
        }
    }

    /// The audit of a batch for a country, from the cache or built now.
    pub async fn audit(
        &self,
        batch: &BatchRecord,
        caller: Country,
        build: impl Future<Output = Result<Bytes, Error>>,
    ) -> Result<Bytes, Error> {
        let key = CacheKey::Audit(batch.id, batch.withdrawn, own(batch, caller));
        match self.get_or_build(key, async { build.await.map(Cached::Body) }).await? {
            Cached::Body(body) => Ok(body),
            Cached::Segments(_) => Err(internal("the cache holds another kind of value")),
        }
    }

    /// Concurrent requests for the same body build it once.
    async fn get_or_build(
        &self,
        key: CacheKey,
        build: impl Future<Output = Result<Cached, Error>>,
    ) -> Result<Cached, Error> {
        let name = match key {
            CacheKey::Segments(..) => "build batch",
            CacheKey::Compressed(..) => "compress",
            CacheKey::Audit(..) => "build audit",
        };
        let build = build.instrument(trace_span!(target: telemetry::SPANS, "build", otel.name = name));
        let entry =
            self.cache.entry(key).or_try_insert_with(build).await.map_err(|error| Error::clone(&error))?;
        let outcome = if entry.is_fresh() { "built" } else { "ready" };
        metrics::counter!(telemetry::CACHE_LOOKUPS, "outcome" => outcome).increment(1);
        Ok(entry.into_value())
    }

    async fn segments(
        &self,
        batch: &Arc<BatchRecord>,
        format: Format,
        caller: Country,
    ) -> Result<Arc<[Segment]>, Error> {
        let build = async {
            let ids: Vec<i64> = batch.uploads.iter().map(|upload| upload.id).collect();
            let (limits, store) = (self.limits.clone(), self.store.clone());
            let read = async move {
                let _permit = limits.to_read(caller).await?;
                Ok::<_, Error>(store.payloads(&ids).await?)
            };
            let payloads = self.workers.run(read).await??;
            let (keyring, batch) = (self.keyring.clone(), batch.clone());
            let open = move || open(&batch, payloads, format, &keyring);
            self.workers.compute(caller, Kind::Downloads, open).await?.map(Cached::Segments)
        };
        match self.get_or_build(CacheKey::Segments(batch.id, batch.withdrawn, format), build).await? {
            Cached::Segments(segments) => Ok(segments),
            Cached::Body(_) => Err(internal("the cache holds another kind of value")),
        }
    }
}

/// The country if it has uploads in the batch: those that have none share one body.
fn own(batch: &BatchRecord, caller: Country) -> Option<Country> {
    batch.uploads.iter().any(|upload| upload.country == caller).then_some(caller)
}

fn internal(error: impl std::fmt::Display) -> Error {
    Defect(error.to_string()).into()
}

/// Decrypts the keys of a batch and encodes them, one segment per upload.
fn open(
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
            // Never serve a part of an upload: nobody could verify its signature.
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

/// Concatenates the segments of all other countries.
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
