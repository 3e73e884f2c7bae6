//! A `DiagnosisKeyBatch`, field by field (spec §4.1.3).

use std::io::{self, BufRead, ErrorKind, Read, copy, sink};

use efgs_protocol::wire;

use super::{
    Each, SourceProblem, hand_on,
    stream::{Budget, LONGEST, Stream},
};

pub(super) fn read(
    mut stream: Stream<impl BufRead>,
    budget: &Budget,
    each: &mut Each<'_>,
) -> Result<(), SourceProblem> {
    let malformed = |what: &str| SourceProblem::Malformed(format!("not a protobuf batch: {what}"));
    let cut_off = |error: io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => malformed("it ends in the middle of a field"),
        _ => error.into(),
    };
    let mut message = Vec::new();
    while !stream.fill_buf()?.is_empty() {
        let tag = varint(&mut stream).map_err(cut_off)?;
        match (tag >> 3, tag & 7) {
            (1, 2) => {
                let length = varint(&mut stream).map_err(cut_off)?;
                let length = usize::try_from(length).ok().filter(|length| *length <= LONGEST);
                message.resize(length.ok_or_else(|| malformed("a key that is too long"))?, 0);
                stream.read_exact(&mut message).map_err(cut_off)?;
                if hand_on(each, |one| wire::decode_protobuf_key(&message, one)).is_break() {
                    return Ok(());
                }
                budget.renew();
            }
            (0 | 1, _) => return Err(malformed("a field of another kind in the place of a key")),
            (_, 0) => drop(varint(&mut stream).map_err(cut_off)?),
            (_, kind @ (1 | 2 | 5)) => {
                let length = match kind {
                    1 => 8,
                    5 => 4,
                    _ => varint(&mut stream).map_err(cut_off)?,
                };
                if copy(&mut stream.by_ref().take(length), &mut sink())? < length {
                    return Err(malformed("it ends in the middle of a field"));
                }
            }
            _ => return Err(malformed("an unknown kind of field")),
        }
    }
    Ok(())
}

fn varint(stream: &mut impl Read) -> io::Result<u64> {
    let mut byte = [0];
    let number = wire::read_varint(|| stream.read_exact(&mut byte).map(|()| byte[0]))?;
    let endless =
        || io::Error::new(ErrorKind::InvalidData, "not a protobuf batch: a number that does not end");
    number.ok_or_else(endless)
}
