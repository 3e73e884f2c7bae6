//! What every part of the gateway needs: settings, the health of jobs and certificates, names of metrics, the
//! set-up of logs and traces, PEM files. Depends on no other part.

pub mod config;
pub mod health;
pub mod instance;
pub mod pem;
pub mod telemetry;

pub use efgs_protocol::clock;
