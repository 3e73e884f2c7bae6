//! `efgs download`, `efgs audit` and the library under them, against the real gateway.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use chrono::Days;
use efgs_client::{
    Format, Profile,
    download::{DownloadEvent, DownloadOptions, Downloader, Stored, Target},
};
use efgs_gateway::{
    clock::Clock,
    config::{ChainScope, TagStyle},
};
use serde_json::Value;
use tokio::sync::Notify;

use crate::{
    client::{Client, Request, join},
    harness::{Case, Running, country, participant, tests},
    national_backend::{MOST_MEMORY, efgs, peak_memory, profile},
};

tests![
    batches_of_two_days_and_three_countries_come_once_and_without_own_keys,
    follow_picks_up_a_new_batch_at_once,
    a_withdrawn_upload_is_not_in_what_is_downloaded_after,
    day_names_and_a_chain_that_ends_with_the_day_are_followed,
    batches_that_have_expired_are_a_gap,
    the_command_downloads_and_audits,
    what_does_not_verify_is_put_aside_with_exit_code_3,
    kill_9_at_any_moment_leaves_each_batch_once,
    memory_does_not_grow_with_the_keys,
];

/// What a gateway serves to a country from its first batch on: tags and bodies, in the order of the chain.
async fn served(client: &Client, from: chrono::NaiveDate) -> Vec<(String, bytes::Bytes)> {
    let mut all = Vec::new();
    let mut answer = client.download(from, None).await;
    while answer.status == 200 {
        let (tag, next) = (answer.tag(), answer.next());
        all.push((tag, answer.body));
        if next == "null" {
            break;
        }
        answer = client.download(from, Some(&next)).await;
    }
    all
}

/// The files of a folder are exactly these batches, to the byte and in this order, with their audits.
fn assert_stored(folder: &Path, served: &[(String, bytes::Bytes)]) {
    let stored = Stored::batches(folder).unwrap();
    let found: Vec<_> = stored.iter().map(|batch| batch.batch_tag.as_str()).collect();
    let expected: Vec<_> = served.iter().map(|(tag, _)| tag.as_str()).collect();
    assert_eq!(found, expected);
    for ((batch, (_, body)), number) in stored.iter().zip(served).zip(1..) {
        assert_eq!(batch.number, number);
        assert!(std::fs::read(&batch.path).unwrap() == *body, "{}", batch.path.display());
        assert!(batch.audit_path().exists());
    }
    assert_eq!(files(folder), 2 * served.len(), "something else is in the folder");
}

/// How many files are in a folder of batches, hidden ones too, but not its lock.
fn files(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name != ".efgs-download.lock").count()
}

/// NL's backend.
struct Backend<'a> {
    case: &'a Case,
    profile: Profile,
    events: Arc<Mutex<Vec<DownloadEvent>>>,
}

impl<'a> Backend<'a> {
    fn new(case: &'a Case, gateway: &Running) -> Self {
        let path = profile(gateway, case.folder.path(), participant("NL"));
        Self { case, profile: Profile::load(&path).unwrap(), events: Arc::default() }
    }

    fn folder(&self) -> std::path::PathBuf {
        self.case.folder.path().join("batches")
    }

    fn open(&self) -> Downloader {
        let (gateway, auditor) = (self.profile.gateway().unwrap(), self.profile.auditor().unwrap());
        let mut options = DownloadOptions::new(gateway, auditor, self.profile.state());
        options.clock = self.case.clock.clone();
        let events = self.events.clone();
        options.on_event = Box::new(move |event| events.lock().unwrap().push(event.clone()));
        let target = Target::Folder { path: self.folder(), format: Format::Protobuf };
        Downloader::open(options, target).unwrap()
    }

    async fn download(&self) -> usize {
        let mut downloader = self.open();
        let mut batches = 0;
        while downloader.next().await.unwrap().is_some() {
            batches += 1;
        }
        batches
    }
}

