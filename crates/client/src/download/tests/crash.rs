//! A download that is killed, or whose future is dropped, at any moment.

use std::{fs, io, path::PathBuf, time::Duration};

use super::{
    super::*,
    all, cursor_path,
    gateway::{Scene, day},
};

const FILE: &str = "0000000003_2026-11-23_20261123-1.pb";
const AUDIT: &str = "0000000003_2026-11-23_20261123-1.audit.json";

/// The process was killed when the third batch had its name, and the cursor had not yet passed it.
async fn killed_before_the_cursor() -> Scene {
    let scene = Scene::new();
    let mut downloader = scene.open();
    for _ in 0..2 {
        downloader.next().await.unwrap();
    }
    let cursor = fs::read(cursor_path(&scene)).unwrap();
    assert_eq!(all(&mut downloader).await, ["20261123-1"]);
    drop(downloader);
    fs::write(cursor_path(&scene), cursor).unwrap();
    scene
}

#[tokio::test]
async fn what_the_cursor_has_not_passed_comes_again_whatever_was_deleted() {
    for deleted in [&[][..], &[AUDIT], &[FILE], &[FILE, AUDIT]] {
        let scene = killed_before_the_cursor().await;
        let complete = scene.files();
        for name in deleted {
            fs::remove_file(scene.batches_folder().join(name)).unwrap();
        }
        assert_eq!(all(&mut scene.open()).await, ["20261123-1"]);
        assert_eq!(scene.files(), complete);
    }
}

#[tokio::test]
async fn a_batch_that_could_not_get_its_name_is_not_passed() {
    for name in [FILE, AUDIT] {
        let scene = Scene::new();
        let mut downloader = scene.open();
        for _ in 0..2 {
            downloader.next().await.unwrap();
        }
        let path = scene.batches_folder().join(name);
        fs::create_dir_all(path.join("in the way")).unwrap();
        assert!(downloader.next().await.is_err());
        fs::remove_dir_all(&path).unwrap();
        // In the same process, or in the next one.
        let mut downloader = if name == FILE {
            downloader
        } else {
            drop(downloader);
            scene.open()
        };
        assert_eq!(all(&mut downloader).await, ["20261123-1"]);
        assert_eq!(scene.files().len(), 6, "{:?}", scene.files());
    }
}

#[tokio::test]
async fn what_the_cursor_has_not_passed_is_begun_anew() {
    let scene = Scene::new();
    let mut downloader = scene.open();
    for _ in 0..2 {
        downloader.next().await.unwrap();
    }
    drop(downloader);
    for name in [FILE, AUDIT, "0000000003_2026-11-23_20261123-1.json"] {
        fs::write(scene.batches_folder().join(format!(".{name}.tmp")), "cut of").unwrap();
    }
    fs::write(scene.batches_folder().join(".of-somebody-else.tmp"), "").unwrap();
    assert_eq!(all(&mut scene.open()).await, ["20261123-1"]);
    let files = scene.files();
    assert_eq!((files.len(), files[0].as_str()), (7, ".of-somebody-else.tmp"), "{files:?}");
    assert!(Stored::batches(&scene.batches_folder()).unwrap()[2].keys().is_ok());
}

#[tokio::test]
async fn batches_that_a_reader_has_taken_away_do_not_come_again() {
    let scene = Scene::new();
    let mut downloader = scene.open();
    downloader.next().await.unwrap();
    for entry in fs::read_dir(scene.batches_folder()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    drop(downloader);
    assert_eq!(all(&mut scene.open()).await, ["20261122-2", "20261123-1"]);
}

#[tokio::test]
async fn a_file_of_somebody_else_is_not_overwritten() {
    let scene = Scene::new();
    fs::create_dir(scene.batches_folder()).unwrap();
    let mut downloader = scene.open();
    let path = scene.batches_folder().join("0000000001_2026-11-22_20261122-1.pb");
    fs::write(&path, "something").unwrap();
    let error = downloader.next().await.unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"something");
}

fn lines(scene: &Scene) -> (PathBuf, impl Fn() -> Target) {
    let path = scene.folder.path().join("keys.ndjson");
    (path.clone(), move || Target::Lines { path: path.clone() })
}

