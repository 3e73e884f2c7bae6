//! `journal …`: lists, verifies, replays and backfills the journal.

use std::{
    io::Write,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};

use super::{ConfigFile, Outcome, clean, open, open_current, say};
use crate::journal::{self, Contents, Progress};

#[derive(Debug, Subcommand)]
pub(super) enum JournalCommand {
    /// Show the journal's files, and which encryption keys they need
    #[command(after_help = "Example:\n  efgs-gateway journal list --config efgs.toml")]
    List(ReadArgs),
    /// Verify that nothing is altered or missing, and verify every signature
    #[command(
        after_help = "Example:\n  efgs-gateway journal verify --config efgs.toml\n\nNeeds no database. Reports each problem, and exits with 1 if there is one. Every upload is checked as on arrival: its keys, its batch signature, its signer's registration by the trust anchor."
    )]
    Verify(ReadArgs),
    /// Fill an empty database with the same uploads, batches and tags
    #[command(
        after_help = "Example:\n  efgs-gateway journal replay --config efgs.toml --from /backup/journal\n\nVerifies while it replays. If it is interrupted, run it again: it resumes. No gateway starts on the database until it has finished."
    )]
    Replay(ReplayArgs),
    /// Write everything that the database holds to the journal
    #[command(
        after_help = "Example:\n  efgs-gateway journal backfill --config efgs.toml\n\nUse it after the journal was switched on, or had been off for a while. Running gateways write it within minutes."
    )]
    Backfill(BackfillArgs),
}

#[derive(Debug, Args)]
pub(super) struct ReadArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// A folder with a journal's files, instead of the configured one
    #[arg(long, value_name = "FOLDER")]
    from: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Skip what is damaged or missing, and restore the rest
    #[arg(long)]
    accept_losses: bool,
}

#[derive(Debug, Args)]
pub(super) struct BackfillArgs {
    #[command(flatten)]
    file: ConfigFile,
}

pub(super) async fn run(command: JournalCommand) -> Outcome {
    match command {
        JournalCommand::List(args) => list(&args).await,
        JournalCommand::Verify(args) => verify(&args).await,
        JournalCommand::Replay(args) => replay(&args).await,
        JournalCommand::Backfill(args) => backfill(&args).await,
    }
}

async fn list(args: &ReadArgs) -> Outcome {
    let app = open(&args.file.config)?;
    let contents = Contents::survey(&app.sources, args.from.as_deref()).await?;
    if args.json {
        return say(serde_json::json!({ "files": contents.segments }));
    }
    say(format!(
        "{:<44} {:>12} {:>8} {:>9}  {:<10} STATE",
        "FILE", "BYTES", "UPLOADS", "KEYS", "ENCRYPTION"
    ))?;
    for file in &contents.segments {
        let ids: Vec<_> = file.encryption_keys.iter().map(u32::to_string).collect();
        let state = match (file.closed, file.torn_bytes) {
            (true, _) => "closed".to_owned(),
            (false, 0) => "open".to_owned(),
            (false, torn) => format!("cut off, {torn} bytes were not complete"),
        };
        let (bytes, uploads, keys) = (file.bytes, file.uploads, file.keys);
        let name = clean(&file.name);
        say(format!("{name:<44} {bytes:>12} {uploads:>8} {keys:>9}  {:<10} {state}", ids.join(",")))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn verify(args: &ReadArgs) -> Outcome {
    let app = open(&args.file.config)?;
    let mut contents = Contents::survey(&app.sources, args.from.as_deref()).await?;
    let done = contents.verify(&app.sources, args.from.as_deref(), reporter("verified")).await?;
    let (batches, withdrawals, certificates) = contents.counts();
    let good = contents.problems.is_empty();
    if args.json {
        say(serde_json::json!({
            "files": contents.segments.len(), "uploads": done.uploads, "keys": done.keys, "batches": batches,
            "withdrawals": withdrawals, "certificates": certificates, "problems": contents.problems,
            "notes": contents.notes,
        }))?;
    } else {
        for problem in &contents.problems {
            say(format!("PROBLEM  {}", clean(problem)))?;
        }
        for note in &contents.notes {
            say(format!("note     {}", clean(note)))?;
        }
        let problems = contents.problems.len();
        let files = contents.segments.len();
        say(format!(
            "{files} files: {} uploads with {} keys verified, {batches} batches, {withdrawals} withdrawals, \
             {certificates} certificates; {}",
            done.uploads,
            done.keys,
            if good { "no problems".to_owned() } else { format!("{problems} problems") }
        ))?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn replay(args: &ReplayArgs) -> Outcome {
    let app = open_current(&args.read.file.config).await?;
    let begun = Instant::now();
    let from = args.read.from.as_deref();
    let done = journal::replay(&app.sources, from, args.accept_losses, reporter("replayed")).await?;
    if args.read.json {
        return say(serde_json::to_value(&done)?);
    }
    for loss in &done.losses {
        say(format!("LOST  {}", clean(loss)))?;
    }
    say(format!(
        "{} uploads with {} keys, {} batches, {} withdrawals and {} certificates are in the database, after {:.1} s",
        done.uploads,
        done.keys,
        done.batches,
        done.withdrawals,
        done.certificates,
        begun.elapsed().as_secs_f64()
    ))?;
    if done.to_journal {
        say("everything will also be written to the configured journal by running gateways")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn backfill(args: &BackfillArgs) -> Outcome {
    let app = open_current(&args.file.config).await?;
    if app.config.journal.is_none() {
        return Err("`[journal]` is not set in the configuration: there is nothing to write to".into());
    }
    let rows = app.store.journal_everything().await?;
    say(format!("{rows} uploads, batches and withdrawals will be written by running gateways"))
}

/// Prints the progress on standard error every few seconds.
fn reporter(verb: &'static str) -> impl FnMut(Progress) {
    const PACE: Duration = Duration::from_secs(2);
    let mut last = Instant::now();
    move |progress| {
        if last.elapsed() >= PACE {
            last = Instant::now();
            let Progress { uploads, of, keys } = progress;
            // Nothing is left to do when standard error is closed.
            drop(writeln!(std::io::stderr(), "{verb} {uploads} of {of} uploads, {keys} keys"));
        }
    }
}
