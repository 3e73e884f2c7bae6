//! Records on their way to the database: what has been answered is recorded exactly once, whatever ends the gateway.

use std::{
    collections::HashMap,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use efgs_gateway::config::LogSync;

use crate::{
    access_log::{evidence, look, places},
    client::{Client, all_at_once, keys},
    harness::{Case, country, tests, until},
    health::ready,
    process::{Process, end_leases, now},
};

tests![
    kill_9_between_an_answer_and_the_database_leaves_each_answer_recorded_once,
    two_instances_share_a_folder,
    a_full_spool_refuses_requests_until_the_database_takes_records_again,
    a_damaged_file_costs_the_records_in_the_damage_and_is_kept,
    a_folder_that_is_gone_makes_the_gateway_unready,
    every_record_can_be_on_the_disk_before_its_answer,
    a_thousand_downloads_cost_few_commits,
];

fn spool(case: &Case) -> PathBuf {
    case.folder.path().join("spool")
}

/// The folders of instances.
fn folders(case: &Case) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(spool(case)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap() != "set-aside").collect()
}

/// Downloads one after another until the gateway is gone; the ids of the answers.
async fn download_until_error(client: &Client, answers: &AtomicUsize) -> Vec<String> {
    let mut ids = Vec::new();
    while let Ok(answer) = client.try_send(Client::download_request(now().date_naive(), None)).await {
        answers.fetch_add(1, Ordering::Relaxed);
        ids.push(answer.header("x-request-id").unwrap().to_owned());
    }
    ids
}

/// Starts a gateway that ships what others have left.
async fn ship_all(case: &Case, config: &Path) {
    let process = Process::start(config);
    until("only one folder is there", async || (folders(case).len() == 1).then_some(())).await;
    process.stop().await;
    assert!(folders(case).is_empty());
}

async fn kill_9_between_an_answer_and_the_database_leaves_each_answer_recorded_once(case: &Case) {
    case.prepare().await;
    let rounds: usize =
        std::env::var("EFGS_TEST_SPOOL_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let config = case.write_config(&case.config_text());
    let mut answered: Vec<String> = Vec::new();
    for round in 0..rounds {
        let mut process = Process::start(&config);
        let clients = ["DE", "IT", "NL"].map(|code| process.client(code));
        let answers = AtomicUsize::new(0);
        let asking = all_at_once(clients.iter().map(|client| download_until_error(client, &answers)));
        let killing = async {
            let tag = format!("upload-{round}");
            let upload = clients[0].upload(&tag, &keys(country("DE"), 1, now())).await.expect(201);
            let enough = rand::random_range(5..25);
            until("some answers", async || (answers.load(Ordering::Relaxed) > enough).then_some(())).await;
            process.kill();
            upload.header("x-request-id").unwrap().to_owned()
        };
        let (ids, upload) = futures_util::future::join(asking, killing).await;
        answered.extend(ids.into_iter().flatten().chain([upload]));
        end_leases(case).await;
    }
    assert!(!folders(case).is_empty());
    ship_all(case, &config).await;
    let mut logged: HashMap<String, usize> = HashMap::new();
    for id in case.db.column::<String>("SELECT request_id FROM access_log").await {
        *logged.entry(id).or_default() += 1;
    }
    let wrong: Vec<_> = answered.iter().filter(|id| logged.get(*id) != Some(&1)).collect();
    assert!(
        answered.len() > rounds * 5 && wrong.is_empty(),
        "{} answers, not once: {wrong:?}",
        answered.len()
    );
    let total: i64 = case.db.number("SELECT CAST(SUM(requests) AS SIGNED) FROM statistic").await;
    assert_eq!(total, case.db.number("SELECT COUNT(*) FROM access_log").await);
    let report = look(case, &evidence(case)).await;
    assert_eq!((&report.findings[..], &report.uncovered[..]), (&[][..], &[][..]));
    // Nothing was lost, but that was luck as far as the database knows.
    assert_eq!(report.open.len(), rounds, "{report:?}");
}

async fn two_instances_share_a_folder(case: &Case) {
    case.prepare().await;
    let config = case.write_config(&case.config_text());
    let (mut killed, running) = (Process::start(&config), Process::start(&config));
    for process in [&killed, &running] {
        process.client("DE").download(now().date_naive(), None).await.expect(404);
    }
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let [one, _] = &folders(case)[..] else { panic!("{:?}", folders(case)) };
    assert_eq!((mode(one), mode(&one.join("000000000001.segment"))), (0o700, 0o600));
    killed.kill();
    end_leases(case).await;
    // The next one takes over what the first has left, and nothing of the second.
    let third = Process::start(&config);
    until("two folders are there", async || (folders(case).len() == 2).then_some(())).await;
    running.client("DE").download(now().date_naive(), None).await.expect(404);
    running.stop().await;
    third.stop().await;
    assert_eq!(case.db.number("SELECT COUNT(*) FROM access_log").await, 3);
    assert_eq!(look(case, &evidence(case)).await.findings, []);
}

async fn a_full_spool_refuses_requests_until_the_database_takes_records_again(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.access_log.spool_max = ByteSize::mib(1);
            config.database.timeout = Duration::from_secs(1);
        })
        .await;
    case.db.execute("ALTER TABLE access_log RENAME TO away").await;
    let client = gateway.client("DE");
    let mut answered = 0;
    let (mut status, mut warned) = (404, false);
    while status == 404 {
        answered += 1;
        assert!(answered < 5000, "it is never full");
        let answers = all_at_once((0..40).map(|_| client.download(case.today(), None))).await;
        status = answers.iter().map(|answer| answer.status).max().unwrap();
        if !warned {
            let (_, answer) = ready(&gateway).await;
            warned =
                answer["warnings"].to_string().contains("the spool of the access log is more than half full");
        }
    }
    assert!(status == 503 && warned, "{status} {warned}");
    let (code, answer) = ready(&gateway).await;
    assert!(code == 503 && answer["reasons"].to_string().contains("the spool is full"), "{answer}");
    case.db.execute("ALTER TABLE away RENAME TO access_log").await;
    until("requests are served again", async || {
        (client.download(case.today(), None).await.status == 404).then_some(())
    })
    .await;
    until("ready", async || (ready(&gateway).await.0 == 200).then_some(())).await;
    assert_eq!(look(case, &evidence(case)).await.findings, []);
}

