//! What later runs know.

use super::*;

#[tokio::test]
async fn the_same_files_again_send_nothing_whatever_the_day() {
    let backend = Backend::new();
    let sources = || vec![source("a", &keys(0..25)), source("b", &keys(20..30))];
    backend.run(sources()).await.unwrap();
    let calls = backend.fake.tags().len();
    for days in [0, 1, 14, 20] {
        // By then the keys are too old to be sent.
        backend.clock.set(now() + TimeDelta::days(days));
        let report = backend.run(sources()).await.unwrap();
        assert_eq!(report.outcome, RunOutcome::Complete, "{days}");
        assert_eq!(report.keys.done_before + report.keys.repeated, 35, "{days}");
        // In another order of their keys, and beside a new file.
        let shuffled = keys([3, 1, 2, 0, 9, 8, 7, 6, 5, 4]);
        let report = backend.upload(&shuffled).await;
        assert_eq!(report.keys.done_before, 10);
    }
    assert_eq!(backend.fake.tags().len(), calls);
}

#[tokio::test]
async fn a_new_file_beside_sent_ones_is_all_that_is_sent() {
    let backend = Backend::new();
    backend.run(vec![source("a", &keys(0..25))]).await.unwrap();
    let report = backend.run(vec![source("0", &keys(100..103)), source("a", &keys(0..25))]).await.unwrap();
    assert_eq!(report.keys, Counts { read: 28, done_before: 25, stored: 3, ..Counts::default() });
    assert_eq!(backend.fake.tags().len(), 4);
}

#[tokio::test]
async fn another_gateway_has_a_memory_of_its_own() {
    let backend = Backend::new();
    backend.upload(&keys(0..5)).await;
    let backend = Backend { fake: Fake::start(), ..backend };
    assert_eq!(backend.upload(&keys(0..5)).await.keys.stored, 5);
}

#[tokio::test]
async fn an_upload_whose_answer_was_never_read_is_not_stored_twice() {
    let mut backend = Backend::new();
    backend.options.retry.limit = 0;
    let report = backend.fails([Fault::StoreAndHangUp], 5).await;
    assert_eq!((report.outcome, report.keys.unsent), (RunOutcome::Unanswered, 5));
    let report = backend.upload(&keys(0..5)).await;
    assert_eq!((report.outcome, report.keys.stored), (RunOutcome::Complete, 5));
    let tags = backend.fake.tags();
    assert_eq!((tags.len(), &tags[0]), (2, &tags[1]));
    // With another signing certificate it is another upload, so that the gateway names the keys.
    backend.fake.fail([Fault::StoreAndHangUp]);
    assert_eq!(backend.upload(&keys(10..18)).await.keys.unsent, 8);
    let backend = Backend { signer: new_signer(), ..backend };
    let report = backend.upload(&keys(10..18)).await;
    assert_eq!((report.outcome, report.keys.existing), (RunOutcome::Complete, 8));
}

