//! A journal that loses files, or that the database cannot be written to: what is made up for, and what is told.

use std::fs;

use chrono::{Days, TimeDelta};
use efgs_gateway::{
    journal::{self, Contents},
    store::WithdrawnBy,
};

use crate::{
    client::keys,
    harness::{Case, Running, country, tests, until},
    journal::{app_on_other, folder, gateway, problems, replay},
    journal_failures::{files, warnings},
};

tests![
    what_was_in_a_file_that_was_deleted_while_it_was_written_is_written_again,
    a_whole_instance_that_is_missing_is_missed_by_its_batches,
    a_gap_of_some_days_is_no_damage_when_what_was_before_is_forgotten,
    an_upload_that_cannot_be_read_keeps_no_other_from_the_journal,
    an_upload_that_waited_for_its_batch_is_kept_as_long_as_the_batch,
    what_was_replayed_from_a_copy_is_in_the_configured_journal,
];

/// Waits until the journal has all that the database has.
async fn written(case: &Case, gateway: &Running) {
    case.clock.set(case.clock.now() + TimeDelta::seconds(11));
    until("all is written", async || (!gateway.app.store.awaits_journal().await.unwrap()).then_some(()))
        .await;
}

async fn what_was_in_a_file_that_was_deleted_while_it_was_written_is_written_again(case: &Case) {
    let one = gateway(case).await;
    one.client("DE").upload_new("a", 2, case.clock.now()).await;
    one.form().await;
    fs::remove_dir_all(folder(case).join(case.today().to_string())).unwrap();
    let sent = keys(country("DE"), 3, case.clock.now());
    // The one that finds out is refused, and the next one has a new file.
    until("it is written again", async || {
        (one.client("DE").upload("b", &sent).await.status == 201).then_some(())
    })
    .await;
    written(case, &one).await;
    case.stop(&one).await;
    assert_eq!(problems(case).await, Vec::<String>::new());
    let done = replay(case).await;
    assert_eq!((done.uploads, done.keys, done.batches), (2, 5, 1));
}

async fn a_whole_instance_that_is_missing_is_missed_by_its_batches(case: &Case) {
    let mut all = Vec::new();
    for tag in ["a", "b"] {
        let one = gateway(case).await;
        one.client("DE").upload_new(tag, 2, case.clock.now()).await;
        one.form().await;
        case.stop(&one).await;
        all.extend(files(case).into_iter().filter(|file| !all.contains(file)).collect::<Vec<_>>());
    }
    assert_eq!((all.len(), problems(case).await), (2, Vec::new()));
    fs::remove_file(&all[0]).unwrap();
    let missed = problems(case).await;
    assert!(missed.len() == 1 && missed[0].starts_with("before the batch"), "{missed:?}");
    // When that day has expired it need not be there.
    case.clock.set(case.clock.now() + Days::new(15));
    assert_eq!(problems(case).await, Vec::<String>::new());
}

async fn a_gap_of_some_days_is_no_damage_when_what_was_before_is_forgotten(case: &Case) {
    let one = gateway(case).await;
    one.client("DE").upload_new("a", 2, case.clock.now()).await;
    // The disk is unreachable over a day's end, and another one's.
    fs::rename(folder(case), case.folder.path().join("aside")).unwrap();
    fs::write(folder(case), "not a folder").unwrap();
    case.clock.set(case.clock.now() + Days::new(3));
    one.client("DE").upload("b", &keys(country("DE"), 3, case.clock.now())).await.refused(503, "unavailable");
    fs::remove_file(folder(case)).unwrap();
    fs::rename(case.folder.path().join("aside"), folder(case)).unwrap();
    written(case, &one).await;
    case.stop(&one).await;
    let all = files(case);
    assert_eq!((all.len(), problems(case).await), (2, Vec::new()));
    fs::remove_file(&all[0]).unwrap();
    let missed = problems(case).await;
    assert!(missed.len() == 1 && missed[0].contains("the number 1 before it is missing"), "{missed:?}");
    // When the first one may have been forgotten, and the second one not.
    case.clock.set(case.clock.now() + Days::new(13));
    assert_eq!(problems(case).await, Vec::<String>::new());
}

