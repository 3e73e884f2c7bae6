//! Writing export files.

use std::io::{self, BufWriter, Seek, Write};

use openssl::error::ErrorStack;
use prost::Message;
use sha2::{Digest, Sha256};
use zip::{CompressionMethod, DateTime, ZipWriter, result::ZipError, write::SimpleFileOptions};

use super::{
    EXPORT_ENTRY, ExportHeader, ExportSigner, HEADER, SIGNATURE_ENTRY, Section, TemporaryExposureKey,
    message::{Key, Signature, SignatureList},
};

/// Why an export file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The archive could not be written.
    #[error("the archive cannot be written: {0}")]
    Archive(#[from] ZipError),
    /// The bytes could not be written.
    #[error("the archive cannot be written: {0}")]
    Io(#[from] io::Error),
    /// OpenSSL could not sign.
    #[error("signing failed: {0}")]
    Sign(#[from] ErrorStack),
}

/// Writes an export file and signs it with every signer; the header's `signature_infos` are set to theirs.
/// Keys of [`Section::Revised`] must come after all others, since readers expect each list in one piece.
///
/// Returns `out` and the SHA-256 of `export.bin`, which is what was signed.
///
/// Memory does not grow with the keys. The same keys under the same header always give the same bytes, apart
/// from the signatures, which ECDSA makes anew each time.
///
/// # Errors
/// See [`WriteError`]. What was written by then is no archive.
pub fn write<W: Write + Seek>(
    out: W,
    header: &ExportHeader,
    keys: impl IntoIterator<Item = (Section, TemporaryExposureKey)>,
    signers: &[ExportSigner],
) -> Result<(W, [u8; 32]), WriteError> {
    // No time and no permissions of this machine.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    let mut zip = ZipWriter::new(out);

    zip.start_file(EXPORT_ENTRY, options)?;
    let mut export = BufWriter::new(Hashing { out: &mut zip, sha256: Sha256::new() });
    export.write_all(HEADER)?;
    let header = ExportHeader {
        signature_infos: signers.iter().map(|signer| signer.info().clone()).collect(),
        ..header.clone()
    };
    export.write_all(&header.encode_to_vec())?;
    let mut message = Vec::new();
    for (section, key) in keys {
        message.clear();
        message.push(match section {
            Section::New => 7 << 3 | 2,
            Section::Revised => 8 << 3 | 2,
        });
        // A vector has room for every message.
        Key::from(key).encode_length_delimited(&mut message).map_err(io::Error::other)?;
        export.write_all(&message)?;
    }
    let Hashing { sha256, .. } = export.into_inner().map_err(|error| error.into_error())?;
    let digest = sha256.finalize();

    let sign = |signer: &ExportSigner| {
        Ok(Signature {
            signature_info: Some(signer.info().clone()),
            batch_num: header.batch_num,
            batch_size: header.batch_size,
            signature: Some(signer.sign(&digest)?),
        })
    };
    let signatures = signers.iter().map(sign).collect::<Result<_, ErrorStack>>()?;
    zip.start_file(SIGNATURE_ENTRY, options)?;
    zip.write_all(&SignatureList { signatures }.encode_to_vec())?;
    Ok((zip.finish()?, digest.into()))
}

/// Passes bytes on and hashes them.
pub(super) struct Hashing<W> {
    pub(super) out: W,
    pub(super) sha256: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sha256.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
