//! Who a national backend is and which gateway it calls: one TOML file, the *profile*.
//!
//! A key that nobody knows is an error that names its nearest neighbour, and relative paths are relative to
//! the file. Reading a profile opens no other file: what a command does not need may be missing, and what it
//! needs is read when it asks for it ([`Profile::gateway`], [`Profile::signer`], [`Profile::anchor`]).

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use efgs_protocol::{
    anchor::TrustAnchor,
    certificate::Certificate,
    country::Country,
    signature::{BatchSigner, Identity, SignError, SignaturePolicy},
};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{Gateway, Settings, audit::Auditor};

mod export;
#[cfg(test)]
mod tests;

pub use export::ExportProfile;
use export::ExportSection;

/// A complete, commented example, as `efgs init` writes it.
pub const EXAMPLE: &str = include_str!("example.toml");

/// Where a profile is looked for when nobody says where it is.
pub const DEFAULT_FILE: &str = "efgs-client.toml";

/// How long a call of the gateway, or a request to the bucket, may take when the profile does not say.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a profile cannot be used; every text names the file or the key, and says what to do. Never holds a
/// secret.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A section is missing that is needed now.
    #[error("{0}")]
    Missing(String),
    /// The profile or a file that it names is not readable, or cannot be used.
    #[error("{0}")]
    Unusable(String),
}

impl ProfileError {
    /// The keys of a section contradict each other, or what they name cannot be used.
    fn section(name: &str, reason: impl fmt::Display) -> Self {
        Self::Unusable(format!("`[{name}]`: {reason}"))
    }

    /// A certificate and its private key cannot be used.
    fn identity(section: &str, error: &SignError) -> Self {
        Self::section(section, format_args!("{error}{}", hint(error, section)))
    }
}

/// Where a password can come from, when it is missing or wrong.
fn hint(error: &SignError, section: &str) -> String {
    use efgs_protocol::certificate::CertificateError::{PasswordNeeded, WrongPassword};
    match error {
        SignError::Key | SignError::Certificate(PasswordNeeded | WrongPassword) => {
            format!("; set `{section}.password_file` or the variable {}", password_variable(section))
        }
        _ => String::new(),
    }
}

fn password_variable(section: &str) -> String {
    format!("EFGS_{}_PASSWORD", section.to_ascii_uppercase().replace('.', "_"))
}

/// A profile that was read.
#[derive(Clone, Debug)]
pub struct Profile {
    path: PathBuf,
    content: Content,
}

/// The file. Whoever adds a section describes its keys in `example.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    country: Country,
    state: Option<PathBuf>,
    gateway: Option<GatewaySection>,
    authentication: Option<IdentitySection>,
    signing: Option<IdentitySection>,
    trust: Option<TrustSection>,
    export: Option<ExportSection>,
    callback: Option<CallbackSection>,
}

/// `[gateway]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GatewaySection {
    url: String,
    ca: PathBuf,
    #[serde(default, with = "humantime_serde")]
    timeout: Option<Duration>,
}

/// `[authentication]`, `[signing]`: a pair of PEM files, or one PKCS#12 file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentitySection {
    certificate: Option<PathBuf>,
    private_key: Option<PathBuf>,
    pkcs12: Option<PathBuf>,
    password_file: Option<PathBuf>,
}

/// `[trust]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustSection {
    anchor: PathBuf,
    #[serde(default)]
    allow_sha1: bool,
}

/// `[callback]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CallbackSection {
    path: String,
    gateway: Vec<PathBuf>,
    server: IdentitySection,
}

