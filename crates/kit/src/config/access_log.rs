//! Settings of the access log.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, de::Error as _};

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
    /// The folder of records on their way to the database; empty: none, and every answer waits for the database.
    pub spool: PathBuf,
    /// Bytes that the folder may have; requests are answered 503 when it is full.
    pub spool_max: ByteSize,
    /// When a record in the folder must be on the disk.
    pub sync: LogSync,
}

/// When a record must be on the disk. Records of requests that change something always are before the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSync {
    /// Before the answer.
    Always,
    /// At most this long after the answer; greater than zero.
    Within(Duration),
}

impl<'de> Deserialize<'de> for LogSync {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "always" {
            return Ok(Self::Always);
        }
        let value = serde::de::value::StrDeserializer::<D::Error>::new(&text);
        match humantime_serde::deserialize::<Duration, _>(value) {
            Ok(Duration::ZERO) => {
                Err(D::Error::custom("`access_log.sync` must be greater than zero, or \"always\""))
            }
            Ok(duration) => Ok(Self::Within(duration)),
            Err(_) => Err(D::Error::custom(
                "`access_log.sync` is neither a duration such as \"50ms\" nor \"always\"",
            )),
        }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            signing_key: None,
            former_keys: Vec::new(),
            signed_from: 1,
            sign_every: Duration::from_secs(60),
            retention: Duration::from_secs(90 * 24 * 3600),
            spool: PathBuf::from("spool"),
            spool_max: ByteSize::gib(4),
            sync: LogSync::Within(Duration::from_millis(50)),
        }
    }
}

impl AccessLog {
    /// The folder of records on their way to the database, if there is one.
    pub fn spool(&self) -> Option<&Path> {
        Some(&*self.spool).filter(|folder| !folder.as_os_str().is_empty())
    }
}
