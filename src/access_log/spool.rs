//! Records on their way to the database, in files.
//!
//! A record is in the spool when the system has taken the write: then the end of this process loses nothing. It is on the
//! disk after the next `fdatasync`, which one task does for all records that have come in the meantime. Records are
//! chained when they are appended, so their order in the files is their order in the chain.
//!
//! Each start of a gateway has a folder of its own in `access_log.spool`, named after its instance and locked as long as
//! it runs. Whoever can lock the folder of another instance ships what it has left.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use efgs_access_log::segment;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{ChainEnd, Entry, Record, SignedStatement, Signer, Statement, StatementKind};
use crate::{
    clock::Clock,
    config::{self, LogSync},
    instance::Instance,
    jobs::Shutdown,
};

/// Bytes of one file, unless `access_log.spool_max` is small.
const SEGMENT: u64 = 16 << 20;

/// Files into which the spool is divided at least.
const SEGMENTS: u64 = 8;

/// Bytes that are read back at once.
const READ: usize = 256 << 10;

/// How often it is tried whether a spool that cannot be written works again.
const PROBE: Duration = Duration::from_secs(1);

/// Where records and files go that an operator must look at.
const SET_ASIDE: &str = "set-aside";

/// Why a record is not in the spool.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum SpoolError {
    #[error("the spool is full: the database has not taken its records, see `access_log.spool_max`")]
    Full,
    #[error("the spool cannot be written: {0}")]
    Failing(String),
    #[error("the record is too long")]
    TooLong,
}

/// The state of the spool, for metrics and the readiness check.
#[derive(Clone, Debug)]
pub struct SpoolState {
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that it may have.
    pub max_bytes: u64,
    /// Records of this instance that the database does not have yet.
    pub records: u64,
    /// When the oldest of them arrived, or the one before it.
    pub oldest: Option<DateTime<Utc>>,
    /// Why requests are refused, if they are.
    pub refusing: Option<String>,
}

/// How far the records are on the disk.
#[derive(Clone, Copy, Debug, Default)]
struct Synced {
    up_to: i64,
    /// What was not synced up to here may be lost when the machine crashes.
    failed: i64,
}

/// The spool of this instance.
#[derive(Debug)]
pub(super) struct Spool {
    root: PathBuf,
    folder: PathBuf,
    instance: Instance,
    clock: Clock,
    signer: Option<Arc<Signer>>,
    max_bytes: u64,
    sync: LogSync,
    inner: Mutex<Inner>,
    /// The number of the last record.
    appended: watch::Sender<i64>,
    synced: watch::Sender<Synced>,
    /// The number of the last record that the database has.
    shipped: watch::Sender<i64>,
    /// Somebody waits for the disk.
    urgent: Notify,
}

#[derive(Debug)]
struct Inner {
    /// The lock on the folder, held as long as this instance runs.
    lock: File,
    /// The last one is being written.
    parts: VecDeque<Part>,
    prepared: Option<NewFile>,
    preparing: bool,
    /// The last number that was given to a file.
    numbered: u64,
    end: ChainEnd,
    /// Files before the last one that are not on the disk yet.
    unsynced: Vec<Arc<File>>,
    /// Why nothing can be appended.
    trouble: Option<String>,
    full: bool,
    oldest: Option<DateTime<Utc>>,
    /// Bytes that other instances have left.
    left_behind: u64,
}

/// A file of this instance.
#[derive(Debug)]
struct Part {
    /// Files are read in the order of their numbers.
    number: u64,
    path: PathBuf,
    file: Arc<File>,
    /// The chain before its first record.
    before: ChainEnd,
    /// Where its first record begins.
    begin: u64,
    /// Where its last record ends.
    end: u64,
    /// Up to where the database has it.
    shipped: u64,
}

#[derive(Debug)]
struct NewFile {
    number: u64,
    path: PathBuf,
    file: Arc<File>,
}

/// The next records to ship.
#[derive(Debug, Default)]
pub(super) struct Parcel {
    /// The chain before these records, when they are the first of a file.
    pub(super) before: Option<ChainEnd>,
    pub(super) records: Vec<Record>,
    bytes: u64,
}

