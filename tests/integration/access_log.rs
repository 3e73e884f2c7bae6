//! The record of every request: written before the answer, and whole.

use std::{
    process::{Command, Output},
    sync::atomic::{AtomicUsize, Ordering},
};

use efgs_gateway::access_log::{
    Signer,
    verify::{Evidence, VerificationReport, verify},
};
use efgs_protocol::wire;
use sea_orm::QueryResult;
use serde_json::{Value, json};

use crate::{
    client::{Answer, Client, JSON, Request, all_at_once, join, keys, pick},
    harness::{Case, PKI, Running, country, participant, tests, until},
    process::{Process, end_leases},
};

tests![
    every_request_is_recorded_with_who_what_and_which_result,
    a_request_whose_sender_went_away_is_recorded,
    what_cannot_be_recorded_is_not_answered,
    the_totals_are_the_sum_of_the_log,
    ten_thousand_mixed_requests_on_two_gateways,
    every_answer_before_kill_9_is_in_the_log,
];

/// The record of an answer; it is there before the answer is.
async fn record_of(case: &Case, answer: &Answer) -> Value {
    case.recorded().await;
    let id = answer.header("x-request-id").unwrap();
    let app_rows = case.db.rows(&format!("SELECT * FROM access_log WHERE request_id = '{id}'")).await;
    assert_eq!(app_rows.len(), 1, "{id}");
    let row = &app_rows[0];
    let text = |column: &str| row.try_get::<Option<String>>("", column).unwrap();
    let bytes = |column: &str| row.try_get::<Option<Vec<u8>>>("", column).unwrap();
    json!({
        "country": text("country"),
        "thumbprint": bytes("thumbprint").map(|bytes| efgs_gateway::access_log::hex(&bytes)),
        "operation": text("operation"),
        "method": text("method"),
        "path": text("path"),
        "tag": bytes("tag").map(|bytes| String::from_utf8(bytes).unwrap()),
        "date": text("asked_date"),
        "status": row.try_get::<i16>("", "status").unwrap(),
        "error": text("error"),
        "keys": row.try_get::<Option<i32>>("", "key_count").unwrap(),
        "origins": text("origins").map(|text| serde_json::from_str::<Value>(&text).unwrap()),
        "requests": row.try_get::<Option<i64>>("", "request_count").unwrap(),
        "requestBytes": row.try_get::<i64>("", "request_bytes").unwrap(),
        "responseBytes": row.try_get::<i64>("", "response_bytes").unwrap(),
    })
}

/// Compares the fields that are given.
#[track_caller]
fn assert_says(record: &Value, fields: Value) {
    for (name, value) in fields.as_object().unwrap() {
        assert_eq!(&record[name], value, "{name} of {record}");
    }
}

