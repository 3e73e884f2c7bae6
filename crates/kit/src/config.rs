//! The configuration: a TOML file, overridden by the environment (`EFGS__SECTION__KEY`).
//!
//! Every section is typed. An unknown key is an error that names the nearest known key. Relative paths are
//! relative to the file. Secrets never appear in debug output.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use bytesize::ByteSize;
use efgs_protocol::country::Country;
use ipnet::IpNet;
use serde::Deserialize;
use zeroize::Zeroizing;

mod access_log;
mod callback;
mod journal;
mod limits;
mod load;
#[cfg(test)]
mod tests;
mod tracing;

pub use access_log::{AccessLog, LogSync};
pub use callback::Callback;
pub use journal::Journal;
pub use limits::{CountryLimits, Limits};
pub use load::ConfigError;
pub use tracing::Tracing;

/// A complete, commented example, as `config example` prints it.
pub const EXAMPLE: &str = include_str!("config/example.toml");

/// Everything that an operator can set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where and how the gateway listens.
    #[serde(default)]
    pub server: Server,
    /// The gateway's own certificate; with [`AuthMode::Mtls`] only.
    pub tls: Option<Tls>,
    /// Where the documents are kept.
    pub database: Database,
    /// Whose signature makes a certificate count (spec §6.1.3).
    pub trust: Trust,
    /// Keys of the encryption at rest (spec §8.2).
    pub encryption: Encryption,
    /// Limits of one upload.
    #[serde(default)]
    pub upload: Upload,
    /// What one country, one address and all together may take.
    #[serde(default)]
    pub limits: Limits,
    /// How uploads become batches (spec §4.2.8).
    #[serde(default)]
    pub batching: Batching,
    /// What is kept ready in memory for downloads.
    #[serde(default)]
    pub download: Download,
    /// How long documents live (spec §4.2.6).
    #[serde(default)]
    pub retention: Retention,
    /// Where accepted uploads are recorded besides the database; without it they are not.
    pub journal: Option<Journal>,
    /// The record of every request (spec §8.1).
    #[serde(default)]
    pub access_log: AccessLog,
    /// How countries are called back (spec §5.6); without it callbacks are registered, and wait.
    pub callback: Option<Callback>,
    /// Where traces are sent; without it there are none.
    pub tracing: Option<Tracing>,
    /// Settings of single countries.
    #[serde(default)]
    pub participants: BTreeMap<Country, Participant>,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The national backends' side.
    pub listen: SocketAddr,
    /// Health, metrics and the API document; plain HTTP, never public.
    pub admin_listen: SocketAddr,
    /// Names under which the admin listener is reached, beside addresses and names without a dot.
    pub admin_hosts: Vec<String>,
    /// How callers are known.
    pub auth: AuthMode,
    /// Networks of the load balancers in front; only with [`AuthMode::Proxy`].
    pub trusted_proxies: Vec<Network>,
    /// From the first byte of a request to its last.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Connections open at once; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// Threads that serve requests; by default one per core.
    pub workers: Option<usize>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8443)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            admin_hosts: Vec::new(),
            auth: AuthMode::Mtls,
            trusted_proxies: Vec::new(),
            request_timeout: Duration::from_secs(30),
            max_connections: 1024,
            workers: None,
        }
    }
}

/// How a caller is known.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum AuthMode {
    /// The gateway ends TLS itself and requires a client certificate.
    Mtls,
    /// TLS ends at a load balancer (spec §7), which says in headers who calls; the gateway speaks plain HTTP.
    Proxy,
}

/// `[tls]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM: the gateway's certificate, then its chain.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub private_key: PathBuf,
    /// PEM: callers' certificates must also chain to one of these.
    pub client_ca: Option<PathBuf>,
}

/// `[database]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `sqlite:PATH` or `mysql://user:password@host:port/name`.
    pub url: Option<Secret>,
    /// A file that holds the URL, for operators who keep secrets in files.
    pub url_file: Option<PathBuf>,
    /// Replicas that give the keys of batches that are known from the primary; like `url`.
    #[serde(default)]
    pub read_urls: Vec<Secret>,
    /// A file that holds them, one on each line, instead.
    pub read_urls_file: Option<PathBuf>,
    /// PEM: require TLS and verify the server against these.
    pub tls_ca: Option<PathBuf>,
    /// Connections of the bulk path (uploads, reading batches); the rest of the gateway uses a few of its own.
    #[serde(default = "Database::default_pool")]
    pub pool: u16,
    /// The time limit of one operation including its retries; the caller then gets 503.
    #[serde(default = "Database::default_timeout", with = "humantime_serde")]
    pub timeout: Duration,
}

impl Database {
    fn default_pool() -> u16 {
        16
    }

    fn default_timeout() -> Duration {
        Duration::from_secs(10)
    }
}

