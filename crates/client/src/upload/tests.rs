#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod gateway;
mod remembering;

use std::{collections::BTreeSet, io::Cursor};

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use efgs_protocol::{
    key::{DiagnosisKey, KeyBatch, KeyData, ReportType},
    media::Format,
    wire,
};
use tempfile::TempDir;

use super::*;
use gateway::{Fake, Fault};

fn country(code: &str) -> Country {
    code.parse().unwrap()
}

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 22, 10, 0, 0).unwrap()
}

/// The key with this number, valid now.
fn key(number: u32) -> DiagnosisKey {
    let mut key_data = [0; 16];
    key_data[..4].copy_from_slice(&number.to_be_bytes());
    DiagnosisKey {
        key_data: KeyData::new(key_data),
        rolling_start_interval_number: (now().timestamp() / 600) as u32 - 144,
        rolling_period: 144,
        transmission_risk_level: 3,
        origin: country("NL"),
        report_type: ReportType::ConfirmedTest,
        days_since_onset_of_symptoms: 1,
    }
}

fn keys(numbers: impl IntoIterator<Item = u32>) -> KeyBatch {
    let mut batch = KeyBatch::new();
    for number in numbers {
        batch.push(key(number), &[country("DE")]);
    }
    batch
}

fn source(name: &str, keys: &KeyBatch) -> Source {
    Source::reader(name, Cursor::new(wire::encode(Format::Protobuf, keys)))
}

/// A country's backend beside a gateway that is not real.
struct Backend {
    fake: Fake,
    signer: BatchSigner,
    state: TempDir,
    clock: Clock,
    options: UploadOptions,
    stop: CancellationToken,
}

impl Backend {
    fn new() -> Self {
        let mut options = UploadOptions::new(country("NL"));
        options.max_keys = 10;
        options.retry =
            Retry { limit: 3, first: Duration::from_millis(2), longest: Duration::from_millis(4) };
        Self {
            fake: Fake::start(),
            signer: new_signer(),
            state: tempfile::tempdir().unwrap(),
            clock: Clock::manual(now()),
            options,
            stop: CancellationToken::new(),
        }
    }

    async fn run(&self, sources: Vec<Source>) -> Result<RunReport, UploadError> {
        let uploader = Uploader {
            gateway: &self.fake.gateway,
            signer: &self.signer,
            state: self.state.path(),
            clock: self.clock.clone(),
            options: self.options.clone(),
        };
        let report = uploader.run(sources, &self.stop, Arc::new(|_| {})).await?;
        for Counts { read, invalid, too_old, repeated, done_before, stored, existing, unsent } in
            report.files.iter().map(|file| file.keys).chain([report.keys])
        {
            assert_eq!(
                read,
                invalid + too_old + repeated + done_before + stored + existing + unsent,
                "{report:?}"
            );
        }
        Ok(report)
    }

    async fn upload(&self, keys: &KeyBatch) -> RunReport {
        self.run(vec![source("keys", keys)]).await.unwrap()
    }

    async fn fails(&self, faults: impl IntoIterator<Item = Fault>, amount: u32) -> RunReport {
        self.fake.fail(faults);
        self.upload(&keys(0..amount)).await
    }
}

fn new_signer() -> BatchSigner {
    let pki = efgs_test_ca::Pki::new(efgs_test_ca::KeyKind::Ec256).unwrap();
    pki.participant(country("NL")).unwrap().signing.signer().unwrap()
}

#[tokio::test]
async fn files_are_split_and_each_key_is_sent_once() {
    let backend = Backend::new();
    let sources = vec![source("a", &keys(0..25)), source("b", &keys(20..37)), source("empty", &keys([]))];
    let report = backend.run(sources).await.unwrap();
    assert_eq!(backend.fake.stored(), (0..37).collect::<Vec<_>>());
    assert_eq!(report.outcome, RunOutcome::Complete);
    assert_eq!((report.planned_uploads, report.uploads.len(), report.retries), (5, 5, 0));
    let names: Vec<_> = report.files.iter().map(|file| (file.name.as_str(), file.keys.stored)).collect();
    assert_eq!(names, [("a", 25), ("b", 12), ("empty", 0)]);
    assert_eq!(report.keys, Counts { read: 42, repeated: 5, stored: 37, ..Counts::default() });
    let tags: BTreeSet<_> = report.uploads.iter().map(|upload| upload.tag.as_str()).collect();
    assert_eq!(tags.len(), 5);
    assert!(tags.iter().all(|tag| tag.starts_with("NL-") && tag.len() <= 64), "{tags:?}");
}

#[tokio::test]
async fn inside_an_upload_the_keys_are_in_the_order_of_their_key_data() {
    let backend = Backend::new();
    backend.upload(&keys([5, 3, 9, 1])).await;
    assert_eq!(backend.fake.uploads(), [vec![1, 3, 5, 9]]);
}

