//! A database that holds much, on a server of the test's own: all rows that it reads are counted.

use std::time::Duration;

use chrono::TimeDelta;
use efgs_gateway::{rotation, server::App, store::StoreError};

use crate::{
    database::Kind,
    harness::{Case, country, tests, until},
    health::ready,
};

tests![
    a_start_reads_a_bounded_number_of_rows,
    the_chain_is_read_in_pages_and_what_was_read_is_kept,
    the_uploads_of_the_version_before_are_given_their_key_in_steps,
    the_server_ends_a_statement_that_takes_too_long,
    a_migration_may_take_longer_than_a_request,
    without_the_right_to_alter_reads_go_on_and_what_to_do_is_said,
    a_long_statement_delays_expiry_and_stops_nothing_else,
];

/// Uploads of two keys each, a thousand in each batch.
async fn fill(case: &Case, uploads: i64) {
    let now = case.clock.now();
    let (day, at, seconds) = (now.date_naive(), now.naive_utc(), now.timestamp());
    case.db.execute("CREATE TABLE digit (d INT NOT NULL PRIMARY KEY)").await;
    case.db.execute("INSERT INTO digit VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9)").await;
    let numbers = "(SELECT a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d AS n \
                   FROM digit a, digit b, digit c, digit e, digit f) numbers";
    let batch = |n: &str| format!("UNHEX(CONCAT(LPAD(HEX({seconds}), 8, '0'), LPAD(HEX({n}), 16, '0')))");
    let batches = format!(
        "INSERT INTO batch (id, day, sequence, format_major, amount, formed_at) \
         SELECT {}, '{day}', n, 1, 60000, '{at}' FROM {numbers} WHERE n BETWEEN 1 AND {}",
        batch("n"),
        uploads / 1000
    );
    let filled = format!(
        "INSERT INTO upload (id, country, upload_tag, format, format_major, format_minor, amount, payload_bytes, \
         content_hash, batch_signature, uploader_certificate_id, uploader_thumbprint, signing_certificate_id, \
         signing_thumbprint, uploaded_at, batch_id, key_id) \
         SELECT n + 1, 'DE', n, 'protobuf', 1, 0, 2, 8, LPAD(n, 32, '0'), '', 1, LPAD(1, 32, '0'), 1, LPAD(1, 32, '0'), \
         '{at}', {}, 1 FROM {numbers} WHERE n < {uploads}",
        batch("n DIV 1000 + 1")
    );
    let keys = format!(
        "INSERT INTO diagnosis_key (day, upload_id, position, payload_hash, report_type, payload) \
         SELECT DATEDIFF('{day}', '1970-01-01'), u.id, d, LPAD(2 * u.id + d, 32, '0'), 1, X'00000001' \
         FROM upload u JOIN digit ON d < 2"
    );
    for (sql, rows) in [(batches, uploads / 1000), (filled, uploads), (keys, 2 * uploads)] {
        assert_eq!(case.db.execute(&sql).await as i64, rows);
    }
    case.db.rows("ANALYZE TABLE batch, upload, diagnosis_key").await;
}

/// How many rows of tables and indexes the server has read.
async fn reads(case: &Case) -> i64 {
    let rows = case.db.rows("SHOW GLOBAL STATUS LIKE 'Handler\\_read%'").await;
    rows.iter().map(|row| row.try_get_by_index::<String>(1).unwrap().parse::<i64>().unwrap()).sum()
}

async fn a_start_reads_a_bounded_number_of_rows(case: &Case) {
    let gateway = case.gateway().await;
    case.stop(&gateway).await;
    let uploads = 20_000;
    fill(case, uploads).await;
    let before = reads(case).await;
    // What asking costs.
    let asking = reads(case).await - before;
    let count = async |what: &str, begun: i64, at_most: i64| {
        let now = reads(case).await;
        let rows = now - begun - asking;
        assert!(rows <= at_most, "{what}: {rows} rows were read");
        now
    };
    let begun = reads(case).await;
    // With a first turn of each job, and the chain, which reads each upload four times. Reading the keys as well would be
    // 40,000 rows more.
    let gateway = case.gateway().await;
    until("the chain", async || gateway.app.chain.is_loaded().then_some(())).await;
    let begun = count("start", begun, 3000 + 5 * uploads).await;
    gateway.files.all(&case.config()).await;
    let begun = count("reload", begun, 1000).await;
    assert_eq!(rotation::rotate(&gateway.app.store, &gateway.app.keyring, |_| {}).await.unwrap().uploads, 0);
    let begun = count("rotation", begun, 1000).await;
    assert!(gateway.app.expiry.expire_now().await.unwrap().is_empty());
    count("expiry", begun, 1000).await;
}

