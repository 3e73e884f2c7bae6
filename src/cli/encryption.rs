//! `encryption …`: the encryption keys in use, and their rotation (spec §8.2).

use std::{io::IsTerminal, io::Write, process::ExitCode, sync::Arc};

use clap::Subcommand;
use serde_json::json;

use super::{Outcome, WorkArgs, open_current, say};
use crate::{
    rotation::{self, Rotated},
    server::App,
    store::KeyUse,
};

#[derive(Debug, Subcommand)]
pub(super) enum EncryptionCommand {
    /// Show how much is encrypted with each encryption key
    #[command(after_help = "Example:\n  efgs-gateway encryption status --config efgs.toml")]
    Status(WorkArgs),
    /// Encrypt all stored payloads with the first of `encryption.keys`
    #[command(after_help = "Example:\n  efgs-gateway encryption rotate --config efgs.toml

Safe while gateways run. If it is interrupted, run it again. Before, every gateway must have the new key:
  1. write it at the end of encryption.keys on every instance, and send each SIGHUP;
  2. move it to the front on every instance, and send each SIGHUP;
  3. run this command;
  4. remove the old key everywhere, and send each SIGHUP.")]
    Rotate(WorkArgs),
}

pub(super) async fn run(command: EncryptionCommand) -> Outcome {
    match command {
        EncryptionCommand::Status(args) => status(&args).await,
        EncryptionCommand::Rotate(args) => rotate(&args).await,
    }
}

async fn status(args: &WorkArgs) -> Outcome {
    let app = open_current(&args.file.config).await?;
    rotation::recognise(&app.store, &app.keyring).await?;
    let known = app.keyring.ids();
    let used = app.store.encryption_keys().await?;
    let of =
        |id| used.iter().find(|used| used.id == id).copied().unwrap_or(KeyUse { id, uploads: 0, keys: 0 });
    let missing = used.iter().filter(|used| !known.contains(&used.id)).copied();
    let all: Vec<KeyUse> = known.iter().map(|id| of(*id)).chain(missing).collect();
    let state = |key: &KeyUse| match known.iter().position(|id| *id == key.id) {
        None => "missing",
        Some(0) => "encrypts",
        Some(_) if key.uploads == 0 => "unused",
        Some(_) => "decrypts",
    };
    if args.json {
        let keys = all
            .iter()
            .map(|key| json!({"id": key.id, "state": state(key), "uploads": key.uploads, "keys": key.keys}));
        say(json!({ "encryptionKeys": keys.collect::<Vec<_>>() }))?;
    } else {
        for key in &all {
            let meaning = match state(key) {
                "encrypts" => "encrypts new uploads",
                "unused" if app.config.journal.is_some() => {
                    "no upload needs it; `efgs-gateway journal list` shows whether the journal needs it until it deletes \
                     those files"
                }
                "unused" => "can be removed from `encryption.keys`, once no instance has it first",
                "decrypts" => "is needed until `efgs-gateway encryption rotate` has run",
                _ => "IS MISSING in `encryption.keys`: these uploads cannot be read",
            };
            say(format!("key {}: {} uploads, {} diagnosis keys; {meaning}", key.id, key.uploads, key.keys))?;
        }
    }
    Ok(if all.iter().any(|key| state(key) == "missing") { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn rotate(args: &WorkArgs) -> Outcome {
    let app = open_current(&args.file.config).await?;
    let (first, others) = (app.keyring.ids().first().copied().unwrap_or_default(), waiting(&app).await?);
    let terminal = std::io::stderr().is_terminal() && !args.json;
    let done = rotation::rotate(&app.store, &app.keyring, |so_far: Rotated| {
        if terminal {
            // A failed progress message does not matter.
            drop(write!(std::io::stderr(), "\r{} of {others} uploads ", so_far.uploads));
        }
    })
    .await;
    if terminal {
        drop(writeln!(std::io::stderr()));
    }
    let done = done?;
    let left = waiting(&app).await?;
    if args.json {
        say(json!({"key": first, "uploads": done.uploads, "keys": done.keys, "left": left}))?;
    } else {
        say(format!(
            "encrypted {} uploads with {} diagnosis keys with key {first}",
            done.uploads, done.keys
        ))?;
    }
    match left {
        0 => Ok(ExitCode::SUCCESS),
        _ => Err(format!(
            "{left} new uploads are encrypted with another key: an instance does not have key {first} first in \
             `encryption.keys`, or has only just reloaded it; correct it, send it SIGHUP, and run this again"
        )
        .into()),
    }
}

/// Uploads that are not encrypted with the first key.
async fn waiting(app: &Arc<App>) -> Result<u64, crate::store::StoreError> {
    let first = app.keyring.ids().first().copied();
    let used = app.store.encryption_keys().await?;
    Ok(used.iter().filter(|used| Some(used.id) != first).map(|used| used.uploads).sum())
}
