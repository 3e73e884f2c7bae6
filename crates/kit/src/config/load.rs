//! From a file and the environment to a [`Config`].

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};
use zeroize::Zeroizing;

use super::{
    AccessLog, AuthMode, Batching, Callback, Config, Database, Download, Encryption, EncryptionKey, Journal,
    Limits, Participant, Retention, Secret, Server, Tls, Tracing, Trust, Upload,
};

/// Why a configuration cannot be used; every text names the key and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file does not exist or is not readable.
    #[error("cannot read the configuration {path}: {source}; `efgs-gateway config example` prints one to start from", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {reason}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// An unknown key.
    #[error("unknown key `{key}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// Its whole name.
        key: String,
        /// The known key whose spelling is closest.
        nearest: Option<String>,
    },
    /// A value of the wrong kind, or a key that is missing.
    #[error("{0}")]
    Invalid(String),
}

pub(super) fn load(
    path: &Path,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    // It may hold a password.
    let text = std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut config = parse(&text, path, environment)?;
    absolute(&mut config, &folder);
    Ok(config)
}

pub(super) fn parse(
    text: &str,
    path: &Path,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        reason: syntax(text, &e),
    })?;
    for (name, value) in environment {
        if let Some(key) = name.strip_prefix("EFGS__") {
            set(&mut table, &name, key, &value)?;
        }
    }
    refuse_unknown_keys(&table)?;
    let config: Config = Value::Table(table).try_into().map_err(|e: toml::de::Error| {
        ConfigError::Invalid(format!(
            "the configuration is incomplete or invalid: {}",
            without_value(e.to_string().trim())
        ))
    })?;
    check(&config)?;
    Ok(config)
}

/// Where and why a text is not TOML, without quoting it: the line may hold a password.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("line {}: {}", before.matches('\n').count() + 1, error.message())
}

/// A value of the wrong type may be a misplaced password or key: the error names its type, not the value.
fn without_value(error: &str) -> String {
    const FOUND: &str = "invalid type: ";
    let parts = error.split_once(FOUND).and_then(|(before, rest)| {
        let (found, expected) = rest.rsplit_once(", expected ")?;
        let kind = found.split_once(' ').map_or(found, |(kind, _)| kind);
        Some(format!("{before}{FOUND}{kind}, expected {expected}"))
    });
    parts.unwrap_or_else(|| error.to_owned())
}

/// `EFGS__SERVER__LISTEN=…` sets `server.listen`; the value is TOML, otherwise plain text.
fn set(table: &mut Table, variable: &str, key: &str, value: &str) -> Result<(), ConfigError> {
    let names: Vec<&str> = key.split("__").collect();
    let (Some((last, sections)), false) = (names.split_last(), names.iter().any(|n| n.is_empty())) else {
        return Err(ConfigError::Invalid(format!("{variable}: write it as EFGS__SECTION__KEY")));
    };
    let mut at = table;
    for (depth, section) in sections.iter().enumerate() {
        // `participants` is followed by a country, which is written in capitals.
        let country = depth == 1 && sections[0].eq_ignore_ascii_case("participants");
        let name = if country { section.to_ascii_uppercase() } else { section.to_ascii_lowercase() };
        at = match at.entry(name).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => inner,
            _ => return Err(ConfigError::Invalid(format!("{variable}: `{section}` is not a section"))),
        };
    }
    let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    at.insert(last.to_ascii_lowercase(), parsed.unwrap_or_else(|| Value::String(value.to_owned())));
    Ok(())
}

fn known<T: DeserializeOwned>() -> &'static [&'static str] {
    serde_aux::serde_introspection::serde_introspect::<T>()
}

fn refuse_unknown_keys(table: &Table) -> Result<(), ConfigError> {
    unknown("", table, known::<Config>())?;
    for (section, value) in table {
        let Value::Table(inner) = value else { continue };
        let keys = match section.as_str() {
            "server" => known::<Server>(),
            "tls" => known::<Tls>(),
            "database" => known::<Database>(),
            "trust" => known::<Trust>(),
            "encryption" => known::<Encryption>(),
            "upload" => known::<Upload>(),
            "limits" => known::<Limits>(),
            "batching" => known::<Batching>(),
            "download" => known::<Download>(),
            "retention" => known::<Retention>(),
            "access_log" => known::<AccessLog>(),
            "callback" => known::<Callback>(),
            "journal" => known::<Journal>(),
            "tracing" => known::<Tracing>(),
            "participants" => {
                for (country, settings) in inner {
                    if let Value::Table(settings) = settings {
                        unknown(&format!("participants.{country}"), settings, known::<Participant>())?;
                    }
                }
                continue;
            }
            _ => continue,
        };
        unknown(section, inner, keys)?;
    }
    let keys = table.get("encryption").and_then(|e| e.get("keys")).and_then(Value::as_array);
    for (i, key) in keys.into_iter().flatten().enumerate() {
        if let Value::Table(key) = key {
            unknown(&format!("encryption.keys[{i}]"), key, known::<EncryptionKey>())?;
        }
    }
    Ok(())
}

