//! Where batches go, and how each gets there exactly once.
//!
//! A batch in a folder is written under a temporary name, then it gets its name, then the cursor goes past it. So
//! nothing is lost, whatever is deleted and when: what the cursor has passed had its name, and what it has not
//! passed is downloaded (again). The folder is never asked what was downloaded: whoever takes batches out of it
//! may do so at any time. Only when the process is killed in the moment between a batch's name and the cursor, and
//! the batch is taken out before the next run, it comes once more. One file (NDJSON) is cut back to the length that the cursor knows.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufWriter, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
};

use efgs_protocol::{media::Format, wire};

use super::{
    DownloadError, Stored,
    cursor::{Cursor, Last},
    order::{Passed, Tag},
    release::Verified,
    stored,
};
use crate::state::{self, Lock, Replacement, StateError};

/// Locked while a download works with the folder: another one may have another state folder, or another name
/// for the same folder.
const LOCK: &str = ".efgs-download.lock";

/// Where batches go.
pub enum Target {
    /// A folder with one file for each batch, see [`Stored`].
    Folder {
        /// The folder; it is made if it is not there.
        path: PathBuf,
        /// The form of the files.
        format: Format,
    },
    /// One file with a line of JSON for each key, with its batch tag and date. The file grows; when it was
    /// moved away (for example to rotate it), a new one is begun.
    Lines {
        /// The file.
        path: PathBuf,
    },
    /// The same lines, to a reader such as a pipe. What was written cannot be taken back: when the process is
    /// killed right after it has written a batch, the next run writes that batch again.
    Stream(Box<dyn Write + Send>),
}

/// The target of a download that has begun.
pub(super) enum Open {
    Folder {
        path: PathBuf,
        format: Format,
        _lock: Lock,
    },
    Lines {
        path: PathBuf,
        file: File,
    },
    Stream(Box<dyn Write + Send>),
    /// A dry run's: nothing is stored.
    Nothing,
}

impl Target {
    /// What the target is called in the state; each has a memory of its own.
    pub(super) fn name(&self) -> Result<String, DownloadError> {
        let absolute = |path: &Path| {
            std::path::absolute(path).map(|path| path.display().to_string()).map_err(StateError::io(path))
        };
        match self {
            Self::Folder { path, .. } | Self::Lines { path } => Ok(absolute(path)?),
            Self::Stream(_) => Ok("-".to_owned()),
        }
    }

    /// Looks at the target as far as the walk depends on it, and changes nothing.
    pub(super) fn look(&self, cursor: &mut Option<Cursor>, name: &str) -> Result<Open, DownloadError> {
        match self {
            Self::Folder { path, .. } if cursor.is_none() && path.exists() => *cursor = recover(path, name)?,
            Self::Lines { path } => drop(length(path, cursor.as_ref())?),
            Self::Folder { .. } | Self::Stream(_) => {}
        }
        Ok(Open::Nothing)
    }

    /// Opens the target, and undoes what the process before this one was killed at.
    pub(super) fn open(
        self,
        cursor: &mut Option<Cursor>,
        cursor_path: &Path,
        name: &str,
    ) -> Result<Open, DownloadError> {
        match self {
            Self::Folder { path, format } => {
                let lock = Lock::take(&path, LOCK).map_err(|error| match error {
                    StateError::InUse(path) => DownloadError::TargetInUse(path),
                    error => error.into(),
                })?;
                if cursor.is_none() {
                    // The memory was lost, or the folder was moved: it says itself where it ends.
                    *cursor = recover(&path, name)?;
                }
                remove_unfinished(&path)?;
                Ok(Open::Folder { path, format, _lock: lock })
            }
            Self::Lines { path } => {
                if length(&path, cursor.as_ref())?.is_none()
                    && let Some(cursor) = cursor
                {
                    // Before there is a file: an empty one would seem to have lost what was written to the one that
                    // was moved away.
                    cursor.length = 0;
                    cursor.save(cursor_path)?;
                }
                let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
                let mut file = file.map_err(StateError::io(&path))?;
                match file.try_lock() {
                    Ok(()) => {}
                    Err(TryLockError::WouldBlock) => return Err(DownloadError::TargetInUse(path)),
                    Err(TryLockError::Error(error)) => return Err(StateError::io(&path)(error).into()),
                }
                let mut cut = || {
                    let end = cursor.as_ref().map_or(0, |cursor| cursor.length);
                    file.set_len(end)?;
                    file.seek(SeekFrom::Start(end))
                };
                cut().map_err(StateError::io(&path))?;
                state::sync_folder_of(&path)?;
                Ok(Open::Lines { path, file })
            }
            Self::Stream(writer) => Ok(Open::Stream(writer)),
        }
    }
}

