//! `efgs export`: signed archives for phones.

use std::{
    error::Error,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use chrono::DateTime;
use clap::Args;
use efgs_protocol::clock::Clock;
use serde::Serialize;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::{
    Context, Outcome,
    gaen::GaenArgs,
    output::{Exit, ExitError, clean},
};
use crate::{
    export::{ExportError, Exporter, Mirrored, Period, Published, RegionReport},
    profile::ExportProfile,
    source::{GaenDefaults, Source},
    state::StateError,
};

const EXAMPLE: &str = "Example:\n  efgs export\n  efgs export --period daily own-keys/*.json";

/// How many invalid keys are listed.
const NAMED: usize = 20;

/// Pack downloaded and own keys into signed archives for phones
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLE,
    after_long_help = format!("{EXAMPLE}\n\n\
        It reads the batches that `efgs download` stored, and the country's own keys from FILES: JSON, protobuf or GAEN export zips, as for `efgs upload`. It publishes each key once in the archive of its origin, of each country visited and of all countries, in the last hour or day that has ended, after its rolling period and a margin have passed. The section [export] of the profile configures it. docs/export.md gives the reasons.\n\n\
        You can run it any number of times, with the same or other files. Published archives are not changed, and keys that were read once need not be passed again. If it is killed, the index stays valid; run it again.\n\n\
        Exit codes: 0 done, also when there was nothing to publish; 1 it failed; 4 done, except for invalid keys in FILES; 5 another efgs export uses the state folder, or the bucket is unreachable or overloaded: the folder is complete, run it again.")
)]
pub(super) struct ExportArgs {
    /// The country's own keys, which the gateway does not send back
    #[arg(value_name = "FILES")]
    files: Vec<PathBuf>,
    /// The folder of downloaded batches [default: export.batches in the profile]
    #[arg(long, value_name = "FOLDER")]
    batches: Option<PathBuf>,
    /// The folder for the archives and their index [default: export.folder in the profile]
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
    /// The time that one archive covers [default: export.period in the profile]
    #[arg(long, value_enum)]
    period: Option<Period>,
    #[command(flatten)]
    gaen: GaenArgs,
    /// Confirm that the clock is correct, although the last run was more than two days ago or is in the future
    #[arg(long)]
    trust_clock: bool,
    /// Print what would be published, and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// What is printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExportReport {
    dry_run: bool,
    /// How many downloaded batches were new.
    batches: usize,
    /// Invalid keys of the files.
    invalid: Invalid,
    #[serde(flatten)]
    published: Published,
    /// What was done in the bucket, if there is one.
    bucket: Option<Mirrored>,
}

#[derive(Default, Serialize)]
struct Invalid {
    keys: usize,
    /// The first ones, with their reasons.
    named: Vec<String>,
}

pub(super) async fn run(context: &Context, args: ExportArgs) -> Outcome {
    let profile = context.profile()?;
    let mut export = profile.export()?;
    export.settings.period = args.period.unwrap_or(export.settings.period);
    // A folder from the command line must exist. The one of the profile may not exist yet.
    let batches = match args.batches {
        Some(folder) => Some(folder),
        None => Some(export.batches.clone()).filter(|folder| folder.exists()),
    };
    if batches.is_none() && args.files.is_empty() {
        context.console.warn(format_args!(
            "there is no folder {}: efgs download creates it, --batches names another one",
            export.batches.display()
        ));
    }
    export.settings.trust_clock = args.trust_clock;
    export.folder = args.into.unwrap_or(export.folder);
    let gaen = args.gaen.defaults(profile.country())?;
    let state = profile.state().join("export");
    let bar = context.console.progress(None, "keys");
    bar.set_message("reading");
    let bucket = export.bucket.take();
    let work = {
        let bar = bar.clone();
        move || {
            work(export, &state, batches.as_deref(), args.files, &gaen, args.dry_run, &|keys| bar.inc(keys))
        }
    };
    let worked = spawn_blocking(work).await?;
    bar.finish_and_clear();
    let (mut report, exporter) = worked.map_err(failure)?;
    if let Some(bucket) = bucket.filter(|_| !args.dry_run) {
        // The folder is complete. The next run uploads what is missing in the bucket.
        let mirrored = exporter.mirror(&bucket).await.map_err(|error| {
            ExitError::new(if error.is_temporary() { Exit::Later } else { Exit::Failed }, error)
        })?;
        report.bucket = Some(mirrored);
    }
    context.console.result(&report, text(&report))?;
    Ok(if report.invalid.keys > 0 { Exit::Partly } else { Exit::Done })
}