async fn the_chain_is_read_in_pages_and_what_was_read_is_kept(case: &Case) {
    let gateway = case.gateway().await;
    let uploads = 60_000;
    fill(case, uploads).await;
    let chain = &gateway.app.chain;
    let page = gateway.app.store.batches_after(None, case.today()).await.unwrap();
    assert_eq!((page.batches.len(), page.is_last), (50, false));
    // What cannot be read stands for a database that fails half-way.
    let spoil = |country: &str| format!("UPDATE upload SET country = '{country}' WHERE id = 59500");
    case.db.execute(&spoil("--")).await;
    chain.refresh().await.unwrap_err();
    assert_eq!(chain.len(), 50);
    case.db.execute(&spoil("DE")).await;
    chain.refresh().await.unwrap();
    let batches = chain.newest(usize::MAX);
    assert_eq!(batches.len() as i64, uploads / 1000);
    let ids = batches.iter().rev().flat_map(|batch| batch.uploads.iter().map(|upload| upload.id));
    assert!(ids.eq(1..=uploads));
}

/// Takes the step `m0011` back, except for the view.
pub(crate) async fn to_undivided_keys(case: &Case) {
    let (unique, after) = match case.db.kind {
        Kind::Sqlite => ("UNIQUE (payload_hash)", " WITHOUT ROWID"),
        _ => ("UNIQUE KEY diagnosis_key_payload_hash (payload_hash)", ""),
    };
    for sql in [
        "DROP VIEW document",
        "DROP TABLE key_hash",
        "ALTER TABLE diagnosis_key RENAME TO divided",
        &format!(
            "CREATE TABLE diagnosis_key (upload_id BIGINT NOT NULL, position INT NOT NULL, payload_hash BINARY(32) NOT NULL, \
             report_type SMALLINT NOT NULL, payload MEDIUMBLOB NOT NULL, PRIMARY KEY (upload_id, position), {unique}){after}"
        ),
        "INSERT INTO diagnosis_key SELECT upload_id, position, payload_hash, report_type, payload FROM divided",
        "DROP TABLE divided",
    ] {
        case.db.execute(sql).await;
    }
    assert_eq!(case.db.execute("DELETE FROM seaql_migrations WHERE version = 'm0011_days'").await, 1);
}

/// Takes the steps from `m0010` on back.
pub(crate) async fn to_the_schema_before(case: &Case) {
    to_undivided_keys(case).await;
    let of = if case.db.kind == Kind::Sqlite { "" } else { " ON upload" };
    for index in ["upload_key", "upload_batch_content", "upload_uploaded_at"] {
        case.db.execute(&format!("DROP INDEX {index}{of}")).await;
    }
    case.db.execute("CREATE INDEX upload_batch ON upload (batch_id)").await;
    case.db.execute("ALTER TABLE upload DROP COLUMN key_id").await;
    let done = "DELETE FROM seaql_migrations WHERE version = 'm0010_upload_key'";
    assert_eq!(case.db.execute(done).await, 1);
}

async fn the_uploads_of_the_version_before_are_given_their_key_in_steps(case: &Case) {
    let gateway = case.gateway().await;
    case.stop(&gateway).await;
    fill(case, 20_000).await;
    case.db.execute("UPDATE diagnosis_key SET payload = X'00000002' WHERE upload_id % 3 = 0").await;
    to_the_schema_before(case).await;
    // It stopped half-way.
    case.db.execute("ALTER TABLE upload ADD COLUMN key_id BIGINT NOT NULL DEFAULT -1").await;
    case.db.execute("UPDATE upload SET key_id = 1 WHERE id < 7000 AND id % 3 <> 0").await;
    let app = App::new(case.config(), case.clock.clone(), None).unwrap();
    app.store.migrate().await.unwrap();
    let wrong = "SELECT COUNT(*) FROM upload WHERE key_id <> CASE id % 3 WHEN 0 THEN 2 ELSE 1 END";
    assert_eq!(case.db.number(wrong).await, 0);
    let used = app.store.encryption_keys().await.unwrap();
    let used: Vec<_> = used.iter().map(|used| (used.id, used.uploads, used.keys)).collect();
    assert_eq!(used, [(1, 13_334, 26_668), (2, 6_666, 13_332)]);
    app.store.clone().close().await;
}