async fn every_request_is_recorded_with_who_what_and_which_result(case: &Case) {
    let gateway = case.gateway().await;
    let (de, nl) = (gateway.client("DE"), gateway.client("NL"));
    let thumbprint = participant("DE").authentication.certificate.thumbprint().to_string();
    let today = case.today().to_string();

    let german = keys(country("DE"), 3, case.clock.now());
    let request = de.request("de-1", &german);
    let bytes = request.body.len();
    let record = record_of(case, &de.send(request).await.expect(201)).await;
    let upload = json!({
        "country": "DE", "thumbprint": thumbprint, "operation": "upload", "method": "POST",
        "path": "/diagnosiskeys/upload", "tag": "de-1", "status": 201, "error": null, "keys": 3,
        "origins": {"DE": 3}, "requestBytes": bytes, "responseBytes": 0,
    });
    assert_says(&record, upload);
    // Again: answered alike, but nothing is stored.
    let record = record_of(case, &de.upload("de-1", &german).await.expect(201)).await;
    assert_says(&record, json!({"status": 201, "keys": 0, "origins": {"DE": 0}}));
    let more = join(&[&pick(&german, [1]), &keys(country("DE"), 1, case.clock.now())]);
    let record = record_of(case, &de.upload("de-2", &more).await.expect(207)).await;
    assert_says(&record, json!({"status": 207, "keys": 0, "tag": "de-2"}));
    let record = record_of(case, &de.upload("de-1", &more).await.expect(409)).await;
    assert_says(&record, json!({"status": 409, "error": "upload-tag-taken", "keys": 0}));
    nl.upload_new("nl-1", 2, case.clock.now()).await;
    let batch = gateway.form().await.remove(0);

    let answer = nl.download(case.today(), None).await.expect(200);
    let download = json!({
        "country": "NL", "operation": "download", "method": "GET", "tag": batch, "date": today, "status": 200,
        "path": "/diagnosiskeys/download/{date}", "keys": 3, "origins": {"DE": 3},
        "requestBytes": 0, "responseBytes": answer.body.len(),
    });
    assert_says(&record_of(case, &answer).await, download);
    let again = Client::download_request(case.today(), Some(&batch))
        .header("If-None-Match", answer.header("etag").unwrap());
    let record = record_of(case, &nl.send(again).await.expect(304)).await;
    assert_says(&record, json!({"status": 304, "keys": null, "tag": batch, "responseBytes": 0}));
    let record = record_of(case, &nl.audit(case.today(), &batch).await.expect(200)).await;
    let path = "/diagnosiskeys/audit/download/{date}/{batchTag}";
    assert_says(&record, json!({"operation": "audit", "path": path, "tag": batch, "date": today}));
    let answer = nl.send(Request::new("DELETE", "/diagnosiskeys/upload/nl-1")).await.expect(200);
    let withdrawal =
        json!({"operation": "withdraw", "method": "DELETE", "tag": "nl-1", "keys": 2, "origins": {"NL": 2}});
    assert_says(&record_of(case, &answer).await, withdrawal);
    let record = record_of(case, &nl.send(Request::new("OPTIONS", wire::ROOT_PATH)).await.expect(200)).await;
    assert_says(
        &record,
        json!({"operation": "options", "method": "OPTIONS", "country": null, "status": 200}),
    );
    let record = record_of(case, &nl.send(Request::get(wire::CALLBACK_PATH)).await.expect(200)).await;
    assert_says(&record, json!({"operation": "callback-list", "country": "NL", "status": 200}));

    // Refused requests and rejected callers.
    let record = record_of(case, &nl.send(Request::get("/etc/passwd?x=1")).await.expect(404)).await;
    assert_says(&record, json!({"operation": "other", "path": null, "status": 404, "error": "no-such-path"}));
    let record = record_of(case, &nl.send(Request::get(wire::UPLOAD_PATH)).await.expect(405)).await;
    assert_says(&record, json!({"operation": "upload", "status": 405, "error": "method-not-allowed"}));
    let request = de.request("de-3", &german).header("Content-Type", "text/plain");
    let record = record_of(case, &de.send(request).await.expect(406)).await;
    assert_says(&record, json!({"status": 406, "error": "not-acceptable", "country": "DE", "tag": "de-3"}));
    let unregistered = efgs_test_ca::Pki::new(efgs_test_ca::KeyKind::Ec256).unwrap();
    let unregistered = unregistered.participant(country("DE")).unwrap().authentication;
    let unregistered = gateway.client_with(Some(&unregistered), "DE");
    let answer = unregistered.upload("x", &german).await.expect(403);
    unregistered.upload("y", &german).await.expect(403);
    // They are counted, and recorded when their minute is over.
    assert_eq!(case.db.number("SELECT COUNT(*) FROM access_log WHERE status = 403").await, 0);
    case.clock.set(case.clock.now() + chrono::TimeDelta::minutes(1));
    until("the minute's records", async || {
        let sql = "SELECT COUNT(*) FROM access_log WHERE status = 403";
        (case.db.number(sql).await == 1).then_some(())
    })
    .await;
    let refused = json!({
        "country": null, "thumbprint": null, "operation": "upload", "method": "*", "path": null, "tag": null,
        "status": 403, "error": "forbidden", "keys": null, "requests": 2,
    });
    assert_says(&record_of(case, &answer).await, refused);

    case.recorded().await;
    // No more than that is kept: no column could hold an address or a key.
    let exported = run(case, &["access-log", "export"]);
    let lines = String::from_utf8(exported.stdout).unwrap();
    assert_eq!(lines.lines().count() as i64, case.db.number("SELECT COUNT(*) FROM access_log").await);
    assert!(!lines.contains("127.0.0.1"), "{lines}");
    for line in lines.lines() {
        // As docs/access-log.md tells others to verify it.
        let cut = line.find(",\"previous\":").unwrap();
        let record: Value = serde_json::from_str(line).unwrap();
        let previous = openssl::bn::BigNum::from_hex_str(record["previous"].as_str().unwrap()).unwrap();
        let mut hashed = previous.to_vec_padded(32).unwrap();
        hashed.extend(format!("{}}}", &line[..cut]).into_bytes());
        let hash = efgs_gateway::access_log::hex(&openssl::sha::sha256(&hashed));
        assert_eq!(record["hash"], hash.as_str());
    }
    let german = run(case, &["access-log", "export", "--country", "DE", "--from", &today, "--to", &today]);
    let german = String::from_utf8(german.stdout).unwrap();
    assert!(
        german.lines().count() == 5 && german.lines().all(|line| line.contains("\"country\":\"DE\"")),
        "{german}"
    );
    let backwards = run(case, &["access-log", "export", "--from", "2026-11-30", "--to", "2026-11-01"]);
    let said = String::from_utf8(backwards.stderr).unwrap();
    assert!(!backwards.status.success() && said.contains("is not before --to"), "{said}");
}

