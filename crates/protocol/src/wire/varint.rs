//! The variable-length numbers of the protobuf encoding ("varints"): seven bits in each byte, the lowest first; all
//! bytes but the last have the highest bit set.

/// Reads one number. `next` returns its next byte and is not called again after the number's last byte.
///
/// Returns `None` when the number has more than 64 bits or its tenth byte is not the last. As in every protobuf decoder,
/// a number may have more bytes than it needs.
///
/// # Errors
/// The error of `next`.
///
/// # Examples
/// ```
/// # use efgs_protocol::wire::read_varint;
/// let mut bytes = [0xac, 0x02, 0xff].into_iter();
/// let number = read_varint(|| bytes.next().ok_or("it is cut off"));
/// assert_eq!(number, Ok(Some(300)));
/// assert_eq!(bytes.next(), Some(0xff));
/// ```
#[inline]
pub fn read_varint<E>(mut next: impl FnMut() -> Result<u8, E>) -> Result<Option<u64>, E> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = next()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            // Of the tenth byte, a number of 64 bits has one bit.
            return Ok((shift < 63 || byte <= 1).then_some(number));
        }
    }
    Ok(None)
}

pub(super) fn append_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::encoding::{decode_varint, encode_varint};

    use super::*;

    /// What is read, and how many bytes of the number it took.
    fn read(bytes: &[u8]) -> (Result<Option<u64>, &'static str>, usize) {
        let mut rest = bytes.iter();
        let number = read_varint(|| rest.next().copied().ok_or("cut off"));
        (number, bytes.len() - rest.len())
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_none() {
        let largest = [&[0xff; 9][..], &[1]].concat();
        assert_eq!(read(&largest), (Ok(Some(u64::MAX)), 10));
        for tenth in [2, 3, 0x7f] {
            assert_eq!(read(&[&[0xff; 9][..], &[tenth]].concat()), (Ok(None), 10));
            assert_eq!(read(&[&[0x80; 9][..], &[tenth]].concat()), (Ok(None), 10), "not as the number 0");
        }
        // It does not go on after the tenth byte.
        assert_eq!(read(&[0x80; 11]), (Ok(None), 10));
        assert_eq!(read(&[&[0x80; 10][..], &[0]].concat()), (Ok(None), 10));
    }

    #[test]
    fn more_bytes_than_needed_are_read() {
        for length in 1..=10 {
            let mut bytes = vec![0x80; length];
            bytes[length - 1] = 0;
            assert_eq!(read(&bytes), (Ok(Some(0)), length));
            bytes[0] |= 5;
            assert_eq!(read(&bytes), (Ok(Some(5)), length));
        }
    }

    #[test]
    fn an_end_in_the_middle_is_the_error_of_the_source() {
        for length in 0..10 {
            assert_eq!(read(&vec![0xff; length]), (Err("cut off"), length));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_prost_writes(number: u64, bits in 0u32..64) {
            let number = number >> bits;
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            append_varint(number, &mut ours);
            encode_varint(number, &mut theirs);
            prop_assert_eq!(&ours, &theirs);
            let length = ours.len();
            ours.push(0xff);
            prop_assert_eq!(read(&ours), (Ok(Some(number)), length));
        }

        #[test]
        fn any_bytes_are_read_as_prost_reads_them(
            high in proptest::collection::vec(0x80u8.., 0..12),
            last in prop_oneof![0u8..3, any::<u8>()],
        ) {
            let bytes = [&high[..], &[last]].concat();
            let mut rest = &bytes[..];
            let theirs = decode_varint(&mut rest).ok();
            prop_assert_eq!(read(&bytes).0.ok().flatten(), theirs);
        }
    }
}
