//! The calls of a download, to the byte: what came is kept as it came, so that it can be put aside.

use chrono::{DateTime, NaiveDate, Utc};
use efgs_protocol::{
    audit::AuditEntry,
    key::KeyBatch,
    media::{Format, MediaType, SUPPORTED},
    wire::{self, DecodeError},
};
use reqwest::{
    Response,
    header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
};

use crate::{Error, Gateway, connection, header, ok, refusal, server_time};

/// The longest body of a batch that is read. A gateway bounds a batch to 32 MiB of keys.
pub(crate) const MAX_BATCH: usize = 64 << 20;

/// What a gateway answers when it is asked for a batch.
pub(crate) enum Answer {
    /// The batch, with its keys still to be read.
    Batch(Head, Response),
    /// The caller has its bytes; the head is as it is now.
    Unchanged(Head),
    /// There is no such batch, or none yet.
    NotFound,
}

/// What is said of a batch beside its keys.
pub(crate) struct Head {
    pub(crate) batch_tag: String,
    pub(crate) next_batch_tag: Option<String>,
    pub(crate) etag: Option<String>,
}

/// A batch's keys, as they came.
pub(crate) struct Body {
    pub(crate) format: Format,
    pub(crate) bytes: Vec<u8>,
}

/// What the gateway says about the uploads of a batch.
pub(crate) struct AuditAnswer {
    pub(crate) bytes: Vec<u8>,
    /// How many uploads were taken out of the batch.
    pub(crate) withdrawn: u32,
}

impl Head {
    fn of(response: &Response) -> Result<Self, Error> {
        let headers = response.headers();
        let batch_tag = header(headers, wire::BATCH_TAG)?.to_owned();
        let next = header(headers, wire::NEXT_BATCH_TAG)?;
        let next_batch_tag = Some(next).filter(|next| *next != wire::NO_NEXT_BATCH).map(str::to_owned);
        let etag = headers.get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        Ok(Self { batch_tag, next_batch_tag, etag })
    }
}

impl Body {
    /// Reads the keys to their last byte.
    pub(crate) async fn read(response: Response) -> Result<Self, Error> {
        let media = MediaType::from_content_type(header(response.headers(), CONTENT_TYPE.as_str())?)
            .map_err(|e| Error::Unexpected(e.to_string()))?;
        Ok(Self { format: media.format, bytes: connection::read_up_to(response, MAX_BATCH).await? })
    }

    /// The keys; possibly none.
    pub(crate) fn keys(&self) -> Result<KeyBatch, DecodeError> {
        match wire::decode(self.format, &self.bytes, usize::MAX) {
            Err(DecodeError::Empty) => Ok(KeyBatch::new()),
            keys => keys,
        }
    }
}

impl Gateway {
    /// Asks for the batch with this tag, or without a tag for the first one formed on or after `date`; not for
    /// its bytes when they are still those of `etag`. With the gateway's time when it answered, if it tells.
    pub(crate) async fn ask(
        &self,
        date: NaiveDate,
        tag: Option<&str>,
        format: Format,
        etag: Option<&str>,
    ) -> Result<(Answer, Option<DateTime<Utc>>), Error> {
        let accept = MediaType { format, version: SUPPORTED }.to_string();
        let mut request =
            self.http.get(self.endpoint(wire::DOWNLOAD_PATH, &[&date.to_string()])).header(ACCEPT, accept);
        if let Some(tag) = tag {
            request = request.header(wire::BATCH_TAG, tag);
        }
        if let Some(etag) = etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let response = request.send().await?;
        let time = server_time(response.headers());
        match response.status().as_u16() {
            200 => Ok((Answer::Batch(Head::of(&response)?, response), time)),
            304 if etag.is_some() => Ok((Answer::Unchanged(Head::of(&response)?), time)),
            // Not every 404: a wrong address must not look like a day without keys.
            _ => match refusal(response).await {
                error if error.is_refusal(404, "batch-not-found") => Ok((Answer::NotFound, time)),
                error => Err(error),
            },
        }
    }

    /// Asks who uploaded what is in a batch.
    pub(crate) async fn ask_audit(&self, date: NaiveDate, tag: &str) -> Result<AuditAnswer, Error> {
        let endpoint = self.endpoint(wire::AUDIT_PATH, &[&date.to_string(), tag]);
        let response = ok(self.http.get(endpoint)).await?;
        // Other gateways do not know of withdrawals.
        let withdrawn = response.headers().get(wire::WITHDRAWN_UPLOADS);
        let withdrawn = withdrawn.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
        Ok(AuditAnswer { bytes: connection::read(response).await?, withdrawn })
    }
}

impl AuditAnswer {
    pub(crate) fn entries(&self) -> Result<Vec<AuditEntry>, serde_json::Error> {
        serde_json::from_slice(&self.bytes)
    }
}
