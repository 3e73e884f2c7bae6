//! The gateway as an operator runs it: a process that is stopped, killed and started again, beside another.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use chrono::{DateTime, Utc};
use efgs_gateway::clock::Clock;
use efgs_protocol::{certificate::CertificateType, key::KeyBatch};
use efgs_test_ca::Request;
use serde_json::Value;

use crate::{
    client::{Client, all_at_once, keys, pick},
    database::Kind,
    harness::{Case, PKI, country, participant, tests, until},
};

tests![
    kill_9_loses_no_acknowledged_upload_and_leaves_none_half_there,
    sigterm_finishes_what_is_under_way_and_exits_0,
    sighup_reads_the_certificates_again,
    two_processes_on_one_database_store_each_key_once,
    a_second_process_cannot_take_the_same_port,
    what_is_acknowledged_after_a_full_disk_is_there,
];

/// A gateway that runs as a process.
pub(crate) struct Process {
    child: Child,
    pub(crate) port: u16,
    /// Of the admin side.
    pub(crate) admin: u16,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Process {
    pub(crate) fn start(config: &Path) -> Self {
        Self::start_with(config, &[])
    }

    /// With more in its environment.
    pub(crate) fn start_with(config: &Path, environment: &[(&str, &str)]) -> Self {
        Self::spawn(serve(config).envs(environment.iter().copied()))
    }

    fn spawn(command: &mut Command) -> Self {
        let child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut process = Self { child, port: 0, admin: 0, log: log.clone() };
        let stderr = BufReader::new(process.child.stderr.take().unwrap());
        let (send, receive) = mpsc::channel();
        // Also goes on reading when the address is known, so that the process never waits for us.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let entry: Value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                log.lock().unwrap().push(entry.clone());
                drop(send.send(entry));
            }
        });
        while let Ok(entry) = receive.recv_timeout(Duration::from_secs(30)) {
            if entry["message"] == "the gateway serves" {
                let port = |name: &str| {
                    let address: std::net::SocketAddr = entry[name].as_str().unwrap().parse().unwrap();
                    address.port()
                };
                (process.port, process.admin) = (port("address"), port("admin_address"));
                return process;
            }
        }
        panic!("the gateway does not start: {:?}", process.log());
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn client(&self, code: &str) -> Client {
        let participant = participant(code);
        Client::new(self.port, Some(&participant.authentication), participant.signing.clone())
    }

    /// What it exports.
    pub(crate) async fn metrics(&self) -> String {
        let url = format!("http://127.0.0.1:{}/metrics", self.admin);
        reqwest::get(url).await.unwrap().text().await.unwrap()
    }

    /// Bytes of memory that are resident.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn exit(mut self) -> ExitStatus {
        until("the process ends", async || self.child.try_wait().unwrap()).await
    }

    /// Ends it as an operator does.
    pub(crate) async fn stop(self) {
        self.signal("-TERM");
        assert_eq!(self.exit().await.code(), Some(0));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn serve(config: &Path) -> Command {
    serve_by(Command::new(env!("CARGO_BIN_EXE_efgs-gateway")), config)
}

fn serve_by(mut command: Command, config: &Path) -> Command {
    command.args(["serve", "--config"]).arg(config).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A configuration whose jobs run all the time.
pub(crate) fn busy(case: &Case) -> std::path::PathBuf {
    let text = case.config_text().replace("interval = \"1000d\"", "interval = \"100ms\"\nmax_keys = 60");
    case.write_config(&format!("{text}[retention]\ninterval = \"100ms\"\n"))
}

pub(crate) fn now() -> DateTime<Utc> {
    Clock::system().now()
}

/// An upload, and whether 201 was read for it.
pub(crate) struct Sent {
    pub(crate) tag: String,
    pub(crate) keys: KeyBatch,
    pub(crate) acknowledged: bool,
}

/// Uploads one after another until the gateway is gone.
pub(crate) async fn upload_until_error(client: &Client, name: &str, now: DateTime<Utc>) -> Vec<Sent> {
    let mut sent = Vec::new();
    for i in 0.. {
        let keys = keys(client.country(), 1 + rand::random_range(0..40), now);
        let tag = format!("{name}-{i}");
        let answer = client.try_send(client.request(&tag, &keys)).await;
        let acknowledged = match &answer {
            Ok(answer) => {
                assert_eq!(answer.status, 201, "{}", answer.text());
                true
            }
            Err(_) => false,
        };
        sent.push(Sent { tag, keys, acknowledged });
        if !acknowledged {
            return sent;
        }
    }
    sent
}

/// How many keys of an upload are in the database.
pub(crate) async fn stored(case: &Case, tag: &str) -> usize {
    let hex: String = tag.bytes().map(|byte| format!("{byte:02x}")).collect();
    let count = format!(
        "SELECT COUNT(*) FROM diagnosis_key k JOIN upload u ON u.id = k.upload_id WHERE u.upload_tag = X'{hex}'"
    );
    case.db.number(&count).await as usize
}

/// Whatever was acknowledged is there whole, whatever was not is there whole or not at all; sent again, it is
/// there once.
pub(crate) async fn verify(case: &Case, client: &Client, sent: &[Sent]) {
    for Sent { tag, keys, acknowledged } in sent {
        let there = stored(case, tag).await;
        assert!(there == keys.len() || (!acknowledged && there == 0), "{tag}: {there} of {}", keys.len());
        if !acknowledged {
            client.upload(tag, keys).await.expect(201);
            assert_eq!(stored(case, tag).await, keys.len(), "{tag}");
        }
    }
}

/// All that a country can download from a day on.
pub(crate) async fn download_all(client: &Client, from: chrono::NaiveDate) -> Vec<[u8; 16]> {
    let mut answer = client.download(from, None).await.expect(200);
    let mut all = Vec::new();
    loop {
        all.extend(answer.keys().iter().map(|key| *key.key_data.as_bytes()));
        if answer.next() == "null" {
            all.sort_unstable();
            return all;
        }
        answer = client.download(from, Some(&answer.next())).await.expect(200);
    }
}

pub(crate) fn sorted<'a>(uploads: impl IntoIterator<Item = &'a KeyBatch>) -> Vec<[u8; 16]> {
    let mut all: Vec<[u8; 16]> =
        uploads.into_iter().flat_map(|keys| keys.iter().map(|key| *key.key_data.as_bytes())).collect();
    all.sort_unstable();
    all
}

pub(crate) async fn all_in_batches(case: &Case) {
    until("everything is in a batch", async || {
        let waiting = case.db.number("SELECT COUNT(*) FROM upload WHERE batch_id IS NULL").await;
        (waiting == 0).then_some(())
    })
    .await;
}

/// As if the time of the leases that the killed process held were over.
pub(crate) async fn end_leases(case: &Case) {
    case.db.execute("UPDATE job SET owner = NULL, expires_at = 0").await;
}

async fn kill_9_loses_no_acknowledged_upload_and_leaves_none_half_there(case: &Case) {
    let rounds: usize = std::env::var("EFGS_TEST_KILL_ROUNDS").map_or(5, |n| n.parse().unwrap());
    case.prepare().await;
    let config = busy(case);
    let today = now().date_naive();
    let mut all: Vec<Sent> = Vec::new();
    let mut process = Process::start(&config);
    for round in 0..rounds {
        let clients = ["DE", "IT", "IE", "DE"].map(|code| process.client(code));
        let names: Vec<String> = (0..4).map(|i| format!("{round}-{i}")).collect();
        let uploading = all_at_once(
            clients.iter().zip(&names).map(|(client, name)| upload_until_error(client, name, now())),
        );
        let before = case.db.counts().await[0];
        let killing = async {
            until("seven uploads", async || (case.db.counts().await[0] >= before + 7).then_some(())).await;
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..400))).await;
            process.kill();
        };
        let (sent, ()) = futures_util::future::join(uploading, killing).await;
        end_leases(case).await;
        case.db.check().await;
        process = Process::start(&config);
        for (code, sent) in ["DE", "IT", "IE", "DE"].iter().zip(sent) {
            assert_eq!(sent.iter().filter(|sent| !sent.acknowledged).count(), 1);
            verify(case, &process.client(code), &sent).await;
            all.extend(sent);
        }
    }
    assert!(all.len() > 6 * rounds, "only {} uploads", all.len());
    all_in_batches(case).await;
    let downloaded = download_all(&process.client("NL"), today).await;
    assert!(downloaded == sorted(all.iter().map(|sent| &sent.keys)), "{} keys", downloaded.len());
    process.stop().await;
}

