//! Every metric, once: its name, its unit and its meaning, which a running gateway exports and `docs/metrics.md` repeats
//! (a test compares them).
//!
//! A metric's name is part of what operators rely on. Labels have few values, whatever a client sends.

macro_rules! metrics {
    ($($kind:ident $name:ident = $text:literal, $unit:ident, $meaning:literal;)*) => {
        $(#[doc = concat!("`", $text, "`: ", $meaning, ".")] pub const $name: &str = $text;)*

        /// Says what each metric means.
        pub(super) fn describe() {
            $(metrics!(@$kind $name, $unit, $meaning);)*
        }
    };
    (@counter $name:ident, $unit:ident, $meaning:literal) => {
        ::metrics::describe_counter!($name, ::metrics::Unit::$unit, $meaning)
    };
    (@gauge $name:ident, $unit:ident, $meaning:literal) => {
        ::metrics::describe_gauge!($name, ::metrics::Unit::$unit, $meaning)
    };
    (@histogram $name:ident, $unit:ident, $meaning:literal) => {
        ::metrics::describe_histogram!($name, ::metrics::Unit::$unit, $meaning)
    };
}

metrics! {
    gauge BUILD_INFO = "efgs_build_info", Count, "1; the label is the gateway's version";
    gauge START_TIME = "efgs_start_timestamp_seconds", Seconds, "when this instance was started";
    gauge READY = "efgs_ready", Count, "1 when /health/ready would answer 200, else 0";
    gauge DEGRADED = "efgs_degraded", Count,
        "1 while the database is unreachable and only what is in memory is served, else 0";
    gauge DENY_FILE_UP = "efgs_deny_file_up", Count,
        "0 while trust.deny_file cannot be read or has a malformed line, else 1";
    gauge DECISIONS_UNDONE = "efgs_decisions_undone", Count,
        "Revocations and withdrawals that were removed from the database while this instance runs";
    gauge SPOOL_BYTES = "efgs_log_spool_bytes", Bytes, "files of the access log's spool";
    gauge SPOOL_MAX_BYTES = "efgs_log_spool_max_bytes", Bytes, "access_log.spool_max";
    gauge SPOOL_RECORDS = "efgs_log_spool_records", Count,
        "records of the access log that the database does not have yet";
    gauge SPOOL_OLDEST_SECONDS = "efgs_log_spool_oldest_seconds", Seconds,
        "age of the oldest of these records; 0 when there is none";
    gauge SPOOL_UP = "efgs_log_spool_up", Count,
        "0 while requests are refused because the spool is full or cannot be written, else 1";
    gauge SPOOL_SET_ASIDE = "efgs_log_spool_set_aside", Count,
        "1 while records or files wait in the spool's folder set-aside for an operator, else 0";
    counter REQUESTS = "efgs_http_requests_total", Count, "requests to the national side that were answered";
    counter REFUSED = "efgs_requests_refused_total", Count,
        "requests that were refused (4xx), by the code of the error; country - is a caller who was not let in";
    histogram REQUEST_SECONDS = "efgs_http_request_duration_seconds", Seconds,
        "from a request's head to its answer's head";
    gauge REQUESTS_IN_FLIGHT = "efgs_http_requests_in_flight", Count, "requests that are not answered yet";
    counter REQUEST_BYTES = "efgs_http_request_bytes_total", Bytes, "bodies of requests that were received whole";
    counter RESPONSE_BYTES = "efgs_http_response_bytes_total", Bytes,
        "bodies of answers; country - is a caller who was not let in";
    gauge CONNECTIONS = "efgs_connections", Count, "open connections of national backends or load balancers";
    counter CONNECTIONS_MADE = "efgs_connections_made_total", Count,
        "connections made, by TLS version (none behind a load balancer)";
    counter HANDSHAKES_FAILED = "efgs_handshakes_failed_total", Count,
        "connections whose TLS handshake failed: such a caller sends no request";
    counter LIMITED = "efgs_limited_total", Count,
        "requests and connections refused because of a limit; country - is not known";
    gauge COUNTRY_IN_FLIGHT = "efgs_country_requests_in_flight", Count,
        "what a country has under way, the sending of bodies included";
    counter UPLOADS = "efgs_uploads_total", Count, "verified uploads, by what became of them";
    counter KEYS_STORED = "efgs_keys_stored_total", Count, "keys stored, by the country that uploaded them";
    counter SHA1_UPLOADS = "efgs_sha1_signatures_total", Count, "uploads whose signature uses SHA-1";
    counter KEYS_DOWNLOADED = "efgs_keys_downloaded_total", Count,
        "keys given to a country, each as often as it was given";
    gauge UPLOADS_WAITING = "efgs_uploads_waiting", Count, "uploads that are in no batch yet (of the federation)";
    gauge KEYS_WAITING = "efgs_keys_waiting", Count, "keys that are in no batch yet (of the federation)";
    gauge UPLOAD_OLDEST_SECONDS = "efgs_upload_oldest_waiting_seconds", Seconds,
        "age of the oldest upload that is in no batch yet; 0 when none waits";
    counter BATCHES_FORMED = "efgs_batches_formed_total", Count, "batches formed by this instance";
    gauge BATCH_NEWEST = "efgs_batch_newest_timestamp_seconds", Seconds,
        "when the federation's newest batch was formed; 0 when there is none";
    gauge CHAIN_BATCHES = "efgs_chain_batches", Count, "batches that this instance has in memory";
    counter JOURNAL_BYTES = "efgs_journal_bytes_total", Bytes, "what this instance has written to the journal";
    counter JOURNAL_FAILURES = "efgs_journal_failures_total", Count,
        "failed attempts of this instance to write the journal";
    gauge JOURNAL_UP = "efgs_journal_up", Count, "1 when the last attempt to write the journal succeeded, else 0";
    gauge JOURNAL_UNREADABLE = "efgs_journal_unreadable_uploads", Count,
        "uploads that cannot be read and written to the journal, and are held back (of the federation, as this instance last saw)";
    gauge JOURNAL_KEEPS_OLD = "efgs_journal_keeps_old_files", Count,
        "1 when files of the journal that are too old could not be deleted at the last attempt, else 0";
    gauge JOURNAL_LAST_WRITE = "efgs_journal_last_write_timestamp_seconds", Seconds,
        "when this instance last wrote the journal; 0 before that";
    counter KEYS_EXPIRED = "efgs_keys_expired_total", Count, "keys deleted by this instance because of their age";
    gauge CACHE_BYTES = "efgs_download_cache_bytes", Bytes, "memory of downloads that are ready to send";
    gauge CACHE_MAX_BYTES = "efgs_download_cache_max_bytes", Bytes, "the most that it may be: download.cache";
    gauge CACHE_ENTRIES = "efgs_download_cache_entries", Count,
        "downloads and parts of downloads that are ready to send";
    counter CACHE_LOOKUPS = "efgs_download_cache_lookups_total", Count,
        "downloads and parts of downloads that were needed: ready, or built";
    gauge DISK_BYTES = "efgs_download_disk_cache_bytes", Bytes, "disk space of downloads that are ready to send";
    counter DISK_LOOKUPS = "efgs_download_disk_cache_lookups_total", Count,
        "looks into the disk cache for a download that is not in memory: read, missing, or unusable";
    counter CALLBACKS = "efgs_callbacks_total", Count,
        "calls to countries by this instance: delivered, failed, and paused after too many failures";
    gauge CALLBACKS_PAUSED = "efgs_callbacks_paused", Count,
        "callbacks that are paused, by failures or by the operator (of the federation)";
    gauge CALLBACK_OLDEST_SECONDS = "efgs_callback_oldest_seconds", Seconds,
        "age of the oldest notification that waits for an active callback (of the federation)";
    counter JOB_RUNS = "efgs_job_runs_total", Count, "turns of a job on this instance: ok or failed";
    gauge JOB_LAST_SUCCESS = "efgs_job_last_success_timestamp_seconds", Seconds,
        "when a turn of the job last went well on this instance, also when another one does the work; its start until then";
    gauge JOB_INTERVAL = "efgs_job_interval_seconds", Seconds, "how often the job has to make progress";
    gauge JOB_OVERDUE = "efgs_job_overdue_seconds", Seconds,
        "for how long the job has been due without any instance having done it; 0 when it is not due";
    gauge DATABASE_DAYS_AHEAD = "efgs_database_days_ahead", Count, "how many days after today the database has partitions for; 7 on SQLite, which needs none";
    gauge DATABASE_UP = "efgs_database_up", Count, "1 when the database answers, else 0";
    gauge DATABASE_CONNECTIONS = "efgs_database_connections", Count, "connections to the database: busy or idle";
    gauge DATABASE_CONNECTIONS_MAX = "efgs_database_connections_max", Count, "connections that there may be";
    histogram STORE_SECONDS = "efgs_store_operation_duration_seconds", Seconds,
        "operations on the database with their repetitions";
    counter STORE_RETRIES = "efgs_store_retries_total", Count,
        "repetitions of operations on the database: deadlocks, failovers, lost connections";
    counter REPLICA_READS = "efgs_replica_reads_total", Count,
        "reads of keys from a replica: read, behind or failed; after the last two the primary is asked";
    gauge REGISTRY_AGE = "efgs_registry_age_seconds", Seconds,
        "since the certificate registry was last read; over trust.refresh nobody is let in";
    gauge CERTIFICATES_ACTIVE = "efgs_certificates_active", Count, "registered certificates that are active now";
    gauge CERTIFICATES_REFUSED = "efgs_certificates_refused", Count,
        "rows of the certificate table that do not count because their signatures do not fit";
    gauge CERTIFICATE_DAYS_LEFT = "efgs_certificate_days_left", Count,
        "days until a certificate expires, 0 or less once it has; country - is the gateway's own";
    counter TRACE_EXPORTS = "efgs_trace_exports_total", Count,
        "packets of traces for the collector: ok or failed (only with [tracing])";
}
