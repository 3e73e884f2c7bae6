//! Where batches go that do not verify: with all that is needed to show it to others.

use std::{
    fs,
    path::{Path, PathBuf},
};

use chrono::NaiveDate;
use serde::Serialize;

use super::stored;
use crate::{
    audit::AuditReport,
    fetch::{AuditAnswer, Body},
    state::{self, StateError},
};

/// A batch that does not verify.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quarantined {
    /// Its batch tag.
    pub batch_tag: String,
    /// The UTC day on which it was formed.
    pub date: NaiveDate,
    /// What is wrong, in one line; the report has all of it.
    pub reason: String,
    /// Where it lies: the keys and the audit as the gateway sent them, and the report as text and as JSON. `None` in a
    /// dry run, which puts nothing aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
}

impl Quarantined {
    pub(super) fn new(report: &AuditReport, folder: Option<PathBuf>) -> Self {
        Self {
            batch_tag: report.batch_tag.clone(),
            date: report.date,
            reason: report.first_failure().unwrap_or_default(),
            folder,
        }
    }
}

/// Puts a batch aside.
pub(super) fn put_aside(
    folder: &Path,
    report: &AuditReport,
    body: &Body,
    audit: &AuditAnswer,
) -> Result<Quarantined, StateError> {
    fs::create_dir_all(folder).map_err(StateError::io(folder))?;
    let json = serde_json::to_vec_pretty(report).map_err(|e| StateError::io(folder)(e.into()))?;
    for (name, content) in [
        (&*format!("batch.{}", stored::extension(body.format)), &body.bytes),
        ("audit.json", &audit.bytes),
        ("report.json", &json),
        ("report.txt", &report.to_string().into_bytes()),
    ] {
        state::replace(&folder.join(name), content)?;
    }
    Ok(Quarantined::new(report, Some(folder.to_owned())))
}

/// Marks a batch that was put aside and has verified since. What the gateway had sent before is kept.
pub(super) fn resolve(folder: &Path) -> Result<(), StateError> {
    if !folder.exists() {
        return Ok(());
    }
    let resolved = folder.with_added_extension("resolved");
    if resolved.exists() {
        fs::remove_dir_all(&resolved).map_err(StateError::io(&resolved))?;
    }
    fs::rename(folder, &resolved).map_err(StateError::io(folder))
}
