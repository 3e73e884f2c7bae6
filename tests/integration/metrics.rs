//! What a gateway exports, compared with what `docs/metrics.md` promises, and used by a real Prometheus as the dashboard
//! and the alert rules use it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::TcpStream,
};

use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode, SslVersion};

use crate::{
    callback::put,
    callback_server::{Behaviour, CallbackServer},
    client::{Client, Request, keys},
    collector::Collector,
    database::Kind,
    harness::{Case, PKI, country, participant, tests, until},
    process::{Process, now},
    prometheus::{Prometheus, dashboard_queries},
    upload::sha1_request,
};

tests![
    what_is_exported_is_documented_and_what_is_documented_is_exported,
    every_query_of_the_dashboard_and_of_the_alerts_is_understood_and_finds_something,
    a_caller_who_does_not_get_in_is_counted_and_logged_with_its_address,
];

/// A gateway that has done each thing once, and those that it calls.
async fn gateway_that_has_done_everything(case: &Case) -> (Process, (CallbackServer, Collector)) {
    case.prepare().await;
    let collector = Collector::start().await;
    let text = case.config_text().replace("interval = \"1000d\"", "interval = \"200ms\"");
    let config = format!(
        "{text}[retention]\ninterval = \"200ms\"\n[participants.IE]\nallow_sha1_signatures = true\nkeys_per_day = 2\n\
         [callback]\ncertificate = \"callback-client.pem\"\nprivate_key = \"callback-client.key\"\n\
         allowed_networks = [\"127.0.0.0/8\"]\n[journal]\nfolder = \"journal\"\n\
         [download]\ndisk_cache = \"1MiB\"\n[tracing]\nendpoint = \"http://{}/v1/traces\"\n",
        collector.address
    );
    // The database is its own replica.
    let config = match case.db.kind {
        Kind::Sqlite => config,
        _ => config.replace("[database]\n", &format!("[database]\nread_urls = [\"{}\"]\n", case.db.url)),
    };
    std::fs::create_dir(case.folder.path().join("journal")).unwrap();
    let process = Process::start_with(&case.write_config(&config), &[("OTEL_BSP_SCHEDULE_DELAY", "100")]);
    let today = now().date_naive();
    // It does not download: batches that it has are not announced.
    let server = CallbackServer::start(&participant("IT").callback, Behaviour::Answer(200)).await;
    put(&process.client("IT"), "a", &server.url()).await.expect(200);

    let (de, ie, nl) = (process.client("DE"), process.client("IE"), process.client("NL"));
    de.upload_new("1", 3, now()).await;
    let sha1 = keys(country("IE"), 2, now());
    ie.send(sha1_request(case, &ie, "1", &sha1)).await.expect(201);
    ie.upload("2", &keys(country("IE"), 1, now())).await.refused(429, "quota-exceeded");
    let batch = until("a batch", async || {
        let answer = nl.download(today, None).await;
        (answer.status == 200).then(|| answer.tag())
    })
    .await;
    nl.download(today, Some(&batch)).await.expect(200);
    nl.audit(today, &batch).await.expect(200);
    nl.send(Request::new("OPTIONS", "/diagnosiskeys")).await.expect(200);
    nl.send(Request::get("/nowhere")).await.expect(404);
    until("a callback", async || server.tags().first().cloned()).await;
    until("an export of traces", async || collector.heads().first().cloned()).await;
    (process, (server, collector))
}

/// A metric: its type, its labels, its meaning.
type Metrics = BTreeMap<String, (String, BTreeSet<String>, String)>;

/// Reads Prometheus's text format. Labels of the format itself (`le`) are left out.
fn read_exposition(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => metrics.entry(name.into()).or_default().2 = help.into(),
            ["#", "TYPE", name, kind] => metrics.entry(name.into()).or_default().0 = kind.into(),
            _ => {
                let (sample, _) = line.rsplit_once(' ').unwrap();
                let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
                let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                let name = stem.filter(|stem| metrics.contains_key(*stem)).unwrap_or(name);
                let labels =
                    labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split_once('='));
                let labels = labels.map(|(name, _)| name.to_owned()).filter(|name| name != "le");
                metrics.get_mut(name).unwrap_or_else(|| panic!("{name} has no TYPE")).1.extend(labels);
            }
        }
    }
    metrics
}

/// Reads the table of `docs/metrics.md`.
fn read_documentation() -> Metrics {
    let text = include_str!("../../docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_end_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, _, meaning] = cells[..] else { panic!("{row}") };
        let labels = labels.split(", ").filter(|label| !label.is_empty()).map(str::to_owned).collect();
        (name.trim_end_matches('`').to_owned(), (kind.to_owned(), labels, meaning.to_owned()))
    })
    .collect()
}

