//! `efgs audit`: who uploaded and who signed what is in a batch, and whether it holds.

use std::path::{Path, PathBuf};

use chrono::NaiveDate;
use clap::Args;

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
        The batch and its audit are fetched from the gateway; with --stored, what `efgs download` has stored is audited again without the gateway. The uploads stand in the order of their keys; `operator` says whether the trust anchor vouches for the uploader's and the signer's certificate, as of the time of the upload. Of the country's own uploads, whose keys are not in its downloads, only the certificates are checked.\n\n\
        Exit codes: 0 everything verifies; 1 it failed; 3 something does not verify; 5 not now, run it again."
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
        for batch in batches(path).map_err(failure)? {
            let report = auditor.audit_stored(&batch).map_err(failure)?;
            if show(context, &report)? == Exit::Unverified {
                exit = Exit::Unverified;
            }
        }
    }
    Ok(exit)
}

fn batches(path: &Path) -> Result<Vec<Stored>, AuditError> {
    Ok(if path.is_dir() { Stored::batches(path)? } else { vec![Stored::open(path)?] })
}

fn show(context: &Context, report: &Report) -> Outcome {
    context.console.result(report, clean(report.to_string().trim_end()))?;
    Ok(if report.holds { Exit::Done } else { Exit::Unverified })
}

fn failure(error: AuditError) -> Failure {
    let exit = match &error {
        AuditError::Gateway(error) if error.is_temporary() => Exit::Later,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}