/// Runs a command with this test's configuration.
pub(crate) fn run(case: &Case, arguments: &[&str]) -> Output {
    let config = case.write_config(&case.config_text());
    let mut command = Command::new(env!("CARGO_BIN_EXE_efgs-gateway"));
    command.args(arguments).arg("--config").arg(config).output().unwrap()
}

async fn a_request_whose_sender_went_away_is_recorded(case: &Case) {
    let gateway = case.gateway().await;
    let de = gateway.client("DE");
    let keys = keys(country("DE"), 2, case.clock.now());
    // Somebody else holds the database, until the sender has gone.
    let raw = de.request("a", &keys).raw();
    let limits = &gateway.app.limits;
    let post = actix_web::http::Method::POST;
    let turns = [0, 1, 2, 3].map(|_| limits.admit(country("DE"), &post));
    let turns = all_at_once(turns).await;
    let mut connection = de.connect();
    connection.write(&raw).unwrap();
    gateway.client("NL").download(case.today(), None).await.expect(404);
    drop(connection);
    drop(turns);
    let row: QueryResult = until("the record", async || {
        case.db.rows("SELECT * FROM access_log WHERE operation = 'upload'").await.pop()
    })
    .await;
    let status: i16 = row.try_get("", "status").unwrap();
    let stored = case.db.counts().await[1];
    let keys: Option<i32> = row.try_get("", "key_count").unwrap();
    assert!(status == 499 || status == 201, "{status}");
    assert_eq!(i64::from(keys.unwrap_or(0)), stored);
}

async fn what_cannot_be_recorded_is_not_answered(case: &Case) {
    let gateway =
        case.gateway_with(|config| config.database.timeout = std::time::Duration::from_secs(2)).await;
    let de = gateway.client("DE");
    de.upload_new("a", 1, case.clock.now()).await;
    let spool = case.folder.path().join("spool");
    if case.spool {
        std::fs::rename(&spool, case.folder.path().join("away")).unwrap();
        std::fs::remove_dir_all(case.folder.path().join("away")).unwrap();
    } else {
        case.db.execute("ALTER TABLE access_log RENAME TO away").await;
    }
    let keys = keys(country("DE"), 2, case.clock.now());
    let refused = de.upload("b", &keys).await;
    refused.refused(503, "unavailable");
    assert!(refused.header("retry-after").is_some() && refused.header("batchTag").is_none());
    de.download(case.today(), None).await.refused(503, "unavailable");
    if case.spool {
        std::fs::create_dir(&spool).unwrap();
        until("the spool is written again", async || {
            (de.download(case.today(), None).await.status == 404).then_some(())
        })
        .await;
    } else {
        case.db.execute("ALTER TABLE away RENAME TO access_log").await;
    }
    // What was stored without a record is safe to send again.
    let record = record_of(case, &de.upload("b", &keys).await.expect(201)).await;
    assert_says(&record, json!({"status": 201, "tag": "b"}));
    assert_eq!(case.db.counts().await[1], 3);
}

