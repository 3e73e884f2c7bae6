//! The recorder of the metrics, and what each means.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use super::*;

/// Upper ends of the histograms' buckets, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// A gauge that nobody has set for so long is no longer exported: a certificate that was replaced, for example. Each is
/// set when the metrics are asked for, or by a job at least once a minute.
const FORGET: Duration = Duration::from_secs(600);

/// Installs the recorder of this process; fails when there is one already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(FORGET));
    for name in [REQUEST_SECONDS, STORE_SECONDS] {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), &BUCKETS)?;
    }
    let handle = builder.install_recorder()?;
    describe();
    // From the beginning, so that the first event shows as an increase.
    for name in [BATCHES_FORMED, KEYS_EXPIRED, JOURNAL_BYTES, JOURNAL_FAILURES] {
        counter!(name).increment(0);
    }
    for reason in refusal::FAILURES {
        counter!(HANDSHAKES_FAILED, "reason" => reason).increment(0);
    }
    Ok(handle)
}

fn describe() {
    metrics_process::Collector::default().describe();
    describe_gauge!(BUILD_INFO, Unit::Count, "1; the label is the gateway's version");
    describe_gauge!(START_TIME, Unit::Seconds, "when this instance was started");
    describe_gauge!(READY, Unit::Count, "1 when /health/ready would answer 200, else 0");

    describe_counter!(REQUESTS, Unit::Count, "requests to the national side that were answered");
    describe_counter!(
        REFUSED,
        Unit::Count,
        "requests that were refused (4xx), by the code of the error; country - is a caller who was not let in"
    );
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "from a request's head to its answer's head");
    describe_gauge!(REQUESTS_IN_FLIGHT, Unit::Count, "requests that are not answered yet");
    describe_counter!(REQUEST_BYTES, Unit::Bytes, "bodies of requests that were received whole");
    describe_counter!(
        RESPONSE_BYTES,
        Unit::Bytes,
        "bodies of answers; country - is a caller who was not let in"
    );
    describe_gauge!(CONNECTIONS, Unit::Count, "open connections of national backends or load balancers");
    describe_counter!(
        CONNECTIONS_MADE,
        Unit::Count,
        "connections made, by TLS version (none behind a load balancer)"
    );
    describe_counter!(
        HANDSHAKES_FAILED,
        Unit::Count,
        "connections whose TLS handshake failed: such a caller sends no request"
    );

    describe_counter!(
        LIMITED,
        Unit::Count,
        "requests and connections turned away because of a limit; country - is not known"
    );
    describe_gauge!(
        COUNTRY_IN_FLIGHT,
        Unit::Count,
        "what a country has under way, the sending of bodies included"
    );

    describe_counter!(UPLOADS, Unit::Count, "verified uploads, by what became of them");
    describe_counter!(KEYS_STORED, Unit::Count, "keys stored, by the country that uploaded them");
    describe_counter!(SHA1_UPLOADS, Unit::Count, "uploads whose signature uses SHA-1");
    describe_counter!(KEYS_DOWNLOADED, Unit::Count, "keys given to a country, each as often as it was given");

    describe_gauge!(UPLOADS_WAITING, Unit::Count, "uploads that are in no batch yet (of the federation)");
    describe_gauge!(KEYS_WAITING, Unit::Count, "keys that are in no batch yet (of the federation)");
    describe_gauge!(
        UPLOAD_OLDEST_SECONDS,
        Unit::Seconds,
        "age of the oldest upload that is in no batch yet; 0 when none waits"
    );
    describe_counter!(BATCHES_FORMED, Unit::Count, "batches formed by this instance");
    describe_gauge!(
        BATCH_NEWEST,
        Unit::Seconds,
        "when the federation's newest batch was formed; 0 when there is none"
    );
    describe_gauge!(CHAIN_BATCHES, Unit::Count, "batches that this instance has in memory");
    describe_counter!(JOURNAL_BYTES, Unit::Bytes, "what this instance has written to the journal");
    describe_counter!(JOURNAL_FAILURES, Unit::Count, "failed attempts of this instance to write the journal");
    describe_gauge!(
        JOURNAL_UP,
        Unit::Count,
        "1 when the last attempt to write the journal succeeded, else 0"
    );
    describe_gauge!(
        JOURNAL_UNREADABLE,
        Unit::Count,
        "uploads that cannot be read and written to the journal, and are held back (of the federation, as this instance last saw)"
    );
    describe_gauge!(
        JOURNAL_KEEPS_OLD,
        Unit::Count,
        "1 when files of the journal that are too old could not be deleted at the last attempt, else 0"
    );
    describe_gauge!(
        JOURNAL_LAST_WRITE,
        Unit::Seconds,
        "when this instance last wrote the journal; 0 before that"
    );
    describe_counter!(KEYS_EXPIRED, Unit::Count, "keys deleted by this instance because of their age");

    describe_gauge!(CACHE_BYTES, Unit::Bytes, "memory of downloads that are ready to send");
    describe_gauge!(CACHE_MAX_BYTES, Unit::Bytes, "the most that it may be: download.cache");
    describe_gauge!(CACHE_ENTRIES, Unit::Count, "downloads and parts of downloads that are ready to send");
    describe_counter!(
        CACHE_LOOKUPS,
        Unit::Count,
        "downloads and parts of downloads that were needed: ready, or built"
    );

    describe_counter!(
        CALLBACKS,
        Unit::Count,
        "calls to countries by this instance: delivered, failed, and paused after too many failures"
    );
    describe_gauge!(
        CALLBACKS_PAUSED,
        Unit::Count,
        "callbacks that are paused, by failures or by the operator (of the federation)"
    );
    describe_gauge!(
        CALLBACK_OLDEST_SECONDS,
        Unit::Seconds,
        "age of the oldest notification that waits for an active callback (of the federation)"
    );

    describe_counter!(JOB_RUNS, Unit::Count, "turns of a job on this instance: ok or failed");
    describe_gauge!(
        JOB_LAST_SUCCESS,
        Unit::Seconds,
        "when a turn of the job last went well on this instance, also when another one does the work; its start until then"
    );
    describe_gauge!(JOB_INTERVAL, Unit::Seconds, "how often the job has to make progress");
    describe_gauge!(
        JOB_OVERDUE,
        Unit::Seconds,
        "for how long the job has been due without any instance having done it; 0 when it is not due"
    );

    describe_gauge!(DATABASE_UP, Unit::Count, "1 when the database answers, else 0");
    describe_gauge!(DATABASE_CONNECTIONS, Unit::Count, "connections to the database: busy or idle");
    describe_gauge!(DATABASE_CONNECTIONS_MAX, Unit::Count, "connections that there may be");
    describe_histogram!(STORE_SECONDS, Unit::Seconds, "operations on the database with their repetitions");
    describe_counter!(
        STORE_RETRIES,
        Unit::Count,
        "repetitions of operations on the database: deadlocks, failovers, lost connections"
    );

    describe_gauge!(
        REGISTRY_AGE,
        Unit::Seconds,
        "since the certificate registry was last read; over trust.refresh nobody is let in"
    );
    describe_gauge!(CERTIFICATES_ACTIVE, Unit::Count, "registered certificates that are active now");
    describe_gauge!(
        CERTIFICATES_REFUSED,
        Unit::Count,
        "rows of the certificate table that do not count because their signatures do not fit"
    );
    describe_gauge!(
        CERTIFICATE_DAYS_LEFT,
        Unit::Count,
        "days until a certificate expires, 0 or less once it has; country - is the gateway's own"
    );
    describe_counter!(
        TRACE_EXPORTS,
        Unit::Count,
        "packets of traces for the collector: ok or failed (only with [tracing])"
    );
}
