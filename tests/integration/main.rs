//! The real server, over real TLS, against each database that is there.
//!
//! Every test runs on SQLite, and on MariaDB and MySQL when `EFGS_TEST_MARIADB` and `EFGS_TEST_MYSQL` name
//! one (`cargo xtask test` starts both; `cargo xtask servers` keeps them running). Without them those trials
//! are reported as ignored, or fail when `EFGS_TEST_REQUIRE_ALL=1`. A name is made of the database, the file
//! and what must hold: `mysql::upload::a_retry_is_answered_201_and_stores_nothing_twice`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod audit;
mod batching;
mod callback;
mod callback_failures;
mod callback_server;
mod client;
mod database;
mod download;
mod encryption;
mod expiry;
mod harness;
mod http;
mod process;
mod registry;
mod trust;
mod upload;
mod validation;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The tests' own client and the server must agree on one TLS library.
    rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
    efgs_gateway::telemetry::init_logs("off");
    let files = [
        ("audit", audit::TESTS),
        ("batching", batching::TESTS),
        ("callback", callback::TESTS),
        ("callback_failures", callback_failures::TESTS),
        ("download", download::TESTS),
        ("encryption", encryption::TESTS),
        ("expiry", expiry::TESTS),
        ("http", http::TESTS),
        ("process", process::TESTS),
        ("registry", registry::TESTS),
        ("trust", trust::TESTS),
        ("upload", upload::TESTS),
        ("validation", validation::TESTS),
    ];
    harness::run(&files)
}
