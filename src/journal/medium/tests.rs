#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use super::{Disk, create};

#[test]
fn a_file_whose_header_cannot_be_written_is_not_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("day/1.efgsj");
    fs::create_dir(path.parent().unwrap()).unwrap();
    drop(create(&path, b"header").unwrap());
    assert!(create(&path, b"other").is_err(), "it is there");
    assert_eq!(fs::read(&path).unwrap(), b"header", "what somebody else made stays");
    fs::remove_file(&path).unwrap();
    let full = || Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
    assert!(super::create_with(&path, |_| full()).is_err());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_disk_that_hangs_is_given_up_and_takes_one_thread_only() {
    let disk = Disk::new(Duration::from_millis(50));
    let (go, wait) = mpsc::channel::<()>();
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = begun.clone();
    let hung = disk.within(Path::new("the disk"), move || {
        counted.fetch_add(1, Ordering::SeqCst);
        assert!(wait.recv().is_err());
        Ok(())
    });
    let error = hung.await.unwrap_err().to_string();
    assert_eq!(error, "the journal cannot be written: the disk: no answer from the disk within 50 ms");
    for _ in 0..3 {
        let counted = begun.clone();
        let next = disk.within(Path::new("the disk"), move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        next.await.unwrap_err();
    }
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    drop(go);
    let patient = Disk { limit: Duration::from_secs(30), free: disk.free.clone() };
    assert_eq!(patient.within(Path::new("the disk"), || Ok(7)).await.unwrap(), 7);
}