#[tokio::test]
async fn no_upload_has_more_bytes_than_allowed() {
    let mut backend = Backend::new();
    let mut many = KeyBatch::new();
    for number in 0..6 {
        many.push(key(number), &vec![country("DE"); 100 * number as usize]);
    }
    backend.options.max_bytes = 1500;
    let report = backend.upload(&many).await;
    assert_eq!(report.keys.stored, 6);
    // Alone, a key is sent whatever its length is.
    let uploads = backend.fake.uploads();
    assert_eq!(uploads.iter().map(Vec::len).max(), Some(3), "{uploads:?}");
    assert!(backend.fake.longest_body() < 500 * 4 + 100);
}

#[tokio::test]
async fn what_may_succeed_later_is_repeated_under_the_same_tag() {
    let status = |line: &str| Fault::Refuse(line.to_owned());
    for fault in [
        status("408 Request Timeout"),
        status("429 Too Many Requests\r\nRetry-After: 0"),
        status("500 Internal Server Error"),
        status("503 Service Unavailable\r\nRetry-After: Sun, 22 Nov 2026 09:59:59 GMT"),
        Fault::StoreAndHangUp,
        Fault::StoreAndCutOff,
        Fault::HangUp,
    ] {
        let backend = Backend::new();
        let report = backend.fails([fault.clone(), fault.clone()], 15).await;
        assert_eq!(report.outcome, RunOutcome::Complete, "{fault:?}");
        assert_eq!((report.retries, report.keys.stored), (2, 15), "{fault:?}");
        assert_eq!(backend.fake.stored(), (0..15).collect::<Vec<_>>());
        let tags: BTreeSet<_> = backend.fake.tags().into_iter().collect();
        assert_eq!(tags.len(), 2, "{fault:?}");
    }
}

