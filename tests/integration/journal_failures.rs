//! A journal that is damaged, away, or cut off.

use std::{fs, path::PathBuf, time::Duration};

use chrono::TimeDelta;
use efgs_gateway::{journal::Contents, store::PendingBatch};
use efgs_protocol::wire;
use sha2::{Digest, Sha256};

use crate::{
    callback::{batch, called, calling, quiet, subscribe},
    client::{Request, all_at_once, keys},
    harness::{Case, Running, country, tests, until},
    journal::{app_on_other, folder, gateway, problems, replay, with_journal},
    process::{Process, Sent, busy, end_leases, now, upload_until_error},
};

tests![
    whatever_is_altered_cut_exchanged_or_missing_is_named,
    damage_can_be_accepted_and_the_rest_comes_back,
    without_its_journal_uploads_are_refused_and_downloads_go_on,
    without_its_journal_a_gateway_stays_ready_however_long_no_batch_is_formed,
    files_that_were_not_made_to_their_end_are_no_damage,
    what_was_written_and_did_not_count_is_no_damage,
    a_file_that_cannot_be_deleted_is_told_and_keeps_no_other,
    no_country_is_called_for_a_batch_that_is_held_back,
    the_end_of_a_replay_can_be_repeated,
    kill_9_loses_nothing_that_was_acknowledged_from_the_journal,
];

/// The files of a journal, in order.
pub(crate) fn files(case: &Case) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for day in fs::read_dir(folder(case)).unwrap() {
        all.extend(fs::read_dir(day.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
    }
    all.sort();
    all
}

/// Puts bytes into a file for as long as `look` looks.
async fn with_bytes<T>(path: &PathBuf, bytes: &[u8], look: impl AsyncFnOnce() -> T) -> T {
    let before = fs::read(path).unwrap();
    fs::write(path, bytes).unwrap();
    let seen = look().await;
    fs::write(path, before).unwrap();
    seen
}

/// Where the frames of a file begin, and its end.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut at = vec![68];
    while *at.last().unwrap() < bytes.len() {
        let from = *at.last().unwrap();
        let length = u32::from_be_bytes(bytes[from..from + 4].try_into().unwrap()) as usize;
        at.push(from + 8 + length);
    }
    at
}

/// Two files of one instance, with three uploads and a batch each.
async fn two_files(case: &Case) {
    let one = gateway(case).await;
    for day in 0..2 {
        for i in 0..3 {
            one.client("DE").upload_new(&format!("{day}-{i}"), 5, case.clock.now()).await;
        }
        one.form().await;
        if day == 0 {
            case.clock.set(case.clock.now() + TimeDelta::days(1));
        }
    }
    case.stop(&one).await;
    assert_eq!(files(case).len(), 2);
    assert_eq!(problems(case).await, Vec::<String>::new());
}

