//! `callback …`: the state of the callbacks, and pausing and resuming them (spec §5.6).

use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use efgs_protocol::country::Country;

use super::{ConfigFile, Outcome, WorkArgs, clean, open_current, say};
use crate::store::{Subscription, SubscriptionState};

#[derive(Debug, Subcommand)]
pub(super) enum CallbackCommand {
    /// Show all callbacks: their state, what is queued, and the last error
    #[command(after_help = "Example:\n  efgs-gateway callback list --config efgs.toml")]
    List(WorkArgs),
    /// Resume a callback, beginning with the newest batch that it missed
    #[command(
        after_help = "Example:\n  efgs-gateway callback resume --config efgs.toml --country NL notify-1"
    )]
    Resume(OneArgs),
    /// Pause a callback until it is resumed; the country cannot resume it
    #[command(
        after_help = "Example:\n  efgs-gateway callback pause --config efgs.toml --country NL notify-1"
    )]
    Pause(OneArgs),
}

#[derive(Debug, Args)]
pub(super) struct OneArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// The country of the callback
    #[arg(long, value_name = "CC")]
    country: Country,
    /// The id that the country chose
    id: String,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: CallbackCommand) -> Outcome {
    match command {
        CallbackCommand::List(args) => list(&args).await,
        CallbackCommand::Resume(args) => {
            let app = open_current(&args.file.config).await?;
            let found = app.store.resume_subscription(args.country, &args.id).await?;
            report(&args, found, "active", "is called again")
        }
        CallbackCommand::Pause(args) => {
            let app = open_current(&args.file.config).await?;
            let found = app.store.hold_subscription(args.country, &args.id).await?;
            report(&args, found, "paused", "is paused")
        }
    }
}

fn report(args: &OneArgs, found: bool, state: &str, done: &str) -> Outcome {
    let OneArgs { country, id, .. } = args;
    match found {
        false => Err(format!("{country} has no callback {id:?}: see `efgs-gateway callback list`").into()),
        true if args.json => say(serde_json::json!({"country": country.as_str(), "id": id, "state": state})),
        true => say(format!("the callback {id:?} of {country} {done}")),
    }
}

async fn list(args: &WorkArgs) -> Outcome {
    let all = open_current(&args.file.config).await?.store.subscriptions(None).await?;
    if args.json {
        return say(serde_json::Value::from_iter(all.iter().map(json)));
    }
    for one in &all {
        let state = match one.state {
            SubscriptionState::Active => "active",
            SubscriptionState::Paused => "paused after failures",
            SubscriptionState::Held => "paused by the operator",
        };
        say(format!("{}  {}  {}", one.country, clean(&one.name), clean(&one.url)))?;
        say(format!("    {state}, {} queued, last success {}", one.queued, time(one.last_success_at)))?;
        if let Some(error) = one.last_error.as_ref().filter(|_| one.failures > 0) {
            let at = time(one.last_attempt_at);
            say(format!("    {} failures in a row, the last {at}: {}", one.failures, clean(error)))?;
        }
    }
    say(format!("{} callbacks", all.len()))
}

fn json(one: &Subscription) -> serde_json::Value {
    let (state, paused_by) = match one.state {
        SubscriptionState::Active => ("active", None),
        SubscriptionState::Paused => ("paused", Some("failures")),
        SubscriptionState::Held => ("paused", Some("operator")),
    };
    let time = |time: Option<DateTime<Utc>>| time.map(|t| t.to_rfc3339_opts(SecondsFormat::Millis, true));
    serde_json::json!({
        "country": one.country.as_str(), "id": one.name, "url": one.url, "state": state, "pausedBy": paused_by,
        "queued": one.queued, "failures": one.failures, "lastError": one.last_error,
        "lastAttempt": time(one.last_attempt_at), "lastSuccess": time(one.last_success_at),
    })
}

fn time(time: Option<DateTime<Utc>>) -> String {
    time.map_or("never".to_owned(), |t| t.to_rfc3339_opts(SecondsFormat::Secs, true))
}
