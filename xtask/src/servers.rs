//! The two database servers that tests and benchmarks run against.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::step::{Outcome, capture, root, run, step};

/// A MariaDB and a MySQL server, each in its own folder below a temporary one. They end with this value, and also when
/// this process is killed: see [`Reaper`].
pub(crate) struct Servers {
    mariadb_port: u16,
    mysql_port: u16,
    mysql_prefix: PathBuf,
    reaper: Reaper,
}

impl Servers {
    /// Installs what is missing, then starts both servers side by side.
    pub(crate) fn start() -> Outcome<Self> {
        let mysql_prefix = mysql_prefix()?;
        step("database servers: install what is missing", || {
            run(Command::new("bash").arg(script("install.sh")).arg(&mysql_prefix))
        })?;
        let [mariadb_port, mysql_port] = free_ports()?;
        let servers = Self { mariadb_port, mysql_port, mysql_prefix, reaper: Reaper::new()? };
        step("database servers: start", || {
            thread::scope(|scope| {
                let mysql = scope.spawn(|| servers.create("mysql", mysql_port));
                servers.create("mariadb", mariadb_port)?;
                mysql.join().unwrap_or_else(|_| Err("the thread that starts MySQL panicked".to_owned()))
            })
        })?;
        Ok(servers)
    }

