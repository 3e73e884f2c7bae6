//! Traces: what a collector gets of an upload and a download, and that its absence disturbs nobody.

use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};

use crate::{
    client::{Answer, Client, Request, keys},
    collector::{Collector, attribute},
    free_port::free_port,
    harness::{Case, country, tests, until},
    process::{Process, now},
};

tests![
    a_request_is_traced_from_the_handshake_to_the_database,
    a_collector_that_is_away_disturbs_nobody,
    without_a_collector_nothing_is_traced,
];

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn config(case: &Case, tracing: &str) -> std::path::PathBuf {
    let text = case.config_text().replace("interval = \"1000d\"", "interval = \"200ms\"");
    case.write_config(&format!("{text}{tracing}"))
}

/// The newest batch, when there is one.
async fn downloaded(client: &Client) -> Answer {
    until("a batch", async || {
        let answer = client.download(now().date_naive(), None).await;
        (answer.status == 200).then_some(answer)
    })
    .await
}

/// The trace that a request began.
struct Trace {
    root: Span,
    spans: Vec<Span>,
}

impl Trace {
    fn of(collector: &Collector, answer: &Answer) -> Self {
        let id = answer.header("x-request-id").unwrap();
        let spans = collector.spans();
        let root = spans.iter().find(|span| attribute(span, "request_id").as_deref() == Some(id));
        let root = root.unwrap_or_else(|| panic!("no trace of the request {id}")).clone();
        let spans = spans.into_iter().filter(|span| span.trace_id == root.trace_id).collect();
        Self { root, spans }
    }

    /// The span of this name, and the names of those around it up to the root.
    fn find(&self, name: &str) -> (&Span, Vec<&str>) {
        let names: Vec<&str> = self.spans.iter().map(|span| span.name.as_str()).collect();
        let found = self.spans.iter().find(|span| span.name == name);
        let found = found.unwrap_or_else(|| panic!("no span {name} in {names:?}"));
        let (mut around, mut at) = (Vec::new(), found);
        while at.span_id != self.root.span_id {
            at = self.spans.iter().find(|span| span.span_id == at.parent_span_id).unwrap();
            around.push(at.name.as_str());
        }
        (found, around)
    }
}

async fn a_request_is_traced_from_the_handshake_to_the_database(case: &Case) {
    case.prepare().await;
    let collector = Collector::start().await;
    std::fs::write(case.folder.path().join("headers"), "Authorization: Bearer x%20y\n").unwrap();
    let tracing = format!(
        "[tracing]\nendpoint = \"http://{}/v1/traces\"\nheaders_file = \"headers\"\n",
        collector.address
    );
    // So rarely that all that comes is what is sent at the end.
    let rarely = [("OTEL_BSP_SCHEDULE_DELAY", "600000")];
    let process = Process::start_with(&config(case, &tracing), &rarely);

    let (de, nl) = (process.client("DE"), process.client("NL"));
    let sent = keys(country("DE"), 3, now());
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let request = de.request("secret-tag", &sent).header("traceparent", traceparent);
    // Both on one connection.
    let mut connection = de.connect();
    let mut ask = |request: Request| {
        connection.write(&request.raw()).unwrap();
        connection.answer().expect(201)
    };
    let (uploaded, again) = (ask(request), ask(de.request("secret-tag", &sent)));
    let downloaded = downloaded(&nl).await;
    process.stop().await;

    assert!(collector.heads().iter().all(|head| head.contains("authorization: bearer x%20y\r\n")));
    let upload = Trace::of(&collector, &uploaded);
    assert_eq!((upload.root.name.as_str(), upload.root.kind()), ("upload", SpanKind::Server));
    assert!(upload.root.parent_span_id.is_empty(), "what a caller sends is nobody's parent");
    let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_ne!(hex(&upload.root.trace_id), TRACE);
    assert_eq!(upload.root.links.iter().map(|link| hex(&link.trace_id)).collect::<Vec<_>>(), [TRACE]);
    for (name, value) in [("caller", "DE"), ("http.response.status_code", "201")] {
        assert_eq!(attribute(&upload.root, name).as_deref(), Some(value), "{name}");
    }
    for name in ["decode", "verify", "encrypt", "TLS handshake", "access log"] {
        assert_eq!(upload.find(name).1, ["upload"], "{name}");
    }
    let (handshake, _) = upload.find("TLS handshake");
    assert!(handshake.end_time_unix_nano > handshake.start_time_unix_nano);
    let stored = upload.spans.iter().find(|span| attribute(span, "db.operation.name").is_some()).unwrap();
    assert_eq!((stored.name.as_str(), stored.kind()), ("upload", SpanKind::Client));
    assert_eq!(stored.parent_span_id, upload.root.span_id);
    // The handshake is told once, not with each request of its connection.
    let again = Trace::of(&collector, &again);
    assert!(again.spans.iter().all(|span| span.name != "TLS handshake"));

    let download = Trace::of(&collector, &downloaded);
    assert_eq!(download.find("read payloads").1, ["build batch", "download"]);
    assert_eq!(attribute(&download.root, "caller").as_deref(), Some("NL"));

    let bytes = collector.bytes();
    let has = |secret: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
    assert!(has(b"decode") && !has(b"secret-tag"));
    assert!(sent.iter().all(|key| !has(key.key_data.as_bytes())));
}

async fn a_collector_that_is_away_disturbs_nobody(case: &Case) {
    case.prepare().await;
    let tracing = format!("[tracing]\nendpoint = \"http://127.0.0.1:{}/v1/traces\"\n", free_port());
    let process = Process::start_with(&config(case, &tracing), &[("OTEL_BSP_SCHEDULE_DELAY", "50")]);
    process.client("DE").upload_new("1", 1, now()).await;
    downloaded(&process.client("NL")).await;
    until("a failed export", async || {
        let metrics = process.metrics().await;
        metrics.contains("efgs_trace_exports_total{outcome=\"failed\"}").then_some(())
    })
    .await;
    process.stop().await;
}

async fn without_a_collector_nothing_is_traced(case: &Case) {
    case.prepare().await;
    let process = Process::start(&config(case, ""));
    process.client("DE").upload_new("1", 1, now()).await;
    assert!(!process.metrics().await.contains("efgs_trace_exports_total"));
    process.stop().await;
}
