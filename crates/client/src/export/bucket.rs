//! Archives and index in a bucket of an S3-compatible store, from which a CDN serves phones.
//!
//! The folder is the original and the bucket its mirror: a run puts what the bucket lacks, then the indexes, the
//! one with everything last, then deletes what has left the index. What a run did not bring to its end, the next
//! one does: it looks at what is there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::NaiveDate;
use efgs_object_store::{self as object_store, Credentials, ObjectStore, SettingsError, Url};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::{Exporter, Period};
use crate::profile::DEFAULT_TIMEOUT;

#[cfg(test)]
mod tests;

/// How many objects are on their way at once.
const AT_ONCE: usize = 4;
/// What to do when the store seems to be another one.
const CHECK: &str = "check `endpoint`, `name`, `region` and `path_style` in [export.bucket]";

/// Where a bucket is, and where the secrets to write to it are: the section `[export.bucket]` of a profile.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketSettings {
    /// The store, such as `https://s3.example`. Plain `http` only on this machine.
    pub endpoint: String,
    /// The bucket's name.
    pub name: String,
    /// The store's region, as it wants it in signatures; `us-east-1` unless it is given.
    pub region: Option<String>,
    /// What the names of all objects begin with; empty, or ending with a slash as a rule.
    #[serde(default)]
    pub prefix: String,
    /// Whether the bucket's name is a part of the path instead of the host name, as it is unless this is given.
    pub path_style: Option<bool>,
    /// The file of the certificate authorities that may have issued the store's certificate; without it, those
    /// that the system trusts.
    pub ca: Option<PathBuf>,
    /// The file of the access key; without it, the environment has it.
    pub access_key_file: Option<PathBuf>,
    /// The file of its secret.
    pub secret_key_file: Option<PathBuf>,
    /// How long one request may take; a minute unless it is given.
    #[serde(default, with = "humantime_serde")]
    pub timeout: Option<Duration>,
}

/// Why a bucket cannot be used, and what to do about it. Holds neither a credential nor a signed URL.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct BucketError {
    reason: String,
    temporary: bool,
}

impl BucketError {
    /// Whether the same operation may succeed later without a fix: the store did not answer, or is
    /// overloaded (408, 429, 5xx).
    pub fn is_temporary(&self) -> bool {
        self.temporary
    }

    /// A permanent error, until somebody fixes it.
    fn permanent(reason: String) -> Self {
        Self { reason, temporary: false }
    }

    /// Says what to do.
    fn store(what: &str, error: object_store::Error) -> Self {
        let temporary = error.is_temporary();
        let reason = match &error {
            object_store::Error::NoAnswer(reason) => format!("no answer from the store: {reason}"),
            _ if temporary => error.to_string(),
            object_store::Error::Refused { status, .. } if matches!(status.as_u16(), 401 | 403) => format!(
                "{error}; check the credentials, whether they may list, put and delete under the prefix, and this \
                 machine's clock"
            ),
            object_store::Error::Tls(_) => format!("{error}; check `endpoint` and `ca` in [export.bucket]"),
            object_store::Error::Endless => format!("{error}; {CHECK}, or give the archives a `prefix`"),
            object_store::Error::Refused { .. }
            | object_store::Error::TooLong { .. }
            | object_store::Error::NotAList(_) => format!("{error}; {CHECK}"),
        };
        Self { reason: format!("{what}: {reason}"), temporary }
    }
}

/// What a mirroring did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mirrored {
    /// How many archives were put.
    pub put: usize,
    /// How many were deleted, because they have left the index.
    pub deleted: usize,
}

/// A bucket of an S3-compatible store.
#[derive(Debug)]
pub struct Bucket(ObjectStore);

