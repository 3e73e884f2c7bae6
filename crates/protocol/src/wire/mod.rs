//! Names of headers and paths, and the two formats of a batch (spec §4.1.3, §5).

mod json;
mod protobuf;
mod reader;
mod varint;

pub use json::{JSON_CLOSE, JSON_OPEN, JSON_SEPARATOR, KeyObject};
pub use protobuf::append_protobuf_field;
pub use varint::read_varint;

use crate::{
    key::{InvalidKey, KeyBatch, KeyRef},
    media::Format,
};

/// Header: the tag of an upload, chosen by the backend, or of a batch, chosen by the gateway.
pub const BATCH_TAG: &str = "batchTag";
/// Header of a download: the tag of the batch that follows, or [`NO_NEXT_BATCH`].
pub const NEXT_BATCH_TAG: &str = "nextBatchTag";
/// What [`NEXT_BATCH_TAG`] says while no batch follows yet.
pub const NO_NEXT_BATCH: &str = "null";
/// Header of an upload: the detached signature over its keys, in base64 (spec §4.1.6).
pub const BATCH_SIGNATURE: &str = "batchSignature";
/// Header of an audit answer: how many uploads of the batch have been withdrawn.
pub const WITHDRAWN_UPLOADS: &str = "withdrawnUploads";

/// Path under which all operations lie; `OPTIONS` on it names the formats.
pub const ROOT_PATH: &str = "/diagnosiskeys";
/// Path of the upload (spec §5.4). Followed by a slash and an upload tag, the path of its withdrawal.
pub const UPLOAD_PATH: &str = "/diagnosiskeys/upload";
/// Path of the download, to be followed by a slash and the date (spec §5.3).
pub const DOWNLOAD_PATH: &str = "/diagnosiskeys/download";
/// Path of the audit, to be followed by the date and the batch tag, each after a slash (spec §5.7).
pub const AUDIT_PATH: &str = "/diagnosiskeys/audit/download";
/// Path of the callback subscriptions, to be followed by a slash and the subscription's id (spec §5.6).
pub const CALLBACK_PATH: &str = "/diagnosiskeys/callback";

/// Why a body is not a batch of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body is not of the format that it claims to be. The text says where, and never quotes the body.
    #[error("the body cannot be read: {0}")]
    Malformed(String),
    /// A key is not a diagnosis key.
    #[error(transparent)]
    InvalidKey(#[from] InvalidKey),
    /// There are more keys than allowed. Nothing after the last allowed key was looked at.
    #[error("the body has more than {max} keys")]
    TooManyKeys {
        /// The number of keys that is allowed.
        max: usize,
    },
    /// There is no key. An upload without keys is refused; a download may well be empty.
    #[error("the body has no keys")]
    Empty,
}

/// Reads a batch of at most `max_keys` keys.
///
/// Each key has 16 bytes of key data, countries of two letters and a known report type; the ranges of its
/// numbers are the matter of [`KeyBatch::validate`]. Fields that are not given have the value 0, and unknown
/// fields are ignored (spec §5.2: minor versions may add some).
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(format: Format, body: &[u8], max_keys: usize) -> Result<KeyBatch, DecodeError> {
    let batch = match format {
        Format::Protobuf => protobuf::decode(body, max_keys)?,
        Format::Json => json::decode(body, max_keys)?,
    };
    if batch.is_empty() { Err(DecodeError::Empty) } else { Ok(batch) }
}

/// The format of a file of keys, by its beginning.
pub fn format_of(file: &[u8]) -> Format {
    // A batch in protobuf begins with the tag of its first key, a line feed.
    let json =
        file.first() != Some(&b'\n') && file.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if json { Format::Json } else { Format::Protobuf }
}

/// Writes a batch.
pub fn encode(format: Format, batch: &KeyBatch) -> Vec<u8> {
    match format {
        Format::Protobuf => protobuf::encode(batch),
        Format::Json => json::encode(batch),
    }
}

/// Appends one key: the bare protobuf message, as it is stored, or the JSON object.
///
/// A protobuf batch is its keys' messages, each framed by [`append_protobuf_field`], without anything around
/// or between them. A JSON batch is [`JSON_OPEN`], the objects with [`JSON_SEPARATOR`] between them, and
/// [`JSON_CLOSE`].
pub fn encode_key(format: Format, key: KeyRef<'_>, out: &mut Vec<u8>) {
    match format {
        Format::Protobuf => protobuf::encode_key(key, out),
        Format::Json => json::encode_key(key, out),
    }
}

/// Reads one bare protobuf message of a key, as [`encode_key`] wrote it, and appends it to a batch.
///
/// # Errors
/// See [`DecodeError`]; the index in it is the one that the key would have had in `into`, which stays as it
/// was.
pub fn decode_protobuf_key(bytes: &[u8], into: &mut KeyBatch) -> Result<(), DecodeError> {
    protobuf::decode_key(bytes, into)
}

/// Reads the JSON object of one key, as [`encode_key`] wrote it, and appends it to a batch. For those who meet
/// keys one by one: in a batch too long for the memory, or as lines.
///
/// # Errors
/// See [`DecodeError`]; the index in it is the one that the key would have had in `into`, which stays as it
/// was.
pub fn decode_json_key(bytes: &[u8], into: &mut KeyBatch) -> Result<(), DecodeError> {
    json::decode_key(bytes, into)
}

#[cfg(test)]
mod tests;
