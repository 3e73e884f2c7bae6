//! Reading a journal back: what is in it, and whether all of it is there and genuine.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    pin::pin,
    sync::Arc,
};

use chrono::{DateTime, Utc};
use efgs_protocol::{
    batch_tag::ObjectId,
    certificate::{CertificateType, Thumbprint},
    country::Country,
    media::{Format, MediaType, Version},
    signature::SignaturePolicy,
    wire,
};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    JournalError, Sources,
    check::Chains,
    medium::{Listed, Medium},
    record::{CertificateRecord, Event},
    segment::{self, ReadSegment},
};
use crate::{
    intake::{Keyring, SignedUpload, StoredCertificate, Uploader, VerifiedUpload},
    store::{JournalUpload, PendingBatch, PendingWithdrawal},
    trust::Registry,
};

/// Bytes of segments that are in memory at once, unless a single one has more.
const AHEAD: u32 = 64 << 20;
/// Segments that are read, and uploads that are verified (and stored), at once.
const AT_ONCE: usize = 4;

/// Identifies an upload: number and content hash, because a number can be used again after the upload has expired.
pub(super) type UploadKey = (i64, Vec<u8>);

/// One file or object of a journal.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentInfo {
    /// Its name, below the journal's folder or prefix.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Records in it.
    pub records: usize,
    /// Uploads among them.
    pub uploads: usize,
    /// Keys in them.
    pub keys: u64,
    /// The encryption keys that it needs; they cannot be removed before the journal has forgotten it.
    pub encryption_keys: Vec<u32>,
    /// Whether it was closed; one that is being written, or whose instance was killed, was not.
    pub closed: bool,
    /// Bytes at its end that were not written completely when the instance was killed; they were not acknowledged.
    pub torn_bytes: usize,
}

/// How far reading has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Uploads so far.
    pub uploads: usize,
    /// Of how many.
    pub of: usize,
    /// Keys so far.
    pub keys: u64,
}

/// What a journal holds, without the keys.
#[derive(Debug, Default)]
pub struct Contents {
    /// Its files or objects, in the order of their names.
    pub segments: Vec<SegmentInfo>,
    /// What is wrong with it, each with the name of the file.
    pub problems: Vec<String>,
    /// What an operator may want to know, but need not act on.
    pub notes: Vec<String>,
    pub(super) certificates: BTreeMap<i64, (i64, StoredCertificate)>,
    pub(super) batches: BTreeMap<ObjectId, PendingBatch>,
    pub(super) withdrawals: BTreeMap<i64, PendingWithdrawal>,
    pub(super) uploads: HashMap<UploadKey, UploadFacts>,
}

/// What a survey keeps of each upload; a journal has very many.
#[derive(Clone, Copy, Debug)]
pub(super) struct UploadFacts {
    pub(super) amount: u32,
    pub(super) uploaded_at: DateTime<Utc>,
}

/// Where a journal is read from: the configured one, or a folder.
pub(super) fn medium(sources: &Sources, from: Option<&Path>) -> Result<Medium, JournalError> {
    match (from, &sources.settings) {
        (Some(folder), _) => Ok(Medium::Folder(folder.to_owned())),
        (None, Some(config)) => Medium::open(config).map_err(|e| JournalError::Read(e.to_string())),
        (None, None) => Err(JournalError::Read(
            "`[journal]` is not set in the configuration; name a folder with --from FOLDER".into(),
        )),
    }
}

/// Reads every segment in the order of the names; hands over what it has, or why it cannot be read.
async fn segments(
    sources: &Sources,
    medium: &Medium,
    listed: &[Listed],
    mut take: impl AsyncFnMut(&Listed, Result<Option<ReadSegment>, String>) -> Result<(), JournalError>,
) -> Result<(), JournalError> {
    let read = async |listed: &Listed| {
        let bytes = medium.read(listed).await?;
        let (keyring, name) = (sources.keyring.clone(), listed.name.clone());
        let read = tokio::task::spawn_blocking(move || segment::read(&name, &bytes, &keyring));
        read.await.map_err(|e| JournalError::Read(e.to_string()))
    };
    let mut reading = pin!(read_ahead(listed, AHEAD, &read));
    while let Some((listed, segment, _memory)) = reading.next().await {
        take(listed, segment?).await?;
    }
    Ok(())
}

/// Reads in the order of the list, several at once, but never more than `bytes` together, unless a single one has
/// more. What has been read counts until its permit is dropped.
pub(super) fn read_ahead<'a, T>(
    listed: &'a [Listed],
    bytes: u32,
    read: &'a impl AsyncFn(&'a Listed) -> T,
) -> impl Stream<Item = (&'a Listed, T, Option<OwnedSemaphorePermit>)> {
    let room = Arc::new(Semaphore::new(bytes as usize));
    stream::iter(listed)
        .then(move |listed| {
            let (room, size) = (room.clone(), u32::try_from(listed.bytes).unwrap_or(bytes).min(bytes));
            // The semaphore is never closed.
            async move { (listed, room.acquire_many_owned(size).await.ok()) }
        })
        .map(move |(listed, memory)| async move { (listed, read(listed).await, memory) })
        .buffered(AT_ONCE)
}

