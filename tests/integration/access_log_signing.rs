//! What somebody can do who writes to the database and has no key, while gateways sign.

use efgs_gateway::access_log::{
    Entry, ORIGIN, Record, Statement, StatementKind, digest, hex,
    verify::{Evidence, Uncovered},
};

use crate::{
    access_log::{evidence, look, places, run},
    access_log_proof::{assert_names, forge, insert_record, logged},
    harness::{Case, Running, tests},
};

tests![
    a_log_without_any_signature_is_no_proof,
    signatures_that_were_removed_are_missed_also_behind_a_gateway_that_signs,
    a_gateway_does_not_sign_over_a_list_that_was_cut_off_while_it_ran,
    nor_when_others_have_taken_the_numbers_that_were_free,
    a_gateway_does_not_build_upon_records_of_others,
    records_behind_the_last_statement_are_named,
    no_name_and_no_number_hides_a_row,
];

async fn a_log_without_any_signature_is_no_proof(case: &Case) {
    logged(case).await;
    let evidence = evidence(case);
    case.db.execute("UPDATE access_log_head SET signature = NULL, key_id = NULL").await;
    let newest = case.db.number("SELECT MAX(number) FROM access_log_head").await;
    let report = look(case, &evidence).await;
    assert_eq!(places(&report), [(None, 1)], "{report:?}");
    assert!(report.findings[0].what.contains("the signatures were removed"), "{report:?}");
    let output = run(case, &["access-log", "verify"]);
    assert!(!output.status.success(), "{output:?}");
    // Nor is it one when somebody says that it was to be signed from later on.
    let report = look(case, &Evidence { signed_from: newest + 1, ..evidence }).await;
    assert_eq!(places(&report), [(None, newest)], "{report:?}");
}

/// Writes the first statements anew, without signatures, as an attacker with the database but without the key could.
async fn rewrite_unsigned(case: &Case, up_to: i64) {
    let texts: Vec<String> = case.db.column("SELECT statement FROM access_log_head ORDER BY number").await;
    let mut previous = ORIGIN;
    for (number, text) in (1..=up_to).zip(texts) {
        let statement = Statement { previous: hex(&previous), ..Statement::parse(&text).unwrap() };
        let text = Statement { host: None, ..statement }.text();
        previous = digest(&text);
        let sql = "UPDATE access_log_head SET signature = NULL, key_id = NULL, statement";
        case.db.execute(&format!("{sql} = '{text}' WHERE number = {number}")).await;
    }
}

async fn signatures_that_were_removed_are_missed_also_behind_a_gateway_that_signs(case: &Case) {
    logged(case).await;
    let evidence = evidence(case);
    let newest = case.db.number("SELECT MAX(number) FROM access_log_head").await;
    rewrite_unsigned(case, newest).await;
    // The next start signs behind another history; that does not make it true.
    let gateway = case.gateway().await;
    case.stop(&gateway).await;
    let report = look(case, &evidence).await;
    assert_eq!(places(&report), [(None, 1)], "{report:?}");
    assert!(report.signed > 0, "{report:?}");
    let what = &report.findings[0].what;
    assert!(what.contains(&format!("to {newest} are not signed")), "{what}");
    // Only who knows that there was no key before can excuse it, with the number that was logged at that time.
    let from = format!("--signed-from {}", newest + 1);
    assert!(what.ends_with(&from), "{what}");
    assert!(!run(case, &["access-log", "verify"]).status.success());
    let excused: Vec<&str> = ["access-log", "verify"].into_iter().chain(from.split(' ')).collect();
    let output = run(case, &excused);
    assert!(output.status.success(), "{output:?}");
    let excused = Evidence { signed_from: newest, ..evidence };
    assert_eq!(places(&look(case, &excused).await), [(None, newest)]);
}

/// The second and the third of three gateways, which run while all that the first one did is removed, and every
/// statement since then: the third one has made the newest of them.
async fn cut_off(case: &Case) -> [Running; 2] {
    let [first, second] = [case.gateway().await, case.gateway().await];
    for gateway in [&first, &second] {
        gateway.client("DE").download(case.today(), None).await;
    }
    case.stop(&first).await;
    let third = case.gateway().await;
    assert_eq!(look(case, &evidence(case)).await.findings, []);
    let sql = format!("DELETE FROM access_log WHERE instance = '{}'", first.app.instance.id);
    assert_eq!(case.db.execute(&sql).await, 1);
    assert_eq!(case.db.execute("DELETE FROM access_log_head WHERE number IN (3, 4)").await, 2);
    third.client("DE").download(case.today(), None).await;
    [second, third]
}

async fn a_gateway_does_not_sign_over_a_list_that_was_cut_off_while_it_ran(case: &Case) {
    let [second, third] = cut_off(case).await;
    for gateway in [&third, &second] {
        case.stop(gateway).await;
    }
    let report = look(case, &evidence(case)).await;
    assert_names(&report, None, 3, "2 statements are missing, from this one to 4");
    forget_all(case).await;
}

