//! Where a journal is kept: a folder, or a bucket of an S3-compatible store.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

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
            Some(folder) => Ok(Self::Folder(folder.clone())),
            None => Ok(Self::Bucket(Box::new(Bucket::open(config)?))),
        }
    }

    /// All segments, by their names.
    pub(super) async fn list(&self) -> Result<Vec<Listed>, JournalError> {
        let mut all = match self {
            Self::Bucket(bucket) => bucket.list().await?,
            Self::Folder(folder) => {
                let folder = folder.clone();
                blocking(move || {
                    list_folder(&folder).map_err(|e| JournalError::Read(format!("{}: {e}", folder.display())))
                })
                .await?
            }
        };
        all.retain(|listed| listed.name.ends_with(".efgsj"));
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    pub(super) async fn read(&self, name: &str) -> Result<Vec<u8>, JournalError> {
        match self {
            Self::Bucket(bucket) => bucket.get(name).await,
            Self::Folder(folder) => {
                let path = folder.join(name);
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
                    fs::remove_file(&path)
                        .map_err(|e| JournalError::Write(format!("{}: {e}", path.display())))?;
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

fn list_folder(folder: &Path) -> std::io::Result<Vec<Listed>> {
    let mut all = Vec::new();
    for day in fs::read_dir(folder)? {
        let day = day?;
        if !day.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(day.path())? {
            let file = file?;
            let name =
                format!("{}/{}", day.file_name().to_string_lossy(), file.file_name().to_string_lossy());
            all.push(Listed { name, bytes: file.metadata()?.len() });
        }
    }
    Ok(all)
}

/// A file that is appended to.
#[derive(Debug)]
pub(super) struct Appending {
    file: File,
    path: PathBuf,
}

impl Appending {
    /// Makes the file; what is written and the file's name survive a power cut.
    pub(super) async fn create(path: PathBuf, header: Vec<u8>) -> Result<Self, JournalError> {
        blocking(move || {
            let create = || {
                let day = path.parent().unwrap_or(Path::new("."));
                fs::create_dir_all(day)?;
                let mut file = fs::OpenOptions::new().append(true).create_new(true).open(&path)?;
                file.write_all(&header)?;
                file.sync_all()?;
                for folder in [Some(day), day.parent()].into_iter().flatten() {
                    File::open(folder)?.sync_all()?;
                }
                Ok(file)
            };
            match create() {
                Ok(file) => Ok(Self { file, path }),
                Err(error) => Err(failed(&path, &error)),
            }
        })
        .await
    }

    /// Appends; returns when it is on the disk.
    pub(super) async fn append(mut self, bytes: Vec<u8>) -> Result<Self, JournalError> {
        blocking(move || {
            let mut append = || {
                // What is written to a file that somebody has deleted is gone.
                if self.file.metadata()?.nlink() == 0 {
                    return Err(std::io::Error::other("the file was deleted while it was written"));
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

fn failed(path: &Path, error: &std::io::Error) -> JournalError {
    JournalError::Write(format!("{}: {error}", path.display()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(JournalError::Write(error.to_string())),
    }
}
