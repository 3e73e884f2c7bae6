//! `efgs withdraw`: withdraws an upload.

use clap::Args;
use efgs_protocol::batch_tag::UploadTag;
use serde_json::json;

use super::{Context, Outcome};

/// Withdraw an upload: later downloads omit its keys
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs withdraw nl-2026-11-22-1\n\nThe tags of uploads are in upload.journal in the state folder. The tag and the keys cannot be uploaded again until they expire. Repeating the command has no further effect."
)]
pub(super) struct WithdrawArgs {
    /// The tag of the upload
    tag: UploadTag,
    /// Withdraw nothing; only check that the gateway accepts this backend
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(context: &Context, WithdrawArgs { tag, dry_run }: &WithdrawArgs) -> Outcome {
    let profile = context.profile()?;
    let gateway = profile.gateway()?;
    if *dry_run {
        // Any call without an effect.
        gateway.callbacks().await?;
    } else if !gateway.withdraw(tag).await? {
        let country = profile.country();
        return Err(format!(
            "the gateway has no upload {tag} of {country}; upload.journal in the state folder has the tags"
        )
        .into());
    }
    let would = if *dry_run { "would be " } else { "" };
    context
        .console
        .result(&json!({"tag": tag.as_str(), "dryRun": dry_run}), format_args!("{tag} {would}withdrawn"))
}