impl Open {
    /// Stores a batch, and moves the cursor past it; `next` is the cursor with the batch passed.
    ///
    /// What is stored is written anew from the keys that were verified, so that nobody who reads it can see
    /// something else in the gateway's bytes than the verification did.
    pub(super) fn store(
        &mut self,
        batch: &Verified,
        next: &mut Cursor,
        cursor_path: &Path,
    ) -> Result<Option<PathBuf>, DownloadError> {
        next.number += 1;
        match self {
            Self::Folder { path: folder, format, .. } => {
                let path =
                    folder.join(stored::name(next.number, batch.last.date, batch.last.tag.as_str(), *format));
                let body = match batch.keys.is_empty() && *format == Format::Protobuf {
                    true => Vec::new(),
                    false => wire::encode(*format, &batch.keys),
                };
                if fs::read(&path).is_ok_and(|there| there != body) {
                    return Err(DownloadError::Occupied(path));
                }
                let audit =
                    serde_json::to_vec_pretty(&batch.audited).map_err(|e| StateError::io(&path)(e.into()))?;
                // The audit has its name first: a batch that is there has its audit beside it.
                let audit = Replacement::prepare(&stored::audit_path(&path), &audit)?;
                let body = Replacement::prepare(&path, &body)?;
                let cursor = next.prepare(cursor_path)?;
                audit.rename()?;
                body.rename()?;
                state::sync_folder(folder)?;
                cursor.take_effect()?;
                Ok(Some(path))
            }
            Self::Lines { path, file } => {
                let mut write = || -> io::Result<u64> {
                    let mut writer = BufWriter::new(&mut *file);
                    // After a failure that did not end the process.
                    writer.seek(SeekFrom::Start(next.length))?;
                    write_lines(batch, &mut writer)?;
                    let file = writer.into_inner()?;
                    file.sync_data()?;
                    file.stream_position()
                };
                next.length = write().map_err(StateError::io(path))?;
                next.save(cursor_path)?;
                Ok(None)
            }
            Self::Stream(writer) => {
                let mut buffered = BufWriter::new(writer);
                write_lines(batch, &mut buffered)
                    .and_then(|()| buffered.flush())
                    .map_err(DownloadError::Output)?;
                next.save(cursor_path)?;
                Ok(None)
            }
            Self::Nothing => Ok(None),
        }
    }
}

/// The length of a target that is one file, if it is there. It must have what was written to it, and nothing else.
fn length(path: &Path, cursor: Option<&Cursor>) -> Result<Option<u64>, DownloadError> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::io(path)(source).into()),
    };
    match cursor {
        None if length > 0 => Err(DownloadError::Foreign(path.to_owned())),
        Some(cursor) if length < cursor.length => {
            Err(DownloadError::Shortened { path: path.to_owned(), length, expected: cursor.length })
        }
        _ => Ok(Some(length)),
    }
}

/// One line for each key: its JSON with the batch's tag and date in front.
fn write_lines(batch: &Verified, out: &mut impl Write) -> io::Result<()> {
    // A tag has no character that JSON would escape.
    let front = format!("{{\"batchTag\":\"{}\",\"date\":\"{}\",", batch.last.tag.as_str(), batch.last.date);
    let mut key_json = Vec::new();
    for key in batch.keys.iter() {
        key_json.clear();
        wire::encode_key(Format::Json, key, &mut key_json);
        out.write_all(front.as_bytes())?;
        out.write_all(key_json.get(1..).unwrap_or_default())?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Removes what a process that was killed had begun.
fn remove_unfinished(folder: &Path) -> Result<(), StateError> {
    for entry in fs::read_dir(folder).map_err(StateError::io(folder))? {
        let path = entry.map_err(StateError::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if state::name_of_unfinished(name).is_some_and(stored::is_name) {
            fs::remove_file(&path).map_err(StateError::io(&path))?;
        }
    }
    Ok(())
}

/// A cursor at the end of a folder that has batches already.
fn recover(folder: &Path, name: &str) -> Result<Option<Cursor>, DownloadError> {
    let batches = Stored::batches(folder)?;
    let Some(last) = batches.last() else { return Ok(None) };
    let mut passed = Passed::default();
    for batch in &batches {
        passed.pass(&Tag::new(&batch.batch_tag)?, batch.date);
    }
    let tag = Tag::new(&last.batch_tag)?;
    let mut cursor = Cursor::new(name.to_owned());
    cursor.number = last.number;
    cursor.last = Some(Last { tag, date: last.date, etag: None });
    cursor.passed = passed;
    Ok(Some(cursor))
}
