//! A bucket of an S3-compatible store. Requests are signed by `rusty-s3`; the endpoint is the operator's choice, so
//! it is not a matter of the guard, which protects from addresses that others choose.

use std::{fmt, sync::Arc, time::Duration};

use reqwest::{Client, Response, redirect::Policy};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use rusty_s3::{
    Credentials, S3Action, UrlStyle,
    actions::{ListObjectsV2, ListObjectsV2Response},
};
use zeroize::Zeroizing;

use super::{JournalError, medium::Listed};
use crate::config::{self, ConfigError};

/// How long a signed request may take to arrive.
const SIGNED_FOR: Duration = Duration::from_secs(300);

pub(super) struct Bucket {
    bucket: rusty_s3::Bucket,
    credentials: Credentials,
    prefix: String,
    http: Client,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("name", &self.bucket.name()).finish_non_exhaustive()
    }
}

impl Bucket {
    pub(super) fn open(config: &config::Journal) -> Result<Self, ConfigError> {
        let invalid = |key: &str, reason: String| ConfigError::Invalid(format!("`journal.{key}`: {reason}"));
        let endpoint = config.endpoint.as_deref().unwrap_or_default();
        let url =
            endpoint.parse().map_err(|e| invalid("endpoint", format!("{endpoint:?} is not a URL: {e}")))?;
        let style = if config.path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let name = config.bucket.clone().unwrap_or_default();
        let bucket = rusty_s3::Bucket::new(url, style, name, config.region.clone())
            .map_err(|e| invalid("endpoint", e.to_string()))?;
        let mut http = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .timeout(config.timeout)
            .user_agent(concat!("efgs-gateway/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &config.ca {
            let roots = roots(path).map_err(|e| invalid("ca", format!("{}: {e}", path.display())))?;
            let tls =
                ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                    .with_safe_default_protocol_versions()
                    .map_err(|e| invalid("ca", e.to_string()))?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
            http = http.tls_backend_preconfigured(tls);
        }
        Ok(Self {
            bucket,
            credentials: credentials(config)?,
            prefix: config.prefix.clone(),
            http: http.build().map_err(|e| invalid("endpoint", e.to_string()))?,
        })
    }

    /// Returns when the store has the object.
    pub(super) async fn put(&self, name: &str, body: Vec<u8>) -> Result<(), JournalError> {
        let key = self.key(name);
        let url = self.bucket.put_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
        let sent = self.http.put(url).body(body).send().await;
        answer(sent).await.map_err(|e| JournalError::Write(format!("{key}: {e}"))).map(drop)
    }

    pub(super) async fn get(&self, name: &str) -> Result<Vec<u8>, JournalError> {
        let key = self.key(name);
        let read = async {
            let url = self.bucket.get_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
            let response = answer(self.http.get(url).send().await).await?;
            response.bytes().await.map_err(|e| describe(&e))
        };
        read.await.map(Vec::from).map_err(|e| JournalError::Read(format!("{key}: {e}")))
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), JournalError> {
        let key = self.key(name);
        let url = self.bucket.delete_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
        let sent = self.http.delete(url).send().await;
        answer(sent).await.map_err(|e| JournalError::Write(format!("{key}: {e}"))).map(drop)
    }

    /// The names of the days of which there are objects.
    pub(super) async fn days(&self) -> Result<Vec<String>, JournalError> {
        let mut days = Vec::new();
        let whole = |page: ListObjectsV2Response| {
            let names = page.common_prefixes.into_iter().filter_map(|below| {
                Some(below.prefix.strip_prefix(&self.prefix)?.strip_suffix('/')?.to_owned())
            });
            days.extend(names);
        };
        self.pages(self.prefix.clone(), Some("/"), whole).await?;
        Ok(days)
    }

    /// The objects of one day, or all; `step` is called after each page.
    pub(super) async fn list(
        &self,
        day: Option<&str>,
        mut step: impl FnMut(),
    ) -> Result<Vec<Listed>, JournalError> {
        let mut all = Vec::new();
        let whole = |page: ListObjectsV2Response| {
            let listed = page.contents.into_iter().filter_map(|object| {
                let name = object.key.strip_prefix(&self.prefix)?.to_owned();
                Some(Listed { name, bytes: object.size.unwrap_or_default() })
            });
            all.extend(listed);
            step();
        };
        let below = day.map_or(String::new(), |day| format!("{day}/"));
        self.pages(self.key(&below), None, whole).await?;
        Ok(all)
    }

    async fn pages(
        &self,
        prefix: String,
        delimiter: Option<&str>,
        mut take: impl FnMut(ListObjectsV2Response),
    ) -> Result<(), JournalError> {
        let fail = |e: String| JournalError::Read(format!("the bucket {}: {e}", self.bucket.name()));
        let mut token: Option<String> = None;
        loop {
            let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
            action.with_prefix(prefix.clone());
            if let Some(delimiter) = delimiter {
                action.with_delimiter(delimiter);
            }
            if let Some(token) = token.clone() {
                action.with_continuation_token(token);
            }
            let page = self.page(&action).await.map_err(fail)?;
            if token.is_some() && page.next_continuation_token == token {
                return Err(fail("the store repeats its continuation token".into()));
            }
            token = page.next_continuation_token.clone();
            take(page);
            if token.is_none() {
                return Ok(());
            }
        }
    }

    async fn page(&self, action: &ListObjectsV2<'_>) -> Result<ListObjectsV2Response, String> {
        let url = action.sign(SIGNED_FOR);
        let text = answer(self.http.get(url).send().await).await?.text().await.map_err(|e| describe(&e))?;
        ListObjectsV2::parse_response(&text).map_err(|e| e.to_string())
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// Waits for a good answer. Reasons never hold the URL, which is signed.
async fn answer(sent: reqwest::Result<Response>) -> Result<Response, String> {
    let response = sent.map_err(|e| describe(&e))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = response.text().await.unwrap_or_default();
    let code =
        text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    Err(format!("the store answered {status} {}", code.unwrap_or_default()).trim_end().to_owned())
}

fn describe(error: &reqwest::Error) -> String {
    let mut text = match error {
        _ if error.is_timeout() => "no answer in time".to_owned(),
        _ if error.is_connect() => "no connection".to_owned(),
        _ => "the connection broke".to_owned(),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// From files, or from the environment.
fn credentials(config: &config::Journal) -> Result<Credentials, ConfigError> {
    let read = |key: &str, path: &std::path::Path| {
        std::fs::read_to_string(path).map(Zeroizing::new).map_err(|e| {
            ConfigError::Invalid(format!("`journal.{key}`: cannot read {}: {e}", path.display()))
        })
    };
    match (&config.access_key_file, &config.secret_key_file) {
        (Some(access), Some(secret)) => {
            let (access, secret) = (read("access_key_file", access)?, read("secret_key_file", secret)?);
            Ok(Credentials::new(access.trim(), secret.trim()))
        }
        _ => Credentials::from_env().ok_or_else(|| {
            ConfigError::Invalid(
                "`[journal]` with a bucket needs credentials: set `journal.access_key_file` and \
                 `journal.secret_key_file`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
                    .into(),
            )
        }),
    }
}

fn roots(path: &std::path::Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| e.to_string())? {
        roots.add(certificate.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    if roots.is_empty() { Err("there is no certificate in it".into()) } else { Ok(roots) }
}
