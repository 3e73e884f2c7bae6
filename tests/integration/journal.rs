//! From the journal back to the same gateway.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use chrono::{Days, NaiveDate, TimeDelta};
use efgs_gateway::{
    config::{Config, Journal, Secret},
    journal::{self, Contents, Replayed},
    server::{App, Gateway},
};
use efgs_protocol::{certificate::CertificateType, media::Format, wire};
use efgs_test_ca::Request as CertificateRequest;

use crate::{
    client::{Request, keys, media},
    harness::{Case, PKI, Running, country, tests, until},
};

tests![
    a_replay_brings_back_the_same_batches_tags_order_etags_and_audits,
    a_replay_that_was_cut_off_goes_on_and_no_gateway_starts_before,
    a_replay_refuses_a_database_that_is_not_empty,
    what_was_stored_without_a_journal_is_written_by_a_backfill,
    the_journal_is_forgotten_after_the_retention,
    several_instances_write_one_journal,
];

/// Where the journal of a test is.
pub(crate) fn folder(case: &Case) -> PathBuf {
    case.folder.path().join("journal")
}

pub(crate) fn with_journal(case: &Case, config: &mut Config) {
    std::fs::create_dir_all(folder(case)).unwrap();
    config.journal = Some(Journal { folder: Some(folder(case)), ..Journal::default() });
}

pub(crate) async fn gateway(case: &Case) -> Running {
    case.gateway_with(|config| with_journal(case, config)).await
}

/// What runs on the other database.
pub(crate) async fn app_on_other(case: &Case) -> Arc<App> {
    let mut config = case.config();
    config.database.url = Some(Secret::new(case.other_db().await.url.clone()));
    with_journal(case, &mut config);
    App::new(config, case.clock.clone(), None).unwrap()
}

/// Fills the other database.
pub(crate) async fn replay(case: &Case) -> Replayed {
    let app = app_on_other(case).await;
    app.store.migrate().await.unwrap();
    let done = journal::replay(&app.sources, None, false, |_| {}).await.unwrap();
    app.store.clone().close().await;
    done
}

/// What `journal verify` finds wrong.
pub(crate) async fn problems(case: &Case) -> Vec<String> {
    let app = app_on_other(case).await;
    let mut contents = Contents::survey(&app.sources, None).await.unwrap();
    contents.verify(&app.sources, None, |_| {}).await.unwrap();
    contents.problems
}

/// Status, headers and body by what was asked for.
pub(crate) type Picture = BTreeMap<String, (u16, Vec<String>, Vec<u8>)>;

#[track_caller]
pub(crate) fn assert_same(before: &Picture, after: &Picture) {
    for (what, (status, headers, body)) in before {
        let (status_after, headers_after, body_after) = &after[what];
        assert_eq!((status_after, headers_after), (status, headers), "{what}");
        assert!(body_after == body, "{what}: {} {}", body_after.escape_ascii(), body.escape_ascii());
    }
    assert_eq!(before.len(), after.len());
}

/// All that countries can see: every batch in every format and encoding, and every audit, with all that depends on it.
pub(crate) async fn picture(gateway: &Running, days: &[NaiveDate]) -> Picture {
    let mut all = BTreeMap::new();
    for code in ["DE", "NL", "IT", "IE"] {
        let client = gateway.client(code);
        for day in days {
            let mut tag: Option<String> = None;
            loop {
                let (mut this, mut next) = ("-".to_owned(), "null".to_owned());
                for format in Format::ALL {
                    for encoding in ["identity", "gzip", "zstd"] {
                        let mut request = Request::get(format!("{}/{day}", wire::DOWNLOAD_PATH))
                            .header("Accept", media(format))
                            .header("Accept-Encoding", encoding);
                        if let Some(tag) = &tag {
                            request = request.header("batchTag", tag.clone());
                        }
                        let answer = client.send(request).await;
                        this = answer.header("batchTag").unwrap_or("-").to_owned();
                        next = answer.header("nextBatchTag").unwrap_or("null").to_owned();
                        let what = format!("{code} {day} {tag:?} {format:?} {encoding}");
                        let headers = ["batchTag", "nextBatchTag", "etag", "content-type"];
                        let headers =
                            headers.iter().map(|name| format!("{:?}", answer.header(name))).collect();
                        all.insert(what, (answer.status, headers, answer.body.to_vec()));
                    }
                }
                let audit = client.audit(*day, &this).await;
                let withdrawn = vec![format!("{:?}", audit.header("withdrawnUploads"))];
                all.insert(
                    format!("{code} {day} {tag:?} audit"),
                    (audit.status, withdrawn, audit.body.to_vec()),
                );
                if next == "null" {
                    break;
                }
                tag = Some(next);
            }
        }
    }
    assert!(all.values().filter(|(status, ..)| *status == 200).count() > 50, "{:?}", all.keys());
    all
}

