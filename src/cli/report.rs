//! `report`: what each country did on each day (spec §8.3, §8.4).

use chrono::{Days, NaiveDate};
use clap::Args;
use efgs_protocol::country::Country;

use super::{ConfigFile, Outcome, open_current, say};
use crate::access_log::Tally;

/// Show uploads, downloads, callbacks and errors of each country and day, over all gateways
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  efgs-gateway report --config efgs.toml\n  efgs-gateway report --config efgs.toml --from 2026-11-01 --to 2026-11-30 --country DE --csv > november.csv\n\nDays are UTC. The country -- stands for callers who were rejected.\n\nBATCHES counts the batches that were formed on the day and have keys of the country. A batch with keys of several countries\ncounts for each of them, so there is no total."
)]
pub(super) struct ReportArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// First day [default: two weeks before the last]
    #[arg(long, value_name = "DATE")]
    from: Option<NaiveDate>,
    /// Last day [default: today]
    #[arg(long, value_name = "DATE")]
    to: Option<NaiveDate>,
    /// Only this country
    #[arg(long, value_name = "CC")]
    country: Option<Country>,
    /// Print as JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print as CSV with a header line
    #[arg(long)]
    csv: bool,
}

pub(super) async fn run(args: ReportArgs) -> Outcome {
    let app = open_current(&args.file.config).await?;
    let to = args.to.unwrap_or_else(|| app.clock.now().date_naive());
    let from = args.from.unwrap_or_else(|| to.checked_sub_days(Days::new(14)).unwrap_or(to));
    if from > to {
        return Err(format!("--from {from} is after --to {to}").into());
    }
    let rows = app.store.statistics(from, to, args.country.as_ref().map(Country::as_str)).await?;
    let mut rows: Vec<(NaiveDate, String, Tally)> =
        rows.into_iter().map(|((day, country), tally)| (day, country, tally)).collect();
    if args.json {
        json(&mut rows)
    } else if args.csv {
        csv(&mut rows)
    } else {
        table(&rows)
    }
}

/// `upload_keys` → `uploadKeys`.
fn camel(name: &str) -> String {
    let mut upper = false;
    name.chars().fold(String::new(), |mut text, c| {
        if c == '_' {
            upper = true;
        } else {
            text.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        }
        text
    })
}

fn json(rows: &mut [(NaiveDate, String, Tally)]) -> Outcome {
    let rows: Vec<serde_json::Value> = rows
        .iter_mut()
        .map(|(day, country, tally)| {
            let mut row = serde_json::json!({"day": day, "country": country});
            for (name, counter) in tally.counters() {
                row[camel(name)] = (*counter).into();
            }
            row["lastUploadAt"] = tally.last_upload_at.map(|at| at.to_rfc3339()).into();
            row["lastDownloadAt"] = tally.last_download_at.map(|at| at.to_rfc3339()).into();
            row
        })
        .collect();
    say(serde_json::Value::from(rows))
}

fn csv(rows: &mut [(NaiveDate, String, Tally)]) -> Outcome {
    let names = Tally::default().counters().map(|(name, _)| name).join(",");
    say(format!("day,country,{names},last_upload_at,last_download_at"))?;
    for (day, country, tally) in rows {
        let counters = tally.counters().map(|(_, counter)| counter.to_string()).join(",");
        let time =
            |at: Option<chrono::DateTime<chrono::Utc>>| at.map(|at| at.to_rfc3339()).unwrap_or_default();
        let (upload, download) = (time(tally.last_upload_at), time(tally.last_download_at));
        say(format!("{day},{country},{counters},{upload},{download}"))?;
    }
    Ok(std::process::ExitCode::SUCCESS)
}

/// Place of its column in the table.
const BATCHES: usize = 3;

fn table(rows: &[(NaiveDate, String, Tally)]) -> Outcome {
    let line = |day: &str, country: &str, cells: [String; 12]| {
        let [
            uploads,
            keys,
            taken_back,
            batches,
            downloads,
            unchanged,
            got,
            bytes,
            audits,
            calls,
            failed,
            errors,
        ] = cells;
        say(format!(
            "{day:<10} {country:<3} {uploads:>8} {keys:>10} {taken_back:>9} {batches:>7} {downloads:>9} {unchanged:>9} {got:>10} \
             {bytes:>13} {audits:>6} {calls:>9} {failed:>6}  {errors}"
        ))
    };
    let names = [
        "UPLOADS",
        "KEYS IN",
        "WITHDRAWN",
        "BATCHES",
        "DOWNLOADS",
        "UNCHANGED",
        "KEYS OUT",
        "BYTES OUT",
        "AUDITS",
        "CALLBACKS",
        "FAILED",
        "ERRORS 4xx/5xx",
    ];
    line("DAY", "CC", names.map(str::to_owned))?;
    let cells = |tally: &Tally| {
        [
            tally.uploads.to_string(),
            tally.upload_keys.to_string(),
            tally.withdrawals.to_string(),
            tally.batches.to_string(),
            tally.downloads.to_string(),
            tally.unchanged.to_string(),
            tally.download_keys.to_string(),
            tally.download_bytes.to_string(),
            tally.audits.to_string(),
            tally.callbacks_delivered.to_string(),
            tally.callbacks_failed.to_string(),
            format!("{}/{}", tally.client_errors, tally.server_errors),
        ]
    };
    let mut total = Tally::default();
    for (day, country, tally) in rows {
        line(&day.to_string(), country, cells(tally))?;
        let mut tally = tally.clone();
        for ((_, sum), (_, counter)) in total.counters().into_iter().zip(tally.counters()) {
            *sum += *counter;
        }
    }
    let mut total = cells(&total);
    // A batch that has keys of several countries counts for each of them.
    total[BATCHES] = "-".to_owned();
    line("total", "", total)
}
