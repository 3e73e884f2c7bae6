//! A GAEN export zip: keys as phones download them.

use std::{
    fs::File,
    io::{Read, Seek, copy},
};

use efgs_protocol::{
    country::Country,
    key::{InvalidReason, KeyBatch},
};

use super::{Each, SourceProblem};
use crate::gaen::{ExportFile, MAX_EXPORT_BYTES, ReadError, VerifyingKey};

/// What export files do not say of their keys, and who must have signed the files.
#[derive(Clone)]
pub struct GaenDefaults {
    /// The country of origin.
    pub origin: Country,
    /// The countries visited.
    pub visited_countries: Vec<Country>,
    /// Whose signature an export must have; without it, signatures are not looked at.
    pub key: Option<VerifyingKey>,
}

/// Keys of both lists, the new ones and the revised ones. An archive is read from its end, so that what is no
/// file on disk is copied to one.
pub(super) fn read(
    file: Option<File>,
    reader: impl Read,
    defaults: &GaenDefaults,
    each: &mut Each<'_>,
) -> Result<(), SourceProblem> {
    let file = match file {
        Some(file) => file,
        None => spool(reader)?,
    };
    let mut export = ExportFile::open(file)?;
    if let Some(key) = &defaults.key {
        export.verify(key)?;
    }
    for entry in export.keys()? {
        let handed_on = match entry {
            Ok(entry) => {
                let mut one = KeyBatch::new();
                one.push(entry.key.to_diagnosis_key(defaults.origin), &defaults.visited_countries);
                each(Ok(one.get(0)))
            }
            Err(ReadError::KeyDataLength { found, .. }) => {
                each(Err(InvalidReason::KeyDataLength { found }.to_string()))
            }
            Err(error) => return Err(error.into()),
        };
        if handed_on.is_break() {
            break;
        }
    }
    Ok(())
}

fn spool(reader: impl Read) -> Result<File, SourceProblem> {
    let mut file = tempfile::tempfile()?;
    if copy(&mut reader.take(MAX_EXPORT_BYTES + 1), &mut file)? > MAX_EXPORT_BYTES {
        let what = format!("a GAEN export has at most {MAX_EXPORT_BYTES} bytes");
        return Err(SourceProblem::Malformed(what));
    }
    file.rewind()?;
    Ok(file)
}
