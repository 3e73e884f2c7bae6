//! Gauges that are set when the metrics are scraped.

use std::time::Duration;

use efgs_protocol::certificate::CertificateType;
use metrics::gauge;

use super::{App, routes::GROUPS};
use crate::{health::Trouble, telemetry::*};

/// Prometheus waits ten seconds at most, and the metrics matter most while the database is unreachable.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sets every gauge that shows a state.
pub(super) async fn collect(app: &App) {
    metrics_process::Collector::default().collect();
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1);
    let now = app.clock.now();
    gauge!(START_TIME).set(app.health.started_at().timestamp() as f64);

    // Other code counts these up and down. Touching them keeps them from being dropped while they do not
    // change.
    gauge!(CONNECTIONS).increment(0.0);
    for operation in GROUPS {
        gauge!(REQUESTS_IN_FLIGHT, "operation" => operation).increment(0.0);
    }

    let readiness = app.readiness(PATIENCE).await;
    gauge!(READY).set(u8::from(readiness.status() != "down"));
    gauge!(DEGRADED).set(u8::from(readiness.status() == "degraded"));
    gauge!(DATABASE_UP).set(u8::from(readiness.database));
    for job in app.health.jobs() {
        gauge!(JOB_LAST_SUCCESS, "job" => job.name).set(job.last_success.timestamp() as f64);
        gauge!(JOB_INTERVAL, "job" => job.name).set(job.interval);
        gauge!(JOB_OVERDUE, "job" => job.name).set(job.overdue);
    }
    for certificate in app.health.certificates().iter() {
        let country = certificate.country.map_or("-".to_owned(), |country| country.to_string());
        let labels = [
            ("country", country),
            ("type", certificate.kind.name().to_owned()),
            ("thumbprint", certificate.thumbprint.to_string()),
        ];
        gauge!(CERTIFICATE_DAYS_LEFT, &labels).set(certificate.days_left(now) as f64);
    }
    if let Ok(registry) = app.trust.registry() {
        gauge!(CERTIFICATES_REFUSED).set(registry.refused().len() as f64);
        for kind in [CertificateType::Authentication, CertificateType::Signing, CertificateType::Callback] {
            let entries = registry.entries().filter(|entry| entry.kind == kind);
            let active =
                entries.filter(|entry| registry.active(entry.certificate.thumbprint(), kind, now).is_ok());
            gauge!(CERTIFICATES_ACTIVE, "type" => kind.as_str()).set(active.count() as f64);
        }
    }
    if let Some(age) = app.trust.age() {
        gauge!(REGISTRY_AGE).set(age);
    }

    let waiting = app.health.waiting();
    let age = waiting.oldest.map_or(0.0, |oldest| (now - oldest).as_seconds_f64().max(0.0));
    gauge!(UPLOADS_WAITING).set(waiting.uploads as f64);
    gauge!(KEYS_WAITING).set(waiting.keys as f64);
    gauge!(UPLOAD_OLDEST_SECONDS).set(age);
    gauge!(BATCH_NEWEST).set(waiting.newest_batch.map_or(0.0, |formed| formed.timestamp() as f64));
    gauge!(CHAIN_BATCHES).set(app.chain.len() as f64);

    if let Some(journal) = app.journal.journal() {
        gauge!(JOURNAL_UP).set(u8::from(journal.failing().is_none()));
        gauge!(JOURNAL_UNREADABLE).set(journal.unreadable() as f64);
        gauge!(JOURNAL_KEEPS_OLD).set(u8::from(journal.keeping().is_some()));
        gauge!(JOURNAL_LAST_WRITE).set(journal.last_write() as f64);
    }

    if let Some(spool) = app.access_log.spool_state() {
        gauge!(SPOOL_BYTES).set(spool.bytes as f64);
        gauge!(SPOOL_MAX_BYTES).set(spool.max_bytes as f64);
        gauge!(SPOOL_RECORDS).set(spool.records as f64);
        let age = spool.oldest.map_or(0.0, |oldest| (now - oldest).as_seconds_f64().max(0.0));
        gauge!(SPOOL_OLDEST_SECONDS).set(age);
        gauge!(SPOOL_UP).set(u8::from(spool.refusing.is_none()));
    }
    let troubles = app.health.troubles();
    gauge!(DENY_FILE_UP).set(u8::from(!troubles.contains_key(&Trouble::DenyFile)));
    let undone = app.trust.undone().len() + app.chain.undone_withdrawals().len();
    gauge!(DECISIONS_UNDONE).set(undone as f64);
    gauge!(SPOOL_SET_ASIDE).set(u8::from(troubles.contains_key(&Trouble::AccessLogSetAside)));
    if let Some(days) = app.health.database().days_ahead {
        gauge!(DATABASE_DAYS_AHEAD).set(days as f64);
    }

    let (entries, bytes) = app.body_cache.size().await;
    gauge!(CACHE_ENTRIES).set(entries as f64);
    gauge!(CACHE_BYTES).set(bytes as f64);
    gauge!(DISK_BYTES).set(app.body_cache.disk_bytes() as f64);
    gauge!(CACHE_MAX_BYTES).set(app.config.download.cache.as_u64() as f64);

    for pool in app.store.pools() {
        gauge!(DATABASE_CONNECTIONS, "pool" => pool.name, "state" => "busy").set(pool.busy as f64);
        gauge!(DATABASE_CONNECTIONS, "pool" => pool.name, "state" => "idle").set(pool.idle as f64);
        gauge!(DATABASE_CONNECTIONS_MAX, "pool" => pool.name).set(pool.max as f64);
    }
}
