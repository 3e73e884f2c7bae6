//! `participant list`: how each country is served.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveTime, Utc};
use clap::{Args, Subcommand};
use efgs_protocol::certificate::CertificateType;

use super::{ConfigFile, Outcome, open_current, say};
use crate::{
    app::App,
    store::{StoreError, SubscriptionState, Traffic},
    trust::{Registry, days_left},
};

#[derive(Debug, Subcommand)]
pub(super) enum ParticipantCommand {
    /// Show each country's certificates, last upload, downloads, callbacks and keys of the day
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
    let midnight = now.date_naive().and_time(NaiveTime::MIN).and_utc();
    for (country, traffic) in app.store.traffic(midnight).await? {
        participants.entry(country).or_default().traffic = traffic;
    }
    for subscription in app.store.subscriptions(None).await? {
        let callbacks = &mut participants.entry(subscription.country.to_string()).or_default().callbacks;
        callbacks[usize::from(subscription.state != SubscriptionState::Active)] += 1;
    }
    Ok(participants)
}

fn json(participants: &BTreeMap<String, Participant>) -> Outcome {
    let rows: Vec<_> = participants
        .iter()
        .map(|(country, p)| {
            serde_json::json!({
                "country": country,
                "certificates": {"authentication": p.certificates[0], "signing": p.certificates[1], "callback": p.certificates[2]},
                "daysLeft": p.days_left, "lastUpload": p.traffic.last_upload, "keys": p.traffic.keys,
                "keysToday": p.traffic.recent_keys, "lastDownloadedBatch": p.traffic.downloaded.map(|id| id.to_string()),
                "batchesBehind": p.traffic.downloaded.map(|_| p.traffic.behind),
                "callbacks": {"active": p.callbacks[0], "paused": p.callbacks[1]},
            })
        })
        .collect();
    say(serde_json::Value::from(rows))
}

fn table(participants: &BTreeMap<String, Participant>) -> Outcome {
    say(format!(
        "{:<3} {:>4} {:>4} {:>4} {:>9}  {:<17} {:>10} {:>10}  {:<24} {:>6}  CALLBACKS",
        "CC",
        "AUTH",
        "SIGN",
        "CALL",
        "DAYS LEFT",
        "LAST UPLOAD (UTC)",
        "KEYS TODAY",
        "KEYS",
        "LAST DOWNLOADED BATCH",
        "BEHIND"
    ))?;
    for (country, p) in participants {
        let [authentication, signing, callback] = p.certificates;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let paused = if p.callbacks[1] > 0 { format!(", {} PAUSED", p.callbacks[1]) } else { String::new() };
        say(format!(
            "{country:<3} {authentication:>4} {signing:>4} {callback:>4} {:>9}  {:<17} {:>10} {:>10}  {:<24} {:>6}  {} active{paused}",
            or_dash(p.days_left.map(|days| days.to_string())),
            or_dash(p.traffic.last_upload.map(|at| at.format("%Y-%m-%d %H:%M").to_string())),
            p.traffic.recent_keys,
            p.traffic.keys,
            or_dash(p.traffic.downloaded.map(|id| id.to_string())),
            or_dash(p.traffic.downloaded.map(|_| p.traffic.behind.to_string())),
            p.callbacks[0],
        ))?;
    }
    Ok(std::process::ExitCode::SUCCESS)
}
