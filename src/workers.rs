//! Where a request's work is done: not on the threads of the connections.

use std::{future::Future, sync::Arc};

use efgs_protocol::country::Country;
use tokio::runtime::Handle;
use tracing::Instrument as _;

use crate::{
    http::{Defect, Error},
    limits::{Kind, Limits},
};

/// The threads of the jobs, and those that compute for long.
#[derive(Clone, Debug)]
pub struct Workers {
    runtime: Handle,
    limits: Arc<Limits>,
}

impl Workers {
    /// Those of the runtime that this is called in.
    pub fn new(limits: Arc<Limits>) -> Self {
        Self { runtime: Handle::current(), limits }
    }

    /// Runs something on the threads of the jobs. It runs to completion even when the request that wanted it goes
    /// away.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Defect> {
        self.runtime.spawn(work.in_current_span()).await.map_err(|e| Defect(e.to_string()))
    }

    /// Runs something on the threads of the jobs that no request waits for.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work.in_current_span());
    }

    /// Runs something that blocks, on a thread of its own.
    pub async fn block<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Defect> {
        self.runtime.spawn_blocking(work).await.map_err(|e| Defect(e.to_string()))
    }

    /// Runs something that computes for long, for a country when it is its turn, on a thread of its own.
    pub async fn compute<T: Send + 'static>(
        &self,
        country: Country,
        kind: Kind,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let permit = self.limits.to_compute(country, kind).await?;
        let span = tracing::Span::current();
        let work = move || {
            // Until it is done, whether or not somebody still waits for it.
            let _permit = permit;
            span.in_scope(work)
        };
        Ok(self.runtime.spawn_blocking(work).await.map_err(|e| Defect(e.to_string()))?)
    }
}
