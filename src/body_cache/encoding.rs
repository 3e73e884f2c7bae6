//! Compression of downloads.

use std::io::Write;

use actix_web::{HttpRequest, http::header};
use bytes::Bytes;

/// The encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Zstandard (RFC 8878).
    Zstd,
    /// gzip (RFC 1952).
    Gzip,
    /// Not compressed.
    Identity,
}

impl Encoding {
    /// The value of Content-Encoding.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Zstd => Some("zstd"),
            Self::Gzip => Some("gzip"),
            Self::Identity => None,
        }
    }

    /// The part of the ETag that names the encoding, since other bytes need another tag.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Zstd => "-zstd",
            Self::Gzip => "-gzip",
            Self::Identity => "",
        }
    }

    pub(super) fn compress(self, pieces: &[Bytes]) -> std::io::Result<Bytes> {
        let write_all = |to: &mut dyn Write| pieces.iter().try_for_each(|piece| to.write_all(piece));
        let bytes = match self {
            Self::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), zstd::DEFAULT_COMPRESSION_LEVEL)?;
                write_all(&mut encoder)?;
                encoder.finish()?
            }
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                write_all(&mut encoder)?;
                encoder.finish()?
            }
            Self::Identity => pieces.concat(),
        };
        Ok(bytes.into())
    }
}

/// Chooses the encoding for a request (RFC 9110 §12.5.3); `None` if it accepts none that we have.
pub fn negotiate(request: &HttpRequest) -> Option<Encoding> {
    let values = request.headers().get_all(header::ACCEPT_ENCODING);
    choose(values.filter_map(|value| value.to_str().ok()))
}

fn choose<'a>(accept: impl Iterator<Item = &'a str>) -> Option<Encoding> {
    let (mut zstd, mut gzip, mut identity, mut any) = (None, None, None, None);
    for item in accept.flat_map(|value| value.split(',')) {
        let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
        let q =
            parameters.split(';').find_map(|p| p.trim().strip_prefix("q=").or(p.trim().strip_prefix("Q=")));
        let q: f32 =
            q.map_or(Some(1.0), |q| q.trim().parse().ok()).filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
        match name.trim().to_ascii_lowercase().as_str() {
            "zstd" => zstd = Some(q),
            "gzip" | "x-gzip" => gzip = Some(q),
            "identity" => identity = Some(q),
            "*" => any = Some(q),
            _ => {}
        }
    }
    // An encoding that is not listed is not acceptable, except identity, which must be excluded explicitly.
    let zstd = zstd.or(any).unwrap_or(0.0);
    let gzip = gzip.or(any).unwrap_or(0.0);
    let identity = identity.or(any.filter(|q| *q == 0.0)).unwrap_or(f32::MIN_POSITIVE);
    [(Encoding::Zstd, zstd), (Encoding::Gzip, gzip), (Encoding::Identity, identity)]
        .into_iter()
        .filter(|(_, q)| *q > 0.0)
        .reduce(|best, other| if other.1 > best.1 { other } else { best })
        .map(|(encoding, _)| encoding)
}

#[cfg(test)]
mod tests {
    use super::{Encoding, choose};

    #[test]
    fn the_best_supported_encoding_wins_and_identity_is_the_default() {
        let cases = [
            ("", Some(Encoding::Identity)),
            ("gzip", Some(Encoding::Gzip)),
            ("gzip, zstd", Some(Encoding::Zstd)),
            ("gzip;q=1.0, zstd;q=0.5", Some(Encoding::Gzip)),
            ("br", Some(Encoding::Identity)),
            ("gzip;q=0", Some(Encoding::Identity)),
            ("identity", Some(Encoding::Identity)),
            ("*", Some(Encoding::Zstd)),
            ("*;q=0", None),
            ("identity;q=0", None),
            ("identity;q=0, gzip;q=0.1", Some(Encoding::Gzip)),
            ("gzip;q=x", Some(Encoding::Identity)),
        ];
        for (accept, expected) in cases {
            assert_eq!(choose(std::iter::once(accept)), expected, "{accept:?}");
        }
        assert_eq!(choose(std::iter::empty()), Some(Encoding::Identity));
    }
}
