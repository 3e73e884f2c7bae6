//! Whether a gateway answers at all, and what its clock says.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use efgs_protocol::{media::MediaType, wire};
use reqwest::{Method, header::ACCEPT};

use crate::{Error, Gateway, header, ok, server_time};

/// A gateway's answer to `OPTIONS`, for which nobody has to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The gateway's time when it answered, to the second, if it says it.
    pub date: Option<DateTime<Utc>>,
    /// The formats of batches that it takes and gives.
    pub formats: Vec<MediaType>,
    /// From the request to the answer, with the connection if there was none yet.
    pub took: Duration,
}

impl Gateway {
    /// Asks whether the gateway is there and what it speaks. Takes a client certificate, as every connection
    /// does, but not a registered one.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Unexpected`] when something else than a gateway answers.
    pub async fn probe(&self) -> Result<Probe, Error> {
        let started = Instant::now();
        let response = ok(self.http.request(Method::OPTIONS, self.endpoint(wire::ROOT_PATH, &[]))).await?;
        let date = server_time(response.headers());
        let formats = header(response.headers(), ACCEPT.as_str())?
            .split(',')
            .map(|text| MediaType::from_content_type(text.trim()))
            .collect::<Result<_, _>>()
            .map_err(|e| Error::Unexpected(e.to_string()))?;
        Ok(Probe { date, formats, took: started.elapsed() })
    }
}
