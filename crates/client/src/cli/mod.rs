//! The command `efgs`, built on the library. One file per subcommand.

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::profile::{DEFAULT_FILE, Profile, ProfileError};

mod audit;
mod callback;
mod doctor;
mod download;
mod export;
mod gaen;
mod generate;
mod init;
mod output;
mod sign;
mod stop;
mod upload;
mod withdraw;

use output::{Console, Exit};

/// The outcome of a command. An error is printed on standard error; see [`Exit::of`] for its exit code.
type Outcome = Result<Exit, Box<dyn Error>>;

const EXAMPLE: &str = "Example:\n  efgs init --country NL && efgs doctor";

/// A national backend's side of the Federation Gateway: upload, download, verify, publish.
#[derive(Debug, Parser)]
#[command(
    name = "efgs",
    version,
    propagate_version = true,
    after_help = EXAMPLE,
    after_long_help = format!("{EXAMPLE}\n\n{}", Exit::explained())
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
struct Global {
    /// The profile (TOML)
    #[arg(long, global = true, env = "EFGS_PROFILE", value_name = "FILE", default_value = DEFAULT_FILE)]
    profile: PathBuf,
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Print only results and errors: no progress, no warnings
    #[arg(long, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::InitArgs),
    Doctor(doctor::DoctorArgs),
    Sign(sign::SignArgs),
    Verify(sign::VerifyArgs),
    /// Manage callbacks: the gateway calls when there is a new batch
    #[command(subcommand)]
    Callback(callback::CallbackCommand),
    Export(export::ExportArgs),
    Upload(upload::UploadArgs),
    Withdraw(withdraw::WithdrawArgs),
    Download(download::DownloadArgs),
    Audit(audit::AuditArgs),
    Completions(generate::CompletionsArgs),
    Man(generate::ManArgs),
}

/// The context of a command.
struct Context {
    console: Console,
    path: PathBuf,
}

impl Context {
    /// Reads the profile; its warnings go to standard error.
    fn profile(&self) -> Result<Profile, ProfileError> {
        let profile = Profile::load(&self.path)?;
        for warning in profile.warnings() {
            self.console.warn(warning);
        }
        Ok(profile)
    }
}

/// Runs the command that the arguments name. Prints errors and remedies on standard error.
pub fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let context = Context { console: Console::new(global.json, global.quiet), path: global.profile };
    let outcome = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(&context, command));
            // Do not wait for a thread that still waits for input.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(error.into()),
    };
    let exit = outcome.unwrap_or_else(|error| {
        context.console.fail(&*error);
        Exit::of(&*error)
    });
    ExitCode::from(exit as u8)
}

async fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Init(args) => init::run(context, &args),
        Command::Doctor(args) => doctor::run(context, &args).await,
        Command::Sign(args) => sign::sign(context, &args),
        Command::Verify(args) => sign::verify(context, &args),
        Command::Callback(command) => callback::run(context, command).await,
        Command::Export(args) => export::run(context, args).await,
        Command::Upload(args) => upload::run(context, args).await,
        Command::Withdraw(args) => withdraw::run(context, &args).await,
        Command::Download(args) => download::run(context, args).await,
        Command::Audit(args) => audit::run(context, &args).await,
        Command::Completions(args) => generate::completions(context, &args),
        Command::Man(args) => generate::man(context, &args),
    }
}

#[cfg(test)]
mod tests;
