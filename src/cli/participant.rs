//! `participant list`: how each country is served.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use efgs_protocol::certificate::CertificateType;

use super::{ConfigFile, Outcome, open_current, say};
use crate::{
    app::App,
    store::{StoreError, SubscriptionState, Traffic, Usage},
    trust::{Registry, days_left},
};

#[derive(Debug, Subcommand)]
pub(super) enum ParticipantCommand {
    /// Show each country's certificates, last upload, use of the day's quota, downloads and callbacks
    List(ListArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  efgs-gateway participant list --config efgs.toml")]
pub(super) struct ListArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// A country, as the report shows it.
#[derive(Debug, Default)]
struct Participant {
    /// Active certificates: authentication, signing, callback.
    certificates: [usize; 3],
    /// Days until the first of them expires.
    days_left: Option<i64>,
    traffic: Traffic,
    /// What it may upload in a day.
    quota: Usage,
    /// Callbacks: active, paused.
    callbacks: [usize; 2],
}

const KINDS: [CertificateType; 3] =
    [CertificateType::Authentication, CertificateType::Signing, CertificateType::Callback];

pub(super) async fn run(command: ParticipantCommand) -> Outcome {
    let ParticipantCommand::List(args) = command;
    let app = open_current(&args.file.config).await?;
    let now = app.clock.now();
    let participants = gather(&app, now).await?;
    if args.json { json(&participants) } else { table(&participants) }
}

async fn gather(app: &App, now: DateTime<Utc>) -> Result<BTreeMap<String, Participant>, StoreError> {
    let mut participants: BTreeMap<String, Participant> = BTreeMap::new();
    let registry = Registry::verify(&app.store.certificates().await?, app.trust.anchor());
    for entry in registry.entries() {
        let participant = participants.entry(entry.country.to_string()).or_default();
        if registry.active(entry.certificate.thumbprint(), entry.kind, now).is_err() {
            continue;
        }
        let left = days_left(entry.certificate.not_after(), now);
        participant.days_left = Some(participant.days_left.map_or(left, |least| least.min(left)));
        if let Some(kind) = KINDS.iter().position(|kind| *kind == entry.kind) {
            participant.certificates[kind] += 1;
        }
    }
    for (country, traffic) in app.store.traffic(now.date_naive()).await? {
        participants.entry(country).or_default().traffic = traffic;
    }
    for subscription in app.store.subscriptions(None).await? {
        let callbacks = &mut participants.entry(subscription.country.to_string()).or_default().callbacks;
        callbacks[usize::from(subscription.state != SubscriptionState::Active)] += 1;
    }
    for (country, participant) in &mut participants {
        // What is in the database was a country when it was written.
        if let Ok(country) = country.parse() {
            participant.quota = app.limits.quota(country);
        }
    }
    Ok(participants)
}

/// How much of a limit is used, in percent.
fn percent(used: u64, limit: u64) -> f64 {
    if limit == 0 { 100.0 } else { (used as f64 * 1000.0 / limit as f64).ceil() / 10.0 }
}

/// The part of the day's quota that is used up, of keys or of bytes, whichever is more.
fn quota_percent(p: &Participant) -> f64 {
    let Usage { keys, bytes } = p.traffic.today;
    percent(keys, p.quota.keys).max(percent(bytes, p.quota.bytes))
}

fn json(participants: &BTreeMap<String, Participant>) -> Outcome {
    let rows: Vec<_> = participants
        .iter()
        .map(|(country, p)| {
            serde_json::json!({
                "country": country,
                "certificates": {"authentication": p.certificates[0], "signing": p.certificates[1], "callback": p.certificates[2]},
                "daysLeft": p.days_left, "lastUpload": p.traffic.last_upload, "keys": p.traffic.keys,
                "keysToday": p.traffic.today.keys, "quota": {
                    "keys": p.traffic.today.keys, "keysLimit": p.quota.keys,
                    "keysPercent": percent(p.traffic.today.keys, p.quota.keys),
                    "bytes": p.traffic.today.bytes, "bytesLimit": p.quota.bytes,
                    "bytesPercent": percent(p.traffic.today.bytes, p.quota.bytes),
                },
                "lastDownloadedBatch": p.traffic.downloaded.map(|id| id.to_string()),
                "batchesBehind": p.traffic.downloaded.map(|_| p.traffic.behind),
                "callbacks": {"active": p.callbacks[0], "paused": p.callbacks[1]},
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
        let paused = if p.callbacks[1] > 0 { format!(", {} PAUSED", p.callbacks[1]) } else { String::new() };
        say(format!(
            "{country:<3} {authentication:>4} {signing:>4} {callback:>4} {:>9}  {:<17} {:>10} {:>7} {:>10}  {:<24} {:>6}  {} active{paused}",
            or_dash(p.days_left.map(|days| days.to_string())),
            or_dash(p.traffic.last_upload.map(|at| at.format("%Y-%m-%d %H:%M").to_string())),
            p.traffic.today.keys,
            format!("{:.1}%", quota_percent(p)),
            p.traffic.keys,
            or_dash(p.traffic.downloaded.map(|id| id.to_string())),
            or_dash(p.traffic.downloaded.map(|_| p.traffic.behind.to_string())),
            p.callbacks[0],
        ))?;
    }
    Ok(std::process::ExitCode::SUCCESS)
}