async fn sigterm_finishes_what_is_under_way_and_exits_0(case: &Case) {
    case.prepare().await;
    let process = Process::start(&case.write_config(&case.config_text()));
    let client = process.client("DE");
    let keys = keys(country("DE"), 50, now());
    let raw = client.request("a", &keys).raw();
    let (first, rest) = raw.split_at(raw.len() / 2);
    let mut connection = client.connect();
    connection.write(first).unwrap();
    // The process has read it by the time it answers another request.
    process.client("NL").download(now().date_naive(), None).await.refused(404, "batch-not-found");
    process.signal("-TERM");
    until("the port closes", async || {
        std::net::TcpStream::connect(("127.0.0.1", process.port)).is_err().then_some(())
    })
    .await;
    connection.write(rest).unwrap();
    assert_eq!(connection.answer().status, 201);
    drop(connection);
    assert_eq!(process.exit().await.code(), Some(0));
    assert_eq!(case.db.counts().await, [1, 50, 0]);
}

async fn sighup_reads_the_certificates_again(case: &Case) {
    case.prepare().await;
    let process = Process::start(&case.write_config(&case.config_text()));
    let client = process.client("DE");
    let mut before = client.connect();
    let shown = before.server_certificate();
    let request =
        Request { common_name: "localhost".into(), ..Request::new(CertificateType::Callback, "EU") };
    let new = PKI.server_ca.issue(&request).unwrap();
    assert_ne!(shown, new.certificate.der());
    let folder = case.folder.path();
    // A broken file changes nothing.
    std::fs::write(folder.join("server.pem"), "nonsense").unwrap();
    process.signal("-HUP");
    assert_eq!(client.connect().server_certificate(), shown);
    std::fs::write(folder.join("server.pem"), new.certificate.pem()).unwrap();
    std::fs::write(folder.join("server.key"), &new.key_pem).unwrap();
    process.signal("-HUP");
    until("the new certificate is shown", async || {
        (client.connect().server_certificate() == new.certificate.der()).then_some(())
    })
    .await;
    // Who was connected stays connected.
    let get = Client::download_request(now().date_naive(), None);
    before.write(&get.raw()).unwrap();
    before.answer().refused(404, "batch-not-found");
    drop(before);
    process.stop().await;
}

