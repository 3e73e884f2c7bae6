//! A request in progress, and what the handlers note about it.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use actix_web::{HttpMessage, HttpRequest};
use chrono::{DateTime, NaiveDate, Utc};
use efgs_protocol::{certificate::Thumbprint, country::Country};
use parking_lot::Mutex;

use super::{Entry, Queue};

/// What handlers note about a request.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The country that was let in.
    pub country: Option<Country>,
    /// Of the certificate that was shown.
    pub thumbprint: Option<Thumbprint>,
    /// The batch tag, upload tag or callback id.
    pub tag: Option<String>,
    /// The date asked for.
    pub date: Option<NaiveDate>,
    /// Whose keys went in or out, and how many.
    pub origins: Option<BTreeMap<Country, u32>>,
    /// Bytes of the body that were read.
    pub request_bytes: u64,
}

/// A request in progress. It always leaves a record, also when its sender disconnects before the answer. Work that
/// continues after that holds the trail until its end, so that the record says what was done.
#[derive(Debug)]
pub struct Trail {
    queue: Option<Queue>,
    id: String,
    at: DateTime<Utc>,
    started: Instant,
    method: Cow<'static, str>,
    operation: &'static str,
    path: Option<&'static str>,
    facts: Mutex<Facts>,
    ended: AtomicBool,
}

impl Trail {
    /// Begins with a request's arrival.
    ///
    /// `operation` is the operation's name, and `path` its path as the API document writes it, if it has one.
    pub fn begin(
        queue: Option<Queue>,
        id: String,
        at: DateTime<Utc>,
        method: &str,
        (operation, path): (&'static str, Option<&'static str>),
    ) -> Self {
        const METHODS: [&str; 8] = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"];
        // Other methods are not recorded literally.
        let method = METHODS.into_iter().find(|known| *known == method).unwrap_or("OTHER");
        Self {
            queue,
            id,
            at,
            started: Instant::now(),
            method: method.into(),
            operation,
            path,
            facts: Mutex::default(),
            ended: AtomicBool::new(false),
        }
    }

    /// Notes facts.
    pub fn note(&self, note: impl FnOnce(&mut Facts)) {
        note(&mut self.facts.lock());
    }

    /// Counts the answer to an unregistered caller, who gets no record of their own.
    pub fn count(&self, status: u16, error: Option<Cow<'static, str>>, response_bytes: u64) -> bool {
        self.ended.store(true, Ordering::Relaxed);
        match &self.queue {
            Some(queue) => queue.count(self.entry(status, error, response_bytes)),
            None => return false,
        }
        true
    }

    /// Records the answer; returns when the record is durable, with `false` when it could not be made so.
    pub async fn end(&self, status: u16, error: Option<Cow<'static, str>>, response_bytes: u64) -> bool {
        self.ended.store(true, Ordering::Relaxed);
        if cfg!(feature = "bench-unrecorded") {
            return true;
        }
        match &self.queue {
            Some(queue) => queue.write(self.entry(status, error, response_bytes)).await,
            None => false,
        }
    }

    fn entry(&self, status: u16, error: Option<Cow<'static, str>>, response_bytes: u64) -> Entry {
        let facts = self.facts.lock().clone();
        let origins = facts.origins.map(|origins| {
            let keys = |(country, keys): (Country, u32)| (country.to_string(), keys);
            origins.into_iter().map(keys).collect::<BTreeMap<_, _>>()
        });
        Entry {
            at: self.at,
            request_id: self.id.clone(),
            country: facts.country.map(|country| country.to_string()),
            thumbprint: facts.thumbprint.map(|thumbprint| thumbprint.to_string()),
            operation: self.operation.into(),
            method: self.method.clone(),
            path: self.path.map(Cow::Borrowed),
            tag: facts.tag,
            date: facts.date.map(|date| date.to_string()),
            status,
            error,
            keys: origins.as_ref().map(|origins| origins.values().sum()),
            origins,
            request_bytes: facts.request_bytes,
            response_bytes,
            duration_micros: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            requests: None,
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue
            && !self.ended.load(Ordering::Relaxed)
        {
            let entry = self.entry(499, Some("abandoned".into()), 0);
            match entry.country {
                Some(_) => queue.leave(entry),
                None => queue.count(entry),
            }
        }
    }
}

/// Notes something about this request.
pub fn note(request: &HttpRequest, note: impl FnOnce(&mut Facts)) {
    if let Some(trail) = trail(request) {
        trail.note(note);
    }
}

/// The trail of this request; work that continues after its answer holds it.
pub fn trail(request: &HttpRequest) -> Option<Arc<Trail>> {
    request.extensions().get::<Arc<Trail>>().cloned()
}
