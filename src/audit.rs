//! What an auditor may see of a batch (spec §5.7).

use std::{collections::HashMap, sync::Arc};

use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, web};
use bytes::{Buf as _, Bytes};
use chrono::NaiveDate;
use efgs_protocol::{
    audit::{AuditEntry, time_text},
    batch_tag::BatchTag,
    certificate::Thumbprint,
    country::Country,
};
use serde::Serialize;

use crate::{
    access_log,
    body_cache::{BodyCache, Segment, Segments},
    chain::{self, Chain, ChainError},
    http::{Code, Defect, Error, ErrorBody, Problem, reply},
    limits::{Admitted, Limits},
    store::{AuditRow, BatchRecord, Store},
    trust::Reader,
    workers::Workers,
};

/// Uploads that are read at once.
const PAGE: u32 = 100;

/// What audits need.
#[derive(Clone, Debug)]
pub struct Audits {
    /// The batches.
    pub chain: Arc<Chain>,
    /// The entries that are ready in memory.
    pub body_cache: BodyCache,
    /// The uploads in them.
    pub store: Store,
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
    let segments = state.body_cache.audit(&link.batch, state.build(caller.country, &link.batch)).await?;
    let body = assemble(&segments.all, caller.country);
    let bytes = body.iter().map(|piece| piece.len() as u64).sum();
    let held = state.limits.audit_memory(caller.country, bytes)?;
    let admitted: Option<Admitted> = request.extensions_mut().remove();
    Ok(reply::audit(body, link.batch.withdrawn, (admitted, held)))
}

impl Audits {
    /// Reads the entries of a batch, a page at a time.
    async fn build(&self, caller: Country, batch: &Arc<BatchRecord>) -> Result<Segments, Error> {
        let (limits, store, batch) = (self.limits.clone(), self.store.clone(), batch.clone());
        let read = async move {
            let _permit = limits.to_read(caller).await?;
            let mut entries = Entries::default();
            let mut after = i64::MIN;
            loop {
                let rows = store.audit_rows(batch.id, after, PAGE).await?;
                let is_last = rows.len() < PAGE as usize;
                for row in rows {
                    after = row.upload_id;
                    // The audit must match what this instance serves as the download: an upload may have been
                    // withdrawn meanwhile.
                    if batch.uploads.binary_search_by_key(&after, |upload| upload.id).is_ok() {
                        entries.add(row)?;
                    }
                }
                if is_last {
                    return Ok::<_, Error>(entries.finish());
                }
            }
        };
        self.workers.run(read).await?
    }
}

/// The entries of an audit as JSON. Each begins with a comma. The certificates, which are the larger part of an
/// ordinary entry, are the same in many entries and are kept once.
#[derive(Default)]
struct Entries {
    segments: Vec<Segment>,
    certificates: HashMap<String, Bytes>,
    memory: usize,
}

/// What differs between the entries of a country.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Own<'a> {
    country: Country,
    uploaded_time: String,
    uploader_thumbprint: Thumbprint,
    uploader_signing_thumbprint: Thumbprint,
    amount: u32,
    batch_signature: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Uploader<'a> {
    uploader_certificate: &'a str,
    uploader_operator_signature: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Signer<'a> {
    signing_certificate: &'a str,
    signing_certificate_operator_signature: &'a str,
}

impl Entries {
    fn add(&mut self, row: AuditRow) -> Result<(), Defect> {
        let corrupt = || {
            Defect(format!("upload {} has a malformed country or thumbprint in the database", row.upload_id))
        };
        let thumbprint = |bytes: &[u8]| bytes.try_into().map(Thumbprint::from_bytes).map_err(|_| corrupt());
        let country = Country::new(&row.country).map_err(|_| corrupt())?;
        let own = members(&Own {
            country,
            uploaded_time: time_text(&row.uploaded_at),
            uploader_thumbprint: thumbprint(&row.uploader_thumbprint)?,
            uploader_signing_thumbprint: thumbprint(&row.signing_thumbprint)?,
            amount: row.amount,
            batch_signature: &row.batch_signature,
        })?;
        let uploader = members(&Uploader {
            uploader_certificate: &row.uploader_certificate,
            uploader_operator_signature: &row.uploader_operator_signature,
        })?;
        let signer = members(&Signer {
            signing_certificate: &row.signing_certificate,
            signing_certificate_operator_signature: &row.signing_operator_signature,
        })?;
        let own = Bytes::from(format!(",{{{own}"));
        self.memory += own.len();
        let pieces = [own, self.shared(format!(",{uploader}")), self.shared(format!(",{signer}}}"))];
        self.segments.extend(pieces.map(|bytes| Segment { country, bytes }));
        Ok(())
    }

