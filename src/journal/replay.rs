//! Filling an empty database from the journal.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use chrono::NaiveDate;
use efgs_protocol::batch_tag::ObjectId;
use serde::Serialize;

use super::{
    JournalError, Sources,
    read::{Contents, Progress, UploadKey},
};
use crate::{
    intake::{StoredCertificate, VerifiedUpload},
    store::{PendingBatch, PendingWithdrawal, Restored},
};

/// What a replay did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replayed {
    /// Uploads that are in the database now.
    pub uploads: usize,
    /// Their keys.
    pub keys: u64,
    /// Batches.
    pub batches: usize,
    /// Withdrawals.
    pub withdrawals: usize,
    /// Certificates.
    pub certificates: usize,
    /// Whether all of it waits to be written to the configured journal, because it was read from somewhere else.
    pub to_journal: bool,
    /// What could not be brought back, each with the reason; empty unless losses were accepted.
    pub losses: Vec<String>,
}

/// Fills the empty database with what the journal has and what has not expired: each upload is verified as when it
/// came, and gets the number that it had. All batches appear at the end, at once. When it was interrupted, calling it
/// again continues.
///
/// With `accept_losses` what is damaged or missing is left out, and the rest is brought back.
pub async fn replay(
    sources: &Sources,
    from: Option<&Path>,
    accept_losses: bool,
    progress: impl FnMut(Progress),
) -> Result<Replayed, JournalError> {
    let again = sources.store.replay_is_unfinished().await?;
    if !again && sources.store.holds_anything().await? {
        return Err(JournalError::Contents(
            "the database is not empty: certificates, uploads or batches are in it. Replay into a new, empty database, \
             and leave this one as it is"
                .into(),
        ));
    }
    let mut contents = Contents::survey(sources, from).await?;
    refuse_losses(&contents.problems, accept_losses)?;

    let oldest = sources.chain.oldest();
    let newest = contents.batches.keys().next_back().copied();
    // The newest batch stays, expired or not: the next one's tag must be greater.
    let kept = |batch: &PendingBatch| batch.day >= oldest || Some(batch.id) == newest;
    let batches: Vec<PendingBatch> = contents.batches.values().filter(|batch| kept(batch)).cloned().collect();
    // What is in a batch that has expired has expired.
    let mut expired: HashSet<&UploadKey> = HashSet::new();
    let mut batch_of: HashMap<UploadKey, Option<(ObjectId, NaiveDate)>> = HashMap::new();
    for batch in contents.batches.values() {
        for upload in &batch.uploads {
            if batch.day < oldest {
                expired.insert(upload);
            } else if let Some(Some((other, _))) =
                batch_of.insert(upload.clone(), Some((batch.id, batch.day)))
            {
                let (id, problem) = (batch.id, &mut contents.problems);
                problem.push(format!("the upload {} is in two batches, {other} and {id}", upload.0));
            }
        }
    }
    for (key, upload) in &contents.uploads {
        if upload.uploaded_at.date_naive() >= oldest && !expired.contains(key) {
            batch_of.entry(key.clone()).or_insert(None);
        }
    }
    let certificates: Vec<StoredCertificate> =
        contents.certificates.values().map(|(_, row)| row.clone()).collect();
    let withdrawals: Vec<PendingWithdrawal> = contents.withdrawals.values().cloned().collect();

    refuse_losses(&contents.problems, accept_losses)?;
    sources.store.begin_replay(&certificates).await?;
    let take = async |upload: VerifiedUpload, id: i64| {
        let batch = batch_of.get(&(id, upload.content_hash().to_vec())).copied().flatten();
        Ok(match sources.store.restore_upload(&upload, id, batch).await? {
            Restored::Stored | Restored::AlreadyThere => None,
            Restored::Conflict => {
                Some("its tag, its number or one of its keys is taken by another upload".to_owned())
            }
        })
    };
    let done =
        contents.verify_uploads(sources, from, |key| batch_of.contains_key(key), take, progress).await?;
    refuse_losses(&contents.problems, accept_losses)?;
    let to_journal = from.is_some() && sources.settings.is_some();
    sources.store.finish_replay(&batches, &withdrawals, to_journal).await?;
    Ok(Replayed {
        uploads: done.uploads,
        keys: done.keys,
        batches: batches.len(),
        withdrawals: withdrawals.len(),
        certificates: certificates.len(),
        to_journal,
        losses: contents.problems,
    })
}

fn refuse_losses(problems: &[String], accepted: bool) -> Result<(), JournalError> {
    if accepted || problems.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = problems.iter().take(10).map(|problem| format!("  {problem}")).collect();
    let more = problems.len().saturating_sub(10);
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    Err(JournalError::Contents(format!(
        "not all of the journal can be brought back:\n{}{more}\n`journal verify` names everything. If there is no better \
         copy, `journal replay --accept-losses` brings back the rest",
        shown.join("\n")
    )))
}
