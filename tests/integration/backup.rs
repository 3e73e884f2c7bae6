//! A dump of the database that is read into another one (docs/operations.md).

use std::{path::PathBuf, process::Command};

use efgs_protocol::wire;

use crate::{
    client::Request,
    database::Kind,
    harness::{Case, tests},
    journal::{assert_same, picture},
};

tests![a_dump_that_was_restored_serves_the_same];

/// The one that belongs to the server: of Debian, `mysqldump` is MariaDB's, which cannot log in to MySQL.
fn dump_program(kind: Kind) -> Option<PathBuf> {
    match kind {
        Kind::Sqlite => None,
        Kind::MariaDb => Some("mariadb-dump".into()),
        Kind::MySql => Some(PathBuf::from(std::env::var_os("EFGS_TEST_MYSQL_PREFIX")?).join("bin/mysqldump")),
    }
}

async fn a_dump_that_was_restored_serves_the_same(case: &Case) {
    let one = case.gateway().await;
    let Some(program) = dump_program(case.db.kind) else {
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
        .args((case.db.kind == Kind::MySql).then_some("--set-gtid-purged=OFF"))
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
    let app = efgs_gateway::server::App::new(config, case.clock.clone(), None).unwrap();
    let two = case.start(app).await;
    assert_same(&before, &picture(&two, &[case.today()]).await);
    let next = two.client("IT").upload_new("more", 2, case.clock.now()).await;
    let batch = two.form().await.remove(0);
    assert_eq!(two.client("NL").download(case.today(), Some(&batch)).await.expect(200).keys(), next);
    other.check().await;
}
