//! Settings of callbacks.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;
use serde::Deserialize;

/// `[callback]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callback {
    /// PEM: the certificate that the gateway shows to national backends.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub private_key: PathBuf,
    /// A subscription is paused after this many consecutive failures.
    #[serde(default = "Callback::default_max_attempts")]
    pub max_attempts: u32,
    /// Networks that are allowed although the address rules reject them.
    #[serde(default)]
    pub allowed_networks: Vec<IpNet>,
    /// PEM: servers' certificates must also chain to one of these.
    pub ca: Option<PathBuf>,
    /// A forward proxy (CONNECT), `http://host:port`.
    pub proxy: Option<String>,
    /// The longest time for one call: resolving the name, connecting and the answer.
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
