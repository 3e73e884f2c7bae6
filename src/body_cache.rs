//! A cache of the bodies of downloads, in plaintext, and of audits (spec §5.3, §5.7).
//!
//! What one upload contributes to a download never changes. Its bytes are built once per format, as a
//! **segment**, kept in a bounded cache that all requests share, and sent without a copy. A download is the
//! segments of the other countries, one after the other. The entries of audits are kept in the same cache.

use std::{collections::HashSet, ops::Range, sync::Arc};

use bytes::Bytes;
use chrono::NaiveDate;
use efgs_protocol::{batch_tag::ObjectId, country::Country, key::KeyBatch, media::Format, wire};
use moka::future::Cache;
use parking_lot::Mutex;
use tracing::{Instrument as _, trace_span};

use crate::{
    config::{ConfigError, Download},
    http::{Defect, Error},
    intake::Keyring,
    limits::{Kind, Limits},
    store::{ALL_POSITIONS, BatchRecord, BatchUpload, Store, StoredPayload},
    telemetry,
    workers::Workers,
};

mod disk;
mod encoding;
#[cfg(test)]
mod tests;

pub use encoding::{Encoding, negotiate};

use disk::{Disk, Name};

/// Keys whose rows are in memory at once while a batch is built.
const PAGE_KEYS: u32 = 2500;

/// A piece of a body that belongs to one upload.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Who uploaded it.
    pub country: Country,
    /// The piece. Segments can share it.
    pub bytes: Bytes,
}

/// All segments of a batch.
#[derive(Clone, Debug)]
pub struct Segments {
    /// In the order of the uploads.
    pub all: Arc<[Segment]>,
    /// The memory that they use, in bytes. Shared pieces count once.
    pub memory: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum CacheKey {
    /// All segments of a batch with this number of withdrawn uploads.
    Segments(ObjectId, u32, Format),
    /// The entries of an audit of a batch with this number of withdrawn uploads.
    Audit(ObjectId, u32),
    /// A whole compressed body, without the uploads of one country that has some in the batch.
    Compressed(ObjectId, u32, Format, Encoding, Option<Country>),
}

impl CacheKey {
    fn batch(&self) -> ObjectId {
        match self {
            Self::Segments(id, ..) | Self::Audit(id, _) | Self::Compressed(id, ..) => *id,
        }
    }
}

#[derive(Clone, Debug)]
enum Cached {
    Segments(Segments),
    Compressed(Bytes),
}

/// The cache of download bodies, and what it needs to build them.
#[derive(Clone, Debug)]
pub struct BodyCache {
    cache: Cache<CacheKey, Cached>,
    store: Store,
    keyring: Arc<Keyring>,
    limits: Arc<Limits>,
    workers: Workers,
    disk: Option<Arc<Disk>>,
    /// The countries for which a body is being built ahead.
    ahead: Arc<Mutex<HashSet<Country>>>,
}

impl BodyCache {
    /// A cache with these settings. Fails if the disk cache's folder cannot be used.
    pub fn new(
        settings: &Download,
        store: Store,
        keyring: Arc<Keyring>,
        limits: Arc<Limits>,
        workers: Workers,
    ) -> Result<Self, ConfigError> {
        let disk = Disk::open(settings, keyring.clone())?.map(Arc::new);
        let weigh = |_: &CacheKey, cached: &Cached| {
            let bytes: usize = match cached {
                Cached::Segments(segments) => segments.memory + size_of_val(&*segments.all),
                Cached::Compressed(bytes) => bytes.len(),
            };
            u32::try_from(bytes + 256).unwrap_or(u32::MAX)
        };
        let cache = Cache::builder().max_capacity(settings.cache.as_u64()).weigher(weigh).build();
        Ok(Self { cache, store, keyring, limits, workers, disk, ahead: Arc::default() })
    }