    /// What the tests read: how to reach the servers, and how to stop, kill and start them.
    pub(crate) fn environment(&self) -> [(&'static str, String); 8] {
        let url = |port| format!("mysql://app:app-secret@127.0.0.1:{port}");
        let path = |path: &Path| path.display().to_string();
        let (mariadb, mysql) = (self.reaper.dir.join("mariadb"), self.reaper.dir.join("mysql"));
        [
            ("EFGS_TEST_MARIADB", url(self.mariadb_port)),
            ("EFGS_TEST_MARIADB_CA", path(&mariadb.join("ca.pem"))),
            ("EFGS_TEST_MARIADB_DIR", path(&mariadb)),
            ("EFGS_TEST_MYSQL", url(self.mysql_port)),
            ("EFGS_TEST_MYSQL_CA", path(&mysql.join("ca.pem"))),
            ("EFGS_TEST_MYSQL_DIR", path(&mysql)),
            ("EFGS_TEST_MYSQL_PREFIX", path(&self.mysql_prefix)),
            ("EFGS_TEST_DB_SCRIPT", path(&script("db.sh"))),
        ]
    }

    fn create(&self, kind: &str, port: u16) -> Outcome {
        let version = capture(
            Command::new("bash")
                .arg(script("db.sh"))
                .args(["create", kind])
                .arg(self.reaper.dir.join(kind))
                .arg(port.to_string())
                .env("EFGS_TEST_MYSQL_PREFIX", &self.mysql_prefix)
                // Ctrl-C must not stop it halfway: it finishes, and then the reaper takes its server down.
                .process_group(0),
        )?;
        println!("xtask: {kind} {} on 127.0.0.1:{port}", String::from_utf8_lossy(&version).trim());
        Ok(())
    }
}

/// Owns the temporary folder, and a process that waits for the end of its input and then kills the servers and deletes
/// the folder. This process alone holds the other end, so the servers cannot outlive it, however it ends: on success,
/// on failure, on Ctrl-C, on `kill -9`.
struct Reaper {
    dir: PathBuf,
    process: Child,
}

impl Reaper {
    fn new() -> Outcome<Self> {
        let dir = temporary_folder()?;
        let process = Command::new("bash")
            .arg(script("db.sh"))
            .arg("reap")
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0) // out of Ctrl-C's reach
            .spawn()
            .map_err(|e| format!("cannot run bash: {e}"))?;
        Ok(Self { dir, process })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // Waiting closes its input first.
        if !self.process.wait().is_ok_and(|status| status.success()) {
            eprintln!("xtask: the database servers in {} could not be removed", self.dir.display());
        }
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// Where MySQL is unpacked: for root a place that the servers' account can read.
fn mysql_prefix() -> Outcome<PathBuf> {
    let user = capture(Command::new("id").arg("-u").current_dir(root()))?;
    let cache = if user.trim_ascii() == b"0" {
        PathBuf::from("/var/cache")
    } else {
        let home = std::env::home_dir().ok_or("no home directory to keep MySQL in")?;
        home.join(".cache")
    };
    Ok(cache.join("efgs-mysql97"))
}

fn temporary_folder() -> Outcome<PathBuf> {
    for attempt in 0..1000 {
        let dir = std::env::temp_dir().join(format!("efgs-test-{}-{attempt}", std::process::id()));
        match fs::create_dir(&dir) {
            // Readable by the servers' account whatever the umask.
            Ok(()) => match fs::set_permissions(&dir, Permissions::from_mode(0o755)) {
                Ok(()) => return Ok(dir),
                Err(e) => return Err(format!("cannot open {} to the servers: {e}", dir.display())),
            },
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(format!("cannot make {}: {e}", dir.display())),
        }
    }
    Err(format!("{} is full of left-over efgs-test folders", std::env::temp_dir().display()))
}

/// Two free loopback ports that stay free while a test has a server down: below the range that the kernel takes ports
/// for outgoing connections from (where a client that keeps trying a closed port can even connect to itself).
fn free_ports() -> Outcome<[u16; 2]> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = range.split_whitespace().next().and_then(|word| word.parse().ok()).filter(|end| *end > 11_000);
    let ports = 10_000..end.unwrap_or(32_768);
    // Two runs at once begin at different places.
    let start = std::process::id() as usize * 31 % ports.len();
    let rotated = ports.clone().cycle().skip(start).take(ports.len());
    two_free(rotated).ok_or_else(|| "no two free loopback ports".to_owned())
}

fn two_free(candidates: impl Iterator<Item = u16>) -> Option<[u16; 2]> {
    let bind = |port| Some((TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?, port));
    let mut free = candidates.filter_map(bind);
    let (first, second) = (free.next()?, free.next()?); // the first is still held while the second is looked for
    Some([first.1, second.1])
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_passed_over() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = held.local_addr().unwrap().port();
        assert_eq!(two_free([port, port, port].into_iter()), None);
        assert_eq!(two_free([port, 0, 0].into_iter()), Some([0, 0]), "0 asks the kernel for any port");
        let [first, second] = free_ports().unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn the_reaper_deletes_the_folder_and_spares_what_is_no_server() {
        // A stale pid file that names a process which is not the server: this one.
        let reaper = Reaper::new().unwrap();
        let dir = reaper.dir.clone();
        fs::create_dir(dir.join("mariadb")).unwrap();
        fs::write(dir.join("mariadb/server.pid"), std::process::id().to_string()).unwrap();
        drop(reaper);
        assert!(!dir.exists());
    }

    /// What a shell command prints; on failure, what it says of it. It runs with the servers' environment.
    fn sh(servers: &Servers, command: &str) -> Outcome<String> {
        let output =
            Command::new("bash").args(["-euc", command]).envs(servers.environment()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    #[test]
    fn the_servers_keep_what_the_tests_rely_on() {
        if std::env::var_os("EFGS_TEST_DB_SCRIPT").is_none() {
            println!("skipped: it starts database servers, which `cargo xtask test` does");
            return;
        }
        let servers = Servers::start().unwrap();
        for (name, port) in [("MARIADB", servers.mariadb_port), ("MYSQL", servers.mysql_port)] {
            let app = |options: &str, sql: &str| {
                let client = format!("mariadb --no-defaults -h127.0.0.1 -P{port} -uapp -papp-secret -N");
                sh(&servers, &format!("{client} --ssl-ca=$EFGS_TEST_{name}_CA {options} -e '{sql}'"))
            };
            let tls = "--ssl-verify-server-cert";
            let row = "CREATE DATABASE efgs_test_x; CREATE TABLE efgs_test_x.t (a INT PRIMARY KEY); INSERT INTO efgs_test_x.t VALUES (7)";
            app(tls, row).unwrap();
            for refused in
                ["CREATE DATABASE other", "CREATE DATABASE efgsxtest", "SELECT COUNT(*) FROM mysql.user"]
            {
                let error = app(tls, refused).unwrap_err();
                assert!(error.contains("denied"), "{name}: {refused}: {error}");
            }
            app("--skip-ssl", "SELECT 1").unwrap_err();

            sh(&servers, &format!("$EFGS_TEST_DB_SCRIPT kill9 $EFGS_TEST_{name}_DIR")).unwrap();
            app(tls, "SELECT 1").unwrap_err();
            sh(&servers, &format!("$EFGS_TEST_DB_SCRIPT start $EFGS_TEST_{name}_DIR")).unwrap();
            assert_eq!(
                app(tls, "SELECT a FROM efgs_test_x.t").unwrap(),
                "7",
                "{name}: a committed row survives kill -9"
            );
            sh(&servers, &format!("$EFGS_TEST_DB_SCRIPT stop $EFGS_TEST_{name}_DIR")).unwrap();
            app(tls, "SELECT 1").unwrap_err();
            sh(&servers, &format!("$EFGS_TEST_DB_SCRIPT start $EFGS_TEST_{name}_DIR")).unwrap();
        }
        let (ports, dir) = ([servers.mariadb_port, servers.mysql_port], servers.reaper.dir.clone());
        drop(servers);
        assert!(!dir.exists());
        assert_eq!(two_free(ports.into_iter()), Some(ports), "nobody listens any more");
    }
}