/// `[trust]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// PEM: the certificate of the operator's offline trust anchor.
    pub anchor: PathBuf,
    /// Imports and revocations take effect on every instance within this time.
    #[serde(default = "Trust::default_refresh", with = "humantime_serde")]
    pub refresh: Duration,
    /// How long after the last reading of the registry what is in memory is served while the database is unreachable;
    /// zero: not at all.
    #[serde(default = "Trust::default_read_grace", with = "humantime_serde")]
    pub read_grace: Duration,
    /// Thumbprints of certificates that are refused, whatever the registry says.
    pub deny_file: Option<PathBuf>,
}

impl Trust {
    fn default_read_grace() -> Duration {
        Duration::from_secs(600)
    }

    fn default_refresh() -> Duration {
        Duration::from_secs(5)
    }
}

/// `[encryption]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    /// The first encrypts, all decrypt.
    pub keys: Vec<EncryptionKey>,
}

/// One key of `encryption.keys`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncryptionKey {
    /// Stored with every payload; never reuse an id for another key.
    pub id: u32,
    /// 32 bytes, base64.
    pub file: PathBuf,
}

/// `[upload]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upload {
    /// Keys in one upload.
    pub max_keys: usize,
    /// Bytes of one request's body.
    pub max_bytes: ByteSize,
}

impl Default for Upload {
    fn default() -> Self {
        Self { max_keys: 5000, max_bytes: ByteSize::mib(10) }
    }
}

/// `[batching]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batching {
    /// A waiting upload is in a batch after at most this long.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Keys in one batch, unless a single upload has more.
    pub max_keys: usize,
    /// Which of a batch's two names the gateway says.
    pub tags: TagStyle,
    /// How long the first upload of a batch waits for others, as set. [`Batching::linger`] is what holds.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    /// The least time between two batches, as set. [`Batching::spacing`] is what holds.
    #[serde(with = "humantime_serde")]
    pub spacing: Duration,
}

impl Batching {
    /// How long the first upload of a batch waits for others. At most the interval.
    pub fn linger(&self) -> Duration {
        self.linger.min(self.interval)
    }

    /// How long after a batch the next one is formed at the earliest, unless it is full. At most the interval.
    pub fn spacing(&self) -> Duration {
        self.spacing.min(self.interval)
    }
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(300),
            max_keys: 5000,
            tags: TagStyle::ObjectId,
            linger: Duration::from_secs(5),
            spacing: Duration::from_secs(60),
        }
    }
}

/// Which of a batch's two names the gateway says; it understands both.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum TagStyle {
    /// 24 hexadecimal digits (spec §4.2.9).
    ObjectId,
    /// `yyyyMMdd-N`.
    DaySequence,
}

/// Where a country's chain of batches ends.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum ChainScope {
    /// At the newest batch.
    #[default]
    SinceDate,
    /// At midnight, for a country that walks day by day.
    Day,
}

/// `[download]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Download {
    /// Memory for batches that are ready to send.
    pub cache: ByteSize,
    /// Disk space for batches that are ready to send, sealed; 0: none.
    pub disk_cache: ByteSize,
    /// Where they are: a folder of this instance alone.
    pub disk_folder: PathBuf,
}

impl Default for Download {
    fn default() -> Self {
        Self {
            cache: ByteSize::mib(96),
            disk_cache: ByteSize::b(0),
            disk_folder: PathBuf::from("download-cache"),
        }
    }
}

/// `[retention]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Days for which a batch is served after the day it was formed on.
    pub days: u16,
    /// How often what is older is deleted.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { days: 14, interval: Duration::from_secs(3600) }
    }
}

/// `[participants.XX]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Participant {
    /// Which name of a batch this country is told, instead of `batching.tags`.
    pub tags: Option<TagStyle>,
    /// Where its chain ends.
    pub chain: ChainScope,
    /// Accept its signatures with SHA-1; each use is logged.
    pub allow_sha1_signatures: bool,
    /// Instead of `limits.keys_per_day`.
    pub keys_per_day: Option<u64>,
    /// Instead of `limits.bytes_per_day`.
    pub bytes_per_day: Option<ByteSize>,
    /// Instead of `limits.requests_per_second`.
    pub requests_per_second: Option<f64>,
    /// Instead of `limits.burst`.
    pub burst: Option<u32>,
    /// Instead of `limits.concurrent_uploads`.
    pub concurrent_uploads: Option<usize>,
    /// Instead of `limits.concurrent_downloads`.
    pub concurrent_downloads: Option<usize>,
    /// Instead of `limits.connections`.
    pub connections: Option<usize>,
}

impl Config {
    /// What is set for a country; all defaults when nothing is.
    pub fn participant(&self, country: Country) -> Participant {
        self.participants.get(&country).copied().unwrap_or_default()
    }

    /// Reads a file and the environment, and makes relative paths absolute.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        load::load(
            path,
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }
}

/// A network (`10.0.0.0/8`) or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network(IpNet);

impl Network {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Self)
            .map_err(|_| format!("{text:?} is neither a network such as \"10.0.0.0/8\" nor an address"))
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A text that debug output must not show, and that is wiped from memory when it is no longer needed.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself. The caller must keep it secret.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
