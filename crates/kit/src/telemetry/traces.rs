//! Traces for an OpenTelemetry collector: from the TLS handshake to the database. Off unless `[tracing]` is there.
//!
//! A span contains names, counts, durations and countries, never keys, tags, addresses or secrets. Only the
//! gateway decides whether a request is traced. A `traceparent` from a national backend becomes a link:
//! outsiders must be able neither to switch tracing on nor to choose ids. Export does not block requests. If
//! the collector is unreachable, spans are dropped and counted.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use opentelemetry::{
    KeyValue, SpanId, TraceFlags, TraceId,
    trace::{Span as _, SpanContext, SpanKind, TraceState, Tracer as _, TracerProvider as _},
};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::runtime::Handle;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use zeroize::Zeroizing;

use crate::{
    config::{ConfigError, Tracing},
    pem::load_roots,
};

/// The name of the program in traces.
const SERVICE: &str = "efgs-gateway";

/// The target of spans: logs do not show it, and nothing else is traced.
pub const SPANS: &str = "efgs_trace";

/// The longest that an export, and the last one at the end, may take.
const PATIENCE: Duration = Duration::from_secs(5);

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The way to the collector, until the gateway has stopped.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Prepares the exporter; connects to nothing yet.
    pub fn new(config: &Tracing) -> Result<Self, ConfigError> {
        let fail = |key: &str, reason: String| ConfigError::Invalid(format!("`tracing.{key}`: {reason}"));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new(config)?)
            .with_endpoint(&config.endpoint)
            .with_timeout(PATIENCE)
            .build()
            .map_err(|e| fail("endpoint", e.to_string()))?;
        let resource = Resource::builder()
            .with_service_name(SERVICE)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.ratio)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(resource)
            .build();
        Ok(Self(provider))
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        TRACER.get_or_init(|| self.0.tracer(SERVICE)).clone()
    }

    /// Sends what is left, and stops.
    pub async fn shutdown(self) {
        let stop = move || self.0.shutdown_with_timeout(PATIENCE);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(stop).await {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Whether spans are recorded.
pub(super) fn is_on() -> bool {
    TRACER.get().is_some()
}

/// The lines of `tracing.headers_file`. The values are secrets: debug output does not show them, and their memory is
/// wiped when the last copy goes. So they are not given to the exporter, which would keep plain texts.
fn headers(config: &Tracing) -> Result<HeaderMap, ConfigError> {
    let Some(path) = &config.headers_file else { return Ok(HeaderMap::new()) };
    // The content is not quoted.
    let fail = |reason: String| {
        ConfigError::Invalid(format!("`tracing.headers_file` ({}): {reason}", path.display()))
    };
    let text =
        Zeroizing::new(std::fs::read_to_string(path).map_err(|e| fail(format!("cannot be read: {e}")))?);
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let pair = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
        let value = Bytes::from_owner(Zeroizing::new(value.trim().as_bytes().to_vec()));
        let mut value = HeaderValue::from_maybe_shared(value).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    };
    lines
        .map(|(number, line)| pair(line).ok_or_else(|| fail(format!("line {number} is not `Name: value`"))))
        .collect()
}

/// Speaks HTTP with the collector on the gateway's runtime, whichever thread asks.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    headers: HeaderMap,
    runtime: Handle,
    failing: AtomicBool,
}

impl Client {
    fn new(config: &Tracing) -> Result<Self, ConfigError> {
        let fail = |reason: String| ConfigError::Invalid(format!("`tracing.ca`: {reason}"));
        let mut http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE);
        if let Some(ca) = &config.ca {
            let roots = load_roots("tracing.ca", ca).map_err(|e| ConfigError::Invalid(e.to_string()))?;
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
                .map_err(|e| fail(e.to_string()))?
                .with_root_certificates(roots)
                .with_no_client_auth();
            http = http.tls_backend_preconfigured(tls).https_only(true);
        }
        let http = http.build().map_err(|e| fail(e.to_string()))?;
        let headers = headers(config)?;
        Ok(Self { http, headers, runtime: Handle::current(), failing: AtomicBool::new(false) })
    }

    /// Counts failures. Logs once when the collector becomes unreachable and once when it is back.
    fn note(&self, error: Option<&str>) {
        let outcome = if error.is_none() { "ok" } else { "failed" };
        metrics::counter!(super::TRACE_EXPORTS, "outcome" => outcome).increment(1);
        match (error, self.failing.swap(error.is_some(), Ordering::Relaxed)) {
            (Some(error), false) => {
                tracing::warn!(
                    error,
                    "traces cannot be sent to the collector; they are dropped until it is back"
                );
            }
            (None, true) => tracing::info!("traces are sent to the collector again"),
            _ => {}
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request = reqwest::Request::try_from(request)?;
        request.headers_mut().extend(self.headers.clone());
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            let answer = http.execute(request).await?;
            // What the collector says beside its status is of no interest, and could be of any length.
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = answer.status();
            Ok::<_, reqwest::Error>(response)
        });
        let outcome: Result<Response<Bytes>, HttpError> = match sent.await {
            Ok(answered) => answered.map_err(|error| error.without_url().into()),
            Err(error) => Err(error.into()),
        };
        match &outcome {
            Ok(response) if response.status().is_success() => self.note(None),
            Ok(response) => self.note(Some(&format!("it answered {}", response.status().as_u16()))),
            Err(error) => self.note(Some(&error.to_string())),
        }
        outcome
    }
}

/// Links a request's span with the span that the caller says it comes from: its header `traceparent` (W3C Trace
/// Context). Anything else in it is ignored.
pub fn link(span: &tracing::Span, traceparent: Option<&str>) {
    if let Some(context) = traceparent.and_then(read_traceparent) {
        span.add_link(context);
    }
}

fn read_traceparent(text: &str) -> Option<SpanContext> {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags] = parts[..] else { return None };
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    if version != "00" || !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, TraceFlags::default(), true, TraceState::default());
    context.is_valid().then_some(context)
}

/// Records, as a part of a request's span, what lies before it: the handshake of its connection.
pub(super) fn handshake(
    request: &tracing::Span,
    began: DateTime<Utc>,
    took: Duration,
    version: &'static str,
) {
    let Some(tracer) = TRACER.get() else { return };
    let began = SystemTime::from(began);
    let mut span = tracer
        .span_builder("TLS handshake")
        .with_kind(SpanKind::Internal)
        .with_start_time(began)
        .with_attributes([KeyValue::new("tls.protocol.version", version)])
        .start_with_context(tracer, &request.context());
    span.end_with_timestamp(began + took);
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn only_a_well_formed_traceparent_becomes_a_link() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = read_traceparent(good).unwrap();
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(!context.is_sampled() && context.is_remote());
        for wrong in [
            "",
            "00",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert!(read_traceparent(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_line_that_is_no_header_is_named_and_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("headers");
        let mut config =
            Tracing { endpoint: String::new(), ratio: 1.0, headers_file: Some(path.clone()), ca: None };
        std::fs::write(&path, "Authorization: Bearer secret\n\nX-Scope: efgs\n").unwrap();
        let read = headers(&config).unwrap();
        assert_eq!((read.len(), read["Authorization"].to_str().unwrap()), (2, "Bearer secret"));
        assert!(!format!("{read:?}").contains("secret"), "{read:?}");
        std::fs::write(&path, "X-Scope: efgs\nBearer secret\n").unwrap();
        let error = headers(&config).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
        config.headers_file = None;
        assert!(headers(&config).unwrap().is_empty());
    }
}
