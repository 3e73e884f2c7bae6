//! Deleting files that are older than the retention.

use chrono::{NaiveDate, TimeDelta};

use super::{Journal, JournalError, Medium};
use crate::health::JobWatch;

/// How often to look for files that are too old.
const PRUNE: TimeDelta = TimeDelta::hours(1);

impl Journal {
    /// Deletes what is older than the retention and a day, at most once per [`PRUNE`].
    pub(super) async fn prune(&self, watch: &JobWatch) -> Result<(), JournalError> {
        let now = self.sources.clock.now();
        {
            let mut writer = self.writer.lock().await;
            if writer.pruned.is_some_and(|at| now - at < PRUNE) {
                return Ok(());
            }
            writer.pruned = Some(now);
        }
        self.sources.store.forget_unjournaled().await?;
        let kept = self.delete_before(self.sources.kept_since(), watch).await.err();
        self.keeping.lock().clone_from(&kept.as_ref().map(JournalError::to_string));
        kept.map_or(Ok(()), Err)
    }

    /// Limits the time for a disk. A request to an S3-compatible store has its own limit.
    async fn patiently<T>(
        &self,
        work: impl Future<Output = Result<T, JournalError>>,
    ) -> Result<T, JournalError> {
        match &self.medium {
            Medium::Folder(folder) => self.disk.patiently(folder, work).await,
            Medium::Bucket(_) => work.await,
        }
    }

    /// Deletes the files of earlier days. A file that cannot be deleted does not stop the others from being deleted.
    async fn delete_before(&self, day: NaiveDate, watch: &JobWatch) -> Result<(), JournalError> {
        let prune = |error: JournalError| JournalError::Prune(error.to_string());
        let mut kept = Vec::new();
        let old = |name: &str| name.parse().is_ok_and(|of: NaiveDate| of < day);
        for name in self.patiently(self.medium.days()).await.map_err(prune)? {
            if !old(&name) {
                continue;
            }
            let files = self.patiently(self.medium.list(Some(&name), || watch.progressed())).await;
            for listed in files.map_err(prune)? {
                // A store has one object per group of records, and one request deletes one of them.
                watch.progressed();
                match self.patiently(self.medium.delete(&listed.name)).await {
                    Ok(()) => {
                        tracing::info!(
                            name = listed.name,
                            "a file of the journal was too old and is deleted"
                        );
                    }
                    Err(error) => kept.push(error.to_string()),
                }
            }
        }
        match kept.first() {
            None => Ok(()),
            Some(first) => Err(JournalError::Prune(format!("{} of them; the first: {first}", kept.len()))),
        }
    }
}
