//! What an auditor may see of a batch (spec §5.7).

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use chrono::NaiveDate;
use efgs_protocol::{audit::AuditEntry, batch_tag::BatchTag, certificate::Thumbprint, country::Country};

use crate::{
    access_log,
    body_cache::BodyCache,
    chain::{self, Chain, ChainError},
    http::{Code, Defect, Error, ErrorBody, Problem, reply},
    limits::Limits,
    store::{AuditRow, BatchRecord, Store},
    trust::Reader,
    workers::Workers,
};

/// What audits need.
#[derive(Clone, Debug)]
pub struct Audits {
    /// The batches.
    pub chain: Arc<Chain>,
    /// The uploads in them.
    pub store: Store,
    /// The bodies of audits.
    pub body_cache: BodyCache,
    /// The limits of each country.
    pub limits: Arc<Limits>,
    /// The threads that process requests.
    pub workers: Workers,
}

/// Why an audit is refused, in addition to [`ChainError`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// The batch was formed before the requested date.
    #[error("the batch was formed on {formed}, before {date}")]
    BeforeDate {
        /// The batch's day.
        formed: NaiveDate,
        /// The requested date.
        date: NaiveDate,
    },
}

impl Problem for AuditError {
    fn code(&self) -> Code {
        match self {
            Self::BeforeDate { .. } => Code::BatchNotFound,
        }
    }
}

/// Tells who uploaded and who signed what is in a batch (spec §5.7.2).
///
/// One entry per upload. The entries of the other countries come in the order of their keys in the download,
/// so that walking them with their `amount` cuts the downloaded keys exactly; the caller's own, which are not
/// in its download, come last. Each part verifies under its `batchSignature`; each certificate under its
/// operator signature.
#[utoipa::path(
    get,
    path = "/diagnosiskeys/audit/download/{date}/{batchTag}",
    tag = "audit",
    params(
        ("date" = String, Path, description = "A UTC date, yyyy-MM-dd, at most 14 days ago and not after the batch's day.", example = "2026-11-22"),
        ("batchTag" = String, Path, description = "The batch: its ObjectId or its name yyyyMMdd-N.", example = "20261122-1"),
    ),
    responses(
        (status = 200, description = "One entry per upload.", headers(("withdrawnUploads" = u32, description = "How many uploads of the batch were withdrawn; they have no entry.")), body = Vec<AuditEntry>, content_type = "application/json", example = json!(crate::http::schema::example_audit())),
        (status = 400, description = "The date is not a date.", body = ErrorBody, content_type = "application/json", example = json!({"message": "the date \"22.11.2026\" is not of the form yyyy-MM-dd", "code": "invalid-date"})),
        (status = 404, description = "There is no such batch, or it was formed before the date.", body = ErrorBody, content_type = "application/json", example = json!({"message": "there is no batch with this tag", "code": "batch-not-found"})),
        (status = 410, response = crate::http::schema::Gone),
    )
)]
pub async fn audit(
    Reader(caller): Reader,
    request: HttpRequest,
    path: web::Path<(String, String)>,
    state: web::Data<Audits>,
) -> Result<HttpResponse, Error> {
    let (date, tag) = path.into_inner();
    access_log::note(&request, |facts| facts.date = chain::parse_date(&date));
    let date = state.chain.date(&date)?;
    let tag: BatchTag = tag.parse().map_err(|_| ChainError::Unknown)?;
    access_log::note(&request, |facts| facts.tag = Some(tag.to_string()));
    let link = match state.chain.find(caller.country, date, Some(tag)).await? {
        Err(ChainError::BeforeDate { formed, date }) => {
            return Err(AuditError::BeforeDate { formed, date }.into());
        }
        found => found?,
    };
    access_log::note(&request, |facts| facts.tag = Some(link.batch.id.to_string()));
    let batch = link.batch;
    let (limits, store, wanted) = (state.limits.clone(), state.store.clone(), batch.clone());
    let build = async {
        let building = async move {
            let _permit = limits.to_read(caller.country).await?;
            body(&wanted, caller.country, store.audit_rows(wanted.id).await?)
        };
        state.workers.run(building).await?
    };
    let body = state.body_cache.audit(&batch, caller.country, build).await?;
    Ok(reply::audit(body, batch.withdrawn))
}

fn body(batch: &BatchRecord, caller: Country, mut rows: Vec<AuditRow>) -> Result<Bytes, Error> {
    // The audit must match what this instance serves as the download: an upload may have been withdrawn
    // meanwhile.
    rows.retain(|row| batch.uploads.iter().any(|upload| upload.id == row.upload_id));
    let (own, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.country == caller.as_str());
    let entries: Result<Vec<AuditEntry>, Defect> = others.into_iter().chain(own).map(entry).collect();
    Ok(serde_json::to_vec(&entries?).map_err(|error| Defect(error.to_string()))?.into())
}

fn entry(row: AuditRow) -> Result<AuditEntry, Defect> {
    let corrupt =
        || Defect(format!("upload {} has a malformed country or thumbprint in the database", row.upload_id));
    let thumbprint = |bytes: &[u8]| bytes.try_into().map(Thumbprint::from_bytes).map_err(|_| corrupt());
    Ok(AuditEntry {
        country: Country::new(&row.country).map_err(|_| corrupt())?,
        uploaded_time: row.uploaded_at,
        uploader_thumbprint: thumbprint(&row.uploader_thumbprint)?,
        uploader_signing_thumbprint: thumbprint(&row.signing_thumbprint)?,
        uploader_certificate: row.uploader_certificate,
        uploader_operator_signature: row.uploader_operator_signature,
        signing_certificate: row.signing_certificate,
        signing_certificate_operator_signature: row.signing_operator_signature,
        amount: row.amount,
        batch_signature: row.batch_signature,
    })
}