impl Spool {
    /// Makes the folder of this instance and its first file.
    pub(super) fn open(
        settings: &config::AccessLog,
        root: &Path,
        instance: &Instance,
        clock: &Clock,
        signer: Option<Arc<Signer>>,
    ) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        let folder = root.join(&instance.id);
        let lock = locked_folder(root, &folder)?;
        let spool = Self {
            root: root.to_owned(),
            folder,
            instance: instance.clone(),
            clock: clock.clone(),
            signer,
            max_bytes: settings.spool_max.as_u64(),
            sync: settings.sync,
            inner: Mutex::new(Inner {
                lock,
                parts: VecDeque::new(),
                prepared: None,
                preparing: false,
                numbered: 1,
                end: ChainEnd::default(),
                unsynced: Vec::new(),
                trouble: None,
                full: false,
                oldest: None,
                left_behind: 0,
            }),
            appended: watch::Sender::new(0),
            synced: watch::Sender::default(),
            shipped: watch::Sender::new(0),
            urgent: Notify::new(),
        };
        let new = new_file(&spool.folder, 1, spool.segment(), true)?;
        spool.begin_part(&mut spool.inner.lock(), new)?;
        Ok(spool)
    }

    /// Bytes of one file.
    fn segment(&self) -> u64 {
        SEGMENT.min(self.max_bytes / SEGMENTS)
    }

    /// The folder for what an operator must look at.
    pub(super) fn set_aside(&self) -> PathBuf {
        self.root.join(SET_ASIDE)
    }

    /// Appends an entry to the chain; returns its number. It survives the end of this process from then on.
    pub(super) fn append(&self, entry: Entry) -> Result<i64, SpoolError> {
        let mut inner = self.inner.lock();
        if let Some(trouble) = &inner.trouble {
            return Err(SpoolError::Failing(trouble.clone()));
        }
        let at = entry.at;
        let sequence = inner.end.sequence + 1;
        let record = Record::new(&self.instance.id, sequence, inner.end.hash, entry);
        let frame = segment::frame(&record.line()).ok_or(SpoolError::TooLong)?;
        let fits = |part: &Part| part.end + frame.len() as u64 <= self.segment();
        if !inner.parts.back().is_some_and(fits) {
            self.rotate(&mut inner)?;
        }
        let Some(part) = inner.parts.back_mut() else { return Err(SpoolError::Failing("no file".into())) };
        if let Err(error) = part.file.write_all_at(&frame, part.end) {
            return Err(self.fail(&mut inner, &error));
        }
        part.end += frame.len() as u64;
        inner.end = ChainEnd::new(sequence, record.hash);
        inner.oldest.get_or_insert(at);
        // Under the lock, so that it never goes back.
        self.appended.send_replace(sequence);
        Ok(sequence)
    }

    /// Returns when a record is on the disk, with `false` when it could not be written there.
    pub(super) async fn synced(&self, sequence: i64) -> bool {
        let mut synced = self.synced.subscribe();
        self.urgent.notify_one();
        let done = |state: &Synced| state.up_to >= sequence || state.failed >= sequence;
        synced.wait_for(done).await.is_ok_and(|state| state.failed < sequence)
    }

    /// Whether an answer waits for the disk whatever it is about.
    pub(super) fn always_syncs(&self) -> bool {
        self.sync == LogSync::Always
    }

    /// Begins the next file.
    fn rotate(&self, inner: &mut Inner) -> Result<(), SpoolError> {
        let new = match inner.prepared.take() {
            Some(new) => new,
            None if self.bytes(inner) + self.segment() > self.max_bytes => {
                if !std::mem::replace(&mut inner.full, true) {
                    tracing::error!(folder = %self.root.display(), "{}: requests are answered 503", SpoolError::Full);
                }
                return Err(SpoolError::Full);
            }
            // Requests come faster than files are prepared: this one is allocated as it grows.
            None => {
                inner.numbered += 1;
                new_file(&self.folder, inner.numbered, self.segment(), false)
                    .map_err(|error| self.fail(inner, &error))?
            }
        };
        inner.unsynced.extend(inner.parts.back().map(|part| part.file.clone()));
        self.begin_part(inner, new).map_err(|error| self.fail(inner, &error))
    }

    /// Begins a file with a statement about the chain before it.
    fn begin_part(&self, inner: &mut Inner, new: NewFile) -> io::Result<()> {
        let kind = if inner.end.sequence == 0 { StatementKind::Start } else { StatementKind::Head };
        let statement = Statement::new(kind, &self.instance.id, &inner.end, self.clock.now()).text();
        let signed = match &self.signer {
            Some(signer) => signer.sign(statement).map_err(io::Error::other)?,
            None => SignedStatement { statement, key_id: None, signature: None },
        };
        let text = serde_json::to_string(&signed)?;
        let frame = segment::frame(&text).ok_or_else(|| io::Error::other("the statement is too long"))?;
        new.file.write_all_at(&frame, 0)?;
        inner.full = false;
        let begin = frame.len() as u64;
        let NewFile { number, path, file } = new;
        inner.parts.push_back(Part {
            number,
            path,
            file,
            before: inner.end.clone(),
            begin,
            end: begin,
            shipped: begin,
        });
        Ok(())
    }

    /// Notes that nothing can be appended until a new file can be begun.
    fn fail(&self, inner: &mut Inner, error: &io::Error) -> SpoolError {
        let reason = format!("{}: {error}", self.folder.display());
        if inner.trouble.replace(reason.clone()).is_none() {
            tracing::error!(
                reason,
                "the spool of the access log cannot be written: requests are answered 503"
            );
        }
        SpoolError::Failing(reason)
    }

    fn bytes(&self, inner: &Inner) -> u64 {
        let files = inner.parts.len() + usize::from(inner.prepared.is_some() || inner.preparing);
        files as u64 * self.segment() + inner.left_behind
    }

    /// Its state now.
    pub(super) fn state(&self) -> SpoolState {
        let inner = self.inner.lock();
        SpoolState {
            bytes: self.bytes(&inner),
            max_bytes: self.max_bytes,
            records: (inner.end.sequence - *self.shipped.borrow()).unsigned_abs(),
            oldest: inner.oldest,
            refusing: match &inner.trouble {
                Some(trouble) => Some(SpoolError::Failing(trouble.clone()).to_string()),
                None => inner.full.then(|| SpoolError::Full.to_string()),
            },
        }
    }

    /// Brings records to the disk until `stop`.
    pub(super) async fn keep_synced(self: Arc<Self>, mut stop: Shutdown) {
        let mut appended = self.appended.subscribe();
        // There may be records already.
        appended.mark_changed();
        let mut probing = tokio::time::interval(PROBE);
        probing.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = appended.changed() => {
                    if let LogSync::Within(wait) = self.sync {
                        tokio::select! {
                            () = tokio::time::sleep(wait) => {}
                            () = self.urgent.notified() => {}
                            () = stop.requested() => {}
                        }
                    }
                    self.sync_now().await;
                    self.prepare();
                }
                _ = probing.tick() => self.probe().await,
                () = stop.requested() => break,
            }
        }
        self.sync_now().await;
    }

    async fn sync_now(self: &Arc<Self>) {
        let (files, up_to) = {
            let mut inner = self.inner.lock();
            let current = inner.parts.back().map(|part| part.file.clone());
            let files: Vec<_> = inner.unsynced.drain(..).chain(current).collect();
            (files, inner.end.sequence)
        };
        let spool = self.clone();
        let outcome = on_a_thread(move || {
            for file in &files {
                if let Err(error) = is_linked(file) {
                    if spool.inner.lock().parts.iter().any(|part| Arc::ptr_eq(&part.file, file)) {
                        return Err(error);
                    }
                    // The database has all its records, so it was deleted.
                    continue;
                }
                file.sync_data()?;
            }
            // A new file is found again only when its name is on the disk.
            if files.len() > 1 { File::open(&spool.folder)?.sync_all() } else { Ok(()) }
        });
        match outcome.await {
            Ok(()) => self.synced.send_modify(|synced| synced.up_to = up_to),
            Err(error) => {
                self.fail(&mut self.inner.lock(), &error);
                self.synced.send_modify(|synced| synced.failed = up_to);
            }
        }
    }

    /// Allocates the next file before it is needed.
    fn prepare(self: &Arc<Self>) {
        let number = {
            let mut inner = self.inner.lock();
            let half = inner.parts.back().is_some_and(|part| part.end > self.segment() / 2);
            if !half
                || inner.preparing
                || inner.prepared.is_some()
                || inner.trouble.is_some()
                || self.bytes(&inner) + self.segment() > self.max_bytes
            {
                return;
            }
            inner.preparing = true;
            inner.numbered += 1;
            inner.numbered
        };
        let spool = self.clone();
        tokio::task::spawn_blocking(move || {
            let new = new_file(&spool.folder, number, spool.segment(), true);
            let mut inner = spool.inner.lock();
            inner.preparing = false;
            match new {
                Ok(new) if inner.parts.back().is_some_and(|part| part.number < number) => {
                    inner.prepared = Some(new)
                }
                // Another one was begun in the meantime.
                Ok(new) => drop(fs::remove_file(new.path)),
                Err(error) => {
                    tracing::warn!(%error, "the next file of the access log's spool could not be allocated")
                }
            }
        });
    }

    /// Notices when the files are gone, and when a spool that could not be written works again.
    async fn probe(self: &Arc<Self>) {
        let spool = self.clone();
        let probing = on_a_thread(move || {
            let number = {
                let mut inner = spool.inner.lock();
                if inner.trouble.is_none() {
                    return inner.parts.back().map_or(Ok(()), |part| is_linked(&part.file));
                }
                inner.numbered += 1;
                inner.numbered
            };
            let lock = if is_linked(&spool.inner.lock().lock).is_err() {
                Some(locked_folder(&spool.root, &spool.folder)?)
            } else {
                None
            };
            let new = new_file(&spool.folder, number, spool.segment(), true)?;
            let mut inner = spool.inner.lock();
            if let Some(unused) = inner.prepared.take() {
                drop(fs::remove_file(unused.path));
            }
            spool.begin_part(&mut inner, new)?;
            if let Some(lock) = lock {
                inner.lock = lock;
            }
            inner.trouble = None;
            tracing::info!("the spool of the access log is written again");
            Ok(())
        });
        if let Err(error) = probing.await {
            self.fail(&mut self.inner.lock(), &error);
        }
    }

    /// Returns when there are records that the database does not have.
    pub(super) async fn has_records(&self) {
        let mut appended = self.appended.subscribe();
        drop(appended.wait_for(|sequence| *sequence > *self.shipped.borrow()).await);
    }

    /// How many records the database does not have.
    pub(super) fn waiting(&self) -> i64 {
        *self.appended.borrow() - *self.shipped.borrow()
    }

    /// Returns when so many records wait.
    pub(super) async fn has_many(&self, records: i64) {
        let mut appended = self.appended.subscribe();
        drop(appended.wait_for(|sequence| *sequence >= *self.shipped.borrow() + records).await);
    }

    /// Returns when the database has all records that have been appended so far.
    pub(super) async fn is_shipped(&self) {
        let last = *self.appended.borrow();
        drop(self.shipped.subscribe().wait_for(|shipped| *shipped >= last).await);
    }

    /// The next records that the database does not have, at most so many. What cannot be read back is skipped: its file
    /// is set aside.
    pub(super) async fn next(self: &Arc<Self>, most: usize) -> io::Result<Parcel> {
        let spool = self.clone();
        on_a_thread(move || {
            let (file, from, to, before, path) = {
                let mut inner = spool.inner.lock();
                inner.drop_shipped();
                let Some(part) = inner.parts.front() else { return Ok(Parcel::default()) };
                let before = (part.shipped == part.begin).then(|| part.before.clone());
                (part.file.clone(), part.shipped, part.end, before, part.path.clone())
            };
            let mut bytes = vec![0; READ.min((to - from) as usize)];
            file.read_exact_at(&mut bytes, from)?;
            let (records, read) = segment::records(&bytes, most);
            if records.is_empty() && from < to {
                let reason = format!("{}: bytes {from} to {to} cannot be read back", path.display());
                set_aside(&spool.set_aside(), &path)?;
                let mut inner = spool.inner.lock();
                if let Some(part) = inner.parts.front_mut() {
                    part.shipped = part.end;
                }
                let skipped = inner.parts.get(1).map_or(&inner.end, |next| &next.before).sequence;
                spool.shipped.send_replace(skipped);
                // The rest of the chain goes to another file.
                return Err(io::Error::other(spool.fail(&mut inner, &io::Error::other(reason)).to_string()));
            }
            Ok(Parcel { before, records, bytes: read as u64 })
        })
        .await
    }

    /// Notes that the database has these records, and deletes a file that it has completely.
    pub(super) fn has_shipped(&self, parcel: &Parcel) {
        let mut inner = self.inner.lock();
        if let Some(part) = inner.parts.front_mut() {
            part.shipped += parcel.bytes;
        }
        inner.drop_shipped();
        if let Some(last) = parcel.records.last() {
            self.shipped.send_replace(last.sequence);
            inner.oldest = (last.sequence < inner.end.sequence).then_some(last.entry.at);
        }
    }

    /// Removes the folder when the database has everything. Nothing must be appended after this.
    pub(super) fn close(&self) {
        if self.waiting() == 0 {
            drop(fs::remove_dir_all(&self.folder));
        } else {
            tracing::warn!(
                records = self.waiting(),
                folder = %self.folder.display(),
                "records of the access log are not in the database yet: the next start with this spool ships them"
            );
        }
    }

    /// Takes over what instances that no longer run have left.
    pub(super) fn take_over(&self) -> Vec<LeftBehind> {
        let look = || -> io::Result<Vec<LeftBehind>> {
            let root = File::open(&self.root)?;
            root.lock()?;
            let mut found = Vec::new();
            for entry in fs::read_dir(&self.root)? {
                let entry = entry?;
                let Some(instance) = entry.file_name().to_str().map(str::to_owned) else { continue };
                let folder = entry.path();
                // A disk's own folders, such as lost+found, are none of ours.
                let named = instance.len() == 16 && instance.bytes().all(|byte| byte.is_ascii_hexdigit());
                if !named || instance == self.instance.id || !folder.is_dir() {
                    continue;
                }
                let lock = File::open(&folder)?;
                match lock.try_lock() {
                    Ok(()) => found.push(LeftBehind { instance, folder, _lock: lock }),
                    Err(TryLockError::WouldBlock) => {}
                    Err(TryLockError::Error(error)) => return Err(error),
                }
            }
            Ok(found)
        };
        look().unwrap_or_else(|error| {
            tracing::error!(folder = %self.root.display(), %error, "the spool of the access log cannot be searched");
            Vec::new()
        })
    }

    /// Notes how many bytes other instances have left.
    pub(super) fn set_left_behind(&self, all: &[LeftBehind]) {
        let size = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let bytes = all.iter().flat_map(|one| one.files().unwrap_or_default()).map(size).sum();
        let mut inner = self.inner.lock();
        inner.left_behind = bytes;
        inner.full = false;
    }

    /// Keeps records that the database does not take, as lines of an export.
    pub(super) fn keep_refused(&self, records: &[Record]) -> io::Result<()> {
        let folder = self.set_aside();
        create_folder(&folder)?;
        let path = folder.join("refused.jsonl");
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let lines: String = records.iter().map(|record| record.line() + "\n").collect();
        file.write_all(lines.as_bytes())?;
        file.sync_all()
    }
}

