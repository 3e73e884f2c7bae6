//! The composition root: builds and connects all parts of an instance.

use std::{net::SocketAddr, sync::Arc};

use actix_web::web;
use efgs_protocol::anchor::TrustAnchor;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Notify;

use super::{observe::Observer, overview};
use crate::{
    access_log::{AccessLog, BeginError},
    audit::Audits,
    batching::Batching,
    body_cache::BodyCache,
    callback::{Callbacks, Guard, GuardError, Resolve, SystemResolver},
    chain::Chain,
    clock::Clock,
    config::{Config, ConfigError},
    download::Downloads,
    downloaded::Downloaded,
    expiry::Expiry,
    health::Health,
    instance::Instance,
    intake::Keyring,
    journal::{Journal, Recording, Sources},
    limits::Limits,
    pem::TlsError,
    rotation::RotationError,
    store::{Store, StoreError},
    trust::{Admission, Trust},
    upload::Uploads,
    withdrawal::Withdrawals,
    workers::Workers,
};

/// All parts of an instance.
pub struct App {
    /// Identifies this start of a gateway.
    pub instance: Instance,
    /// The settings.
    pub config: Arc<Config>,
    /// The clock.
    pub clock: Clock,
    /// The database.
    pub store: Store,
    /// The access log.
    pub access_log: Arc<AccessLog>,
    /// The registry.
    pub trust: Arc<Trust>,
    /// Identifies and admits callers.
    pub admission: Admission,
    /// Encryption at rest.
    pub keyring: Arc<Keyring>,
    /// The chain of batches.
    pub chain: Arc<Chain>,
    /// The download bodies.
    pub body_cache: BodyCache,
    /// The journal's medium and keys, if configured.
    pub sources: Sources,
    /// The journal, if configured.
    pub journal: Recording,
    /// The health of the jobs and certificates.
    pub health: Arc<Health>,
    /// The limits of countries and addresses.
    pub limits: Arc<Limits>,
    /// The threads that process requests.
    pub workers: Workers,
    /// Uploads.
    pub uploads: Uploads,
    /// Downloads.
    pub downloads: Downloads,
    /// Audits.
    pub audits: Audits,
    /// Withdrawals.
    pub withdrawals: Withdrawals,
    /// Callbacks.
    pub callbacks: Callbacks,
    /// The batching job.
    pub batching: Batching,
    /// The expiry job.
    pub expiry: Expiry,
    /// The operator's page.
    pub overview: overview::Cache,
    metrics: Option<PrometheusHandle>,
}

