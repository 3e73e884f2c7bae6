//! `access-log …`: verifies and exports the log of all requests (spec §8).

use std::{
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use clap::{Args, Subcommand};
use efgs_protocol::country::Country;

use super::{ConfigFile, Outcome, WorkArgs, clean, open_current, print, say};
use crate::{
    access_log::{
        self, Key, SignedStatement,
        verify::{Evidence, Forced, OpenChain, Uncovered},
    },
    store::RecordFilter,
};

/// Rows that are read at once.
const PAGE: u32 = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum AccessLogCommand {
    /// Find records that were changed, moved, inserted or removed; exit code 0 only when there are none
    #[command(
        after_help = "Examples:\n  efgs-gateway access-log verify --config efgs.toml\n  efgs-gateway access-log verify --config efgs.toml --public-key access-log.pub --heads kept-elsewhere.jsonl\n\nSafe while gateways run. docs/access-log.md describes what it proves."
    )]
    Verify(VerifyArgs),
    /// Write records as JSON lines, in the order in which the requests arrived
    #[command(
        after_help = "Example:\n  efgs-gateway access-log export --config efgs.toml --from 2026-11-01 --to 2026-11-30 --country DE --out november.jsonl"
    )]
    Export(ExportArgs),
    /// Write the signed statements about the log as JSON lines, to be kept elsewhere
    #[command(
        after_help = "Example:\n  efgs-gateway access-log heads --config efgs.toml --after 1200 >> kept-elsewhere.jsonl\n\nThe holder of a statement can prove later that no record before it was changed or removed."
    )]
    Heads(HeadsArgs),
    /// Delete records older than `access_log.retention` now
    #[command(
        after_help = "Example:\n  efgs-gateway access-log expire --config efgs.toml\n\nSafe while gateways run: it waits for their lease. It keeps and reports records that are not as they were written."
    )]
    Expire(ExpireArgs),
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// A public key (PEM) that has signed, in addition to those of `access_log.signing_key` and `former_keys`
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
    /// Statements that were kept elsewhere, as `access-log heads` writes them
    #[arg(long, value_name = "FILE")]
    heads: Option<PathBuf>,
    /// The first statement that must be signed, if the log was begun without a key; the gateway's log names it
    /// [default: access_log.signed_from]
    #[arg(long, value_name = "NUMBER")]
    signed_from: Option<i64>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Requests that arrived on this day (UTC) or later; or a time such as 2026-11-22T10:00:00Z
    #[arg(long, value_name = "DATE", value_parser = beginning)]
    from: Option<DateTime<Utc>>,
    /// Requests that arrived on this day or earlier; or before a time
    #[arg(long, value_name = "DATE", value_parser = end)]
    to: Option<DateTime<Utc>>,
    /// Only this country
    #[arg(long, value_name = "CC")]
    country: Option<Country>,
    /// Write to a file instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ExpireArgs {
    #[command(flatten)]
    work: WorkArgs,
    /// Also delete records that are not as they were written; the signed statements about them keep this reason
    #[arg(long, value_name = "REASON", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    although: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct HeadsArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Only statements with a greater number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: i64,
}

pub(super) async fn run(command: AccessLogCommand) -> Outcome {
    match command {
        AccessLogCommand::Verify(args) => verify(&args).await,
        AccessLogCommand::Export(args) => export(&args).await,
        AccessLogCommand::Heads(args) => heads(&args).await,
        AccessLogCommand::Expire(args) => expire(&args).await,
    }
}