async fn an_upload_that_cannot_be_read_keeps_no_other_from_the_journal(case: &Case) {
    let one = gateway(case).await;
    let de = one.client("DE");
    until("the first file", async || (one.app.journal.journal().unwrap().last_write() > 0).then_some(()))
        .await;
    // Uploads that are stored while the journal is unreachable.
    fs::remove_dir_all(folder(case)).unwrap();
    fs::write(folder(case), "not a folder").unwrap();
    let [b, c, d] = [2, 3, 4].map(|amount| keys(country("DE"), amount, case.clock.now()));
    for (tag, sent) in [("b", &b), ("c", &c), ("d", &d)] {
        de.upload(tag, sent).await.refused(503, "unavailable");
    }
    // Two of them cannot be read any more.
    let of = |tag: u8| format!("upload_id = (SELECT id FROM upload WHERE upload_tag = X'{tag:x}')");
    case.db.execute(&format!("UPDATE diagnosis_key SET payload = X'00' WHERE {}", of(b'b'))).await;
    case.db.execute(&format!("DELETE FROM diagnosis_key WHERE position = 1 AND {}", of(b'd'))).await;
    fs::remove_file(folder(case)).unwrap();
    fs::create_dir(folder(case)).unwrap();
    case.clock.set(case.clock.now() + TimeDelta::seconds(61));
    let waiting = "SELECT COUNT(*) FROM journal_pending_upload";
    until("the other one is written", async || (case.db.number(waiting).await == 2).then_some(())).await;
    until("it is told", async || {
        let told = warnings(&one).await;
        let first = "2 uploads cannot be written to the journal and are held back; the first: upload ";
        let told = told
            .iter()
            .any(|w| w.starts_with(first) && w.contains("b of DE") && w.contains("upload withdraw"));
        (told && one.app.journal.journal().unwrap().unreadable() == 2).then_some(())
    })
    .await;
    assert_eq!(one.app.readiness(std::time::Duration::from_secs(5)).await.reasons, Vec::<String>::new());
    let batch = one.form().await.remove(0);
    let nl = one.client("NL");
    assert_eq!(nl.download(case.today(), None).await.expect(200).keys().len(), 3);
    // Sent again it is fixed, in another order and with another signature: what was stored first stays.
    de.upload("b", &b).await.expect(201);
    let next = one.form().await.remove(0);
    assert_eq!(nl.download(case.today(), Some(&next)).await.expect(200).keys().len(), 2);
    assert_eq!(nl.download(case.today(), Some(&batch)).await.expect(200).next(), next);
    // What is not there cannot be fixed; withdrawn, it is not missed.
    de.upload("d", &d).await.refused(503, "unavailable");
    one.app.withdrawals.withdraw(country("DE"), "d", WithdrawnBy::Operator, "damaged").await.unwrap();
    case.clock.set(case.clock.now() + TimeDelta::seconds(61));
    until("nothing waits", async || (case.db.number(waiting).await == 0).then_some(())).await;
    until("nothing is told", async || {
        (!warnings(&one).await.iter().any(|warning| warning.contains("journal"))).then_some(())
    })
    .await;
    case.stop(&one).await;
    assert_eq!(problems(case).await, Vec::<String>::new());
    let done = replay(case).await;
    assert_eq!((done.uploads, done.keys, done.batches, done.withdrawals), (2, 5, 2, 1));
    // The harness looks whether each upload has all its keys.
    case.db.execute("DELETE FROM upload WHERE upload_tag = X'64'").await;
    case.db.execute("DELETE FROM diagnosis_key WHERE upload_id NOT IN (SELECT id FROM upload)").await;
}

async fn an_upload_that_waited_for_its_batch_is_kept_as_long_as_the_batch(case: &Case) {
    let one = gateway(case).await;
    one.client("DE").upload_new("a", 2, case.clock.now()).await;
    let first = files(case).remove(0);
    // All gateways are stopped over a weekend, or the database is filled again days later.
    case.clock.set(case.clock.now() + Days::new(3));
    one.form().await;
    written(case, &one).await;
    // The last day on which the batch is served.
    case.clock.set(case.clock.now() + Days::new(14));
    until("the first file is deleted", async || (!first.exists()).then_some(())).await;
    case.stop(&one).await;
    assert_eq!(problems(case).await, Vec::<String>::new());
    let done = replay(case).await;
    assert_eq!((done.uploads, done.batches), (1, 1));
}

async fn what_was_replayed_from_a_copy_is_in_the_configured_journal(case: &Case) {
    let one = gateway(case).await;
    one.client("DE").upload_new("a", 2, case.clock.now()).await;
    one.form().await;
    one.client("DE").upload_new("b", 3, case.clock.now()).await;
    case.stop(&one).await;
    let copy = case.folder.path().join("copy");
    fs::rename(folder(case), &copy).unwrap();
    let app = app_on_other(case).await;
    app.store.migrate().await.unwrap();
    let done = journal::replay(&app.sources, Some(&copy), false, |_| {}).await.unwrap();
    assert!(done.to_journal);
    let two = case.start(app).await;
    written(case, &two).await;
    case.stop(&two).await;
    let app = app_on_other(case).await;
    let mut contents = Contents::survey(&app.sources, None).await.unwrap();
    let verified = contents.verify(&app.sources, None, |_| {}).await.unwrap();
    assert_eq!((verified.uploads, verified.keys, contents.problems), (2, 5, Vec::new()));
}