/// The key that every gateway of a test signs with.
pub(crate) fn evidence(case: &Case) -> Evidence {
    let signer = Signer::read(&case.folder.path().join("access-log.key")).unwrap();
    Evidence { keys: vec![signer.public().clone()], ..Evidence::default() }
}

pub(crate) async fn look(case: &Case, evidence: &Evidence) -> VerificationReport {
    case.recorded().await;
    let app = efgs_gateway::server::App::new(case.config(), case.clock.clone(), None).unwrap();
    let report = verify(&app.store, evidence).await.unwrap();
    app.store.clone().close().await;
    report
}

/// Where something was found.
pub(crate) fn places(report: &VerificationReport) -> Vec<(Option<&str>, i64)> {
    report.findings.iter().map(|finding| (finding.instance.as_deref(), finding.sequence)).collect()
}

/// Takes a table back to what it was.
pub(crate) async fn restore(case: &Case, table: &str) {
    case.db.execute(&format!("DELETE FROM {table}")).await;
    case.db.execute(&format!("INSERT INTO {table} SELECT * FROM kept_{table}")).await;
}

/// One request of some kind, by some country.
async fn any_request(case: &Case, gateway: &Running, client: &Client, number: usize) -> Answer {
    let tag = format!("t-{number}");
    match number % 8 {
        0 => client.upload(&tag, &keys(client.country(), 1 + number % 3, case.clock.now())).await,
        1 => client.send(Client::download_request(case.today(), None).header("Accept", JSON)).await,
        2 => client.send(Request::get(wire::CALLBACK_PATH)).await,
        3 => client.send(Request::new("OPTIONS", wire::ROOT_PATH)).await,
        4 => client.send(Request::get("/nowhere")).await,
        5 => client.audit(case.today(), "20200101-1").await,
        6 => client.send(Client::download_request(case.today(), None).header("Accept", "text/plain")).await,
        _ => {
            let unregistered = gateway.client_with(Some(&participant("DE").signing), "DE");
            unregistered.download(case.today(), None).await
        }
    }
}

async fn the_totals_are_the_sum_of_the_log(case: &Case) {
    let gateways = [case.gateway().await, case.gateway().await];
    let (de, nl) = (gateways[0].client("DE"), gateways[1].client("NL"));
    de.upload_new("a", 3, case.clock.now()).await;
    de.upload_new("b", 2, case.clock.now()).await;
    nl.upload_new("a", 4, case.clock.now()).await;
    gateways[0].form().await;
    nl.download(case.today(), None).await.expect(200);
    let answer = gateways[0].client("NL").download(case.today(), None).await.expect(200);
    let again =
        Client::download_request(case.today(), None).header("If-None-Match", answer.header("etag").unwrap());
    nl.send(again).await.expect(304);
    de.send(Request::new("DELETE", "/diagnosiskeys/upload/a")).await.expect(200);
    case.recorded().await;
    let today = case.today();
    let rows = gateways[0].app.store.statistics(today, today, Some("NL")).await.unwrap();
    let dutch = &rows[&(today, "NL".to_owned())];
    assert_eq!((dutch.downloads, dutch.unchanged, dutch.download_keys), (2, 1, 10), "{dutch:?}");
    assert_eq!(dutch.last_download_at, Some(case.clock.now()));
    let seen = gateways[0].app.store.last_seen().await.unwrap();
    assert_eq!(seen["DE"].upload, Some(case.clock.now()));
    for (i, code) in (0..32).zip(["DE", "NL", "IT", "IE"].into_iter().cycle()) {
        let gateway = &gateways[i / 16];
        any_request(case, gateway, &gateway.client(code), i).await;
    }
    assert_totals(case).await;
    // The same as a person and as a program sees it.
    let day = today.to_string();
    let output = run(case, &["report", "--from", &day, "--to", &day, "--country", "DE", "--json"]);
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_says(&rows[0], json!({"country": "DE", "withdrawals": 1, "withdrawnKeys": 3, "batches": 1}));
    let text =
        String::from_utf8(run(case, &["report", "--from", &day, "--to", &day, "--csv"]).stdout).unwrap();
    assert!(
        text.starts_with("day,country,requests,uploads") && text.contains(&format!("{day},--,")),
        "{text}"
    );
    let text = String::from_utf8(run(case, &["report", "--from", &day, "--to", &day]).stdout).unwrap();
    // Both countries have keys in the one batch; nobody is told that there were two.
    let column = text.lines().next().unwrap().find("BATCHES").unwrap();
    let (total, rows) = text.lines().collect::<Vec<_>>().split_last().map(|(a, b)| (*a, b.to_vec())).unwrap();
    let batches = |line: &str| line[column..column + "BATCHES".len()].trim().to_owned();
    assert!(rows.iter().filter(|row| batches(row) == "1").count() >= 2, "{text}");
    assert!(total.starts_with("total") && batches(total) == "-", "{text}");
}