async fn whatever_is_altered_cut_exchanged_or_missing_is_named(case: &Case) {
    two_files(case).await;
    let paths = files(case);
    let name = |i: usize| paths[i].file_name().unwrap().to_str().unwrap().to_owned();
    let first = fs::read(&paths[0]).unwrap();
    let second = fs::read(&paths[1]).unwrap();
    let frame = frames(&first);
    assert!(frame.len() >= 5, "{frame:?}");
    let found = async |i: usize, bytes: &[u8], expected: &str| {
        let problems = with_bytes(&paths[i], bytes, async || problems(case).await).await;
        let named = problems.iter().any(|problem| problem.contains(&name(i)) && problem.contains(expected));
        assert!(named, "{expected:?}: {problems:?}");
    };
    // A byte of the header, of a length, of its check, of a key id, a nonce, a ciphertext and a tag.
    for at in [3, 20, 40, 66] {
        let mut bytes = first.clone();
        bytes[at] ^= 1;
        let problems = with_bytes(&paths[0], &bytes, async || problems(case).await).await;
        assert!(problems.iter().any(|problem| problem.contains(&name(0))), "byte {at}: {problems:?}");
    }
    for (offset, expected) in [
        (0, "altered"),
        (3, "altered"),
        (5, "altered"),
        (11, "encryption key"),
        (14, "altered"),
        (30, "altered"),
    ] {
        let mut bytes = first.clone();
        bytes[frame[1] + offset] ^= 1;
        found(0, &bytes, expected).await;
    }
    let mut bytes = first.clone();
    *bytes.last_mut().unwrap() ^= 1;
    found(0, &bytes, "altered").await;
    // A frame is missing; two are exchanged; one is there twice.
    let cut = [&first[..frame[1]], &first[frame[2]..]].concat();
    found(0, &cut, "missing").await;
    let exchanged =
        [&first[..frame[1]], &first[frame[2]..frame[3]], &first[frame[1]..frame[2]], &first[frame[3]..]]
            .concat();
    found(0, &exchanged, "1 groups of records are missing").await;
    found(0, &exchanged, "altered or moved").await;
    let twice = [&first[..frame[2]], &first[frame[1]..]].concat();
    found(0, &twice, "altered or moved").await;
    // It ends early, between two frames and within one; the next file knows where it ended.
    for end in [frame[3], frame[3] + 20] {
        found(0, &first[..end], "it was cut or exchanged").await;
    }
    // Two files are exchanged.
    with_bytes(&paths[1], &first, async || found(0, &second, "in the wrong place").await).await;
    // A file is missing, at the beginning or at the end.
    fs::remove_file(&paths[0]).unwrap();
    let missed = problems(case).await;
    assert_eq!(missed.len(), 1, "{missed:?}");
    assert!(
        missed[0].contains(&format!("{}: the file with the number 1 before it is missing", name(1))),
        "{missed:?}"
    );
    fs::write(&paths[0], &first).unwrap();
    fs::remove_file(&paths[1]).unwrap();
    assert_eq!(problems(case).await, Vec::<String>::new(), "the newest file can be missed by nobody");
    fs::write(&paths[1], &second).unwrap();
    assert_eq!(problems(case).await, Vec::<String>::new());
    // What was not written completely is no damage: no caller got an answer for it.
    let torn = [&second[..], &second[68..90]].concat();
    assert_eq!(with_bytes(&paths[1], &torn, async || problems(case).await).await.len(), 0);
}