async fn batches_of_two_days_and_three_countries_come_once_and_without_own_keys(case: &Case) {
    let gateway = case.gateway().await;
    let first_day = case.today();
    let backend = Backend::new(case, &gateway);
    let mut uploaded = 0;
    for round in 0..4 {
        for code in ["DE", "IT", "IE", "NL"] {
            let amount = 1 + round * 3;
            gateway.client(code).upload_new(&format!("{code}-{round}"), amount, case.clock.now()).await;
            uploaded += if code == "NL" { 0 } else { amount };
        }
        gateway.form().await;
        if round == 1 {
            assert_eq!(backend.download().await, 2);
            case.clock.set(case.clock.now() + Days::new(1));
        }
    }
    // One that has nothing for NL.
    gateway.client("NL").upload_new("own", 3, case.clock.now()).await;
    gateway.form().await;
    assert_eq!(backend.download().await, 3);
    assert_eq!(backend.download().await, 0);
    assert_stored(&backend.folder(), &served(&gateway.client("NL"), first_day).await);
    let stored = Stored::batches(&backend.folder()).unwrap();
    let auditor = backend.profile.auditor().unwrap();
    let mut keys = 0;
    for batch in &stored {
        let all = batch.keys().unwrap();
        assert!(all.iter().all(|key| key.origin != country("NL")));
        keys += all.len();
        let report = auditor.audit_stored(batch).unwrap();
        assert!(report.holds, "{report}");
        assert_eq!(batch.date, first_day + Days::new(u64::from(batch.number > 2)));
    }
    assert_eq!((stored.len(), keys), (5, uploaded));
}

async fn follow_picks_up_a_new_batch_at_once(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    gateway.form().await;
    let backend = Backend::new(case, &gateway);
    let mut downloader = backend.open();
    let wake = Notify::new();
    let follow = downloader.follow(Duration::from_secs(3600), &wake);
    let meanwhile = async {
        let caught_up = async |times: usize| {
            crate::harness::until("the download is at the end of the chain", async || {
                let events = backend.events.lock().unwrap();
                let ends = events.iter().filter(|event| **event == DownloadEvent::CaughtUp).count();
                (ends == times).then_some(())
            })
            .await;
        };
        caught_up(1).await;
        assert_eq!(Stored::batches(&backend.folder()).unwrap().len(), 1);
        gateway.client("IT").upload_new("b", 2, case.clock.now()).await;
        gateway.form().await;
        wake.notify_one();
        caught_up(2).await;
    };
    tokio::select! {
        outcome = follow => panic!("{outcome:?}"),
        () = meanwhile => {}
    }
    assert_stored(&backend.folder(), &served(&gateway.client("NL"), case.today()).await);
}

async fn a_withdrawn_upload_is_not_in_what_is_downloaded_after(case: &Case) {
    let gateway = case.gateway().await;
    let (de, it) = (gateway.client("DE"), gateway.client("IT"));
    let backend = Backend::new(case, &gateway);
    let first = de.upload_new("a", 2, case.clock.now()).await;
    de.upload_new("b", 3, case.clock.now()).await;
    let last = it.upload_new("c", 1, case.clock.now()).await;
    gateway.form().await;
    let withdraw = |tag: &str| Request::new("DELETE", format!("/diagnosiskeys/upload/{tag}"));
    de.send(withdraw("b")).await.expect(200);
    assert_eq!(backend.download().await, 1);
    assert_eq!(Stored::batches(&backend.folder()).unwrap()[0].keys().unwrap(), join(&[&first, &last]));
    // After the batch was downloaded: the chain goes on.
    it.send(withdraw("c")).await.expect(200);
    de.upload_new("d", 4, case.clock.now()).await;
    gateway.form().await;
    assert_eq!(backend.download().await, 1);
    let report =
        std::fs::read_to_string(Stored::batches(&backend.folder()).unwrap()[0].audit_path()).unwrap();
    let audit: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(audit["withdrawnUploads"], 1);
}

