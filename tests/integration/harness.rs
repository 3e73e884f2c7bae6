//! Runs each test on each database, and notices at its end what was forgotten.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    pin::Pin,
    process::ExitCode,
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use efgs_gateway::{
    clock::Clock,
    config::Config,
    server::{App, Gateway, Reload},
    store::NewCertificate,
};
use efgs_protocol::{bundle::Bundle, country::Country};
use efgs_test_ca::{Identity, KeyKind, Participant, Pki};
use libtest_mimic::{Arguments, Completion, Trial};
use tempfile::TempDir;

use crate::{
    client::Client,
    database::{Database, Kind, PrivateServer, Script},
};

/// A test: its name is what must hold.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) run: for<'a> fn(&'a Case) -> Pin<Box<dyn Future<Output = ()> + 'a>>,
}

/// Lists the tests of a file.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::harness::Test] =
            &[$($crate::harness::Test { name: stringify!($name), run: |case| Box::pin($name(case)) }),*];
    };
}
pub(crate) use tests;

/// A file's tests.
pub(crate) struct File {
    pub(crate) name: &'static str,
    pub(crate) tests: &'static [Test],
    /// If they stop and kill the database server: what they start for it, each for itself.
    pub(crate) own_server: Option<Script>,
    /// Whether their gateways answer before the database has the record.
    pub(crate) spool: bool,
}

/// Runs all tests that the command line asks for.
pub(crate) fn run(files: &[File]) -> ExitCode {
    let require_all = std::env::var_os("EFGS_TEST_REQUIRE_ALL").is_some_and(|value| value == "1");
    let mut trials = Vec::new();
    for kind in Kind::ALL {
        for &File { name: file, tests, own_server, spool } in files {
            if own_server.is_some() && kind == Kind::Sqlite {
                continue;
            }
            let is_there = kind.is_there() && own_server.is_none_or(Script::is_there);
            for test in tests {
                let name = format!("{}::{file}::{}", kind.name(), test.name);
                trials.push(Trial::ignorable_test(name, move || match is_there {
                    true => {
                        run_one(kind, test, own_server, spool);
                        Ok(Completion::Completed)
                    }
                    false if require_all => Err("there is no such server, and all are required".into()),
                    false => Ok(Completion::ignored_with("no such server: see `cargo xtask servers`")),
                }));
            }
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn run_one(kind: Kind, test: &Test, own_server: Option<Script>, spool: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut case = runtime.block_on(Case::new(kind, own_server, spool));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            (test.run)(&case).await;
            case.stop_gateways().await;
            case.db.check().await;
            case.check_access_log().await;
        });
    }));
    if outcome.is_err() {
        runtime.block_on(case.stop_gateways());
    }
    if let Some(other) = case.other.take() {
        runtime.block_on(other.drop());
    }
    runtime.block_on(case.db.drop());
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

/// The public keys and certificates, made once: making keys takes long.
pub(crate) static PKI: LazyLock<Pki> = LazyLock::new(|| Pki::new(KeyKind::Rsa(3072)).unwrap());
static PARTICIPANTS: LazyLock<Vec<Participant>> = LazyLock::new(|| {
    ["DE", "NL", "IT", "IE"].iter().map(|code| PKI.participant(country(code)).unwrap()).collect()
});

pub(crate) fn country(code: &str) -> Country {
    Country::new(code).unwrap()
}

/// One of DE, NL, IT and IE, which every test has registered.
pub(crate) fn participant(code: &str) -> &'static Participant {
    PARTICIPANTS.iter().find(|participant| participant.country.as_str() == code).unwrap()
}

/// Where a test's clock stands at first: noon, some days from now, so that it can be moved back and no
/// certificate has expired.
pub(crate) fn noon() -> DateTime<Utc> {
    let made = PKI.server.certificate.not_before().date_naive();
    (made + Days::new(20)).and_time(NaiveTime::from_hms_opt(12, 0, 0).unwrap()).and_utc()
}

/// Tests send as fast as they can, all countries from one address. Those of the limits set their own.
const LIMITS: &str = "[limits]\nrequests_per_second = 100000\nburst = 100000\nhandshakes_per_second = 100000\n\
                      connections = 1000\nconnections_per_address = 1000\n";

