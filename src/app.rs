//! The composition root: the only place that knows everyone.

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_web::{App as ActixApp, HttpServer, dev::ServerHandle, web};
use efgs_protocol::{anchor::TrustAnchor, batch_tag::BatchTag, country::Country};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{runtime::Handle, sync::Notify, task::JoinHandle};
use tracing::Instrument as _;

use crate::{
    access_log::{self, AccessLog},
    batching,
    callback::{self, Downloaded, Guard, GuardError, Resolve, SystemResolver},
    chain::{Chain, Link},
    clock::Clock,
    config::{AuthMode, Config, ConfigError},
    download::Sealed,
    encryption::Keyring,
    expiry,
    health::Health,
    http,
    instance::Instance,
    jobs::{self, Shutdown},
    journal::{self, Journal},
    limits::{Kind, Limits},
    listen, overview,
    reload::Reload,
    rotation::{self, RotationError},
    store::{Store, StoreError},
    trust::{Caller, TlsError, TlsSetup, Trust},
};

/// What every feature shares.
pub struct App {
    /// Which start of a gateway this is.
    pub instance: Instance,
    /// The settings.
    pub config: Config,
    /// The time.
    pub clock: Clock,
    /// The database.
    pub store: Store,
    /// The record of every request.
    pub access_log: AccessLog,
    /// Who may call and sign.
    pub trust: Trust,
    /// Encryption at rest.
    pub keyring: Keyring,
    /// The batches.
    pub chain: Chain,
    /// Bodies that are ready to send.
    pub sealed: Sealed,
    /// Tells the batching job that an upload has come.
    pub wake_batching: Notify,
    /// Where callbacks may lead.
    pub guard: Guard,
    /// What is recorded outside the database, when that is configured.
    pub journal: Option<Journal>,
    /// What countries have got, so that they are not told of it.
    pub downloaded: Downloaded,
    /// Tells the callback job that a batch has been formed.
    pub wake_callbacks: Notify,
    /// How the jobs and the certificates stand.
    pub health: Health,
    /// What the operator sees.
    pub overview: overview::Cache,
    /// What countries may take of this instance.
    pub limits: Arc<Limits>,
    metrics: Option<PrometheusHandle>,
    runtime: Handle,
}