/// Every table that the journal brings back.
async fn rows(db: &crate::database::Database) -> Vec<String> {
    let mut all = Vec::new();
    for sql in [
        "SELECT CONCAT_WS('|', id, country, HEX(upload_tag), format, format_major, format_minor, amount, HEX(content_hash), \
         batch_signature, uploader_certificate_id, HEX(uploader_thumbprint), signing_certificate_id, \
         HEX(signing_thumbprint), uploaded_at, HEX(batch_id)) FROM upload ORDER BY id",
        "SELECT CONCAT_WS('|', day, upload_id, position, HEX(payload_hash), report_type) FROM diagnosis_key ORDER BY upload_id, position",
        "SELECT CONCAT_WS('|', rolling_day, HEX(hash)) FROM key_hash ORDER BY rolling_day, hash",
        "SELECT CONCAT_WS('|', HEX(id), day, sequence, format_major, amount, formed_at) FROM batch ORDER BY id",
        "SELECT CONCAT_WS('|', upload_id, country, HEX(upload_tag), amount, withdrawn_at, withdrawn_by, reason) FROM withdrawal ORDER BY upload_id",
        "SELECT CONCAT_WS('|', id, HEX(thumbprint), type, country, pem, operator_signature, registration_signature, waived, \
         waived_by, waived_because, imported_at, revoked_at) FROM certificate ORDER BY id",
    ] {
        let table: Vec<String> = db.column::<String>(sql).await;
        all.push(format!("{} rows", table.len()));
        all.extend(table);
    }
    all
}

