//! `efgs download`: downloads and verifies every batch once.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::NaiveDate;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    Context, Outcome,
    output::{Console, Exit, ExitError},
    stop::stoppable,
};
use crate::{
    Format, Profile,
    download::{DownloadError, DownloadEvent, DownloadOptions, Downloader, Released, Target},
};

const EXAMPLE: &str =
    "Example:\n  efgs download --into batches\n  efgs download --follow --format ndjson | process-keys";

/// Download, verify and store all new batches
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLE,
    after_long_help = format!("{EXAMPLE}\n\n\
        It verifies each batch through the gateway's audit interface against the operator's trust anchor, and then stores it once: in a folder as one file with a name that sorts in the order of the chain, with its audit beside it as .audit.json. You can remove batches from the folder at any time. The state folder remembers the position of each target. After the process was killed, run it again: it resumes without a gap or a repetition. Only output to the standard output cannot be undone: a batch that was being written when the process was killed is written once more.\n\n\
        --dry-run fetches and verifies the same batches, and writes nothing, neither in the target nor in the state folder.\n\n\
        A batch that does not verify is stored with a report in the folder quarantine of the state folder, and the download stops before it. The next run retries it.\n\n\
        Exit codes: 0 all batches are stored; 1 it failed; 3 a batch does not verify, or the chain of batches cannot be followed; 4 all available batches are stored, but some had expired before they were fetched, or one was skipped with --continue-past; 5 temporary failure, run it again.")
)]
pub(super) struct DownloadArgs {
    /// Begin with the first batch formed on or after this day, unless the target is already further [default:
    /// the oldest that the gateway serves]
    #[arg(long, value_name = "DATE")]
    since: Option<NaiveDate>,
    /// Keep running and download new batches until stopped
    #[arg(long)]
    pub(super) follow: bool,
    /// With --follow: how often to poll for new batches
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "follow", value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,
    /// The folder, or with --format ndjson the file; - is the standard output [default: batches, beside the
    /// profile, or the standard output]
    #[arg(long, value_name = "PATH")]
    into: Option<PathBuf>,
    /// The format in which keys are stored
    #[arg(long, value_enum, default_value_t = StoredAs::Protobuf)]
    format: StoredAs,
    /// Skip this batch permanently if it does not verify, instead of stopping before it
    #[arg(long, value_name = "TAG")]
    continue_past: Option<String>,
    /// Do everything except storing: print which batches are new, how many keys they have and whether they verify
    #[arg(long)]
    dry_run: bool,
    /// How often to retry a call after a temporary failure
    #[arg(long, value_name = "N", default_value_t = 8)]
    retries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StoredAs {
    /// A file per batch, in protobuf
    Protobuf,
    /// A file per batch, in JSON
    Json,
    /// A line of JSON per key, with its batch tag and date
    Ndjson,
}

/// What was done, counted while it is done; printed as JSON in the end.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    event: &'static str,
    batches: AtomicU64,
    keys: AtomicU64,
    gaps: AtomicU64,
    left_out: AtomicU64,
    dry_run: bool,
    target: PathBuf,
}

pub(super) async fn run(context: &Context, args: DownloadArgs) -> Outcome {
    let work = stoppable(async |stop| download(context, args, &Notify::new(), stop).await);
    work.await?.unwrap_or_else(|| Err(failure(DownloadError::Interrupted).into()))
}

