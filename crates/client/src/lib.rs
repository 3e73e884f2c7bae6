//! The national backend's side of the Federation Gateway (spec §5).
//!
//! [`Gateway`] makes the calls of the API, typed on both sides: keys go in and come out as [`KeyBatch`], what
//! the gateway refuses is an [`Error`] with its status, code and reason. It calls with the country's client
//! certificate, trusts only the configured certificate authority, and follows neither redirects nor a
//! proxy from the environment.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use efgs_client::{Format, Profile};
//!
//! let gateway = Profile::load("efgs-client.toml".as_ref())?.gateway()?;
//! let mut batch = gateway.download("2026-11-22".parse()?, None, Format::Protobuf).await?;
//! while let Some(download) = batch {
//!     println!("{}: {} keys, not verified yet", download.batch_tag, download.keys.len());
//!     let Some(next) = download.next_batch_tag else { break };
//!     batch = gateway.download("2026-11-22".parse()?, Some(&next), Format::Protobuf).await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! On these calls stands what a national backend does with them, each safe to kill and to repeat. The command
//! `efgs` is a thin shell on it.
//!
//! - [`profile`]: who calls which gateway, from one TOML file; [`doctor`]: whether that works.
//! - [`source`] and [`upload`]: any number of keys from files, each to the gateway once.
//! - [`download`] and [`audit`]: every batch once, and none that does not verify.
//! - [`callback`]: being called when there is a new batch.
//! - [`gaen`] and [`export`]: files for the phones.
//!
//! Every future can be dropped at any moment: nothing that was begun is left half done.

pub mod audit;
pub mod callback;
#[cfg(feature = "cli")]
pub mod cli;
mod connection;
pub mod doctor;
pub mod download;
mod error;
pub mod export;
mod fetch;
pub mod gaen;
mod probe;
pub mod profile;
mod retry;
pub mod source;
pub mod state;
#[cfg(test)]
mod tests;
pub mod upload;

use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use efgs_protocol::{
    audit::AuditEntry,
    batch_tag::UploadTag,
    canonical::CanonicalKeys,
    key::KeyBatch,
    media::{MediaType, SUPPORTED},
    signature::BatchSigner,
    wire,
};
use reqwest::{
    RequestBuilder, Response, Url,
    header::{CONTENT_TYPE, DATE, HeaderMap},
};
use serde::{Deserialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use fetch::{Answer, Body, Head};

pub use efgs_protocol::media::Format;
pub use error::{Error, Refusal, RetryAfter, SettingsError};
pub use probe::Probe;
pub use profile::Profile;
pub use retry::Retry;

/// What it takes to call a gateway as a country.
pub struct Settings {
    /// Where the gateway is, such as `https://efgs.example:8443`. `https` only.
    pub url: String,
    /// The certificate authorities that may have issued the gateway's certificate, as PEM; no others count.
    pub server_ca_pem: String,
    /// The country's AUTHENTICATION certificate, then its chain if it has one, as PEM.
    pub certificate_pem: String,
    /// Its private key as PEM, not encrypted.
    pub private_key_pem: Zeroizing<String>,
    /// How long one call may take, from connecting to the last byte of the answer.
    pub timeout: Duration,
}

/// A gateway, called as one country. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Gateway {
    http: reqwest::Client,
    base: Url,
}

/// What became of an upload that was not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upload {
    /// All keys are stored (201), by this call or by an earlier one with the same content.
    Stored,
    /// Some keys exist already (207). **Nothing was stored**, and the upload tag is still free: send the keys
    /// that would be accepted again without the others. Indexes are in the order of the upload.
    Conflicts {
        /// Keys that would be accepted.
        accepted: Vec<usize>,
        /// Keys that the gateway has already, or that repeat inside the upload.
        existing: Vec<usize>,
    },
}

/// A batch, as a country gets it: without what it uploaded itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// The batch's name.
    pub batch_tag: String,
    /// The name of the batch behind it; `None` while there is none, which a later call can change.
    pub next_batch_tag: Option<String>,
    /// The other countries' keys, in their order; possibly none.
    pub keys: KeyBatch,
}

