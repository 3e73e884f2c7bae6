//! What is verified goes into the target, and nothing else can.

use chrono::NaiveDate;
use efgs_protocol::key::KeyBatch;

use super::{DownloadError, Position, Released, cursor::Last, order::Tag};
use crate::{
    audit::{AuditReport, Audited, Auditor},
    fetch::{AuditAnswer, Body},
};

/// A batch that may follow, with its keys as they came; nothing of it is verified yet.
pub(super) struct Found {
    pub(super) last: Last,
    pub(super) next: Option<Tag>,
    pub(super) body: Body,
}

/// A batch that does not verify.
pub(super) struct Bad {
    pub(super) report: AuditReport,
    pub(super) found: Found,
    pub(super) audit: AuditAnswer,
}

/// A batch that verifies, on its way into the target.
pub(super) struct Verified {
    pub(super) last: Last,
    pub(super) keys: KeyBatch,
    pub(super) audited: Audited,
    uploads: usize,
    next: Option<Tag>,
}

/// Verifies a batch against its audit.
pub(super) fn verify(auditor: &Auditor, found: Found, audit: AuditAnswer) -> Result<Verified, Box<Bad>> {
    let Last { tag, date, .. } = &found.last;
    let read = match (found.body.keys(), audit.entries()) {
        (Ok(keys), Ok(uploads)) => Ok((keys, uploads)),
        (Err(error), _) => Err(format!("the keys cannot be read: {error}")),
        (_, Err(error)) => Err(format!("the answer to the audit cannot be read: {error}")),
    };
    let (keys, uploads) = match read {
        Ok(read) => read,
        Err(problem) => {
            let mut report = AuditReport::about(tag.as_str(), *date);
            report.spoil(problem);
            return Err(Box::new(Bad { report, found, audit }));
        }
    };
    let audited = Audited {
        batch_tag: tag.as_str().to_owned(),
        date: *date,
        country: auditor.country,
        withdrawn_uploads: audit.withdrawn,
        uploads,
    };
    let report = auditor.audit(&audited, &keys);
    if !report.holds {
        return Err(Box::new(Bad { report, found, audit }));
    }
    let uploads = report.uploads.iter().filter(|upload| upload.first_key.is_some()).count();
    Ok(Verified { last: found.last, keys, audited, uploads, next: found.next })
}

impl Position {
    /// Stores a verified batch and goes past it.
    pub(super) fn release(
        &mut self,
        verified: Verified,
        today: NaiveDate,
    ) -> Result<Released, DownloadError> {
        let mut cursor = self.cursor.clone();
        // Another step may have been dropped right after it had stored this batch.
        cursor.passed.check(&verified.last.tag)?;
        cursor.pass(verified.last.clone(), today);
        let path = self.target.store(&verified, &mut cursor, &self.cursor_path)?;
        let released = Released {
            batch_tag: verified.last.tag.as_str().to_owned(),
            date: verified.last.date,
            keys: verified.keys.len(),
            uploads: verified.uploads,
            number: cursor.number,
            path,
        };
        (self.cursor, self.next) = (cursor, verified.next);
        Ok(released)
    }
}
