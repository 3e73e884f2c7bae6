//! Reading export files, of any length in little memory.

use std::io::{self, BufRead, BufReader, Read, Seek};

use efgs_protocol::wire;
use prost::Message;
use sha2::{Digest, Sha256};
use zip::{CompressionMethod, ZipArchive, read::ZipFile, result::ZipError};

use super::{
    EXPORT_ENTRY, ExportHeader, HEADER, SIGNATURE_ENTRY, Section, SignatureInfo, TemporaryExposureKey,
    VerifyingKey,
    message::{Key, SignatureList},
    write::Hashing,
};

/// How many bytes of `export.bin` are read at most, unpacked: about eight million keys.
pub const MAX_EXPORT_BYTES: u64 = 256 << 20;
/// The longest `export.sig`.
const MAX_SIGNATURE_BYTES: u64 = 64 << 10;
/// The longest message of one key; real ones have about 30 bytes.
const MAX_KEY_BYTES: u64 = 4 << 10;
/// The longest of everything in `export.bin` that is no key.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Why an export file cannot be read or trusted. None of the texts contains key data.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file is not there to be read.
    #[error("the file cannot be read: {0}")]
    Io(#[from] io::Error),
    /// No zip archive, or one that cannot be unpacked.
    #[error("it is not a zip archive that can be unpacked: {0}")]
    Archive(String),
    /// It is another archive than an export file: an entry is missing, or is not what it should be.
    #[error("{0}")]
    NoExport(String),
    /// An entry is longer than any real one.
    #[error("{entry} has more than {limit} bytes")]
    TooLong {
        /// Which one.
        entry: &'static str,
        /// How many bytes are read at most.
        limit: u64,
    },
    /// One key is none. The keys behind it can still be read.
    #[error("key {index}: the key data has {found} bytes instead of 16")]
    KeyDataLength {
        /// Which key, counted from 0 over both lists in the order of the file.
        index: usize,
        /// The number of bytes found.
        found: usize,
    },
    /// No signature is one of the given key.
    #[error("none of the {signatures} signatures in export.sig is the given key's over this export.bin")]
    NotVerified {
        /// How many there are.
        signatures: usize,
    },
}

/// An export file, opened: both entries are there and can be unpacked.
pub struct ExportFile<R> {
    archive: ZipArchive<R>,
    signatures: SignatureList,
}

impl<R: Read + Seek> ExportFile<R> {
    /// Opens an export file. Entries besides the two, and the order of the entries, do not matter.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn open(reader: R) -> Result<Self, ReadError> {
        let mut archive = ZipArchive::new(reader).map_err(|error| archive_error(error, EXPORT_ENTRY))?;
        unpack(&mut archive, EXPORT_ENTRY, MAX_EXPORT_BYTES)?;
        let mut bytes = Vec::new();
        let mut signatures = unpack(&mut archive, SIGNATURE_ENTRY, MAX_SIGNATURE_BYTES)?;
        signatures.read_to_end(&mut bytes).map_err(|error| unpack_error(error, SIGNATURE_ENTRY))?;
        drop(signatures);
        let signatures = SignatureList::decode(&*bytes).map_err(|_| {
            ReadError::NoExport("export.sig cannot be read: it is not a list of signatures".into())
        })?;
        Ok(Self { archive, signatures })
    }

    /// Checks the file's signatures: at least one must be the given key's, over the whole of `export.bin`.
    /// Returns what the file says of the key that made it.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn verify(&mut self, key: &VerifyingKey) -> Result<SignatureInfo, ReadError> {
        let mut export = unpack(&mut self.archive, EXPORT_ENTRY, MAX_EXPORT_BYTES)?;
        let mut hashing = Hashing { out: io::sink(), sha256: Sha256::new() };
        io::copy(&mut export, &mut hashing).map_err(export_error)?;
        let digest = hashing.sha256.finalize();
        let signatures = &self.signatures.signatures;
        let by_key =
            signatures.iter().find(|one| key.verify(&digest, one.signature.as_deref().unwrap_or_default()));
        match by_key {
            Some(signature) => Ok(signature.signature_info.clone().unwrap_or_default()),
            None => Err(ReadError::NotVerified { signatures: signatures.len() }),
        }
    }

    /// With which keys the file says that it is signed.
    pub fn signature_infos(&self) -> impl Iterator<Item = &SignatureInfo> {
        self.signatures.signatures.iter().filter_map(|signature| signature.signature_info.as_ref())
    }

    /// The file's keys, one by one.
    ///
    /// # Errors
    /// When `export.bin` does not begin as it should.
    pub fn keys(&mut self) -> Result<Keys<'_, R>, ReadError> {
        let mut export = unpack(&mut self.archive, EXPORT_ENTRY, MAX_EXPORT_BYTES)?;
        let mut header = Vec::new();
        export.by_ref().take(HEADER.len() as u64).read_to_end(&mut header).map_err(export_error)?;
        if header != HEADER {
            let what = "export.bin does not begin with \"EK Export v1\" and four spaces";
            return Err(ReadError::NoExport(what.into()));
        }
        Ok(Keys {
            export,
            position: HEADER.len() as u64,
            header: Vec::new(),
            message: Vec::new(),
            read: 0,
            ended: false,
        })
    }
}

/// A key in an export file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportedKey {
    /// In which of the two lists it stands.
    pub section: Section,
    /// The key.
    pub key: TemporaryExposureKey,
}

