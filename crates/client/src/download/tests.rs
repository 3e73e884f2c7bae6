#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod audits;
mod crash;
mod dry;
mod gateway;
mod lies;

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::*;
use crate::Format;
use gateway::{Scene, day, keys};

async fn all(downloader: &mut Downloader) -> Vec<String> {
    let mut tags = Vec::new();
    while let Some(batch) = downloader.next().await.unwrap() {
        tags.push(batch.batch_tag);
    }
    tags
}

#[tokio::test]
async fn each_batch_is_stored_once_in_the_order_of_the_chain() {
    let scene = Scene::new();
    let mut downloader = scene.open();
    let first = downloader.next().await.unwrap().unwrap();
    assert_eq!((first.batch_tag.as_str(), first.keys, first.uploads, first.number), ("20261122-1", 5, 2, 1));
    assert_eq!(all(&mut downloader).await, ["20261122-2", "20261123-1"]);
    assert!(all(&mut downloader).await.is_empty());
    // The next process goes on; the last batch is only asked for its link.
    drop(downloader);
    scene.add("20261124-1", 100);
    assert_eq!(all(&mut scene.open()).await, ["20261124-1"]);
    let stored = Stored::batches(&scene.batches_folder()).unwrap();
    let served = scene.script.lock().unwrap().batches.clone();
    assert_eq!(stored.len(), served.len());
    for ((stored, served), number) in stored.iter().zip(&served).zip(1..) {
        assert_eq!((&stored.batch_tag, stored.number), (&served.tag, number));
        assert_eq!(stored.keys().unwrap(), served.keys);
        let report = scene.auditor().audit_stored(stored).unwrap();
        assert!(report.holds, "{report}");
    }
    assert_eq!(scene.files().len(), 2 * served.len(), "{:?}", scene.files());
}

#[tokio::test]
async fn each_target_has_a_memory_of_its_own_and_one_process() {
    let scene = Scene::new();
    let mut first = scene.open();
    assert!(matches!(
        Downloader::open(scene.options(), scene.target()),
        Err(error) if error.is_temporary() && error.to_string().contains("another efgs uses")
    ));
    let json = || Target::Folder { path: scene.folder.path().join("json"), format: Format::Json };
    let mut second = Downloader::open(scene.options(), json()).unwrap();
    assert_eq!(all(&mut first).await, all(&mut second).await);
    let stored = Stored::batches(&scene.folder.path().join("json")).unwrap();
    assert_eq!(stored[2].keys().unwrap(), scene.script.lock().unwrap().batches[2].keys);
    // A folder that was moved says itself where it ends.
    drop(second);
    std::fs::rename(scene.folder.path().join("json"), scene.folder.path().join("moved")).unwrap();
    scene.add("20261124-1", 100);
    let moved = Target::Folder { path: scene.folder.path().join("moved"), format: Format::Json };
    let mut moved = Downloader::open(scene.options(), moved).unwrap();
    let next = moved.next().await.unwrap().unwrap();
    assert_eq!((next.batch_tag.as_str(), next.number), ("20261124-1", 4));
}

#[tokio::test]
async fn two_downloads_do_not_share_a_target_whatever_their_state_folders_are() {
    let scene = Scene::new();
    let elsewhere = || DownloadOptions { state: scene.folder.path().join("other-state"), ..scene.options() };
    let in_use = |target: Target| {
        let error = Downloader::open(elsewhere(), target).err().unwrap();
        assert!(error.is_temporary() && error.to_string().contains("two targets"), "{error}");
    };
    let mut downloader = scene.open();
    in_use(scene.target());
    let link = scene.folder.path().join("link");
    std::os::unix::fs::symlink(scene.batches_folder(), &link).unwrap();
    in_use(Target::Folder { path: link, format: Format::Json });
    assert_eq!(all(&mut downloader).await.len(), 3);
    let path = scene.folder.path().join("keys.ndjson");
    let lines = || Target::Lines { path: path.clone() };
    let mut downloader = Downloader::open(scene.options(), lines()).unwrap();
    in_use(lines());
    assert_eq!(all(&mut downloader).await.len(), 3);
}

