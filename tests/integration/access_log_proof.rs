//! The access log proves what happened: whatever is done to it is found, and named.

use efgs_gateway::access_log::{
    Entry, ORIGIN, Record, SignedStatement, Statement, StatementKind, hex,
    verify::{Evidence, VerificationReport},
};
use rand::seq::IndexedRandom as _;

use crate::{
    access_log::{evidence, look, places, restore, run},
    client::Request,
    harness::{Case, Running, tests},
};

tests![
    whatever_is_done_to_the_log_is_named,
    whatever_is_done_to_the_statements_is_named,
    what_was_kept_elsewhere_shows_that_the_end_was_cut_off,
    old_records_are_forgotten_and_the_rest_stays_provable,
    a_cut_that_nobody_signed_excuses_nothing,
    nothing_is_inserted_below_a_cut,
];

/// Two gateways that have answered ten requests each and have stopped.
pub(crate) async fn logged(case: &Case) -> [String; 2] {
    let first = case.gateway().await;
    let second = case.gateway().await;
    for (gateway, code) in [(&first, "DE"), (&second, "NL")] {
        let client = gateway.client(code);
        client.upload_new("a", 2, case.clock.now()).await;
        for _ in 0..8 {
            client.download(case.today(), None).await;
        }
        client.send(Request::new("DELETE", "/diagnosiskeys/upload/a")).await.expect(200);
    }
    let instances = [first.app.instance.id.clone(), second.app.instance.id.clone()];
    for gateway in [&first, &second] {
        case.stop(gateway).await;
    }
    instances
}

