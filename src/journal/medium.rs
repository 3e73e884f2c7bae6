//! Where a journal is kept: a folder, or a bucket of an S3-compatible store.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::sync::{Semaphore, oneshot};

use super::{JournalError, s3::Bucket};
use crate::config::{self, ConfigError};

/// Where the segments are.
#[derive(Debug)]
pub(super) enum Medium {
    Folder(PathBuf),
    Bucket(Box<Bucket>),
}

/// A segment's name and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) bytes: u64,
}

impl Medium {
    pub(super) fn open(config: &config::Journal) -> Result<Self, ConfigError> {
        match &config.folder {
            // If it were created here, it would be on the wrong disk whenever its own is not mounted.
            Some(folder) if !folder.is_dir() => Err(ConfigError::Invalid(format!(
                "`journal.folder`: there is no folder {}: create it, or mount its disk",
                folder.display()
            ))),
            Some(folder) => Ok(Self::Folder(folder.clone())),
            None => Ok(Self::Bucket(Box::new(Bucket::open(config)?))),
        }
    }

    /// The names of the days of which there may be segments.
    pub(super) async fn days(&self) -> Result<Vec<String>, JournalError> {
        match self {
            Self::Bucket(bucket) => bucket.days().await,
            Self::Folder(folder) => {
                reading(folder, |folder| {
                    let days = entries(folder)?.into_iter();
                    Ok(days.map(|day| day.file_name().to_string_lossy().into_owned()).collect())
                })
                .await
            }
        }
    }

    /// The segments of one day, or all, by their names. `step` is called when a store has answered and is to be asked
    /// for more.
    pub(super) async fn list(
        &self,
        day: Option<&str>,
        step: impl FnMut(),
    ) -> Result<Vec<Listed>, JournalError> {
        let mut all = match self {
            Self::Bucket(bucket) => bucket.list(day, step).await?,
            Self::Folder(folder) => {
                let day = day.map(str::to_owned);
                reading(folder, move |folder| list_folder(folder, day.as_deref())).await?
            }
        };
        all.retain(|listed| listed.name.ends_with(".efgsj"));
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    pub(super) async fn read(&self, listed: &Listed) -> Result<Vec<u8>, JournalError> {
        match self {
            Self::Bucket(bucket) => bucket.get(listed).await,
            Self::Folder(folder) => {
                let path = folder.join(&listed.name);
                blocking(move || {
                    fs::read(&path).map_err(|e| JournalError::Read(format!("{}: {e}", path.display())))
                })
                .await
            }
        }
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), JournalError> {
        match self {
            Self::Bucket(bucket) => bucket.delete(name).await,
            Self::Folder(folder) => {
                let path = folder.join(name);
                blocking(move || {
                    match fs::remove_file(&path) {
                        // Another instance was faster.
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        removed => removed.map_err(|error| failed(&path, &error))?,
                    }
                    // The day's folder goes with its last file.
                    if let Some(day) = path.parent() {
                        drop(fs::remove_dir(day));
                    }
                    Ok(())
                })
                .await
            }
        }
    }
}

/// Looks at a folder in a thread of its own.
async fn reading<T: Send + 'static>(
    folder: &Path,
    read: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, JournalError> {
    let folder = folder.to_owned();
    blocking(move || read(&folder).map_err(|e| JournalError::Read(format!("{}: {e}", folder.display()))))
        .await
}

fn list_folder(folder: &Path, only: Option<&str>) -> io::Result<Vec<Listed>> {
    let mut all = Vec::new();
    for day in entries(folder)? {
        if !day.file_type()?.is_dir() || only.is_some_and(|only| day.file_name() != only) {
            continue;
        }
        for file in entries(&day.path())? {
            let bytes = match file.metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata?.len(),
            };
            let name =
                format!("{}/{}", day.file_name().to_string_lossy(), file.file_name().to_string_lossy());
            all.push(Listed { name, bytes });
        }
    }
    Ok(all)
}

