//! The real server, over real TLS, against each database that is there.
//!
//! Every test runs on SQLite, and on MariaDB and MySQL when `EFGS_TEST_MARIADB` and `EFGS_TEST_MYSQL` name
//! one (`cargo xtask test` starts both; `cargo xtask servers` keeps them running). Without them those trials
//! are reported as ignored, or fail when `EFGS_TEST_REQUIRE_ALL=1`. A name is made of the database, the file
//! and what must hold: `mysql::upload::a_retry_is_answered_201_and_stores_nothing_twice`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests choose at random")]

mod access_log;
mod access_log_proof;
mod access_log_retention;
mod access_log_signing;
mod access_log_spool;
mod access_log_writer;
mod attack;
mod audit;
mod authority;
mod backends;
mod backup;
mod batching;
mod browser;
mod callback;
mod callback_failures;
mod callback_server;
mod client;
mod collector;
mod database;
mod days;
mod deny_file;
mod download;
mod downloader;
mod encryption;
mod expiry;
mod failover;
#[path = "../shared/free_port.rs"]
mod free_port;
mod full;
mod gaen_tools;
mod harness;
mod health;
mod http;
mod journal;
mod journal_bucket;
mod journal_failures;
mod journal_upkeep;
mod limits;
mod metrics;
mod national_backend;
mod object_store;
mod outage;
mod page;
mod phones;
mod process;
mod prometheus;
mod proxy;
mod reading;
mod registry;
mod traces;
mod trust;
mod upload;
mod uploader;
mod validation;
mod withdrawal;

use std::process::ExitCode;

use database::Script;
use harness::File;

fn main() -> ExitCode {
    if std::env::var_os(national_backend::AS_EFGS).is_some() {
        return efgs_client::cli::main();
    }
    // The tests' own client and the server must agree on one TLS library.
    rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
    efgs_gateway::telemetry::init_logs("off");
    let file = |name, tests| File { name, tests, own_server: None, spool: true };
    // The same with gateways whose answers wait for the database.
    let unspooled = |name, tests| File { spool: false, ..file(name, tests) };
    harness::run(&[
        file("access_log", access_log::TESTS),
        file("access_log_proof", access_log_proof::TESTS),
        file("access_log_retention", access_log_retention::TESTS),
        file("access_log_signing", access_log_signing::TESTS),
        file("access_log_writer", access_log_writer::TESTS),
        file("attack", attack::TESTS),
        unspooled("access_log_unspooled", access_log::TESTS),
        unspooled("access_log_proof_unspooled", access_log_proof::TESTS),
        unspooled("access_log_retention_unspooled", access_log_retention::TESTS),
        unspooled("access_log_signing_unspooled", access_log_signing::TESTS),
        unspooled("access_log_writer_unspooled", access_log_writer::TESTS),
        file("access_log_spool", access_log_spool::TESTS),
        file("audit", audit::TESTS),
        file("authority", authority::TESTS),
        file("backends", backends::TESTS),
        file("backup", backup::TESTS),
        file("batching", batching::TESTS),
        file("callback", callback::TESTS),
        file("callback_failures", callback_failures::TESTS),
        file("deny_file", deny_file::TESTS),
        file("days", days::TESTS),
        file("download", download::TESTS),
        file("downloader", downloader::TESTS),
        file("encryption", encryption::TESTS),
        file("expiry", expiry::TESTS),
        file("health", health::TESTS),
        file("http", http::TESTS),
        file("limits", limits::TESTS),
        file("national_backend", national_backend::TESTS),
        file("metrics", metrics::TESTS),
        file("journal", journal::TESTS),
        file("journal_bucket", journal_bucket::TESTS),
        file("journal_failures", journal_failures::TESTS),
        file("journal_upkeep", journal_upkeep::TESTS),
        file("page", page::TESTS),
        file("phones", phones::TESTS),
        file("process", process::TESTS),
        file("proxy", proxy::TESTS),
        file("registry", registry::TESTS),
        file("traces", traces::TESTS),
        file("trust", trust::TESTS),
        file("upload", upload::TESTS),
        file("uploader", uploader::TESTS),
        file("validation", validation::TESTS),
        file("withdrawal", withdrawal::TESTS),
        File { own_server: Some(Script::Single), ..file("outage", outage::TESTS) },
        File { own_server: Some(Script::Single), ..file("reading", reading::TESTS) },
        File { own_server: Some(Script::Single), ..file("full", full::TESTS) },
        File { own_server: Some(Script::Cluster), ..file("failover", failover::TESTS) },
    ])
}
