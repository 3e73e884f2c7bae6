//! A dump of the database that is read into another one (docs/operations.md).

use std::process::Command;

use efgs_protocol::wire;

use crate::{
    client::Request,
    database::Kind,
    harness::{Case, tests},
    journal::{assert_same, picture},
};

tests![a_dump_that_was_restored_serves_the_same];

/// `mariadb-dump` or `mysqldump`, or what the environment names instead.
fn dump_program(kind: Kind) -> Option<String> {
    let (variable, program) = match kind {
        Kind::Sqlite => return None,
        Kind::MariaDb => ("EFGS_TEST_MARIADB_DUMP", "mariadb-dump"),
        Kind::MySql => ("EFGS_TEST_MYSQL_DUMP", "mysqldump"),
    };
    let program = std::env::var(variable).unwrap_or_else(|_| program.to_owned());
    let version = Command::new(&program).arg("--version").output().ok()?;
    // Of Debian, `mysqldump` is MariaDB's, which cannot log in to MySQL.
    let of_mariadb = String::from_utf8_lossy(&version.stdout).contains("MariaDB");
    (of_mariadb == (kind == Kind::MariaDb)).then_some(program)
}

async fn a_dump_that_was_restored_serves_the_same(case: &Case) {
    let one = case.gateway().await;
    let required = std::env::var_os("EFGS_TEST_REQUIRE_ALL").is_some_and(|value| value == "1");
    let Some(program) = dump_program(case.db.kind) else {
        assert!(
            !required || case.db.kind != Kind::MariaDb,
            "there is no mariadb-dump: install mariadb-client"
        );
        return;
    };
    for (code, amount) in [("DE", 30), ("IT", 20), ("DE", 1)] {
        one.client(code).upload_new(&format!("{code}{amount}"), amount, case.clock.now()).await;
        one.form().await;
    }
    one.client("DE").send(Request::new("DELETE", format!("{}/DE1", wire::UPLOAD_PATH))).await.expect(200);
    let before = picture(&one, &[case.today()]).await;
    // While the gateway runs, as an operator does.
    let url = reqwest::Url::parse(&case.db.url).unwrap();
    let ca = case.db.tls_ca.as_ref().map(|ca| format!("--ssl-ca={}", ca.display()));
    let dump = Command::new(program)
        .args([
            "--no-defaults",
            "--single-transaction",
            "--hex-blob",
            "--no-tablespaces",
            "--protocol=TCP",
            "--host=127.0.0.1",
        ])
        .arg(format!("--port={}", url.port().unwrap()))
        .arg(format!("--user={}", url.username()))
        .arg(format!("--password={}", url.password().unwrap()))
        .args(ca)
        .arg(url.path().trim_start_matches('/'))
        .output()
        .unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    case.stop(&one).await;

    let other = case.other_db().await;
    other.execute(&String::from_utf8(dump.stdout).unwrap()).await;
    let mut config = case.config();
    config.database.url = Some(efgs_gateway::config::Secret::new(other.url.clone()));
    let app = efgs_gateway::app::App::new(config, case.clock.clone(), None).unwrap();
    let two = case.start(app).await;
    assert_same(&before, &picture(&two, &[case.today()]).await);
    let next = two.client("IT").upload_new("more", 2, case.clock.now()).await;
    let batch = two.form().await.remove(0);
    assert_eq!(two.client("NL").download(case.today(), Some(&batch)).await.expect(200).keys(), next);
    other.check().await;
}
