//! A gateway as an operator runs it: the release binary, a configuration, imported certificates.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use efgs_test_ca::{KeyKind, Participant, Pki};
use rustls::ClientConfig;
use tempfile::TempDir;

use crate::{
    Outcome,
    connection::{self, Connection},
    database::{Kind, Schema},
    load::Processes,
    process::Server,
};

/// The repository's root.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Limits that no measurement reaches.
const UNLIMITED: &str = "[limits]\nrequests_per_second = 1000000\nburst = 1000000\nhandshakes_per_second = 1000000\n\
                         bytes_per_day = \"1TB\"\nkeys_per_day = 1000000000\n";

/// Builds the gateway of this repository as it is released.
pub(crate) fn build() -> Outcome<PathBuf> {
    build_with(&[])
}

/// Builds a variant that is measured beside it, under a name of its own.
pub(crate) fn build_variant(name: &str, feature: &str) -> Outcome<PathBuf> {
    let built = build_with(&["--features", feature])?;
    let variant = built.with_file_name(format!("efgs-gateway-{name}"));
    fs::copy(&built, &variant)?;
    Ok(variant)
}

fn build_with(more: &[&str]) -> Outcome<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--release", "--package", "efgs-gateway", "--bin", "efgs-gateway"])
        .args(more)
        .current_dir(ROOT);
    if !cargo.status().map_err(|e| format!("cannot run cargo: {e}"))?.success() {
        return Err("the gateway does not build".into());
    }
    // This program lies beside it, wherever the target folder is.
    Ok(env::current_exe()?.with_file_name("efgs-gateway"))
}

/// Everything that gateways of one measurement share: a folder, a PKI with five countries, a schema.
pub(crate) struct Site {
    program: PathBuf,
    pub(crate) folder: TempDir,
    pub(crate) pki: Pki,
    /// The last one uploads nothing.
    pub(crate) participants: Vec<Participant>,
    pub(crate) schema: Schema,
}

impl Site {
    pub(crate) async fn new(program: &Path, kind: Kind) -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("efgs-bench-").tempdir()?;
        // nginx reads what it serves as another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let pki = Pki::new(KeyKind::Ec256)?;
        pki.write(folder.path())?;
        let mut participants = Vec::new();
        for code in ["NL", "IT", "IE", "ES", "DE"] {
            let participant = pki.participant(code.parse()?)?;
            participant.write(&folder.path().join(code))?;
            participants.push(participant);
        }
        // A fixed key: the encrypted data is deleted with the schema.
        fs::write(folder.path().join("payload-1.key"), format!("{}=\n", "A".repeat(43)))?;
        let schema = Schema::create(kind, folder.path()).await?;
        let site = Self { program: program.to_owned(), folder, pki, participants, schema };
        site.register(&site.schema)?;
        Ok(site)
    }

    /// Sets up the gateway's tables in a schema and registers the countries' certificates there.
    pub(crate) fn register(&self, schema: &Schema) -> Outcome {
        self.configure(schema, "")?;
        let mut arguments = vec!["certificate".to_owned(), "import".to_owned()];
        for participant in &self.participants {
            for name in ["authentication", "signing"] {
                let folder = self.folder.path().display();
                arguments.push(format!("{folder}/{}/{name}.bundle", participant.country));
            }
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.run_on(schema, &arguments).map(drop)
    }

    /// Writes a configuration with the gateway's defaults and, at its end, `more`. The limits are wide unless
    /// `more` has its own.
    fn config(&self, name: &str, schema: &Schema, more: &str) -> Outcome<String> {
        let path = self.folder.path().join(name);
        let unlimited = if more.contains("[limits]") { "" } else { UNLIMITED };
        let tls_ca = schema.tls_ca.as_ref().map(|ca| format!("tls_ca = {ca:?}\n")).unwrap_or_default();
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n\
             [tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\
             [database]\nurl = \"{}\"\n{tls_ca}\
             [trust]\nanchor = \"trust-anchor.pem\"\n\
             [encryption]\nkeys = [{{ id = 1, file = \"payload-1.key\" }}]\n{unlimited}{more}",
            schema.url
        );
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// Sets up the gateway's tables in another schema.
    pub(crate) fn migrate(&self, schema: &Schema) -> Outcome {
        self.configure(schema, "")?;
        self.run_on(schema, &["migrate"]).map(drop)
    }

    /// Writes the configuration for [`Site::run_on`] a schema.
    pub(crate) fn configure(&self, schema: &Schema, more: &str) -> Outcome {
        self.config(&format!("{}.toml", schema.name), schema, more).map(drop)
    }

    /// Runs a command on a schema; what it prints.
    pub(crate) fn run_on(&self, schema: &Schema, arguments: &[&str]) -> Outcome<String> {
        let config = self.folder.path().join(format!("{}.toml", schema.name));
        let output = Command::new(&self.program).args(arguments).arg("--config").arg(config).output();
        let output = output.map_err(|e| format!("cannot run {}: {e}", self.program.display()))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into())
        }
    }

    /// Starts a gateway with the default settings and `more` of them.
    pub(crate) fn start(&self, more: &str) -> Outcome<Gateway> {
        self.start_on(&self.schema, more)
    }

    /// The same on another schema.
    pub(crate) fn start_on(&self, schema: &Schema, more: &str) -> Outcome<Gateway> {
        self.start_program(&self.program, schema, more)
    }

    /// The same with a variant of the gateway.
    pub(crate) fn start_variant(&self, program: &Path, more: &str) -> Outcome<Gateway> {
        self.start_program(program, &self.schema, more)
    }

    fn start_program(&self, program: &Path, schema: &Schema, more: &str) -> Outcome<Gateway> {
        let config = self.config(&format!("{}.toml", schema.name), schema, more)?;
        let (server, port) = Server::start(program, &["serve", "--config", &config], |line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line.get("admin_address")?;
            line.get("address")?.as_str()?.rsplit(':').next()?.parse().ok()
        })?;
        Ok(Gateway { server, port })
    }

    /// TLS of the country that uploads nothing.
    pub(crate) fn reader(&self, resume: bool) -> Outcome<Arc<ClientConfig>> {
        let reader = self.participants.last().ok_or("there is no participant")?;
        connection::client(&self.pki, &reader.authentication, resume)
    }

    /// A connection of a country that uploads.
    pub(crate) fn writer(&self, port: u16, country: &Participant) -> Outcome<Connection> {
        Connection::open(port, &connection::client(&self.pki, &country.authentication, true)?)
    }
}

/// Bytes of all files in a folder.
pub(crate) fn size_of(folder: PathBuf) -> Outcome<u64> {
    let mut bytes = 0;
    let mut left = vec![folder];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            } else {
                bytes += entry.metadata()?.len();
            }
        }
    }
    Ok(bytes)
}

/// A gateway that runs.
pub(crate) struct Gateway {
    server: Server,
    pub(crate) port: u16,
}

impl Gateway {
    pub(crate) fn id(&self) -> u32 {
        self.server.id()
    }

    pub(crate) fn processes(&self, kind: Kind) -> Processes {
        Processes { server: self.id(), database: kind.process() }
    }
}
