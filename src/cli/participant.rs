//! `participant list`: how each country is served.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};

use super::{ConfigFile, Outcome, open_current, say};
use crate::{
    server::overview::{Participant, percent},
    trust::Registry,
};

#[derive(Debug, Subcommand)]
pub(super) enum ParticipantCommand {
    /// Show each country's certificates, last upload, use of the day's quota, downloads and callbacks
    List(ListArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs-gateway participant list --config efgs.toml\n\nDAYS LEFT: days until the country has no active certificate of a type. Act on a 0 under AUTH (it cannot call) or SIGN (its\nuploads are rejected). PAUSED callbacks have failed; the operator paused those that are held."
)]
pub(super) struct ListArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: ParticipantCommand) -> Outcome {
    let ParticipantCommand::List(args) = command;
    let app = open_current(&args.file.config).await?;
    let now = app.clock.now();
    let registry = Registry::verify(&app.store.certificates().await?, app.trust.anchor());
    let subscriptions = app.store.subscriptions(None).await?;
    let participants = Participant::all(&app, &registry, &subscriptions, now).await?;
    if args.json { json(&participants) } else { table(&participants) }
}

fn json(participants: &BTreeMap<String, Participant>) -> Outcome {
    let rows: Vec<_> = participants
        .iter()
        .map(|(country, p)| {
            serde_json::json!({
                "country": country,
                "certificates": {"authentication": p.certificates[0], "signing": p.certificates[1], "callback": p.certificates[2]},
                "daysLeft": p.days(), "missing": p.missing(), "lastUpload": p.traffic.last_upload, "keys": p.traffic.keys,
                "keysToday": p.traffic.today.keys, "quota": {
                    "keys": p.traffic.today.keys, "keysLimit": p.quota.keys,
                    "keysPercent": percent(p.traffic.today.keys, p.quota.keys),
                    "bytes": p.traffic.today.bytes, "bytesLimit": p.quota.bytes,
                    "bytesPercent": percent(p.traffic.today.bytes, p.quota.bytes),
                },
                "lastDownloadedBatch": p.traffic.downloaded.map(|id| id.to_string()),
                "batchesBehind": p.traffic.downloaded.map(|_| p.traffic.behind),
                "callbacks": {"active": p.callbacks[0], "paused": p.callbacks[1], "held": p.callbacks[2]},
            })
        })
        .collect();
    say(serde_json::Value::from(rows))
}

fn table(participants: &BTreeMap<String, Participant>) -> Outcome {
    say(format!(
        "{:<3} {:>4} {:>4} {:>4} {:>9}  {:<17} {:>10} {:>7} {:>10}  {:<24} {:>6}  CALLBACKS",
        "CC",
        "AUTH",
        "SIGN",
        "CALL",
        "DAYS LEFT",
        "LAST UPLOAD (UTC)",
        "KEYS TODAY",
        "QUOTA",
        "KEYS",
        "LAST DOWNLOADED BATCH",
        "BEHIND"
    ))?;
    for (country, p) in participants {
        let [authentication, signing, callback] = p.certificates;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let [active, paused, held] = p.callbacks;
        let mut callbacks = format!("{active} active");
        for (amount, state) in [(paused, "PAUSED"), (held, "held")] {
            if amount > 0 {
                callbacks += &format!(", {amount} {state}");
            }
        }
        say(format!(
            "{country:<3} {authentication:>4} {signing:>4} {callback:>4} {:>9}  {:<17} {:>10} {:>7} {:>10}  {:<24} {:>6}  {callbacks}",
            or_dash(p.days().map(|days| days.to_string())),
            or_dash(p.traffic.last_upload.map(|at| at.format("%Y-%m-%d %H:%M").to_string())),
            p.traffic.today.keys,
            format!("{:.1}%", p.quota_percent()),
            p.traffic.keys,
            or_dash(p.traffic.downloaded.map(|id| id.to_string())),
            or_dash(p.traffic.downloaded.map(|_| p.traffic.behind.to_string())),
        ))?;
    }
    Ok(std::process::ExitCode::SUCCESS)
}
