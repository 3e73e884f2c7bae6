//! `efgs sign` and `efgs verify`: batch signatures without a gateway.

use std::{fs, path::PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use clap::Args;
use efgs_protocol::{
    canonical::CanonicalKeys,
    certificate::Certificate,
    clock::Clock,
    key::KeyBatch,
    signature::{self, SignaturePolicy, SignedBy},
    wire,
};
use serde_json::json;

use super::{
    Context, Outcome,
    output::{Exit, ExitError},
};

/// Print the batch signature of files of keys (spec §4.1.6)
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs sign nl.json > nl.signature\n\nOne line of base64 for each file, as it goes into the header batchSignature. The gateway is not called."
)]
pub(super) struct SignArgs {
    /// Batches of diagnosis keys: JSON or protobuf, recognised by their content
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Verify a batch signature, and say who made it
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs verify nl.json --signature nl.signature --certificate NL-signing.pem\n\nExit code 3 when the signature does not verify, or another certificate signed. It does not check whether the signer is trusted: `efgs audit` does that."
)]
pub(super) struct VerifyArgs {
    /// A batch of diagnosis keys: JSON or protobuf
    file: PathBuf,
    /// The batch signature: base64, or the CMS itself in DER or BER
    #[arg(long, value_name = "FILE")]
    signature: PathBuf,
    /// The certificate that must have signed
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Accept SHA-1, as a gateway can be configured to do for a country
    #[arg(long)]
    allow_sha1: bool,
}

pub(super) fn sign(context: &Context, args: &SignArgs) -> Outcome {
    let profile = context.profile()?;
    let signer = profile.signer()?;
    let now = Clock::system().now();
    for file in &args.files {
        let keys = read_keys(file)?;
        let foreign = keys.iter().position(|key| key.origin != profile.country());
        let unfit =
            keys.validate(now).err().map(|e| e.to_string()).or_else(|| {
                foreign.map(|index| format!("key {index}: its origin is not {}", profile.country()))
            });
        if let Some(reason) = unfit {
            context.console.warn(format_args!("{}: the gateway will reject it: {reason}", file.display()));
        }
        let signature = signer.sign(&CanonicalKeys::of(&keys).signed_bytes())?;
        let json = json!({"file": file, "keys": keys.len(), "batchSignature": signature});
        context.console.result(&json, signature)?;
    }
    Ok(Exit::Done)
}

pub(super) fn verify(context: &Context, args: &VerifyArgs) -> Outcome {
    let keys = read_keys(&args.file)?;
    let signature = read(&args.signature)?;
    let signature = match String::from_utf8(signature) {
        Ok(text) => text.trim().to_owned(),
        Err(binary) => BASE64_STANDARD.encode(binary.as_bytes()),
    };
    let expected = args.certificate.as_ref().map(|path| {
        let fail = |e: String| format!("{}: {e}", path.display());
        Certificate::from_file_contents(&read(path)?, None).map_err(|e| fail(e.to_string()))
    });
    let expected = expected.transpose()?;
    let policy = SignaturePolicy { allow_sha1: args.allow_sha1 };
    let signed_bytes = CanonicalKeys::of(&keys).signed_bytes();
    let outcome = signature::verify(&signature, &signed_bytes, Clock::system().now(), policy);
    let SignedBy { certificate, used_sha1 } = outcome.map_err(unverified)?;
    if let Some(expected) = expected.filter(|expected| *expected != certificate) {
        return Err(unverified(format_args!(
            "the signature verifies, but {} made it, not {}",
            certificate.thumbprint(),
            expected.thumbprint()
        ))
        .into());
    }
    if used_sha1 {
        context.console.warn("the signature uses SHA-1");
    }
    let country = certificate.country().ok().map(|country| country.to_string());
    context.console.result(
        &json!({
            "verified": true, "keys": keys.len(), "country": country, "subject": certificate.subject(),
            "thumbprint": certificate.thumbprint(), "usedSha1": used_sha1,
        }),
        format_args!(
            "{} keys, signed by {} ({})",
            keys.len(),
            super::output::clean(certificate.subject()),
            certificate.thumbprint()
        ),
    )
}

fn unverified(reason: impl std::fmt::Display) -> ExitError {
    ExitError::new(Exit::Unverified, reason)
}

fn read(path: &PathBuf) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn read_keys(path: &PathBuf) -> Result<KeyBatch, String> {
    let bytes = read(path)?;
    wire::decode(wire::format_of(&bytes), &bytes, usize::MAX).map_err(|e| format!("{}: {e}", path.display()))
}