async fn two_processes_on_one_database_store_each_key_once(case: &Case) {
    case.prepare().await;
    let config = busy(case);
    let today = now().date_naive();
    let processes = [Process::start(&config), Process::start(&config)];
    let mut all = Vec::new();
    for round in 0..6 {
        // The same keys, in another order, under another tag, to the other one; a retry; and something else.
        let shared = keys(country("DE"), 30, now());
        let reversed = pick(&shared, (0..30).rev());
        let (dutch, italian) = (keys(country("IE"), 20, now()), keys(country("IT"), 20, now()));
        let tags = ["a", "b", "c", "d"].map(|name| format!("{round}-{name}"));
        let uploads = [
            (0, "DE", &tags[0], &shared),
            (1, "DE", &tags[1], &reversed),
            (0, "IE", &tags[2], &dutch),
            (1, "IE", &tags[2], &dutch),
            (1, "IT", &tags[3], &italian),
        ];
        let answers = all_at_once(uploads.map(|(at, code, tag, keys)| {
            let client = processes[at].client(code);
            async move { client.upload(tag, keys).await }
        }))
        .await;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        let mut shared_statuses = [statuses[0], statuses[1]];
        shared_statuses.sort_unstable();
        assert_eq!((shared_statuses, &statuses[2..]), ([201, 207], &[201, 201, 201][..]));
        all.extend([shared, dutch, italian]);
    }
    all_in_batches(case).await;
    for process in &processes {
        let downloaded = download_all(&process.client("NL"), today).await;
        assert!(downloaded == sorted(&all), "{} keys", downloaded.len());
    }
    for process in processes {
        process.stop().await;
    }
}

async fn a_second_process_cannot_take_the_same_port(case: &Case) {
    case.prepare().await;
    let process = Process::start(&case.write_config(&case.config_text()));
    let text = case.config_text().replacen("127.0.0.1:0", &format!("127.0.0.1:{}", process.port), 1);
    let output = serve(&case.write_config(&text)).output().unwrap();
    assert_ne!(output.status.code(), Some(0));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("server.listen") && stderr.contains("in use"), "{stderr}");
    process.stop().await;
}

async fn what_is_acknowledged_after_a_full_disk_is_there(case: &Case) {
    case.prepare().await;
    if case.db.kind != Kind::Sqlite {
        // The files are another process's.
        return;
    }
    let config = busy(case);
    // No file may grow beyond this, as if the disk were full.
    let mut limited = Command::new("bash");
    let limit = "trap '' XFSZ; ulimit -S -f 2000; exec \"$0\" \"$@\"";
    limited.args(["-c", limit, env!("CARGO_BIN_EXE_efgs-gateway")]);
    let mut process = Process::spawn(&mut serve_by(limited, &config));
    let client = process.client("DE");
    let mut sent = Vec::new();
    let mut upload = async |tag: String| {
        let keys = keys(client.country(), 1000, now());
        let answer = client.upload(&tag, &keys).await;
        let acknowledged = answer.status == 201;
        sent.push(Sent { tag, keys, acknowledged });
        answer
    };
    let mut number = 0;
    let full = loop {
        let answer = upload(format!("before-{number}")).await;
        number += 1;
        assert!(number < 100, "it is never full");
        if answer.status != 201 {
            break answer;
        }
    };
    assert!(number > 1 && full.header("retry-after").is_some(), "{number}");
    full.refused(503, "unavailable");
    for i in 0..5 {
        upload(format!("full-{i}")).await;
    }
    let grow = ["--pid", &process.child.id().to_string(), "--fsize=unlimited"];
    assert!(Command::new("prlimit").args(grow).status().unwrap().success());
    until("uploads are accepted again", async || {
        number += 1;
        (upload(format!("after-{number}")).await.status == 201).then_some(())
    })
    .await;
    for i in 0..5 {
        assert_eq!(upload(format!("well-{i}")).await.status, 201);
    }
    process.kill();
    end_leases(case).await;
    case.db.check().await;
    let process = Process::start(&config);
    verify(case, &process.client("DE"), &sent).await;
    process.stop().await;
}
