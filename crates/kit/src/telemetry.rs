//! Names of metrics, and the set-up of logs, metrics and traces.
//!
//! Never logged, counted or traced: key data, private keys, passwords, tokens.
//!
//! `names.rs` lists the metrics.

pub mod handshake;
mod names;
mod recorder;
pub mod refusal;
mod sparing;
mod traces;

use tracing_subscriber::{EnvFilter, Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

pub use self::{
    names::*,
    recorder::install,
    traces::{SPANS, Traces, link},
};

/// Counts itself in a gauge for as long as it lives.
#[derive(Debug)]
pub struct InFlight(metrics::Gauge);

impl InFlight {
    /// One more.
    pub fn new(gauge: metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Logs go to standard error: for a person on a terminal, else as JSON lines. `RUST_LOG` is the filter.
pub fn init_logs(default: &str) {
    init(default, None);
}

/// Logs as [`init_logs`], and traces, if there are to be some.
pub fn init(default: &str, traces: Option<&Traces>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = if terminal { layer.boxed() } else { layer.json().flatten_event(true).boxed() };
    let traces = traces.map(|traces| {
        let only = Targets::new().with_target(SPANS, tracing::Level::TRACE);
        tracing_opentelemetry::layer()
            .with_tracer(traces.tracer())
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_filter(only)
    });
    // A second initialisation (in tests) changes nothing.
    drop(tracing_subscriber::registry().with(logs.with_filter(filter)).with(traces).try_init());
}
