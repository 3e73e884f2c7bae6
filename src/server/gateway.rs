//! A running gateway: its listeners and its jobs.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_web::{App as ActixApp, HttpServer, dev::ServerHandle, middleware::from_fn, web};
use tokio::task::JoinHandle;

use super::{App, Reload, StartError, admin, listen, overview};
use crate::{
    config::{AuthMode, ConfigError},
    jobs::{self, Shutdown},
    rotation,
    store::StoreError,
    trust::{self, DenyFile, TlsSetup},
};

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    /// The address for national backends.
    pub address: SocketAddr,
    /// The address of the admin listener.
    pub admin_address: SocketAddr,
    app: Arc<App>,
    reload: Arc<Reload>,
    stop: tokio::sync::watch::Sender<bool>,
    servers: Vec<ServerHandle>,
    tasks: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Migrates the schema if `migrate`, then listens and starts the jobs.
    pub async fn start(app: Arc<App>, migrate: bool) -> Result<Self, StartError> {
        let tls = match (app.config.server.auth, &app.config.tls) {
            (AuthMode::Mtls, Some(files)) => Some((files.clone(), TlsSetup::load(files)?)),
            (AuthMode::Mtls, None) => return Err(ConfigError::Invalid("`[tls]` is missing".into()).into()),
            (AuthMode::Proxy, _) => None,
        };
        if migrate {
            app.store.migrate().await?;
        } else if !app.store.schema_is_current().await? {
            return Err(StartError::SchemaOutdated);
        }
        // Without a partition for today nothing can be stored, but everything can be read.
        let (oldest, today) = (app.chain.oldest(), app.clock.now().date_naive());
        if let Err(error) = app.store.add_days(oldest, today).await {
            tracing::error!(%error, "the days to come were not added to the database");
        }
        rotation::check(&app.store, &app.keyring).await?;
        if app.store.replay_is_unfinished().await? {
            return Err(StartError::ReplayUnfinished);
        }
        let deny_file = app.config.trust.deny_file.clone().map(|path| {
            let name = path.display().to_string();
            DenyFile::load(path, app.trust.clone(), app.health.clone())
                .map_err(|source| StartError::DenyFile { path: name, source })
        });
        let deny_file = deny_file.transpose()?;
        trust::load(&app.trust, &app.store).await?;
        app.access_log.begin().await?;

        let listen = |key: &'static str, address: SocketAddr| {
            TcpListener::bind(address).map_err(|source| StartError::Listen { key, address, source })
        };
        let national = listen("listen", app.config.server.listen)?;
        let admin = listen("admin_listen", app.config.server.admin_listen)?;
        let local = |listener: &TcpListener, fallback| listener.local_addr().unwrap_or(fallback);
        let address = local(&national, app.config.server.listen);
        let admin_address = local(&admin, app.config.server.admin_listen);

        let national = listen::national_server(&app, tls.as_ref().map(|(_, tls)| tls), national)?;
        let reload = Arc::new(Reload::new(app.clone(), tls));
        let (stop, shutdown) = Shutdown::new();
        let health = || app.health.clone();
        let (log, forget) = (app.access_log.clone(), app.config.retention.interval);
        let mut tasks = vec![
            tokio::spawn(app.batching.clone().run(shutdown.clone())),
            tokio::spawn(app.expiry.clone().run(shutdown.clone())),
            tokio::spawn(log.clone().run(health(), shutdown.clone())),
            tokio::spawn(log.run_retention(forget, health(), shutdown.clone())),
            tokio::spawn(watch_certificates(reload.clone(), shutdown.clone())),
            tokio::spawn(app.callbacks.clone().run(shutdown.clone())),
            tokio::spawn(overview::run(app.clone(), shutdown.clone())),
            tokio::spawn(reload.clone().watch(shutdown.clone())),
            tokio::spawn(app.journal.clone().run(health(), shutdown.clone())),
            tokio::spawn(load_chain(app.clone(), shutdown.clone())),
            tokio::spawn(refresh_trust(app.clone(), shutdown.clone())),
        ];
        tasks.extend(deny_file.map(|file| tokio::spawn(file.watch(shutdown))));
        let mut servers = Vec::new();
        for server in [national, admin_server(&app, admin)?] {
            servers.push(server.handle());
            tasks.push(tokio::spawn(async move {
                if let Err(error) = server.await {
                    tracing::error!(%error, "a listener stopped");
                }
            }));
        }
        for warning in app.config.warnings() {
            tracing::warn!("{warning}");
        }
        tracing::info!(%address, %admin_address, instance = app.instance.id, host = app.instance.host, "the gateway serves");
        Ok(Self { address, admin_address, app, reload, stop, servers, tasks })
    }

    /// The parts of this gateway.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// What can be reloaded while it runs.
    pub fn reload(&self) -> &Arc<Reload> {
        &self.reload
    }

    /// Stops accepting requests, completes those in progress, and returns when all is done.
    pub async fn stop(self) {
        for server in &self.servers {
            server.stop(true).await;
        }
        self.stop.send_replace(true);
        for task in self.tasks {
            drop(task.await);
        }
        self.app.journal.close().await;
        self.app.store.clone().close().await;
        tracing::info!("the gateway has stopped");
    }
}

/// Loads the chain before a request needs it. Until then `ready` says no.
async fn load_chain(app: Arc<App>, mut shutdown: Shutdown) {
    let load = async {
        while let Err(error) = app.chain.refresh().await {
            tracing::warn!(%error, "the chain of batches could not be loaded; it will be retried");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = shutdown.requested() => {}
        () = load => {}
    }
}

async fn refresh_trust(app: Arc<App>, shutdown: Shutdown) {
    let load = || async {
        // Withdrawals first: if they cannot be read, the registry must grow stale so that nothing is served.
        let loading = async {
            app.withdrawals.refresh().await?;
            trust::load(&app.trust, &app.store).await?;
            app.watch_decisions();
            Ok(())
        };
        loading.await.inspect_err(|error: &StoreError| app.trust.failed(!error.is_unreachable()))
    };
    let watch = app.health.watch("trust", app.config.trust.refresh);
    jobs::repeat(watch, app.trust.pace(), shutdown, std::future::pending, load).await;
}

async fn watch_certificates(reload: Arc<Reload>, shutdown: Shutdown) {
    const PACE: Duration = Duration::from_secs(60);
    let look = || async {
        reload.look_at_certificates();
        Ok::<(), StoreError>(())
    };
    let watch = reload.app().health.watch("certificates", PACE);
    jobs::repeat(watch, PACE, shutdown, std::future::pending, look).await;
}

fn admin_server(app: &Arc<App>, listener: TcpListener) -> Result<actix_web::dev::Server, StartError> {
    let data = web::Data::from(app.clone());
    let address = app.config.server.admin_listen;
    let routes = move || {
        ActixApp::new().app_data(data.clone()).wrap(from_fn(admin::check_host)).configure(admin::configure)
    };
    let server = HttpServer::new(routes)
        .workers(1)
        .max_connections(256)
        .keep_alive(Duration::from_secs(10))
        .client_request_timeout(Duration::from_secs(2))
        .shutdown_timeout(1)
        .disable_signals()
        .listen(listener)
        .map_err(|source| StartError::Listen { key: "admin_listen", address, source })?;
    Ok(server.run())
}
