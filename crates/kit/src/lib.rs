//! What every part of the gateway needs and what knows none of them: settings, the state of the jobs and certificates,
//! names of metrics, the set-up of logs and traces, PEM files.

pub mod config;
pub mod health;
pub mod instance;
pub mod pem;
pub mod telemetry;

pub use efgs_protocol::clock;
