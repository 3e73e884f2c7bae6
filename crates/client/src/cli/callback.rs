//! `efgs callback …`: where the gateway calls this backend when there is a new batch.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Context, Outcome, output::clean};
use crate::Gateway;

#[derive(Debug, Subcommand)]
pub(super) enum CallbackCommand {
    /// List the URLs that the gateway calls
    #[command(after_help = "Example:\n  efgs callback list --json")]
    List,
    Put(PutArgs),
    Delete(DeleteArgs),
}

/// Register a URL to be called, or replace it
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs callback put main https://nl.example:9443/efgs\n\nThe server there must show a certificate that the operator registered as CALLBACK. Registering again resumes a callback that the gateway paused because it failed too often."
)]
pub(super) struct PutArgs {
    /// A name of your choice, 1 to 64 characters
    id: String,
    /// https, without query, fragment and user name
    url: String,
    /// Say what would be done, and do not do it
    #[arg(long)]
    dry_run: bool,
}

/// Delete a callback
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  efgs callback delete main")]
pub(super) struct DeleteArgs {
    /// Its name, as `callback list` shows it
    id: String,
    /// Say what would be done, and do not do it
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(context: &Context, command: &CallbackCommand) -> Outcome {
    let gateway = context.profile()?.gateway()?;
    match command {
        CallbackCommand::List => {
            let callbacks = gateway.callbacks().await?;
            if context.console.wants_json() {
                return context.console.json(&callbacks);
            }
            let lines = callbacks.iter().map(|c| format!("{}  {}\n", clean(&c.callback_id), clean(&c.url)));
            context.console.print(lines.collect::<String>())
        }
        CallbackCommand::Put(args) => put(context, &gateway, args).await,
        CallbackCommand::Delete(args) => delete(context, &gateway, args).await,
    }
}

async fn put(context: &Context, gateway: &Gateway, PutArgs { id, url, dry_run }: &PutArgs) -> Outcome {
    // Also a dry run: it shows that the gateway lets this backend call.
    let before = url_of(gateway, id).await?;
    let would = if *dry_run { "would be " } else { "" };
    let text = match &before {
        Some(now) if now == url => format!("{id} {would}registered again: {url}"),
        Some(now) => format!("{id} {would}changed from {now} to {url}"),
        None => format!("{id} {would}registered: {url}"),
    };
    if !dry_run {
        gateway.put_callback(id, url).await?;
    }
    let json = json!({"callbackId": id, "url": url, "before": before, "dryRun": dry_run});
    context.console.result(&json, clean(&text))
}

async fn delete(context: &Context, gateway: &Gateway, DeleteArgs { id, dry_run }: &DeleteArgs) -> Outcome {
    let there = match dry_run {
        true => url_of(gateway, id).await?.is_some(),
        false => gateway.delete_callback(id).await?,
    };
    if !there {
        return Err(format!("there is no callback {id}; `efgs callback list` shows them").into());
    }
    let would = if *dry_run { "would be " } else { "" };
    let json = json!({"callbackId": id, "dryRun": dry_run});
    context.console.result(&json, format_args!("{id} {would}deleted"))
}

/// What is registered now.
async fn url_of(gateway: &Gateway, id: &str) -> Result<Option<String>, crate::Error> {
    Ok(gateway.callbacks().await?.into_iter().find(|c| c.callback_id == id).map(|c| c.url))
}
