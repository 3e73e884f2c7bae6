//! Diagnosis keys from files and streams, one after another, in bounded memory.
//!
//! A [`Source`] is a batch as JSON (also pretty-printed, also of gigabytes), keys as lines of JSON, a
//! `DiagnosisKeyBatch` in protobuf, or a GAEN export zip. Which of them it is, its content says.

mod gaen;
mod json;
mod protobuf;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Cursor, Read},
    ops::ControlFlow,
    path::PathBuf,
};

use efgs_protocol::{
    key::{InvalidKey, KeyBatch, KeyRef},
    wire::DecodeError,
};
use serde::{Serialize, de::IgnoredAny};
use tokio_util::sync::CancellationToken;

pub use gaen::GaenDefaults;
use stream::{Stoppable, Stream};

use crate::gaen::ReadError;

/// As many bytes as are looked at to tell the formats apart.
const START: u64 = 64 << 10;

/// What takes the keys of a source: each key, or the reason why it is none. Reasons hold no key data.
pub type Each<'a> = dyn FnMut(Result<KeyRef<'_>, String>) -> ControlFlow<()> + 'a;

/// What a source turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceFormat {
    /// `{"keys":[…]}` (spec §4.1.3).
    Json,
    /// A key as JSON on each line.
    JsonLines,
    /// `DiagnosisKeyBatch` (spec §4.1.3).
    Protobuf,
    /// A zip of the exposure notification framework, as phones download it.
    Gaen,
}

/// Why a source cannot be read. Never holds key data.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {problem}{}", after(*keys))]
pub struct SourceError {
    /// The source's name.
    pub name: String,
    /// How many keys had been read before.
    pub keys: u64,
    /// What happened.
    pub problem: SourceProblem,
}

fn after(keys: u64) -> String {
    if keys == 0 { String::new() } else { format!(" (after {keys} keys)") }
}

/// What is wrong with a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceProblem {
    /// It cannot be opened or read to its end.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// It is none of the formats.
    #[error(
        "neither JSON ({{\"keys\":[…]}} or a key on each line), nor a protobuf batch, nor a GAEN export zip"
    )]
    UnknownFormat,
    /// It is not what it seems to be.
    #[error("{0}")]
    Malformed(String),
    /// A GAEN export that cannot be read, or whose signature does not verify.
    #[error(transparent)]
    Gaen(#[from] ReadError),
    /// Reading was stopped.
    #[error("reading was stopped")]
    Stopped,
}

/// Where keys come from: a file, or anything that can be read.
pub struct Source {
    name: String,
    input: Input,
}

enum Input {
    File(PathBuf),
    Reader(Box<dyn Read + Send>),
}

impl Source {
    /// A file. It is opened when it is read.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { name: path.display().to_string(), input: Input::File(path) }
    }

    /// Anything else, such as the standard input, under a name for reports.
    pub fn reader(name: impl Into<String>, reader: impl Read + Send + 'static) -> Self {
        Self { name: name.into(), input: Input::Reader(Box::new(reader)) }
    }

    /// The name: the path of a file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hands on each key, in order, until `each` breaks off. Blocks. Memory does not grow with the number of
    /// keys: what belongs to one key, or stands between two, has at most 256 KiB. (A GAEN export that is not a
    /// file is kept in a temporary one.)
    ///
    /// # Errors
    /// When the source cannot be read, or `stop` says so. Single keys that are none are the matter of `each`.
    pub fn read(
        self,
        defaults: &GaenDefaults,
        stop: &CancellationToken,
        each: &mut Each<'_>,
    ) -> Result<SourceFormat, SourceError> {
        let mut keys = 0;
        let mut counting = |key: Result<KeyRef<'_>, String>| {
            keys += 1;
            each(key)
        };
        let read = read(self.input, defaults, stop, &mut counting);
        read.map_err(|problem| {
            let problem = if stop.is_cancelled() { SourceProblem::Stopped } else { problem };
            SourceError { name: self.name, keys, problem }
        })
    }
}

fn read(
    input: Input,
    defaults: &GaenDefaults,
    stop: &CancellationToken,
    each: &mut Each<'_>,
) -> Result<SourceFormat, SourceProblem> {
    let mut start = Vec::new();
    let (mut reader, file): (Box<dyn Read>, _) = match input {
        Input::File(path) => {
            let file = File::open(path)?;
            // Pipes have names too, but no end to begin at.
            let on_disk = file.metadata()?.is_file().then(|| file.try_clone()).transpose()?;
            (Box::new(file), on_disk)
        }
        Input::Reader(reader) => (reader, None),
    };
    reader.by_ref().take(START).read_to_end(&mut start)?;
    let format = format_of(&start).ok_or(SourceProblem::UnknownFormat)?;
    let whole = Stoppable::new(Cursor::new(start).chain(reader), stop);
    let (stream, budget) = Stream::new(BufReader::with_capacity(START as usize, whole));
    match format {
        SourceFormat::Json => json::read_batch(stream, &budget, each)?,
        SourceFormat::JsonLines => json::read_lines(stream, &budget, each)?,
        SourceFormat::Protobuf => protobuf::read(stream, &budget, each)?,
        SourceFormat::Gaen => gaen::read(file, stream.into_inner(), defaults, each)?,
    }
    Ok(format)
}

fn format_of(start: &[u8]) -> Option<SourceFormat> {
    if start.starts_with(b"PK\x03\x04") {
        return Some(SourceFormat::Gaen);
    }
    // A batch in protobuf holds the length of its key data, which is no character of a text; without keys it
    // has no bytes at all. JSON may hold the delete character.
    if start.is_empty() || start.iter().any(|byte| *byte < b' ' && !byte.is_ascii_whitespace()) {
        return Some(SourceFormat::Protobuf);
    }
    let text = start.trim_ascii_start();
    if !text.starts_with(b"{") {
        return None;
    }
    // Only a key fits on the first line; only a batch has the field `keys`.
    let line = text.split(|byte| *byte == b'\n').next()?;
    match serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(line) {
        Ok(fields) if !fields.is_empty() && !fields.contains_key("keys") => Some(SourceFormat::JsonLines),
        _ => Some(SourceFormat::Json),
    }
}

/// Hands on what `decode` makes of one key.
fn hand_on(
    each: &mut Each<'_>,
    decode: impl FnOnce(&mut KeyBatch) -> Result<(), DecodeError>,
) -> ControlFlow<()> {
    let mut one = KeyBatch::new();
    match decode(&mut one) {
        Ok(()) => each(Ok(one.get(0))),
        Err(DecodeError::InvalidKey(InvalidKey { reason, .. })) => each(Err(reason.to_string())),
        Err(DecodeError::Malformed(what)) => each(Err(what)),
        Err(error) => each(Err(error.to_string())),
    }
}
