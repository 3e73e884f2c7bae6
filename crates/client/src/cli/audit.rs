//! `efgs audit`: who uploaded and who signed the keys of a batch, and whether they verify.

use std::path::{Path, PathBuf};

use chrono::NaiveDate;
use clap::Args;
use serde_json::json;

use super::{
    Context, Outcome,
    output::{Exit, ExitError, clean},
};
use crate::{
    audit::{AuditError, AuditReport},
    download::Stored,
};

/// Audit a batch: who uploaded, who signed, and whether everything verifies
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs audit 2026-11-22 20261122-1\n  efgs audit --stored batches\n\nExit code 3 when verification fails.",
    after_long_help = "Example:\n  efgs audit 2026-11-22 20261122-1\n  efgs audit --stored batches\n\n\
        It fetches the batch and its audit from the gateway. With --stored it audits batches that `efgs download` has stored, without the gateway. The uploads are listed in the order of their keys. `operator` says whether the trust anchor has signed the uploader's and the signer's certificate, as of the time of the upload. The keys of the country's own uploads are not in its downloads, so only their certificates and their time are checked. `uploaded` is the time that the gateway reports. It is only verified that the keys could be uploaded at that time, and that it is not after the batch.\n\n\
        Exit codes: 0 everything verifies; 1 it failed, or a stored batch cannot be read (the others are still audited); 3 verification failed; 5 temporary failure, run it again."
)]
pub(super) struct AuditArgs {
    /// The day of the batch, or an earlier one
    #[arg(value_name = "DATE", required_unless_present = "stored")]
    date: Option<NaiveDate>,
    /// The batch tag
    #[arg(value_name = "TAG", required_unless_present = "stored")]
    tag: Option<String>,
    /// Stored batches of `efgs download`, or folders of them; the gateway is not called
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

fn batches(path: &Path) -> Result<Vec<Stored>, ExitError> {
    let read =
        if path.is_dir() { Stored::batches(path) } else { Stored::open(path).map(|batch| vec![batch]) };
    let batches = read.map_err(|error| failure(error.into()))?;
    if batches.is_empty() {
        let text = format!("there is no batch in {}: is it a folder of `efgs download`?", path.display());
        return Err(ExitError::new(Exit::Failed, text));
    }
    Ok(batches)
}

/// Reports a batch that cannot be audited. The others are still audited.
fn unreadable(context: &Context, batch: &Stored, error: &AuditError) -> Outcome {
    context.console.fail(error);
    if !context.console.wants_json() {
        return Ok(Exit::Failed);
    }
    let json = json!({"batchTag": batch.batch_tag, "date": batch.date, "error": error.to_string()});
    context.console.json(&json)
}

fn show(context: &Context, report: &AuditReport) -> Outcome {
    context.console.result(report, clean(report.to_string().trim_end()))?;
    Ok(if report.holds { Exit::Done } else { Exit::Unverified })
}

fn failure(error: AuditError) -> ExitError {
    let exit = match &error {
        AuditError::Chain(_) => Exit::Unverified,
        AuditError::Gateway(error) if error.is_temporary() => Exit::Later,
        _ => Exit::Failed,
    };
    ExitError::new(exit, error)
}
