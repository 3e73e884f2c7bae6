//! The demo's folder: a throw-away PKI and a configuration, written once and then read back like an
//! operator's.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use efgs_client::{Gateway, Settings};
use efgs_protocol::{anchor::TrustAnchor, bundle::Bundle, country::Country, random, signature::BatchSigner};
use efgs_test_ca::{Error as PkiError, KeyKind, KeyPair, Pki};
use tempfile::TempDir;

/// The countries of the demo.
pub(super) const COUNTRIES: [&str; 3] = ["DE", "NL", "BE"];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The folder; a temporary one is deleted in the end.
pub(super) struct Folder {
    path: PathBuf,
    temporary: Option<TempDir>,
}

/// A country, as its own backend: it calls and it signs.
pub(super) struct Actor {
    pub(super) country: Country,
    pub(super) gateway: Gateway,
    pub(super) signer: BatchSigner,
}

impl Folder {
    /// Makes a folder with everything in it, or takes one that an earlier demo has kept.
    pub(super) fn prepare(keep: Option<&Path>, listen: SocketAddr) -> Result<Self> {
        let (path, temporary) = match keep {
            Some(path) => (path.to_owned(), None),
            None => {
                let temporary = tempfile::Builder::new().prefix("efgs-demo-").tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let fail = |e: io::Error| format!("cannot use the folder {}: {e}", path.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(fail)?;
        let folder = Self { path: path.canonicalize().map_err(fail)?, temporary };
        if !folder.config().exists() {
            if fs::read_dir(&folder.path).map_err(fail)?.next().is_some() {
                let path = folder.path.display();
                return Err(format!(
                    "{path} is not empty and is not the folder of an earlier demo: name a new or an empty one"
                )
                .into());
            }
            folder.fill(listen)?;
        }
        Ok(folder)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is deleted in the end.
    pub(super) fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// The configuration file.
    pub(super) fn config(&self) -> PathBuf {
        self.path.join("efgs.toml")
    }

    /// The certificate of the operator's trust anchor, as an auditor has it.
    pub(super) fn anchor(&self) -> Result<TrustAnchor> {
        Ok(TrustAnchor::from_pem(self.read("trust-anchor.pem")?)?)
    }

    /// All onboarding bundles.
    pub(super) fn bundles(&self) -> Result<Vec<Bundle>> {
        let mut bundles = Vec::new();
        for country in COUNTRIES {
            for kind in ["authentication", "signing", "callback"] {
                bundles.push(self.read(&format!("{country}/{kind}.bundle"))?.parse()?);
            }
        }
        Ok(bundles)
    }

    /// A country's backend, with the certificates in the folder.
    pub(super) fn actor(&self, country: &str, url: &str) -> Result<Actor> {
        let read = |name: &str| self.read(&format!("{country}/{name}"));
        Ok(Actor {
            country: country.parse()?,
            gateway: self.client(url, read("authentication.pem")?, read("authentication.key")?)?,
            signer: BatchSigner::from_pem(read("signing.pem")?, read("signing.key")?)?,
        })
    }

    /// Somebody with a certificate that the operator has not signed.
    pub(super) fn unregistered(
        &self,
        url: &str,
        KeyPair { certificate, key_pem }: KeyPair,
    ) -> Result<Gateway> {
        self.client(url, certificate.pem().to_owned(), key_pem)
    }

    /// Writes for each country the profile with which its backend's command `efgs` calls this gateway.
    pub(super) fn write_profiles(&self, url: &str) -> Result<()> {
        COUNTRIES.iter().try_for_each(|country| self.write(&profile(country), profile_text(country, url)))
    }

    /// Writes a file for people to use.
    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
        fs::write(self.path.join(name), content).map_err(|e| self.fail("write", name, &e).into())
    }

    /// The database's files, one after the other.
    pub(super) fn database(&self) -> Result<Vec<u8>> {
        let read = |name| fs::read(self.path.join(name)).map_err(|e| self.fail("read", name, &e));
        Ok([read("efgs.db")?, read("efgs.db-wal")?].concat())
    }

    fn client(&self, url: &str, certificate_pem: String, private_key_pem: String) -> Result<Gateway> {
        let server_ca_pem = self.read("server-ca.pem")?;
        let timeout = Duration::from_secs(30);
        Ok(Gateway::new(Settings {
            url: url.to_owned(),
            server_ca_pem,
            certificate_pem,
            private_key_pem: private_key_pem.into(),
            timeout,
        })?)
    }

    fn read(&self, name: &str) -> std::result::Result<String, String> {
        fs::read_to_string(self.path.join(name)).map_err(|e| self.fail("read", name, &e))
    }

    fn fail(&self, what: &str, name: &str, error: &io::Error) -> String {
        format!("cannot {what} {}: {error}; name a new folder with --keep", self.path.join(name).display())
    }

    fn fill(&self, listen: SocketAddr) -> Result<()> {
        let pki = Pki::new(KeyKind::Rsa(3072))?;
        pki.write(&self.path)?;
        for country in COUNTRIES {
            pki.participant(country.parse()?)?.write(&self.path.join(country))?;
        }
        let mut key = [0; 32];
        random::fill(&mut key);
        private(&self.path.join("payload-1.key"), &BASE64_STANDARD.encode(key))?;
        let signing = openssl::pkey::PKey::generate_ed25519()?.private_key_to_pem_pkcs8()?;
        private(&self.path.join("access-log.key"), &String::from_utf8(signing)?)?;
        // Last, because its presence says that the folder is complete.
        self.write("efgs.toml", configuration(listen))
    }
}

/// Where a country's profile is.
pub(super) fn profile(country: &str) -> String {
    format!("{country}/{}", efgs_client::profile::DEFAULT_FILE)
}

fn profile_text(country: &str, url: &str) -> String {
    format!(
        r#"# Written by `efgs-gateway demo`. `efgs init` writes one in which every key is explained.
country = "{country}"

[gateway]
url = "{url}"
ca = "../server-ca.pem"

[authentication]
certificate = "authentication.pem"
private_key = "authentication.key"

[signing]
certificate = "signing.pem"
private_key = "signing.key"

[trust]
anchor = "../trust-anchor.pem"
"#
    )
}

fn private(path: &Path, text: &str) -> std::result::Result<(), PkiError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| PkiError::Write { path: path.to_owned(), source })
}

fn configuration(listen: SocketAddr) -> String {
    format!(
        r#"# Written by `efgs-gateway demo`: a gateway to play with. Its private keys lie beside this file, so never use it in
# earnest. `efgs-gateway config example` shows every key there is.

[server]
listen = "{listen}"
admin_listen = "127.0.0.1:0"     # any free port

[tls]
certificate = "server.pem"
private_key = "server.key"

[database]
url = "sqlite:efgs.db"

[trust]
anchor = "trust-anchor.pem"

[encryption]
keys = [{{ id = 1, file = "payload-1.key" }}]

[access_log]
signing_key = "access-log.key"

[batching]
interval = "10s"                 # 5 minutes in production; shorter in the demo
linger = "10s"                   # 5 seconds in production; the demo shows uploads that wait
"#
    )
}
