//! `efgs audit`: who uploaded and who signed what is in a batch, and whether it holds.

use std::path::{Path, PathBuf};

use chrono::NaiveDate;
use clap::Args;
use serde_json::json;

use super::{
    Context, Outcome,
    output::{Exit, Failure, clean},
};
use crate::{
    audit::{AuditError, Report},
    download::Stored,
};

/// Audit a batch: who uploaded, who signed, and whether all of it verifies
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs audit 2026-11-22 20261122-1\n  efgs audit --stored batches\n\nExit code 3 when something does not verify.",
    after_long_help = "Example:\n  efgs audit 2026-11-22 20261122-1\n  efgs audit --stored batches\n\n\
        The batch and its audit are fetched from the gateway; with --stored, what `efgs download` has stored is audited again without the gateway. The uploads stand in the order of their keys; `operator` says whether the trust anchor vouches for the uploader's and the signer's certificate, as of the time of the upload. Of the country's own uploads, whose keys are not in its downloads, only the certificates and the time are checked. `uploaded` is the gateway's word: that the keys could be uploaded then, and not after the batch, is all that is certain of it.\n\n\
        Exit codes: 0 everything verifies; 1 it failed, or a stored batch cannot be read (the others are audited all the same); 3 something does not verify; 5 not now, run it again."
)]
pub(super) struct AuditArgs {
    /// The day of the batch, or an earlier one
    #[arg(value_name = "DATE", required_unless_present = "stored")]
    date: Option<NaiveDate>,
    /// The batch tag
    #[arg(value_name = "TAG", required_unless_present = "stored")]
    tag: Option<String>,
    /// Batches that were stored by `efgs download`, or folders of them; without the gateway
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with_all = ["date", "tag"])]
    stored: Vec<PathBuf>,
}

pub(super) async fn run(context: &Context, args: &AuditArgs) -> Outcome {
    let profile = context.profile()?;
    let auditor = profile.auditor()?;
    if let (Some(date), Some(tag)) = (args.date, &args.tag) {
        let report = auditor.audit_online(&profile.gateway()?, date, tag).await.map_err(failure)?;
        return show(context, &report);
    }
    let mut exit = Exit::Done;
    for path in &args.stored {
        for batch in batches(path)? {
            match auditor.audit_stored(&batch) {
                Ok(report) if show(context, &report)? == Exit::Unverified => exit = Exit::Unverified,
                Ok(_) => {}
                Err(error) => {
                    unreadable(context, &batch, &error)?;
                    if exit == Exit::Done {
                        exit = Exit::Failed;
                    }
                }
            }
        }
    }
    Ok(exit)
}

fn batches(path: &Path) -> Result<Vec<Stored>, Failure> {
    let read =
        if path.is_dir() { Stored::batches(path) } else { Stored::open(path).map(|batch| vec![batch]) };
    let batches = read.map_err(|error| failure(error.into()))?;
    if batches.is_empty() {
        let text = format!("there is no batch in {}: is it a folder of `efgs download`?", path.display());
        return Err(Failure::new(Exit::Failed, text));
    }
    Ok(batches)
}

/// Tells of a batch that cannot be audited; the others still are.
fn unreadable(context: &Context, batch: &Stored, error: &AuditError) -> Outcome {
    context.console.fail(error);
    if !context.console.wants_json() {
        return Ok(Exit::Failed);
    }
    let json = json!({"batchTag": batch.batch_tag, "date": batch.date, "error": error.to_string()});
    context.console.json(&json)
}

fn show(context: &Context, report: &Report) -> Outcome {
    context.console.result(report, clean(report.to_string().trim_end()))?;
    Ok(if report.holds { Exit::Done } else { Exit::Unverified })
}

fn failure(error: AuditError) -> Failure {
    let exit = match &error {
        AuditError::Chain(_) => Exit::Unverified,
        AuditError::Gateway(error) if error.is_temporary() => Exit::Later,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}
