//! Names of metrics, and the set-up of logs.
//!
//! Never logged: key data, private keys, passwords, tokens.

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// Requests to the national side, by operation and status.
pub const REQUESTS: &str = "efgs_http_requests_total";
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
/// Keys that wait for a batch.
pub const KEYS_WAITING: &str = "efgs_keys_waiting";
/// Calls to countries by this instance, by country and outcome.
pub const CALLBACKS: &str = "efgs_callbacks_total";
/// Callbacks that are paused, after failures or by the operator.
pub const CALLBACKS_PAUSED: &str = "efgs_callbacks_paused";
/// Age of the oldest notification that waits for an active callback.
pub const CALLBACK_OLDEST_SECONDS: &str = "efgs_callback_oldest_seconds";
/// Keys deleted by this instance because of their age.
pub const KEYS_EXPIRED: &str = "efgs_keys_expired_total";
/// Runs of a job, by job and outcome.
pub const JOB_RUNS: &str = "efgs_job_runs_total";
/// Repetitions of database operations, by operation.
pub const STORE_RETRIES: &str = "efgs_store_retries_total";
/// Rows of the certificate table that do not count because their signatures do not fit.
pub const CERTIFICATES_REFUSED: &str = "efgs_certificates_refused";
/// Certificates that count and are active now, by type.
pub const CERTIFICATES_ACTIVE: &str = "efgs_certificates_active";

/// Days until a certificate expires, by country, type and thumbprint.
pub const CERTIFICATE_DAYS_LEFT: &str = "efgs_certificate_days_left";

/// Logs go to standard error: for a person on a terminal, else as JSON lines. `RUST_LOG` is the filter.
pub fn init_logs(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // A second initialisation (in tests) changes nothing.
    drop(if terminal {
        registry.with(layer).try_init()
    } else {
        registry.with(layer.json().flatten_event(true)).try_init()
    });
}