impl Inner {
    /// Deletes the files that the database has completely, except the one that is being written.
    fn drop_shipped(&mut self) {
        while self.parts.len() > 1
            && let Some(part) = self.parts.pop_front_if(|part| part.shipped == part.end)
        {
            // If this fails, the next start ships the file again: the database has its records.
            drop(tokio::task::spawn_blocking(move || fs::remove_file(part.path)));
            self.full = false;
        }
    }
}

/// What an instance that no longer runs has left.
#[derive(Debug)]
pub(super) struct LeftBehind {
    pub(super) instance: String,
    pub(super) folder: PathBuf,
    _lock: File,
}

impl LeftBehind {
    /// Its files, the first one first.
    pub(super) fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        files.sort_unstable();
        Ok(files)
    }
}

/// Moves a file to where an operator looks at it.
pub(super) fn set_aside(folder: &Path, path: &Path) -> io::Result<()> {
    create_folder(folder)?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let instance = path.parent().map(name).unwrap_or_default();
    fs::rename(path, folder.join(format!("{instance}-{}", name(path))))
}

/// Makes the folder of an instance and locks it.
fn locked_folder(root: &Path, folder: &Path) -> io::Result<File> {
    // Nobody looks for folders that are left behind while this one is made.
    let making = File::open(root)?;
    making.lock()?;
    create_folder(folder)?;
    let lock = File::open(folder)?;
    lock.lock()?;
    Ok(lock)
}

/// Makes a folder whose parent is there.
fn create_folder(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Makes a file of zeros. When they are written, no later `fdatasync` has to record that the file grows.
fn new_file(folder: &Path, number: u64, size: u64, written: bool) -> io::Result<NewFile> {
    let path = folder.join(format!("{number:012}.segment"));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    let fill = || {
        file.set_len(size)?;
        if !written {
            return Ok(());
        }
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let piece = zeros.len().min((size - at) as usize);
            file.write_all_at(&zeros[..piece], at)?;
            at += piece as u64;
        }
        file.sync_all()?;
        File::open(folder)?.sync_all()
    };
    if let Err(error) = fill() {
        drop(fs::remove_file(path));
        return Err(error);
    }
    Ok(NewFile { number, path, file: Arc::new(file) })
}

/// Fails when nobody could open the file again.
fn is_linked(file: &File) -> io::Result<()> {
    match file.metadata()?.nlink() {
        0 => Err(io::Error::new(io::ErrorKind::NotFound, "its file was removed")),
        _ => Ok(()),
    }
}

/// Runs something that waits for the disk.
pub(super) async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