/// Why the gateway cannot start. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file of `[tls]` cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file of `[callback]` cannot be used.
    #[error(transparent)]
    Callback(#[from] GuardError),
    /// The trust anchor cannot be used.
    #[error("`trust.anchor` ({path}): {reason}")]
    Anchor {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The access log cannot be begun.
    #[error(transparent)]
    AccessLog(#[from] BeginError),
    /// The list of denied certificates cannot be read.
    #[error("`trust.deny_file` ({path}) cannot be read: {source}")]
    DenyFile {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The schema is outdated, and `--no-migrate` was given.
    #[error("the database schema is not up to date: run `efgs-gateway migrate --config FILE`")]
    SchemaOutdated,
    /// Stored data could not be read.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// A replay of the journal into the database is unfinished.
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
        /// The system's error.
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

impl App {
    /// Reads all files of the configuration and prepares everything. Starts nothing.
    pub fn new(
        config: Config,
        clock: Clock,
        metrics: Option<PrometheusHandle>,
    ) -> Result<Arc<Self>, StartError> {
        Self::with_resolver(config, clock, metrics, Arc::new(SystemResolver))
    }

    /// The same with another resolver for the hosts of callbacks.
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
        let mut store = Store::connect(&config.database, &config.database_url()?)?
            .with_replicas(&config.database, &config.read_urls()?)?;
        if config.journal.is_some() {
            store = store.with_journal();
        }
        // While the database is unreachable, requests are told so soon; the jobs wait.
        let hurried = store.hurried();
        let config = Arc::new(config);
        let instance = Instance::new();
        let (storing, reading) = store.bulk_slots();
        let limits = Limits::new(&config, storing, reading);
        let workers = Workers::new(limits.clone());
        let health = Arc::new(Health::new(clock.clone(), config.database.timeout));
        let trust =
            Arc::new(Trust::new(anchor, config.trust.refresh).with_read_grace(config.trust.read_grace));
        let keyring = Arc::new(Keyring::load(&config.encryption)?);
        let chain = Arc::new(Chain::new(hurried.clone(), clock.clone(), workers.clone(), config.clone()));
        let access_log = AccessLog::new(
            &config.access_log,
            config.database.timeout,
            store.clone(),
            clock.clone(),
            instance.clone(),
        )?;
        let sources = Sources {
            settings: config.journal.clone(),
            store: store.clone(),
            clock: clock.clone(),
            trust: trust.clone(),
            keyring: keyring.clone(),
            chain: chain.clone(),
        };
        let open = |settings| Journal::open(settings, &instance, sources.clone()).map(Arc::new);
        let journal = Recording::new(config.journal.as_ref().map(open).transpose()?);
        let body_cache = BodyCache::new(
            &config.download,
            hurried.clone(),
            keyring.clone(),
            limits.clone(),
            workers.clone(),
        )?;
        let downloaded = Arc::<Downloaded>::default();
        let formed = Arc::<Notify>::default();
        Ok(Arc::new(Self {
            admission: Admission::new(config.server.clone(), trust.clone(), clock.clone(), limits.clone()),
            uploads: Uploads {
                config: config.clone(),
                clock: clock.clone(),
                store: hurried.clone(),
                trust: trust.clone(),
                keyring: keyring.clone(),
                limits: limits.clone(),
                workers: workers.clone(),
                health: health.clone(),
                journal: journal.clone(),
            },
            downloads: Downloads {
                chain: chain.clone(),
                body_cache: body_cache.clone(),
                downloaded: downloaded.clone(),
            },
            audits: Audits {
                chain: chain.clone(),
                body_cache: body_cache.clone(),
                store: hurried.clone(),
                limits: limits.clone(),
                workers: workers.clone(),
            },
            withdrawals: Withdrawals {
                store: hurried.clone(),
                clock: clock.clone(),
                chain: chain.clone(),
                body_cache: body_cache.clone(),
                journal: journal.clone(),
                workers: workers.clone(),
            },
            callbacks: Callbacks {
                guard: Arc::new(Guard::new(config.callback.as_ref(), resolver)?),
                config: config.clone(),
                instance: instance.clone(),
                clock: clock.clone(),
                store: hurried.clone(),
                trust: trust.clone(),
                chain: chain.clone(),
                downloaded,
                health: health.clone(),
                workers: workers.clone(),
                wake: formed.clone(),
            },
            batching: Batching {
                settings: config.batching.clone(),
                store: store.clone(),
                clock: clock.clone(),
                health: health.clone(),
                journal: journal.clone(),
                formed,
            },
            expiry: Expiry {
                interval: config.retention.interval,
                clock: clock.clone(),
                store: store.clone(),
                chain: chain.clone(),
                body_cache: body_cache.clone(),
                health: health.clone(),
            },
            access_log: Arc::new(access_log),
            overview: overview::Cache::default(),
            instance,
            sources,
            journal,
            trust,
            keyring,
            chain,
            body_cache,
            health,
            limits,
            workers,
            store,
            clock,
            metrics,
            config,
        }))
    }

    /// Gives the handlers of the national side their state.
    pub(super) fn provide(&self, config: &mut web::ServiceConfig) {
        config
            .app_data(web::Data::new(Observer {
                access_log: self.access_log.clone(),
                admission: self.admission.clone(),
                clock: self.clock.clone(),
                instance: self.instance.clone(),
            }))
            .app_data(web::Data::new(self.admission.clone()))
            .app_data(web::Data::new(self.uploads.clone()))
            .app_data(web::Data::new(self.downloads.clone()))
            .app_data(web::Data::new(self.audits.clone()))
            .app_data(web::Data::new(self.withdrawals.clone()))
            .app_data(web::Data::new(self.callbacks.clone()));
    }

    /// Metrics in the text format of Prometheus.
    pub fn metrics(&self) -> String {
        self.metrics.as_ref().map(PrometheusHandle::render).unwrap_or_default()
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}
