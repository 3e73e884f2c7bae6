//! A folder of downloaded batches: one file per batch, named so that the names sort in the order of the chain.
//!
//! `0000000042_2026-11-22_6920f1a2c00102030405000007.pb` is the 42nd batch of the folder, formed on 22 November,
//! with its batch tag. Beside it stands what the gateway said about it when it was verified,
//! `….audit.json`. Names that begin with a dot are being written and are nobody else's business.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use chrono::NaiveDate;
use efgs_protocol::{key::KeyBatch, media::Format};

use crate::fetch::Body;

/// How many digits the number in a file name has. A batch each minute fills them in 19,000 years.
const DIGITS: usize = 10;
/// The end of the name of the audit beside a batch.
const AUDIT: &str = "audit.json";

/// The end of the name of a batch's file.
pub(super) fn extension(format: Format) -> &'static str {
    match format {
        Format::Protobuf => "pb",
        Format::Json => "json",
    }
}

/// A verified batch in a folder, known by its file name; nothing is read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place in the folder, counted from 1.
    pub number: u64,
    /// The UTC day on which the gateway formed it.
    pub date: NaiveDate,
    /// Its batch tag.
    pub batch_tag: String,
    /// The form of its file.
    pub format: Format,
    /// Its file.
    pub path: PathBuf,
}

/// The name of a batch's file.
pub(super) fn name(number: u64, date: NaiveDate, batch_tag: &str, format: Format) -> String {
    format!("{number:0DIGITS$}_{date}_{batch_tag}.{}", extension(format))
}

/// Where the audit of the batch in this file is kept.
pub(super) fn audit_path(batch: &Path) -> PathBuf {
    batch.with_extension(AUDIT)
}

/// Whether a file of this name is a batch or an audit of a download folder.
pub(super) fn is_name(name: &str) -> bool {
    let as_batch = name.replacen(AUDIT, extension(Format::Json), 1);
    Stored::at(Path::new(&as_batch)).is_some()
}

/// Why a stored batch, or the audit beside it, cannot be read; names the file or folder.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StoredError(pub(crate) String);

impl StoredError {
    fn unreadable(path: &Path, error: &io::Error) -> Self {
        Self(format!("cannot read {}: {error}", path.display()))
    }
}

impl Stored {
    /// All batches in a folder, in the order of the chain. Other files are left out.
    ///
    /// ```no_run
    /// # fn example() -> Result<(), efgs_client::download::StoredError> {
    /// use efgs_client::download::Stored;
    ///
    /// for batch in Stored::batches("batches".as_ref())? {
    ///     println!("{} of {}: {} keys", batch.batch_tag, batch.date, batch.keys()?.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn batches(folder: &Path) -> Result<Vec<Self>, StoredError> {
        let failed = |error| StoredError::unreadable(folder, &error);
        let mut batches = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            batches.extend(Self::at(&entry.map_err(failed)?.path()));
        }
        batches.sort_by_key(|batch| batch.number);
        Ok(batches)
    }

    /// The batch in a file of a download folder.
    ///
    /// # Errors
    /// When the file is not named as such.
    pub fn open(path: &Path) -> Result<Self, StoredError> {
        Self::at(path).ok_or_else(|| {
            StoredError(format!(
                "{} is not named as a batch in a download folder: 0000000001_2026-11-22_TAG.pb or .json is expected",
                path.display()
            ))
        })
    }

    fn at(path: &Path) -> Option<Self> {
        let (name, end) = path.file_name()?.to_str()?.split_once('.')?;
        let format = Format::ALL.into_iter().find(|format| extension(*format) == end)?;
        let (number, rest) = name.split_once('_')?;
        let (date, batch_tag) = rest.split_once('_')?;
        let number = number.parse().ok().filter(|_| number.len() == DIGITS)?;
        let date = date.parse().ok()?;
        let batch_tag = batch_tag.to_owned();
        Some(Self { number, date, batch_tag, format, path: path.to_owned() })
    }

    /// Reads its keys; possibly none, when the batch had only keys of the country that downloaded it.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a batch (any more).
    pub fn keys(&self) -> Result<KeyBatch, StoredError> {
        let bytes = fs::read(&self.path).map_err(|error| StoredError::unreadable(&self.path, &error))?;
        Body { format: self.format, bytes }
            .keys()
            .map_err(|error| StoredError(format!("{} is not a batch: {error}", self.path.display())))
    }

    /// Where the audit of the batch is kept.
    pub fn audit_path(&self) -> PathBuf {
        audit_path(&self.path)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_folder_is_read_in_the_order_of_the_chain() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "0000000002_2026-11-23_20261123-1.json",
            "0000000010_2026-11-24_6920f1a2c00102030405000007.pb",
            "0000000001_2026-11-22_20261122-10.pb",
            "0000000001_2026-11-22_20261122-10.audit.json",
            ".0000000011_2026-11-24_20261124-2.pb.tmp",
            "12_2026-11-24_20261124-2.pb",
            "0000000012_2026-11-24.pb",
            "0000000012_2026-13-24_a.pb",
            "notes.json",
        ] {
            fs::write(folder.path().join(name), if name.contains("json") { r#"{"keys":[]}"# } else { "" })
                .unwrap();
        }
        let batches = Stored::batches(folder.path()).unwrap();
        let found: Vec<_> =
            batches.iter().map(|b| (b.number, b.date.to_string(), b.batch_tag.as_str())).collect();
        assert_eq!(
            found,
            [
                (1, "2026-11-22".into(), "20261122-10"),
                (2, "2026-11-23".into(), "20261123-1"),
                (10, "2026-11-24".into(), "6920f1a2c00102030405000007"),
            ]
        );
        assert!(batches.iter().all(|batch| batch.keys().unwrap().is_empty()));
        assert_eq!(
            batches[0].audit_path(),
            folder.path().join("0000000001_2026-11-22_20261122-10.audit.json")
        );
        fs::write(&batches[0].path, "cut off").unwrap();
        assert!(batches[0].keys().unwrap_err().to_string().contains("is not a batch"));
        assert!(Stored::open(&folder.path().join("notes.json")).is_err());
    }
}
