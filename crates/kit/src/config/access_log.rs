//! Settings of the access log.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

/// `[access_log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLog {
    /// PEM: the private key (Ed25519 or EC) that signs statements about the log.
    pub signing_key: Option<PathBuf>,
    /// PEM: public keys that signed statements before.
    pub former_keys: Vec<PathBuf>,
    /// The number of the first signed statement, if the log began without a key.
    pub signed_from: i64,
    /// How often a statement is signed.
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
            former_keys: Vec::new(),
            signed_from: 1,
            sign_every: Duration::from_secs(60),
            retention: Duration::from_secs(90 * 24 * 3600),
        }
    }
}
