//! Reading the protobuf encoding: fields, and the skipping of unknown ones.

use super::{DecodeError, varint::read_varint};

/// How a field's value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WireType {
    Varint = 0,
    SixtyFourBit = 1,
    LengthDelimited = 2,
    StartGroup = 3,
    EndGroup = 4,
    ThirtyTwoBit = 5,
}

/// What is wrong with an encoding, and at which byte of the body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Malformed {
    what: &'static str,
    at: usize,
}

impl From<Malformed> for DecodeError {
    fn from(Malformed { what, at }: Malformed) -> Self {
        Self::Malformed(format!("{what} at byte {at}"))
    }
}

/// A position in a message. It never leaves the message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    /// What is left of the message.
    rest: &'a [u8],
    /// Where in the body the message ends.
    end: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, end: bytes.len() }
    }

    /// The number and the wire type of the next field, or nothing at the end of the message.
    #[inline]
    pub(super) fn field(&mut self) -> Result<Option<(u32, WireType)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let at = self.at();
        let key =
            u32::try_from(self.varint()?).map_err(|_| Malformed { what: "a field number too large", at })?;
        let wire_type = match key & 7 {
            0 => WireType::Varint,
            1 => WireType::SixtyFourBit,
            2 => WireType::LengthDelimited,
            3 => WireType::StartGroup,
            4 => WireType::EndGroup,
            5 => WireType::ThirtyTwoBit,
            _ => return Err(Malformed { what: "an unknown wire type", at }),
        };
        match key >> 3 {
            0 => Err(Malformed { what: "a field with the number 0", at }),
            number => Ok(Some((number, wire_type))),
        }
    }

    /// A number of at most 32 bits. As everywhere in proto3, higher bits are cut off.
    #[inline]
    pub(super) fn uint32(&mut self, wire_type: WireType) -> Result<u32, Malformed> {
        self.expect(WireType::Varint, wire_type)?;
        Ok(self.varint()? as u32)
    }

    #[inline]
    pub(super) fn bytes(&mut self, wire_type: WireType) -> Result<&'a [u8], Malformed> {
        self.expect(WireType::LengthDelimited, wire_type)?;
        let length = self.varint()?;
        self.take(length)
    }

    /// The bytes of a string, which are UTF-8.
    #[inline]
    pub(super) fn string(&mut self, wire_type: WireType) -> Result<&'a [u8], Malformed> {
        let at = self.at();
        let bytes = self.bytes(wire_type)?;
        // Strings are countries, as a rule.
        if matches!(bytes, [0..0x80, 0..0x80]) || str::from_utf8(bytes).is_ok() {
            Ok(bytes)
        } else {
            Err(Malformed { what: "a string that is not UTF-8", at })
        }
    }

    /// A message inside this one.
    #[inline]
    pub(super) fn message(&mut self, wire_type: WireType) -> Result<Self, Malformed> {
        let rest = self.bytes(wire_type)?;
        Ok(Self { rest, end: self.at() })
    }

    /// Passes over the value of a field that nobody knows. `depth` says how many groups it may still contain
    /// in one another, itself included.
    #[cold]
    pub(super) fn skip(&mut self, field: u32, wire_type: WireType, depth: u32) -> Result<(), Malformed> {
        let at = self.at();
        if depth == 0 {
            return Err(Malformed { what: "groups nested too deeply", at });
        }
        match wire_type {
            WireType::Varint => self.varint().map(drop),
            WireType::SixtyFourBit => self.take(8).map(drop),
            WireType::LengthDelimited => self.bytes(wire_type).map(drop),
            WireType::ThirtyTwoBit => self.take(4).map(drop),
            WireType::StartGroup => loop {
                match self.field()? {
                    Some((end, WireType::EndGroup)) if end == field => return Ok(()),
                    Some((inner, wire_type)) => self.skip(inner, wire_type, depth - 1)?,
                    None => return Err(Malformed { what: "a group without an end", at }),
                }
            },
            WireType::EndGroup => Err(Malformed { what: "the end of a group that did not begin", at }),
        }
    }

    #[inline]
    fn expect(&self, expected: WireType, found: WireType) -> Result<(), Malformed> {
        if expected == found {
            Ok(())
        } else {
            Err(Malformed { what: "a field of another wire type", at: self.at() })
        }
    }

    #[inline]
    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let split = usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length));
        let (taken, rest) =
            split.ok_or(Malformed { what: "a value that reaches beyond its message", at: self.at() })?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        match self.rest {
            [byte @ ..0x80, rest @ ..] => {
                self.rest = rest;
                Ok((*byte).into())
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let endless = Malformed { what: "a number that does not end", at: self.at() };
        read_varint(|| self.rest.split_off_first().copied().ok_or(endless))?.ok_or(endless)
    }

    /// Where in the body the next byte lies.
    #[inline]
    fn at(&self) -> usize {
        self.end - self.rest.len()
    }
}
