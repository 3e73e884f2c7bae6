//! Names of metrics, and the set-up of logs, metrics and traces.
//!
//! Never logged, counted or traced: key data, private keys, passwords, tokens.
//!
//! A metric's name is part of what operators rely on: its meaning stands in `recorder.rs` beside the others, and in
//! `docs/metrics.md`, which a test compares with what a gateway exports. Labels have few values, whatever a client sends.

pub mod handshake;
mod recorder;
pub mod refusal;
mod sparing;
mod traces;

use tracing_subscriber::{EnvFilter, Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

pub use self::{
    recorder::install,
    traces::{SPANS, Traces, link},
};

/// Requests to the national side, by operation and status.
pub const REQUESTS: &str = "efgs_http_requests_total";
/// Requests that were refused, by country, operation and the error's code.
pub const REFUSED: &str = "efgs_requests_refused_total";
/// Seconds from a request's head to its answer, by operation.
pub const REQUEST_SECONDS: &str = "efgs_http_request_duration_seconds";
/// Keys stored, by country.
pub const KEYS_STORED: &str = "efgs_keys_stored_total";
/// Uploads, by country and outcome.
pub const UPLOADS: &str = "efgs_uploads_total";
/// Uploads accepted with SHA-1, by country.
pub const SHA1_UPLOADS: &str = "efgs_sha1_signatures_total";
/// Batches formed by this instance.
pub const BATCHES_FORMED: &str = "efgs_batches_formed_total";
/// Requests that are under way, by operation.
pub const REQUESTS_IN_FLIGHT: &str = "efgs_http_requests_in_flight";
/// Bytes of request bodies, by country and operation.
pub const REQUEST_BYTES: &str = "efgs_http_request_bytes_total";
/// Bytes of answers' bodies, by country and operation.
pub const RESPONSE_BYTES: &str = "efgs_http_response_bytes_total";
/// Connections that are open on the national side.
pub const CONNECTIONS: &str = "efgs_connections";
/// Connections that were made, by TLS version.
pub const CONNECTIONS_MADE: &str = "efgs_connections_made_total";
/// Connections whose handshake failed, by reason.
pub const HANDSHAKES_FAILED: &str = "efgs_handshakes_failed_total";
/// Keys given to a country, by country.
pub const KEYS_DOWNLOADED: &str = "efgs_keys_downloaded_total";
/// Keys that wait for a batch.
pub const KEYS_WAITING: &str = "efgs_keys_waiting";
/// Uploads that wait for a batch.
pub const UPLOADS_WAITING: &str = "efgs_uploads_waiting";
/// Age of the oldest upload that waits for a batch.
pub const UPLOAD_OLDEST_SECONDS: &str = "efgs_upload_oldest_waiting_seconds";
/// When the newest batch was formed.
pub const BATCH_NEWEST: &str = "efgs_batch_newest_timestamp_seconds";
/// Batches that this instance has in memory.
pub const CHAIN_BATCHES: &str = "efgs_chain_batches";
/// Memory of the bodies that are ready to send.
pub const CACHE_BYTES: &str = "efgs_download_cache_bytes";
/// The most that it may be.
pub const CACHE_MAX_BYTES: &str = "efgs_download_cache_max_bytes";
/// How many bodies and parts of bodies there are.
pub const CACHE_ENTRIES: &str = "efgs_download_cache_entries";
/// Parts of bodies that were needed, by whether they were there.
pub const CACHE_LOOKUPS: &str = "efgs_download_cache_lookups_total";
/// Calls to countries by this instance, by country and outcome.
pub const CALLBACKS: &str = "efgs_callbacks_total";
/// Callbacks that are paused, by what paused them: failures, or the operator.
pub const CALLBACKS_PAUSED: &str = "efgs_callbacks_paused";
/// Age of the oldest notification that waits for an active callback.
pub const CALLBACK_OLDEST_SECONDS: &str = "efgs_callback_oldest_seconds";
/// Keys deleted by this instance because of their age.
pub const KEYS_EXPIRED: &str = "efgs_keys_expired_total";
/// Runs of a job, by job and outcome.
pub const JOB_RUNS: &str = "efgs_job_runs_total";
/// When a job last made progress, by job.
pub const JOB_LAST_SUCCESS: &str = "efgs_job_last_success_timestamp_seconds";
/// How often a job has to make progress, by job.
pub const JOB_INTERVAL: &str = "efgs_job_interval_seconds";
/// For how long a job has been due without any instance having done it, by job.
pub const JOB_OVERDUE: &str = "efgs_job_overdue_seconds";
/// Repetitions of database operations, by operation.
pub const STORE_RETRIES: &str = "efgs_store_retries_total";
/// Seconds of database operations with their repetitions, by operation.
pub const STORE_SECONDS: &str = "efgs_store_operation_duration_seconds";
/// Whether the database answers.
pub const DATABASE_UP: &str = "efgs_database_up";
/// Connections to the database, by pool and state.
pub const DATABASE_CONNECTIONS: &str = "efgs_database_connections";
/// The most that there may be, by pool.
pub const DATABASE_CONNECTIONS_MAX: &str = "efgs_database_connections_max";
/// Age of the certificate registry.
pub const REGISTRY_AGE: &str = "efgs_registry_age_seconds";
/// Whether the gateway can do its work.
pub const READY: &str = "efgs_ready";
/// The gateway's version.
pub const BUILD_INFO: &str = "efgs_build_info";
/// When the instance was started.
pub const START_TIME: &str = "efgs_start_timestamp_seconds";
/// Exports of traces, by outcome.
pub const TRACE_EXPORTS: &str = "efgs_trace_exports_total";
/// Rows of the certificate table that do not count because their signatures do not fit.
pub const CERTIFICATES_REFUSED: &str = "efgs_certificates_refused";
/// Certificates that count and are active now, by type.
pub const CERTIFICATES_ACTIVE: &str = "efgs_certificates_active";
/// Requests and connections that were turned away because of a limit, by country and reason.
pub const LIMITED: &str = "efgs_limited_total";
/// Requests that a country has under way, by country and kind.
pub const COUNTRY_IN_FLIGHT: &str = "efgs_country_requests_in_flight";
/// Bytes written to the journal by this instance.
pub const JOURNAL_BYTES: &str = "efgs_journal_bytes_total";
/// Failed attempts of this instance to write the journal.
pub const JOURNAL_FAILURES: &str = "efgs_journal_failures_total";
/// Whether this instance could write the journal at its last attempt.
pub const JOURNAL_UP: &str = "efgs_journal_up";
/// Uploads that cannot be read and therefore not be written to the journal, as this instance last saw.
pub const JOURNAL_UNREADABLE: &str = "efgs_journal_unreadable_uploads";
/// Whether files of the journal that are too old could not be deleted.
pub const JOURNAL_KEEPS_OLD: &str = "efgs_journal_keeps_old_files";
/// When this instance last wrote the journal, in seconds since 1970.
pub const JOURNAL_LAST_WRITE: &str = "efgs_journal_last_write_timestamp_seconds";
/// Days until a certificate expires, by country, type and thumbprint.
pub const CERTIFICATE_DAYS_LEFT: &str = "efgs_certificate_days_left";

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
