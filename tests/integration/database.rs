//! A database of its own for each test.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, QueryResult, Statement, TransactionTrait,
};

use crate::free_port::free_port;

/// What a gateway can run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    MariaDb,
    MySql,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Sqlite, Self::MariaDb, Self::MySql];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::MariaDb => "mariadb",
            Self::MySql => "mysql",
        }
    }

    /// The part of the environment's names that is this server's.
    fn variable(self, suffix: &str) -> String {
        format!("EFGS_TEST_{}{suffix}", self.name().to_uppercase())
    }

    /// Whether there is one to test against.
    pub(crate) fn is_there(self) -> bool {
        self == Self::Sqlite || std::env::var_os(self.variable("")).is_some()
    }

    fn server(self) -> Option<Server> {
        let url = std::env::var(self.variable("")).ok().filter(|_| self != Self::Sqlite)?;
        Some(Server { url, tls_ca: std::env::var_os(self.variable("_CA")).map(PathBuf::from) })
    }
}

/// A MariaDB or MySQL server.
#[derive(Clone)]
pub(crate) struct Server {
    /// Without a database's name.
    pub(crate) url: String,
    pub(crate) tls_ca: Option<PathBuf>,
}

impl Server {
    /// A URL for the tests' own connection, which has its TLS settings in it.
    fn own_url(&self, database: &str) -> String {
        match &self.tls_ca {
            Some(ca) => {
                format!("{}/{database}?ssl-mode=VERIFY_IDENTITY&ssl-ca={}", self.url, ca.display())
            }
            None => format!("{}/{database}?ssl-mode=DISABLED", self.url),
        }
    }
}

/// What starts servers: see the scripts' heads.
#[derive(Clone, Copy)]
pub(crate) enum Script {
    /// One server.
    Single,
    /// Three of them behind a proxy: Galera of MariaDB, Group Replication of MySQL.
    Cluster,
}

impl Script {
    pub(crate) fn is_there(self) -> bool {
        std::env::var_os("EFGS_TEST_DB_SCRIPT").is_some()
    }

    fn command(self) -> Command {
        let single = PathBuf::from(std::env::var_os("EFGS_TEST_DB_SCRIPT").unwrap());
        let mut command = Command::new("bash");
        command.arg(match self {
            Self::Single => single,
            Self::Cluster => single.with_file_name("cluster.sh"),
        });
        command
    }
}

/// A server of a test's own, or a cluster of them, which it may stop and kill. It ends with this value, and also when
/// the tests are killed: the process that removes it waits for the end of its input.
pub(crate) struct PrivateServer {
    pub(crate) server: Server,
    script: Script,
    folder: PathBuf,
    reaper: Child,
}