/// Why the gateway cannot start; every text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not right.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file of `[tls]` is not right.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// `[callback]` is not right.
    #[error(transparent)]
    Callback(#[from] GuardError),
    /// The trust anchor is not usable.
    #[error("`trust.anchor` ({path}): {reason}")]
    Anchor {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The database is not usable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The schema is old, and `--no-migrate` was given.
    #[error("the database schema is not up to date: run `efgs-gateway migrate --config FILE`")]
    SchemaOutdated,
    /// What is stored could not be read.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// The database is only half filled from the journal.
    #[error(
        "the database has not been filled from the journal to the end: run `efgs-gateway journal replay --config FILE` again"
    )]
    ReplayUnfinished,
    /// An address cannot be listened on.
    #[error("cannot listen on `server.{key}` = {address}: {source}")]
    Listen {
        /// Which address.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The TLS library refuses its settings.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

impl App {
    /// Reads what the configuration names and prepares everything; nothing runs yet.
    pub fn new(
        config: Config,
        clock: Clock,
        metrics: Option<PrometheusHandle>,
    ) -> Result<Arc<Self>, StartError> {
        Self::with_resolver(config, clock, metrics, Arc::new(SystemResolver))
    }

    /// The same with another way to look up the hosts of callbacks.
    pub fn with_resolver(
        config: Config,
        clock: Clock,
        metrics: Option<PrometheusHandle>,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Arc<Self>, StartError> {
        let anchor =
            |reason: String| StartError::Anchor { path: config.trust.anchor.display().to_string(), reason };
        let pem = std::fs::read(&config.trust.anchor).map_err(|e| anchor(format!("cannot be read: {e}")))?;
        let anchor = TrustAnchor::from_pem(&pem).map_err(|e| anchor(e.to_string()))?;
        let mut store = Store::connect(&config.database, &config.database_url()?)?;
        if config.journal.is_some() {
            store = store.with_journal();
        }
        let (storing, reading) = store.places();
        let instance = Instance::new();
        Ok(Arc::new(Self {
            journal: config.journal.as_ref().map(|journal| Journal::open(journal, &instance)).transpose()?,
            instance,
            access_log: AccessLog::new(&config.access_log, config.database.timeout)?,
            keyring: Keyring::load(&config.encryption)?,
            trust: Trust::new(anchor, config.trust.refresh),
            chain: Chain::new(store.clone(), clock.clone(), config.retention.days),
            sealed: Sealed::new(config.download.cache.as_u64()),
            wake_batching: Notify::new(),
            guard: Guard::new(config.callback.as_ref(), resolver)?,
            downloaded: Downloaded::default(),
            wake_callbacks: Notify::new(),
            overview: overview::Cache::default(),
            health: Health::new(clock.clone(), config.database.timeout),
            limits: Limits::new(&config, storing, reading),
            runtime: Handle::current(),
            store,
            clock,
            metrics,
            config,
        }))
    }

    /// Runs something on the threads of the jobs rather than on those of the connections. It is brought to its
    /// end even when the request that wanted it goes away.
    pub async fn background<T: Send + 'static>(
        self: Arc<Self>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, http::Error> {
        self.runtime.spawn(work.in_current_span()).await.map_err(|e| http::Error::Internal(e.to_string()))
    }

    /// Runs something that computes for long, for a country when it is its turn, on a thread of its own.
    pub async fn compute<T: Send + 'static>(
        &self,
        country: Country,
        kind: Kind,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, http::Error> {
        let place = self.limits.to_compute(country, kind).await?;
        let span = tracing::Span::current();
        let work = move || {
            // Until it is done, whether or not somebody still waits for it.
            let _place = place;
            span.in_scope(work)
        };
        self.runtime.spawn_blocking(work).await.map_err(|e| http::Error::Internal(e.to_string()))
    }

    /// The batch that a country asks for, and the one behind it.
    pub async fn find_batch(
        self: &Arc<Self>,
        caller: &Caller,
        date: chrono::NaiveDate,
        tag: Option<BatchTag>,
    ) -> Result<Link, http::Error> {
        let end = self.config.participant(caller.country).chain;
        if let Some(answer) = self.chain.known(date, tag, end) {
            return Ok(answer?);
        }
        let app = self.clone();
        self.clone().background(async move { app.chain.refresh().await }).await??;
        Ok(self.chain.look(date, tag, end)?)
    }

    /// Metrics in the text format of Prometheus.
    pub fn metrics(&self) -> String {
        self.metrics.as_ref().map(PrometheusHandle::render).unwrap_or_default()
    }
}

/// A gateway that runs.
#[derive(Debug)]
pub struct Gateway {
    /// Where the national backends' side listens.
    pub address: SocketAddr,
    /// Where the admin side listens.
    pub admin_address: SocketAddr,
    app: Arc<App>,
    reload: Arc<Reload>,
    stop: tokio::sync::watch::Sender<bool>,
    servers: Vec<ServerHandle>,
    tasks: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}

impl Gateway {
    /// Brings the schema up to date if `migrate`, then listens and starts the jobs.
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
        rotation::check(&app.store, &app.keyring).await?;
        if app.store.replay_is_unfinished().await? {
            return Err(StartError::ReplayUnfinished);
        }
        app.trust.load(&app.store).await?;
        access_log::begin(&app).await?;

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
        let mut tasks = vec![
            tokio::spawn(batching::run(app.clone(), shutdown.clone())),
            tokio::spawn(expiry::run(app.clone(), shutdown.clone())),
            tokio::spawn(access_log::run(app.clone(), shutdown.clone())),
            tokio::spawn(access_log::run_retention(app.clone(), shutdown.clone())),
            tokio::spawn(watch_certificates(reload.clone(), shutdown.clone())),
            tokio::spawn(callback::run(app.clone(), shutdown.clone())),
            tokio::spawn(overview::run(app.clone(), shutdown.clone())),
            tokio::spawn(reload.clone().watch(shutdown.clone())),
            tokio::spawn(journal::run(app.clone(), shutdown.clone())),
            tokio::spawn(refresh_trust(app.clone(), shutdown)),
        ];
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

    /// What the gateway works with.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// What can be exchanged while it runs.
    pub fn reload(&self) -> &Arc<Reload> {
        &self.reload
    }

    /// Accepts nothing new, brings to its end what is under way, and returns when all is done.
    pub async fn stop(self) {
        for server in &self.servers {
            server.stop(true).await;
        }
        self.stop.send_replace(true);
        for task in self.tasks {
            drop(task.await);
        }
        if let Some(journal) = &self.app.journal {
            journal.close(&self.app).await;
        }
        self.app.store.clone().close().await;
        tracing::info!("the gateway has stopped");
    }
}

async fn refresh_trust(app: Arc<App>, shutdown: Shutdown) {
    let load = || async {
        // First what was withdrawn: when that is not known, the registry grows old and nobody is served.
        crate::withdrawal::refresh(&app).await?;
        app.trust.load(&app.store).await
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
    let server =
        HttpServer::new(move || ActixApp::new().app_data(data.clone()).configure(http::configure_admin))
            .workers(1)
            .max_connections(64)
            .shutdown_timeout(1)
            .disable_signals()
            .listen(listener)
            .map_err(|source| StartError::Listen { key: "admin_listen", address, source })?;
    Ok(server.run())
}