async fn damage_can_be_accepted_and_the_rest_comes_back(case: &Case) {
    two_files(case).await;
    let path = files(case).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let frame = frames(&bytes);
    // In one of the uploads.
    let uploads: Vec<_> = frame.windows(2).filter(|pair| pair[1] - pair[0] > 1000).collect();
    bytes[uploads.last().unwrap()[0] + 100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let app = app_on_other(case).await;
    app.store.migrate().await.unwrap();
    let refused =
        efgs_gateway::journal::replay(&app.sources, None, false, |_| {}).await.err().unwrap().to_string();
    assert!(refused.contains("altered") && refused.contains("--accept-losses"), "{refused}");
    let done = efgs_gateway::journal::replay(&app.sources, None, true, |_| {}).await.unwrap();
    assert_eq!((done.uploads, done.batches), (5, 2), "{done:?}");
    assert!(done.losses.iter().any(|loss| loss.contains("1 of its 3 uploads are missing")), "{done:?}");
    app.store.clone().close().await;
}

pub(crate) async fn warnings(gateway: &Running) -> Vec<String> {
    gateway
        .app
        .readiness(Duration::from_secs(5))
        .await
        .warnings
        .into_iter()
        .map(|warning| warning.text)
        .collect()
}

async fn without_its_journal_uploads_are_refused_and_downloads_go_on(case: &Case) {
    let one = gateway(case).await;
    let (de, nl) = (one.client("DE"), one.client("NL"));
    de.upload_new("a", 2, case.clock.now()).await;
    let batch = one.form().await.remove(0);
    // As if its disk had gone.
    fs::remove_dir_all(folder(case)).unwrap();
    fs::write(folder(case), "not a folder").unwrap();
    let sent = keys(country("DE"), 3, case.clock.now());
    let answer = de.upload("b", &sent).await;
    answer.refused(503, "unavailable");
    assert!(answer.header("retry-after").is_some());
    de.upload("b", &sent).await.refused(503, "unavailable");
    de.send(Request::new("DELETE", format!("{}/a", wire::UPLOAD_PATH))).await.refused(503, "unavailable");
    let warned = warnings(&one).await;
    assert!(
        warned.iter().any(|w| w.contains("the journal cannot be written") && w.contains("Not a directory")),
        "{warned:?}"
    );
    assert!(one.app.readiness(Duration::from_secs(5)).await.reasons.is_empty());
    assert!(one.app.batching.form_now().await.is_err());
    // Neither is in a batch or forgotten; what there is is served, without what was withdrawn.
    let answer = nl.download(case.today(), None).await.expect(200);
    assert_eq!((answer.tag(), answer.next(), answer.keys().len()), (batch, "null".to_owned(), 0));
    // The disk comes back.
    fs::remove_file(folder(case)).unwrap();
    fs::create_dir(folder(case)).unwrap();
    de.upload("b", &sent).await.expect(201);
    assert!(!warnings(&one).await.iter().any(|w| w.contains("journal")));
    de.send(Request::new("DELETE", format!("{}/a", wire::UPLOAD_PATH))).await.expect(200);
    one.form().await;
    assert_eq!(
        one.client("IT").download(case.today(), None).await.expect(200).header("nextBatchTag").map(str::len),
        Some(24)
    );
    // What the lost disk had is written anew from the database, by itself.
    case.clock.set(case.clock.now() + TimeDelta::seconds(11));
    until("all is written", async || (!one.app.store.awaits_journal().await.unwrap()).then_some(())).await;
    case.stop(&one).await;
    assert_eq!(problems(case).await, Vec::<String>::new());
    let done = replay(case).await;
    assert_eq!((done.uploads, done.batches, done.withdrawals), (2, 2, 1));
}

async fn without_its_journal_a_gateway_stays_ready_however_long_no_batch_is_formed(case: &Case) {
    let one = case
        .gateway_with(|config| {
            with_journal(case, config);
            config.batching.interval = Duration::from_millis(200);
            config.database.timeout = Duration::from_millis(1500);
        })
        .await;
    one.client("DE").upload_new("a", 2, case.clock.now()).await;
    fs::remove_dir_all(folder(case)).unwrap();
    fs::write(folder(case), "not a folder").unwrap();
    one.client("DE").upload("b", &keys(country("DE"), 3, case.clock.now())).await.refused(503, "unavailable");
    // Overdue for hours.
    case.db.execute("UPDATE job SET due_at = 1 WHERE name = 'batching'").await;
    for _ in 0..3 {
        let runs = one.app.health.jobs().into_iter().find(|job| job.name == "batching").unwrap();
        until("a turn of the batching job", async || {
            let job = one.app.health.jobs().into_iter().find(|job| job.name == "batching").unwrap();
            (job.silent < runs.silent).then_some(())
        })
        .await;
        let readiness = one.app.readiness(Duration::from_secs(5)).await;
        assert_eq!(readiness.reasons, Vec::<String>::new());
        assert!(readiness.warnings.iter().any(|w| w.text.contains("the journal cannot be written")));
    }
    fs::remove_file(folder(case)).unwrap();
    fs::create_dir(folder(case)).unwrap();
    until("a batch", async || (case.db.number("SELECT COUNT(*) FROM batch").await == 1).then_some(())).await;
}

async fn files_that_were_not_made_to_their_end_are_no_damage(case: &Case) {
    two_files(case).await;
    let path = files(case).remove(0);
    let begun = fs::read(&path).unwrap();
    for (number, bytes) in [&[][..], &begun[..5], &begun[..67]].into_iter().enumerate() {
        fs::write(path.with_file_name(format!("00000000000000aa-0000000{number}.efgsj")), bytes).unwrap();
    }
    let app = app_on_other(case).await;
    let contents = Contents::survey(&app.sources, None).await.unwrap();
    assert_eq!((contents.problems, contents.notes.len()), (Vec::new(), 3), "{:?}", contents.notes);
    let done = replay(case).await;
    assert_eq!((done.uploads, done.batches), (6, 2));
}

async fn what_was_written_and_did_not_count_is_no_damage(case: &Case) {
    let one = gateway(case).await;
    one.client("DE").upload_new("a", 2, case.clock.now()).await;
    let path = files(case).remove(0);
    let bytes = fs::read(&path).unwrap();
    let whole = fs::OpenOptions::new().write(true).open(&path).unwrap();
    one.client("DE").upload_new("b", 2, case.clock.now()).await;
    let written = fs::read(&path).unwrap();
    case.stop(&one).await;
    // As if the disk had said that the second upload was not written: the next file begins after the first one.
    whole.set_len(written.len() as u64).unwrap();
    let header = &bytes[..68];
    let mut next = header.to_vec();
    next[16..24].copy_from_slice(&2u64.to_be_bytes());
    next[28..36].copy_from_slice(&1u64.to_be_bytes());
    next[36..68].copy_from_slice(&Sha256::digest(&bytes));
    let name = path.file_name().unwrap().to_str().unwrap().replace("-00000001", "-00000002");
    fs::write(path.with_file_name(name), next).unwrap();
    assert_eq!(problems(case).await, Vec::<String>::new());
    // What does count must be there.
    let cut = frames(&bytes);
    let problems = with_bytes(&path, &bytes[..cut[cut.len() - 2]], async || problems(case).await).await;
    assert!(problems.iter().any(|problem| problem.contains("it was cut or exchanged")), "{problems:?}");
}

async fn a_file_that_cannot_be_deleted_is_told_and_keeps_no_other(case: &Case) {
    let one = gateway(case).await;
    one.client("DE").upload_new("a", 1, case.clock.now()).await;
    let stuck = folder(case).join("2020-01-01/0000000000000001-00000001.efgsj");
    let others = ["2020-01-01/0000000000000001-00000002.efgsj", "2020-01-02/0000000000000001-00000003.efgsj"];
    let others = others.map(|name| folder(case).join(name));
    // Not even root can delete a folder as if it were a file.
    fs::create_dir_all(&stuck).unwrap();
    fs::create_dir_all(others[1].parent().unwrap()).unwrap();
    for other in &others {
        fs::write(other, "old").unwrap();
    }
    let warning = "files of the journal that are too old are not deleted: 1 of them";
    case.clock.set(case.clock.now() + TimeDelta::minutes(61));
    until("it is told", async || warnings(&one).await.iter().any(|w| w.starts_with(warning)).then_some(()))
        .await;
    assert!(others.iter().all(|other| !other.exists()));
    assert!(one.app.readiness(Duration::from_secs(5)).await.reasons.is_empty());
    fs::remove_dir(&stuck).unwrap();
    case.clock.set(case.clock.now() + TimeDelta::minutes(61));
    until("it is done", async || {
        (!warnings(&one).await.iter().any(|w| w.starts_with(warning))).then_some(())
    })
    .await;
}

async fn no_country_is_called_for_a_batch_that_is_held_back(case: &Case) {
    let calling = calling(case);
    let one = case
        .gateway_with(|config| {
            calling(config);
            with_journal(case, config);
        })
        .await;
    let server = subscribe(&one, "NL", "a").await;
    let first = batch(&one, "1").await;
    called(&server, std::slice::from_ref(&first)).await;
    quiet(case).await;
    // The batch is formed, and then the journal cannot be written.
    one.client("IE").upload_new("2", 1, case.clock.now()).await;
    fs::remove_dir_all(folder(case)).unwrap();
    fs::write(folder(case), "not a folder").unwrap();
    assert!(one.app.batching.form_now().await.is_err());
    assert_eq!(case.db.number("SELECT COUNT(*) FROM callback_notification").await, 1);
    assert!(one.app.store.due_subscriptions().await.unwrap().is_empty());
    let subscription = case.db.number("SELECT id FROM callback_subscription").await;
    let term = Duration::from_secs(30);
    let lease = one.app.store.acquire_callback(subscription, term).await.unwrap().unwrap();
    assert!(one.app.store.next_notification(&lease, term, None).await.unwrap().is_none());
    one.app.store.release_callback(lease).await.unwrap();
    assert_eq!(server.tags(), [first]);
    fs::remove_file(folder(case)).unwrap();
    fs::create_dir(folder(case)).unwrap();
    until("it is called", async || (server.tags().len() == 2).then_some(())).await;
    let tag = server.tags().remove(1);
    assert_eq!(one.client("NL").download(case.today(), Some(&tag)).await.expect(200).tag(), tag);
}

async fn the_end_of_a_replay_can_be_repeated(case: &Case) {
    two_files(case).await;
    replay(case).await;
    let app = app_on_other(case).await;
    let row = PendingBatch {
        id: case.other_db().await.column::<String>("SELECT LOWER(HEX(id)) FROM batch ORDER BY id").await[0]
            .parse()
            .unwrap(),
        day: case.today(),
        sequence: 1,
        format_major: 1,
        amount: 1,
        formed_at: case.clock.now(),
        uploads: Vec::new(),
    };
    // The mark is gone: an earlier attempt was committed.
    app.store.finish_replay(std::slice::from_ref(&row), &[], false).await.unwrap();
    app.store.begin_replay(&[]).await.unwrap();
    assert!(app.store.finish_replay(&[row], &[], false).await.is_err());
    assert!(app.store.replay_is_unfinished().await.unwrap());
    app.store.clone().close().await;
}

async fn kill_9_loses_nothing_that_was_acknowledged_from_the_journal(case: &Case) {
    let rounds: usize = std::env::var("EFGS_TEST_KILL_ROUNDS").map_or(3, |n| n.parse().unwrap());
    case.prepare().await;
    let text = fs::read_to_string(busy(case)).unwrap();
    fs::create_dir(folder(case)).unwrap();
    let config = case.write_config(&format!("{text}[journal]\nfolder = \"journal\"\n"));
    let mut all: Vec<Sent> = Vec::new();
    for round in 0..rounds {
        let mut process = Process::start(&config);
        let clients = ["DE", "IT", "IE", "DE"].map(|code| process.client(code));
        let names: Vec<String> = (0..4).map(|i| format!("{round}-{i}")).collect();
        let uploading = all_at_once(
            clients.iter().zip(&names).map(|(client, name)| upload_until_error(client, name, now())),
        );
        let before = case.db.counts().await[0];
        let killing = async {
            // Each of the four waits for its answer before it sends again: at least two were answered.
            until("six uploads", async || (case.db.counts().await[0] >= before + 6).then_some(())).await;
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..500))).await;
            process.kill();
        };
        let (sent, ()) = futures_util::future::join(uploading, killing).await;
        all.extend(sent.into_iter().flatten());
        end_leases(case).await;
    }
    case.clock.set(now());
    assert_eq!(problems(case).await, Vec::<String>::new());
    replay(case).await;
    let there: Vec<String> = case.other_db().await.column("SELECT HEX(upload_tag) FROM upload").await;
    let hex = |tag: &str| tag.bytes().map(|byte| format!("{byte:02X}")).collect::<String>();
    let acknowledged = all.iter().filter(|sent| sent.acknowledged);
    assert!(acknowledged.clone().count() > rounds, "only {} uploads", all.len());
    for sent in acknowledged {
        assert!(there.contains(&hex(&sent.tag)), "{} was acknowledged and is not in the journal", sent.tag);
    }
    // What was served is the same.
    let batches = "SELECT CONCAT(HEX(b.id), ' ', HEX(u.upload_tag)) FROM batch b JOIN upload u ON u.batch_id = b.id ORDER BY b.id, u.id";
    let held = "SELECT COUNT(*) FROM journal_pending_batch";
    let (before, after): (Vec<String>, Vec<String>) =
        (case.db.column(batches).await, case.other_db().await.column(batches).await);
    if case.db.number(held).await == 0 {
        assert_eq!(before, after);
    } else {
        assert!(before.starts_with(&after), "{before:?} {after:?}");
    }
}
