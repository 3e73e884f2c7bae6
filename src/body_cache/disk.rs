//! Segments on the local disk, sealed (`download.disk_cache`).
//!
//! A file holds the segments of one batch in one format. Its name says which, and with how many withdrawn uploads, so
//! that a file from before a withdrawal is never read again. The name is authenticated with the content. A file that
//! cannot be used is deleted, and the batch is built from the database.

use std::{
    collections::HashMap,
    fmt,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::Arc,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use chrono::NaiveDate;
use efgs_protocol::{batch_tag::ObjectId, country::Country, media::Format};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::{Segment, Segments};
use crate::{
    config::{ConfigError, Download},
    intake::Keyring,
    telemetry,
};

/// Which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) batch: ObjectId,
    pub(super) withdrawn: u32,
    pub(super) format: Format,
}

/// The cache. Its methods block.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    limit: u64,
    keyring: Arc<Keyring>,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    /// Bytes of each file, and when it was last used.
    all: HashMap<Name, (u64, u64)>,
    bytes: u64,
    /// Counts uses.
    uses: u64,
}

impl Disk {
    /// Opens the folder, with the files that an earlier start left in it. `None` if the cache is switched off.
    pub(super) fn open(settings: &Download, keyring: Arc<Keyring>) -> Result<Option<Self>, ConfigError> {
        let (folder, limit) = (settings.disk_folder.clone(), settings.disk_cache.as_u64());
        if limit == 0 {
            return Ok(None);
        }
        let disk = Self { folder, limit, keyring, files: Mutex::default() };
        disk.scan().map_err(|error| {
            let folder = disk.folder.display();
            ConfigError::Invalid(format!("`download.disk_folder`: {folder} cannot be used: {error}"))
        })?;
        Ok(Some(disk))
    }

    fn scan(&self) -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            match entry.file_name().to_str().and_then(Name::parse) {
                Some(name) => self.add(name, entry.metadata()?.len()),
                // What an interrupted write left.
                None if entry.file_name().to_string_lossy().ends_with(UNFINISHED) => {
                    std::fs::remove_file(entry.path())?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.lock().bytes
    }

    /// The segments, if there is a file of them.
    pub(super) fn read(&self, name: Name) -> Option<Segments> {
        let known = self.files.lock().touch(name);
        let read = if known { self.read_file(name) } else { Err("there is no such file".into()) };
        let outcome = match (&read, known) {
            (Ok(_), _) => "read",
            (Err(_), false) => "missing",
            (Err(error), true) => {
                tracing::warn!(file = %self.path(name).display(), error, "a file of the disk cache is deleted and made again");
                self.remove(name);
                "unusable"
            }
        };
        metrics::counter!(telemetry::DISK_LOOKUPS, "outcome" => outcome).increment(1);
        read.ok()
    }

    fn read_file(&self, name: Name) -> Result<Segments, String> {
        let mut sealed = std::fs::read(self.path(name)).map_err(|error| error.to_string())?;
        let plain = self.keyring.open(&name.hash(), &mut sealed).map_err(|error| error.to_string())?;
        decode(plain.to_vec().into()).ok_or_else(|| "its content has another form".to_owned())
    }

    /// Writes the segments. A failure leaves no file.
    pub(super) fn write(&self, name: Name, segments: &Segments) {
        let path = self.path(name);
        let unfinished =
            self.folder.join(format!("{name}-{}{UNFINISHED}", efgs_protocol::random::hex::<4>()));
        let write = || -> Result<u64, String> {
            let nonce = Keyring::nonces(1)[0];
            let sealed =
                self.keyring.seal(&name.hash(), nonce, &encode(segments)).map_err(|e| e.to_string())?;
            let mut options = std::fs::OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&unfinished)
                .map_err(|e| e.to_string())?;
            // Not synced: after a crash, what is not whole cannot be opened, and is made again.
            file.write_all(&sealed).map_err(|e| e.to_string())?;
            std::fs::rename(&unfinished, &path).map_err(|e| e.to_string())?;
            Ok(sealed.len() as u64)
        };
        match write() {
            Ok(bytes) => self.add(name, bytes),
            Err(error) => {
                tracing::warn!(file = %path.display(), error, "a file of the disk cache could not be written");
                drop(std::fs::remove_file(&unfinished));
            }
        }
    }

