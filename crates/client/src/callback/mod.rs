//! Being called back when there is a new batch (spec §5.6): the calls that register a URL, and a [`Receiver`]
//! that is called.

use efgs_protocol::wire;
use serde::{Deserialize, Serialize};

use crate::{Error, Gateway, Refusal, json, refusal, segment};

mod announcement;
mod pinned;
mod receiver;
#[cfg(test)]
mod tests;

pub use announcement::Announcement;
pub use receiver::{Event, Receiver, ReceiverError};

/// A URL that the gateway calls when there is a new batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Callback {
    /// Its name, which the country chose.
    pub callback_id: String,
    /// `https`, without query, fragment and user name.
    pub url: String,
}

impl Gateway {
    /// The country's own callbacks.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn callbacks(&self) -> Result<Vec<Callback>, Error> {
        let response = self.http.get(self.endpoint(wire::CALLBACK_PATH, &[])).send().await?;
        if response.status() == 200 { json(response).await } else { Err(refusal(response).await) }
    }

    /// Registers a URL to be called, or replaces it. Doing it again changes nothing, except that a callback
    /// that failed too often and was paused is resumed.
    ///
    /// # Errors
    /// See [`Error`]; a URL that the gateway does not call is refused with 406 and the name of the check.
    pub async fn put_callback(&self, id: &str, url: &str) -> Result<(), Error> {
        let mut endpoint = self.endpoint(wire::CALLBACK_PATH, &[segment(id)?]);
        endpoint.query_pairs_mut().append_pair("url", url);
        let response = self.http.put(endpoint).send().await?;
        if response.status() == 200 { Ok(()) } else { Err(refusal(response).await) }
    }

    /// Deletes a callback; whether there was one with this name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_callback(&self, id: &str) -> Result<bool, Error> {
        let endpoint = self.endpoint(wire::CALLBACK_PATH, &[segment(id)?]);
        let response = self.http.delete(endpoint).send().await?;
        if response.status() == 200 {
            return Ok(true);
        }
        match refusal(response).await {
            Error::Refused(Refusal { status: 404, code: Some(code), .. }) if code == "callback-not-found" => {
                Ok(false)
            }
            error => Err(error),
        }
    }
}