/// The entries of a folder; none when it does not exist: before the first record, or when another instance has just
/// deleted the last file of a day.
fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.collect(),
    }
}

/// Access to a disk that may hang, because it fails or is behind a network. No caller waits longer than `limit`.
#[derive(Debug)]
pub(super) struct Disk {
    limit: Duration,
    free: Arc<Semaphore>,
}

impl Disk {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, free: Arc::new(Semaphore::new(1)) }
    }

    /// Does the work, one at a time, so that a disk that hangs has one thread hanging, and not one for every attempt.
    async fn within<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let working = async {
            let free = self.free.clone().acquire_owned().await;
            blocking(move || {
                let result = work();
                drop(free);
                result
            })
            .await
        };
        self.patiently(path, working).await
    }

    /// Whether a file is there.
    pub(super) async fn has(&self, path: PathBuf) -> Result<bool, JournalError> {
        let named = path.clone();
        self.within(&named, move || path.try_exists().map_err(|error| failed(&path, &error))).await
    }

    /// Waits for something to do with the disk.
    pub(super) async fn patiently<T>(
        &self,
        path: &Path,
        work: impl Future<Output = Result<T, JournalError>>,
    ) -> Result<T, JournalError> {
        tokio::time::timeout(self.limit, work).await.unwrap_or_else(|_| {
            let late = format!("no answer from the disk within {} ms", self.limit.as_millis());
            Err(failed(path, &io::Error::other(late)))
        })
    }
}

/// A file that is appended to.
#[derive(Debug)]
pub(super) struct Appending {
    file: File,
    path: PathBuf,
}

impl Appending {
    /// Makes the file; what is written and the file's name survive a power cut.
    pub(super) async fn create(disk: &Disk, path: PathBuf, header: Vec<u8>) -> Result<Self, JournalError> {
        let named = path.clone();
        disk.within(&named, move || match create(&path, &header) {
            Ok(file) => Ok(Self { file, path }),
            Err(error) => Err(failed(&path, &error)),
        })
        .await
    }

    /// Appends; returns when it is on the disk.
    pub(super) async fn append(mut self, disk: &Disk, bytes: Vec<u8>) -> Result<Self, JournalError> {
        let named = self.path.clone();
        disk.within(&named, move || {
            let mut append = || {
                // What is written to a deleted file is lost.
                if self.file.metadata()?.nlink() == 0 {
                    return Err(io::Error::other("the file was deleted while it was written"));
                }
                self.file.write_all(&bytes)?;
                self.file.sync_data()
            };
            match append() {
                Ok(()) => Ok(self),
                Err(error) => Err(failed(&self.path, &error)),
            }
        })
        .await
    }
}

fn create(path: &Path, header: &[u8]) -> io::Result<File> {
    let day = path.parent().unwrap_or(Path::new("."));
    match fs::create_dir(day) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    create_with(path, |file| {
        file.write_all(header)?;
        file.sync_all()?;
        for folder in [Some(day), day.parent()].into_iter().flatten() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    })
}

/// A new file with what `fill` writes, or none: on a full disk every attempt would leave one behind.
fn create_with(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
    let mut file = fs::OpenOptions::new().append(true).create_new(true).open(path)?;
    match fill(&mut file) {
        Ok(()) => Ok(file),
        Err(error) => {
            drop(fs::remove_file(path));
            Err(error)
        }
    }
}

fn failed(path: &Path, error: &io::Error) -> JournalError {
    JournalError::Write(format!("{}: {error}", path.display()))
}

/// Works in a thread of its own: at its end the program waits for the runtime's threads, and a disk may hang.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    let (done, outcome) = oneshot::channel();
    // The caller may have stopped waiting.
    let thread = thread::Builder::new().name("journal".into()).spawn(move || drop(done.send(work())));
    thread.map_err(|error| JournalError::Write(error.to_string()))?;
    outcome.await.unwrap_or_else(|_| Err(JournalError::Write("a thread panicked".into())))
}

#[cfg(test)]
mod tests;
