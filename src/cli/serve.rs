//! `serve`.

use std::{path::Path, process::ExitCode, time::Duration};

use clap::Args;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigFile, Outcome};
use crate::{
    clock::Clock,
    config::Config,
    server::{App, Gateway},
    telemetry::{self, Traces},
};

/// Run the gateway
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs-gateway serve --config efgs.toml\n\nOn SIGTERM and SIGINT it completes the requests under way and exits with 0. On SIGHUP it reads certificates, encryption keys and the registry again."
)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Do not update the database schema first
    #[arg(long)]
    no_migrate: bool,
}

pub(super) async fn run(args: ServeArgs) -> Outcome {
    let config = Config::load(&args.file.config)?;
    let traces = config.tracing.as_ref().map(Traces::new).transpose()?;
    // The HTTP library writes an error line for each malformed request, which anybody can send.
    let filter = format!("info,actix_server=warn,actix_http=off,{}", crate::store::LOG_FILTER);
    telemetry::init(&filter, traces.as_ref());
    let metrics = telemetry::install()?;
    let app = App::new(config, Clock::system(), Some(metrics.clone()))?;
    let gateway = Gateway::start(app, !args.no_migrate).await?;
    wait(&gateway, &metrics, &args.file.config).await?;
    gateway.stop().await;
    if let Some(traces) = traces {
        traces.shutdown().await;
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves until a signal says to stop.
async fn wait(gateway: &Gateway, metrics: &PrometheusHandle, config: &Path) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut upkeep = tokio::time::interval(Duration::from_secs(5));
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hang_up.recv() => reload(gateway, config).await,
            _ = upkeep.tick() => metrics.run_upkeep(),
        }
    }
}

async fn reload(gateway: &Gateway, config: &Path) {
    match Config::load(config) {
        Ok(new) => gateway.reload().all(&new).await,
        Err(error) => {
            tracing::error!(%error, "the configuration stays as it was");
            gateway.reload().all(&gateway.app().config).await;
        }
    }
}
