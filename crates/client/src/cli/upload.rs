//! `efgs upload`.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use clap::{Args, value_parser};
use efgs_protocol::clock::Clock;

use super::{
    Context, Outcome,
    gaen::GaenArgs,
    output::{Console, Exit, ExitError, clean},
    stop::stoppable,
};
use crate::{
    gaen::ReadError,
    source::{Source, SourceError, SourceProblem},
    state::StateError,
    upload::{
        Counts, FileReport, Progress, RunOutcome, RunReport, UploadError, UploadEvent, UploadOptions,
        Uploader,
    },
};

const AGAIN: &str = "run the same command again: stored keys are not sent again";

/// Sign and upload diagnosis keys
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs upload outbox/*.json\n  cat keys.ndjson | efgs upload -\n  efgs upload --gaen-key publisher.pem --visited DE,FR export.zip",
    after_long_help = "Example:\n  efgs upload outbox/*.json\n  cat keys.ndjson | efgs upload -\n  efgs upload --gaen-key publisher.pem --visited DE,FR export.zip\n\n\
        Files are recognised by their content: a batch as JSON ({\"keys\":[...]}) or in protobuf, a key as JSON on each line, or a GAEN export zip.\n\n\
        It reads and checks everything before it sends anything. Running it again, also with more files or after it was killed, sends nothing twice: the state folder and the gateway know what was stored. The file upload.journal in the state folder has the tags of all uploads.\n\n\
        Exit codes: 0 the gateway has every key that is not too old; 1 keys are invalid and nothing was sent, or the gateway rejected an upload; 3 the signature of a GAEN export does not verify; 4 done except for single keys or uploads, which are reported; 5 temporary failure, run it again."
)]
pub(super) struct UploadArgs {
    /// The files; - is the standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Skip invalid keys instead of sending nothing
    #[arg(long)]
    skip_invalid: bool,
    /// Do everything except sending
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    gaen: GaenArgs,
    /// Maximum number of keys in one upload
    #[arg(long, value_name = "KEYS", default_value_t = 5000, value_parser = value_parser!(u32).range(1..))]
    max_keys: u32,
    /// Maximum size of one upload in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 10 << 20)]
    max_bytes: usize,
    /// Maximum number of concurrent uploads
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u8).range(1..=4))]
    concurrency: u8,
    /// How often to retry a call after a temporary failure
    #[arg(long, value_name = "N", default_value_t = 8)]
    retries: u32,
}

pub(super) async fn run(context: &Context, args: UploadArgs) -> Outcome {
    let profile = context.profile()?;
    let mut options = UploadOptions::new(profile.country());
    options.max_keys = args.max_keys as usize;
    options.max_bytes = args.max_bytes;
    options.concurrency = args.concurrency.into();
    options.skip_invalid = args.skip_invalid;
    options.dry_run = args.dry_run;
    options.retry.limit = args.retries;
    options.gaen = args.gaen.defaults(profile.country())?;
    let uploader = Uploader {
        gateway: &profile.gateway()?,
        signer: &profile.signer()?,
        state: &profile.state(),
        clock: Clock::system(),
        options,
    };
    let sources = args.files.into_iter().map(|file| match file.as_os_str() == "-" {
        true => Source::reader("standard input", io::stdin()),
        false => Source::file(file),
    });
    let progress = progress(context.console);
    let run = stoppable(async |stop| uploader.run(sources.collect(), &stop, progress).await);
    let Some(report) = run.await? else {
        return Err(ExitError::new(Exit::Later, format!("stopped; {AGAIN}")).into());
    };
    let report = report.map_err(failure)?;
    context.console.result(&report, text(&report))?;
    end(&report)
}

/// One bar while reading, one while sending.
fn progress(console: Console) -> Arc<Progress> {
    let bar = console.progress(None, "keys");
    bar.set_message("reading");
    let bar = Mutex::new(bar);
    Arc::new(move |event| {
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            UploadEvent::Read { keys, .. } | UploadEvent::Sent { keys } => bar.inc(keys),
            UploadEvent::Ready { keys, .. } => {
                bar.finish_and_clear();
                *bar = console.progress(Some(keys), "keys");
                bar.set_message("sending");
            }
            UploadEvent::Waiting { error, wait } => {
                let seconds = wait.as_secs_f64();
                bar.suspend(|| console.note(format_args!("{error}; retrying in {seconds:.1} s")));
            }
        }
    })
}

fn failure(error: UploadError) -> ExitError {
    let exit = match &error {
        UploadError::State(StateError::InUse(_)) | UploadError::Stopped => Exit::Later,
        UploadError::Source(SourceError {
            problem: SourceProblem::Gaen(ReadError::NotVerified { .. }),
            ..
        }) => Exit::Unverified,
        _ => Exit::Failed,
    };
    ExitError::new(exit, error)
}

fn text(report: &RunReport) -> String {
    let mut lines: Vec<String> = Vec::new();
    for FileReport { name, keys, .. } in &report.files {
        lines.push(format!("{name}: {}", counts(keys, report.dry_run)));
    }
    if report.files.len() > 1 {
        lines.push(format!("total: {}", counts(&report.keys, report.dry_run)));
    }
    if report.dry_run {
        lines.push(format!("{} uploads would be sent", report.planned_uploads));
    }
    for invalid in &report.invalid {
        lines.push(format!("{}: key {}: {}", invalid.file, invalid.key, invalid.reason));
    }
    let unnamed = report.keys.invalid - report.invalid.len() as u64;
    if unnamed > 0 {
        lines.push(format!("and {unnamed} more invalid keys"));
    }
    for failed in &report.failed {
        lines.push(format!(
            "{}: an upload of {} keys failed: {} (tag {})",
            failed.file, failed.keys, failed.reason, failed.tag
        ));
    }
    clean(&lines.join("\n"))
}

fn counts(keys: &Counts, dry_run: bool) -> String {
    let mut parts = vec![format!("{} keys", keys.read)];
    let unsent = if dry_run { "would be sent" } else { "not sent" };
    for (amount, what) in [
        (keys.stored, "stored"),
        (keys.existing, "already stored by the gateway"),
        (keys.done_before, "sent by an earlier run"),
        (keys.repeated, "repeated"),
        (keys.too_old, "too old, left out"),
        (keys.invalid, "invalid"),
        (keys.unsent, unsent),
    ] {
        if amount > 0 {
            parts.push(format!("{amount} {what}"));
        }
    }
    parts.join(", ")
}

fn end(report: &RunReport) -> Outcome {
    let (exit, message) = match report.outcome {
        RunOutcome::Complete => return Ok(Exit::Done),
        RunOutcome::Partial => return Ok(Exit::Partly),
        RunOutcome::Invalid => (
            Exit::Failed,
            format!(
                "{} keys are invalid and nothing was sent: fix them, or skip them with --skip-invalid",
                report.keys.invalid
            ),
        ),
        RunOutcome::Refused => {
            (Exit::Failed, "the gateway rejected an upload; `efgs doctor` may find the cause".to_owned())
        }
        RunOutcome::Unanswered => (Exit::Later, format!("the gateway does not answer; {AGAIN}")),
        RunOutcome::Interrupted => (Exit::Later, format!("stopped; {AGAIN}")),
    };
    Err(ExitError::new(exit, message).into())
}
