//! Forgetting what is old hides nothing that was done to it.

use chrono::TimeDelta;
use efgs_gateway::{
    access_log::{Entry, Forgotten, ORIGIN, Record, RetentionError, SignedStatement, StatementKind, hex},
    server::App,
};
use openssl::pkey::PKey;

use crate::{
    access_log::{evidence, look, places, restore, run},
    access_log_proof::{assert_names, forge, insert_record, keep, logged},
    access_log_signing::forget_all,
    harness::{Case, Running, output_of, tests, until},
};

tests![
    a_changed_time_makes_no_record_old,
    records_that_are_not_as_they_were_written_are_not_forgotten,
    a_changed_time_makes_no_statement_old,
    a_chain_that_vanished_is_not_forgotten,
    a_cut_that_nobody_signed_does_not_stand_for_one,
    what_was_forgotten_too_early_is_named,
    an_idle_gateway_goes_on_with_its_chain,
    statements_of_a_former_key_count,
    two_kept_histories_are_named,
];

fn days(days: i64) -> TimeDelta {
    TimeDelta::days(days)
}

/// A gateway some days later, which forgets.
async fn later(case: &Case, number: i64) -> Running {
    case.clock.set(case.clock.now() + days(number));
    case.gateway().await
}

#[track_caller]
fn assert_refused(done: Result<Forgotten, RetentionError>, what: &str) {
    let error = done.unwrap_err().to_string();
    assert!(error.contains(what) && error.contains("access-log verify"), "{error}");
}

async fn a_changed_time_makes_no_record_old(case: &Case) {
    let [first, second] = logged(case).await;
    keep(case).await;
    let evidence = evidence(case);
    let gateway = later(case, 1).await;
    case.db.execute("UPDATE access_log SET at = 0 WHERE sequence <= 6").await;
    assert_eq!(gateway.app.access_log.forget_now(None).await.unwrap(), Forgotten::default());
    assert_names(&look(case, &evidence).await, Some(&first), 1, "was changed");
    // Nor does another chain, whole in itself and old.
    case.db.execute(&format!("DELETE FROM access_log WHERE instance = '{second}'")).await;
    let mut previous = ORIGIN;
    for sequence in 1..=10 {
        let record = Record::new(&second, sequence, previous, Entry::default());
        previous = record.hash;
        insert_record(case, &record).await;
    }
    assert_eq!(gateway.app.access_log.forget_now(None).await.unwrap(), Forgotten::default());
    assert_names(&look(case, &evidence).await, Some(&second), 10, "was replaced");
    restore(case, "access_log").await;
    assert_eq!(look(case, &evidence).await.findings, []);
}

