//! Opening the pools of both drivers with the same settings.

use std::{sync::Arc, time::Duration};

use mysql_async::{Opts, OptsBuilder, PoolConstraints, PoolOpts, SslOpts};
use sea_orm::{
    DatabaseConnection, SqlxMySqlConnector, SqlxSqliteConnector,
    sqlx::{
        AssertSqlSafe, ConnectOptions, Connection as _, Executor,
        mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlSslMode},
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
    },
};

use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::{Store, bulk::Bulk, lease::Names, sql::mysql_session};
use efgs_kit::config::{ConfigError, Database, Secret};

/// Connections for everything but bulk work; a few are enough, and the trust registry never waits for uploads.
const CONTROL_CONNECTIONS: u32 = 8;

pub(super) fn connect(config: &Database, url: &Secret) -> Result<Store, ConfigError> {
    let url = url.reveal();
    if let Some(path) = url.strip_prefix("sqlite:") {
        Ok(sqlite(config, path))
    } else if url.starts_with("mysql://") || url.starts_with("mariadb://") {
        mysql(config, url)
    } else {
        Err(ConfigError::Invalid(
            "`database.url` starts with neither `sqlite:` nor `mysql://`: write `sqlite:PATH` or \
             `mysql://user:password@host:3306/name`"
                .into(),
        ))
    }
}

/// Half of these connections.
fn lookups() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CONTROL_CONNECTIONS as usize / 2))
}

fn sqlite(config: &Database, path: &str) -> Store {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // An acknowledged upload survives a power cut.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(config.timeout)
        .disable_statement_logging();
    let pool = SqlitePoolOptions::new()
        .max_connections(CONTROL_CONNECTIONS)
        .acquire_timeout(config.timeout)
        .after_release(|connection, _| {
            Box::pin(async move {
                // What was begun when the connection was given back has been rolled back when this is answered. SQLite
                // rolls back by itself when the disk is full; the driver's own rollback fails then, and what came after
                // would be in a transaction that it believes to be open, and never be committed.
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        })
        .connect_lazy_with(options);
    let db = SqlxSqliteConnector::from_sqlx_sqlite_pool(pool);
    Store {
        patient: db.clone(),
        db,
        bulk: Bulk::Sqlite,
        log: Bulk::Sqlite,
        timeout: config.timeout,
        journal: false,
        lookups: lookups(),
        replicas: Arc::default(),
        lease_names: Names::default(),
        keys_before_days: Arc::new(true.into()),
        unreachable: Default::default(),
        hurried: false,
    }
}

/// The options of both drivers for a server's URL.
fn mysql_options(
    config: &Database,
    key: &str,
    url: &str,
) -> Result<(MySqlConnectOptions, OptsBuilder), ConfigError> {
    let invalid = |reason: &str| {
        // The reason must not repeat the URL: it holds a password.
        ConfigError::Invalid(format!(
            "`database.{key}` is not usable: {reason}; write `mysql://user:password@host:3306/name`"
        ))
    };
    let url = Zeroizing::new(format!("mysql://{}", url.split_once("://").map_or("", |(_, rest)| rest)));
    let bulk = Opts::from_url(&url).map_err(|_| invalid("it cannot be read"))?;
    if bulk.db_name().is_none_or(str::is_empty) {
        return Err(invalid("it names no database"));
    }
    let mut control = url.parse::<MySqlConnectOptions>().map_err(|_| invalid("it cannot be read"))?;
    let mut tls = None;
    match &config.tls_ca {
        Some(ca) => {
            if let Err(e) = std::fs::metadata(ca) {
                return Err(ConfigError::Invalid(format!(
                    "`database.tls_ca`: cannot read {}: {e}",
                    ca.display()
                )));
            }
            control = control.ssl_mode(MySqlSslMode::VerifyIdentity).ssl_ca(ca);
            tls = Some(
                SslOpts::default().with_root_certs(vec![ca.clone().into()]).with_disable_built_in_roots(true),
            );
        }
        None => control = control.ssl_mode(MySqlSslMode::Disabled),
    }
    // One message per statement is noise; slow statements are the database's to log.
    let options = control.disable_statement_logging();
    let settings = OptsBuilder::from_opts(bulk)
        .ssl_opts(tls)
        .init(mysql_session(Some(config.timeout)).to_vec())
        .tcp_nodelay(true)
        .prefer_socket(false);
    Ok((options, settings))
}

/// A pool of the bulk path with these options.
fn bulk_pool(settings: &OptsBuilder, max: usize) -> mysql_async::Pool {
    let constraints = PoolConstraints::new(0, max).unwrap_or_default();
    let pool = PoolOpts::new()
        .with_constraints(constraints)
        // Resetting would throw the prepared statements away; nothing here leaves state behind.
        .with_reset_connection(false)
        .with_inactive_connection_ttl(Duration::from_secs(300));
    mysql_async::Pool::new(settings.clone().pool_opts(pool))
}

/// A pool of connections to a replica, and its host and port.
pub(super) fn replica(
    config: &Database,
    url: &Secret,
    max: usize,
) -> Result<(mysql_async::Pool, String), ConfigError> {
    let (_, settings) = mysql_options(config, "read_urls", url.reveal())?;
    let options = mysql_async::Opts::from(settings.clone());
    let name = format!("{}:{}", options.ip_or_hostname(), options.tcp_port());
    Ok((bulk_pool(&settings, max), name))
}

fn mysql(config: &Database, url: &str) -> Result<Store, ConfigError> {
    let (options, settings) = mysql_options(config, "url", url)?;
    let pool = |max| Bulk::MySql { pool: bulk_pool(&settings, max), max };
    Ok(Store {
        db: control_pool(config, CONTROL_CONNECTIONS, Some(config.timeout), options.clone()),
        // For the schema: one would do.
        patient: control_pool(config, 2, None, options),
        bulk: pool(usize::from(config.pool)),
        // One to write, one to take over when the first does not answer any more.
        log: pool(2),
        timeout: config.timeout,
        journal: false,
        lookups: lookups(),
        replicas: Arc::default(),
        lease_names: Names::default(),
        keys_before_days: Arc::new(true.into()),
        unreachable: Default::default(),
        hurried: false,
    })
}

/// Connections for everything but bulk work, whose statements the server ends after `limit`.
fn control_pool(
    config: &Database,
    max: u32,
    limit: Option<Duration>,
    options: MySqlConnectOptions,
) -> DatabaseConnection {
    let pool = MySqlPoolOptions::new()
        .max_connections(max)
        .acquire_timeout(config.timeout)
        .idle_timeout(Duration::from_secs(300))
        .after_connect(move |connection, _| {
            Box::pin(async move {
                for statement in mysql_session(limit) {
                    connection.execute(AssertSqlSafe(statement)).await?;
                }
                Ok(())
            })
        })
        .after_release(|connection, _| {
            Box::pin(async move {
                // A BEGIN whose answer nobody waited for leaves a transaction open, and what the next user wrote
                // would be in it. A peer that does not answer must not keep its place in the pool either.
                let rollback = tokio::time::timeout(Duration::from_secs(2), connection.execute("ROLLBACK"));
                match rollback.await {
                    Ok(done) => done.map(|_| true),
                    Err(_) => Ok(false),
                }
            })
        })
        .connect_lazy_with(options);
    SqlxMySqlConnector::from_sqlx_mysql_pool(pool)
}