/// Every total against a sum over the log.
async fn assert_totals(case: &Case) {
    case.recorded().await;
    let kept = "operation = 'upload' AND key_count > 0";
    for (column, sum, condition) in [
        ("requests", "COALESCE(request_count, 1)", "1 = 1"),
        ("uploads", "1", kept),
        ("upload_keys", "key_count", kept),
        ("upload_bytes", "request_bytes", kept),
        ("withdrawn_keys", "key_count", "operation = 'withdraw' AND key_count > 0"),
        ("downloads", "1", "operation = 'download' AND status = 200"),
        ("unchanged", "1", "operation = 'download' AND status = 304"),
        ("download_keys", "key_count", "operation = 'download' AND status = 200"),
        ("download_bytes", "response_bytes", "operation = 'download' AND status = 200"),
        ("audits", "1", "operation = 'audit' AND status = 200"),
        ("client_errors", "COALESCE(request_count, 1)", "status BETWEEN 400 AND 499"),
        ("server_errors", "COALESCE(request_count, 1)", "status >= 500"),
    ] {
        let all = "SELECT DISTINCT country FROM statistic";
        for country in case.db.column::<String>(all).await {
            let total = format!(
                "SELECT COUNT(*) FROM statistic WHERE country = '{country}' AND (SELECT COALESCE(SUM({column}), 0) \
                 FROM statistic WHERE country = '{country}') <> (SELECT COALESCE(SUM({sum}), 0) FROM access_log \
                 WHERE COALESCE(country, '--') = '{country}' AND {condition})"
            );
            assert_eq!(case.db.number(&total).await, 0, "{column} of {country}");
        }
    }
    // Batches are not in the log.
    for country in ["DE", "NL", "IT", "IE"] {
        let of = |sql: &str| format!("{sql} WHERE country = '{country}'");
        let counted =
            case.db.number(&of("SELECT CAST(COALESCE(SUM(batches), 0) AS SIGNED) FROM statistic")).await;
        let formed = case.db.number(&of("SELECT COUNT(DISTINCT batch_id) FROM upload")).await;
        assert_eq!(counted, formed, "batches of {country}");
    }
}