async fn day_names_and_a_chain_that_ends_with_the_day_are_followed(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.batching.tags = TagStyle::DaySequence;
            config.participants.entry(country("NL")).or_default().chain = ChainScope::Day;
        })
        .await;
    let backend = Backend::new(case, &gateway);
    for day in 0..3 {
        for batch in 0..11 * u64::from(day == 0) + 1 {
            gateway.client("DE").upload_new(&format!("{day}-{batch}"), 1, case.clock.now()).await;
            gateway.form().await;
        }
        if day == 1 {
            assert_eq!(backend.download().await, 13);
        }
        case.clock.set(case.clock.now() + Days::new(2));
    }
    assert_eq!(backend.download().await, 1);
    let stored = Stored::batches(&backend.folder()).unwrap();
    let tags: Vec<_> = stored.iter().map(|batch| batch.batch_tag.clone()).collect();
    let first = stored[0].date;
    let name = |days, sequence| format!("{}-{sequence}", (first + Days::new(days)).format("%Y%m%d"));
    let expected: Vec<_> = (1..=12).map(|n| name(0, n)).chain([name(2, 1), name(4, 1)]).collect();
    assert_eq!(tags, expected);
}

async fn batches_that_have_expired_are_a_gap(case: &Case) {
    let gateway = case.gateway().await;
    let backend = Backend::new(case, &gateway);
    let first_day = case.today();
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    gateway.form().await;
    assert_eq!(backend.download().await, 1);
    case.clock.set(case.clock.now() + Days::new(20));
    gateway.client("DE").upload_new("b", 1, case.clock.now()).await;
    gateway.form().await;
    backend.events.lock().unwrap().clear();
    assert_eq!(backend.download().await, 1);
    let after = Stored::batches(&backend.folder()).unwrap()[0].batch_tag.clone();
    let gap = DownloadEvent::Gap { after: Some(after), since: first_day, until: first_day + Days::new(6) };
    assert_eq!(backend.events.lock().unwrap()[0], gap);
}

/// Runs the command to its end: exit code, standard output, standard error.
fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = efgs(folder, arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

async fn set_up(case: &Case) -> Running {
    let gateway = case.gateway_at(Clock::system(), |_| {}).await;
    profile(&gateway, case.folder.path(), participant("NL"));
    gateway
}

async fn add_batch(gateway: &Running, name: &str, amount: usize) -> String {
    let now = Clock::system().now();
    gateway.client("DE").upload_new(name, amount, now).await;
    gateway.client("IT").upload_new(name, 1, now).await;
    gateway.form().await.remove(0)
}

async fn the_command_downloads_and_audits(case: &Case) {
    let gateway = set_up(case).await;
    let (folder, today) = (case.folder.path(), Clock::system().now().date_naive());
    let tags = [add_batch(&gateway, "a", 3).await, add_batch(&gateway, "b", 2).await];
    let (code, text, errors) = run(folder, &["download", "--dry-run"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], format!("{} of {today}: 4 keys of 2 uploads, verified", tags[0]));
    assert!(lines[2].starts_with("2 new batches with 7 keys, all verified, would be stored in "), "{text}");
    let (_, text, _) = run(folder, &["download", "--dry-run", "--json", "--format", "ndjson"]);
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[1]["event"], "would-store");
    assert_eq!((&events[2]["batches"], &events[2]["dryRun"]), (&2.into(), &true.into()));
    assert!(!folder.join("batches").exists());
    let (code, text, errors) = run(folder, &["download"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    assert!(text.starts_with("2 new batches with 7 keys, all verified, in "), "{text}");
    assert_stored(&folder.join("batches"), &served(&gateway.client("NL"), today).await);
    let (code, text, _) = run(folder, &["download", "--json"]);
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &summary["event"], &summary["batches"]), (0, &"done".into(), &0.into()));

    // Lines, to a file and to a pipe.
    let arguments = ["download", "--format", "ndjson", "--since", &today.to_string()];
    let (code, piped, _) = run(folder, &arguments);
    assert_eq!(code, 0);
    let (code, text, _) = run(folder, &[&arguments[..], &["--into", "keys.ndjson", "--json"]].concat());
    assert_eq!(code, 0);
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["stored", "stored", "done"]);
    assert_eq!(std::fs::read_to_string(folder.join("keys.ndjson")).unwrap(), piped);
    let lines: Vec<Value> = piped.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line_tags: Vec<_> = lines.iter().map(|line| line["batchTag"].as_str().unwrap()).collect();
    assert_eq!(line_tags, [vec![tags[0].as_str(); 4], vec![tags[1].as_str(); 3]].concat());

    let (code, text, _) = run(folder, &["audit", &today.to_string(), &tags[0]]);
    assert_eq!(code, 0);
    assert!(text.contains(": 4 keys, 2 uploads: verified") && text.contains("operator"), "{text}");
    let (code, text, _) = run(folder, &["audit", "--stored", "batches", "--json"]);
    let reports: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, reports.len()), (0, 2));
    assert_eq!(reports[1]["uploads"][0]["country"], "DE");
    // One that was changed on the disk, without the gateway.
    case.stop(&gateway).await;
    let stored = Stored::batches(&folder.join("batches")).unwrap();
    let mut bytes = std::fs::read(&stored[1].path).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&stored[1].path, bytes).unwrap();
    let (code, text, _) = run(folder, &["audit", "--stored", stored[1].path.to_str().unwrap()]);
    assert_eq!(code, 3);
    assert!(text.contains("DOES NOT VERIFY") && text.contains("FAILED"), "{text}");
    let (code, _, errors) = run(folder, &["audit", &today.to_string()]);
    assert_eq!(code, 2, "{errors}");
}

