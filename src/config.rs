//! The configuration: a TOML file, overridden by the environment (`EFGS__SECTION__KEY`).
//!
//! Every section is typed, a key that nobody knows is an error that names its nearest neighbour, relative
//! paths are relative to the file, and secrets never show in debug output.

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

mod load;
#[cfg(test)]
mod tests;

pub use load::ConfigError;

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
    /// What single countries need otherwise than the rest.
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
    /// PEM: require TLS and verify the server against these.
    pub tls_ca: Option<PathBuf>,
    /// Connections of the bulk path (uploads, reading batches); the rest of the gateway uses a few of its own.
    #[serde(default = "Database::default_pool")]
    pub pool: u16,
    /// How long one operation may take with all its repetitions before the caller is told 503.
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
    /// Imports and revocations hold on every instance after at most this long.
    #[serde(default = "Trust::default_refresh", with = "humantime_serde")]
    pub refresh: Duration,
}

impl Trust {
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

/// `[limits]`: what one country, one address and all together may take (spec §5.5, §6.3). All but the quotas of
/// a day hold for each instance by itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Keys accepted from one country on one UTC day, by all instances together.
    pub keys_per_day: u64,
    /// The same in bytes of request bodies.
    pub bytes_per_day: ByteSize,
    /// Requests of one country; what comes faster waits its turn.
    pub requests_per_second: f64,
    /// Requests, or connections, that may come at once after a pause.
    pub burst: u32,
    /// Uploads and other changes of one country that are under way at once; further ones wait their turn.
    pub concurrent_uploads: usize,
    /// The same of everything that only reads.
    pub concurrent_downloads: usize,
    /// Connections of one country that are open at once, and of all callers together that are not registered.
    pub connections: usize,
    /// Connections of one address that are open at once.
    pub connections_per_address: usize,
    /// New connections of one address; what comes faster waits its turn.
    pub handshakes_per_second: f64,
    /// Networks of balancers that pass TLS through: many countries share their addresses.
    pub shared_addresses: Vec<Network>,
    /// Bytes of request bodies that are received or stored at once, of all countries.
    pub memory: ByteSize,
    /// Uploads that wait for the processor, or for the database, at once, of all countries.
    pub queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // The specification's upper bound, at its 200 bytes for a key (spec §5.5.1).
            keys_per_day: 5_000_000,
            bytes_per_day: ByteSize::gb(1),
            requests_per_second: 100.0,
            burst: 200,
            concurrent_uploads: 4,
            concurrent_downloads: 8,
            connections: 64,
            connections_per_address: 256,
            handshakes_per_second: 100.0,
            shared_addresses: Vec::new(),
            memory: ByteSize::mib(48),
            queue: 64,
        }
    }
}

/// What one country may take: `[limits]`, and what its participant's section says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CountryLimits {
    /// See [`Limits::keys_per_day`].
    pub keys_per_day: u64,
    /// See [`Limits::bytes_per_day`].
    pub bytes_per_day: u64,
    /// See [`Limits::requests_per_second`].
    pub requests_per_second: f64,
    /// See [`Limits::burst`].
    pub burst: u32,
    /// See [`Limits::concurrent_uploads`].
    pub concurrent_uploads: usize,
    /// See [`Limits::concurrent_downloads`].
    pub concurrent_downloads: usize,
    /// See [`Limits::connections`].
    pub connections: usize,
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
}

impl Default for Batching {
    fn default() -> Self {
        Self { interval: Duration::from_secs(300), max_keys: 5000, tags: TagStyle::ObjectId }
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
pub enum Chain {
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
}

impl Default for Download {
    fn default() -> Self {
        Self { cache: ByteSize::mib(96) }
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

/// `[journal]`: a folder, or a bucket of an S3-compatible store.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// On a disk that does not die with the database's.
    pub folder: Option<PathBuf>,
    /// The bucket's name.
    pub bucket: Option<String>,
    /// URL of the store.
    pub endpoint: Option<String>,
    /// The store's region.
    pub region: String,
    /// What the names of all objects begin with.
    pub prefix: String,
    /// `endpoint/bucket/name` instead of `bucket.endpoint/name`.
    pub path_style: bool,
    /// A file with the access key's id; without it AWS_ACCESS_KEY_ID in the environment.
    pub access_key_file: Option<PathBuf>,
    /// A file with the secret key; without it AWS_SECRET_ACCESS_KEY in the environment.
    pub secret_key_file: Option<PathBuf>,
    /// PEM: the store's certificate must chain to one of these; without it to one that the system knows.
    pub ca: Option<PathBuf>,
    /// Of one write to the folder or one request to the store; then uploads are refused with 503.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            folder: None,
            bucket: None,
            endpoint: None,
            region: "us-east-1".to_owned(),
            prefix: String::new(),
            path_style: true,
            access_key_file: None,
            secret_key_file: None,
            ca: None,
            timeout: Duration::from_secs(5),
        }
    }
}

/// `[access_log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLog {
    /// PEM: the private key, Ed25519 or EC, that signs where the log stands.
    pub signing_key: Option<PathBuf>,
    /// How often that is signed.
    #[serde(with = "humantime_serde")]
    pub sign_every: Duration,
    /// How long records are kept.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            signing_key: None,
            sign_every: Duration::from_secs(60),
            retention: Duration::from_secs(90 * 24 * 3600),
        }
    }
}