/// The keys of an export file, in the file's order. After [`ReadError::KeyDataLength`] the next keys follow;
/// any other error is the last item.
///
/// The end of the items means that the file was whole: its length and its check sum are right.
pub struct Keys<'a, R: Read> {
    export: Unpacked<'a, R>,
    /// How many bytes have been read.
    position: u64,
    /// The fields that are no keys, as they stand in the file.
    header: Vec<u8>,
    /// The message of one key, kept for its memory.
    message: Vec<u8>,
    read: usize,
    ended: bool,
}

impl<R: Read> Keys<'_, R> {
    /// What the file says besides its keys. It is complete once all keys have been read: most files have it
    /// before the keys, but the format does not promise that.
    ///
    /// # Errors
    /// [`ReadError::NoExport`].
    pub fn header(&self) -> Result<ExportHeader, ReadError> {
        ExportHeader::decode(&*self.header).map_err(|_| self.malformed("a header field of another type"))
    }

    fn next_key(&mut self) -> Result<Option<ExportedKey>, ReadError> {
        // Each turn reads one field of the outer message.
        loop {
            if self.export.fill_buf().map_err(export_error)?.is_empty() {
                // A header that cannot be read makes the file none, even if nobody asks for the header.
                return self.header().map(|_| None);
            }
            let before = self.header.len();
            let tag = self.varint()?;
            let section = match tag {
                0x3a => Section::New,     // field 7, length-delimited
                0x42 => Section::Revised, // field 8, length-delimited
                _ => {
                    match tag & 7 {
                        0 => drop(self.varint()?),
                        1 => self.copy(8)?,
                        2 => {
                            let length = self.varint()?;
                            self.copy(length)?;
                        }
                        5 => self.copy(4)?,
                        _ => return Err(self.malformed("an unknown wire type")),
                    }
                    continue;
                }
            };
            let length = self.varint()?;
            self.header.truncate(before);
            if length > MAX_KEY_BYTES {
                return Err(self.malformed("a key that is too long"));
            }
            self.message.clear();
            append(&mut self.export, &mut self.position, length, &mut self.message)?;
            let key = Key::decode(&*self.message).map_err(|_| self.malformed("a key that is no message"))?;
            let index = self.read;
            self.read += 1;
            return match key.parse() {
                Ok(key) => Ok(Some(ExportedKey { section, key })),
                Err(found) => Err(ReadError::KeyDataLength { index, found }),
            };
        }
    }

    /// A number, which is also kept with the header's fields.
    fn varint(&mut self) -> Result<u64, ReadError> {
        let number = wire::read_varint(|| {
            self.copy(1)?;
            Ok::<_, ReadError>(self.header.last().copied().unwrap_or_default())
        })?;
        number.ok_or_else(|| self.malformed("a number that does not end"))
    }

    /// Moves bytes to the header's fields.
    fn copy(&mut self, length: u64) -> Result<(), ReadError> {
        if length > (MAX_HEADER_BYTES - self.header.len()) as u64 {
            return Err(self.malformed("a header that is too long"));
        }
        append(&mut self.export, &mut self.position, length, &mut self.header)
    }

    fn malformed(&self, what: &'static str) -> ReadError {
        malformed(what, self.position)
    }
}

impl<R: Read> Iterator for Keys<'_, R> {
    type Item = Result<ExportedKey, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_key();
        self.ended = !matches!(next, Ok(Some(_)) | Err(ReadError::KeyDataLength { .. }));
        next.transpose()
    }
}

/// Appends the next `length` bytes.
fn append<R: Read>(
    export: &mut Unpacked<'_, R>,
    position: &mut u64,
    length: u64,
    to: &mut Vec<u8>,
) -> Result<(), ReadError> {
    let read = export.take(length).read_to_end(to).map_err(export_error)? as u64;
    *position += read;
    if read < length {
        return Err(malformed("a field that is cut off", *position));
    }
    Ok(())
}

fn malformed(what: &str, at: u64) -> ReadError {
    ReadError::NoExport(format!("export.bin cannot be read: {what} before byte {at}"))
}

/// The bytes of an entry. Reading fails when it unpacks to more than its declared size, or when its check sum is
/// wrong.
type Unpacked<'a, R> = BufReader<ZipFile<'a, R>>;

fn unpack<'a, R: Read + Seek>(
    archive: &'a mut ZipArchive<R>,
    name: &'static str,
    limit: u64,
) -> Result<Unpacked<'a, R>, ReadError> {
    let entry = archive.by_name(name).map_err(|error| archive_error(error, name))?;
    let method = entry.compression();
    if !matches!(method, CompressionMethod::Stored | CompressionMethod::Deflated) {
        return Err(ReadError::Archive(format!("{name} is packed with {method}, not deflated or stored")));
    }
    if entry.size() > limit {
        return Err(ReadError::TooLong { entry: name, limit });
    }
    Ok(BufReader::new(entry))
}

fn archive_error(error: ZipError, entry: &'static str) -> ReadError {
    match error {
        ZipError::FileNotFound => {
            ReadError::NoExport(format!("the archive has no entry {entry}: it is not a key export file"))
        }
        ZipError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => ReadError::Io(error),
        other => ReadError::Archive(other.to_string()),
    }
}

/// What went wrong while bytes were unpacked: the archive, or the disk.
fn unpack_error(error: io::Error, entry: &str) -> ReadError {
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            ReadError::Archive(format!("{entry}: {error}"))
        }
        _ => ReadError::Io(error),
    }
}

fn export_error(error: io::Error) -> ReadError {
    unpack_error(error, EXPORT_ENTRY)
}