impl PrivateServer {
    pub(crate) fn start(kind: Kind, script: Script) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let parent = tempfile::tempdir().unwrap().keep();
        // The server runs under an account of its own.
        std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o755)).unwrap();
        let reaper = script.command().arg("reap").arg(&parent).stdin(Stdio::piped()).spawn().unwrap();
        let folder = parent.join("server");
        let port = free_port();
        let arguments = [kind.name(), folder.to_str().unwrap(), &port.to_string()].map(str::to_owned);
        let output = script.command().arg("create").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let url = format!("mysql://app:app-secret@127.0.0.1:{port}");
        let server = Server { url, tls_ca: Some(folder.join("ca.pem")) };
        Self { server, script, folder, reaper }
    }

    /// A command of the script: `kill9`, `start`, `stop`, `freeze`.
    pub(crate) async fn tell(&self, what: &str) {
        let mut command = self.script.command();
        command.arg(what).arg(&self.folder);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl PrivateServer {
    /// A statement as the server's root.
    pub(crate) async fn as_root(&self, sql: &str) {
        let mut command = self.script.command();
        command.arg("sql").arg(&self.folder).arg("--execute").arg(sql);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        // Waiting closes its input first.
        drop(self.reaper.wait());
    }
}

/// One test's database, and the tests' own way into it.
pub(crate) struct Database {
    pub(crate) kind: Kind,
    /// As the gateway's configuration has it.
    pub(crate) url: String,
    pub(crate) tls_ca: Option<PathBuf>,
    connection: DatabaseConnection,
    made_on: Option<(Server, String)>,
}

impl Database {
    /// A new, empty one.
    pub(crate) async fn create(kind: Kind, folder: &Path) -> Self {
        match kind.server() {
            Some(server) => Self::create_on(kind, server).await,
            None => {
                let url = format!("sqlite:{}", folder.join("efgs.db").display());
                let connection = sea_orm::Database::connect(format!("{url}?mode=rwc")).await.unwrap();
                Self { kind, url, tls_ca: None, connection, made_on: None }
            }
        }
    }

    pub(crate) async fn create_on(kind: Kind, server: Server) -> Self {
        let name = format!("efgs_test_{:016x}", rand::random::<u64>());
        let connection = sea_orm::Database::connect(server.own_url("")).await.unwrap();
        connection.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
        connection.close().await.unwrap();
        let connection = sea_orm::Database::connect(server.own_url(&name)).await.unwrap();
        let (url, tls_ca) = (format!("{}/{name}", server.url), server.tls_ca.clone());
        Self { kind, url, tls_ca, connection, made_on: Some((server, name)) }
    }

    /// Removes it.
    pub(crate) async fn drop(self) {
        if let Some((_, name)) = &self.made_on {
            self.connection.execute_unprepared(&format!("DROP DATABASE {name}")).await.unwrap();
        }
        self.connection.close().await.unwrap();
    }

    /// Runs a statement behind the gateway's back; says how many rows it changed.
    pub(crate) async fn execute(&self, sql: &str) -> u64 {
        self.connection.execute_unprepared(sql).await.unwrap().rows_affected()
    }

    pub(crate) async fn rows(&self, sql: &str) -> Vec<QueryResult> {
        let statement = Statement::from_string(self.connection.get_database_backend(), sql);
        self.connection.query_all_raw(statement).await.unwrap()
    }

    /// A transaction that has read this, as a dump does: it holds on to the definitions of the tables until it ends.
    pub(crate) async fn reader_of(&self, sql: &str) -> DatabaseTransaction {
        let reader = self.connection.begin().await.unwrap();
        reader.execute_unprepared(sql).await.unwrap();
        reader
    }

    /// The first column of a query.
    pub(crate) async fn column<T: sea_orm::TryGetable>(&self, sql: &str) -> Vec<T> {
        self.rows(sql).await.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }

    /// The only value of a query such as COUNT(*).
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.column(sql).await[0]
    }

    /// How many uploads, keys and batches there are.
    pub(crate) async fn counts(&self) -> [i64; 3] {
        [
            self.number("SELECT COUNT(*) FROM upload").await,
            self.number("SELECT COUNT(*) FROM diagnosis_key").await,
            self.number("SELECT COUNT(*) FROM batch").await,
        ]
    }

    /// What must hold at the end of every test: nothing half-done, nothing forgotten, one chain of batches.
    pub(crate) async fn check(&self) {
        let leases: Vec<String> = self.column("SELECT name FROM job WHERE owner IS NOT NULL").await;
        assert_eq!(leases, Vec::<String>::new(), "leases that nobody gave back");
        let leases = "SELECT COUNT(*) FROM callback_subscription WHERE owner IS NOT NULL";
        assert_eq!(self.number(leases).await, 0, "leases of callbacks that nobody gave back");
        let half = "SELECT COUNT(*) FROM upload u LEFT JOIN \
             (SELECT day, upload_id, COUNT(*) AS keys_there FROM diagnosis_key GROUP BY day, upload_id) k \
             ON k.upload_id = u.id WHERE k.keys_there IS NULL OR k.keys_there <> u.amount";
        assert_eq!(self.number(half).await, 0, "uploads that are half there");
        let stray = "SELECT COUNT(*) FROM diagnosis_key k \
             WHERE NOT EXISTS (SELECT 1 FROM upload u WHERE u.id = k.upload_id)";
        assert_eq!(self.number(stray).await, 0, "keys without their upload");
        let lost = "SELECT COUNT(*) FROM upload u WHERE u.batch_id IS NOT NULL \
             AND NOT EXISTS (SELECT 1 FROM batch b WHERE b.id = u.batch_id)";
        assert_eq!(self.number(lost).await, 0, "uploads in a batch that is not there");
        let mut last: Option<(chrono::NaiveDate, i32)> = None;
        for row in self.rows("SELECT day, sequence FROM batch ORDER BY id").await {
            let now: (chrono::NaiveDate, i32) =
                (row.try_get_by_index(0).unwrap(), row.try_get_by_index(1).unwrap());
            match last {
                Some((day, sequence)) if day == now.0 => {
                    assert_eq!(now.1, sequence + 1, "a gap on {day}");
                }
                Some((day, _)) => assert!(now.0 > day && now.1 == 1, "{} {} follows {day}", now.0, now.1),
                None => {}
            }
            last = Some(now);
        }
    }
}