#[tokio::test]
async fn since_names_the_first_day_and_never_goes_back() {
    let scene = Scene::new();
    let open = |since: &str| {
        let options = DownloadOptions { since: Some(day(since)), ..scene.options() };
        Downloader::open(options, scene.target()).unwrap()
    };
    assert!(all(&mut open("2026-11-24")).await.is_empty());
    assert_eq!(all(&mut open("2026-11-23")).await, ["20261123-1"]);
    assert!(all(&mut open("2026-11-22")).await.is_empty());
    scene.add("20261124-1", 100);
    scene.add("20261125-1", 110);
    assert_eq!(all(&mut open("2026-11-25")).await, ["20261125-1"]);
}

#[tokio::test]
async fn a_chain_that_ends_each_day_is_followed_into_the_next() {
    let scene = Scene::new();
    scene.script.lock().unwrap().daily = true;
    let mut downloader = scene.open();
    assert_eq!(all(&mut downloader).await, ["20261122-1", "20261122-2", "20261123-1"]);
    scene.add("20261124-1", 100);
    scene.add("20261124-2", 110);
    assert_eq!(all(&mut downloader).await, ["20261124-1", "20261124-2"]);
}

#[tokio::test]
async fn a_clock_that_was_ahead_hides_no_batch() {
    let scene = Scene::new();
    let set = |now: &str| scene.clock.set(now.parse().unwrap());
    {
        let mut script = scene.script.lock().unwrap();
        script.daily = true;
        script.clock = Clock::manual("2026-11-24T12:00:00Z".parse().unwrap());
    }
    let mut downloader = scene.open();
    // Three days ahead of the gateway, at the end of the chain.
    set("2026-11-27T12:00:00Z");
    assert_eq!(all(&mut downloader).await.len(), 3);
    assert_eq!(cursor(&scene)["completeOn"], "2026-11-24");
    scene.add("20261124-1", 100);
    scene.add("20261125-1", 110);
    scene.script.lock().unwrap().clock.set("2026-11-25T12:00:00Z".parse().unwrap());
    assert_eq!(all(&mut downloader).await, ["20261124-1", "20261125-1"]);
    drop(downloader);
    // And back. Something that was remembered when it was ahead does not count.
    set("2026-11-25T13:00:00Z");
    let (path, mut kept) = (cursor_path(&scene), cursor(&scene));
    kept["completeOn"] = "2026-11-27".into();
    std::fs::write(&path, kept.to_string()).unwrap();
    scene.add("20261125-2", 120);
    assert_eq!(all(&mut scene.open()).await, ["20261125-2"]);
    set("2026-11-26T12:00:00Z");
    scene.script.lock().unwrap().clock.set("2026-11-26T12:00:00Z".parse().unwrap());
    scene.add("20261126-1", 130);
    assert_eq!(all(&mut scene.open()).await, ["20261126-1"]);
    assert_eq!(cursor(&scene)["completeOn"], "2026-11-26");
}

fn cursor_path(scene: &Scene) -> PathBuf {
    let state = scene.folder.path().join("state/download");
    std::fs::read_dir(state).unwrap().next().unwrap().unwrap().path().join("cursor.json")
}

fn cursor(scene: &Scene) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(cursor_path(scene)).unwrap()).unwrap()
}

#[tokio::test]
async fn batches_that_have_expired_are_told_as_a_gap() {
    let scene = Scene::new();
    all(&mut scene.open()).await;
    scene.add("20261124-1", 100);
    scene.add("20261210-1", 110);
    scene.clock.set("2026-12-20T12:00:00Z".parse().unwrap());
    let script = || scene.script.lock().unwrap();
    script().oldest = day("2026-12-06");
    script().batches.drain(..4);
    assert_eq!(all(&mut scene.open()).await, ["20261210-1"]);
    let gaps = || {
        let events = std::mem::take(&mut *scene.events.lock().unwrap());
        events.into_iter().filter(|event| matches!(event, DownloadEvent::Gap { .. })).collect::<Vec<_>>()
    };
    let gap = DownloadEvent::Gap {
        after: Some("20261123-1".into()),
        since: day("2026-11-24"),
        until: day("2026-12-06"),
    };
    assert_eq!(gaps(), [gap]);
    // Nothing was formed for weeks, but somebody looked: no gap.
    scene.clock.set("2027-01-02T12:00:00Z".parse().unwrap());
    assert!(all(&mut scene.open()).await.is_empty());
    gaps();
    script().oldest = day("2026-12-25");
    script().batches.clear();
    scene.clock.set("2027-01-08T12:00:00Z".parse().unwrap());
    scene.add("20270108-1", 120);
    assert_eq!(all(&mut scene.open()).await, ["20270108-1"]);
    assert_eq!(gaps(), []);
}