    /// Deletes the files of a batch.
    pub(super) fn forget(&self, batch: ObjectId) {
        self.remove_all(|name| name.batch == batch);
    }

    /// Deletes the files of batches that are no longer served.
    pub(super) fn forget_before(&self, oldest: NaiveDate) {
        self.remove_all(|name| name.batch.timestamp().date_naive() < oldest);
    }

    fn remove_all(&self, is_wanted: impl Fn(&Name) -> bool) {
        let names: Vec<Name> = self.files.lock().all.keys().filter(|name| is_wanted(name)).copied().collect();
        for name in names {
            self.remove(name);
        }
    }

    /// Counts a file, and deletes those that have not been used for longest until all are within the limit.
    fn add(&self, name: Name, bytes: u64) {
        let mut files = self.files.lock();
        files.take(name);
        files.bytes += bytes;
        files.all.insert(name, (bytes, 0));
        files.touch(name);
        while files.bytes > self.limit {
            let Some(oldest) = files.all.iter().min_by_key(|(_, (_, used))| *used).map(|(name, _)| *name)
            else {
                return;
            };
            files.take(oldest);
            self.delete(oldest);
        }
    }

    fn remove(&self, name: Name) {
        self.files.lock().take(name);
        self.delete(name);
    }

    fn delete(&self, name: Name) {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(file = %path.display(), %error, "a file of the disk cache could not be deleted");
            }
            _ => {}
        }
    }

    fn path(&self, name: Name) -> PathBuf {
        self.folder.join(name.to_string())
    }
}

impl Files {
    /// Whether there is such a file, which counts as used now.
    fn touch(&mut self, name: Name) -> bool {
        self.uses += 1;
        self.all.get_mut(&name).map(|(_, used)| *used = self.uses).is_some()
    }

    fn take(&mut self, name: Name) {
        if let Some((bytes, _)) = self.all.remove(&name) {
            self.bytes -= bytes;
        }
    }
}

/// How the name of a file ends while it is being written.
const UNFINISHED: &str = ".tmp";

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.batch, self.withdrawn, self.format.name())
    }
}

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        let name = Self {
            batch: parts.next()?.parse().ok()?,
            withdrawn: parts.next()?.parse().ok()?,
            format: Format::ALL.into_iter().find(|format| Some(format.name()) == parts.clone().next())?,
        };
        (name.to_string() == text).then_some(name)
    }

    /// What the content is bound to.
    fn hash(&self) -> [u8; 32] {
        Sha256::digest(format!("download {self}")).into()
    }
}

/// The number of segments, the country and length of each, and then their bytes.
fn encode(segments: &Segments) -> Vec<u8> {
    let mut plain = Vec::with_capacity(8 + 10 * segments.all.len() + segments.memory);
    plain.put_u64(segments.all.len() as u64);
    for segment in &*segments.all {
        plain.put_slice(segment.country.as_str().as_bytes());
        plain.put_u64(segment.bytes.len() as u64);
    }
    for segment in &*segments.all {
        plain.put_slice(&segment.bytes);
    }
    plain
}