fn unknown(section: &str, table: &Table, known: &[&str]) -> Result<(), ConfigError> {
    let full = |key: &str| if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let nearest = known
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)));
            Err(ConfigError::UnknownKey { key: full(key), nearest: nearest.map(|n| full(n)) })
        }
    }
}

/// Checks that the types do not express.
fn check(config: &Config) -> Result<(), ConfigError> {
    let refuse = |text: &str| Err(ConfigError::Invalid(text.to_owned()));
    match (&config.database.url, &config.database.url_file) {
        (None, None) => return refuse("`database.url` is missing: set it or `database.url_file`"),
        (Some(_), Some(_)) => return refuse("set `database.url` or `database.url_file`, not both"),
        _ => {}
    }
    if !config.database.read_urls.is_empty() && config.database.read_urls_file.is_some() {
        return refuse("set `database.read_urls` or `database.read_urls_file`, not both");
    }
    match config.server.auth {
        AuthMode::Mtls if config.tls.is_none() => {
            return refuse(
                "`[tls]` is missing: with `server.auth = \"mtls\"` the gateway needs its own certificate",
            );
        }
        AuthMode::Mtls if !config.server.trusted_proxies.is_empty() => {
            return refuse("`server.trusted_proxies` goes with `server.auth = \"proxy\"` only");
        }
        AuthMode::Proxy if config.server.trusted_proxies.is_empty() => {
            return refuse(
                "`server.trusted_proxies` is empty: with `server.auth = \"proxy\"` name the load balancers' networks, \
                 or nobody can call",
            );
        }
        AuthMode::Mtls | AuthMode::Proxy => {}
    }
    if let Some(journal) = &config.journal {
        match (&journal.folder, &journal.bucket, &journal.endpoint) {
            (Some(_), None, None) | (None, Some(_), Some(_)) => {}
            (Some(_), ..) => {
                return refuse("set `journal.folder`, or `journal.bucket` and `journal.endpoint`, not both");
            }
            (None, None, _) => {
                return refuse("`[journal]` names no storage: set `journal.folder` or `journal.bucket`");
            }
            (None, Some(_), None) => {
                return refuse("`journal.bucket` needs `journal.endpoint`, the URL of the store");
            }
        }
        if journal.access_key_file.is_some() != journal.secret_key_file.is_some() {
            return refuse("`journal.access_key_file` and `journal.secret_key_file` go together");
        }
    }
    if let Some(tracing) = &config.tracing {
        let secure = tracing.endpoint.starts_with("https://");
        if !secure && !tracing.endpoint.starts_with("http://") {
            return refuse(
                "`tracing.endpoint` begins with neither http:// nor https://: write it as \
                 `http://collector:4318/v1/traces`",
            );
        }
        if secure != tracing.ca.is_some() {
            return refuse(
                "`tracing.ca` goes with an `https://` address in `tracing.endpoint`, and only with one",
            );
        }
        if !(0.0..=1.0).contains(&tracing.ratio) {
            return refuse("`tracing.ratio` must be within 0 and 1");
        }
    }
    if config.encryption.keys.is_empty() {
        return refuse(
            "`encryption.keys` is empty: make a key with `openssl rand -base64 32` and name its file",
        );
    }
    let mut ids: Vec<u32> = config.encryption.keys.iter().map(|k| k.id).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return refuse("`encryption.keys` uses an id twice: every key needs an id of its own");
    }
    let positive = [
        ("upload.max_keys", config.upload.max_keys as u128),
        ("upload.max_bytes", u128::from(config.upload.max_bytes.as_u64())),
        ("limits.queue", config.limits.queue as u128),
        ("limits.connections_per_address", config.limits.connections_per_address as u128),
        ("batching.max_keys", config.batching.max_keys as u128),
        ("batching.interval", config.batching.interval.as_millis()),
        ("retention.days", u128::from(config.retention.days)),
        ("retention.interval", config.retention.interval.as_millis()),
        ("access_log.sign_every", config.access_log.sign_every.as_millis()),
        ("access_log.retention", config.access_log.retention.as_millis()),
        ("trust.refresh", config.trust.refresh.as_millis()),
        ("server.request_timeout", config.server.request_timeout.as_millis()),
        ("server.max_connections", config.server.max_connections as u128),
        ("server.workers", config.server.workers.unwrap_or(1) as u128),
        ("database.pool", u128::from(config.database.pool)),
        ("database.timeout", config.database.timeout.as_millis()),
    ];
    let callback = config.callback.iter().flat_map(|callback| {
        [
            ("callback.max_attempts", u128::from(callback.max_attempts)),
            ("callback.timeout", callback.timeout.as_millis()),
            ("callback.retry_initial", callback.retry_initial.as_millis()),
            ("callback.retry_max", callback.retry_max.as_millis()),
        ]
    });
    let journal = config.journal.iter().map(|journal| ("journal.timeout", journal.timeout.as_millis()));
    let bounded = [
        // A batch of one-key uploads must fit the parameters of one statement.
        ("batching.max_keys", config.batching.max_keys as u64, 30_000),
        ("upload.max_keys", config.upload.max_keys as u64, 1_000_000),
        // One key's row must fit its column.
        ("upload.max_bytes", config.upload.max_bytes.as_u64(), 15 << 20),
    ];
    if config.access_log.spool_max < ByteSize::mib(1) {
        return refuse("`access_log.spool_max` is too small: 1MiB at least");
    }
    if let Some((key, value, most)) = bounded.iter().find(|(_, value, most)| value > most) {
        return Err(ConfigError::Invalid(format!("`{key}` = {value} is too large: {most} at most")));
    }
    check_limits(config)?;
    match positive.into_iter().chain(callback).chain(journal).find(|(_, value)| *value == 0) {
        Some((key, _)) => Err(ConfigError::Invalid(format!("`{key}` must be greater than zero"))),
        None => Ok(()),
    }
}

