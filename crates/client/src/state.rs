//! What commands keep in the state folder.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another command is working on it.
    #[error("another efgs uses {}: wait until it ends, or use another state folder", .0.display())]
    InUse(PathBuf),
    /// A file or the folder cannot be made, read or written.
    #[error("cannot use {}: {}", .0.display(), .1)]
    Io(PathBuf, io::Error),
    /// A file is not as the commands leave it; where, and what to do.
    #[error("{} is damaged: {}", .0.display(), .1)]
    Damaged(PathBuf, String),
}

impl StateError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |reason| Self::Io(path.to_owned(), reason)
    }
}

/// The right to do one kind of work on a state folder. It ends with this value or with the process.
pub(crate) struct Lock(#[expect(dead_code, reason = "the file is locked as long as it is open")] File);

impl Lock {
    /// Takes the lock `name`, in a folder that is made if need be, for its owner alone.
    pub(crate) fn take(folder: &Path, name: &str) -> Result<Self, StateError> {
        make_private(folder).map_err(StateError::io(folder))?;
        let path = folder.join(name);
        let file = options(PRIVATE).truncate(false).open(&path).map_err(StateError::io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse(folder.to_owned())),
            Err(TryLockError::Error(error)) => Err(StateError::io(&path)(error)),
        }
    }
}

/// The mode of what only its owner may read: secrets, and keys that are not published.
const PRIVATE: u32 = 0o600;
/// The mode of what a web server serves, under an account of its own.
const PUBLIC: u32 = 0o644;

/// Makes a folder, and those above it, for their owner alone. Those that are there stay as they are.
fn make_private(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// To write a file that gets this mode if it is new.
#[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix has modes"))]
fn options(mode: u32) -> OpenOptions {
    let mut options = File::options();
    options.create(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    options
}

/// Reads a file, if it is there.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        bytes => bytes.map(Some).map_err(StateError::io(path)),
    }
}

/// Replaces a file of the state as a whole: after a crash it has either the old content or the new one.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), StateError> {
    Replacement::prepare(path, content)?.take_effect()
}

/// The same for a file that everybody may read.
pub(crate) fn publish(path: &Path, content: &[u8]) -> Result<(), StateError> {
    Replacement::write(path, content, PUBLIC)?.take_effect()
}

/// The name of the file that the hidden file of this name would have become, had its process not been killed.
pub(crate) fn name_of_unfinished(temporary: &str) -> Option<&str> {
    temporary.strip_prefix('.')?.strip_suffix(".tmp")
}

/// [`replace`] in steps, for what has to take effect right after something else. The new content waits in a hidden
/// file beside the old one.
pub(crate) struct Replacement {
    temporary: PathBuf,
    path: PathBuf,
}

impl Replacement {
    /// Writes the new content, for its owner alone, and waits until it is on the disk.
    pub(crate) fn prepare(path: &Path, content: &[u8]) -> Result<Self, StateError> {
        Self::write(path, content, PRIVATE)
    }

    fn write(path: &Path, content: &[u8], mode: u32) -> Result<Self, StateError> {
        let name = path.file_name().unwrap_or_default().display();
        let temporary = path.with_file_name(format!(".{name}.tmp"));
        let write = || {
            let mut file = options(mode).truncate(true).open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()
        };
        write().map_err(StateError::io(&temporary))?;
        Ok(Self { temporary, path: path.to_owned() })
    }

    /// Puts it in the file's place; it stays there for certain after [`sync_folder`].
    pub(crate) fn rename(&self) -> Result<(), StateError> {
        fs::rename(&self.temporary, &self.path).map_err(StateError::io(&self.path))
    }

    /// Puts it in the file's place for certain.
    pub(crate) fn take_effect(self) -> Result<(), StateError> {
        self.rename()?;
        sync_folder_of(&self.path)
    }
}

/// [`sync_folder`] for the folder of a file.
pub(crate) fn sync_folder_of(path: &Path) -> Result<(), StateError> {
    // A path without a parent is one in the working directory.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    sync_folder(folder.unwrap_or(Path::new(".")))
}

/// Makes the names in a folder as durable as the files that they name.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), StateError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StateError::io(folder))
}