async fn a_replay_brings_back_the_same_batches_tags_order_etags_and_audits(case: &Case) {
    let one = gateway(case).await;
    let [de, nl, it] = ["DE", "NL", "IT"].map(|code| one.client(code));
    // Two days; a batch that has only one country's keys, which is empty for that one.
    nl.upload_new("n1", 40, case.clock.now()).await;
    one.form().await;
    de.upload_new("d1", 3, case.clock.now()).await;
    let json = keys(country("IT"), 70, case.clock.now());
    it.send(it.request_in(Format::Json, "i1/%with", &json)).await.expect(201);
    it.send(it.request_in(Format::Json, "i1/%with", &json)).await.expect(201);
    de.upload_new("withdrawn", 5, case.clock.now()).await;
    one.form().await;
    de.send(Request::new("DELETE", format!("{}/withdrawn", wire::UPLOAD_PATH))).await.expect(200);
    let first_day = case.today();
    case.clock.set(case.clock.now() + Days::new(1) - TimeDelta::hours(11));
    // A certificate that is revoked after it was used.
    let kind = CertificateType::Signing;
    let identity = PKI.identity(country("NL"), kind, &CertificateRequest::new(kind, "NL")).unwrap();
    one.register(&[&identity]).await;
    nl.signing_with(&identity).upload_new("signed-otherwise", 20, case.clock.now()).await;
    nl.upload_new("waits-and-is-withdrawn", 1, case.clock.now()).await;
    nl.send(Request::new("DELETE", format!("{}/waits-and-is-withdrawn", wire::UPLOAD_PATH)))
        .await
        .expect(200);
    one.form().await;
    one.app.store.revoke_certificate(identity.certificate.thumbprint(), case.clock.now()).await.unwrap();
    one.reload().await;
    nl.signing_with(&identity)
        .upload("x", &keys(country("NL"), 1, case.clock.now()))
        .await
        .refused(400, "untrusted-signer");
    // Refused uploads leave nothing behind.
    it.upload("i1/%with", &keys(country("IT"), 1, case.clock.now())).await.refused(409, "upload-tag-taken");
    it.upload("i2", &json).await.expect(207);
    de.upload_new("waits", 2, case.clock.now()).await;
    until("the revocation is in the journal", async || {
        let app = app_on_other(case).await;
        let contents = Contents::survey(&app.sources, None).await.unwrap();
        (contents.revoked() == 1).then_some(())
    })
    .await;
    let days = [first_day, case.today()];
    let before = picture(&one, &days).await;
    case.stop(&one).await;

    assert_eq!(problems(case).await, Vec::<String>::new());
    let done = replay(case).await;
    assert_eq!((done.uploads, done.keys, done.batches, done.withdrawals), (7, 141, 3, 2));
    assert_eq!(done.losses, Vec::<String>::new());
    let other = case.other_db().await;
    if case.db.kind != crate::database::Kind::Sqlite {
        assert_eq!(rows(other).await, rows(&case.db).await);
    }
    // Otherwise the gateway would first form a batch of what waits.
    other.execute("UPDATE job SET due_at = 9000000000000").await;
    let two = case.start(app_on_other(case).await).await;
    assert_same(&before, &picture(&two, &days).await);
    // And it goes on: nothing is accepted twice, what waited gets into the next batch.
    let [nl, it] = ["NL", "IT"].map(|code| two.client(code));
    it.send(it.request_in(Format::Json, "i1/%with", &json)).await.expect(201);
    it.upload("i2", &json).await.expect(207);
    let next = two.form().await.remove(0);
    assert_eq!(nl.download(case.today(), Some(&next)).await.expect(200).keys().len(), 2);
    other.check().await;
}

async fn a_replay_that_was_cut_off_goes_on_and_no_gateway_starts_before(case: &Case) {
    let one = gateway(case).await;
    for tag in ["a", "b", "c"] {
        one.client("DE").upload_new(tag, 10, case.clock.now()).await;
        one.form().await;
    }
    case.stop(&one).await;
    let app = app_on_other(case).await;
    app.store.migrate().await.unwrap();
    // The third upload is missing, and comes back later.
    let file = std::fs::read_dir(folder(case).join(case.today().to_string()))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let whole = std::fs::read(&file).unwrap();
    let cut = journal::replay(&app.sources, None, false, |progress| {
        if progress.uploads == 2 {
            // As when the process is killed here.
            std::fs::write(&file, &whole[..100]).unwrap();
            panic!("killed");
        }
    });
    let cut = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(cut)).await;
    assert!(cut.is_err());
    std::fs::write(&file, &whole).unwrap();
    let other = case.other_db().await;
    assert!(other.counts().await[0] >= 2 && other.counts().await[2] == 0, "{:?}", other.counts().await);
    let refused = Gateway::start(app.clone(), true).await.err().unwrap().to_string();
    assert!(refused.contains("journal replay"), "{refused}");
    let done = journal::replay(&app.sources, None, false, |_| {}).await.unwrap();
    assert_eq!((done.uploads, done.keys, done.batches), (3, 30, 3));
    assert_eq!(other.counts().await, [3, 30, 3]);
    other.check().await;
    let again = journal::replay(&app.sources, None, false, |_| {}).await.err().unwrap().to_string();
    assert!(again.contains("not empty"), "{again}");
    app.store.clone().close().await;
}

