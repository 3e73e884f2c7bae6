//! Settings of the journal.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

/// `[journal]`: a folder, or a bucket of an S3-compatible store.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// The folder. It belongs on another disk than the database.
    pub folder: Option<PathBuf>,
    /// The bucket's name.
    pub bucket: Option<String>,
    /// URL of the store.
    pub endpoint: Option<String>,
    /// The store's region.
    pub region: String,
    /// Prefix of all object names.
    pub prefix: String,
    /// `endpoint/bucket/name` instead of `bucket.endpoint/name`.
    pub path_style: bool,
    /// A file with the access key's id; without it AWS_ACCESS_KEY_ID in the environment.
    pub access_key_file: Option<PathBuf>,
    /// A file with the secret key; without it AWS_SECRET_ACCESS_KEY in the environment.
    pub secret_key_file: Option<PathBuf>,
    /// PEM: the store's certificate must chain to one of these; without it to one that the system knows.
    pub ca: Option<PathBuf>,
    /// The longest time for one write to the folder or one request to the store. After that uploads are answered 503.
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
