//! Where traces are sent.

use std::path::PathBuf;

use serde::Deserialize;

/// `[tracing]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracing {
    /// The collector's address for OTLP over HTTP (protobuf).
    pub endpoint: String,
    /// The share of requests that is traced, 0 to 1.
    #[serde(default = "Tracing::default_ratio")]
    pub ratio: f64,
    /// A file of lines `Name: value`, sent with each export.
    pub headers_file: Option<PathBuf>,
    /// PEM: verify the collector against these; with `https` only.
    pub ca: Option<PathBuf>,
}

impl Tracing {
    fn default_ratio() -> f64 {
        1.0
    }
}
