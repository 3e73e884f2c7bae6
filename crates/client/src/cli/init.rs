//! `efgs init`: writes a profile to start from.

use std::{fs, io::Write as _, path::PathBuf};

use clap::Args;
use efgs_protocol::country::Country;

use super::{Context, Outcome, output::Exit};
use crate::{connection, profile::EXAMPLE};

/// Write a commented profile to start from
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  efgs init --country NL --url https://efgs.example:8443")]
pub(super) struct InitArgs {
    /// Where to write it, instead of --profile
    file: Option<PathBuf>,
    /// The country that this backend serves, as in its certificates
    #[arg(long, value_name = "CC")]
    country: Option<Country>,
    /// The gateway's URL
    #[arg(long)]
    url: Option<String>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Print the profile and write nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(context: &Context, args: &InitArgs) -> Outcome {
    let profile = fill(args)?;
    if args.dry_run {
        return context.console.print(profile);
    }
    let path = args.file.as_ref().unwrap_or(&context.path);
    let mut options = fs::OpenOptions::new();
    let options = if args.force { options.create(true).truncate(true) } else { options.create_new(true) };
    let written = options.write(true).open(path).and_then(|mut file| {
        file.write_all(profile.as_bytes())?;
        file.sync_all()
    });
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(format!("{} already exists; --force replaces it", path.display()).into());
        }
        Err(error) => return Err(format!("cannot write {}: {error}", path.display()).into()),
    }
    if context.console.wants_json() {
        return context.console.json(&serde_json::json!({ "profile": path }));
    }
    context.console.note(format_args!(
        "written to {}; put the files that it names beside it, then run efgs doctor",
        path.display()
    ));
    Ok(Exit::Done)
}

fn fill(args: &InitArgs) -> Result<String, Box<dyn std::error::Error>> {
    let mut profile = EXAMPLE.to_owned();
    if let Some(country) = args.country {
        profile = profile.replace("XX", country.as_str());
    }
    if let Some(url) = &args.url {
        let url = connection::base(url)?;
        profile = profile.replace("https://efgs.example:8443", url.as_str().trim_end_matches('/'));
    }
    Ok(profile)
}
