//! The protocol between national backends and the Federation Gateway.
//!
//! This crate is pure: it parses, builds and verifies bytes, and knows neither network nor database. The
//! gateway, the national backend's client and an auditor share it, so that all of them agree on every byte.
//!
//! - [`key`] and [`country`]: diagnosis keys, parsed once and valid by construction (spec §4.1).
//! - [`media`] and [`wire`]: versioned media types, header names, paths, and the two formats of a batch
//!   (spec §5.2).
//! - [`batch_tag`]: the names of uploads and of batches (spec §4.2.8, §5.4.2).
//! - [`canonical`]: the bytes that a batch signature covers, and the hash that identifies a key (spec §4.1.5).
//! - [`signature`], [`certificate`], [`anchor`] and [`bundle`]: who signed, and whether the signer is trusted
//!   (spec §4.1.6, §6.1).
//! - [`clock`]: where the gateway and its clients get the time from.
//! - [`audit`]: the audit entries of a batch, and their verification (spec §5.7).

pub mod anchor;
pub mod audit;
pub mod batch_tag;
pub mod bundle;
pub mod canonical;
pub mod certificate;
pub mod clock;
pub mod country;
pub mod key;
pub mod media;
pub mod random;
pub mod signature;
pub mod wire;

#[cfg(test)]
mod testing;

/// The beginning of a text from outside, for an error: escaped and short, so that neither control characters nor
/// megabytes reach a log.
pub(crate) fn excerpt(text: &[u8]) -> String {
    const LONGEST: usize = 40;
    let shown = text[..text.len().min(LONGEST)].escape_ascii();
    if text.len() > LONGEST { format!("\"{shown}…\"") } else { format!("\"{shown}\"") }
}

#[cfg(test)]
mod tests {
    use super::excerpt;

    #[test]
    fn an_excerpt_is_escaped_and_has_at_most_40_bytes() {
        assert_eq!(excerpt(b"a\n\"b\xff"), r#""a\n\"b\xff""#);
        assert_eq!(excerpt(&[b'x'; 40]), format!("\"{}\"", "x".repeat(40)));
        assert_eq!(excerpt(&[b'x'; 41]), format!("\"{}…\"", "x".repeat(40)));
    }
}