/// What a test works with.
pub(crate) struct Case {
    pub(crate) db: Database,
    /// The database's server, if the test may kill it.
    pub(crate) server: Option<PrivateServer>,
    pub(crate) folder: TempDir,
    /// Whether gateways answer before the database has the record.
    pub(crate) spool: bool,
    /// Of every gateway of the test.
    pub(crate) clock: Clock,
    gateways: Mutex<Vec<Gateway>>,
    other: tokio::sync::OnceCell<Database>,
}

impl Case {
    async fn new(kind: Kind, own_server: Option<Script>, spool: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = own_server.map(|script| PrivateServer::start(kind, script));
        let db = match &server {
            Some(server) => Database::create_on(kind, server.server.clone()).await,
            None => Database::create(kind, folder.path()).await,
        };
        PKI.write(folder.path()).unwrap();
        let key = openssl::pkey::PKey::generate_ed25519().unwrap().private_key_to_pem_pkcs8().unwrap();
        std::fs::write(folder.path().join("access-log.key"), key).unwrap();
        for (name, byte) in [("payload-1.key", 1), ("payload-2.key", 2)] {
            let text = BASE64_STANDARD.encode([byte; 32]);
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self {
            db,
            server,
            folder,
            spool,
            clock: Clock::manual(noon()),
            gateways: Mutex::default(),
            other: tokio::sync::OnceCell::new(),
        }
    }

    /// Another database of the same kind, empty at first.
    pub(crate) async fn other_db(&self) -> &Database {
        let create = || async {
            let folder = self.folder.path().join("other");
            std::fs::create_dir(&folder).unwrap();
            match &self.server {
                Some(server) => Database::create_on(self.db.kind, server.server.clone()).await,
                None => Database::create(self.db.kind, &folder).await,
            }
        };
        self.other.get_or_init(create).await
    }

    /// The day of the clock.
    pub(crate) fn today(&self) -> NaiveDate {
        self.clock.now().date_naive()
    }

    /// The configuration of this test's gateways, as a file. Batches that are not full are formed when the test says so,
    /// wherever it moves the clock.
    pub(crate) fn config_text(&self) -> String {
        let tls_ca = self.db.tls_ca.as_ref();
        let tls_ca = tls_ca.map(|ca| format!("tls_ca = {:?}\n", ca.display().to_string()));
        format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\nworkers = 2\n\
             [tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\
             [database]\nurl = \"{}\"\n{}\
             [trust]\nanchor = \"trust-anchor.pem\"\nrefresh = \"1h\"\n\
             [encryption]\nkeys = [{{ id = 1, file = \"payload-1.key\" }}]\n\
             [access_log]\nsigning_key = \"access-log.key\"\nspool = \"{}\"\nspool_max = \"8MiB\"\n\
             [batching]\ninterval = \"1000d\"\nlinger = \"1000d\"\nspacing = \"0s\"\n{}",
            self.db.url,
            tls_ca.unwrap_or_default(),
            if self.spool { "spool" } else { "" },
            LIMITS
        )
    }

    pub(crate) fn config(&self) -> Config {
        let path = self.write_config(&self.config_text());
        Config::load(&path).unwrap()
    }

    pub(crate) fn write_config(&self, text: &str) -> std::path::PathBuf {
        let path = self.folder.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A gateway with all participants registered.
    pub(crate) async fn gateway(&self) -> Running {
        self.gateway_with(|_| {}).await
    }

    pub(crate) async fn gateway_with(&self, change: impl FnOnce(&mut Config)) -> Running {
        self.gateway_at(self.clock.clone(), change).await
    }

    pub(crate) async fn gateway_at(&self, clock: Clock, change: impl FnOnce(&mut Config)) -> Running {
        let mut config = self.config();
        change(&mut config);
        self.start(App::new(config, clock, None).unwrap()).await
    }

    pub(crate) async fn start(&self, app: Arc<App>) -> Running {
        self.register_participants(&app).await;
        let gateway = Gateway::start(app.clone(), true).await.unwrap();
        let running = Running {
            address: gateway.address.port(),
            admin: gateway.admin_address.port(),
            files: gateway.reload().clone(),
            app,
        };
        self.gateways.lock().unwrap().push(gateway);
        running.settle().await;
        running
    }

    /// Brings the schema up to date and fills the registry, for gateways that run as processes.
    pub(crate) async fn prepare(&self) {
        let app = App::new(self.config(), Clock::system(), None).unwrap();
        self.register_participants(&app).await;
        app.store.clone().close().await;
    }

    async fn register_participants(&self, app: &App) {
        app.store.migrate().await.unwrap();
        for participant in PARTICIPANTS.iter() {
            for identity in [&participant.authentication, &participant.signing, &participant.callback] {
                import(app, &identity.bundle).await;
            }
        }
    }

    /// Waits until the database has the records of all answers of this test's gateways.
    pub(crate) async fn recorded(&self) {
        let apps: Vec<_> =
            self.gateways.lock().unwrap().iter().map(|gateway| gateway.app().clone()).collect();
        for app in apps {
            app.access_log.shipped().await;
        }
    }

    /// Stops one gateway, which brings to its end what is under way.
    pub(crate) async fn stop(&self, running: &Running) {
        let gateway = {
            let mut gateways = self.gateways.lock().unwrap();
            let at = gateways.iter().position(|gateway| gateway.address.port() == running.address).unwrap();
            gateways.remove(at)
        };
        gateway.stop().await;
    }

    /// Whatever a test does, the record of its requests is whole.
    async fn check_access_log(&self) {
        let app = App::new(self.config(), self.clock.clone(), None).unwrap();
        if app.store.schema_is_current().await.unwrap() {
            let report = efgs_gateway::access_log::verify::verify(&app.store, &Default::default()).await;
            assert_eq!(report.unwrap().findings, []);
        }
        app.store.clone().close().await;
    }

    async fn stop_gateways(&self) {
        let gateways = std::mem::take(&mut *self.gateways.lock().unwrap());
        for gateway in gateways {
            gateway.stop().await;
        }
    }
}

/// Puts a certificate into the registry's table; a gateway sees it at the next [`Running::reload`].
pub(crate) async fn import(app: &App, bundle: &Bundle) {
    let new = NewCertificate {
        thumbprint: bundle.certificate.thumbprint(),
        kind: bundle.kind,
        country: bundle.country.to_string(),
        pem: bundle.certificate.pem().to_owned(),
        operator_signature: bundle.operator_signature.clone(),
        registration_signature: bundle.registration_signature.clone(),
        waived: String::new(),
        waived_by: String::new(),
        waived_because: String::new(),
    };
    app.store.import_certificate(&new, app.clock.now()).await.unwrap();
}

/// A gateway that runs, as tests reach it.
pub(crate) struct Running {
    /// Port of the national backends' side.
    pub(crate) address: u16,
    /// Port of the admin side.
    pub(crate) admin: u16,
    pub(crate) app: Arc<App>,
    /// What can be exchanged while it runs.
    pub(crate) files: Arc<Reload>,
}

impl Running {
    /// A country's backend with its registered certificates.
    pub(crate) fn client(&self, code: &str) -> Client {
        let participant = participant(code);
        Client::new(self.address, Some(&participant.authentication), participant.signing.clone())
    }

    /// Somebody with this client certificate, who signs as `code`.
    pub(crate) fn client_with(&self, identity: Option<&Identity>, code: &str) -> Client {
        Client::new(self.address, identity, participant(code).signing.clone())
    }

    /// Registers more certificates.
    pub(crate) async fn register(&self, identities: &[&Identity]) {
        for identity in identities {
            import(&self.app, &identity.bundle).await;
        }
        self.reload().await;
    }

    /// Reads the registry again.
    pub(crate) async fn reload(&self) {
        efgs_gateway::trust::load(&self.app.trust, &self.app.store).await.unwrap();
    }

    /// Puts all that waits into batches now; their names.
    pub(crate) async fn form(&self) -> Vec<String> {
        let formed = self.app.batching.form_now().await.unwrap();
        formed.iter().map(|batch| batch.id.to_string()).collect()
    }

    /// Waits until the first turn of the jobs is over: right after the start they find that they are due.
    async fn settle(&self) {
        use efgs_gateway::store::Job;
        until("the first turn of the jobs", async || {
            for job in [Job::Batching, Job::Expiry, Job::AccessLog] {
                if self.app.store.is_due(job).await.unwrap() {
                    return None;
                }
            }
            self.app.chain.is_loaded().then_some(())
        })
        .await;
    }
}

/// Asks again and again until there is an answer; fails when that takes too long.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    // Longer than the lease of a holder that could not give it back, because the database was away.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a program; what it prints.
pub(crate) fn output_of(program: &str, arguments: &[&str], folder: &Path) -> Vec<u8> {
    let output = std::process::Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
