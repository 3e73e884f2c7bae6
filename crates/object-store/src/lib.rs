//! A small client of S3-compatible object stores: put, get, delete and list below a prefix.
//!
//! Every answer is bounded: one request takes at most [`Settings::timeout`], and no body is read beyond its limit.
//! The client follows no redirects, uses no proxies and does not retry: the caller decides about retries. Errors contain
//! neither credentials nor signed URLs.

use std::{collections::BTreeSet, fmt, time::Duration};

use reqwest::{Client, RequestBuilder, Response, redirect::Policy};
use rusty_s3::{
    Bucket, S3Action, UrlStyle,
    actions::{ListObjectsV2, ListObjectsV2Response},
};

mod error;
mod tls;

#[cfg(test)]
mod tests;

pub use error::{Error, SettingsError};
pub use reqwest::Url;
pub use rusty_s3::Credentials;

/// How long a signed request may take to arrive.
const SIGNED_FOR: Duration = Duration::from_secs(300);
/// The longest page of a list that is read: 1000 names of 1024 characters are a few MiB.
const MAX_PAGE: u64 = 16 << 20;
/// The most pages of a list: ten million objects.
const MAX_PAGES: usize = 10_000;
/// The longest body of an error answer that is read.
const MAX_REFUSAL: u64 = 64 << 10;

/// Which bucket to use, and as whom.
pub struct Settings {
    /// The store's URL, `https` or `http`.
    pub endpoint: Url,
    /// The bucket's name.
    pub name: String,
    /// The region that signatures name.
    pub region: String,
    /// What the names of all objects begin with.
    pub prefix: String,
    /// Whether the bucket's name is a part of the path instead of the host name.
    pub path_style: bool,
    /// The certificate authorities that may have issued the store's certificate, as PEM. `None`: those that the system
    /// trusts.
    pub ca_pem: Option<String>,
    /// The access key and its secret.
    pub credentials: Credentials,
    /// How long one request may take, from connecting to the last byte of the answer.
    pub timeout: Duration,
    /// The user agent.
    pub user_agent: &'static str,
}

/// An object of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name, without the prefix.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// A bucket of an S3-compatible store. The names of objects in its methods do not have the prefix.
pub struct ObjectStore {
    bucket: Bucket,
    credentials: Credentials,
    prefix: String,
    http: Client,
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStore").field("bucket", &self.bucket.name()).finish_non_exhaustive()
    }
}

impl ObjectStore {
    /// Prepares the requests; nothing is connected yet.
    ///
    /// # Errors
    /// Names the setting that cannot be used.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let style = if settings.path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let bucket = Bucket::new(settings.endpoint, style, settings.name, settings.region)
            .map_err(|e| SettingsError::Endpoint(e.to_string()))?;
        let http = Client::builder()
            .tls_backend_preconfigured(tls::config(settings.ca_pem.as_deref())?)
            .no_proxy()
            .redirect(Policy::none())
            .timeout(settings.timeout)
            .user_agent(settings.user_agent)
            .build()
            .map_err(|e| SettingsError::Client(e.to_string()))?;
        Ok(Self { bucket, credentials: settings.credentials, prefix: settings.prefix, http })
    }

    /// The bucket's name.
    pub fn name(&self) -> &str {
        self.bucket.name()
    }

    /// An object's name with the prefix, as the store knows it.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Stores an object; returns when the store has it. The headers are those with which the store serves it. They are
    /// signed, so that nobody on the way can change them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put(
        &self,
        name: &str,
        body: Vec<u8>,
        headers: &[(&'static str, &str)],
    ) -> Result<(), Error> {
        let key = self.key(name);
        let mut action = self.bucket.put_object(Some(&self.credentials), &key);
        for &(header, value) in headers {
            action.headers_mut().insert(header, value);
        }
        let mut request = self.http.put(action.sign(SIGNED_FOR));
        for &(header, value) in headers {
            request = request.header(header, value);
        }
        answer(request.body(body)).await.map(drop)
    }

    /// Reads an object of at most `limit` bytes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, name: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let url = self.bucket.get_object(Some(&self.credentials), &self.key(name)).sign(SIGNED_FOR);
        read(answer(self.http.get(url)).await?, limit).await
    }

    /// Deletes an object. That there is none is no error.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let url = self.bucket.delete_object(Some(&self.credentials), &self.key(name)).sign(SIGNED_FOR);
        answer(self.http.delete(url)).await.map(drop)
    }

    /// All objects whose names begin with `start`. `step` is called after each page of the list.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&self, start: &str, mut step: impl FnMut()) -> Result<Vec<Object>, Error> {
        let mut all = Vec::new();
        self.pages(self.key(start), None, |page| {
            for object in page.contents {
                let Some(name) = object.key.strip_prefix(&self.prefix) else { continue };
                let bytes =
                    object.size.ok_or_else(|| Error::NotAList(format!("{} has no size", object.key)))?;
                all.push(Object { name: name.to_owned(), bytes });
            }
            step();
            Ok(())
        })
        .await?;
        Ok(all)
    }

    /// The first part, as far as a slash, of all names that have one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn folders(&self) -> Result<Vec<String>, Error> {
        let mut all = Vec::new();
        self.pages(self.prefix.clone(), Some("/"), |page| {
            all.extend(page.common_prefixes.into_iter().filter_map(|below| {
                Some(below.prefix.strip_prefix(&self.prefix)?.strip_suffix('/')?.to_owned())
            }));
            Ok(())
        })
        .await?;
        Ok(all)
    }

    async fn pages(
        &self,
        prefix: String,
        delimiter: Option<&str>,
        mut take: impl FnMut(ListObjectsV2Response) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
        action.with_prefix(prefix);
        if let Some(delimiter) = delimiter {
            action.with_delimiter(delimiter);
        }
        let mut tokens = BTreeSet::new();
        loop {
            let page = read(answer(self.http.get(action.sign(SIGNED_FOR))).await?, MAX_PAGE).await?;
            let page = ListObjectsV2::parse_response(&String::from_utf8_lossy(&page))
                .map_err(|e| Error::NotAList(e.to_string()))?;
            let next = page.next_continuation_token.clone();
            take(page)?;
            let Some(next) = next else { return Ok(()) };
            action.with_continuation_token(next.clone());
            if tokens.len() == MAX_PAGES || !tokens.insert(next) {
                return Err(Error::Endless);
            }
        }
    }
}

/// Sends a request and waits for the head of a successful answer.
async fn answer(request: RequestBuilder) -> Result<Response, Error> {
    let response = request.send().await?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    // Whether the reason arrives or not, the store has refused.
    let text = read(response, MAX_REFUSAL).await.unwrap_or_default();
    Err(Error::Refused { status, code: code(&String::from_utf8_lossy(&text)) })
}

/// The store's own name for an error, from its XML; empty when there is none.
fn code(text: &str) -> String {
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or("", |(code, _)| code).chars().take(64).collect()
}

/// Reads a body of at most `limit` bytes.
async fn read(mut response: Response, limit: u64) -> Result<Vec<u8>, Error> {
    let too_long = |length: u64| if length > limit { Err(Error::TooLong { limit }) } else { Ok(()) };
    too_long(response.content_length().unwrap_or_default())?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        too_long(body.len() as u64 + chunk.len() as u64)?;
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
