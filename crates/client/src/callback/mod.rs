//! Being called back when there is a new batch (spec §5.6): the calls that register a URL, and a [`Receiver`]
//! that is called.

use efgs_protocol::wire;
use serde::{Deserialize, Serialize};

use crate::{Error, Gateway, json, ok, segment};

mod announcement;
mod pinned;
mod receiver;
#[cfg(test)]
mod tests;

pub use announcement::Announcement;
pub use receiver::{Receiver, ReceiverError, ReceiverEvent};

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
        json(ok(self.http.get(self.endpoint(wire::CALLBACK_PATH, &[]))).await?).await
    }

    /// Registers a URL to be called, or replaces it. Doing it again changes nothing, except that a callback
    /// that failed too often and was paused is resumed.
    ///
    /// # Errors
    /// See [`Error`]; a URL that the gateway does not call is refused with 406 and the name of the check.
    pub async fn put_callback(&self, id: &str, url: &str) -> Result<(), Error> {
        let mut endpoint = self.endpoint(wire::CALLBACK_PATH, &[segment(id)?]);
        endpoint.query_pairs_mut().append_pair("url", url);
        ok(self.http.put(endpoint)).await.map(drop)
    }

    /// Deletes a callback; whether there was one with this name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_callback(&self, id: &str) -> Result<bool, Error> {
        let endpoint = self.endpoint(wire::CALLBACK_PATH, &[segment(id)?]);
        self.delete(endpoint, "callback-not-found").await
    }
}