    /// The number of entries and their size in bytes.
    pub async fn size(&self) -> (u64, u64) {
        // The cache updates its counts lazily.
        self.cache.run_pending_tasks().await;
        (self.cache.entry_count(), self.cache.weighted_size())
    }

    /// Bytes of the files on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.bytes())
    }

    /// Drops batches that are no longer served.
    pub async fn forget_before(&self, oldest: NaiveDate) {
        let outdated: Vec<_> = self.cache.iter().map(|(key, _)| key.batch()).collect();
        for batch in outdated {
            if batch.timestamp().date_naive() < oldest {
                self.forget(batch).await;
            }
        }
        self.on_disk(move |disk| disk.forget_before(oldest)).await;
    }

    /// Drops a batch that has lost an upload.
    pub async fn forget(&self, batch: ObjectId) {
        let keys: Vec<_> =
            self.cache.iter().map(|(key, _)| *key).filter(|key| key.batch() == batch).collect();
        for key in &keys {
            self.cache.invalidate(key).await;
        }
        self.on_disk(move |disk| disk.forget(batch)).await;
    }

    async fn on_disk(&self, work: impl FnOnce(&Disk) + Send + 'static) {
        if let Some(disk) = self.disk.clone()
            && let Err(error) = self.workers.block(move || work(&disk)).await
        {
            tracing::error!(%error, "the disk cache could not be tidied");
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
        // Countries that have nothing in the batch share one body.
        let without = batch.uploads.iter().any(|upload| upload.country == caller).then_some(caller);
        if encoding == Encoding::Identity {
            return Ok(assemble(&self.segments(batch, format, caller).await?.all, format, without));
        }
        let build = async {
            let pieces = assemble(&self.segments(batch, format, caller).await?.all, format, without);
            self.workers
                .compute(caller, Kind::Downloads, move || encoding.compress(&pieces))
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

    /// Builds a body that a country that is catching up asks for next, while it receives the one before. One at a time
    /// for each country.
    pub fn read_ahead(&self, batch: &Arc<BatchRecord>, format: Format, encoding: Encoding, caller: Country) {
        let key = CacheKey::Segments(batch.id, batch.withdrawn, format);
        if self.cache.contains_key(&key) || !self.ahead.lock().insert(caller) {
            return;
        }
        let (cache, batch) = (self.clone(), batch.clone());
        self.workers.spawn(async move {
            if let Err(error) = cache.get(&batch, format, encoding, caller).await {
                // The request itself will fail too, or build it.
                tracing::debug!(batch = %batch.id, %error, "a batch was not built ahead");
            }
            cache.ahead.lock().remove(&caller);
        });
    }

    /// Concurrent requests for the same body build it once.
    async fn get_or_build(
        &self,
        key: CacheKey,
        build: impl Future<Output = Result<Cached, Error>>,
    ) -> Result<Cached, Error> {
        let name = match key {
            CacheKey::Segments(..) => "build batch",
            CacheKey::Audit(..) => "build audit",
            CacheKey::Compressed(..) => "compress",
        };
        let build = build.instrument(trace_span!(target: telemetry::SPANS, "build", otel.name = name));
        let entry =
            self.cache.entry(key).or_try_insert_with(build).await.map_err(|error| Error::clone(&error))?;
        let outcome = if entry.is_fresh() { "built" } else { "ready" };
        metrics::counter!(telemetry::CACHE_LOOKUPS, "outcome" => outcome).increment(1);
        Ok(entry.into_value())
    }

    /// The segments of an audit of a batch, from the cache or built now.
    pub async fn audit(
        &self,
        batch: &BatchRecord,
        build: impl Future<Output = Result<Segments, Error>>,
    ) -> Result<Segments, Error> {
        let build = async { build.await.map(Cached::Segments) };
        self.get_or_build_segments(CacheKey::Audit(batch.id, batch.withdrawn), build).await
    }

    async fn get_or_build_segments(
        &self,
        key: CacheKey,
        build: impl Future<Output = Result<Cached, Error>>,
    ) -> Result<Segments, Error> {
        match self.get_or_build(key, build).await? {
            Cached::Segments(segments) => Ok(segments),
            Cached::Compressed(_) => Err(internal("the cache holds another kind of value")),
        }
    }

    async fn segments(
        &self,
        batch: &Arc<BatchRecord>,
        format: Format,
        caller: Country,
    ) -> Result<Segments, Error> {
        let build = async {
            let (cache, batch) = (self.clone(), batch.clone());
            let read = async move { cache.read_or_build(&batch, format, caller).await };
            self.workers.run(read).await?.map(Cached::Segments)
        };
        let key = CacheKey::Segments(batch.id, batch.withdrawn, format);
        self.get_or_build_segments(key, build).await
    }

    /// From the disk cache, or from the database and then into the disk cache.
    async fn read_or_build(
        &self,
        batch: &BatchRecord,
        format: Format,
        caller: Country,
    ) -> Result<Segments, Error> {
        let Some(disk) = self.disk.clone() else { return self.build(batch, format, caller).await };
        let name = Name { batch: batch.id, withdrawn: batch.withdrawn, format };
        let read = {
            let disk = disk.clone();
            move || disk.read(name)
        };
        if let Some(segments) = self.workers.compute(caller, Kind::Downloads, read).await? {
            return Ok(segments);
        }
        let built = self.build(batch, format, caller).await?;
        let (workers, segments) = (self.workers.clone(), built.clone());
        // The request does not wait for it.
        self.workers.spawn(async move {
            let write = move || disk.write(name, &segments);
            if let Err(error) = workers.compute(caller, Kind::Downloads, write).await {
                tracing::debug!(%error, "a batch was not written to the disk cache");
            }
        });
        Ok(built)
    }

    /// Reads, decrypts and encodes the keys of a batch. The turn to read is kept until the end: it bounds the memory of
    /// all batches that are being built.
    async fn build(&self, batch: &BatchRecord, format: Format, caller: Country) -> Result<Segments, Error> {
        let _permit = self.limits.to_read(caller).await?;
        match self.build_from(batch, format, caller, true).await {
            // What a replica has cannot be used, such as keys that are still sealed as before a rotation.
            (Err(_), true) => self.build_from(batch, format, caller, false).await.0,
            (built, _) => built,
        }
    }

    /// The same, a page at a time, from replicas if there are any and they are wanted; and whether one was used.
    async fn build_from(
        &self,
        batch: &BatchRecord,
        format: Format,
        caller: Country,
        replicas: bool,
    ) -> (Result<Segments, Error>, bool) {
        let mut used = false;
        let mut pages = pages(&batch.uploads).into_iter();
        let mut read = async || {
            let Some(Page { uploads, positions, keys }) = pages.next() else { return Ok(Vec::new()) };
            if !replicas {
                return self.store.payloads(batch.day, &uploads, positions).await;
            }
            let (rows, from_replica) =
                self.store.batch_payloads(batch.day, &uploads, positions, keys as usize).await?;
            used |= from_replica;
            Ok(rows)
        };
        let build = async {
            let mut opening = Opening::new(batch, format, self.keyring.clone());
            let mut rows = read().await?;
            while !rows.is_empty() {
                let open = move || opening.add(rows).map(|()| opening);
                let open = self.workers.compute(caller, Kind::Downloads, open);
                // The next page comes meanwhile.
                let (opened, next) = futures_util::future::join(open, read()).await;
                (opening, rows) = (opened??, next?);
            }
            opening.finish()
        };
        let built = build.await;
        (built, used)
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    Defect(error.to_string()).into()
}

/// What one statement reads of a batch.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    uploads: Vec<i64>,
    positions: Range<u32>,
    /// How many there are.
    keys: u32,
}

/// Cuts a batch into pages of at most [`PAGE_KEYS`] keys: several uploads, or a part of one.
fn pages(uploads: &[BatchUpload]) -> Vec<Page> {
    let mut pages: Vec<Page> = Vec::new();
    for upload in uploads {
        let (id, amount) = (upload.id, upload.amount);
        let has_room = |page: &&mut Page| {
            page.positions == ALL_POSITIONS && page.keys.saturating_add(amount) <= PAGE_KEYS
        };
        if let Some(page) = pages.last_mut().filter(has_room) {
            page.uploads.push(id);
            page.keys += amount;
            continue;
        }
        let mut start = 0;
        while amount - start > PAGE_KEYS {
            let positions = start..start + PAGE_KEYS;
            pages.push(Page { uploads: vec![id], positions, keys: PAGE_KEYS });
            start += PAGE_KEYS;
        }
        // To the end of the upload, so that keys above the amount are noticed.
        let positions = start..ALL_POSITIONS.end;
        pages.push(Page { uploads: vec![id], positions, keys: amount - start });
    }
    pages
}

/// The segments of a batch while they are being built from its rows.
struct Opening {
    format: Format,
    keyring: Arc<Keyring>,
    /// The uploads that are not complete yet.
    rest: std::vec::IntoIter<BatchUpload>,
    upload: Option<BatchUpload>,
    /// What there is of `upload`.
    bytes: Vec<u8>,
    keys: u32,
    done: Vec<Segment>,
}

impl Opening {
    fn new(batch: &BatchRecord, format: Format, keyring: Arc<Keyring>) -> Self {
        let mut rest = batch.uploads.clone().into_iter();
        let upload = rest.next();
        Self { format, keyring, rest, upload, bytes: Vec::new(), keys: 0, done: Vec::new() }
    }

    /// Decrypts and encodes the next rows.
    fn add(&mut self, rows: Vec<StoredPayload>) -> Result<(), Error> {
        for mut row in rows {
            while self.upload.as_ref().is_some_and(|upload| upload.id != row.upload_id) {
                self.complete()?;
            }
            let plain = self.keyring.open(&row.payload_hash, &mut row.payload)?;
            match self.format {
                Format::Protobuf => wire::append_protobuf_field(plain, &mut self.bytes),
                Format::Json => {
                    let mut key = KeyBatch::with_capacity(1);
                    wire::decode_protobuf_key(plain, &mut key).map_err(internal)?;
                    if self.keys > 0 {
                        self.bytes.extend_from_slice(wire::JSON_SEPARATOR);
                    }
                    wire::encode_key(Format::Json, key.get(0), &mut self.bytes);
                }
            }
            self.keys += 1;
            self.reserve();
        }
        Ok(())
    }

    /// Makes room for the whole upload once the size of its keys is known. Growing would need twice the memory.
    fn reserve(&mut self) {
        const KNOWN: u32 = 100;
        if let (KNOWN, Some(upload)) = (self.keys, &self.upload) {
            let one = self.bytes.len() / KNOWN as usize + 2;
            self.bytes.reserve_exact(upload.amount.saturating_sub(KNOWN) as usize * one);
        }
    }

    /// The current upload has no further rows.
    fn complete(&mut self) -> Result<(), Error> {
        let Some(upload) = self.upload.take() else { return Ok(()) };
        let (id, amount, keys) = (upload.id, upload.amount, self.keys);
        if keys != amount {
            // Never serve a part of an upload: nobody could verify its signature.
            return Err(internal(format!("upload {id} has {keys} keys in the database instead of {amount}")));
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.shrink_to_fit();
        self.done.push(Segment { country: upload.country, bytes: bytes.into() });
        self.keys = 0;
        self.upload = self.rest.next();
        Ok(())
    }

    fn finish(mut self) -> Result<Segments, Error> {
        while self.upload.is_some() {
            self.complete()?;
        }
        let memory = self.done.iter().map(|segment| segment.bytes.len()).sum();
        Ok(Segments { all: self.done.into(), memory })
    }
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