impl Bucket {
    /// Prepares the requests; nothing is connected yet. The secrets were read by the caller: the authorities as
    /// PEM, the access key and its secret.
    ///
    /// # Errors
    /// Names the setting that cannot be used.
    pub fn new(
        settings: &BucketSettings,
        ca_pem: Option<&str>,
        (access, secret): (String, String),
    ) -> Result<Self, BucketError> {
        let refuse = |reason: String| BucketError::permanent(format!("the bucket cannot be used: {reason}"));
        let endpoint: Url =
            settings.endpoint.parse().map_err(|e| refuse(format!("`endpoint` is not a URL: {e}")))?;
        let local = matches!(endpoint.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if endpoint.scheme() != "https" && !local {
            return Err(refuse("`endpoint` does not begin with https://".into()));
        }
        let store = ObjectStore::new(object_store::Settings {
            endpoint,
            name: settings.name.clone(),
            region: settings.region.clone().unwrap_or_else(|| "us-east-1".to_owned()),
            prefix: settings.prefix.clone(),
            path_style: settings.path_style.unwrap_or(true),
            ca_pem: ca_pem.map(str::to_owned),
            credentials: Credentials::new(access, secret),
            timeout: settings.timeout.unwrap_or(DEFAULT_TIMEOUT),
            user_agent: concat!("efgs-client/", env!("CARGO_PKG_VERSION")),
        });
        store.map(Self).map_err(|error: SettingsError| refuse(error.to_string()))
    }

    async fn put(&self, path: &str, body: Vec<u8>, period: Period) -> Result<(), BucketError> {
        let (content, cache) = match path.rsplit_once('.') {
            // An archive never changes, and its path never means another one.
            Some((_, "zip")) => ("application/zip", "public, max-age=1209600, immutable"),
            Some((_, "txt")) => ("text/plain; charset=utf-8", cache_of_index(period)),
            _ => ("application/json", cache_of_index(period)),
        };
        let headers = [("content-type", content), ("cache-control", cache)];
        let put = self.0.put(path, body, &headers).await;
        put.map_err(|error| BucketError::store(&format!("putting {}", self.0.key(path)), error))
    }

    async fn delete(&self, path: &str) -> Result<(), BucketError> {
        let deleted = self.0.delete(path).await;
        deleted.map_err(|error| BucketError::store(&format!("deleting {}", self.0.key(path)), error))
    }

    /// What lies under the prefix: paths and lengths.
    async fn list(&self) -> Result<BTreeMap<String, u64>, BucketError> {
        let listed = self.0.list("", || {}).await;
        let listed = listed
            .map_err(|error| BucketError::store(&format!("listing the bucket {}", self.0.name()), error))?;
        Ok(listed.into_iter().map(|object| (object.name, object.bytes)).collect())
    }
}

/// A tenth of the time until the next archive: phones may use a slightly old index, but not indefinitely.
fn cache_of_index(period: Period) -> &'static str {
    match period {
        Period::Hourly => "public, max-age=300",
        Period::Daily => "public, max-age=3600",
    }
}

impl Exporter {
    /// Makes a bucket like the folder: every archive and every index that is not there yet, the indexes last.
    ///
    /// # Errors
    /// See [`BucketError`]. The index in the bucket is then the old one or the new one, and all archives that
    /// it names are there.
    pub async fn mirror(&self, bucket: &Bucket) -> Result<Mirrored, BucketError> {
        let there = bucket.list().await?;
        let files = &self.manifest.files;
        let missing: Vec<_> = files
            .iter()
            .map(|file| &file.index)
            .filter(|file| there.get(&file.path).is_none_or(|size| *size != file.size as u64))
            .collect();
        let put = missing.len();
        let period = self.settings.period;
        let puts = missing.into_iter().map(|file| async move {
            bucket.put(&file.path, read(&self.folder.join(&file.path))?, period).await
        });
        stream::iter(puts).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        for (path, content) in self.manifest.indexes() {
            bucket.put(&path, content, period).await?;
        }
        let published: BTreeMap<_, _> = files.iter().map(|file| (file.index.path.as_str(), ())).collect();
        let old: Vec<_> = there
            .keys()
            .filter(|path| !published.contains_key(path.as_str()) && self.is_archive(path))
            .collect();
        for path in &old {
            bucket.delete(path).await?;
        }
        Ok(Mirrored { put, deleted: old.len() })
    }

    /// Whether a path looks like one of ours: others that lie in the bucket are nobody's business.
    fn is_archive(&self, path: &str) -> bool {
        let mut parts = path.split('/');
        let region = parts.next().is_some_and(|part| self.manifest.regions.names().any(|name| name == part));
        let day = parts.next().is_some_and(|part| part.parse::<NaiveDate>().is_ok());
        region && day && path.ends_with(".zip")
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BucketError> {
    fs::read(path).map_err(|error| {
        let path = path.display();
        BucketError::permanent(format!(
            "cannot read {path}: {error}; `efgs export` must be able to read the whole folder"
        ))
    })
}