/// `[callback]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callback {
    /// PEM: the certificate that the gateway shows to national backends.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub private_key: PathBuf,
    /// Failures in a row after which a subscription is paused.
    #[serde(default = "Callback::default_max_attempts")]
    pub max_attempts: u32,
    /// Opens networks that are refused otherwise.
    #[serde(default)]
    pub allowed_networks: Vec<IpNet>,
    /// PEM: servers' certificates must also chain to one of these.
    pub ca: Option<PathBuf>,
    /// A forward proxy (CONNECT), `http://host:port`.
    pub proxy: Option<String>,
    /// Looking up, connecting and answering together.
    #[serde(default = "Callback::default_timeout", with = "humantime_serde")]
    pub timeout: Duration,
    /// The wait after the first failure; it doubles with each further one.
    #[serde(default = "Callback::default_retry_initial", with = "humantime_serde")]
    pub retry_initial: Duration,
    /// The longest wait.
    #[serde(default = "Callback::default_retry_max", with = "humantime_serde")]
    pub retry_max: Duration,
}

impl Callback {
    /// All defaults.
    pub fn new(certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        Self {
            certificate: certificate.into(),
            private_key: private_key.into(),
            max_attempts: Self::default_max_attempts(),
            allowed_networks: Vec::new(),
            ca: None,
            proxy: None,
            timeout: Self::default_timeout(),
            retry_initial: Self::default_retry_initial(),
            retry_max: Self::default_retry_max(),
        }
    }

    fn default_max_attempts() -> u32 {
        12
    }

    fn default_timeout() -> Duration {
        Duration::from_secs(10)
    }

    fn default_retry_initial() -> Duration {
        Duration::from_secs(5)
    }

    fn default_retry_max() -> Duration {
        Duration::from_secs(3600)
    }
}

/// `[tracing]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracing {
    /// The collector's address for OTLP over HTTP (protobuf).
    pub endpoint: String,
    /// The share of requests that is traced, 0 to 1.
    #[serde(default = "Tracing::default_ratio")]
    pub ratio: f64,
    /// A file of lines `Name: value`, sent with each export.
    pub headers_file: Option<PathBuf>,
    /// PEM: verify the collector against these; with `https` only.
    pub ca: Option<PathBuf>,
}

impl Tracing {
    fn default_ratio() -> f64 {
        1.0
    }
}

/// `[participants.XX]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Participant {
    /// Which name of a batch this country is told, instead of `batching.tags`.
    pub tags: Option<TagStyle>,
    /// Where its chain ends.
    pub chain: Chain,
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

    /// What a country may take.
    pub fn limits_of(&self, country: Country) -> CountryLimits {
        let (all, own) = (&self.limits, self.participant(country));
        CountryLimits {
            keys_per_day: own.keys_per_day.unwrap_or(all.keys_per_day),
            bytes_per_day: own.bytes_per_day.unwrap_or(all.bytes_per_day).as_u64(),
            requests_per_second: own.requests_per_second.unwrap_or(all.requests_per_second),
            burst: own.burst.unwrap_or(all.burst),
            concurrent_uploads: own.concurrent_uploads.unwrap_or(all.concurrent_uploads),
            concurrent_downloads: own.concurrent_downloads.unwrap_or(all.concurrent_downloads),
            connections: own.connections.unwrap_or(all.connections),
        }
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

    /// The text itself; whoever calls this takes care where it goes.
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
