//! How long a TLS handshake took: from the client's first message until the connection is ready.
//!
//! The client's first message and the completed connection are seen in different callbacks that share no state
//! except their task.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::task::{Id, try_id};

/// Handshakes of one thread that are remembered; one that fails is forgotten when there are more.
const MOST: usize = 256;

thread_local! {
    static BEGUN: RefCell<HashMap<Id, Instant>> = RefCell::default();
}

/// The handshake of a connection. The first request on it reports it.
#[derive(Debug)]
pub struct Handshake {
    took: Duration,
    ended: Instant,
    version: &'static str,
    told: Cell<bool>,
}

impl Handshake {
    /// It has just ended.
    pub fn new(took: Duration, version: &'static str) -> Self {
        Self { took, ended: Instant::now(), version, told: Cell::new(false) }
    }

    /// Adds it to the trace of the first request on the connection.
    pub fn tell(&self, request: &tracing::Span, now: DateTime<Utc>) {
        if !self.told.replace(true) {
            let began = now - self.ended.elapsed() - self.took;
            super::traces::handshake(request, began, self.took, self.version);
        }
    }
}

/// The client's first message is here.
pub fn begin() {
    if !super::traces::is_on() {
        return;
    }
    if let Some(id) = try_id() {
        BEGUN.with_borrow_mut(|begun| {
            if begun.len() >= MOST {
                begun.retain(|_, at| at.elapsed() < Duration::from_secs(10));
            }
            if begun.len() < MOST {
                begun.insert(id, Instant::now());
            }
        });
    }
}

/// The connection is ready: how long it took, if that is known.
pub fn end() -> Option<Duration> {
    let id = try_id()?;
    BEGUN.with_borrow_mut(|begun| begun.remove(&id)).map(|at| at.elapsed())
}