impl Contents {
    /// Reads the journal, all but the keys, and finds what is damaged or missing.
    pub async fn survey(sources: &Sources, from: Option<&Path>) -> Result<Self, JournalError> {
        let medium = medium(sources, from)?;
        let listed = medium.list(None, || {}).await?;
        if listed.is_empty() {
            return Err(JournalError::Contents(
                "the journal is empty: there is no file of it at this place".into(),
            ));
        }
        let mut contents = Self::default();
        let mut chains = Chains::default();
        segments(sources, &medium, &listed, async |listed, segment| {
            match segment {
                Ok(None) => contents.notes.push(format!(
                    "{}: it ends before its header does: the instance was killed or the disk was full when the file was \
                     made; nothing in it was acknowledged",
                    listed.name
                )),
                Ok(Some(segment)) => {
                    chains.take(&segment);
                    contents.take(listed, segment);
                }
                Err(problem) => contents.problems.push(problem),
            }
            Ok(())
        })
        .await?;
        contents.problems.extend(chains.check(sources.kept_since()));
        contents.check_batches(sources.chain.oldest());
        Ok(contents)
    }

    fn take(&mut self, listed: &Listed, segment: ReadSegment) {
        let ReadSegment { name, events, ended, torn, keys: encryption_keys, problems, .. } = segment;
        let mut info = SegmentInfo {
            name,
            bytes: listed.bytes,
            records: events.len(),
            uploads: 0,
            keys: 0,
            encryption_keys,
            closed: ended,
            torn_bytes: torn,
        };
        if torn > 0 {
            self.notes.push(format!(
                "{}: the last {torn} bytes were not written completely: the instance was killed or the disk was full; \
                 they were not acknowledged",
                info.name
            ));
        }
        self.problems.extend(problems);
        for event in events {
            let readable = match event {
                Event::Upload(upload) => upload.row().map(|row| {
                    info.uploads += 1;
                    info.keys += u64::from(row.amount);
                    let facts = UploadFacts { amount: row.amount, uploaded_at: row.uploaded_at };
                    self.uploads.insert((row.id, row.content_hash), facts);
                }),
                Event::Batch(batch) => {
                    batch.row().map(|row| match self.batches.insert(row.id, row.clone()) {
                        Some(other) if other != row => {
                            self.problems.push(format!(
                                "{}: the batch {} is there twice, differently",
                                info.name, row.id
                            ));
                        }
                        _ => {}
                    })
                }
                Event::Withdrawal(row) => row.row().map(|row| {
                    self.withdrawals.insert(row.upload_id, row);
                }),
                Event::Certificate(certificate) => self.take_certificate(certificate),
                Event::End(_) => Some(()),
            };
            if readable.is_none() {
                self.problems.push(format!("{}: a record has a value that is out of its range", info.name));
            }
        }
        self.segments.push(info);
    }

    /// The newest record of a certificate counts; that it was revoked is never forgotten.
    fn take_certificate(&mut self, record: CertificateRecord) -> Option<()> {
        let read_at = record.read_at;
        let row = record.row()?;
        match self.certificates.get_mut(&row.id) {
            None => drop(self.certificates.insert(row.id, (read_at, row))),
            Some((known_at, known)) => {
                let revoked_at = known.revoked_at.or(row.revoked_at);
                if read_at >= *known_at {
                    (*known_at, *known) = (read_at, row);
                }
                known.revoked_at = revoked_at;
            }
        }
        Some(())
    }

