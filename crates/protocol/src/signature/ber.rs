//! A reader for the Basic Encoding Rules (X.690), as far as signatures need them.
//!
//! Java backends send indefinite lengths and strings in pieces, others send DER. The reader borrows from the
//! input, so that what is compared or hashed is exactly what was sent, and it neither recurses without bound
//! nor allocates by announced lengths.

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// The bit that marks an element made of others.
pub(crate) const CONSTRUCTED: u8 = 0x20;

/// Real signatures nest about ten levels deep.
const MAX_DEPTH: usize = 32;

/// Why bytes are not BER, or not the element that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BerError {
    /// The bytes end inside an element.
    #[error("it ends too early")]
    Truncated,
    /// A length that is malformed, or too large for any signature.
    #[error("a length is malformed")]
    Length,
    /// A tag number above 30, or an end-of-contents mark out of place.
    #[error("a tag is malformed")]
    Tag,
    /// Another element than the one that belongs here.
    #[error("an element is not of the expected type")]
    Unexpected,
    /// Bytes after the last element.
    #[error("bytes follow the last element")]
    Trailing,
    /// More than 32 levels.
    #[error("it nests too deeply")]
    TooDeep,
}

/// One element: its identifier octet, its contents, and the whole of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    /// The contents, without the end-of-contents mark of an indefinite length.
    pub(crate) content: &'a [u8],
    /// The element exactly as it was sent.
    pub(crate) raw: &'a [u8],
}

/// Reads one element after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

struct Header {
    tag: u8,
    size: usize,
    /// `None` for the indefinite form.
    length: Option<usize>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next element.
    pub(crate) fn read(&mut self) -> Result<Element<'a>, BerError> {
        let Header { tag, size, length } = header(self.rest)?;
        let body = &self.rest[size..];
        let (length, end) = match length {
            Some(length) => (length, length),
            None => {
                let length = length_until_mark(body)?;
                (length, length + 2)
            }
        };
        let content = body.get(..length).ok_or(BerError::Truncated)?;
        let (raw, rest) = self.rest.split_at(size + end);
        self.rest = rest;
        Ok(Element { tag, content, raw })
    }

    /// The next element, which must have this tag.
    pub(crate) fn expect(&mut self, tag: u8) -> Result<Element<'a>, BerError> {
        self.optional(tag)?.ok_or(if self.is_empty() { BerError::Truncated } else { BerError::Unexpected })
    }

    /// The next element if it has this tag.
    pub(crate) fn optional(&mut self, tag: u8) -> Result<Option<Element<'a>>, BerError> {
        if self.rest.first() == Some(&tag) { self.read().map(Some) } else { Ok(None) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Says that nothing may follow.
    pub(crate) fn finish(self) -> Result<(), BerError> {
        if self.is_empty() { Ok(()) } else { Err(BerError::Trailing) }
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Element<'a>, BerError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_empty() {
            return None;
        }
        let element = self.read();
        if element.is_err() {
            self.rest = &[];
        }
        Some(element)
    }
}

impl<'a> Element<'a> {
    /// A reader of the elements inside.
    pub(crate) fn children(&self) -> Reader<'a> {
        Reader::new(self.content)
    }

    /// The bytes of an octet string, whose pieces are put together.
    pub(crate) fn octets(&self) -> Result<Vec<u8>, BerError> {
        let mut bytes = Vec::with_capacity(self.content.len());
        self.collect_octets(&mut bytes, MAX_DEPTH)?;
        Ok(bytes)
    }

    fn collect_octets(&self, bytes: &mut Vec<u8>, depth: usize) -> Result<(), BerError> {
        if self.tag & CONSTRUCTED == 0 {
            bytes.extend_from_slice(self.content);
            return Ok(());
        }
        let depth = depth.checked_sub(1).ok_or(BerError::TooDeep)?;
        for piece in self.children() {
            let piece = piece?;
            if piece.tag & !CONSTRUCTED != OCTET_STRING {
                return Err(BerError::Unexpected);
            }
            piece.collect_octets(bytes, depth)?;
        }
        Ok(())
    }

    /// The element in its DER form: shortest definite lengths, octet strings in one piece, sets sorted.
    pub(crate) fn to_der(self) -> Result<Vec<u8>, BerError> {
        self.to_der_within(MAX_DEPTH)
    }

    fn to_der_within(self, depth: usize) -> Result<Vec<u8>, BerError> {
        if self.tag == OCTET_STRING | CONSTRUCTED {
            return Ok(der(OCTET_STRING, &self.octets()?));
        }
        if self.tag & CONSTRUCTED == 0 {
            return Ok(der(self.tag, self.content));
        }
        let depth = depth.checked_sub(1).ok_or(BerError::TooDeep)?;
        let mut children =
            self.children().map(|child| child?.to_der_within(depth)).collect::<Result<Vec<_>, _>>()?;
        if self.tag == SET {
            children.sort();
        }
        Ok(der(self.tag, &children.concat()))
    }
}

/// An element with its shortest definite length.
pub(crate) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(content.len() + 6);
    bytes.push(tag);
    match u8::try_from(content.len()) {
        Ok(short @ 0..0x80) => bytes.push(short),
        _ => {
            let length = content.len().to_be_bytes();
            let zeros = length.iter().take_while(|byte| **byte == 0).count();
            bytes.push(0x80 | (length.len() - zeros) as u8);
            bytes.extend_from_slice(&length[zeros..]);
        }
    }
    bytes.extend_from_slice(content);
    bytes
}

fn header(bytes: &[u8]) -> Result<Header, BerError> {
    let (&tag, rest) = bytes.split_first().ok_or(BerError::Truncated)?;
    if tag == 0 || tag & 0x1f == 0x1f {
        return Err(BerError::Tag);
    }
    let (&first, rest) = rest.split_first().ok_or(BerError::Truncated)?;
    match first {
        0..0x80 => Ok(Header { tag, size: 2, length: Some(first.into()) }),
        0x80 if tag & CONSTRUCTED == 0 => Err(BerError::Length),
        0x80 => Ok(Header { tag, size: 2, length: None }),
        0x81..=0x84 => {
            let count = usize::from(first & 0x7f);
            let octets = rest.get(..count).ok_or(BerError::Truncated)?;
            let length = octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet));
            Ok(Header { tag, size: 2 + count, length: Some(length) })
        }
        _ => Err(BerError::Length),
    }
}

/// How many bytes precede the end-of-contents mark that closes an indefinite length.
fn length_until_mark(body: &[u8]) -> Result<usize, BerError> {
    let mut open = 1;
    let mut position = 0;
    loop {
        let rest = body.get(position..).ok_or(BerError::Truncated)?;
        if rest.starts_with(&[0, 0]) {
            open -= 1;
            if open == 0 {
                return Ok(position);
            }
            position += 2;
            continue;
        }
        let Header { size, length, .. } = header(rest)?;
        if length.is_none() {
            open += 1;
        }
        if open > MAX_DEPTH {
            return Err(BerError::TooDeep);
        }
        position += size + length.unwrap_or(0);
    }
}
