//! A schema of its own for each measurement, in the database servers that `cargo xtask bench` starts.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::ValueEnum;
use mysql_async::{Opts, OptsBuilder, Pool, PoolConstraints, PoolOpts, SslOpts, prelude::Queryable};

use crate::Outcome;

/// What a gateway can run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    #[value(name = "mariadb")]
    MariaDb,
    #[value(name = "mysql")]
    MySql,
    Sqlite,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::MariaDb, Self::MySql, Self::Sqlite];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MariaDb => "MariaDB",
            Self::MySql => "MySQL",
            Self::Sqlite => "SQLite",
        }
    }

    /// A variable of the environment that `cargo xtask bench` and `cargo xtask servers` set.
    fn variable(self, suffix: &str) -> Option<String> {
        env::var(format!("EFGS_TEST_{}{suffix}", self.name().to_uppercase())).ok()
    }

    pub(crate) fn is_there(self) -> bool {
        self == Self::Sqlite || self.variable("").is_some()
    }

    /// The number of the database server's process.
    pub(crate) fn process(self) -> Option<u32> {
        let folder = self.variable("_DIR")?;
        fs::read_to_string(Path::new(&folder).join("server.pid")).ok()?.trim().parse().ok()
    }
}

/// Runs a statement as the server's root, and gives what it prints. The other accounts cannot change settings.
pub(crate) fn as_root(kind: Kind, sql: &str) -> Outcome<String> {
    let (Ok(script), Some(folder)) = (env::var("EFGS_TEST_DB_SCRIPT"), kind.variable("_DIR")) else {
        return Err("this part needs a database server of `cargo xtask bench`".into());
    };
    let output = Command::new("bash").args([&script, "sql", &folder, "-Ne", sql]).output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into())
    }
}

/// An empty schema; [`Schema::remove`] drops it.
pub(crate) struct Schema {
    kind: Kind,
    /// As the gateway's configuration has it.
    pub(crate) url: String,
    pub(crate) tls_ca: Option<String>,
    pub(crate) name: String,
}

impl Schema {
    /// Makes one. SQLite's is a file in `folder`.
    pub(crate) async fn create(kind: Kind, folder: &Path) -> Outcome<Self> {
        let name = format!("efgs_bench_{:016x}", rand::random::<u64>());
        let (url, tls_ca) = match kind.variable("") {
            Some(server) if kind != Kind::Sqlite => (format!("{server}/{name}"), kind.variable("_CA")),
            _ => (format!("sqlite:{}", folder.join(&name).display()), None),
        };
        let schema = Self { kind, url, tls_ca, name };
        schema.server_statement("CREATE DATABASE").await?;
        Ok(schema)
    }

    /// Where the server keeps its files.
    pub(crate) fn files(&self) -> Outcome<PathBuf> {
        let folder = self.kind.variable("_DIR").ok_or("the server's folder is not known")?;
        Ok(Path::new(&folder).join("data").join(&self.name))
    }

    pub(crate) async fn remove(self) -> Outcome {
        self.server_statement("DROP DATABASE").await
    }

    async fn server_statement(&self, verb: &str) -> Outcome {
        if self.kind != Kind::Sqlite {
            let pool = Pool::new(OptsBuilder::from_opts(self.options(1)?).db_name(None::<String>));
            pool.get_conn().await?.query_drop(format!("{verb} {}", self.name)).await?;
            pool.disconnect().await?;
        }
        Ok(())
    }

    /// Connections to it, set as the gateway sets its own.
    pub(crate) fn pool(&self, connections: usize) -> Outcome<Pool> {
        Ok(Pool::new(self.options(connections)?))
    }

    fn options(&self, connections: usize) -> Outcome<Opts> {
        let tls = self.tls_ca.as_ref().map(|ca| {
            let roots = vec![Path::new(ca).to_owned().into()];
            SslOpts::default().with_root_certs(roots).with_disable_built_in_roots(true)
        });
        let constraints = PoolConstraints::new(0, connections).unwrap_or_default();
        Ok(OptsBuilder::from_opts(Opts::from_url(&self.url)?)
            .ssl_opts(tls)
            .init(vec![
                "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
                "SET SESSION time_zone = '+00:00'",
            ])
            .tcp_nodelay(true)
            .prefer_socket(false)
            .pool_opts(PoolOpts::new().with_constraints(constraints).with_reset_connection(false))
            .into())
    }
}