/// An operation in `app.store` that reads this view takes as long as `condition` does.
async fn slow_down(case: &Case, table: &str, condition: &str) {
    case.db.execute(&format!("ALTER TABLE {table} RENAME TO {table}_table")).await;
    case.db.execute(&format!("CREATE VIEW {table} AS SELECT * FROM {table}_table WHERE {condition}")).await;
}

async fn back_to_speed(case: &Case, table: &str) {
    case.db.execute(&format!("DROP VIEW {table}")).await;
    case.db.execute(&format!("ALTER TABLE {table}_table RENAME TO {table}")).await;
}

async fn without_the_right_to_alter_reads_go_on_and_what_to_do_is_said(case: &Case) {
    let first = case.gateway().await;
    let keys = first.client("DE").upload_new("a", 2, case.clock.now()).await;
    let day = case.today();
    first.form().await;
    case.stop(&first).await;
    let server = case.server.as_ref().unwrap();
    server.as_root("REVOKE ALTER ON `efgs\\_%`.* FROM app@'%'").await;
    // A week with a gateway that could not add days.
    case.clock.set(case.clock.now() + TimeDelta::days(8));
    let second = case.gateway().await;
    assert_eq!(second.client("NL").download(day, None).await.expect(200).keys(), keys);
    let client = second.client("DE");
    let new = crate::client::keys(country("DE"), 2, case.clock.now());
    client.upload("b", &new).await.refused(503, "unavailable");
    let (status, body) = ready(&second).await;
    assert_eq!(status, 503, "{body}");
    assert!(body["reasons"].to_string().contains("no partition for today"), "{body}");
    let warnings = body["warnings"].to_string();
    assert!(warnings.contains("ALTER command denied") && warnings.contains("efgs-gateway migrate"), "{body}");
    server.as_root("GRANT ALTER ON `efgs\\_%`.* TO app@'%'").await;
    case.stop(&second).await;
    let third = case.gateway().await;
    third.client("DE").upload("b", &new).await.expect(201);
    until("ready", async || (ready(&third).await.0 == 200).then_some(())).await;
}

async fn a_long_statement_delays_expiry_and_stops_nothing_else(case: &Case) {
    let gateway = case.gateway_with(|config| config.retention.days = 3).await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    gateway.form().await;
    case.clock.set(case.clock.now() + TimeDelta::days(4));
    gateway.app.store.add_days(gateway.app.chain.oldest(), case.today()).await.unwrap();
    let reader = case.db.reader_of("SELECT COUNT(*) FROM diagnosis_key").await;
    let refused = gateway.app.expiry.expire_now().await.unwrap_err().to_string();
    assert!(refused.contains("a long statement, such as a dump"), "{refused}");
    gateway.client("DE").upload_new("b", 2, case.clock.now()).await;
    assert_eq!(case.db.counts().await, [2, 4, 1]);
    reader.commit().await.unwrap();
    assert_eq!(gateway.app.expiry.expire_now().await.unwrap().keys, 2);
}

fn hurried(case: &Case) -> std::sync::Arc<App> {
    let mut config = case.config();
    config.database.timeout = Duration::from_secs(2);
    App::new(config, case.clock.clone(), None).unwrap()
}

async fn the_server_ends_a_statement_that_takes_too_long(case: &Case) {
    case.prepare().await;
    case.db.execute("INSERT INTO instance VALUES ('0123456789abcdef', 'host', '1', 0, 0)").await;
    let app = hurried(case);
    assert_eq!(app.store.instances().await.unwrap().len(), 1);
    // Days.
    slow_down(case, "instance", "BENCHMARK(1000000000000, SHA2(host, 512)) = 0").await;
    let outcome = app.store.instances().await;
    assert!(matches!(outcome, Err(StoreError::Timeout { .. })), "{outcome:?}");
    until("the server ends the statement", async || {
        let running = "SELECT COUNT(*) FROM information_schema.processlist \
                       WHERE command IN ('Query', 'Execute') AND db = DATABASE() AND id <> CONNECTION_ID()";
        (case.db.number(running).await == 0).then_some(())
    })
    .await;
    back_to_speed(case, "instance").await;
    app.store.clone().close().await;
}

async fn a_migration_may_take_longer_than_a_request(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    gateway.form().await;
    case.stop(&gateway).await;
    to_the_schema_before(case).await;
    slow_down(case, "batch", "SLEEP(3) = 0").await;
    let app = hurried(case);
    app.store.migrate().await.unwrap();
    back_to_speed(case, "batch").await;
    assert_eq!(app.store.keys_in_use().await.unwrap(), [1]);
    app.store.clone().close().await;
}
