//! Auditing a batch: what the gateway says about it, and what holds of that (spec §5.7).
//!
//! [`Audited`] is what is kept beside a stored batch, so that it can be audited again without the gateway.
//! [`AuditReport`] is what an auditor finds, for people (its [`Display`](fmt::Display) is a table) and as JSON.

use std::{fmt, fs, path::Path};

use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use efgs_protocol::{
    anchor::TrustAnchor,
    audit::{AuditEntry, Failure, Verdict, verify_batch},
    certificate::{Certificate, Thumbprint},
    country::Country,
    key::KeyBatch,
    signature::{SignatureError, SignaturePolicy},
};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Gateway,
    download::{ChainError, Stored, StoredError, Tag},
};

/// Against what a batch is audited.
#[derive(Clone, Debug)]
pub struct Auditor {
    /// The country that downloads: its own uploads are not in its batches.
    pub country: Country,
    /// The operator's trust anchor, which must come from somewhere else than the gateway.
    pub anchor: TrustAnchor,
    /// What is tolerated in the batch signatures.
    pub policy: SignaturePolicy,
}

/// A batch's audit entries, as they are kept beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Audited {
    /// The batch.
    pub batch_tag: String,
    /// The UTC day on which it was formed.
    pub date: NaiveDate,
    /// The country that downloaded it.
    pub country: Country,
    /// How many uploads had been taken out of it.
    pub withdrawn_uploads: u32,
    /// One entry for each upload.
    pub uploads: Vec<AuditEntry>,
}

/// Why the audit of a stored batch cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The batch or the audit beside it cannot be read.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// The gateway did not answer, or said no.
    #[error(transparent)]
    Gateway(#[from] Error),
    /// The gateway answered with another batch.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// There is no such batch.
    #[error("the gateway has no batch {0} on or after {1}")]
    NoBatch(String, NaiveDate),
}

/// What an auditor finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditReport {
    /// The batch.
    pub batch_tag: String,
    /// The UTC day on which it was formed.
    pub date: NaiveDate,
    /// How many keys were downloaded.
    pub keys: usize,
    /// How many uploads had been taken out of it.
    pub withdrawn_uploads: u32,
    /// Whether all of it holds.
    pub holds: bool,
    /// What is wrong with the batch as a whole, so that nothing can be said of its uploads.
    pub problem: Option<String>,
    /// What is found about each upload, in the order of the keys.
    pub uploads: Vec<UploadReport>,
}

/// What an auditor finds about one upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadReport {
    /// The country that uploaded.
    pub country: Country,
    /// How many keys.
    pub amount: u32,
    /// Where its keys begin in the download, counted from 0. `None` for the caller's own uploads, whose keys
    /// are not in it: of them only the certificates and the time are checked.
    pub first_key: Option<usize>,
    /// When it was stored, as the gateway says. Nobody signs it: see
    /// [`verify_batch`] for what is certain of it.
    pub uploaded_time: DateTime<Utc>,
    /// The subject of the signing certificate; empty when that cannot be read.
    pub signer: String,
    /// The thumbprint of the signing certificate.
    pub signer_thumbprint: Thumbprint,
    /// The thumbprint of the certificate with which it was uploaded.
    pub uploader_thumbprint: Thumbprint,
    /// Whether the operator has signed both certificates.
    pub vouched_for: bool,
    /// Whether the batch signature uses SHA-1, which was allowed.
    pub used_sha1: bool,
    /// Everything that is wrong; empty when the upload holds.
    pub failures: Vec<String>,
}

impl Auditor {
    /// Audits the keys of a batch against its audit entries.
    pub fn audit(&self, audited: &Audited, keys: &KeyBatch) -> AuditReport {
        let mut report = AuditReport::about(&audited.batch_tag, audited.date);
        report.keys = keys.len();
        report.withdrawn_uploads = audited.withdrawn_uploads;
        // Names of another form tell no time.
        let batch = audited.batch_tag.parse().ok();
        match verify_batch(&audited.uploads, keys, batch, self.country, &self.anchor, self.policy) {
            Ok(verdicts) => {
                report.holds = verdicts.iter().all(Verdict::holds);
                report.uploads = audited.uploads.iter().zip(verdicts).map(UploadReport::new).collect();
            }
            Err(error) => report.problem = Some(error.to_string()),
        }
        report
    }

    /// Audits a stored batch with what is kept beside it, without the gateway.
    ///
    /// # Errors
    /// When one of the two files is missing or cannot be read.
    pub fn audit_stored(&self, batch: &Stored) -> Result<AuditReport, AuditError> {
        let audited = Audited::read(&batch.audit_path())?;
        let mut report = self.audit(&audited, &batch.keys()?);
        if (audited.batch_tag.as_str(), audited.date) != (batch.batch_tag.as_str(), batch.date) {
            report.spoil(format!(
                "the audit beside the batch is about {} of {}",
                escaped(&audited.batch_tag),
                audited.date
            ));
        }
        Ok(report)
    }