#[tokio::test]
async fn the_gateway_says_how_long_to_wait() {
    let backend = Backend::new();
    let begin = std::time::Instant::now();
    let report = backend.fails([Fault::Refuse("429 Too Many Requests\r\nRetry-After: 1".into())], 1).await;
    assert_eq!(report.outcome, RunOutcome::Complete);
    assert!(begin.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_gateway_that_stays_away_is_given_up_and_the_next_run_goes_on() {
    let backend = Backend::new();
    let report = backend.fails(vec![Fault::HangUp; 100], 25).await;
    assert_eq!(report.outcome, RunOutcome::Unanswered);
    assert_eq!(report.keys, Counts { read: 25, unsent: 25, ..Counts::default() });
    assert!(report.failed[0].reason.starts_with("no answer from the gateway"), "{report:?}");
    assert!(backend.fake.tags().len() <= 8, "two uploads, each four times");
    backend.fake.fail([]);
    assert_eq!(backend.upload(&keys(0..25)).await.outcome, RunOutcome::Complete);
    assert_eq!(backend.fake.stored(), (0..25).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_refused_for_good_is_not_repeated_and_ends_the_run() {
    for status in
        ["400 Bad Request", "403 Forbidden", "406 Not Acceptable", "413 Payload Too Large", "302 Found"]
    {
        let mut backend = Backend::new();
        backend.options.concurrency = 1;
        let report = backend.fails([Fault::Refuse(status.into())], 25).await;
        assert_eq!((report.outcome, report.retries), (RunOutcome::Refused, 0), "{status}");
        assert_eq!(backend.fake.tags().len(), 1, "{status}");
        assert_eq!((report.failed.len(), report.keys.unsent), (1, 25));
        assert!(report.failed[0].reason.contains(&status[..3]), "{report:?}");
    }
}

#[tokio::test]
async fn a_tag_that_is_taken_concerns_one_upload_alone() {
    let mut backend = Backend::new();
    backend.options.concurrency = 1;
    let report = backend.fails([Fault::Refuse("409 Conflict".into())], 25).await;
    assert_eq!((report.outcome, report.failed.len()), (RunOutcome::Partial, 1));
    assert_eq!((report.keys.stored, report.keys.unsent), (15, 10));
    // It is not forgotten.
    let report = backend.upload(&keys(0..25)).await;
    assert_eq!((report.keys.done_before, report.keys.stored), (15, 10));
}

#[tokio::test]
async fn after_a_207_only_the_rest_is_sent_under_a_tag_of_its_own() {
    let backend = Backend::new();
    backend.fake.has([1, 4, 22, 23, 24]);
    let report = backend.upload(&keys(0..25)).await;
    assert_eq!(backend.fake.stored(), (0..25).collect::<Vec<_>>());
    assert_eq!(report.keys, Counts { read: 25, stored: 20, existing: 5, ..Counts::default() });
    assert_eq!((report.outcome, report.planned_uploads), (RunOutcome::Complete, 3));
    let tags: BTreeSet<_> = backend.fake.tags().into_iter().collect();
    assert_eq!((tags.len(), backend.fake.tags().len()), (5, 5));
    // All of it is there already, as after a journal that was lost.
    let backend = Backend { state: tempfile::tempdir().unwrap(), signer: new_signer(), ..backend };
    let report = backend.upload(&keys(0..25)).await;
    assert_eq!(report.keys, Counts { read: 25, existing: 25, ..Counts::default() });
    assert_eq!((report.outcome, report.uploads), (RunOutcome::Complete, vec![]));
}

#[tokio::test]
async fn a_207_that_makes_no_sense_is_refused() {
    for body in [
        r#"{"201":[0,1,2],"409":[]}"#,
        r#"{"201":[0,1],"409":[]}"#,
        r#"{"201":[0],"409":[1]}"#,
        r#"{"201":[0,1],"409":[1,2]}"#,
        r#"{"201":[0,1],"409":[3]}"#,
        r#"{"201":[0,1],"409":[2],"500":[2]}"#,
        r#"{"201":[0,1]"#,
    ] {
        let backend = Backend::new();
        let report = backend.fails([Fault::MultiStatus(body.into())], 3).await;
        assert_eq!((report.outcome, report.keys.unsent), (RunOutcome::Refused, 3), "{body}");
    }
}

#[tokio::test]
async fn one_invalid_key_is_enough_and_nothing_is_sent() {
    let mut backend = Backend::new();
    let mut bad = keys(0..30);
    bad.push(DiagnosisKey { rolling_period: 145, ..key(30) }, &[]);
    bad.push(DiagnosisKey { origin: country("DE"), ..key(31) }, &[]);
    let sources = || vec![source("good", &keys(100..105)), source("bad", &bad)];
    let report = backend.run(sources()).await.unwrap();
    assert_eq!((report.outcome, report.keys.invalid), (RunOutcome::Invalid, 2));
    assert_eq!(backend.fake.tags(), [""; 0]);
    let entry = |key, reason: &str| InvalidEntry { file: "bad".into(), key, reason: reason.into() };
    let first = entry(30, "rollingPeriod 145 is not within 1 to 144");
    assert_eq!(report.invalid, [first, entry(31, "origin DE is not NL, which uploads and signs")]);

    backend.options.skip_invalid = true;
    let report = backend.run(sources()).await.unwrap();
    assert_eq!(report.outcome, RunOutcome::Partial);
    assert_eq!((report.keys.invalid, report.keys.stored), (2, 35));
}

#[tokio::test]
async fn invalid_keys_are_counted_but_not_all_named() {
    let backend = Backend::new();
    let mut bad = KeyBatch::new();
    for number in 0..500 {
        bad.push(DiagnosisKey { rolling_period: 0, ..key(number) }, &[]);
    }
    let report = backend.upload(&bad).await;
    assert_eq!((report.keys.invalid, report.invalid.len()), (500, MAX_LISTED));
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_sent() {
    let mut backend = Backend::new();
    backend.upload(&keys(0..10)).await;
    let before = backend.fake.tags();
    backend.options.dry_run = true;
    let report = backend.upload(&keys(0..25)).await;
    assert_eq!((report.outcome, report.dry_run, report.planned_uploads), (RunOutcome::Complete, true, 2));
    assert_eq!(report.keys, Counts { read: 25, done_before: 10, unsent: 15, ..Counts::default() });
    assert_eq!(backend.fake.tags(), before);
}

#[tokio::test]
async fn a_run_that_is_stopped_begins_nothing_more() {
    let backend = Backend::new();
    let stop = backend.stop.clone();
    backend.fake.on_call(move || stop.cancel());
    let report = backend.upload(&keys(0..95)).await;
    assert_eq!(report.outcome, RunOutcome::Interrupted);
    let stored = report.keys.stored;
    assert!((10..=20).contains(&stored), "{stored}");
    assert_eq!(report.keys.unsent, 95 - stored);
    // Neither is anything read any more.
    let stopped = backend.run(vec![source("keys", &keys(0..95))]).await;
    assert!(matches!(stopped, Err(UploadError::Stopped)));
    let backend = Backend { stop: CancellationToken::new(), ..backend };
    let report = backend.upload(&keys(0..95)).await;
    assert_eq!((report.outcome, report.keys.done_before), (RunOutcome::Complete, stored));
    assert_eq!(backend.fake.stored(), (0..95).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_input_that_does_not_come_is_not_waited_for_once_stopped() {
    let backend = Backend::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let sources = vec![Source::reader("pipe", reader)];
    let (stopped, ()) = tokio::join!(backend.run(sources), async { backend.stop.cancel() });
    assert!(matches!(stopped, Err(UploadError::Stopped)));
    drop(writer);
}

#[tokio::test]
async fn a_long_wait_ends_when_the_run_is_stopped() {
    let backend = Backend::new();
    let stop = backend.stop.clone();
    backend.fake.on_call(move || stop.cancel());
    let report =
        backend.fails([Fault::Refuse("503 Service Unavailable\r\nRetry-After: 500".into())], 1).await;
    assert_eq!((report.outcome, report.keys.unsent), (RunOutcome::Interrupted, 1));
}
