//! A journal that loses files, or that the database cannot be written to: what is made up for, and what is told.

use std::fs;

use chrono::{Days, TimeDelta};

use crate::{
    client::keys,
    harness::{Case, Running, country, tests, until},
    journal::{folder, gateway, problems, replay},
    journal_failures::files,
};

tests![
    what_was_in_a_file_that_was_deleted_while_it_was_written_is_written_again,
    a_whole_instance_that_is_missing_is_missed_by_its_batches,
    a_gap_of_some_days_is_no_damage_when_what_was_before_is_forgotten,
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
    fs::remove_dir_all(folder(case)).unwrap();
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
    // The disk is away over a day's end, and another one's.
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