/// Downloads until `stop` is cancelled or the chain is at its end. With `--follow`, `wake` signals new
/// batches.
pub(super) async fn download(
    context: &Context,
    args: DownloadArgs,
    wake: &Notify,
    stop: CancellationToken,
) -> Outcome {
    if args.dry_run && args.follow {
        let text = "--dry-run runs once: use it with `efgs download`, without --follow";
        return Err(ExitError::new(Exit::Usage, text).into());
    }
    let profile = context.profile()?;
    let (target, path) = target(&profile, &args)?;
    let console = context.console;
    // Keys and results do not share the standard output.
    let results = args.dry_run || !matches!(target, Target::Stream(_));
    let summary = Arc::new(Summary {
        event: "done",
        batches: AtomicU64::default(),
        keys: AtomicU64::default(),
        gaps: AtomicU64::default(),
        left_out: AtomicU64::default(),
        dry_run: args.dry_run,
        target: path,
    });
    let mut options = DownloadOptions::new(profile.gateway()?, profile.auditor()?, profile.state());
    options.since = args.since;
    options.continue_past = args.continue_past;
    options.dry_run = args.dry_run;
    options.retry.limit = args.retries;
    options.on_event = Box::new(reporter(console, summary.clone(), results, args.follow));
    let mut downloader = Downloader::open(options, target).map_err(failure)?;
    let interval = Duration::from_secs(args.interval);
    let all = async {
        if args.follow {
            return downloader.follow(interval, wake).await.map(|never| match never {});
        }
        while downloader.next().await?.is_some() {}
        Ok(())
    };
    tokio::select! {
        outcome = all => outcome.map_err(failure)?,
        // The batch under way is stored, or the next run starts it again.
        () = stop.cancelled() => if !args.follow {
            return Err(failure(DownloadError::Interrupted).into());
        },
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let text = format!(
        "{} new batches with {} keys, all verified, {}in {}",
        count(&summary.batches),
        count(&summary.keys),
        if args.dry_run { "would be stored " } else { "" },
        summary.target.display()
    );
    if results {
        console.result(&*summary, text)?;
    } else {
        console.note(text);
    }
    Ok(if count(&summary.gaps) + count(&summary.left_out) == 0 { Exit::Done } else { Exit::Partly })
}

fn target(profile: &Profile, args: &DownloadArgs) -> Result<(Target, PathBuf), ExitError> {
    let format = match args.format {
        StoredAs::Protobuf => Format::Protobuf,
        StoredAs::Json => Format::Json,
        StoredAs::Ndjson => {
            return Ok(match args.into.clone().filter(|path| path.as_os_str() != "-") {
                Some(path) => (Target::Lines { path: path.clone() }, path),
                None => (Target::Stream(Box::new(io::stdout())), "the standard output".into()),
            });
        }
    };
    let path = args.into.clone().unwrap_or_else(|| profile.resolve(Path::new("batches")));
    if path.as_os_str() == "-" {
        return Err(ExitError::new(Exit::Usage, "--into - needs --format ndjson: other batches are files"));
    }
    Ok((Target::Folder { path: path.clone(), format }, path))
}

fn failure(error: DownloadError) -> ExitError {
    let exit = match &error {
        DownloadError::Quarantined(_) | DownloadError::Chain(_) => Exit::Unverified,
        error if error.is_temporary() => Exit::Later,
        _ => Exit::Failed,
    };
    ExitError::new(exit, error)
}

/// Reports events as they happen: as lines of JSON, or as a progress bar and lines for people.
fn reporter(
    console: Console,
    summary: Arc<Summary>,
    results: bool,
    follow: bool,
) -> impl Fn(&DownloadEvent) + Send + Sync {
    let bar = console.progress(None, "keys");
    bar.set_message("downloading");
    let add = |counter: &AtomicU64, amount: u64| counter.fetch_add(amount, Ordering::Relaxed);
    move |event| {
        match event {
            DownloadEvent::Stored(batch) | DownloadEvent::WouldStore(batch) => {
                add(&summary.batches, 1);
                add(&summary.keys, batch.keys as u64);
                bar.inc(batch.keys as u64);
                // The gateway does not say how many follow. The day shows the progress.
                bar.set_message(format!("downloading, at {}", batch.date));
            }
            DownloadEvent::Gap { .. } => drop(add(&summary.gaps, 1)),
            DownloadEvent::Passed(_) => drop(add(&summary.left_out, 1)),
            _ => {}
        }
        bar.suspend(|| {
            let json = results && console.wants_json();
            if json {
                // A reader that stops reading events does not stop the download.
                drop(console.json(event));
            }
            match event {
                DownloadEvent::Stored(batch) if follow && results && !json => drop(console.say(line(batch))),
                DownloadEvent::WouldStore(batch) if !json => drop(console.say(line(batch))),
                DownloadEvent::Stored(_) | DownloadEvent::WouldStore(_) | DownloadEvent::CaughtUp | DownloadEvent::Quarantined(_) => {}
                DownloadEvent::Gap { after, since, until } => console.warn(format_args!(
                    "batches formed from {since} to before {until}{} may be missing: they were not fetched in \
                     time, and the gateway no longer serves them",
                    after.as_ref().map(|tag| format!(" (after {tag})")).unwrap_or_default()
                )),
                DownloadEvent::Passed(batch) => console.warn(format_args!(
                    "batch {} does not verify: {}. It {}",
                    batch.batch_tag,
                    batch.reason,
                    match &batch.folder {
                        Some(folder) => format!("is skipped because of --continue-past, and stored in {}", folder.display()),
                        None => "would be skipped because of --continue-past".to_owned(),
                    }
                )),
                DownloadEvent::Again { batch_tag, reason } => {
                    console.note(format_args!("batch {batch_tag}: {reason}; fetching it once more"));
                }
                DownloadEvent::Waiting { reason, seconds } => {
                    console.note(format_args!("{reason}; retrying in {seconds} s"));
                }
            }
        });
    }
}

fn line(batch: &Released) -> String {
    format!(
        "{} of {}: {} keys of {} uploads, verified",
        batch.batch_tag, batch.date, batch.keys, batch.uploads
    )
}