async fn what_is_exported_is_documented_and_what_is_documented_is_exported(case: &Case) {
    let (process, _others) = gateway_that_has_done_everything(case).await;
    let exported = read_exposition(&process.metrics().await);
    let documented = read_documentation();
    for (name, metric) in exported.iter().filter(|(name, _)| name.starts_with("efgs_")) {
        let expected = documented.get(name);
        let expected = expected.unwrap_or_else(|| panic!("{name} is exported, but not in docs/metrics.md"));
        assert_eq!(metric, expected, "{name}: exported, and documented");
    }
    for name in documented.keys() {
        // How much virtual memory there may be is exported only where there is a limit.
        let no_replicas = case.db.kind == Kind::Sqlite && name == "efgs_replica_reads_total";
        let optional = name == "process_virtual_memory_max_bytes" || no_replicas;
        assert!(optional || exported.contains_key(name), "{name} is documented, but not exported");
    }
    process.stop().await;
}

async fn every_query_of_the_dashboard_and_of_the_alerts_is_understood_and_finds_something(case: &Case) {
    let Some(installed) = Prometheus::installed() else { return };
    let (process, _others) = gateway_that_has_done_everything(case).await;
    let prometheus = Prometheus::start(installed, process.admin).await;
    // Something must have happened between two looks for there to be a rate.
    prometheus.scraped().await;
    process.client("DE").upload_new("2", 1, now()).await;
    process.client("NL").download(now().date_naive(), None).await.expect(200);
    prometheus.scraped().await;
    let queries = dashboard_queries();
    assert!(queries.len() > 30, "{}", queries.len());
    for (panel, query) in queries {
        let found = prometheus.query(&query).await;
        let value = |sample: &serde_json::Value| sample["value"][1].as_str().unwrap().to_owned();
        assert!(
            found.iter().any(|sample| value(sample) != "NaN"),
            "the panel {panel:?} is empty: {query}: {found:?}"
        );
    }
    let rules = prometheus.rules().await;
    assert!(rules.len() > 20 && rules.values().all(|health| health == "ok"), "{rules:?}");
    let silent = prometheus.query("ALERTS{alertname!=\"EfgsWatchdog\", alertstate=\"firing\"}").await;
    assert!(silent.is_empty(), "a gateway that is well raises no alarm: {silent:?}");
    assert_eq!(prometheus.query("ALERTS{alertname=\"EfgsWatchdog\"}").await.len(), 1);
    process.stop().await;
}

async fn a_caller_who_does_not_get_in_is_counted_and_logged_with_its_address(case: &Case) {
    case.prepare().await;
    let process = Process::start(&case.write_config(&case.config_text()));
    let port = process.port;
    let shake = |change: &dyn Fn(&mut SslConnectorBuilder)| {
        let mut builder = SslConnector::builder(SslMethod::tls()).unwrap();
        builder.set_verify(SslVerifyMode::NONE);
        change(&mut builder);
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        if let Ok(mut stream) = builder.build().connect("localhost", stream) {
            // In TLS 1.3 a client is told only when it reads.
            drop(stream.read(&mut [0; 1]));
        }
    };
    shake(&|_| {});
    shake(&|_| {});
    shake(&|builder| builder.set_verify(SslVerifyMode::PEER));
    shake(&|builder| {
        builder.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
        builder.set_min_proto_version(Some(SslVersion::TLS1)).unwrap();
        builder.set_max_proto_version(Some(SslVersion::TLS1_1)).unwrap();
    });
    let mut plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
    plain.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    drop(plain.read(&mut [0; 64]));
    drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
    let failed =
        |reason: &str, times| format!("efgs_handshakes_failed_total{{reason=\"{reason}\"}} {times}\n");
    for (reason, times) in [
        ("no-certificate", 2),
        ("server-certificate", 1),
        ("tls-version", 1),
        ("not-tls", 1),
        ("closed", 1),
        ("timeout", 0),
        ("client-certificate", 0),
        ("other", 0),
    ] {
        let line = failed(reason, times);
        until(&line, async || process.metrics().await.contains(&line).then_some(())).await;
    }
    let unknown = PKI.participant(country("FR")).unwrap();
    let unregistered = Client::new(port, Some(&unknown.authentication), unknown.signing.clone());
    for _ in 0..2 {
        unregistered.download(now().date_naive(), None).await.refused(403, "forbidden");
    }
    let de = process.client("DE").signing_with(&unknown.signing);
    de.upload("1", &keys(country("DE"), 1, now())).await.refused(400, "untrusted-signer");
    let metrics = process.metrics().await;
    for (country, operation, code, times) in
        [("-", "download", "forbidden", 2), ("DE", "upload", "untrusted-signer", 1)]
    {
        let line = format!(
            "efgs_requests_refused_total{{country=\"{country}\",operation=\"{operation}\",code=\"{code}\"}} {times}\n"
        );
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    let log = process.log();
    let said = |message: &str, reason: &str| {
        let lines = log.iter().filter(|line| line["level"] == "WARN" && line["message"] == message);
        let lines = lines.filter(|line| line["reason"].as_str().unwrap().contains(reason));
        lines.inspect(|line| assert_eq!(line["peer"], "127.0.0.1")).count()
    };
    for reason in ["no-certificate", "server-certificate", "tls-version", "not-tls"] {
        assert_eq!(said("a TLS handshake failed", reason), 1, "{reason}: {log:?}");
    }
    assert_eq!(said("a TLS handshake failed", "closed"), 0);
    assert_eq!(said("a caller was rejected", "is not registered"), 1, "{log:?}");
    process.stop().await;
}
