//! `demo`: the complete exchange on an empty machine, with the real server and real certificates.

mod audit;
mod folder;
mod invite;
mod report;
mod steps;
#[cfg(test)]
mod tests;
mod values;

use std::{
    error::Error,
    io::{ErrorKind, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::PathBuf,
    pin::{Pin, pin},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::Outcome;
use crate::{
    clock::Clock,
    config::Config,
    jobs,
    server::{App, Gateway},
    store::{Job, Store, StoreError},
    telemetry,
};
use folder::Folder;
use report::Report;
use steps::Steps;

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// Show the complete exchange on an empty machine: three countries upload, download and audit
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  efgs-gateway demo                      all steps, then a gateway to try until Ctrl-C\n  efgs-gateway demo --once               only the steps; exit code 0 when every step succeeded\n  efgs-gateway demo --keep /tmp/efgs     keep certificates, configuration and database, and use them again next time\n\nCertificates, keys and the SQLite database are throw-away. They are in a temporary folder."
)]
pub(super) struct DemoArgs {
    /// Stop after the last step
    #[arg(long)]
    once: bool,
    /// The gateway's address: a port of this machine, 0 for any free one [default: 127.0.0.1:8443]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Keep everything in this folder instead of a temporary one
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

pub(super) async fn run(args: DemoArgs) -> Outcome {
    telemetry::init_logs("warn");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopped = pin!(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let mut report = Report::to_stdout();
    // Not cut short by a signal, so that a temporary folder is complete when it is deleted.
    let stage = set_up(&args, &mut report).await?;
    let outcome = perform(&args, &stage, &mut report, stopped).await;
    stage.gateway.stop().await;
    let folder = stage.folder.path().display();
    report.aside(if stage.folder.is_temporary() {
        format!("{folder} is deleted.")
    } else {
        format!(
            "Everything is in {folder}; to use it again: efgs-gateway demo --keep {}",
            quote(&folder.to_string())
        )
    })?;
    Ok(if outcome? && report.all_held() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The demo's folder and gateway.
struct Stage {
    folder: Folder,
    gateway: Gateway,
    url: String,
}

/// Runs the steps, then serves until stopped. Returns whether all steps ran.
async fn perform<W: Write>(
    args: &DemoArgs,
    stage: &Stage,
    report: &mut Report<W>,
    mut stopped: Pin<&mut impl Future<Output = ()>>,
) -> Result<bool, Box<dyn Error>> {
    tokio::select! {
        biased;
        () = &mut stopped => return Ok(false),
        done = stage.run(report) => done?,
    }
    if !args.once {
        invite::invite(report, stage).await?;
        stopped.await;
        report.line("\nStopping …")?;
    }
    Ok(true)
}

/// Creates the folder or uses an earlier one, onboards the countries, and starts the gateway.
async fn set_up<W: Write>(args: &DemoArgs, report: &mut Report<W>) -> Result<Stage, Box<dyn Error>> {
    refuse_environment(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))?;
    let wanted = args.listen.unwrap_or(DEFAULT_LISTEN);
    let address = free(wanted, args.once && args.listen.is_none())?;
    let folder = Folder::prepare(args.keep.as_deref(), wanted)?;
    report.line("An EFGS gateway at work: the real server, real TLS, throw-away certificates.")?;
    report.aside(format_args!("Folder: {}", folder.path().display()))?;
    if address != wanted {
        report.aside(format_args!("Another program listens on {wanted}, so the demo uses a free port."))?;
    }

    let mut config = Config::load(&folder.config())?;
    config.server.listen = address;
    let app = App::new(config, Clock::system(), None)?;
    app.store.migrate().await?;
    // The steps form the batches. First form one of what an earlier run left.
    app.batching.form_now().await?;
    next_batch_in(&app.store, Duration::from_secs(600)).await?;
    steps::onboard(report, &folder, &app).await?;

    let gateway = Gateway::start(app, true).await?;
    let url = format!("https://{}", reachable(gateway.address));
    Ok(Stage { folder, gateway, url })
}

impl Stage {
    async fn run<W: Write>(&self, report: &mut Report<W>) -> Result<(), Box<dyn Error>> {
        let Self { folder, gateway, url } = self;
        let app = gateway.app();
        let date = app.clock.now().date_naive();
        let mut steps = Steps { report, folder, app, url, date, run: values::run_id() };
        if let Err(error) = steps.run().await {
            report.stopped(error)?;
        }
        report.summary()?;
        // Last, so that a caller that waits for a profile also finds batches.
        folder.write_profiles(url)?;
        next_batch_in(&app.store, Duration::ZERO).await?;
        Ok(())
    }
}

/// The demo must never touch an operator's database, so it takes nothing from the environment.
fn refuse_environment(mut names: impl Iterator<Item = String>) -> Result<(), String> {
    match names.find(|name| name.starts_with("EFGS__")) {
        None => Ok(()),
        Some(name) => Err(format!(
            "{name} is set and would change the demo's configuration: start it with `env -u {name} efgs-gateway demo`"
        )),
    }
}

/// An address to listen on: the wanted one if it is free, otherwise another port if `may_move`.
fn free(wanted: SocketAddr, may_move: bool) -> Result<SocketAddr, String> {
    let ip = wanted.ip();
    if !(ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST) {
        return Err(format!(
            "--listen {wanted}: the demo's certificate is for this machine only, so use 127.0.0.1, [::1] or 0.0.0.0"
        ));
    }
    match TcpListener::bind(wanted) {
        Ok(_) => Ok(wanted),
        Err(error) if error.kind() == ErrorKind::AddrInUse && may_move => Ok(SocketAddr::new(ip, 0)),
        Err(error) => Err(format!(
            "cannot listen on {wanted}: {error}; choose another port with --listen, or any free one with --listen 127.0.0.1:0"
        )),
    }
}

/// How a client on this machine calls a listener.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Sets when the batching job is next due.
async fn next_batch_in(store: &Store, wait: Duration) -> Result<(), StoreError> {
    let lease = jobs::wait_for_lease(store, Job::Batching).await?;
    jobs::under_lease(store, lease, async |lease| store.set_due(lease, wait).await).await
}

/// A path as a shell takes it.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
