//! Benchmarks of the gateway: `cargo xtask bench`.
//!
//! The real release binary serves real mutual TLS in a process of its own. Beside each measurement stands what
//! the machine could do at best: the same rows inserted by the bare database driver, the same bytes served as
//! a file by nginx. Both take turns in one run, so that whatever else the machine does hits both, and their
//! ratio says more than either figure. See `docs/benchmarks.md`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks on its terminal")]
#![expect(clippy::disallowed_methods, reason = "benchmarks choose at random")]

mod bare;
mod connection;
mod costs;
mod database;
mod download;
mod fill;
mod flood;
mod full;
mod gateway;
mod journal;
mod load;
mod nginx;
mod process;
mod report;
mod upload;
mod uploads;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};

use crate::{database::Kind, report::Report};

/// The error is the sentence that `main` prints.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measure the gateway beside a bare database and a static web server
#[derive(Debug, Parser)]
#[command(
    after_help = "Example:\n  cargo xtask bench -- --only upload --database mysql --seconds 20\n\nWithout the servers of `cargo xtask bench` it measures on SQLite."
)]
struct Args {
    /// Seconds for each comparison, for both sides together
    #[arg(long, default_value_t = 6.0)]
    seconds: f64,
    /// Only this part
    #[arg(long)]
    only: Option<Part>,
    /// Only on this database
    #[arg(long)]
    database: Option<Kind>,
    /// Write the figures to this file as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keys that are replayed from the journal
    #[arg(long, default_value_t = 100_000)]
    journal_keys: usize,
    /// Keys that the database of the part `full` holds
    #[arg(long, default_value_t = 28_700_000)]
    keys: usize,
    /// Measure this program instead of building the one of this repository
    #[arg(long, value_name = "PROGRAM")]
    gateway: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Part {
    Upload,
    Download,
    Audit,
    /// Uploads with a journal, and filling an empty database from it
    Journal,
    /// One country floods, another one downloads
    Flood,
    /// What the access log and tracing cost a download; only when asked for, because it builds two more programs
    Costs,
    /// A database with two weeks of keys beside an empty one; only when asked for, because it takes long
    Full,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // The driver of the database and the load generator must agree on one TLS library.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    // What runs is dropped on Ctrl-C as well: processes end, and temporary folders go.
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(&args) => outcome,
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        }
    });
    // Threads that still wait for an answer never end.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("bench: {error}");
    ExitCode::FAILURE
}

async fn run(args: &Args) -> Outcome {
    let program = match &args.gateway {
        Some(program) => program.clone(),
        None => gateway::build()?,
    };
    let databases = Kind::ALL.into_iter().filter(|kind| args.database.is_none_or(|wanted| wanted == *kind));
    let databases: Vec<Kind> = databases.filter(|kind| kind.is_there()).collect();
    let &[first, ..] = &*databases else {
        return Err("there is no such database server: run it with `cargo xtask bench`".into());
    };
    let seconds = Duration::try_from_secs_f64(args.seconds)?;
    let wanted = |part| args.only.is_none_or(|only| only == part);

    let mut report = Report::default();
    if wanted(Part::Upload) {
        for kind in &databases {
            upload::measure(&program, *kind, seconds, &mut report).await?;
        }
    }
    if wanted(Part::Download) || wanted(Part::Audit) {
        let parts = (wanted(Part::Download), wanted(Part::Audit));
        download::measure(&program, first, seconds, parts, &mut report).await?;
    }
    if wanted(Part::Journal) {
        journal::measure(&program, first, seconds, args.journal_keys, &mut report).await?;
    }
    if wanted(Part::Flood) {
        flood::measure(&program, first, seconds, &mut report).await?;
    }
    if args.only == Some(Part::Costs) {
        costs::measure(&program, first, seconds, &mut report).await?;
    }
    if args.only == Some(Part::Full) {
        full::measure(&program, args.database.unwrap_or(Kind::MySql), seconds, args.keys, &mut report)
            .await?;
    }
    println!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, report.to_json()?)
            .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(())
}