async fn what_does_not_verify_is_put_aside_with_exit_code_3(case: &Case) {
    let gateway = set_up(case).await;
    let folder = case.folder.path();
    let tag = add_batch(&gateway, "a", 3).await;
    let other = efgs_test_ca::Pki::new(efgs_test_ca::KeyKind::Ec256).unwrap();
    let anchor = folder.join("trust-anchor.pem");
    let right = std::fs::read(&anchor).unwrap();
    std::fs::write(&anchor, other.anchor_pair.certificate.pem()).unwrap();
    let (code, text, errors) = run(folder, &["download", "--json"]);
    assert_eq!(code, 3, "{errors}");
    assert!(errors.contains(&format!("batch {tag} does not verify")), "{errors}");
    assert!(errors.contains("does not verify with the trust anchor"), "{errors}");
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["batchTag"]), (&"quarantined".into(), &tag.clone().into()));
    let aside = Path::new(last["folder"].as_str().unwrap()).join("report.txt");
    assert!(std::fs::read_to_string(folder.join(aside)).unwrap().contains("DOES NOT VERIFY"));
    assert_eq!(files(&folder.join("batches")), 0);
    let (code, ..) = run(folder, &["audit", &Clock::system().now().date_naive().to_string(), &tag]);
    assert_eq!(code, 3);
    // As asked for.
    let (code, _, errors) = run(folder, &["download", "--into", "other", "--continue-past", &tag]);
    assert_eq!(code, 4);
    assert!(errors.contains("skipped because of --continue-past"), "{errors}");
    std::fs::write(&anchor, right).unwrap();
    assert_eq!(run(folder, &["download"]).0, 0);
    assert_eq!(Stored::batches(&folder.join("batches")).unwrap().len(), 1);
    case.stop(&gateway).await;
    assert_eq!(run(folder, &["download", "--retries", "0"]).0, 5);
}

