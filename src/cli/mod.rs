//! The commands of `efgs-gateway`.

use std::{
    error::Error,
    fmt::Display,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    clock::Clock,
    config::{self, AuthMode, Config},
    server::{App, StartError},
};

mod access_log;
mod callback;
mod certificate;
#[cfg(feature = "demo")]
mod demo;
mod encryption;
mod files;
mod health;
mod journal;
mod participant;
mod report;
mod serve;
mod upload;
mod work;

type Outcome = Result<ExitCode, Box<dyn Error>>;

/// The Federation Gateway for European proximity tracing.
#[derive(Debug, Parser)]
#[command(name = "efgs-gateway", version, propagate_version = true)]
#[cfg_attr(
    feature = "demo",
    command(
        after_help = "Example:\n  efgs-gateway demo --once    the complete exchange on this machine, in a temporary folder"
    )
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
    Serve(serve::ServeArgs),
    /// Update the database schema
    #[command(after_help = "Example:\n  efgs-gateway migrate --config efgs.toml")]
    Migrate(ConfigFile),
    /// Check or show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Inspect, sign, import, list and revoke certificates of participants
    #[command(subcommand)]
    Certificate(certificate::CertificateCommand),
    /// Show how each country is served
    #[command(subcommand)]
    Participant(participant::ParticipantCommand),
    /// List, show and withdraw uploads
    #[command(subcommand)]
    Upload(upload::UploadCommand),
    /// List, verify and replay the journal of accepted uploads
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    /// List, pause and resume callbacks
    #[command(subcommand)]
    Callback(callback::CallbackCommand),
    /// Show which encryption keys are in use, and rotate them
    #[command(subcommand)]
    Encryption(encryption::EncryptionCommand),
    /// Form batches; convert files of keys
    #[command(subcommand)]
    Batch(BatchCommand),
    /// Delete everything older than the retention now
    #[command(
        after_help = "Example:\n  efgs-gateway expire --config efgs.toml\n\nSafe while gateways run: it waits for their lease."
    )]
    Expire(WorkArgs),
    /// Verify and export the log of all requests
    #[command(subcommand)]
    AccessLog(access_log::AccessLogCommand),
    Report(report::ReportArgs),
    Health(health::HealthArgs),
    /// Print the API document, or compare it with a file
    #[command(hide = true)]
    Openapi(OpenapiArgs),
}

#[derive(Debug, Subcommand)]
enum BatchCommand {
    /// Form batches now, until no upload waits
    #[command(
        after_help = "Example:\n  efgs-gateway batch form --config efgs.toml\n\nSafe while gateways run: it waits for their lease."
    )]
    Form(WorkArgs),
    SignedBytes(files::SignedBytesArgs),
    Convert(files::ConvertArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a configuration, and name the keys that are wrong
    #[command(after_help = "Example:\n  efgs-gateway config check --config efgs.toml")]
    Check(ConfigFile),
    /// Print a complete commented example
    #[command(after_help = "Example:\n  efgs-gateway config example > efgs.toml")]
    Example,
}

/// The configuration file.
#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Arguments of jobs that are run by hand.
#[derive(Debug, Args)]
struct WorkArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct OpenapiArgs {
    /// Fail unless this file equals the document
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

/// Runs the command that the arguments name. Prints errors and remedies on standard error.
pub fn main() -> ExitCode {
    // Two TLS libraries in one program must agree on one provider; a second installation changes nothing.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    runtime.block_on(run(cli.command)).unwrap_or_else(|error| fail(&*error))
}

fn fail(error: &dyn Error) -> ExitCode {
    // Nothing is left to do when standard error is closed.
    drop(writeln!(std::io::stderr(), "efgs-gateway: {error}"));
    ExitCode::FAILURE
}

async fn run(command: Command) -> Outcome {
    let own_logs = match &command {
        Command::Serve(_) => true,
        #[cfg(feature = "demo")]
        Command::Demo(_) => true,
        _ => false,
    };
    if !own_logs {
        crate::telemetry::init_logs("warn");
    }
    match command {
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Migrate(file) => {
            let app = open(&file.config)?;
            app.store.migrate().await?;
            app.store.add_days(app.chain.oldest(), app.clock.now().date_naive()).await?;
            say("the database schema is up to date")
        }
        Command::Config(ConfigCommand::Check(file)) => check(&file.config),
        Command::Config(ConfigCommand::Example) => print(config::EXAMPLE),
        Command::Certificate(command) => certificate::run(command).await,
        Command::Participant(command) => participant::run(command).await,
        Command::Upload(command) => upload::run(command).await,
        Command::Journal(command) => journal::run(command).await,
        Command::Callback(command) => callback::run(command).await,
        Command::Encryption(command) => encryption::run(command).await,
        Command::Batch(BatchCommand::Form(args)) => work::form_batches(&args).await,
        Command::Batch(BatchCommand::SignedBytes(args)) => files::signed_bytes(&args),
        Command::Batch(BatchCommand::Convert(args)) => files::convert(&args),
        Command::Expire(args) => work::expire(&args).await,
        Command::AccessLog(command) => access_log::run(command).await,
        Command::Report(args) => report::run(args).await,
        Command::Health(args) => health::run(&args),
        Command::Openapi(args) => openapi(&args),
    }
}

/// Opens everything that a configuration names.
fn open(path: &Path) -> Result<Arc<App>, StartError> {
    App::new(Config::load(path)?, Clock::system(), None)
}

/// The same, with a current schema: an empty database is set up, an older one must be updated with `migrate`.
async fn open_current(path: &Path) -> Result<Arc<App>, StartError> {
    let app = open(path)?;
    if app.store.is_empty().await? {
        app.store.migrate().await?;
    } else if !app.store.schema_is_current().await? {
        return Err(StartError::SchemaOutdated);
    }
    Ok(app)
}

fn check(path: &Path) -> Outcome {
    let app = open(path)?;
    // Everything that `serve` reads besides.
    if let Some(tls) = app.config.tls.as_ref().filter(|_| app.config.server.auth == AuthMode::Mtls) {
        crate::trust::TlsSetup::load(tls)?;
    }
    for warning in app.config.warnings() {
        say(format!("warning: {warning}"))?;
    }
    say(format!("{} is complete and valid", path.display()))
}

fn openapi(args: &OpenapiArgs) -> Outcome {
    let document = crate::server::document();
    let Some(path) = &args.check else { return print(document) };
    let committed =
        std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    if committed == document {
        say(format!("{} is up to date", path.display()))
    } else {
        Err(format!("{} is stale: run `cargo xtask openapi` and commit it", path.display()).into())
    }
}

/// Replaces control characters in a text, so that it is safe to print on a terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn say(line: impl Display) -> Outcome {
    print(format!("{line}\n"))
}

/// Writes to standard output. A closed pipe (`| head`) is not an error.
fn print(text: impl AsRef<[u8]>) -> Outcome {
    match std::io::stdout().lock().write_all(text.as_ref()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