#[tokio::test]
async fn a_key_that_was_left_out_is_sent_once_it_is_valid() {
    let mut backend = Backend::new();
    backend.options.skip_invalid = true;
    let mut batch = keys(0..5);
    let start = (now().timestamp() / 600) as u32 + 100;
    batch.push(DiagnosisKey { rolling_start_interval_number: start, ..key(5) }, &[]);
    let report = backend.upload(&batch).await;
    assert_eq!((report.keys.stored, report.keys.invalid), (5, 1));
    // Meanwhile it stays reported, and nothing is sent again.
    let report = backend.upload(&batch).await;
    assert_eq!((report.keys.done_before, report.keys.invalid), (5, 1));
    assert_eq!(backend.fake.tags().len(), 1);
    backend.clock.set(now() + TimeDelta::days(1));
    let report = backend.upload(&batch).await;
    assert_eq!((report.keys.existing, report.keys.stored), (5, 1));
    assert_eq!(backend.fake.stored(), (0..6).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_key_whose_first_upload_failed_is_not_lost_with_its_repetition() {
    let mut backend = Backend::new();
    backend.options.concurrency = 1;
    backend.fake.fail([Fault::Refuse("409 Conflict".into())]);
    let report = backend.run(vec![source("a", &keys(0..5)), source("b", &keys(3..9))]).await.unwrap();
    assert_eq!((report.keys.unsent, report.keys.stored), (5, 4));
    let report = backend.run(vec![source("b", &keys(3..9))]).await.unwrap();
    assert_eq!((report.keys.existing, report.keys.stored), (4, 2));
    assert_eq!(backend.fake.stored(), (3..9).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_run_that_is_dropped_leaves_a_state_to_go_on_from() {
    let backend = Backend::new();
    let keys = keys(0..95);
    for calls in [1, 3, 4] {
        let (called, mut calling) = tokio::sync::mpsc::unbounded_channel();
        backend.fake.on_call(move || called.send(()).unwrap_or_default());
        let enough = async {
            for _ in 0..calls {
                calling.recv().await.unwrap();
            }
        };
        tokio::select! {
            _ = backend.upload(&keys) => panic!("it was not dropped"),
            () = enough => {}
        }
    }
    let report = backend.upload(&keys).await;
    assert_eq!(report.outcome, RunOutcome::Complete);
    assert_eq!(backend.fake.stored(), (0..95).collect::<Vec<_>>());
    assert_eq!(backend.fake.uploads().len(), 10);
}

#[tokio::test]
async fn two_runs_on_one_state_folder_are_refused() {
    let backend = Backend::new();
    let journal = journal::Journal::open(backend.state.path(), now()).unwrap();
    let refused = backend.run(vec![source("keys", &keys(0..5))]).await;
    assert!(matches!(refused, Err(UploadError::State(StateError::InUse(_)))));
    assert!(backend.fake.tags().is_empty());
    drop(journal);
    assert_eq!(backend.upload(&keys(0..5)).await.keys.stored, 5);
}

#[tokio::test]
async fn the_journal_survives_a_torn_line_and_notices_damage() {
    let backend = Backend::new();
    backend.upload(&keys(0..15)).await;
    let path = backend.state.path().join("upload.journal");
    let whole = std::fs::read(&path).unwrap();
    // Cut off anywhere, it knows a part of what was done; the rest is no second upload.
    for length in (0..whole.len()).step_by(31) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let report = backend.upload(&keys(0..15)).await;
        assert_eq!((report.outcome, report.keys.unsent), (RunOutcome::Complete, 0), "{length}");
    }
    assert_eq!(backend.fake.uploads().len(), 2);
    std::fs::write(&path, b"{}\n").unwrap();
    let damaged = backend.run(vec![source("keys", &keys(0..15))]).await.unwrap_err().to_string();
    assert!(damaged.contains("upload.journal is damaged: line 1") && damaged.contains("move"), "{damaged}");
}

#[tokio::test]
async fn the_journal_forgets_what_the_gateway_has_forgotten() {
    let backend = Backend::new();
    backend.upload(&keys(0..5)).await;
    let path = backend.state.path().join("upload.journal");
    let length = || std::fs::metadata(&path).unwrap().len();
    assert!(length() > 0);
    backend.clock.set(now() + TimeDelta::days(31));
    backend.upload(&KeyBatch::new()).await;
    assert_eq!(length(), 0);
}

/// A key whose rolling period begins this many days later.
fn later(number: u32, days: i64) -> DiagnosisKey {
    let key = key(number);
    let start = i64::from(key.rolling_start_interval_number) + days * 144;
    DiagnosisKey { rolling_start_interval_number: start as u32, ..key }
}

#[tokio::test]
async fn keys_that_were_sent_long_ago_do_not_stop_new_ones() {
    let old = || source("old", &keys(0..25));
    let mut new = KeyBatch::new();
    new.push(later(100, 31), &[]);
    let backend = Backend::new();
    backend.run(vec![old()]).await.unwrap();
    backend.clock.set(now() + TimeDelta::days(31));
    // Nobody met the old file in the meantime, so that the journal has forgotten it.
    let report = backend.run(vec![old(), source("new", &new)]).await.unwrap();
    assert_eq!(report.outcome, RunOutcome::Complete);
    assert_eq!(report.keys, Counts { read: 26, too_old: 25, stored: 1, ..Counts::default() });
    assert!(report.invalid.is_empty());

    // What else is wrong with an old or a future key still stops everything.
    for bad in [DiagnosisKey { origin: country("DE"), ..key(1) }, later(200, 40)] {
        let mut batch = KeyBatch::new();
        batch.push(later(101, 31), &[]);
        batch.push(bad, &[]);
        let report = backend.run(vec![old(), source("bad", &batch)]).await.unwrap();
        assert_eq!((report.outcome, report.keys.invalid, report.keys.too_old), (RunOutcome::Invalid, 1, 25));
    }
}

#[tokio::test]
async fn a_file_that_is_met_again_and_again_stays_known() {
    let backend = Backend::new();
    for day in 0..80 {
        backend.clock.set(now() + TimeDelta::days(day));
        let report = backend.upload(&keys(0..25)).await;
        assert_eq!(report.outcome, RunOutcome::Complete);
        assert_eq!(report.keys.done_before, if day == 0 { 0 } else { 25 }, "day {day}");
    }
    assert_eq!(backend.fake.tags().len(), 3);
    // Each piece was written down anew every 16 days, and the lines of the first days have gone.
    let journal = std::fs::read_to_string(backend.state.path().join("upload.journal")).unwrap();
    assert_eq!(journal.lines().count(), 3, "{journal}");
}

#[tokio::test]
async fn a_file_that_grows_for_weeks_is_sent_every_day() {
    let mut backend = Backend::new();
    backend.options.max_keys = 50;
    let mut file = KeyBatch::new();
    for day in 0..30 {
        backend.clock.set(now() + TimeDelta::days(day));
        let first = 4 * day as u32;
        (first..first + 4).for_each(|number| file.push(later(number, day), &[]));
        let report = backend.upload(&file).await;
        assert_eq!((report.outcome, report.keys.stored), (RunOutcome::Complete, 4), "day {day}");
        assert!(report.keys.too_old == 0 || day > 14, "day {day}: {report:?}");
    }
    assert_eq!(backend.fake.stored(), (0..120).collect::<Vec<_>>());
}

#[cfg(unix)]
#[tokio::test]
async fn the_state_is_private() {
    use std::os::unix::fs::PermissionsExt as _;

    let backend = Backend::new();
    // It is made by the first run.
    std::fs::remove_dir(backend.state.path()).unwrap();
    backend.upload(&keys(0..5)).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(backend.state.path()), 0o700);
    for name in ["upload.journal", "upload.lock"] {
        assert_eq!(mode(&backend.state.path().join(name)), 0o600, "{name}");
    }
}