async fn kill_9_at_any_moment_leaves_each_batch_once(case: &Case) {
    let rounds: usize = std::env::var("EFGS_TEST_KILL_ROUNDS").map_or(5, |n| n.parse().unwrap());
    let gateway = set_up(case).await;
    let folder = case.folder.path();
    let today = Clock::system().now().date_naive();
    let to_folder = ["download", "--into", "batches"];
    let to_lines = ["download", "--into", "keys.ndjson", "--format", "ndjson"];
    // What a reader has taken out of the folder. It does not come again, unless the process was killed between the
    // batch's name and the cursor: then it is the last one, and the same.
    let mut taken = BTreeMap::new();
    let (mut last, mut again) = (String::new(), 0);
    let mut take = || {
        let before = last.clone();
        for entry in std::fs::read_dir(folder.join("batches")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if !name.starts_with('.') {
                let content = std::fs::read(&path).unwrap();
                std::fs::remove_file(path).unwrap();
                last = last.clone().max(name.clone());
                if let Some(same) = taken.insert(name.clone(), content) {
                    assert!(before.starts_with(&name[..10]), "{name} came again after {before}");
                    assert!(same == taken[&name], "{name} came again with another content");
                    again += 1;
                }
            }
        }
    };
    std::fs::create_dir(folder.join("batches")).unwrap();
    let mut killed = 0;
    // How long an undisturbed one takes, about.
    let mut longest = Duration::ZERO;
    for round in 0..=rounds {
        for batch in 0..4 {
            add_batch(&gateway, &format!("{round}-{batch}"), 40).await;
        }
        for arguments in [&to_folder[..], &to_lines] {
            let begun = Instant::now();
            if round == 0 {
                assert_eq!(run(folder, arguments).0, 0);
                longest = longest.max(begun.elapsed());
                continue;
            }
            let mut command = efgs(folder, arguments);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            tokio::time::sleep(longest.mul_f64(rand::random_range(0.0..1.1))).await;
            // So that some come to their end, and the others are killed anywhere on the way there.
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                killed += 1;
                longest = longest.mul_f64(1.1);
            } else {
                longest = longest.mul_f64(0.7);
            }
            let Output { status, stderr, .. } = child.wait_with_output().unwrap();
            assert!(status.success() || status.code().is_none(), "{}", String::from_utf8_lossy(&stderr));
        }
        take();
    }
    assert!(killed > 0, "none was killed");
    for arguments in [&to_folder[..], &to_lines] {
        let (code, text, errors) = run(folder, arguments);
        assert_eq!(code, 0, "{text}{errors}");
    }
    take();
    // With its audit.
    assert!(again <= 2 * killed, "{again} files came again");
    assert_eq!(files(&folder.join("batches")), 0, "something is half done");
    for (name, content) in &taken {
        std::fs::write(folder.join("batches").join(name), content).unwrap();
    }
    let served = served(&gateway.client("NL"), today).await;
    assert_stored(&folder.join("batches"), &served);
    let lines = std::fs::read_to_string(folder.join("keys.ndjson")).unwrap();
    let mut keys = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut count = 0;
    for batch in Stored::batches(&folder.join("batches")).unwrap() {
        for key in batch.keys().unwrap().iter() {
            let line = keys.next().unwrap();
            let mut json = Vec::new();
            efgs_protocol::wire::encode_key(efgs_protocol::media::Format::Json, key, &mut json);
            let json: Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(
                (&line["batchTag"], &line["keyData"]),
                (&batch.batch_tag.clone().into(), &json["keyData"])
            );
            count += 1;
        }
    }
    assert!(keys.next().is_none() && count == served.len() * 41);
}

/// `EFGS_TEST_MANY_KEYS=1000000` for the full size.
#[expect(clippy::print_stdout, reason = "at its full size it is run for this figure")]
async fn memory_does_not_grow_with_the_keys(case: &Case) {
    let amount: usize = std::env::var("EFGS_TEST_MANY_KEYS").map_or(10_000, |n| n.parse().unwrap());
    let gateway = set_up(case).await;
    let now = Clock::system().now();
    for at in 0..amount.div_ceil(5000) {
        let client = gateway.client(["DE", "IT"][at % 2]);
        client.upload_new(&at.to_string(), 5000, now).await;
    }
    gateway.form().await;
    let begin = Instant::now();
    let mut child = efgs(case.folder.path(), &["download", "--quiet"]).stdout(Stdio::null()).spawn().unwrap();
    let (status, peak) = peak_memory(&mut child).await;
    println!("{amount} keys: {} MiB at most, {:.1} s", peak >> 20, begin.elapsed().as_secs_f64());
    assert_eq!(status.code(), Some(0));
    let stored = Stored::batches(&case.folder.path().join("batches")).unwrap();
    let keys: usize = stored.iter().map(|batch| batch.keys().unwrap().len()).sum();
    assert_eq!(keys, amount.next_multiple_of(5000));
    assert!(peak > 0 && peak < MOST_MEMORY, "{} MiB", peak >> 20);
}
