//! Versioned media types and their negotiation (spec §5.2).

use std::{fmt, str::FromStr};

use crate::excerpt;

/// The newest version that this crate speaks.
pub const SUPPORTED: Version = Version { major: 1, minor: 0 };

/// The form in which a batch of keys is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `application/protobuf`.
    Protobuf,
    /// `application/json`.
    Json,
}

impl Format {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Protobuf, Self::Json];

    /// The media type without parameters.
    pub fn essence(self) -> &'static str {
        match self {
            Self::Protobuf => "application/protobuf",
            Self::Json => "application/json",
        }
    }

    /// Its short name: in the database, in ETags and in the journal.
    pub fn name(self) -> &'static str {
        match self {
            Self::Protobuf => "protobuf",
            Self::Json => "json",
        }
    }

    fn of(essence: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.essence().eq_ignore_ascii_case(essence))
    }
}

impl FromStr for Format {
    type Err = MediaError;

    /// Reads a [`Format::name`].
    fn from_str(name: &str) -> Result<Self, MediaError> {
        let unknown = || MediaError::UnknownType { found: excerpt(name.as_bytes()) };
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(unknown)
    }
}

/// The version of a format. A third part, which only counts corrections, is accepted and forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Changes when the format becomes incompatible.
    pub major: u16,
    /// Changes when something is added.
    pub minor: u16,
}

impl Version {
    /// Whether one who speaks version `ours` can read and write this version: the major is the same and the
    /// minor is not newer.
    fn is_served_by(self, ours: Self) -> bool {
        self.major == ours.major && self.minor <= ours.minor
    }
}

impl FromStr for Version {
    type Err = MediaError;

    /// Parses `major.minor` or `major.minor.patch`.
    fn from_str(text: &str) -> Result<Self, MediaError> {
        let invalid = || MediaError::InvalidVersion { found: excerpt(text.as_bytes()) };
        let number = |part: &str| {
            let plain =
                part.bytes().all(|byte| byte.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
            part.parse::<u16>().ok().filter(|_| plain).ok_or_else(invalid)
        };
        let mut parts = text.splitn(3, '.');
        let major = number(parts.next().unwrap_or_default())?;
        let minor = number(parts.next().unwrap_or_default())?;
        parts.next().map(number).transpose()?;
        Ok(Self { major, minor })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A format and its version, such as `application/protobuf; version=1.0` (spec §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MediaType {
    /// The format.
    pub format: Format,
    /// Its version.
    pub version: Version,
}

/// Why a media type cannot be served. The quoted texts are shortened and escaped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    /// Not `application/protobuf` or `application/json`.
    #[error("media type {found} is not supported: application/protobuf or application/json is needed")]
    UnknownType {
        /// What was sent.
        found: String,
    },
    /// The version is given more than once.
    #[error("media type {found} has more than one version parameter")]
    RepeatedVersion {
        /// What was sent.
        found: String,
    },
    /// The version is missing (spec §5.2: standard media types are not accepted).
    #[error("media type {found} has no version parameter, such as version={SUPPORTED}")]
    NoVersion {
        /// What was sent.
        found: String,
    },
    /// The version does not consist of two or three numbers.
    #[error("{found} is not a version of the form major.minor")]
    InvalidVersion {
        /// What was sent as the version.
        found: String,
    },
    /// The version is another major, or a minor that is too new.
    #[error("format version {found} is not supported: the newest is {SUPPORTED}")]
    UnsupportedVersion {
        /// The version that was asked for.
        found: Version,
    },
    /// None of the ranges in `Accept` can be served.
    #[error(
        "none of the accepted media types {found} is supported: offer application/protobuf; version={SUPPORTED} or application/json; version={SUPPORTED}"
    )]
    NotAcceptable {
        /// What was sent.
        found: String,
    },
}

impl MediaType {
    /// Reads the `Content-Type` of an upload.
    ///
    /// # Errors
    /// Another media type, no version, or one that is not supported.
    pub fn from_content_type(text: &str) -> Result<Self, MediaError> {
        Range::parse(text).map(|range| range.media_type)
    }

    /// Chooses the best of the `Accept` headers of a download: the supported range with the highest weight, of
    /// equal ones the first. Ranges that cannot be understood count as not supported. The answer carries our
    /// version.
    ///
    /// # Errors
    /// [`MediaError::NotAcceptable`] when nothing in them is supported. Wildcards are not, and neither is a
    /// media type without a version (spec §5.2: standard media types are not accepted).
    pub fn negotiate<'a>(accept: impl IntoIterator<Item = &'a str>) -> Result<Self, MediaError> {
        let accept: Vec<&str> = accept.into_iter().collect();
        accept
            .iter()
            .flat_map(|header| split_unquoted(header, ','))
            .filter_map(|range| Range::parse(range).ok())
            .filter(|range| range.weight > 0)
            .reduce(|best, next| if next.weight > best.weight { next } else { best })
            .map(|range| Self { format: range.media_type.format, version: SUPPORTED })
            .ok_or_else(|| MediaError::NotAcceptable { found: excerpt(accept.join(", ").as_bytes()) })
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; version={}", self.format.essence(), self.version)
    }
}

/// A supported media type, and how much it is wanted.
struct Range {
    media_type: MediaType,
    /// In thousandths. 0 means: not at all.
    weight: u16,
}

impl Range {
    fn parse(text: &str) -> Result<Self, MediaError> {
        let found = || excerpt(text.trim().as_bytes());
        let mut parts = split_unquoted(text, ';').map(str::trim);
        let format = Format::of(parts.next().unwrap_or_default())
            .ok_or_else(|| MediaError::UnknownType { found: found() })?;
        let (mut version, mut weight) = (None, 1000);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let (name, value) = (name.trim_end(), unquoted(value.trim_start()));
            if name.eq_ignore_ascii_case("version") {
                if version.replace(value.parse::<Version>()?).is_some() {
                    return Err(MediaError::RepeatedVersion { found: found() });
                }
            } else if name.eq_ignore_ascii_case("q") {
                weight = thousandths(value).unwrap_or(0);
            }
        }
        let version = version.ok_or_else(|| MediaError::NoVersion { found: found() })?;
        if !version.is_served_by(SUPPORTED) {
            return Err(MediaError::UnsupportedVersion { found: version });
        }
        Ok(Self { media_type: MediaType { format, version }, weight })
    }
}

/// Splits at a separator that does not stand between quotation marks.
fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |character| {
        if escaped {
            escaped = false;
        } else if quoted && character == '\\' {
            escaped = true;
        } else if character == '"' {
            quoted = !quoted;
        } else {
            return !quoted && character == separator;
        }
        false
    })
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value)
}

/// Reads a weight between 0 and 1. More than three decimals are cut off, and the 0 before the point may be
/// missing, as some clients have it.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let decimals: u16 = format!("{decimals:0<3.3}").parse().ok()?;
    match whole {
        "" | "0" => Some(decimals),
        "1" if decimals == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
