//! Withdrawing an upload (spec §5.4.2 names it as a purpose of upload tags).
//!
//! The upload's keys disappear from every later download, and its entry from the audit. Batches keep their
//! names, order and links. The tag and the hashes of the keys stay reserved until they expire, so that a
//! withdrawn key cannot return by accident.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use efgs_protocol::{batch_tag::UploadTag, country::Country};

use crate::{
    access_log,
    body_cache::BodyCache,
    chain::Chain,
    clock::Clock,
    http::{Code, Error, ErrorBody, Problem, reply},
    journal::{JournalError, Recording},
    store::{Store, StoreError, Withdrawal, WithdrawnBy},
    trust::Caller,
    workers::Workers,
};

/// What withdrawals need.
#[derive(Clone, Debug)]
pub struct Withdrawals {
    /// The uploads.
    pub store: Store,
    /// The clock.
    pub clock: Clock,
    /// The batches in memory.
    pub chain: Arc<Chain>,
    /// The download bodies.
    pub body_cache: BodyCache,
    /// The journal, if configured.
    pub journal: Recording,
    /// The threads that process requests.
    pub workers: Workers,
}

/// Why a withdrawal is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WithdrawalError {
    /// The country has no such upload.
    #[error("this country has no upload with this tag")]
    Unknown,
}

impl Problem for WithdrawalError {
    fn code(&self) -> Code {
        match self {
            Self::Unknown => Code::UploadNotFound,
        }
    }
}

/// Takes an upload back (an extension of spec §5.4.2).
///
/// Only the country that made it can. The keys vanish from every later download and the entry from the audit,
/// within seconds on every instance; the tag and the keys stay taken until they expire. Doing it again is the
/// same.
#[utoipa::path(
    delete,
    path = "/diagnosiskeys/upload/{batchTag}",
    tag = "upload",
    params(("batchTag" = String, Path, description = "The upload tag, as it was sent with the upload; a slash at its end is written %2F.", example = "2026-11-22-1")),
    responses(
        (status = 200, description = "The upload is withdrawn, now or by an earlier request. The body is empty."),
        (status = 404, description = "The country has no upload with this tag.", body = ErrorBody, content_type = "application/json", example = json!({"message": "this country has no upload with this tag", "code": "upload-not-found"})),
    )
)]
pub async fn withdraw(
    caller: Caller,
    request: HttpRequest,
    tag: web::Path<String>,
    state: web::Data<Withdrawals>,
) -> Result<HttpResponse, Error> {
    let tag = tag.into_inner();
    if tag.parse::<UploadTag>().is_ok() {
        access_log::note(&request, |facts| facts.tag = Some(tag.clone()));
    }
    let (trail, withdrawals) = (access_log::trail(&request), state.clone());
    let doing = state.workers.run(async move {
        let outcome = withdrawals.withdraw(caller.country, &tag, WithdrawnBy::Country, "").await?;
        if let (Some(trail), Withdrawal::Done { keys }) = (trail, outcome) {
            trail.note(|facts| facts.origins = Some([(caller.country, keys)].into()));
        }
        Ok::<_, JournalError>(outcome)
    });
    match doing.await?? {
        Withdrawal::Done { .. } | Withdrawal::Already => Ok(reply::empty()),
        Withdrawal::Unknown => Err(WithdrawalError::Unknown.into()),
    }
}

impl Withdrawals {
    /// Withdraws an upload and removes it from this instance's memory at once.
    pub async fn withdraw(
        &self,
        country: Country,
        tag: &str,
        by: WithdrawnBy,
        reason: &str,
    ) -> Result<Withdrawal, JournalError> {
        let outcome = self.store.withdraw(country, tag, by, reason, self.clock.now()).await?;
        if let Withdrawal::Done { .. } = outcome {
            tracing::warn!(%country, tag, ?by, reason, "an upload was withdrawn");
            self.refresh().await?;
        }
        // Also if it was withdrawn before: an earlier attempt may have failed at this point.
        self.journal.catch_up(None).await?;
        Ok(outcome)
    }

    /// Applies withdrawals made by any instance to this instance's memory.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        for batch in self.chain.refresh_withdrawals().await? {
            tracing::info!(%batch, "a batch has lost an upload that was withdrawn");
            self.body_cache.forget(batch).await;
        }
        Ok(())
    }
}
