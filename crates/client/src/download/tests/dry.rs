//! Dry runs: everything but storing.

use std::{collections::BTreeMap, fs, path::Path};

use super::{super::*, all, gateway::Scene};

fn dry(scene: &Scene) -> DownloadOptions {
    DownloadOptions { dry_run: true, ..scene.options() }
}

fn open(scene: &Scene) -> Downloader {
    Downloader::open(dry(scene), scene.target()).unwrap()
}

/// Every file and folder below this one, with its content.
fn everything(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(everything(&path)),
            false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
        }
        found.entry(path).or_default();
    }
    found
}

#[tokio::test]
async fn a_dry_run_tells_what_would_be_stored_and_writes_nothing() {
    let scene = Scene::new();
    let root = scene.folder.path();
    assert_eq!(all(&mut open(&scene)).await, ["20261122-1", "20261122-2", "20261123-1"]);
    assert!(everything(root).is_empty(), "{:?}", everything(root).keys());
    let events = std::mem::take(&mut *scene.events.lock().unwrap());
    let [DownloadEvent::WouldStore(first), DownloadEvent::WouldStore(_), DownloadEvent::WouldStore(third)] =
        &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((first.keys, first.uploads, first.number, third.number), (5, 2, 1, 3));
    assert_eq!(serde_json::to_value(&events[0]).unwrap()["event"], "would-store");

    // After a part of the way, while a download works there.
    let mut downloader = scene.open();
    downloader.next().await.unwrap();
    let before = everything(root);
    assert_eq!(all(&mut open(&scene)).await, ["20261122-2", "20261123-1"]);
    assert_eq!(everything(root), before);
    assert_eq!(all(&mut downloader).await, ["20261122-2", "20261123-1"]);
    // When there is nothing more; and of a folder whose memory was lost.
    let before = everything(root);
    assert!(all(&mut open(&scene)).await.is_empty());
    assert_eq!(everything(root), before);
    drop(downloader);
    fs::remove_dir_all(root.join("state")).unwrap();
    scene.add("20261124-1", 100);
    let before = everything(root);
    assert_eq!(all(&mut open(&scene)).await, ["20261124-1"]);
    assert_eq!(everything(root), before);
}

#[tokio::test]
async fn a_dry_run_says_what_does_not_verify_and_puts_nothing_aside() {
    let scene = Scene::new();
    let root = scene.folder.path();
    let truth = scene.script.lock().unwrap().batches.clone();
    scene.lie(|batch| batch.entries[0].amount += 1);
    let mut downloader = open(&scene);
    downloader.next().await.unwrap();
    let error = downloader.next().await.unwrap_err();
    assert!(matches!(&error, DownloadError::Quarantined(Quarantined { folder: None, .. })), "{error}");
    let text = error.to_string();
    assert!(
        text.starts_with("batch 20261122-2 does not verify") && text.contains("would quarantine it"),
        "{text}"
    );
    let options = DownloadOptions { continue_past: Some("20261122-2".into()), ..dry(&scene) };
    let mut passing = Downloader::open(options, scene.target()).unwrap();
    assert_eq!(all(&mut passing).await, ["20261122-1", "20261123-1"]);
    assert!(everything(root).is_empty());

    // What was put aside before stays there.
    let mut real = scene.open();
    real.next().await.unwrap();
    real.next().await.unwrap_err();
    drop(real);
    scene.script.lock().unwrap().batches = truth;
    let before = everything(root);
    assert!(before.keys().any(|path| path.ends_with("2026-11-22_20261122-2/report.txt")));
    assert_eq!(all(&mut open(&scene)).await, ["20261122-2", "20261123-1"]);
    assert_eq!(everything(root), before);
}

#[tokio::test]
async fn a_dry_run_into_one_file_leaves_it_as_it_is() {
    let scene = Scene::new();
    let path = scene.folder.path().join("keys.ndjson");
    let lines = || Target::Lines { path: path.clone() };
    assert_eq!(all(&mut Downloader::open(dry(&scene), lines()).unwrap()).await.len(), 3);
    assert!(!path.exists());
    fs::write(&path, "notes").unwrap();
    let error = Downloader::open(dry(&scene), lines()).err().unwrap();
    assert!(matches!(error, DownloadError::Foreign { .. }), "{error}");
    fs::remove_file(&path).unwrap();
    Downloader::open(scene.options(), lines()).unwrap().next().await.unwrap();
    // Begun by a process that was killed.
    let begun = [fs::read(&path).unwrap(), b"{\"batch".to_vec()].concat();
    fs::write(&path, &begun).unwrap();
    assert_eq!(all(&mut Downloader::open(dry(&scene), lines()).unwrap()).await.len(), 2);
    assert_eq!(fs::read(&path).unwrap(), begun);
}