fn work(
    export: ExportProfile,
    state: &Path,
    batches: Option<&Path>,
    files: Vec<PathBuf>,
    gaen: &GaenDefaults,
    dry_run: bool,
    read: &dyn Fn(u64),
) -> Result<(ExportReport, Exporter), Box<dyn Error + Send + Sync>> {
    let mut exporter = Exporter::open(export.settings, state, &export.folder, Clock::system().now())?;
    let batches = batches.map_or(Ok(0), |folder| exporter.add_batches(folder))?;
    read(exporter.intake().keys as u64);
    let mut invalid = Invalid::default();
    for file in files {
        let name = file.display().to_string();
        let mut number = 0_u64;
        Source::file(file).read(gaen, &CancellationToken::new(), &mut |key| {
            number += 1;
            read(1);
            let own = key.and_then(|key| match key.origin == gaen.origin {
                true => Ok(key),
                false => Err(format!("its origin is {}, not {}", key.origin, gaen.origin)),
            });
            match own {
                Ok(key) => exporter.add(&key, key.visited_countries()),
                Err(reason) => {
                    invalid.keys += 1;
                    if invalid.keys <= NAMED {
                        invalid.named.push(format!("{name}: key {number}: {reason}"));
                    }
                }
            }
            ControlFlow::Continue(())
        })?;
    }
    let published = exporter.publish(dry_run)?;
    Ok((ExportReport { dry_run, batches, invalid, published, bucket: None }, exporter))
}

fn failure(error: Box<dyn Error + Send + Sync>) -> ExitError {
    let exit = match error.downcast_ref() {
        Some(ExportError::State(StateError::InUse(_))) => Exit::Later,
        _ => Exit::Failed,
    };
    ExitError::new(exit, error)
}

fn text(report: &ExportReport) -> String {
    let ExportReport { published, invalid, .. } = report;
    let time = |seconds| DateTime::from_timestamp(seconds, 0).unwrap_or_default().format("%Y-%m-%d %H:%M");
    let intake = &published.intake;
    let mut text = format!(
        "{} new batches and the files contain {} keys: {} already known, {} changed; not for phones: {} by report type, {} too old, {} implausible\n",
        report.batches,
        intake.keys,
        intake.known,
        intake.changed,
        intake.report_type,
        intake.too_old,
        intake.implausible
    );
    for reason in &invalid.named {
        text += &format!("{}\n", clean(reason));
    }
    if invalid.keys > NAMED {
        text += &format!("and {} more invalid keys\n", invalid.keys - NAMED);
    }
    let (start, end) = (time(published.start), time(published.end));
    text += &format!("{} to {end} UTC{}", start, if report.dry_run { " (nothing is written)" } else { "" });
    for region in published.regions.iter().filter(|region| !region.is_quiet()) {
        let files: Vec<_> = published.added.iter().filter(|file| file.region == region.region).collect();
        text += &format!(
            "\n{}: {} new keys ({} made up), {} revised, in {} files; {} withheld, {} not ended",
            region.region,
            region.new,
            region.padding,
            region.revised,
            files.len(),
            region.withheld,
            region.not_ended
        );
    }
    if published.regions.iter().all(RegionReport::is_quiet) {
        text += ": nothing to publish";
    }
    if let Some(bucket) = report.bucket {
        text += &format!(
            "\nuploaded {} archives and the index to the bucket, and deleted {} old archives",
            bucket.put, bucket.deleted
        );
    }
    text
}