async fn verify(args: &VerifyArgs) -> Outcome {
    let app = open_current(&args.file.config).await?;
    let mut evidence =
        Evidence { forgotten_before: app.access_log.horizon(), ..app.access_log.evidence().clone() };
    evidence.signed_from = args.signed_from.unwrap_or(evidence.signed_from);
    for path in &args.public_key {
        evidence.keys.push(Key::read(path)?);
    }
    if let Some(path) = &args.heads {
        read_heads(path, &mut evidence)?;
    }
    let report = access_log::verify::verify(&app.store, &evidence).await?;
    let whole = report.faults == 0;
    if args.json {
        say(serde_json::to_string(&report)?)?;
    } else {
        for finding in &report.findings {
            say(clean(&finding.to_string()))?;
        }
        let more = report.faults - report.findings.len() as u64;
        if more > 0 {
            say(format!("… and {more} more"))?;
        }
        say(format!(
            "{} records in {} chains; {} statements, {} signatures verified, {} compared with those kept elsewhere",
            report.records, report.chains, report.statements, report.signed, report.compared
        ))?;
        for Uncovered { instance, from, to } in &report.uncovered {
            say(format!(
                "instance {} records {from} to {to}: no statement covers them yet; if that gateway no longer runs, \
                 it was killed before it could make one, or others have added them",
                clean(instance)
            ))?;
        }
        for OpenChain { instance, last } in &report.open {
            say(format!(
                "instance {} has not ended its chain, of which record {last} is stated: its gateway runs, or it did not \
                 stop in order and records at the end may be missing (docs/access-log.md)",
                clean(instance)
            ))?;
        }
        for Forced { number, instance, sequence, because } in &report.forced {
            let what = match instance {
                Some(instance) => format!("records of instance {} up to {sequence}", clean(instance)),
                None => format!("statements before {sequence}"),
            };
            say(format!(
                "statement {number}: the operator had {what} deleted although they were not as they were written: {}",
                clean(because)
            ))?;
        }
        if evidence.keys.is_empty() {
            say("no key is configured, so no signature was verified: name it with --public-key")?;
        }
        say(if whole {
            "the access log is as it was written"
        } else {
            "THE ACCESS LOG IS NOT AS IT WAS WRITTEN"
        })?;
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read_heads(path: &Path, evidence: &mut Evidence) -> Result<(), String> {
    let fail = |e: &dyn std::fmt::Display| format!("--heads {}: {e}", path.display());
    let lines = BufReader::new(std::fs::File::open(path).map_err(|e| fail(&e))?).lines();
    for (number, line) in (1..).zip(lines) {
        let line = line.map_err(|e| fail(&e))?;
        if !line.trim().is_empty() {
            let signed: SignedStatement =
                serde_json::from_str(&line).map_err(|e| fail(&format!("line {number}: {e}")))?;
            evidence.keep(&signed);
        }
    }
    Ok(())
}

async fn export(args: &ExportArgs) -> Outcome {
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from >= to
    {
        return Err(
            format!("--from {from} is not before --to, which ends at {to}: the period is empty").into()
        );
    }
    let app = open_current(&args.file.config).await?;
    let filter = RecordFilter { from: args.from, to: args.to, country: args.country.map(|c| c.to_string()) };
    // The file is complete, or it does not exist.
    let mut file = match &args.out {
        Some(path) => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")));
            Some(BufWriter::new(file.map_err(|e| format!("--out {}: {e}", path.display()))?))
        }
        None => None,
    };
    let (mut after, mut strange): (Option<(i64, String, i64)>, u64) = (None, 0);
    loop {
        let cursor = after.as_ref().map(|(at, instance, sequence)| (*at, instance.as_str(), *sequence));
        let page = app.store.records_between(&filter, cursor, PAGE).await?;
        let Some(last) = page.last() else { break };
        let Some(at) = last.at else {
            return Err("the access log has rows that are not records: run `access-log verify`".into());
        };
        after = Some((at, last.instance.clone(), last.sequence));
        let mut text = String::new();
        for row in &page {
            match &row.record {
                Some(record) => text += &(record.line() + "\n"),
                None => strange += 1,
            }
        }
        match &mut file {
            Some(file) => file.write_all(text.as_bytes())?,
            None => drop(print(text)?),
        }
    }
    if let (Some(file), Some(path)) = (file, &args.out) {
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
    }
    match strange {
        0 => Ok(ExitCode::SUCCESS),
        rows => Err(format!("{rows} rows are not records and were skipped: run `access-log verify`").into()),
    }
}

async fn heads(args: &HeadsArgs) -> Outcome {
    let app = open_current(&args.file.config).await?;
    let mut from = args.after.checked_add(1);
    while let Some(first) = from {
        let page = app.store.statements_from(first, PAGE).await?;
        from = page.last().and_then(|last| last.number.checked_add(1));
        for statement in &page {
            say(serde_json::to_string(&statement.signed)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn expire(args: &ExpireArgs) -> Outcome {
    let app = open_current(&args.work.file.config).await?;
    let done = app.access_log.forget_now(args.although.as_deref()).await?;
    if args.work.json {
        return say(serde_json::json!({"records": done.records, "statements": done.statements}));
    }
    say(format!(
        "deleted {} records and {} statements of the access log; nothing older is left",
        done.records, done.statements
    ))
}

fn beginning(text: &str) -> Result<DateTime<Utc>, String> {
    moment(text, 0)
}

/// The end of a day, or a time.
fn end(text: &str) -> Result<DateTime<Utc>, String> {
    moment(text, 1)
}

fn moment(text: &str, days: u64) -> Result<DateTime<Utc>, String> {
    if let Ok(day) = text.parse::<NaiveDate>() {
        let day = day.checked_add_days(Days::new(days)).unwrap_or(day);
        return Ok(day.and_time(NaiveTime::MIN).and_utc());
    }
    text.parse()
        .map_err(|_| "write a day such as 2026-11-22 or a time such as 2026-11-22T10:00:00Z".to_owned())
}
