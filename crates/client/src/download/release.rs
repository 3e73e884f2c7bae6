//! What is verified goes into the target, and nothing else can.

use chrono::NaiveDate;

use super::{DownloadError, Position, Released, cursor::Last, order::Tag, target::Batch};
use crate::{
    audit::{AuditReport, Audited, Auditor},
    fetch::{AuditAnswer, Body},
};

/// A batch that may follow, with its keys as they came; nothing of it is verified yet.
pub(super) struct Found {
    pub(super) tag: Tag,
    pub(super) date: NaiveDate,
    pub(super) etag: Option<String>,
    pub(super) next: Option<Tag>,
    pub(super) body: Body,
}

/// A batch that does not verify.
pub(super) struct Bad {
    pub(super) report: AuditReport,
    pub(super) found: Found,
    pub(super) audit: AuditAnswer,
}

/// A batch that verifies.
pub(super) struct Verified {
    batch: Batch,
    uploads: usize,
    etag: Option<String>,
    next: Option<Tag>,
}

/// Verifies a batch against its audit.
pub(super) fn verify(auditor: &Auditor, found: Found, audit: AuditAnswer) -> Result<Verified, Box<Bad>> {
    let mut report = AuditReport::about(found.tag.as_str(), found.date);
    let keys = match found.body.keys() {
        Ok(keys) => keys,
        Err(error) => {
            report.spoil(format!("the keys cannot be read: {error}"));
            return Err(Box::new(Bad { report, found, audit }));
        }
    };
    let uploads = match audit.entries() {
        Ok(entries) => entries,
        Err(error) => {
            report.spoil(format!("the answer to the audit cannot be read: {error}"));
            return Err(Box::new(Bad { report, found, audit }));
        }
    };
    let audited = Audited {
        batch_tag: found.tag.as_str().to_owned(),
        date: found.date,
        country: auditor.country,
        withdrawn_uploads: audit.withdrawn,
        uploads,
    };
    let report = auditor.audit(&audited, &keys);
    if !report.holds {
        return Err(Box::new(Bad { report, found, audit }));
    }
    let uploads = report.uploads.iter().filter(|upload| upload.first_key.is_some()).count();
    let Found { tag, date, etag, next, .. } = found;
    Ok(Verified { batch: Batch { tag, date, keys, audited }, uploads, etag, next })
}

impl Position {
    /// Stores a verified batch and goes past it.
    pub(super) fn release(
        &mut self,
        verified: Verified,
        today: NaiveDate,
    ) -> Result<Released, DownloadError> {
        let Verified { batch, uploads, etag, next } = verified;
        let mut cursor = self.cursor.clone();
        // Another step may have been dropped right after it had stored this batch.
        cursor.passed.check(&batch.tag)?;
        cursor.pass(Last { tag: batch.tag.clone(), date: batch.date, etag }, today);
        let path = self.target.store(&batch, &mut cursor, &self.cursor_path)?;
        let released = Released {
            batch_tag: batch.tag.as_str().to_owned(),
            date: batch.date,
            keys: batch.keys.len(),
            uploads,
            number: cursor.number,
            path,
        };
        (self.cursor, self.next) = (cursor, next);
        Ok(released)
    }
}
