//! The task that writes the access log: nothing ends it, and one bad record harms no other.

use std::time::Duration;

use efgs_gateway::access_log::Trail;
use futures_util::future::join_all;

use crate::{
    access_log_signing::forget_all,
    database::Kind,
    harness::{Case, Running, tests, until},
};

tests![
    a_record_that_the_database_refuses_harms_no_other,
    a_panic_does_not_end_the_log,
    a_mended_log_is_noticed_however_seldom_it_is_signed,
];

/// Ends a request in the log as a download, beside the HTTP server; whether it was recorded.
async fn end(gateway: &Running, id: &str, bytes: u64) -> bool {
    let (queue, at) = (gateway.app.access_log.queue(), gateway.app.clock.now());
    let place = ("download", Some("/diagnosiskeys/download/{date}"));
    let trail = Trail::begin(queue, id.to_owned(), at, "GET", place);
    trail.end(200, None, bytes).await
}

async fn a_record_that_the_database_refuses_harms_no_other(case: &Case) {
    let gateway = case.gateway().await;
    if case.db.kind == Kind::Sqlite {
        // There no text is too long by itself.
        let sql = "CREATE TRIGGER strict BEFORE INSERT ON access_log WHEN LENGTH(NEW.request_id) > 16 \
                   BEGIN SELECT RAISE(ABORT, 'too long'); END";
        case.db.execute(sql).await;
    }
    let mut ids: Vec<String> = (0..60).map(|number| format!("{number:016x}")).collect();
    // The first goes alone; behind it all others gather.
    ids[20] = "x".repeat(17);
    ids[45] = "y".repeat(300);
    let written = join_all(ids.iter().map(|id| end(&gateway, id, 1))).await;
    let refused: Vec<usize> = (0..60).filter(|at| !written[*at]).collect();
    case.recorded().await;
    if case.spool {
        // They have been answered by then: the operator has them.
        assert_eq!(refused, [0; 0]);
        let kept = std::fs::read_to_string(case.folder.path().join("spool/set-aside/refused.jsonl")).unwrap();
        let sequences = kept
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["sequence"].as_i64());
        assert_eq!(sequences.collect::<Vec<_>>(), [Some(21), Some(46)]);
    } else {
        assert_eq!(refused, [20, 45]);
    }
    assert_eq!(case.db.number("SELECT COUNT(*) FROM access_log").await, 58);
    let log = gateway.app.health.jobs().into_iter().find(|job| job.name == "log-writer").unwrap();
    assert_eq!(log.last_error, None);
    // In the order in which they came, and whole: the check at the end of every test says so.
    let kept: Vec<String> = case.db.column("SELECT request_id FROM access_log ORDER BY sequence").await;
    assert!(kept.is_sorted(), "{kept:?}");
    case.stop(&gateway).await;
    if case.spool {
        // The two are missing.
        let report = crate::access_log::look(case, &crate::access_log::evidence(case)).await;
        assert_eq!(
            crate::access_log::places(&report).iter().map(|(_, at)| *at).collect::<Vec<_>>(),
            [21, 46]
        );
        forget_all(case).await;
    }
    // A log of which nothing can be written is another matter.
    let gateway = case.gateway().await;
    case.db.execute("ALTER TABLE statistic RENAME TO away").await;
    assert_eq!(end(&gateway, &ids[0], 1).await, case.spool);
    until("the failure", async || {
        let log = gateway.app.health.jobs().into_iter().find(|job| job.name == "log-writer").unwrap();
        log.last_error.map(drop)
    })
    .await;
    case.db.execute("ALTER TABLE away RENAME TO statistic").await;
}

async fn a_panic_does_not_end_the_log(case: &Case) {
    let gateway = case.gateway().await;
    // More bytes than a total can have: two such records in one commit are a panic, where tests are built.
    let written = join_all((0..60).map(async |_| end(&gateway, "0123456789abcdef", u64::MAX).await)).await;
    assert!(case.spool || written.contains(&false), "{written:?}");
    assert!(end(&gateway, "0123456789abcdef", 1).await);
    gateway.client("DE").download(case.today(), None).await.expect(404);
    case.stop(&gateway).await;
    forget_all(case).await;
}

async fn a_mended_log_is_noticed_however_seldom_it_is_signed(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.access_log.sign_every = Duration::from_secs(3600);
            config.database.timeout = Duration::from_secs(2);
        })
        .await;
    let log = || gateway.app.health.jobs().into_iter().find(|job| job.name == "log-writer").unwrap();
    assert!(log().interval <= Duration::from_secs(10));
    case.db.execute("ALTER TABLE access_log RENAME TO away").await;
    let answer = gateway.client("DE").download(case.today(), None).await;
    assert_eq!(answer.status, if case.spool { 404 } else { 503 });
    until("the failure", async || log().last_error.map(drop)).await;
    case.db.execute("ALTER TABLE away RENAME TO access_log").await;
    // Without a request.
    until("another try", async || log().last_error.is_none().then_some(())).await;
}
