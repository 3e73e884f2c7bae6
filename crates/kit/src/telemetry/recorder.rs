//! The recorder of the metrics.

use std::time::Duration;

use metrics::counter;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use super::*;

/// Upper ends of the histograms' buckets, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// A gauge that has not been set for this long is no longer exported, for example that of a replaced
/// certificate. Each gauge is set when the metrics are scraped, or by a job at least once a minute.
const FORGET: Duration = Duration::from_secs(600);

/// Installs the recorder of this process; fails when there is one already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(FORGET));
    for name in [REQUEST_SECONDS, STORE_SECONDS] {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), &BUCKETS)?;
    }
    let handle = builder.install_recorder()?;
    metrics_process::Collector::default().describe();
    names::describe();
    // From the beginning, so that the first event shows as an increase.
    for name in [BATCHES_FORMED, KEYS_EXPIRED, JOURNAL_BYTES, JOURNAL_FAILURES] {
        counter!(name).increment(0);
    }
    for reason in refusal::FAILURES {
        counter!(HANDSHAKES_FAILED, "reason" => reason).increment(0);
    }
    Ok(handle)
}
