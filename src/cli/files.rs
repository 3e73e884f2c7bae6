//! Files of keys: the signed bytes, and conversion between the formats. For people who sign with `openssl cms`,
//! and for developers of national backends who compare their bytes with ours.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use efgs_protocol::{canonical::CanonicalKeys, key::KeyBatch, media::Format, wire};

use super::{Outcome, print};

/// Print the bytes that a batch signature covers (spec §4.1.5)
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs-gateway batch signed-bytes keys.json | openssl cms -sign -binary -outform DER -signer nl-signing.pem -inkey nl-signing.key -nosmimecap | base64 -w0"
)]
pub(super) struct SignedBytesArgs {
    #[command(flatten)]
    file: KeyFile,
}

/// Write a batch in the other format
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  efgs-gateway batch convert keys.json --to protobuf > keys.pb")]
pub(super) struct ConvertArgs {
    #[command(flatten)]
    file: KeyFile,
    /// The format to write
    #[arg(long, value_enum)]
    to: FileFormat,
}

#[derive(Debug, Args)]
struct KeyFile {
    /// A batch of diagnosis keys: JSON or protobuf, recognised by the first character
    file: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FileFormat {
    Protobuf,
    Json,
}

pub(super) fn signed_bytes(args: &SignedBytesArgs) -> Outcome {
    print(CanonicalKeys::of(&args.file.read()?).signed_bytes())
}

pub(super) fn convert(args: &ConvertArgs) -> Outcome {
    let format = match args.to {
        FileFormat::Protobuf => Format::Protobuf,
        FileFormat::Json => Format::Json,
    };
    print(wire::encode(format, &args.file.read()?))
}

impl KeyFile {
    fn read(&self) -> Result<KeyBatch, String> {
        let fail = |reason: String| format!("{}: {reason}", self.file.display());
        let bytes = std::fs::read(&self.file).map_err(|e| fail(e.to_string()))?;
        wire::decode(wire::format_of(&bytes), &bytes, usize::MAX).map_err(|e| fail(e.to_string()))
    }
}
