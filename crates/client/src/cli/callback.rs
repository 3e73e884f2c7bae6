//! `efgs callback …`: the URLs at which the gateway calls this backend when there is a new batch.

use std::{net::SocketAddr, sync::Arc};

use clap::{Args, Subcommand};
use serde_json::json;
use tokio::sync::Notify;

use super::{
    Context, Outcome,
    download::{self, DownloadArgs},
    output::clean,
    stop::stoppable,
};
use crate::{
    Gateway,
    callback::{Receiver, ReceiverEvent},
    profile::CallbackServer,
};

#[derive(Debug, Subcommand)]
pub(super) enum CallbackCommand {
    /// List the URLs that the gateway calls
    #[command(after_help = "Example:\n  efgs callback list --json")]
    List,
    Put(PutArgs),
    Delete(DeleteArgs),
    Serve(Box<ServeArgs>),
}

/// Register the URL of a callback, or replace it
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs callback put main https://nl.example:9443/efgs\n\nThe server must present a certificate that the operator registered as CALLBACK. Registering again resumes a callback that the gateway paused after too many failures."
)]
pub(super) struct PutArgs {
    /// A name of your choice, 1 to 64 characters
    id: String,
    /// https, without query, fragment and user name
    url: String,
    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
}

/// Delete a callback
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  efgs callback delete main")]
pub(super) struct DeleteArgs {
    /// Its name, as `callback list` shows it
    id: String,
    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
}

/// Listen for the gateway's calls, and download the announced batches
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs callback serve --listen 0.0.0.0:9443 --into batches\n\nIt accepts only the gateway, by the certificates in `[callback]` of the profile, and answers it at once. It then downloads all new batches along the chain, also those that are announced meanwhile. It also polls, as `efgs download --follow` does. On SIGTERM it completes the batch under way."
)]
pub(super) struct ServeArgs {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9443")]
    listen: SocketAddr,
    #[command(flatten)]
    download: DownloadArgs,
}

pub(super) async fn run(context: &Context, command: CallbackCommand) -> Outcome {
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
        CallbackCommand::Put(args) => put(context, &gateway, &args).await,
        CallbackCommand::Delete(args) => delete(context, &gateway, &args).await,
        CallbackCommand::Serve(args) => serve(context, *args).await,
    }
}

async fn serve(context: &Context, args: ServeArgs) -> Outcome {
    let CallbackServer { path, identity, gateway } = context.profile()?.callback()?;
    let receiver = Receiver::bind(args.listen, &path, &identity, gateway).await?;
    let console = context.console;
    console.note(format_args!("listening at https://{}{path}", receiver.address()?));
    let wake = Arc::new(Notify::new());
    let announced = wake.clone();
    let on_event = move |event| match event {
        ReceiverEvent::Announced(announcement) => {
            console.note(format_args!("the gateway announces {}", announcement.batch_tag));
            announced.notify_one();
        }
        ReceiverEvent::TurnedAway { peer, reason } => {
            console.note(format_args!("{peer} was rejected: {reason}"))
        }
    };
    let mut download = args.download;
    download.follow = true;
    let work = stoppable(async |stop| {
        let listening = tokio::spawn(receiver.run(stop.clone().cancelled_owned(), on_event));
        let outcome = download::download(context, download, &wake, stop.clone()).await;
        // After a permanent error too: without downloads there is no reason to listen.
        stop.cancel();
        listening.await?;
        outcome
    });
    work.await?.unwrap_or_else(|| Err("stopped immediately; the next run resumes there".into()))
}

async fn put(context: &Context, gateway: &Gateway, PutArgs { id, url, dry_run }: &PutArgs) -> Outcome {
    // A dry run does this too: it shows that the gateway accepts this backend.
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
