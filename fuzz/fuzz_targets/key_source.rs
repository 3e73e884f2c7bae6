//! Any bytes as a file of keys that a country uploads: read key by key, it gives the keys that the gateway would read
//! from it as a whole.
#![no_main]

use std::{io::Cursor, ops::ControlFlow};

use efgs_client::{
    Format,
    source::{GaenDefaults, Source, SourceError, SourceFormat, SourceProblem},
};
use efgs_protocol::{
    key::KeyBatch,
    wire::{self, DecodeError},
};
use libfuzzer_sys::fuzz_target;
use tokio_util::sync::CancellationToken;

/// What a source gives: its format, its keys, and how many keys were none.
fn read(file: &[u8]) -> Result<(SourceFormat, KeyBatch, usize), SourceError> {
    let defaults = GaenDefaults { origin: "NL".parse().unwrap(), visited_countries: Vec::new(), key: None };
    let (mut keys, mut invalid) = (KeyBatch::new(), 0);
    let source = Source::reader("file", Cursor::new(file.to_vec()));
    let format = source.read(&defaults, &CancellationToken::new(), &mut |key| {
        match key {
            Ok(key) => keys.push(*key, key.visited_countries()),
            Err(_) => invalid += 1,
        }
        ControlFlow::Continue(())
    })?;
    Ok((format, keys, invalid))
}

fuzz_target!(|file: &[u8]| {
    let source = read(file);
    for (format, source_format) in
        [(Format::Json, SourceFormat::Json), (Format::Protobuf, SourceFormat::Protobuf)]
    {
        match (&source, wire::decode(format, file, usize::MAX)) {
            // A batch of the format, for the gateway and as a source.
            (Ok((found, keys, invalid)), Ok(batch)) if *found == source_format => {
                assert_eq!((keys, *invalid), (&batch, 0));
            }
            (Ok((found, _, invalid)), Err(DecodeError::InvalidKey(_))) if *found == source_format => {
                assert!(*invalid > 0);
            }
            (Ok((found, keys, invalid)), Err(DecodeError::Empty)) if *found == source_format => {
                assert_eq!((keys.len(), *invalid), (0, 0));
            }
            // Stricter on purpose: groups, which proto3 does not have, are not skipped in a file.
            (Err(SourceError { problem: SourceProblem::Malformed(what), .. }), Ok(_))
                if format == Format::Protobuf && what.ends_with("an unknown kind of field") => {}
            // Stricter on purpose: JSON is UTF-8 throughout. The gateway does not look into fields that it ignores.
            (Err(_), Ok(_)) if format == Format::Json && str::from_utf8(file).is_err() => {}
            (source, Ok(batch)) => panic!("{source:?} instead of {} keys", batch.len()),
            // A source may be read where the gateway refuses the body: its keys are written anew for the upload.
            (_, Err(_)) => {}
        }
    }
});