/// What it takes to be called by the gateway, see [`Receiver::bind`](crate::callback::Receiver::bind).
pub struct CallbackServer {
    /// The path of the registered URL.
    pub path: String,
    /// The server's CALLBACK certificate with its private key.
    pub identity: Identity,
    /// The certificates that the gateway shows.
    pub gateway: Vec<Certificate>,
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// When it is not readable, or says something that nobody understands.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let text = fs::read_to_string(path).map_err(|error| {
            let path = path.display();
            ProfileError::Unusable(format!(
                "cannot read the profile {path}: {error}; `efgs init` writes one, --profile names another"
            ))
        })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ProfileError> {
        let content = toml::from_str(text).map_err(|error| {
            let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let reason = explain(error.message());
            ProfileError::Unusable(format!("{}, line {line}: {reason}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), content })
    }

    /// The profile's own file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path of the profile, as seen from where the program runs.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    /// The country that this backend serves.
    pub fn country(&self) -> Country {
        self.content.country
    }

    /// The folder in which commands remember what they did. It may not exist yet.
    pub fn state(&self) -> PathBuf {
        self.resolve(self.content.state.as_deref().unwrap_or("efgs-state".as_ref()))
    }

    /// The gateway, called with the AUTHENTICATION certificate; nothing is connected yet.
    ///
    /// # Errors
    /// When `[gateway]` or `[authentication]` is missing or cannot be used.
    pub fn gateway(&self) -> Result<Gateway, ProfileError> {
        Gateway::new(self.settings()?).map_err(|error| ProfileError::section("gateway", error))
    }

    /// What it takes to call the gateway.
    ///
    /// # Errors
    /// When `[gateway]` or `[authentication]` is missing or its files cannot be used.
    pub fn settings(&self) -> Result<Settings, ProfileError> {
        let section = self.section("gateway", self.content.gateway.as_ref())?;
        let server_ca_pem = String::from_utf8_lossy(&self.read("gateway.ca", &section.ca)?).into_owned();
        let identity = self.authentication()?;
        let key = identity.private_key_pem();
        Ok(Settings {
            url: section.url.clone(),
            server_ca_pem,
            certificate_pem: identity.certificates_pem(),
            private_key_pem: key.map_err(|error| ProfileError::identity("authentication", &error))?,
            timeout: section.timeout.unwrap_or(DEFAULT_TIMEOUT),
        })
    }

    /// Who calls: the AUTHENTICATION certificate with its private key.
    ///
    /// # Errors
    /// When `[authentication]` is missing or cannot be used.
    pub fn authentication(&self) -> Result<Identity, ProfileError> {
        self.identity("authentication", self.content.authentication.as_ref())
    }

    /// Who signs: the SIGNING certificate with its private key.
    ///
    /// # Errors
    /// When `[signing]` is missing or cannot be used.
    pub fn signer(&self) -> Result<BatchSigner, ProfileError> {
        self.identity("signing", self.content.signing.as_ref()).map(BatchSigner::from)
    }

    /// The operator's trust anchor.
    ///
    /// # Errors
    /// When `[trust]` is missing or cannot be used.
    pub fn anchor(&self) -> Result<TrustAnchor, ProfileError> {
        let section = self.section("trust", self.content.trust.as_ref())?;
        TrustAnchor::from_pem(&*self.read("trust.anchor", &section.anchor)?)
            .map_err(|error| ProfileError::Unusable(format!("`trust.anchor`: {error}")))
    }

    /// How the gateway calls.
    ///
    /// # Errors
    /// When `[callback]` is missing or cannot be used.
    pub fn callback(&self) -> Result<CallbackServer, ProfileError> {
        let section = self.section("callback", self.content.callback.as_ref())?;
        if !section.path.starts_with('/') {
            let reason = "`path` begins with a slash, as in the registered URL";
            return Err(ProfileError::section("callback", reason));
        }
        let identity = self.identity("callback.server", Some(&section.server))?;
        let read = |path: &PathBuf| {
            Certificate::from_file_contents(&self.read("callback.gateway", path)?, None).map_err(|error| {
                ProfileError::section("callback", format_args!("`gateway`: {}: {error}", path.display()))
            })
        };
        let gateway = section.gateway.iter().map(read).collect::<Result<_, _>>()?;
        Ok(CallbackServer { path: section.path.clone(), identity, gateway })
    }

    /// Against what batches are verified: the country, the trust anchor, and what is tolerated.
    ///
    /// # Errors
    /// When `[trust]` is missing or cannot be used.
    pub fn auditor(&self) -> Result<Auditor, ProfileError> {
        let section = self.section("trust", self.content.trust.as_ref())?;
        let policy = SignaturePolicy { allow_sha1: section.allow_sha1 };
        Ok(Auditor { country: self.country(), anchor: self.anchor()?, policy })
    }

    /// What works but endangers secrets: files of keys and passwords that every user of this machine may read.
    pub fn warnings(&self) -> Vec<String> {
        let content = &self.content;
        let sections = [&content.authentication, &content.signing].into_iter().flatten();
        sections
            .chain(content.callback.as_ref().map(|callback| &callback.server))
            .flat_map(|section| [&section.private_key, &section.pkcs12, &section.password_file])
            .flatten()
            .chain(self.content.export.iter().map(|section| &section.signing_key))
            .map(|path| self.resolve(path))
            .filter(|path| is_open(path))
            .map(|path| {
                format!("{0} may be read by every user of this machine: chmod 600 {0}", path.display())
            })
            .collect()
    }

    fn identity(&self, name: &str, section: Option<&IdentitySection>) -> Result<Identity, ProfileError> {
        let section = self.section(name, section)?;
        let password = match &section.password_file {
            Some(path) => Some(self.read(&format!("{name}.password_file"), path)?),
            None => std::env::var(password_variable(name)).ok().map(|text| Zeroizing::new(text.into_bytes())),
        };
        let password = password.as_ref().map(|bytes| std::str::from_utf8(bytes)).transpose();
        let password = password
            .map_err(|_| ProfileError::section(name, "the password is not text"))?
            .map(|text| text.trim_end_matches(['\r', '\n']));
        let read = |key: &str, path| self.read(&format!("{name}.{key}"), path);
        let identity = match (&section.certificate, &section.private_key, &section.pkcs12) {
            (Some(certificate), Some(key), None) => {
                Identity::from_pem(&*read("certificate", certificate)?, &*read("private_key", key)?, password)
            }
            (None, None, Some(pkcs12)) => Identity::from_pkcs12(&read("pkcs12", pkcs12)?, password),
            _ => {
                let reason = "name a `certificate` with its `private_key`, or one `pkcs12` file";
                return Err(ProfileError::section(name, reason));
            }
        };
        identity.map_err(|error| ProfileError::identity(name, &error))
    }

    fn section<'a, T>(&self, name: &str, section: Option<&'a T>) -> Result<&'a T, ProfileError> {
        section.ok_or_else(|| {
            let path = self.path.display();
            ProfileError::Missing(format!(
                "`[{name}]` is missing in {path}: `efgs init` shows what belongs there"
            ))
        })
    }

    fn read(&self, key: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, ProfileError> {
        let path = self.resolve(path);
        fs::read(&path).map(Zeroizing::new).map_err(|error| {
            ProfileError::Unusable(format!("`{key}`: cannot read {}: {error}", path.display()))
        })
    }
}

/// What serde says of an unknown key, with the nearest of those that it expected.
fn explain(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let (true, Some(unknown)) = (message.starts_with("unknown field"), names.next()) else {
        return message.to_owned();
    };
    let near = |name: &&str| strsim::jaro_winkler(name, unknown);
    match names.max_by(|a, b| near(a).total_cmp(&near(b))) {
        Some(nearest) => format!("unknown key `{unknown}`; did you mean `{nearest}`?"),
        None => format!("unknown key `{unknown}`"),
    }
}

#[cfg(unix)]
fn is_open(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
}

#[cfg(not(unix))]
fn is_open(_: &Path) -> bool {
    false
}