    /// Verifies every upload that `wanted` lets through as if it came now: its keys, its batch signature, the
    /// registration of its signer by the trust anchor; then hands it over, several at once.
    pub(super) async fn verify_uploads(
        &mut self,
        sources: &Sources,
        from: Option<&Path>,
        wanted: impl Fn(&UploadKey) -> bool,
        take: impl AsyncFn(VerifiedUpload, i64) -> Result<Option<String>, JournalError>,
        mut progress: impl FnMut(Progress),
    ) -> Result<Progress, JournalError> {
        let rows: Vec<StoredCertificate> = self
            .certificates
            .values()
            .map(|(_, row)| StoredCertificate { revoked_at: None, ..row.clone() })
            .collect();
        let registry = Registry::verify(&rows, sources.trust.anchor());
        self.problems.extend(registry.refused().iter().cloned());
        let registry = Arc::new(registry);
        let medium = medium(sources, from)?;
        let listed: Vec<Listed> =
            self.segments.iter().map(|info| Listed { name: info.name.clone(), bytes: info.bytes }).collect();
        let mut done = HashSet::new();
        let mut so_far =
            Progress { of: self.uploads.keys().filter(|key| wanted(key)).count(), ..Progress::default() };
        let problems = &mut self.problems;
        segments(sources, &medium, &listed, async |listed, segment| {
            // The survey has reported what cannot be read.
            let Ok(Some(segment)) = segment else { return Ok(()) };
            let uploads = segment.events.into_iter().filter_map(|event| match event {
                Event::Upload(mut upload) => {
                    let keys = std::mem::take(&mut upload.keys);
                    Some((upload.row()?, keys))
                }
                _ => None,
            });
            let new: Vec<_> = uploads
                .filter(|(row, _)| {
                    let key = (row.id, row.content_hash.clone());
                    wanted(&key) && done.insert(key)
                })
                .collect();
            let mut verifying = stream::iter(new)
                .map(async |(row, keys)| {
                    let (keyring, registry) = (sources.keyring.clone(), registry.clone());
                    let what = format!("{}: the upload {:?} of {}", listed.name, row.tag, row.country);
                    let (id, amount) = (row.id, row.amount);
                    let verify = tokio::task::spawn_blocking(move || verify(row, &keys, &registry, &keyring));
                    let problem = match verify.await.map_err(|e| JournalError::Read(e.to_string()))? {
                        Ok(verified) => take(verified, id).await?,
                        Err(reason) => Some(reason),
                    };
                    Ok::<_, JournalError>((amount, problem.map(|reason| format!("{what}: {reason}"))))
                })
                .buffer_unordered(AT_ONCE);
            while let Some(verified) = verifying.next().await {
                let (amount, problem) = verified?;
                match problem {
                    Some(problem) => problems.push(problem),
                    None => {
                        so_far.uploads += 1;
                        so_far.keys += u64::from(amount);
                    }
                }
                progress(so_far);
            }
            Ok(())
        })
        .await?;
        Ok(so_far)
    }

    /// Verifies everything; says how much that was.
    pub async fn verify(
        &mut self,
        sources: &Sources,
        from: Option<&Path>,
        progress: impl FnMut(Progress),
    ) -> Result<Progress, JournalError> {
        self.verify_uploads(sources, from, |_| true, async |_, _| Ok(None), progress).await
    }

    /// How many of its certificates were revoked.
    pub fn revoked(&self) -> usize {
        self.certificates.values().filter(|(_, row)| row.revoked_at.is_some()).count()
    }

    /// How many batches, withdrawals and certificates it has.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.batches.len(), self.withdrawals.len(), self.certificates.len())
    }
}

/// From a record to an upload that can be stored, through the checks that it passed when it came.
fn verify(
    row: JournalUpload,
    encoding: &[u8],
    registry: &Registry,
    keyring: &Keyring,
) -> Result<VerifiedUpload, String> {
    let registered = |id: i64, kind: CertificateType| {
        let there =
            registry.entries().any(|e| e.id == id && e.kind == kind && e.country.as_str() == row.country);
        if there {
            Ok(())
        } else {
            Err(format!("its {kind} certificate, row {id}, is not in the journal or does not count"))
        }
    };
    let thumbprint = |bytes: &[u8]| {
        bytes.try_into().map(Thumbprint::from_bytes).map_err(|_| "it has a malformed thumbprint".to_owned())
    };
    registered(row.uploader_certificate_id, CertificateType::Authentication)?;
    registered(row.signing_certificate_id, CertificateType::Signing)?;
    let signing_thumbprint = thumbprint(&row.signing_thumbprint)?;
    let keys = wire::decode(Format::Protobuf, encoding, usize::MAX).map_err(|e| e.to_string())?;
    if keys.len() != row.amount as usize {
        return Err(format!("it has {} keys instead of {}", keys.len(), row.amount));
    }
    let format = row.format.parse().map_err(|_| format!("its format {:?} is not known", row.format))?;
    let upload = SignedUpload {
        uploader: Uploader {
            country: Country::new(&row.country).map_err(|e| e.to_string())?,
            certificate_id: row.uploader_certificate_id,
            thumbprint: thumbprint(&row.uploader_thumbprint)?,
        },
        tag: row.tag.parse().map_err(|_| "its tag is malformed".to_owned())?,
        media: MediaType { format, version: Version { major: row.format_major, minor: row.format_minor } },
        batch_signature: row.batch_signature,
        keys,
        at: row.uploaded_at,
        keep_encoding: false,
    };
    // Whether the country might sign with SHA-1 was decided when the upload came.
    let verified =
        upload.verify(registry, SignaturePolicy { allow_sha1: true }, keyring).map_err(|e| e.to_string())?;
    if verified.content_hash().as_slice() != row.content_hash {
        return Err("its keys are not those that were signed".into());
    }
    if verified.signing_thumbprint() != signing_thumbprint {
        return Err("another certificate signed it than the one that is recorded".into());
    }
    Ok(verified.signed_under(row.signing_certificate_id))
}
