//! The names of batches and of uploads (spec §4.2.8, §4.2.9, §5.4.2).

use std::{fmt, str::FromStr};

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, Utc};

use crate::excerpt;

/// A batch's name as spec table 4 defines it: 4 bytes of Unix time in seconds, 5 random bytes, and a counter
/// of 3 bytes. Written as 24 lower-case hexadecimal digits. Later batches have greater names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId([u8; Self::LENGTH]);

impl ObjectId {
    /// The length in bytes.
    pub const LENGTH: usize = 12;

    /// Takes the bytes of an id.
    pub const fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// When the id was made, to the second, as far as the clock of its maker was right.
    pub fn timestamp(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(self.seconds().into(), 0).unwrap_or_default()
    }

    /// Makes the id that follows `last`, and is greater than it whatever the clock says (spec §4.2.9).
    ///
    /// In a later second than `last` it consists of that second, `random` and a counter of 0. In the same
    /// second, or when the clock went back, it is `last` with the counter increased; a counter that is used up
    /// borrows the next second. The timestamp's four bytes last until the year 2106.
    pub fn next(last: Option<Self>, now: DateTime<Utc>, random: [u8; 5]) -> Self {
        let seconds = u32::try_from(now.timestamp().max(0)).unwrap_or(u32::MAX);
        match last {
            Some(last) if last.seconds() >= seconds => match last.counter() + 1 {
                counter if counter <= Self::GREATEST_COUNTER => {
                    Self::of(last.seconds(), last.random(), counter)
                }
                _ => Self::of(last.seconds().saturating_add(1), random, 0),
            },
            _ => Self::of(seconds, random, 0),
        }
    }

    const GREATEST_COUNTER: u32 = 0xff_ffff;

    fn of(seconds: u32, random: [u8; 5], counter: u32) -> Self {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&seconds.to_be_bytes());
        bytes[4..9].copy_from_slice(&random);
        bytes[9..].copy_from_slice(&counter.to_be_bytes()[1..]);
        Self(bytes)
    }

    fn seconds(&self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }

    fn random(&self) -> [u8; 5] {
        let [_, _, _, _, random @ .., _, _, _] = self.0;
        random
    }

    fn counter(&self) -> u32 {
        let [.., a, b, c] = self.0;
        u32::from_be_bytes([0, a, b, c])
    }
}

impl FromStr for ObjectId {
    type Err = InvalidBatchTag;

    fn from_str(text: &str) -> Result<Self, InvalidBatchTag> {
        let invalid = || InvalidBatchTag { found: excerpt(text.as_bytes()) };
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(invalid()),
        };
        if text.len() != 2 * Self::LENGTH {
            return Err(invalid());
        }
        let mut bytes = [0; Self::LENGTH];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(digits[0])? << 4 | digit(digits[1])?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A batch's name as the national backends write it: `yyyyMMdd-N`, the UTC day on which the batch was formed
/// and its number on that day, from 1, without leading zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DayName {
    /// The UTC day on which the batch was formed.
    pub day: NaiveDate,
    /// The number of the batch on that day, from 1.
    pub sequence: u32,
}

impl FromStr for DayName {
    type Err = InvalidBatchTag;

    fn from_str(text: &str) -> Result<Self, InvalidBatchTag> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let parse = || {
            let (day, sequence) = text.split_once('-')?;
            if day.len() != 8 || !digits(day) || !digits(sequence) || sequence.starts_with('0') {
                return None;
            }
            let day = NaiveDate::from_ymd_opt(
                day[..4].parse().ok()?,
                day[4..6].parse().ok()?,
                day[6..].parse().ok()?,
            )?;
            Some(Self { day, sequence: sequence.parse().ok()? })
        };
        parse().ok_or_else(|| InvalidBatchTag { found: excerpt(text.as_bytes()) })
    }
}

impl fmt::Display for DayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { day, sequence } = self;
        write!(f, "{:04}{:02}{:02}-{sequence}", day.year(), day.month(), day.day())
    }
}

/// One of the two names of a batch; both are accepted wherever a batch is named (spec §4.2.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BatchTag {
    /// The name of spec table 4.
    ObjectId(ObjectId),
    /// The day and the number on that day.
    DayName(DayName),
}

impl BatchTag {
    /// The latest time at which the batch was formed, as far as the clock of the gateway was right: an ObjectId tells
    /// the second, a day name the day.
    pub fn formed_by(&self) -> DateTime<Utc> {
        match self {
            Self::ObjectId(id) => id.timestamp(),
            Self::DayName(name) => {
                let next = name.day.succ_opt().unwrap_or(NaiveDate::MAX);
                next.and_time(NaiveTime::MIN).and_utc()
            }
        }
    }
}

impl FromStr for BatchTag {
    type Err = InvalidBatchTag;

    fn from_str(text: &str) -> Result<Self, InvalidBatchTag> {
        text.parse().map(Self::ObjectId).or_else(|_| text.parse().map(Self::DayName))
    }
}

impl fmt::Display for BatchTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ObjectId(id) => id.fmt(f),
            Self::DayName(name) => name.fmt(f),
        }
    }
}

/// A text that cannot be the name of a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} is not a batch tag: 24 lower-case hexadecimal digits or yyyyMMdd-N is needed")]
pub struct InvalidBatchTag {
    /// The beginning of the text, quoted and escaped.
    pub found: String,
}

/// An upload's name, chosen by the national backend: 1 to 64 visible ASCII characters without a meaning to
/// the gateway (spec §5.4.2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadTag(String);

impl UploadTag {
    /// The greatest number of characters.
    pub const MAX_LENGTH: usize = 64;

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UploadTag {
    type Err = InvalidUploadTag;

    fn from_str(text: &str) -> Result<Self, InvalidUploadTag> {
        if !(1..=Self::MAX_LENGTH).contains(&text.len()) {
            return Err(InvalidUploadTag::Length { found: text.len() });
        }
        match text.bytes().position(|byte| !byte.is_ascii_graphic()) {
            Some(position) => Err(InvalidUploadTag::Character { position }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for UploadTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that cannot be the name of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUploadTag {
    /// It is empty or too long.
    #[error("the upload tag has {found} bytes: 1 to 64 are allowed")]
    Length {
        /// The number of bytes found.
        found: usize,
    },
    /// It contains something else than visible ASCII characters.
    #[error("the upload tag's byte {position} is not a visible ASCII character")]
    Character {
        /// Where, counted from 0.
        position: usize,
    },
}

#[cfg(test)]
mod tests;