async fn whatever_is_done_to_the_log_is_named(case: &Case) {
    let [first, second] = logged(case).await;
    case.db.execute("CREATE TABLE kept_access_log AS SELECT * FROM access_log").await;
    let evidence = evidence(case);
    let untouched = look(case, &evidence).await;
    assert_eq!((untouched.records, untouched.chains, &untouched.findings[..]), (20, 2, &[][..]));
    assert!(untouched.statements >= 4 && untouched.signed == untouched.statements, "{untouched:?}");

    // Any column of any record.
    let changes = [
        "at = at + 1",
        "request_id = '0123456789abcdef'",
        "country = 'FR'",
        "country = NULL",
        "thumbprint = NULL",
        "thumbprint = previous",
        "operation = 'other'",
        "method = 'PUT'",
        "path = NULL",
        "path = '/'",
        "tag = 'x'",
        "asked_date = '2026-01-01'",
        "status = status + 1",
        "status = -1",
        "error = 'x'",
        "key_count = 17",
        "key_count = -1",
        "origins = '{\"DE\":17}'",
        "origins = 'x'",
        "origins = '{ }'",
        "request_bytes = request_bytes + 1",
        "response_bytes = response_bytes + 1",
        "duration_us = duration_us + 1",
        "previous = hash",
        "hash = previous",
        "hash = thumbprint",
    ];
    for change in changes {
        let at = rand::random_range(1..=10);
        let changed = case
            .db
            .execute(&format!(
                "UPDATE access_log SET {change} WHERE instance = '{first}' AND sequence = {at}"
            ))
            .await;
        let report = look(case, &evidence).await;
        assert_eq!(changed, 1);
        assert_eq!(places(&report), [(Some(first.as_str()), at)], "{change}: {report:?}");
        restore(case, "access_log").await;
    }
    // Any record missing: in the middle, at the beginning, at the end, several.
    for (from, to) in [(4, 4), (1, 1), (10, 10), (3, 6), (7, 10), (1, 10)] {
        let range = format!("instance = '{second}' AND sequence BETWEEN {from} AND {to}");
        case.db.execute(&format!("DELETE FROM access_log WHERE {range}")).await;
        let report = look(case, &evidence).await;
        assert_eq!(places(&report), [(Some(second.as_str()), from)], "{report:?}");
        let last = if from == to { "is missing".to_owned() } else { format!("to {to}") };
        assert!(report.findings[0].what.ends_with(&last), "{report:?}");
        restore(case, "access_log").await;
    }
    // Any two swapped, also between the chains.
    for (a, b) in [(3, 4), (1, 10), (2, 9)] {
        for (from, to) in [(a, -1), (b, a), (-1, b)] {
            let sql = format!(
                "UPDATE access_log SET sequence = {to} WHERE instance = '{first}' AND sequence = {from}"
            );
            assert_eq!(case.db.execute(&sql).await, 1);
        }
        let report = look(case, &evidence).await;
        assert_eq!(places(&report), [(Some(first.as_str()), a), (Some(first.as_str()), b)], "{report:?}");
        assert!(
            report.findings[0].what.contains(&format!("it is number {b} of instance {first}")),
            "{report:?}"
        );
        restore(case, "access_log").await;
    }
    // One inserted, at the end and as a chain of its own.
    for (instance, sequence) in [(first.as_str(), 11), ("0123456789abcdef", 1)] {
        let columns = "at, request_id, country, thumbprint, operation, method, path, tag, asked_date, status, \
                       error, key_count, origins, request_bytes, response_bytes, duration_us, previous, hash";
        case.db
            .execute(&format!(
                "INSERT INTO access_log (instance, sequence, {columns}) SELECT '{instance}', {sequence}, {columns} \
                 FROM kept_access_log WHERE instance = '{second}' AND sequence = 5"
            ))
            .await;
        let report = look(case, &evidence).await;
        assert!(places(&report).contains(&(Some(instance), sequence)), "{report:?}");
        restore(case, "access_log").await;
    }
    assert_eq!(look(case, &evidence).await, untouched);

    // As the operator sees it.
    case.db
        .execute(&format!("UPDATE access_log SET status = 418 WHERE instance = '{first}' AND sequence = 3"))
        .await;
    let output = run(case, &["access-log", "verify"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && text.contains(&format!("instance {first} record 3: ")), "{text}");
    restore(case, "access_log").await;
    let output = run(case, &["access-log", "verify"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("20 records in 2 chains"), "{text}");
    case.db.execute("DROP TABLE kept_access_log").await;
}

async fn whatever_is_done_to_the_statements_is_named(case: &Case) {
    let [first, _] = logged(case).await;
    case.db.execute("CREATE TABLE kept_access_log_head AS SELECT * FROM access_log_head").await;
    let evidence = evidence(case);
    let untouched = look(case, &evidence).await;
    assert_eq!(untouched.findings, []);
    let numbers: Vec<i64> = case.db.column("SELECT number FROM access_log_head ORDER BY number").await;
    let middle = *numbers[1..numbers.len() - 1].choose(&mut rand::rng()).unwrap();
    for change in [
        "sequence = sequence + 1",
        "at = at + 1",
        "kind = 'cut'",
        "instance = '0123456789abcdef'",
        "statement = REPLACE(statement, '\"at\":\"2', '\"at\":\"3')",
        "signature = NULL",
        "key_id = NULL",
        "key_id = '0'",
        "signature = 'AAAA'",
    ] {
        case.db.execute(&format!("UPDATE access_log_head SET {change} WHERE number = {middle}")).await;
        let report = look(case, &evidence).await;
        assert!(places(&report).contains(&(None, middle)), "{change}: {report:?}");
        restore(case, "access_log_head").await;
    }
    case.db.execute(&format!("DELETE FROM access_log_head WHERE number = {middle}")).await;
    let report = look(case, &evidence).await;
    assert!(places(&report).contains(&(None, middle)), "{report:?}");
    restore(case, "access_log_head").await;
    case.db.execute("DELETE FROM access_log_head WHERE number = 1").await;
    let report = look(case, &evidence).await;
    assert!(places(&report).contains(&(None, 1)), "{report:?}");
    restore(case, "access_log_head").await;
    // A whole chain, with all that names it.
    case.db.execute("CREATE TABLE kept_access_log AS SELECT * FROM access_log").await;
    for table in ["access_log", "access_log_head"] {
        case.db.execute(&format!("DELETE FROM {table} WHERE instance = '{first}'")).await;
    }
    let report = look(case, &evidence).await;
    assert!(
        report.findings.iter().any(|finding| finding.what.contains("statement is missing")),
        "{report:?}"
    );
    for table in ["access_log", "access_log_head"] {
        restore(case, table).await;
    }
    assert_eq!(look(case, &evidence).await, untouched);
}

async fn what_was_kept_elsewhere_shows_that_the_end_was_cut_off(case: &Case) {
    logged(case).await;
    let kept = String::from_utf8(run(case, &["access-log", "heads"]).stdout).unwrap();
    std::fs::write(case.folder.path().join("kept.jsonl"), &kept).unwrap();
    let kept: Vec<SignedStatement> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut evidence = evidence(case);
    kept.iter().for_each(|signed| evidence.keep(signed));
    let report = look(case, &evidence).await;
    assert_eq!((report.findings.len(), report.compared), (0, report.statements), "{report:?}");
    // Whoever holds the key and the database can write another history, but not what others keep.
    let newest = case.db.number("SELECT MAX(number) FROM access_log_head").await;
    let instance: Vec<String> =
        case.db.column(&format!("SELECT instance FROM access_log_head WHERE number = {newest}")).await;
    for sql in [
        "CREATE TABLE kept_access_log AS SELECT * FROM access_log".to_owned(),
        "CREATE TABLE kept_access_log_head AS SELECT * FROM access_log_head".to_owned(),
        format!("DELETE FROM access_log WHERE instance = '{}' AND sequence > 2", instance[0]),
        format!("DELETE FROM access_log_head WHERE number = {newest}"),
    ] {
        case.db.execute(&sql).await;
    }
    assert_eq!(look(case, &Evidence { kept: Default::default(), ..evidence.clone() }).await.findings, []);
    let report = look(case, &evidence).await;
    assert_eq!(places(&report), [(None, newest)], "{report:?}");
    let heads = case.folder.path().join("kept.jsonl");
    let output = run(case, &["access-log", "verify", "--heads", heads.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && text.contains(&format!("statement {newest}: ")), "{text}");
    for table in ["access_log", "access_log_head"] {
        restore(case, table).await;
    }
}

async fn old_records_are_forgotten_and_the_rest_stays_provable(case: &Case) {
    let ask = async |gateway: &Running, times: usize| {
        for _ in 0..times {
            gateway.client("DE").download(case.today(), None).await;
        }
        case.recorded().await;
    };
    let (start, day) = (case.clock.now(), chrono::TimeDelta::days(1));
    let old = case.gateway().await;
    let evidence = evidence(case);
    ask(&old, 5).await;
    case.stop(&old).await;
    case.clock.set(start + day * 60);
    let gateway = case.gateway().await;
    ask(&gateway, 4).await;
    assert_eq!(gateway.app.access_log.forget_now(None).await.unwrap(), Default::default());
    // The old chain has gone as a whole, the other one loses its beginning.
    case.clock.set(start + day * 100);
    ask(&gateway, 3).await;
    let done = gateway.app.access_log.forget_now(None).await.unwrap();
    // Nothing is left that the statements about the old chain would prove.
    assert_eq!((done.records, done.statements), (5, 2));
    assert_eq!(look(case, &evidence).await.findings, []);
    case.clock.set(start + day * 155);
    ask(&gateway, 2).await;
    assert_eq!(gateway.app.access_log.forget_now(None).await.unwrap().records, 4);
    let report = look(case, &evidence).await;
    assert_eq!((report.records, &report.findings[..]), (5, &[][..]), "{report:?}");
    // What retention has cut is no licence to cut more.
    let first = case.db.number("SELECT MIN(sequence) FROM access_log").await;
    case.db.execute("CREATE TABLE kept_access_log AS SELECT * FROM access_log").await;
    case.db.execute(&format!("DELETE FROM access_log WHERE sequence = {first}")).await;
    let report = look(case, &evidence).await;
    assert_eq!(places(&report), [(Some(gateway.app.instance.id.as_str()), first)], "{report:?}");
    restore(case, "access_log").await;
    case.clock.set(start + day * 200);
    ask(&gateway, 1).await;
    assert_eq!(gateway.app.access_log.forget_now(None).await.unwrap().records, 3);
    assert_eq!(look(case, &evidence).await.findings, []);
    // No more statements than those.
    let first = case.db.number("SELECT MIN(number) FROM access_log_head").await;
    case.db.execute("CREATE TABLE kept_access_log_head AS SELECT * FROM access_log_head").await;
    case.db.execute(&format!("DELETE FROM access_log_head WHERE number = {first}")).await;
    let report = look(case, &evidence).await;
    assert!(places(&report).contains(&(None, first)), "{report:?}");
    restore(case, "access_log_head").await;
}

pub(crate) async fn keep(case: &Case) {
    for table in ["access_log", "access_log_head"] {
        case.db.execute(&format!("CREATE TABLE kept_{table} AS SELECT * FROM {table}")).await;
    }
}

/// Puts a record that never was, with the hash of its content and place, into a chain.
async fn insert_forged(case: &Case, instance: &str, sequence: i64) {
    insert_record(case, &Record::new(instance, sequence, ORIGIN, Entry::default())).await;
}

/// Puts a record of [`Entry::default`] into its place.
pub(crate) async fn insert_record(case: &Case, record: &Record) {
    case.db
        .execute(&format!(
            "INSERT INTO access_log (instance, sequence, at, request_id, operation, method, status, request_bytes, \
             response_bytes, duration_us, previous, hash) \
             VALUES ('{}', {}, 0, '', '', '', 0, 0, 0, 0, x'{}', x'{}')",
            record.instance,
            record.sequence,
            hex(&record.previous),
            hex(&record.hash)
        ))
        .await;
}

/// Puts a statement that is not signed into the list.
pub(crate) async fn forge(
    case: &Case,
    number: i64,
    kind: StatementKind,
    instance: &str,
    sequence: i64,
    hash: &str,
) {
    let mut statement = Statement::new(kind, instance, &Default::default(), case.clock.now());
    (statement.number, statement.sequence, statement.hash) = (number, sequence, hash.to_owned());
    let (at, text) = (case.clock.now().timestamp_micros(), statement.text());
    case.db
        .execute(&format!(
            "INSERT INTO access_log_head (number, instance, sequence, kind, at, statement) \
             VALUES ({number}, '{instance}', {sequence}, '{}', {at}, '{text}')",
            kind.as_str()
        ))
        .await;
}

#[track_caller]
pub(crate) fn assert_names(report: &VerificationReport, instance: Option<&str>, sequence: i64, what: &str) {
    let found = report.findings.iter().any(|finding| {
        (finding.instance.as_deref(), finding.sequence) == (instance, sequence) && finding.what.contains(what)
    });
    assert!(found, "{instance:?} {sequence} {what}: {report:?}");
}

async fn a_cut_that_nobody_signed_excuses_nothing(case: &Case) {
    let [first, _] = logged(case).await;
    keep(case).await;
    let evidence = evidence(case);
    let hash = async |sequence: i64| {
        let sql = format!("SELECT hash FROM access_log WHERE instance = '{first}' AND sequence = {sequence}");
        hex(&case.db.column::<Vec<u8>>(&sql).await[0])
    };
    // Before the list, and behind it, where the newest cut of a chain is looked up.
    let newest = case.db.number("SELECT MAX(number) FROM access_log_head").await;
    let cut_hash = hash(6).await;
    for number in [0, newest + 1] {
        forge(case, number, StatementKind::Cut, &first, 6, &cut_hash).await;
        let sql = format!("DELETE FROM access_log WHERE instance = '{first}' AND sequence <= 6");
        assert_eq!(case.db.execute(&sql).await, 6);
        let report = look(case, &evidence).await;
        assert_names(&report, None, number, if number == 0 { "inserted" } else { "not signed" });
        assert_names(&report, Some(&first), 1, "6 records are missing, from this one to 6");
        restore(case, "access_log").await;
        restore(case, "access_log_head").await;
    }
    // A list that begins later.
    forge(case, 0, StatementKind::Trim, &first, 3, &cut_hash).await;
    case.db.execute("DELETE FROM access_log_head WHERE number IN (1, 2)").await;
    assert_names(&look(case, &evidence).await, None, 1, "2 statements are missing, from this one to 2");
    restore(case, "access_log_head").await;
    // Without a statement before it, a trim is one of a number that has a gap behind it.
    case.db.execute("DELETE FROM access_log_head WHERE number IN (1, 2)").await;
    forge(case, 1, StatementKind::Trim, &first, 3, &cut_hash).await;
    assert_names(&look(case, &evidence).await, None, 2, "the statement is missing");
    restore(case, "access_log_head").await;

    // Below the beginning that the retention has left.
    let start = case.clock.now();
    case.clock.set(start + chrono::TimeDelta::days(100));
    let gateway = case.gateway().await;
    for _ in 0..3 {
        gateway.client("DE").download(case.today(), None).await;
    }
    case.recorded().await;
    let done = gateway.app.access_log.forget_now(None).await.unwrap();
    assert!(done.records == 20 && done.statements >= 4, "{done:?}");
    case.stop(&gateway).await;
    assert_eq!(look(case, &evidence).await.findings, []);
    for table in ["access_log", "access_log_head"] {
        case.db.execute(&format!("DROP TABLE kept_{table}")).await;
    }
    keep(case).await;
    let instance = gateway.app.instance.id.clone();
    let sql = format!("SELECT hash FROM access_log WHERE instance = '{instance}' AND sequence = 2");
    let cut_hash = hex(&case.db.column::<Vec<u8>>(&sql).await[0]);
    forge(case, 2, StatementKind::Cut, &instance, 2, &cut_hash).await;
    let sql = format!("DELETE FROM access_log WHERE instance = '{instance}' AND sequence <= 2");
    assert_eq!(case.db.execute(&sql).await, 2);
    let report = look(case, &evidence).await;
    assert_names(&report, Some(&instance), 1, "2 records are missing, from this one to 2");
    assert_names(&report, None, 3, "missing");
    for table in ["access_log", "access_log_head"] {
        restore(case, table).await;
    }
}

async fn nothing_is_inserted_below_a_cut(case: &Case) {
    let start = case.clock.now();
    let gateway = case.gateway().await;
    for _ in 0..6 {
        gateway.client("DE").download(case.today(), None).await;
    }
    case.clock.set(start + chrono::TimeDelta::days(100));
    for _ in 0..3 {
        gateway.client("DE").download(case.today(), None).await;
    }
    case.recorded().await;
    case.db.execute("CREATE TABLE whole AS SELECT * FROM access_log").await;
    assert_eq!(gateway.app.access_log.forget_now(None).await.unwrap().records, 6);
    case.stop(&gateway).await;
    let instance = gateway.app.instance.id.clone();
    let evidence = evidence(case);
    assert_eq!(look(case, &evidence).await.findings, []);
    case.db.execute("CREATE TABLE kept_access_log AS SELECT * FROM access_log").await;
    // What the retention is about to delete is there still, without its beginning.
    case.db.execute("INSERT INTO access_log SELECT * FROM whole WHERE sequence BETWEEN 3 AND 6").await;
    assert_eq!(look(case, &evidence).await.findings, []);
    case.db.execute("DELETE FROM access_log WHERE sequence IN (4, 5)").await;
    let report = look(case, &evidence).await;
    assert_eq!(places(&report), [(Some(instance.as_str()), 4)], "{report:?}");
    restore(case, "access_log").await;
    // Alone, in the last place, and with nothing behind it.
    for (sequence, place, what) in
        [(3, 4, "3 records are missing"), (6, 6, "the cut behind it names another hash")]
    {
        insert_forged(case, &instance, sequence).await;
        let report = look(case, &evidence).await;
        assert_eq!(places(&report), [(Some(instance.as_str()), place)], "{report:?}");
        assert!(report.findings[0].what.contains(what), "{report:?}");
        restore(case, "access_log").await;
    }
    insert_forged(case, &instance, 3).await;
    case.db.execute("DELETE FROM access_log WHERE sequence > 6").await;
    let report = look(case, &evidence).await;
    assert_names(&report, Some(&instance), 4, "6 records are missing, from this one to 9");
    restore(case, "access_log").await;
    // The first record behind the cut is verified against the cut, whatever stands before it.
    case.db.execute("DELETE FROM access_log WHERE sequence = 7").await;
    insert_forged(case, &instance, 7).await;
    case.db.execute("INSERT INTO access_log SELECT * FROM whole WHERE sequence = 6").await;
    case.db.execute("UPDATE access_log SET status = 1 WHERE sequence = 6").await;
    let report = look(case, &evidence).await;
    assert_names(&report, Some(&instance), 7, "does not follow where the chain begins");
    restore(case, "access_log").await;
}
