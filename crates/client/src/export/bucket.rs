//! Archives and index in a bucket of an S3-compatible store, from which a CDN serves phones.
//!
//! The folder is the original and the bucket its mirror: a run puts what the bucket lacks, then the indexes, the
//! one with everything last, then deletes what has left the index. What a run did not bring to its end, the next
//! one does: it looks at what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::NaiveDate;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{
    Client, Method, Response, Url,
    header::{CACHE_CONTROL, CONTENT_TYPE},
    redirect::Policy,
};
use rusty_s3::{
    Credentials, S3Action, UrlStyle,
    actions::{ListObjectsV2, ListObjectsV2Response},
};
use serde::{Deserialize, Serialize};

use super::{Exporter, Period};
use crate::{connection, profile::DEFAULT_TIMEOUT};

#[cfg(test)]
mod tests;

/// How long a signed request may take to arrive.
const SIGNED_FOR: Duration = Duration::from_secs(300);
/// How many objects are on their way at once.
const AT_ONCE: usize = 4;
/// The longest page of a list that is read: 1000 names of 1024 characters are a few MiB.
const MAX_PAGE: usize = 16 << 20;
/// The most pages of a list: ten million objects.
const MAX_PAGES: usize = 10_000;
/// The longest refusal that is read.
const MAX_REFUSAL: usize = 64 << 10;

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

    fn answer(what: &str, error: crate::Error) -> Self {
        let temporary = error.is_temporary();
        let reason = match error {
            crate::Error::NoAnswer { reason, .. } => format!("{what}: no answer from the store: {reason}"),
            other => format!("{what}: {other}"),
        };
        Self { reason, temporary }
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
pub struct Bucket {
    bucket: rusty_s3::Bucket,
    credentials: Credentials,
    prefix: String,
    http: Client,
}

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
        let url: Url =
            settings.endpoint.parse().map_err(|e| refuse(format!("`endpoint` is not a URL: {e}")))?;
        let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if url.scheme() != "https" && !local {
            return Err(refuse("`endpoint` does not begin with https://".into()));
        }
        let style = if settings.path_style.unwrap_or(true) { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let region = settings.region.clone().unwrap_or_else(|| "us-east-1".to_owned());
        let bucket = rusty_s3::Bucket::new(url, style, settings.name.clone(), region)
            .map_err(|e| refuse(format!("`endpoint`: {e}")))?;
        let tls = connection::public_tls(ca_pem).map_err(|e| refuse(format!("`ca`: {e}")))?;
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(Policy::none())
            .timeout(settings.timeout.unwrap_or(DEFAULT_TIMEOUT))
            .user_agent(concat!("efgs-client/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            bucket,
            credentials: Credentials::new(access, secret),
            prefix: settings.prefix.clone(),
            http: http.map_err(|e| refuse(e.to_string()))?,
        })
    }

    async fn put(&self, path: &str, body: Vec<u8>, period: Period) -> Result<(), BucketError> {
        let (content, cache) = match path.rsplit_once('.') {
            // An archive never changes, and its path never means another one.
            Some((_, "zip")) => ("application/zip", "public, max-age=1209600, immutable"),
            Some((_, "txt")) => ("text/plain; charset=utf-8", cache_of_index(period)),
            _ => ("application/json", cache_of_index(period)),
        };
        let key = format!("{}{path}", self.prefix);
        let mut action = self.bucket.put_object(Some(&self.credentials), &key);
        // Signed, so that nobody on the way can have the archives served as something else.
        action.headers_mut().insert("content-type", content);
        action.headers_mut().insert("cache-control", cache);
        let request = self.http.request(Method::PUT, action.sign(SIGNED_FOR));
        let request = request.header(CONTENT_TYPE, content).header(CACHE_CONTROL, cache).body(body);
        answer(&format!("putting {key}"), request.send().await).await.map(drop)
    }

    async fn delete(&self, path: &str) -> Result<(), BucketError> {
        let key = format!("{}{path}", self.prefix);
        let url = self.bucket.delete_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
        answer(&format!("deleting {key}"), self.http.delete(url).send().await).await.map(drop)
    }

    /// What lies under the prefix: paths and lengths.
    async fn list(&self) -> Result<BTreeMap<String, u64>, BucketError> {
        let what = format!("listing the bucket {}", self.bucket.name());
        let mut all = BTreeMap::new();
        let mut token: Option<String> = None;
        let mut tokens = BTreeSet::new();
        loop {
            let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
            action.with_prefix(&*self.prefix);
            if let Some(token) = token {
                action.with_continuation_token(token);
            }
            let page = answer(&what, self.http.get(action.sign(SIGNED_FOR)).send().await).await?;
            let page = connection::read_up_to(page, MAX_PAGE).await;
            let page = page.map_err(|error| BucketError::answer(&what, error))?;
            let page: ListObjectsV2Response = ListObjectsV2::parse_response(&String::from_utf8_lossy(&page))
                .map_err(|error| BucketError::permanent(format!("{what}: {error}; {CHECK}")))?;
            all.extend(page.contents.into_iter().filter_map(|object| {
                Some((object.key.strip_prefix(&self.prefix)?.to_owned(), object.size.unwrap_or_default()))
            }));
            let Some(next) = page.next_continuation_token else { return Ok(all) };
            if tokens.len() == MAX_PAGES || !tokens.insert(next.clone()) {
                let reason =
                    format!("{what}: the list does not end; {CHECK}, or give the archives a `prefix`");
                return Err(BucketError::permanent(reason));
            }
            token = Some(next);
        }
    }
}

/// What to do when the store seems to be another one.
const CHECK: &str = "check `endpoint`, `name`, `region` and `path_style` in [export.bucket]";

/// A tenth of the time until the next archive: phones may use a slightly old index, but not indefinitely.
fn cache_of_index(period: Period) -> &'static str {
    match period {
        Period::Hourly => "public, max-age=300",
        Period::Daily => "public, max-age=3600",
    }
}

/// Waits for a good answer.
async fn answer(what: &str, sent: reqwest::Result<Response>) -> Result<Response, BucketError> {
    // The cause alone: the rest of the text has the signed URL.
    let response = sent.map_err(|error| BucketError::answer(what, error.into()))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = connection::read_up_to(response, MAX_REFUSAL).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let code: String = code.map_or("", |(code, _)| code).chars().take(64).collect();
    let said = format!("{what}: the store answered {status} {code}");
    let said = said.trim_end();
    Err(match status.as_u16() {
        408 | 429 | 500.. => BucketError { reason: said.to_owned(), temporary: true },
        401 | 403 => BucketError::permanent(format!(
            "{said}; check the credentials, whether they may list, put and delete under the prefix, and this \
             machine's clock"
        )),
        _ => BucketError::permanent(format!("{said}; {CHECK}")),
    })
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