async fn nor_when_others_have_taken_the_numbers_that_were_free(case: &Case) {
    let [second, third] = cut_off(case).await;
    case.stop(&second).await;
    let fourth = case.gateway().await;
    assert_eq!(case.db.number("SELECT MAX(number) FROM access_log_head").await, 4);
    for gateway in [&third, &fourth] {
        case.stop(gateway).await;
    }
    let report = look(case, &evidence(case)).await;
    assert_eq!(places(&report), [(None, 5)], "{report:?}");
    assert_names(&report, None, 5, "does not follow the one before it");
    forget_all(case).await;
}

/// Leaves nothing that the check at the end of every test would find.
pub(crate) async fn forget_all(case: &Case) {
    for table in ["access_log", "access_log_head"] {
        case.db.execute(&format!("DELETE FROM {table}")).await;
    }
}

async fn a_gateway_does_not_build_upon_records_of_others(case: &Case) {
    let gateway = case.gateway().await;
    let instance = &gateway.app.instance.id;
    gateway.client("DE").download(case.today(), None).await;
    case.recorded().await;
    let hash: Vec<Vec<u8>> = case.db.column("SELECT hash FROM access_log").await;
    let previous = hash[0].clone().try_into().unwrap();
    // It follows the newest record as it should: only the gateway knows that it has not written it.
    let forged = Record::new(instance, 2, previous, Entry::default());
    insert_record(case, &forged).await;
    let evidence = evidence(case);
    assert_eq!(look(case, &evidence).await.findings, []);
    gateway.client("DE").download(case.today(), None).await;
    case.stop(&gateway).await;
    let report = look(case, &evidence).await;
    assert_eq!(places(&report), [(Some(instance.as_str()), 2)], "{report:?}");
    // With a spool the gateway's own record cannot take another place: it is kept beside the database.
    let kept =
        std::fs::read_to_string(case.folder.path().join("spool/set-aside/refused.jsonl")).unwrap_or_default();
    let own = kept.lines().count() as u64;
    assert_eq!((own, report.records), if case.spool { (1, 2) } else { (0, 3) });
    assert!(report.findings[0].what.contains("was replaced"), "{report:?}");
    forget_all(case).await;
}

async fn records_behind_the_last_statement_are_named(case: &Case) {
    let [first, _] = logged(case).await;
    let evidence = evidence(case);
    assert_eq!(look(case, &evidence).await.uncovered, []);
    let hash: Vec<Vec<u8>> = case
        .db
        .column(&format!("SELECT hash FROM access_log WHERE instance = '{first}' AND sequence = 10"))
        .await;
    let forged = Record::new(&first, 11, hash[0].clone().try_into().unwrap(), Entry::default());
    insert_record(case, &forged).await;
    let report = look(case, &evidence).await;
    assert_eq!(report.findings, []);
    let [Uncovered { instance, from: 11, to: 11 }] = &report.uncovered[..] else { panic!("{report:?}") };
    assert_eq!(*instance, first);
    let output = run(case, &["access-log", "verify"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("instance {first} records 11 to 11: no statement covers")), "{text}");
}

async fn no_name_and_no_number_hides_a_row(case: &Case) {
    let [first, _] = logged(case).await;
    let evidence = evidence(case);
    // Where names are padded with spaces, the last one comes before the empty one.
    for instance in ["", "\u{1}"] {
        insert_record(case, &Record::new(instance, 1, ORIGIN, Entry::default())).await;
        assert_names(&look(case, &evidence).await, Some(instance), 0, "no statement names this chain");
        let sql = format!("DELETE FROM access_log WHERE instance = '{instance}'");
        assert_eq!(case.db.execute(&sql).await, 1);
    }
    for sequence in [i64::MIN, 0] {
        insert_record(case, &Record::new(&first, sequence, ORIGIN, Entry::default())).await;
        assert_names(&look(case, &evidence).await, Some(&first), sequence, "it was inserted");
        forge(case, sequence, StatementKind::Cut, &first, 6, "").await;
        assert_names(&look(case, &evidence).await, None, sequence, "it was inserted");
    }
    case.db.execute("DELETE FROM access_log WHERE sequence < 1").await;
    case.db.execute("DELETE FROM access_log_head WHERE number < 1").await;
    insert_record(case, &Record::new(&first, i64::MAX, ORIGIN, Entry::default())).await;
    assert_names(&look(case, &evidence).await, Some(&first), 11, "records are missing");
    forge(case, i64::MAX, StatementKind::Head, &first, i64::MAX, "").await;
    assert_names(&look(case, &evidence).await, None, i64::MAX, "not signed");
    forget_all(case).await;
}