/// `[limits]`, and what a participant's section says instead.
fn check_limits(config: &Config) -> Result<(), ConfigError> {
    let invalid = |text: String| Err(ConfigError::Invalid(text));
    let Limits { memory, handshakes_per_second, burst, .. } = config.limits;
    if memory < config.upload.max_bytes {
        return invalid(format!(
            "`limits.memory` ({memory}) is less than `upload.max_bytes` ({}): the largest upload must fit",
            config.upload.max_bytes
        ));
    }
    let general = ("limits".to_owned(), Participant::default());
    let own = config.participants.iter().map(|(country, own)| (format!("participants.{country}"), *own));
    for (section, own) in std::iter::once(general).chain(own) {
        let all = &config.limits;
        let rates = [
            ("requests_per_second", own.requests_per_second.unwrap_or(all.requests_per_second)),
            ("handshakes_per_second", handshakes_per_second),
        ];
        if let Some((key, rate)) = rates.iter().find(|(_, rate)| !(0.001..=1e6).contains(rate)) {
            return invalid(format!("`{section}.{key}` = {rate} is not within 0.001 to 1000000"));
        }
        let positive = [
            ("burst", own.burst.unwrap_or(burst) as usize),
            ("concurrent_uploads", own.concurrent_uploads.unwrap_or(all.concurrent_uploads)),
            ("concurrent_downloads", own.concurrent_downloads.unwrap_or(all.concurrent_downloads)),
            ("connections", own.connections.unwrap_or(all.connections)),
        ];
        if let Some((key, number)) = positive.iter().find(|(_, number)| !(1..=1_000_000).contains(number)) {
            return invalid(format!("`{section}.{key}` = {number} is not within 1 to 1000000"));
        }
    }
    Ok(())
}