#[tokio::test]
async fn lines_are_cut_back_to_what_the_cursor_knows() {
    let scene = Scene::new();
    let (path, target) = lines(&scene);
    let open = || Downloader::open(scene.options(), target());
    let mut downloader = open().unwrap();
    downloader.next().await.unwrap();
    let first = fs::read(&path).unwrap();
    drop(downloader);
    fs::write(&path, [&first, br#"{"batchTag":"20261122-2","da"#.as_slice()].concat()).unwrap();
    assert_eq!(all(&mut open().unwrap()).await.len(), 2);
    let text = fs::read_to_string(&path).unwrap();
    let read: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read.len(), 15);
    let tags: Vec<_> = read.iter().map(|line| line["batchTag"].as_str().unwrap()).collect();
    assert_eq!((tags[4], tags[5], tags[14]), ("20261122-1", "20261122-2", "20261123-1"));
    assert_eq!((&read[0]["date"], &read[0]["origin"]), (&"2026-11-22".into(), &"DE".into()));
    // Rotated away: a new file goes on.
    fs::remove_file(&path).unwrap();
    scene.add("20261124-1", 100);
    assert_eq!(all(&mut open().unwrap()).await, ["20261124-1"]);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 5);
    // Killed when the new file had just been made: first it cannot be made, then it is empty.
    fs::rename(&path, scene.folder.path().join("rotated")).unwrap();
    std::os::unix::fs::symlink("nowhere/keys.ndjson", &path).unwrap();
    assert!(open().is_err());
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    scene.add("20261124-2", 110);
    assert_eq!(all(&mut open().unwrap()).await, ["20261124-2"]);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 5);
    // Spoiled.
    fs::write(&path, "short").unwrap();
    let error = open().err().unwrap().to_string();
    assert!(error.contains("has 5 bytes, but"), "{error}");
    // Of somebody else.
    let other = scene.folder.path().join("other");
    fs::write(&other, "notes").unwrap();
    let error = Downloader::open(scene.options(), Target::Lines { path: other }).err().unwrap().to_string();
    assert!(error.contains("no record of it"), "{error}");
}

#[tokio::test]
async fn a_stream_gets_the_same_lines() {
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let scene = Scene::new();
    let (path, target) = lines(&scene);
    all(&mut Downloader::open(scene.options(), target()).unwrap()).await;
    let shared = Shared::default();
    let stream = || Target::Stream(Box::new(shared.clone()));
    let mut downloader = Downloader::open(scene.options(), stream()).unwrap();
    downloader.next().await.unwrap();
    drop(downloader);
    all(&mut Downloader::open(scene.options(), stream()).unwrap()).await;
    assert_eq!(*shared.0.lock().unwrap(), fs::read(path).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_future_may_be_dropped_at_any_moment() {
    let scene = Scene::new();
    for i in 0..20 {
        scene.add(&format!("20261124-{}", i + 1), 100 + 10 * i);
    }
    let mut downloader = scene.open();
    let mut dropped = 0;
    // It grows until a batch is stored, so each batch is dropped in several places, however fast the machine is.
    let mut patience = Duration::ZERO;
    loop {
        match tokio::time::timeout(patience, downloader.next()).await {
            Err(_) => {
                dropped += 1;
                patience += Duration::from_micros(u64::from(
                    u16::from_ne_bytes(efgs_protocol::random::bytes()) % 2_000,
                ));
            }
            Ok(Ok(Some(_))) => patience = Duration::ZERO,
            Ok(Ok(None)) => break,
            Ok(Err(error)) => assert!(error.to_string().contains("loop"), "{error}"),
        }
    }
    assert!(dropped > 10, "{dropped}");
    let stored: Vec<_> =
        Stored::batches(&scene.batches_folder()).unwrap().into_iter().map(|batch| batch.batch_tag).collect();
    let served: Vec<_> = scene.script.lock().unwrap().batches.iter().map(|batch| batch.tag.clone()).collect();
    assert_eq!(stored, served);
    assert_eq!(scene.files().len(), 2 * served.len());
}

#[tokio::test]
async fn a_cursor_of_another_version_is_not_guessed_at() {
    let scene = Scene::new();
    all(&mut scene.open()).await;
    let cursor = cursor_path(&scene);
    let text = fs::read_to_string(&cursor).unwrap();
    assert!(text.contains(&day("2026-11-23").to_string()), "{text}");
    fs::write(&cursor, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    let error = Downloader::open(scene.options(), scene.target()).err().unwrap().to_string();
    assert!(error.contains("version 2; this efgs supports 1"), "{error}");
}
