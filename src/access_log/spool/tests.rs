#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use efgs_access_log::{ORIGIN, segment::Segment};
use tempfile::TempDir;

use super::*;

fn settings(max_bytes: u64) -> config::AccessLog {
    config::AccessLog { spool_max: bytesize::ByteSize(max_bytes), ..Default::default() }
}

fn open(root: &Path) -> Arc<Spool> {
    let spool = Spool::open(&settings(1 << 20), root, &Instance::new(), &Clock::system(), None);
    Arc::new(spool.unwrap())
}

fn entry(number: i64) -> Entry {
    Entry { request_id: format!("{number:016x}"), status: 200, ..Entry::default() }
}

fn files(spool: &Spool) -> usize {
    fs::read_dir(&spool.folder).unwrap().count()
}

#[tokio::test]
async fn records_come_out_of_many_files_as_they_went_in_and_the_files_are_deleted() {
    let root = TempDir::new().unwrap();
    let spool = open(root.path());
    let (mut appended, mut shipped, mut before) = (0, 0, ORIGIN);
    let mut begun = 0;
    // The spool is much smaller than all of it.
    while shipped < 8_000 {
        for _ in 0..700 {
            appended += 1;
            assert_eq!(spool.append(entry(appended)).unwrap(), appended);
            if appended % 100 == 0 {
                spool.prepare();
                tokio::task::yield_now().await;
            }
        }
        while spool.waiting() > 0 {
            let parcel = spool.next(256).await.unwrap();
            if let Some(end) = &parcel.before {
                begun += 1;
                assert_eq!((end.sequence, end.hash), (shipped, before));
            }
            for record in &parcel.records {
                shipped += 1;
                assert_eq!((record.sequence, record.previous), (shipped, before));
                assert_eq!(record.entry.request_id, format!("{shipped:016x}"));
                before = record.hash;
            }
            spool.has_shipped(&parcel);
        }
    }
    assert!(begun > 20, "{begun} files");
    assert_eq!(spool.state().records, 0);
    // What is allocated in advance may be there too.
    while files(&spool) > 2 {
        tokio::task::yield_now().await;
    }
    spool.close();
    assert!(!spool.folder.exists());
}

#[tokio::test]
async fn a_file_that_was_shipped_before_it_was_synced_is_no_failure() {
    let root = TempDir::new().unwrap();
    let spool = open(root.path());
    while files(&spool) < 4 {
        spool.append(entry(1)).unwrap();
    }
    while spool.waiting() > 0 {
        let parcel = spool.next(256).await.unwrap();
        spool.has_shipped(&parcel);
    }
    while files(&spool) > 2 {
        tokio::task::yield_now().await;
    }
    spool.sync_now().await;
    assert_eq!(spool.state().refusing, None);
    let last = spool.append(entry(2)).unwrap();
    spool.sync_now().await;
    assert!(spool.synced(last).await);
}

#[tokio::test]
async fn a_full_spool_takes_nothing_until_records_are_shipped() {
    let root = TempDir::new().unwrap();
    let spool = open(root.path());
    let refused = loop {
        if let Err(error) = spool.append(Entry::default()) {
            break error;
        }
    };
    assert!(matches!(refused, SpoolError::Full), "{refused}");
    assert_eq!(spool.state().bytes, 1 << 20);
    assert!(spool.state().refusing.is_some());
    while spool.state().refusing.is_some() {
        let parcel = spool.next(256).await.unwrap();
        spool.has_shipped(&parcel);
    }
    spool.append(Entry::default()).unwrap();
}

#[tokio::test]
async fn a_killed_instance_leaves_its_records_and_nobody_takes_those_of_a_running_one() {
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("lost+found")).unwrap();
    let (killed, running) = (open(root.path()), open(root.path()));
    for number in 1..=3 {
        killed.append(entry(number)).unwrap();
    }
    assert!(running.take_over().is_empty());
    let instance = killed.instance.id.clone();
    drop(killed);
    let [left] = &running.take_over()[..] else { unreachable!("one folder was left") };
    assert_eq!(left.instance, instance);
    let bytes: Bytes = fs::read(&left.files().unwrap()[0]).unwrap().into();
    let segment = Segment::read(&bytes);
    assert_eq!((segment.records.len(), segment.damaged_at, segment.torn), (3, None, 0));
    // Whoever comes next does not get it as well.
    assert!(open(root.path()).take_over().is_empty());
}

#[tokio::test]
async fn a_file_that_was_removed_fails_what_waits_for_the_disk_and_another_one_is_begun() {
    let root = TempDir::new().unwrap();
    let spool = open(root.path());
    let (stop, stopped) = Shutdown::new();
    let syncing = tokio::spawn(spool.clone().keep_synced(stopped));
    let first = spool.append(entry(1)).unwrap();
    assert!(spool.synced(first).await);
    fs::remove_dir_all(&spool.folder).unwrap();
    let second = spool.append(entry(2)).unwrap();
    assert!(!spool.synced(second).await);
    assert!(matches!(spool.append(entry(3)), Err(SpoolError::Failing(_))));
    // It is tried every second.
    let third = loop {
        match spool.append(entry(3)) {
            Ok(sequence) => break sequence,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert!(spool.synced(third).await);
    assert!(open(root.path()).take_over().is_empty(), "the new folder is locked too");
    // What was in the removed file is not lost as long as this process runs.
    let parcel = spool.next(256).await.unwrap();
    assert_eq!(parcel.records.len(), 2);
    spool.has_shipped(&parcel);
    assert_eq!(spool.next(256).await.unwrap().records.len(), 1);
    stop.send_replace(true);
    syncing.await.unwrap();
}