#[tokio::test]
async fn a_first_day_that_is_not_served_any_more_is_a_gap_too() {
    let scene = Scene::new();
    let options = DownloadOptions { since: Some(day("2026-10-01")), ..scene.options() };
    let mut downloader = Downloader::open(options, scene.target()).unwrap();
    assert_eq!(all(&mut downloader).await.len(), 3);
    let gap = DownloadEvent::Gap { after: None, since: day("2026-10-01"), until: day("2026-11-10") };
    assert_eq!(scene.events.lock().unwrap()[0], gap);
}

#[tokio::test]
async fn a_batch_that_lost_an_upload_between_download_and_audit_is_fetched_again() {
    let scene = Scene::new();
    let (netherlands, shorter) = (scene.netherlands.clone(), keys("NL", 13..15));
    let mut done = false;
    let after = move |batches: &mut Vec<gateway::Batch>| {
        // Right after the second batch was downloaded for the first time.
        if std::mem::replace(&mut done, true) {
            return;
        }
        batches[0].keys = shorter.clone();
        batches[0].entries = vec![gateway::entry(&netherlands, &shorter)];
        batches[0].withdrawn = 1;
    };
    scene.script.lock().unwrap().after_download = Some(Box::new(after));
    let mut downloader = scene.open();
    let first = downloader.next().await.unwrap().unwrap();
    assert_eq!((first.keys, first.uploads), (2, 1));
    assert!(
        matches!(&scene.events.lock().unwrap()[0], DownloadEvent::Again { batch_tag, .. } if batch_tag == "20261122-1")
    );
    assert_eq!(all(&mut downloader).await.len(), 2);
}

#[tokio::test]
async fn follow_stores_what_comes_when_it_is_told() {
    let scene = Scene::new();
    let (wake, told) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (at_the_end, events) = (told.clone(), scene.events.clone());
    let on_event = move |event: &DownloadEvent| {
        if *event == DownloadEvent::CaughtUp {
            at_the_end.notify_one();
        }
        events.lock().unwrap().push(event.clone());
    };
    let options = DownloadOptions { on_event: Box::new(on_event), ..scene.options() };
    let mut downloader = Downloader::open(options, scene.target()).unwrap();
    let following = {
        let wake = wake.clone();
        tokio::spawn(async move { downloader.follow(Duration::from_secs(3600), &wake).await })
    };
    told.notified().await;
    assert_eq!(Stored::batches(&scene.batches_folder()).unwrap().len(), 3);
    scene.add("20261124-1", 100);
    wake.notify_one();
    told.notified().await;
    assert_eq!(Stored::batches(&scene.batches_folder()).unwrap().len(), 4);
    following.abort();
    assert!(following.await.unwrap_err().is_cancelled());
    // Only what is new was downloaded.
    let asked = scene.script.lock().unwrap().asked.clone();
    let audits = asked.iter().filter(|path| path.contains("audit")).count();
    assert_eq!(audits, 4, "{asked:?}");
}

#[tokio::test]
async fn names_of_an_unknown_form_are_followed_too() {
    let scene = Scene::new();
    scene.script.lock().unwrap().batches.clear();
    for (i, tag) in ["zebra", "ant", "cow=1"].into_iter().enumerate() {
        scene.add(tag, 10 * i as u32);
    }
    assert_eq!(all(&mut scene.open()).await, ["zebra", "ant", "cow=1"]);
    scene.script.lock().unwrap().batches[2].next = Some("zebra".into());
    let error = scene.open().next().await.unwrap_err();
    assert!(error.to_string().contains("zebra"), "{error}");
    assert_eq!(Stored::batches(&scene.batches_folder()).unwrap().len(), 3);
}