impl Gateway {
    /// Prepares the calls; nothing is connected yet.
    ///
    /// # Errors
    /// Names the setting that cannot be used.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let base = connection::base(&settings.url)?;
        Ok(Self { http: connection::client(&settings)?, base })
    }

    /// Signs keys and uploads them (spec §5.4). All of them are stored, or none.
    ///
    /// Safe to repeat: when an answer was lost, send the same keys under the same tag with the same signing
    /// certificate again.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upload(
        &self,
        tag: &UploadTag,
        format: Format,
        keys: &KeyBatch,
        signer: &BatchSigner,
    ) -> Result<Upload, Error> {
        let signature = signer.sign(&CanonicalKeys::of(keys).signed_bytes())?;
        let media = MediaType { format, version: SUPPORTED };
        self.upload_signed(tag, media, wire::encode(format, keys), &signature).await
    }

    /// Uploads a body that was signed elsewhere; `signature` is the whole `batchSignature` (spec §4.1.6).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upload_signed(
        &self,
        tag: &UploadTag,
        media: MediaType,
        body: Vec<u8>,
        signature: &str,
    ) -> Result<Upload, Error> {
        /// The body of 207.
        #[derive(Deserialize)]
        struct MultiStatus {
            #[serde(rename = "201")]
            accepted: Vec<usize>,
            #[serde(rename = "409")]
            existing: Vec<usize>,
            #[serde(rename = "500", default)]
            failed: Vec<usize>,
        }

        let request = self
            .http
            .post(self.endpoint(wire::UPLOAD_PATH, &[]))
            .header(CONTENT_TYPE, media.to_string())
            .header(wire::BATCH_TAG, tag.as_str())
            .header(wire::BATCH_SIGNATURE, signature)
            .body(body);
        let response = request.send().await?;
        match response.status().as_u16() {
            201 => Ok(Upload::Stored),
            207 => match json(response).await? {
                MultiStatus { accepted, existing, failed } if failed.is_empty() => {
                    Ok(Upload::Conflicts { accepted, existing })
                }
                _ => Err(Error::Unexpected("the gateway says that it failed to store single keys".into())),
            },
            _ => Err(refusal(response).await),
        }
    }

    /// Takes an upload back (an extension of spec §5.4.2); whether the country has an upload with this tag. Its
    /// keys vanish from every later download. Tag and keys stay taken until they expire. Doing it again is the
    /// same.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn withdraw(&self, tag: &UploadTag) -> Result<bool, Error> {
        let endpoint = self.endpoint(wire::UPLOAD_PATH, &[segment(tag.as_str())?]);
        self.delete(endpoint, "upload-not-found").await
    }

    /// Downloads a batch (spec §5.3): the one with this tag, or without a tag the first one formed on or after
    /// `date`. `None` when there is no such batch, or none yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn download(
        &self,
        date: NaiveDate,
        tag: Option<&str>,
        format: Format,
    ) -> Result<Option<Download>, Error> {
        let (Answer::Batch(head, response), _) = self.ask(date, tag, format, None).await? else {
            return Ok(None);
        };
        let keys = Body::read(response).await?.keys().map_err(|e| Error::Unexpected(e.to_string()))?;
        let Head { batch_tag, next_batch_tag, .. } = head;
        Ok(Some(Download { batch_tag, next_batch_tag, keys }))
    }

    /// Asks who uploaded and who signed what is in a batch (spec §5.7): the other countries' entries in the
    /// order of their keys in the download, then the caller's own.
    /// [`verify_batch`](efgs_protocol::audit::verify_batch) checks them.
    ///
    /// # Errors
    /// See [`Error`]; there is no such batch when the refusal's status is 404.
    pub async fn audit(&self, date: NaiveDate, tag: &str) -> Result<Vec<AuditEntry>, Error> {
        self.ask_audit(date, tag).await?.entries().map_err(|e| Error::Unexpected(e.to_string()))
    }

    /// Where the gateway is.
    pub fn url(&self) -> &str {
        self.base.as_str()
    }

    /// Deletes something; `false` when the gateway says with this code that it is not there.
    async fn delete(&self, endpoint: Url, not_found: &str) -> Result<bool, Error> {
        match ok(self.http.delete(endpoint)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_refusal(404, not_found) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn endpoint(&self, path: &str, more: &[&str]) -> Url {
        let mut url = self.base.clone();
        // An https URL always has a path.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/').skip(1)).extend(more);
        }
        url
    }
}

/// The answer to a request, if its status is 200.
async fn ok(request: RequestBuilder) -> Result<Response, Error> {
    let response = request.send().await?;
    if response.status() == 200 { Ok(response) } else { Err(refusal(response).await) }
}

async fn refusal(response: Response) -> Error {
    let status = response.status().as_u16();
    let retry_after = header(response.headers(), "Retry-After").ok().and_then(RetryAfter::parse);
    // Whatever happens to the body, the status is what counts.
    let body = connection::read(response).await.unwrap_or_default();
    Error::Refused(Refusal::new(status, retry_after, &body))
}

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name as one segment of a path.
fn segment(name: &str) -> Result<&str, Error> {
    match name {
        // A URL has no way to say these.
        "" | "." | ".." => Err(Error::Request(format!("{name:?} cannot be part of a path"))),
        name => Ok(name),
    }
}

async fn json<T: DeserializeOwned>(response: Response) -> Result<T, Error> {
    serde_json::from_slice(&connection::read(response).await?).map_err(|e| Error::Unexpected(e.to_string()))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Error> {
    let missing = || Error::Unexpected(format!("the header {name} is missing or not text"));
    headers.get(name).and_then(|value| value.to_str().ok()).ok_or_else(missing)
}

/// The gateway's time when it answered, to the second, if it tells.
fn server_time(headers: &HeaderMap) -> Option<DateTime<Utc>> {
    let text = header(headers, DATE.as_str()).ok()?;
    DateTime::parse_from_rfc2822(text).ok().map(|date| date.to_utc())
}
