//! `efgs completions` and `efgs man`: generated from the arguments, so that they cannot be outdated.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Context, Outcome, output::Exit};

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  efgs completions bash > /etc/bash_completion.d/efgs")]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page, or write one for each command
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  efgs man --folder /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Write the pages of all commands into this folder
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub(super) fn completions(context: &Context, args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "efgs", &mut script);
    context.console.print(script)
}

pub(super) fn man(context: &Context, args: &ManArgs) -> Outcome {
    let command = Cli::command();
    match &args.folder {
        Some(folder) => {
            clap_mangen::generate_to(command, folder)
                .map_err(|e| format!("cannot write to {}: {e}", folder.display()))?;
            Ok(Exit::Done)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            context.console.print(page)
        }
    }
}