async fn a_replay_refuses_a_database_that_is_not_empty(case: &Case) {
    let one = gateway(case).await;
    one.client("DE").upload_new("a", 1, case.clock.now()).await;
    let refused = journal::replay(&one.app.sources, None, true, |_| {}).await.err().unwrap().to_string();
    assert!(refused.contains("the database is not empty"), "{refused}");
    let other = app_on_other(case).await;
    other.store.migrate().await.unwrap();
    let nothing = case.folder.path().join("other");
    let refused =
        journal::replay(&other.sources, Some(&nothing), false, |_| {}).await.err().unwrap().to_string();
    assert!(refused.contains("the journal is empty"), "{refused}");
    other.store.clone().close().await;
}

async fn what_was_stored_without_a_journal_is_written_by_a_backfill(case: &Case) {
    let one = case.gateway().await;
    one.client("DE").upload_new("a", 4, case.clock.now()).await;
    let batch = one.form().await.remove(0);
    case.stop(&one).await;
    let two = gateway(case).await;
    two.client("NL").upload_new("b", 5, case.clock.now()).await;
    assert_eq!(two.app.store.journal_everything().await.unwrap(), 3);
    // It is served meanwhile.
    assert_eq!(two.client("NL").download(case.today(), None).await.expect(200).tag(), batch);
    case.clock.set(case.clock.now() + TimeDelta::seconds(11));
    until("it is written", async || (!two.app.store.awaits_journal().await.unwrap()).then_some(())).await;
    case.stop(&two).await;
    assert_eq!(problems(case).await, Vec::<String>::new());
    let done = replay(case).await;
    assert_eq!((done.uploads, done.keys, done.batches), (2, 9, 1));
}

async fn the_journal_is_forgotten_after_the_retention(case: &Case) {
    let one = gateway(case).await;
    one.client("DE").upload_new("a", 1, case.clock.now()).await;
    let first = case.today();
    case.clock.set(case.clock.now() + Days::new(1));
    one.client("DE").upload_new("b", 1, case.clock.now()).await;
    one.form().await;
    let days = || {
        let days = std::fs::read_dir(folder(case)).unwrap();
        let mut days: Vec<_> = days.map(|day| day.unwrap().file_name().into_string().unwrap()).collect();
        days.sort();
        days
    };
    assert_eq!(days(), [first.to_string(), case.today().to_string()]);
    let second = case.today();
    // The last day on which the second day's batch is served: the first day's upload is in it.
    case.clock.set(case.clock.now() + Days::new(14));
    one.client("DE").upload_new("c", 1, case.clock.now()).await;
    until("the third file", async || (days().len() == 3).then_some(())).await;
    assert_eq!(days()[..2], [first.to_string(), second.to_string()]);
    case.clock.set(case.clock.now() + Days::new(1));
    until("the first day's file is deleted", async || (!days().contains(&first.to_string())).then_some(()))
        .await;
    assert!(days().contains(&second.to_string()));
    case.stop(&one).await;
    assert_eq!(problems(case).await, Vec::<String>::new());
    // What has expired does not come back, but the next batch's tag must be greater.
    let done = replay(case).await;
    assert_eq!((done.uploads, done.batches), (1, 1));
}

async fn several_instances_write_one_journal(case: &Case) {
    let (one, two) = (gateway(case).await, gateway(case).await);
    let (de, nl) = (one.client("DE"), two.client("NL"));
    for round in 0..6 {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        futures_util::future::join(
            de.upload_new(&a, 30, case.clock.now()),
            nl.upload_new(&b, 30, case.clock.now()),
        )
        .await;
        if round % 2 == 0 { &one } else { &two }.form().await;
    }
    let days = [case.today()];
    let before = picture(&two, &days).await;
    case.stop(&one).await;
    case.stop(&two).await;
    assert_eq!(problems(case).await, Vec::<String>::new());
    replay(case).await;
    let three = case.start(app_on_other(case).await).await;
    assert_same(&before, &picture(&three, &days).await);
}