    /// Downloads a batch and audits it, without keeping it.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     gateway: efgs_client::Gateway, auditor: efgs_client::audit::Auditor,
    /// # ) -> Result<(), efgs_client::audit::AuditError> {
    /// let date = chrono::NaiveDate::from_ymd_opt(2026, 11, 22).unwrap_or_default();
    /// let report = auditor.audit_online(&gateway, date, "20261122-1").await?;
    /// println!("{report}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the gateway cannot be asked, or has no such batch. What does not verify is no error here: see
    /// [`AuditReport::holds`].
    pub async fn audit_online(
        &self,
        gateway: &Gateway,
        date: NaiveDate,
        tag: &str,
    ) -> Result<AuditReport, AuditError> {
        let no_batch = || AuditError::NoBatch(tag.to_owned(), date);
        let asked = Tag::new(tag).map_err(|_| no_batch())?;
        let download =
            gateway.download(date, Some(tag), crate::Format::Protobuf).await?.ok_or_else(no_batch)?;
        let answered = Tag::new(&download.batch_tag)?;
        asked.check_answer(&answered)?;
        let answer = gateway.ask_audit(date, tag).await?;
        let uploads = answer.entries().map_err(|e| Error::Unexpected(e.to_string()))?;
        let audited = Audited {
            batch_tag: download.batch_tag,
            date: asked.date().unwrap_or(date),
            country: self.country,
            withdrawn_uploads: answer.withdrawn,
            uploads,
        };
        Ok(self.audit(&audited, &download.keys))
    }
}

impl Audited {
    /// Reads what is kept beside a batch.
    ///
    /// # Errors
    /// When the file is missing or not an audit.
    pub fn read(path: &Path) -> Result<Self, StoredError> {
        let shown = path.display();
        let bytes = fs::read(path).map_err(|e| StoredError(format!("cannot read the audit {shown}: {e}")))?;
        serde_json::from_slice(&bytes)
            .map_err(|e| StoredError(format!("{shown} is not an audit of a batch: {e}")))
    }
}

impl AuditReport {
    /// A report about a batch of which nothing is known yet; it does not hold.
    pub(crate) fn about(batch_tag: &str, date: NaiveDate) -> Self {
        Self {
            batch_tag: escaped(batch_tag),
            date,
            keys: 0,
            withdrawn_uploads: 0,
            holds: false,
            problem: None,
            uploads: Vec::new(),
        }
    }

    /// Says that the batch as a whole does not hold, and why.
    pub(crate) fn spoil(&mut self, problem: String) {
        self.holds = false;
        self.problem = Some(problem);
    }

    /// The first thing that is wrong, in one line; `None` when the batch holds.
    pub fn first_failure(&self) -> Option<String> {
        self.problem.clone().or_else(|| {
            let (position, upload) =
                self.uploads.iter().enumerate().find(|(_, upload)| !upload.failures.is_empty())?;
            let UploadReport { country, amount, failures, .. } = upload;
            Some(format!("upload {} ({amount} keys of {country}): {}", position + 1, failures.first()?))
        })
    }
}

impl UploadReport {
    fn new((entry, verdict): (&AuditEntry, Verdict)) -> Self {
        let signer = Certificate::from_pem(&entry.signing_certificate);
        Self {
            country: entry.country,
            amount: entry.amount,
            first_key: verdict.keys.as_ref().map(|keys| keys.start),
            uploaded_time: entry.uploaded_time,
            signer: signer.map(|signer| escaped(signer.subject())).unwrap_or_default(),
            signer_thumbprint: entry.uploader_signing_thumbprint,
            uploader_thumbprint: entry.uploader_thumbprint,
            vouched_for: !verdict.failures.iter().any(|f| matches!(f, Failure::NotVouchedFor { .. })),
            used_sha1: verdict.used_sha1,
            failures: verdict.failures.iter().map(explained).collect(),
        }
    }

    /// What the table says.
    fn verdict(&self) -> &'static str {
        match (self.failures.is_empty(), self.first_key, self.used_sha1) {
            (false, ..) => "FAILED",
            (true, None, _) => "own",
            (true, Some(_), true) => "ok, SHA-1",
            (true, Some(_), false) => "ok",
        }
    }
}

/// A failure, with the remedy where there is one.
fn explained(failure: &Failure) -> String {
    let text = escaped(&failure.to_string());
    match failure {
        Failure::Signature(SignatureError::WeakHash("SHA-1")) => {
            format!("{text} (allow_sha1 accepts it, for countries to which the operator has granted it)")
        }
        _ => text,
    }
}

/// Escapes control characters in a text from outside, so that it is safe to print.
fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch_tag, date, keys, .. } = self;
        let verdict = if self.holds { "verified" } else { "DOES NOT VERIFY" };
        write!(f, "batch {batch_tag} of {date}: {keys} keys, {} uploads", self.uploads.len())?;
        if self.withdrawn_uploads > 0 {
            write!(f, ", {} withdrawn", self.withdrawn_uploads)?;
        }
        writeln!(f, ": {verdict}")?;
        if let Some(problem) = &self.problem {
            writeln!(f, "  {problem}")?;
        }
        if self.uploads.is_empty() {
            return Ok(());
        }
        let width = self.uploads.len().to_string().len();
        writeln!(
            f,
            "{:width$}  country  keys    uploaded              thumbprint    operator  verdict    signer",
            ""
        )?;
        for (number, upload) in (1..).zip(&self.uploads) {
            let country = upload.country.as_str();
            let time = upload.uploaded_time.to_rfc3339_opts(SecondsFormat::Secs, true);
            let thumbprint = upload.signer_thumbprint.to_string();
            let operator = if upload.vouched_for { "ok" } else { "NO" };
            let line = format!(
                "{number:<width$}  {country:7}  {:<6}  {time:20}  {thumbprint:.12}  {operator:8}  {:9}  {}",
                upload.amount,
                upload.verdict(),
                upload.signer
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        for (position, upload) in self.uploads.iter().enumerate() {
            for failure in &upload.failures {
                writeln!(f, "  upload {}, {}: {failure}", position + 1, upload.country)?;
            }
        }
        Ok(())
    }
}
