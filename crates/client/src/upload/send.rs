//! Sending what was prepared.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use efgs_protocol::{
    batch_tag::UploadTag,
    canonical::CanonicalKeys,
    key::KeyBatch,
    media::{Format, MediaType, SUPPORTED},
    wire,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use super::{
    FailedUpload, Progress, RunOutcome, RunReport, StoredUpload, UploadError, UploadEvent, Uploader, digest,
    journal::{Journal, Step},
    prepare::{Piece, pick},
};
use crate::{Error, Refusal, Upload, state::StateError};

/// How many hexadecimal digits of its hash are in an upload's tag: 28 bytes. With the country before them it is
/// below the limit of 64 characters.
const TAG_DIGITS: usize = 56;
const MEDIA: MediaType = MediaType { format: Format::Protobuf, version: SUPPORTED };

/// Sends pieces.
pub(super) struct Sender<'a> {
    uploader: &'a Uploader<'a>,
    journal: Mutex<Journal>,
    spool: File,
    /// Nothing more is begun, and nobody waits any longer.
    halt: CancellationToken,
    progress: &'a Progress,
    retries: AtomicU64,
}

/// What became of a piece.
struct Sent<'p> {
    piece: &'p Piece,
    stored: Option<UploadTag>,
    /// How many keys were stored under that tag.
    keys: usize,
    existing: usize,
    failure: Option<(UploadTag, NotStored)>,
}

/// Why the rest of a piece was not stored.
enum NotStored {
    Interrupted,
    Refused(Error),
}

impl From<Error> for NotStored {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl<'a> Sender<'a> {
    pub(super) fn new(
        uploader: &'a Uploader<'a>,
        journal: Journal,
        spool: File,
        stop: &CancellationToken,
        progress: &'a Progress,
    ) -> Self {
        Self {
            uploader,
            journal: Mutex::new(journal),
            spool,
            halt: stop.child_token(),
            progress,
            retries: AtomicU64::new(0),
        }
    }

    /// Sends the pieces in order, some at once, and writes into the report what became of them.
    pub(super) async fn send_all(self, pieces: &[Piece], report: &mut RunReport) -> Result<(), UploadError> {
        let concurrency = self.uploader.options.concurrency.max(1);
        let mut waiting = pieces.iter();
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < concurrency && !self.halt.is_cancelled() {
                let Some(piece) = waiting.next() else { break };
                under_way.push(self.send(piece));
            }
            let Some(sent) = under_way.next().await else { break };
            self.take(sent?, report);
        }
        report.retries = self.retries.load(Ordering::Relaxed);
        if report.outcome == RunOutcome::Complete && waiting.next().is_some() {
            report.outcome = RunOutcome::Interrupted;
        }
        Ok(())
    }

    fn take(&self, sent: Sent<'_>, report: &mut RunReport) {
        let Sent { piece, stored, keys, existing, failure } = sent;
        let file = &mut report.files[piece.file];
        file.keys.stored += keys as u64;
        file.keys.existing += existing as u64;
        file.keys.unsent -= (keys + existing) as u64;
        if let Some(tag) = stored {
            let upload = StoredUpload { tag: tag.to_string(), file: file.name.clone(), keys: keys as u64 };
            report.uploads.push(upload);
        }
        (self.progress)(UploadEvent::Sent { keys: piece.keys as u64 });
        let Some((tag, failure)) = failure else { return };
        let outcome = match &failure {
            NotStored::Interrupted => RunOutcome::Interrupted,
            // It concerns this upload alone.
            NotStored::Refused(Error::Refused(Refusal { status: 409, .. })) => RunOutcome::Complete,
            NotStored::Refused(error) if error.is_temporary() => RunOutcome::Unanswered,
            NotStored::Refused(_) => RunOutcome::Refused,
        };
        if let NotStored::Refused(error) = failure {
            report.failed.push(FailedUpload {
                tag: tag.to_string(),
                file: file.name.clone(),
                keys: (piece.keys - existing) as u64,
                reason: error.to_string(),
            });
        }
        if outcome != RunOutcome::Complete {
            self.halt.cancel();
            // What was interrupted by a failure is a consequence of it.
            if matches!(report.outcome, RunOutcome::Complete | RunOutcome::Interrupted) {
                report.outcome = outcome;
            }
        }
    }