    /// The piece, which may have been in an earlier entry.
    fn shared(&mut self, text: String) -> Bytes {
        if let Some(known) = self.certificates.get(&text) {
            return known.clone();
        }
        let bytes = Bytes::from(text.clone());
        self.memory += bytes.len();
        self.certificates.insert(text, bytes.clone());
        bytes
    }

    fn finish(self) -> Segments {
        Segments { all: self.segments.into(), memory: self.memory }
    }
}

/// The members of an object in JSON, without its braces.
fn members(object: &impl Serialize) -> Result<String, Defect> {
    let text = serde_json::to_string(object).map_err(|error| Defect(error.to_string()))?;
    Ok(text[1..text.len() - 1].to_owned())
}

/// The array of all entries: first those of the other countries, then the caller's own.
fn assemble(segments: &[Segment], caller: Country) -> Vec<Bytes> {
    let pieces = |own: bool| segments.iter().filter(move |segment| (segment.country == caller) == own);
    let mut body: Vec<Bytes> = std::iter::once(Bytes::from_static(b"["))
        .chain(pieces(false).chain(pieces(true)).map(|segment| segment.bytes.clone()))
        .collect();
    if let Some(first) = body.get_mut(1) {
        // The comma.
        first.advance(1);
    }
    body.push(Bytes::from_static(b"]"));
    body
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn row(upload_id: i64, country: &str, signature: String) -> AuditRow {
        AuditRow {
            upload_id,
            country: country.to_owned(),
            uploaded_at: "2026-11-22T10:15:30.123456Z".parse().unwrap(),
            amount: upload_id as u32,
            batch_signature: signature,
            uploader_certificate: format!("{country}\n\"authentication\"\n"),
            uploader_thumbprint: vec![1; 32],
            uploader_operator_signature: "over it".to_owned(),
            signing_certificate: format!("{country}\nsigning\n").repeat(100),
            signing_thumbprint: vec![2; 32],
            signing_operator_signature: "over that".to_owned(),
        }
    }

    fn json(segments: &Segments, caller: &str) -> Vec<AuditEntry> {
        serde_json::from_slice(&assemble(&segments.all, caller.parse().unwrap()).concat()).unwrap()
    }

    #[test]
    fn the_pieces_are_the_entries_in_json_and_own_ones_come_last() {
        let none = Entries::default().finish();
        assert_eq!(json(&none, "DE"), []);
        let mut entries = Entries::default();
        for (id, country) in (1..).zip(["NL", "DE", "NL", "IT"]) {
            entries.add(row(id, country, format!("signature {id}"))).unwrap();
        }
        let segments = entries.finish();
        let order = |caller| json(&segments, caller).iter().map(|entry| entry.amount).collect::<Vec<_>>();
        assert_eq!(order("NL"), [2, 4, 1, 3]);
        assert_eq!(order("DE"), [1, 3, 4, 2]);
        assert_eq!(order("FR"), [1, 2, 3, 4]);
        let entry = json(&segments, "FR").remove(2);
        let expected = row(3, "NL", "signature 3".to_owned());
        assert_eq!(time_text(&entry.uploaded_time), "2026-11-22T10:15:30.123Z");
        assert_eq!(entry.uploader_certificate, expected.uploader_certificate);
        assert_eq!(entry.signing_certificate, expected.signing_certificate);
        assert_eq!(entry.batch_signature, "signature 3");
        assert_eq!(entry.uploader_thumbprint.as_bytes(), &[1; 32]);
        assert_eq!(entry.uploader_signing_thumbprint.as_bytes(), &[2; 32]);
    }

    #[test]
    fn certificates_are_kept_once() {
        let mut entries = Entries::default();
        for id in 0..1000 {
            entries.add(row(id, "DE", "s".repeat(1000))).unwrap();
        }
        let segments = entries.finish();
        assert_eq!(json(&segments, "NL").len(), 1000);
        let sent: usize = assemble(&segments.all, "NL".parse().unwrap()).iter().map(Bytes::len).sum();
        assert!(sent > 2_000_000 && segments.memory < 1_500_000, "{sent}, {}", segments.memory);
    }
}
