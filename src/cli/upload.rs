//! `upload …`: lists, shows and withdraws uploads.

use clap::{Args, Subcommand};
use efgs_protocol::country::Country;

use super::{ConfigFile, Outcome, clean, open_current, say};
use crate::store::{ListedUpload, Withdrawal, WithdrawnBy};

#[derive(Debug, Subcommand)]
pub(super) enum UploadCommand {
    /// Show the newest uploads
    List(ListArgs),
    /// Show one upload
    Show(ShowArgs),
    /// Withdraw an upload: later downloads omit its keys
    Withdraw(WithdrawArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  efgs-gateway upload list --config efgs.toml --country NL")]
pub(super) struct ListArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Only this country
    #[arg(long, value_name = "CC")]
    country: Option<Country>,
    /// Maximum number of uploads
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs-gateway upload show --config efgs.toml --country NL --tag 2026-11-22-1"
)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    which: Which,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs-gateway upload withdraw --config efgs.toml --country NL --tag 2026-11-22-1 --reason \"NL reports a false positive\"\n\nTakes effect on every running gateway within `trust.refresh`, and cannot be undone."
)]
pub(super) struct WithdrawArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    which: Which,
    /// The reason; recorded with the withdrawal
    #[arg(long)]
    reason: String,
}

#[derive(Debug, Args)]
struct Which {
    /// The country of the upload
    #[arg(long, value_name = "CC")]
    country: Country,
    /// The upload tag
    #[arg(long)]
    tag: String,
}

pub(super) async fn run(command: UploadCommand) -> Outcome {
    match command {
        UploadCommand::List(args) => {
            let app = open_current(&args.file.config).await?;
            let uploads = app.store.uploads(args.country, None, args.limit).await?;
            show(&uploads, args.json)
        }
        UploadCommand::Show(args) => {
            let app = open_current(&args.file.config).await?;
            let uploads = app.store.uploads(Some(args.which.country), Some(&args.which.tag), 1).await?;
            if uploads.is_empty() { Err(unknown(&args.which).into()) } else { show(&uploads, args.json) }
        }
        UploadCommand::Withdraw(args) => {
            let app = open_current(&args.file.config).await?;
            let Which { country, tag } = &args.which;
            match app.withdrawals.withdraw(*country, tag, WithdrawnBy::Operator, &args.reason).await? {
                Withdrawal::Done { .. } => say(format!("withdrawn: upload {} of {country}", clean(tag))),
                Withdrawal::Already => {
                    say(format!("was already withdrawn: upload {} of {country}", clean(tag)))
                }
                Withdrawal::Unknown => Err(unknown(&args.which).into()),
            }
        }
    }
}

fn unknown(which: &Which) -> String {
    format!(
        "{} has no upload with the tag {:?}; `efgs-gateway upload list --country {}` shows them",
        which.country, which.tag, which.country
    )
}

fn show(uploads: &[ListedUpload], json: bool) -> Outcome {
    if json {
        let rows: Vec<_> = uploads
            .iter()
            .map(|u| {
                serde_json::json!({
                    "country": u.country, "uploadTag": u.tag, "keys": u.amount, "uploadedAt": u.uploaded_at, "batch": u.batch,
                    "withdrawnAt": u.withdrawn.as_ref().map(|w| w.0), "withdrawnBy": u.withdrawn.as_ref().map(|w| &w.1),
                    "reason": u.withdrawn.as_ref().map(|w| &w.2),
                })
            })
            .collect();
        return say(serde_json::Value::from(rows));
    }
    say(format!("{:<3} {:<20} {:>6}  {:<24}  UPLOAD TAG", "CC", "UPLOADED (UTC)", "KEYS", "BATCH"))?;
    for u in uploads {
        let withdrawn = u.withdrawn.as_ref().map_or(String::new(), |(at, by, reason)| {
            format!("  withdrawn {} by {by}: {}", at.format("%Y-%m-%d %H:%M"), clean(reason))
        });
        let batch = u.batch.as_deref().unwrap_or("waits");
        say(format!(
            "{:<3} {:<20} {:>6}  {batch:<24}  {}{withdrawn}",
            u.country,
            u.uploaded_at.format("%Y-%m-%d %H:%M:%S"),
            u.amount,
            clean(&u.tag)
        ))?;
    }
    Ok(std::process::ExitCode::SUCCESS)
}