    /// Sends a piece, and after a 207 what the gateway does not have yet: each time without the keys that it
    /// has, so that this ends.
    async fn send<'p>(&self, piece: &'p Piece) -> Result<Sent<'p>, UploadError> {
        let mut sent = Sent { piece, stored: None, keys: 0, existing: 0, failure: None };
        let mut keys = self.keys_of(piece)?;
        while !keys.is_empty() {
            let signed_bytes = CanonicalKeys::of(&keys).signed_bytes();
            let tag = self.tag(&signed_bytes);
            if self.halt.is_cancelled() {
                sent.failure = Some((tag, NotStored::Interrupted));
                return Ok(sent);
            }
            self.note(Step::Sending { tag: tag.to_string(), keys: keys.len() })?;
            let rest = match self.call(&tag, &keys, &signed_bytes).await {
                Ok(Upload::Stored) => {
                    self.note(Step::Stored { tag: tag.to_string() })?;
                    sent.stored = Some(tag);
                    sent.keys = keys.len();
                    break;
                }
                Ok(Upload::Conflicts { accepted, existing }) => {
                    rest(&keys, &accepted, &existing).ok_or_else(|| {
                        let what = "its 207 does not name each key once, or names no key that exists";
                        Error::Unexpected(what.into()).into()
                    })
                }
                Err(failure) => Err(failure),
            };
            match rest {
                Ok(rest) => {
                    sent.existing += keys.len() - rest.len();
                    keys = rest;
                }
                Err(failure) => {
                    sent.failure = Some((tag, failure));
                    return Ok(sent);
                }
            }
        }
        self.journal().done(&piece.id, self.uploader.clock.now())?;
        Ok(sent)
    }

    /// Calls the gateway until it says something that repeating would not change.
    async fn call(&self, tag: &UploadTag, keys: &KeyBatch, signed_bytes: &[u8]) -> Result<Upload, NotStored> {
        let Uploader { gateway, signer, options, clock, .. } = self.uploader;
        let signature = signer.sign(signed_bytes).map_err(Error::from)?;
        let body = wire::encode(MEDIA.format, keys);
        let mut failures = 0;
        loop {
            let error = match gateway.upload_signed(tag, MEDIA, body.clone(), &signature).await {
                Ok(upload) => return Ok(upload),
                Err(error) => error,
            };
            let (error, wait) = options.retry.after(error, &mut failures, clock)?;
            self.retries.fetch_add(1, Ordering::Relaxed);
            (self.progress)(UploadEvent::Waiting { error: &error, wait });
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.halt.cancelled() => return Err(NotStored::Interrupted),
            }
        }
    }

    /// The same for the same keys and the same signing certificate: the gateway takes a repetition under another
    /// certificate for another upload.
    fn tag(&self, signed_bytes: &[u8]) -> UploadTag {
        let Uploader { signer, options, .. } = self.uploader;
        let digest = digest(&[signer.certificate().thumbprint().as_bytes(), signed_bytes]);
        #[expect(clippy::expect_used, reason = "two letters, a hyphen and 56 digits")]
        format!("{}-{}", options.country, &digest[..TAG_DIGITS]).parse().expect("an upload tag")
    }

    fn keys_of(&self, piece: &Piece) -> Result<KeyBatch, UploadError> {
        let read = || {
            let mut body = vec![0; piece.length];
            (&self.spool).seek(SeekFrom::Start(piece.start))?;
            (&self.spool).read_exact(&mut body)?;
            wire::decode(MEDIA.format, &body, piece.keys).map_err(io::Error::other)
        };
        Ok(read().map_err(StateError::io(self.uploader.state))?)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, step: Step) -> Result<(), StateError> {
        self.journal().append(self.uploader.clock.now(), step)
    }
}

/// The accepted keys, if the gateway named each key once, and at least one as existing.
fn rest(keys: &KeyBatch, accepted: &[usize], existing: &[usize]) -> Option<KeyBatch> {
    let mut named = vec![false; keys.len()];
    for index in accepted.iter().chain(existing) {
        if std::mem::replace(named.get_mut(*index)?, true) {
            return None;
        }
    }
    let all = !existing.is_empty() && named.into_iter().all(|named| named);
    all.then(|| pick(keys, accepted))
}