impl Config {
    /// Settings that are valid but probably not intended.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.upload.max_keys > self.batching.max_keys {
            warnings.push(format!(
                "`upload.max_keys` ({}) is larger than `batching.max_keys` ({}): a large upload forms a batch of its own \
                 that is larger than other countries expect",
                self.upload.max_keys, self.batching.max_keys
            ));
        }
        if self.limits.keys_per_day < self.upload.max_keys as u64 {
            warnings.push(format!(
                "`limits.keys_per_day` ({}) is less than `upload.max_keys` ({}): a full upload is never accepted",
                self.limits.keys_per_day, self.upload.max_keys
            ));
        }
        let uploads = self.participants.values().filter_map(|own| own.concurrent_uploads);
        if let Some(uploads) = uploads.chain([self.limits.concurrent_uploads]).max()
            && uploads >= self.limits.queue
        {
            warnings.push(format!(
                "`limits.queue` ({}) is not greater than `concurrent_uploads` ({uploads}): one country can fill it, and \
                 the uploads of all others are refused then",
                self.limits.queue
            ));
        }
        if self.server.auth == AuthMode::Mtls && self.limits.connections >= self.server.max_connections {
            warnings.push(format!(
                "`limits.connections` ({}) is not less than `server.max_connections` ({}): one country can hold \
                 every connection",
                self.limits.connections, self.server.max_connections
            ));
        }
        if !self.server.admin_listen.ip().is_loopback() {
            warnings.push(format!(
                "`server.admin_listen` ({}) is reachable from other machines: it has no authentication",
                self.server.admin_listen
            ));
        }
        if self.database.tls_ca.is_none() && self.database_url().is_ok_and(|url| is_remote(url.reveal())) {
            warnings.push(
                "`database.tls_ca` is not set: passwords and keys are sent to the database unencrypted"
                    .to_owned(),
            );
        }
        if self
            .journal
            .as_ref()
            .and_then(|journal| journal.endpoint.as_deref())
            .is_some_and(|url| url.starts_with("http:"))
        {
            warnings.push(
                "`journal.endpoint` is not https: others on the network can read names and block the connection"
                    .to_owned(),
            );
        }
        if self.access_log.signing_key.is_none() {
            warnings.push(
                "`access_log.signing_key` is not set: anyone who can write to the database can rewrite the access log unnoticed; \
                 make a key with `openssl genpkey -algorithm ed25519 -out access-log.key`"
                    .to_owned(),
            );
        }
        match &self.callback {
            None => warnings.push(
                "`[callback]` is not set: callbacks can be registered, but this instance calls nobody"
                    .to_owned(),
            ),
            Some(callback) if !callback.allowed_networks.is_empty() => warnings.push(
                "`callback.allowed_networks` lets countries make the gateway call internal addresses"
                    .to_owned(),
            ),
            Some(_) => {}
        }
        for (country, participant) in &self.participants {
            if participant.allow_sha1_signatures {
                warnings.push(format!(
                    "`participants.{country}.allow_sha1_signatures` accepts broken signatures"
                ));
            }
        }
        warnings
    }

    /// The URLs of the replicas, from wherever they are kept.
    pub fn read_urls(&self) -> Result<Vec<Secret>, ConfigError> {
        let Some(path) = &self.database.read_urls_file else { return Ok(self.database.read_urls.clone()) };
        let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|e| {
            ConfigError::Invalid(format!("`database.read_urls_file`: cannot read {}: {e}", path.display()))
        })?;
        Ok(lines(&text).collect())
    }

    /// The database URL, from wherever it is kept.
    pub fn database_url(&self) -> Result<Secret, ConfigError> {
        match (&self.database.url, &self.database.url_file) {
            (Some(url), _) => Ok(url.clone()),
            (None, Some(path)) => std::fs::read_to_string(path)
                .map(|text| Secret::new(Zeroizing::new(text).trim()))
                .map_err(|e| {
                    ConfigError::Invalid(format!("`database.url_file`: cannot read {}: {e}", path.display()))
                }),
            (None, None) => Err(ConfigError::Invalid("`database.url` is missing".into())),
        }
    }
}

/// The lines of a text that are not empty.
fn lines(text: &str) -> impl Iterator<Item = Secret> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Secret::new)
}

/// Whether a database URL leads to another machine.
fn is_remote(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://").filter(|(scheme, _)| *scheme != "sqlite") else {
        return false;
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    !["localhost", "127.0.0.1", "[::1]"]
        .iter()
        .any(|local| host == *local || host.starts_with(&format!("{local}:")))
}

fn absolute(config: &mut Config, folder: &Path) {
    let mut paths = vec![&mut config.trust.anchor, &mut config.download.disk_folder];
    if let Some(tls) = &mut config.tls {
        paths.extend([&mut tls.certificate, &mut tls.private_key]);
        paths.extend(tls.client_ca.as_mut());
    }
    paths.extend(config.database.url_file.as_mut());
    paths.extend(config.database.read_urls_file.as_mut());
    paths.extend(config.database.tls_ca.as_mut());
    paths.extend(config.access_log.signing_key.as_mut());
    paths.extend(&mut config.access_log.former_keys);
    paths.extend(Some(&mut config.access_log.spool).filter(|folder| !folder.as_os_str().is_empty()));
    paths.extend(config.trust.deny_file.as_mut());
    if let Some(callback) = &mut config.callback {
        paths.extend([&mut callback.certificate, &mut callback.private_key]);
        paths.extend(callback.ca.as_mut());
    }
    if let Some(journal) = &mut config.journal {
        paths.extend(journal.folder.as_mut());
        paths.extend(journal.access_key_file.as_mut());
        paths.extend(journal.secret_key_file.as_mut());
        paths.extend(journal.ca.as_mut());
    }
    if let Some(tracing) = &mut config.tracing {
        paths.extend(tracing.headers_file.as_mut());
        paths.extend(tracing.ca.as_mut());
    }
    paths.extend(config.encryption.keys.iter_mut().map(|k| &mut k.file));
    for path in paths {
        *path = folder.join(&*path);
    }
    if let Some(url) = &config.database.url
        && let Some(file) = url.reveal().strip_prefix("sqlite:")
    {
        let file = file.strip_prefix("//").unwrap_or(file);
        config.database.url = Some(Secret::new(format!("sqlite:{}", folder.join(file).display())));
    }
}