fn decode(mut plain: Bytes) -> Option<Segments> {
    let memory = plain.len();
    let count = usize::try_from(plain.try_get_u64().ok()?).ok()?;
    let mut head = Vec::new();
    for _ in 0..count {
        let country = [plain.try_get_u8().ok()?, plain.try_get_u8().ok()?];
        let country = Country::new(std::str::from_utf8(&country).ok()?).ok()?;
        head.push((country, usize::try_from(plain.try_get_u64().ok()?).ok()?));
    }
    let mut all = Vec::with_capacity(head.len());
    for (country, length) in head {
        if length > plain.len() {
            return None;
        }
        all.push(Segment { country, bytes: plain.split_to(length) });
    }
    plain.is_empty().then(|| Segments { all: all.into(), memory })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use bytesize::ByteSize;

    use super::*;

    fn name(n: u8) -> Name {
        Name { batch: ObjectId::from_bytes([n; 12]), withdrawn: u32::from(n), format: Format::Json }
    }

    fn segments(byte: u8, length: usize) -> Segments {
        let segment =
            |code: &str, length| Segment { country: code.parse().unwrap(), bytes: vec![byte; length].into() };
        Segments {
            all: [segment("DE", length), segment("NL", 0), segment("IT", 3)].into(),
            memory: length + 3,
        }
    }

    fn same(one: &Segments, other: &Segments) -> bool {
        let parts = |of: &Segments| of.all.iter().map(|s| (s.country, s.bytes.clone())).collect::<Vec<_>>();
        parts(one) == parts(other)
    }

    fn open(folder: &std::path::Path, limit: u64) -> Disk {
        let disk_folder = folder.to_owned();
        let settings = Download { disk_cache: ByteSize::b(limit), disk_folder, ..Default::default() };
        Disk::open(&settings, Arc::new(super::super::tests::keyring())).unwrap().unwrap()
    }

    #[test]
    fn a_file_is_read_as_it_was_written_also_by_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(folder.path(), 1 << 20);
        assert!(disk.read(name(1)).is_none());
        disk.write(name(1), &segments(7, 1000));
        std::fs::write(folder.path().join(format!("{}-x{UNFINISHED}", name(2))), "half").unwrap();
        std::fs::write(folder.path().join("README"), "of somebody else").unwrap();
        for disk in [&disk, &open(folder.path(), 1 << 20)] {
            assert!(same(&disk.read(name(1)).unwrap(), &segments(7, 1000)));
            assert!(disk.read(name(2)).is_none());
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let text = std::fs::read(folder.path().join(name(1).to_string())).unwrap();
        assert!(!text.windows(20).any(|bytes| bytes == [7; 20]), "it is sealed");
    }

    #[test]
    fn what_was_altered_or_renamed_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = |n| folder.path().join(name(n).to_string());
        let disk = open(folder.path(), 1 << 20);
        disk.write(name(1), &segments(7, 100));
        let whole = std::fs::read(path(1)).unwrap();
        for at in 0..whole.len() {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            disk.write(name(1), &segments(7, 100));
            std::fs::write(path(1), if at % 2 == 0 { &altered } else { &whole[..at] }).unwrap();
            assert!(disk.read(name(1)).is_none(), "{at}");
            assert!(!path(1).exists() && disk.bytes() == 0);
        }
        // Before a withdrawal it had another name.
        disk.write(name(1), &segments(7, 100));
        disk.write(name(2), &segments(8, 100));
        std::fs::rename(path(1), path(2)).unwrap();
        assert!(disk.read(name(2)).is_none());
    }

    #[test]
    fn the_limit_holds_and_what_was_used_lately_stays() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(folder.path(), 3500);
        for n in 1..=3 {
            disk.write(name(n), &segments(n, 1000));
        }
        assert!(disk.read(name(1)).is_some());
        disk.write(name(4), &segments(4, 1000));
        assert!(disk.bytes() <= 3500);
        assert_eq!([1, 2, 3, 4].map(|n| disk.read(name(n)).is_some()), [true, false, true, true]);
        // More than the limit is not kept at all, and a smaller limit holds from the start on.
        disk.write(name(5), &segments(5, 4000));
        assert!(disk.read(name(5)).is_none());
        let disk = open(folder.path(), 1500);
        assert!(disk.bytes() <= 1500);
        disk.write(name(6), &segments(6, 1000));
        disk.forget(name(6).batch);
        assert_eq!(disk.bytes(), 0);
        disk.write(name(7), &segments(7, 1000));
        disk.forget_before(name(7).batch.timestamp().date_naive());
        assert!(disk.read(name(7)).is_some());
        disk.forget_before(name(7).batch.timestamp().date_naive().succ_opt().unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