async fn ten_thousand_mixed_requests_on_two_gateways(case: &Case) {
    let amount: usize =
        std::env::var("EFGS_TEST_REQUESTS").ok().and_then(|text| text.parse().ok()).unwrap_or(320);
    let gateways = [case.gateway().await, case.gateway().await];
    let codes = ["DE", "NL", "IT", "IE", "FR", "ES", "PL", "AT"];
    let mut new = std::collections::HashMap::new();
    for code in &codes[4..] {
        let participant = PKI.participant(country(code)).unwrap();
        gateways[0].register(&[&participant.authentication, &participant.signing]).await;
        gateways[1].reload().await;
        new.insert(*code, participant);
    }
    let client = |at: usize, code: &str| match new.get(code) {
        Some(one) => Client::new(gateways[at].address, Some(&one.authentication), one.signing.clone()),
        None => gateways[at].client(code),
    };
    let clients = codes.map(|code| [client(0, code), client(1, code)]);
    let each = amount / codes.len();
    let answers = all_at_once(clients.iter().enumerate().map(|(i, clients)| {
        let gateways = &gateways;
        async move {
            let mut ids = Vec::new();
            for number in 0..each {
                let at = (number + i) % 2;
                let answer = any_request(case, &gateways[at], &clients[at], number).await;
                // Unregistered callers are counted.
                if answer.status != 403 {
                    ids.push(answer.header("x-request-id").unwrap().to_owned());
                }
            }
            ids
        }
    }))
    .await;
    for gateway in &gateways {
        case.stop(gateway).await;
    }
    let single = "SELECT request_id FROM access_log WHERE request_count IS NULL";
    let logged: std::collections::HashSet<String> =
        case.db.column::<String>(single).await.into_iter().collect();
    let answered: Vec<&String> = answers.iter().flatten().collect();
    assert!(answered.iter().all(|id| logged.contains(*id)));
    assert_eq!(logged.len(), answered.len());
    // One for each gateway.
    let counted =
        case.db.column::<i64>("SELECT request_count FROM access_log WHERE request_count IS NOT NULL").await;
    assert_eq!(counted.len(), 2);
    assert_eq!(answered.len() + counted.iter().sum::<i64>() as usize, each * codes.len());
    assert_totals(case).await;
    let evidence = evidence(case);
    let report = look(case, &evidence).await;
    assert_eq!((report.records as usize, &report.findings[..]), (logged.len() + 2, &[][..]));
    // A byte flipped, a row deleted, two rows swapped: each is named.
    let [first, second] = [0, 1].map(|at| gateways[at].app.instance.id.clone());
    let row =
        |instance: &str, sequence: i64| format!("WHERE instance = '{instance}' AND sequence = {sequence}");
    for sql in [
        "CREATE TABLE kept_access_log AS SELECT * FROM access_log".to_owned(),
        format!("UPDATE access_log SET response_bytes = response_bytes + 1 {}", row(&first, 7)),
        format!("DELETE FROM access_log {}", row(&second, 20)),
        format!("UPDATE access_log SET sequence = -1 {}", row(&second, 30)),
        format!("UPDATE access_log SET sequence = 30 {}", row(&second, 40)),
        format!("UPDATE access_log SET sequence = 40 {}", row(&second, -1)),
    ] {
        case.db.execute(&sql).await;
    }
    let report = look(case, &evidence).await;
    let mut found = places(&report);
    found.sort_unstable();
    let mut expected =
        vec![(Some(first.as_str()), 7), (Some(&*second), 20), (Some(&*second), 30), (Some(&*second), 40)];
    expected.sort_unstable();
    assert_eq!(found, expected, "{report:?}");
    restore(case, "access_log").await;
    assert_eq!(look(case, &evidence).await.findings, []);
}

async fn every_answer_before_kill_9_is_in_the_log(case: &Case) {
    case.prepare().await;
    let rounds: usize =
        std::env::var("EFGS_TEST_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let config = case.write_config(&case.config_text());
    let mut answered: Vec<String> = Vec::new();
    for _ in 0..rounds.div_ceil(2) {
        let mut process = Process::start(&config);
        let clients = ["DE", "IT", "IE", "NL", "DE", "IT"].map(|code| process.client(code));
        let answers = AtomicUsize::new(0);
        let asking = all_at_once(clients.iter().map(async |client| {
            let mut ids = Vec::new();
            for _ in 0.. {
                let today = efgs_gateway::clock::Clock::system().now().date_naive();
                match client.try_send(Client::download_request(today, None)).await {
                    Ok(answer) => {
                        answers.fetch_add(1, Ordering::Relaxed);
                        ids.push(answer.header("x-request-id").unwrap().to_owned());
                    }
                    Err(_) => break,
                }
            }
            ids
        }));
        let killing = async {
            let enough = rand::random_range(10..60);
            until("some answers", async || (answers.load(Ordering::Relaxed) > enough).then_some(())).await;
            process.kill();
        };
        let (ids, ()) = futures_util::future::join(asking, killing).await;
        answered.extend(ids.into_iter().flatten());
        end_leases(case).await;
    }
    // The next start ships what is left.
    let process = Process::start(&config);
    until("nothing is left", async || {
        let folders = std::fs::read_dir(case.folder.path().join("spool"));
        folders.map_or(true, |folders| folders.count() == 1).then_some(())
    })
    .await;
    process.stop().await;
    let logged: std::collections::HashSet<String> =
        case.db.column::<String>("SELECT request_id FROM access_log").await.into_iter().collect();
    let lost: Vec<&String> = answered.iter().filter(|id| !logged.contains(*id)).collect();
    assert!(answered.len() > 10 && lost.is_empty(), "{} answers, lost: {lost:?}", answered.len());
    assert_eq!(look(case, &Evidence::default()).await.findings, []);
}
