//! Any bytes as a key export file of the exposure notification framework: an error or keys, in bounded memory. What
//! is read can be written and read again, and prost reads the same.
#![no_main]

use std::io::{Cursor, Write};

use efgs_client::gaen::{EXPORT_ENTRY, ExportFile, ExportHeader, SIGNATURE_ENTRY, Section, write};
use efgs_fuzz::memory::Counting;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

#[global_allocator]
static MEMORY: Counting = Counting::new();

/// How much memory reading may take besides a small multiple of the file: buffers, the inflater's window, 64 KiB of
/// header and 64 KiB of signatures with what is decoded from them.
const MAX_MEMORY: usize = 8 << 20;

/// The lists of keys in `TemporaryExposureKeyExport`.
#[derive(Clone, PartialEq, Message)]
struct Lists {
    #[prost(message, repeated, tag = "7")]
    new: Vec<Key>,
    #[prost(message, repeated, tag = "8")]
    revised: Vec<Key>,
}

#[derive(Clone, PartialEq, Message)]
struct Key {
    #[prost(bytes = "vec", optional, tag = "1")]
    key_data: Option<Vec<u8>>,
    #[prost(int32, optional, tag = "3")]
    rolling_start_interval_number: Option<i32>,
}

/// An archive with a right check sum, which a fuzzer would hardly find.
fn archive(export: &[u8], signatures: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [(EXPORT_ENTRY, export), (SIGNATURE_ENTRY, signatures)] {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Reads the whole file; `each` gets every key that is one. Returns the header if nothing was wrong.
fn read(
    file: &[u8],
    mut each: impl FnMut(Section, efgs_client::gaen::TemporaryExposureKey),
) -> Option<ExportHeader> {
    let mut export = ExportFile::open(Cursor::new(file)).ok()?;
    let _ = export.signature_infos().count();
    let mut keys = export.keys().ok()?;
    let mut whole = true;
    for entry in keys.by_ref() {
        match entry {
            Ok(entry) => each(entry.section, entry.key),
            Err(_) => whole = false,
        }
    }
    keys.header().ok().filter(|_| whole)
}

fn check(file: &[u8], export: Option<&[u8]>) {
    let used = MEMORY.peak_of(|| drop(read(file, |_, _| {})));
    assert!(used < MAX_MEMORY + 16 * file.len(), "{used} bytes for a file of {}", file.len());

    let mut keys = Vec::new();
    let Some(header) = read(file, |section, key| keys.push((section, key))) else { return };
    // The writer wants the revised keys last, and names its own signatures.
    keys.sort_by_key(|(section, _)| *section);
    let unsigned = ExportHeader { signature_infos: Vec::new(), ..header };
    let written =
        write(Cursor::new(Vec::new()), &unsigned, keys.iter().copied(), &[]).unwrap().0.into_inner();
    let mut again = Vec::new();
    let header = read(&written, |section, key| again.push((section, key)));
    assert_eq!((header, again), (Some(unsigned), keys.clone()));

    // Where prost reads the message too, it finds the same keys.
    if let Some(Ok(lists)) = export.map(|export| Lists::decode(&export[16..])) {
        let theirs = lists.new.iter().chain(&lists.revised);
        let theirs: Vec<_> = theirs
            .map(|key| (key.key_data.clone(), key.rolling_start_interval_number.unwrap_or_default() as u32))
            .collect();
        let ours: Vec<_> = (keys.iter())
            .map(|(_, key)| (Some(key.key_data.as_bytes().to_vec()), key.rolling_start_interval_number))
            .collect();
        assert_eq!(ours, theirs);
    }
}

// A whole archive, or the length of export.sig in one byte, export.sig, and export.bin.
fuzz_target!(|bytes: &[u8]| match bytes {
    [b'P', ..] => check(bytes, None),
    [length, rest @ ..] => {
        let (signatures, export) = rest.split_at(rest.len().min(usize::from(*length)));
        check(&archive(export, signatures), Some(export));
    }
    [] => {}
});