async fn records_that_are_not_as_they_were_written_are_not_forgotten(case: &Case) {
    let [first, second] = logged(case).await;
    let evidence = evidence(case);
    let change = format!("UPDATE access_log SET at = 0 WHERE instance = '{first}' AND sequence <= 6");
    case.db.execute(&change).await;
    // The job as it starts with the gateway does the rest, and says so.
    case.clock.set(case.clock.now() + days(100));
    let app = App::new(case.config(), case.clock.clone(), None).unwrap();
    assert_refused(
        app.access_log.forget_now(None).await,
        &format!("instance {first} record 1: the record was changed"),
    );
    let left: Vec<String> = case.db.column("SELECT DISTINCT instance FROM access_log").await;
    assert!(left.contains(&first) && !left.contains(&second), "{left:?}");
    assert_eq!(case.db.number("SELECT COUNT(*) FROM access_log").await, 10);
    assert_names(&look(case, &evidence).await, Some(&first), 6, "was changed");
    assert!(!run(case, &["access-log", "expire", "--although", ""]).status.success());
    // By the machine's clock, which commands have, nothing is old.
    let output = run(case, &["access-log", "expire", "--although", "copied"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.starts_with("deleted 0 records and 0 statements"), "{text}");
    // The operator has looked.
    let done = app.access_log.forget_now(Some("copied for the inquiry")).await.unwrap();
    assert_eq!(done.records, 10);
    let report = look(case, &evidence).await;
    let [forced] = &report.forced[..] else { panic!("{report:?}") };
    assert_eq!((forced.instance.as_deref(), forced.sequence), (Some(first.as_str()), 10));
    assert_eq!((&*forced.because, report.faults), ("copied for the inquiry", 0), "{report:?}");
    assert_eq!(app.access_log.forget_now(None).await.unwrap(), Forgotten::default());
    let text = String::from_utf8(run(case, &["access-log", "verify"]).stdout).unwrap();
    assert!(text.contains("not as they were written: copied for the inquiry"), "{text}");
    app.store.clone().close().await;
}

async fn a_changed_time_makes_no_statement_old(case: &Case) {
    let [first, _] = logged(case).await;
    let evidence = evidence(case);
    let before = case.db.number("SELECT COUNT(*) FROM access_log_head").await;
    case.db.execute(&format!("DELETE FROM access_log WHERE instance = '{first}'")).await;
    case.db.execute(&format!("UPDATE access_log_head SET at = 0 WHERE instance = '{first}'")).await;
    let gateway = later(case, 1).await;
    assert_eq!(gateway.app.access_log.forget_now(None).await.unwrap(), Forgotten::default());
    assert_eq!(case.db.number("SELECT COUNT(*) FROM access_log_head").await, before + 1);
    assert_names(&look(case, &evidence).await, None, 1, "the statement was changed");
    case.clock.set(case.clock.now() + days(100));
    assert_refused(gateway.app.access_log.forget_now(None).await, "statement 1: the statement was changed");
    assert_eq!(case.db.number("SELECT COUNT(*) FROM access_log_head WHERE number <= 4").await, 4);
    case.stop(&gateway).await;
    forget_all(case).await;
}

async fn a_chain_that_vanished_is_not_forgotten(case: &Case) {
    let [first, _] = logged(case).await;
    let evidence = evidence(case);
    case.db.execute(&format!("DELETE FROM access_log WHERE instance = '{first}'")).await;
    case.clock.set(case.clock.now() + days(100));
    let app = App::new(case.config(), case.clock.clone(), None).unwrap();
    let missing = format!("instance {first} record 1: 10 records are missing");
    assert_refused(app.access_log.forget_now(None).await, &missing);
    assert_names(&look(case, &evidence).await, Some(&first), 1, "10 records are missing");
    assert_eq!(app.access_log.forget_now(Some("known")).await.unwrap().statements, 4);
    let report = look(case, &evidence).await;
    assert_eq!((report.faults, report.forced.len()), (0, 1), "{report:?}");
    // A list with a hole is the same.
    let gateway = case.gateway().await;
    gateway.client("DE").download(case.today(), None).await;
    case.stop(&gateway).await;
    let newest = case.db.number("SELECT MAX(number) FROM access_log_head").await;
    case.db.execute(&format!("DELETE FROM access_log_head WHERE number = {}", newest - 1)).await;
    case.clock.set(case.clock.now() + days(100));
    assert_refused(
        app.access_log.forget_now(None).await,
        &format!("statement {}: statements are missing", newest - 1),
    );
    assert!(app.access_log.forget_now(Some("known")).await.unwrap().statements > 0);
    assert_eq!(look(case, &evidence).await.faults, 0);
    app.store.clone().close().await;
}

async fn a_cut_that_nobody_signed_does_not_stand_for_one(case: &Case) {
    let [first, _] = logged(case).await;
    let newest = case.db.number("SELECT MAX(number) FROM access_log_head").await;
    forge(case, newest + 1, StatementKind::Cut, &first, 10, &hex(&[7; 32])).await;
    let gateway = later(case, 100).await;
    assert_eq!(gateway.app.access_log.forget_now(None).await.unwrap().records, 20);
    let cuts = format!(
        "SELECT COUNT(*) FROM access_log_head WHERE instance = '{first}' AND kind = 'cut' AND signature IS NOT NULL"
    );
    assert_eq!(case.db.number(&cuts).await, 1);
    case.stop(&gateway).await;
    forget_all(case).await;
}

async fn what_was_forgotten_too_early_is_named(case: &Case) {
    let [first, second] = logged(case).await;
    let kept = String::from_utf8(run(case, &["access-log", "heads"]).stdout).unwrap();
    let kept: Vec<SignedStatement> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let young = Some(case.clock.now());
    let mut evidence =
        efgs_gateway::access_log::verify::Evidence { forgotten_before: young, ..evidence(case) };
    assert_eq!(look(case, &evidence).await.findings, []);
    case.clock.set(case.clock.now() + days(2));
    let mut config = case.config();
    config.access_log.retention = std::time::Duration::from_secs(24 * 3600);
    let app = App::new(config, case.clock.clone(), None).unwrap();
    keep(case).await;
    let done = app.access_log.forget_now(None).await.unwrap();
    assert_eq!((done.records, done.statements), (20, 4));
    // Without the statements only who has kept them can know it.
    assert_eq!(look(case, &evidence).await.findings, []);
    kept.iter().for_each(|signed| evidence.keep(signed));
    let report = look(case, &evidence).await;
    // Four statements, and what two of them say of their chains.
    assert_eq!(places(&report).len(), 6, "{report:?}");
    assert_names(&report, None, 1, "is younger than `access_log.retention`");
    // With them, everybody.
    case.db.execute("INSERT INTO access_log_head SELECT * FROM kept_access_log_head").await;
    let report = look(case, &evidence).await;
    for instance in [&first, &second] {
        assert_names(&report, Some(instance), 10, "about it is younger than `access_log.retention`");
    }
    evidence.forgotten_before = Some(case.clock.now());
    evidence.kept = Default::default();
    assert_eq!(look(case, &evidence).await.findings, []);
    app.store.clone().close().await;
}

async fn an_idle_gateway_goes_on_with_its_chain(case: &Case) {
    let [idle, busy] = [case.gateway().await, case.gateway().await];
    let evidence = evidence(case);
    for _ in 0..3 {
        idle.client("DE").download(case.today(), None).await;
        busy.client("DE").download(case.today(), None).await;
    }
    case.recorded().await;
    until("the first sign of life", async || {
        let known = busy.app.store.instances().await.unwrap();
        known.iter().any(|known| known.instance.id == idle.app.instance.id).then_some(())
    })
    .await;
    for _ in 0..3 {
        case.clock.set(case.clock.now() + days(100));
        busy.client("DE").download(case.today(), None).await;
        case.recorded().await;
        busy.app.access_log.forget_now(None).await.unwrap();
    }
    let left = format!("SELECT COUNT(*) FROM access_log WHERE instance = '{}'", idle.app.instance.id);
    assert_eq!(case.db.number(&left).await, 0);
    idle.client("DE").download(case.today(), None).await;
    for gateway in [&idle, &busy] {
        case.stop(gateway).await;
    }
    assert_eq!(look(case, &evidence).await.findings, []);
}

async fn statements_of_a_former_key_count(case: &Case) {
    logged(case).await;
    let folder = case.folder.path();
    output_of("openssl", &["pkey", "-in", "access-log.key", "-pubout", "-out", "old.pub"], folder);
    let key = PKey::generate_ed25519().unwrap().private_key_to_pem_pkcs8().unwrap();
    std::fs::write(folder.join("access-log.key"), key).unwrap();
    case.clock.set(case.clock.now() + days(100));
    let app = App::new(case.config(), case.clock.clone(), None).unwrap();
    assert_refused(app.access_log.forget_now(None).await, "known signature");
    app.store.clone().close().await;
    let mut config = case.config();
    config.access_log.former_keys = vec![folder.join("old.pub")];
    let app = App::new(config, case.clock.clone(), None).unwrap();
    assert_eq!(app.access_log.forget_now(None).await.unwrap(), Forgotten { records: 20, statements: 4 });
    assert_eq!(look(case, app.access_log.evidence()).await.findings, []);
    app.store.clone().close().await;
}

async fn two_kept_histories_are_named(case: &Case) {
    logged(case).await;
    let kept = String::from_utf8(run(case, &["access-log", "heads"]).stdout).unwrap();
    let kept: Vec<SignedStatement> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut evidence = evidence(case);
    // The same one twice is nothing to wonder about.
    kept.iter().chain(&kept).for_each(|signed| evidence.keep(signed));
    assert_eq!(look(case, &evidence).await.findings, []);
    let statement = kept[1].statement.replace("\"sequence\":", "\"sequence\":1");
    let signer = efgs_gateway::access_log::Signer::read(&case.folder.path().join("access-log.key")).unwrap();
    evidence.keep(&signer.sign(statement).unwrap());
    let report = look(case, &evidence).await;
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert_names(&report, None, 2, "two statements with this number that differ");
}
