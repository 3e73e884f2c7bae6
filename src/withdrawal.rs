//! Withdrawing an upload (spec §5.4.2 names it as a purpose of upload tags).
//!
//! Its keys vanish from every later download and its entry from the audit; batches keep their names, order and
//! links. Its tag and the hashes of its keys stay taken until they expire, so that a withdrawn key cannot come
//! back by accident.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use efgs_protocol::{batch_tag::UploadTag, country::Country};

use crate::{
    app::App,
    http::{self, Error, ErrorBody, reply},
    journal::{self, JournalError},
    store::{StoreError, Withdrawal, WithdrawnBy},
    trust::Caller,
};

/// Why a withdrawal is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WithdrawalError {
    /// No such upload of this country.
    #[error("this country has no upload with this tag")]
    Unknown,
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
    app: web::Data<App>,
) -> Result<HttpResponse, Error> {
    let app = app.into_inner();
    let tag = tag.into_inner();
    if tag.parse::<UploadTag>().is_ok() {
        http::note(&request, |facts| facts.tag = Some(tag.clone()));
    }
    let trail = http::trail(&request);
    let doing = app.clone().background(async move {
        let outcome = withdraw_upload(&app, caller.country, &tag, WithdrawnBy::Country, "").await?;
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

/// Withdraws an upload, and takes it out of this instance's memory at once.
pub async fn withdraw_upload(
    app: &Arc<App>,
    country: Country,
    tag: &str,
    by: WithdrawnBy,
    reason: &str,
) -> Result<Withdrawal, JournalError> {
    let outcome = app.store.withdraw(country, tag, by, reason, app.clock.now()).await?;
    if let Withdrawal::Done { .. } = outcome {
        tracing::warn!(%country, tag, ?by, reason, "an upload was withdrawn");
        refresh(app).await?;
    }
    // Also when it had been withdrawn before: that attempt may have failed here.
    journal::catch_up(app, None).await?;
    Ok(outcome)
}

/// Learns what was withdrawn, here or on other instances.
pub async fn refresh(app: &App) -> Result<(), StoreError> {
    for batch in app.chain.refresh_withdrawals().await? {
        tracing::info!(%batch, "a batch has lost an upload that was withdrawn");
        app.sealed.forget(batch).await;
    }
    Ok(())
}