async fn a_damaged_file_costs_the_records_in_the_damage_and_is_kept(case: &Case) {
    case.prepare().await;
    let config = case.write_config(&case.config_text());
    case.db.execute("ALTER TABLE access_log RENAME TO away").await;
    let mut process = Process::start(&config);
    for _ in 0..5 {
        process.client("DE").download(now().date_naive(), None).await.expect(404);
    }
    process.kill();
    end_leases(case).await;
    let file = folders(case)[0].join("000000000001.segment");
    let mut bytes = std::fs::read(&file).unwrap();
    let text = b"\"sequence\":3,";
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    bytes[at + text.len() - 2] = b'7';
    std::fs::write(&file, bytes).unwrap();
    case.db.execute("ALTER TABLE away RENAME TO access_log").await;
    ship_all(case, &config).await;
    let sequences: Vec<i64> = case.db.column("SELECT sequence FROM access_log ORDER BY sequence").await;
    assert_eq!(sequences, [1, 2, 4, 5]);
    let report = look(case, &evidence(case)).await;
    assert_eq!(places(&report).iter().map(|(_, at)| *at).collect::<Vec<_>>(), [3], "{report:?}");
    assert_eq!(report.uncovered.len(), 1, "nobody vouches for a file that is not whole: {report:?}");
    let kept: Vec<_> = std::fs::read_dir(spool(case).join("set-aside")).unwrap().collect();
    assert_eq!(kept.len(), 1);
    // It is said until somebody has looked.
    let gateway = case.gateway().await;
    until("a warning", async || {
        let (_, answer) = ready(&gateway).await;
        answer["warnings"]
            .to_string()
            .contains("records of the access log could not be brought")
            .then_some(())
    })
    .await;
    case.stop(&gateway).await;
    crate::access_log_signing::forget_all(case).await;
}

async fn a_folder_that_is_gone_makes_the_gateway_unready(case: &Case) {
    let gateway = case.gateway().await;
    std::fs::remove_dir_all(spool(case)).unwrap();
    let reasons = until("unready", async || {
        let (code, answer) = ready(&gateway).await;
        (code == 503).then(|| answer["reasons"].to_string())
    })
    .await;
    assert!(reasons.contains("the spool cannot be written"), "{reasons}");
    gateway.client("DE").download(case.today(), None).await.refused(503, "unavailable");
    std::fs::create_dir(spool(case)).unwrap();
    until("ready", async || (ready(&gateway).await.0 == 200).then_some(())).await;
    gateway.client("DE").download(case.today(), None).await.expect(404);
}

async fn every_record_can_be_on_the_disk_before_its_answer(case: &Case) {
    let gateway = case.gateway_with(|config| config.access_log.sync = LogSync::Always).await;
    let client = gateway.client("DE");
    let answers = all_at_once((0..40).map(|_| client.download(case.today(), None))).await;
    assert!(answers.iter().all(|answer| answer.status == 404));
    case.recorded().await;
    assert_eq!(case.db.number("SELECT COUNT(*) FROM access_log").await, 40);
}

#[expect(clippy::print_stdout, reason = "docs/access-log.md says how many there are")]
async fn a_thousand_downloads_cost_few_commits(case: &Case) {
    case.prepare().await;
    let process = Process::start(&case.write_config(&case.config_text()));
    let commits = async || {
        let metrics = process.metrics().await;
        let count = "efgs_store_operation_duration_seconds_count{operation=\"access log\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(count)?.parse::<u64>().ok());
        line.unwrap_or(0)
    };
    let raw = Client::download_request(now().date_naive(), None).raw();
    let begun = Instant::now();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (mut connection, raw) = (process.client("DE").connect(), raw.clone());
            std::thread::spawn(move || {
                for _ in 0..125 {
                    connection.write(&raw).unwrap();
                    assert_eq!(connection.answer().status, 404);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let took = begun.elapsed();
    until("all are in the database", async || {
        (case.db.number("SELECT COUNT(*) FROM access_log").await == 1000).then_some(())
    })
    .await;
    // One every 200 ms, or for 256 records.
    let most = took.as_millis() as u64 / 200 + 1000 / 256 + 3;
    let commits = commits().await;
    assert!((1..=most).contains(&commits), "{commits} in {took:?}");
    println!("{commits} commits for 1000 downloads in {took:.1?}");
    process.stop().await;
}
