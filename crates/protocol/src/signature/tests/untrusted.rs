//! Untrusted bytes: nothing panics, nothing takes long, nothing false is accepted.

use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;

use super::ber::{BerError, Reader, SEQUENCE, SET, der};
use super::*;

/// Valid signatures in different shapes, with their signed bytes.
static VALID: LazyLock<Vec<(Vec<u8>, Vec<u8>)>> = LazyLock::new(|| {
    let valid = vectors().into_iter().filter(|(vector, _)| vector.expect == "valid");
    valid.map(|(vector, bytes)| (decode_base64(&vector.batch_signature).unwrap(), bytes)).collect()
});

fn verify_raw(cms: &[u8], signed_bytes: &[u8]) -> Result<SignedBy, SignatureError> {
    let text = base64::engine::general_purpose::STANDARD.encode(cms);
    verify(&text, signed_bytes, vector_time(), WITH_SHA1)
}

proptest! {
    #[test]
    fn arbitrary_text_is_refused(text in ".{0,200}") {
        prop_assert!(verify(&text, b"bytes", vector_time(), WITH_SHA1).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        prop_assert!(verify_raw(&bytes, b"bytes").is_err());
    }

    /// Whatever an attacker changes in a signature, it never covers other keys, and where it still covers
    /// these, it is still the same key's.
    #[test]
    fn a_changed_signature_never_verifies_for_other_keys(
        vector in any::<Index>(),
        changes in proptest::collection::vec((any::<Index>(), any::<u8>(), 0..3_u8), 1..6),
        other in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let (cms, bytes) = vector.get(&VALID);
        let original = verify_raw(cms, bytes).unwrap();
        let mut changed = cms.clone();
        for (at, byte, how) in changes {
            let at = at.index(changed.len());
            match how {
                0 => changed[at] = byte,
                1 => changed.insert(at, byte),
                _ => drop(changed.remove(at)),
            }
        }
        prop_assert!(verify_raw(&changed, &other).is_err());
        let mut longer = bytes.clone();
        longer.push(b'.');
        prop_assert!(verify_raw(&changed, &longer).is_err());
        if let Ok(signed) = verify_raw(&changed, bytes) {
            prop_assert_eq!(signed.certificate.key(), original.certificate.key());
        }
    }

    #[test]
    fn a_reader_takes_back_what_was_written(
        tag in prop_oneof![Just(0x04_u8), Just(0x30), Just(0xa0), Just(0x80)],
        content in proptest::collection::vec(any::<u8>(), 0..70_000),
    ) {
        let written = der(tag, &content);
        let mut reader = Reader::new(&written);
        let element = reader.read().unwrap();
        prop_assert_eq!(element.tag, tag);
        prop_assert_eq!(element.content, content.as_slice());
        prop_assert_eq!(element.raw, written.as_slice());
        prop_assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_reader_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for element in Reader::new(&bytes).flatten() {
            let _ = (element.octets(), element.to_der());
        }
    }
}

#[test]
fn every_truncation_and_every_extension_is_refused() {
    let (cms, bytes) = &VALID[5];
    for length in 0..cms.len() {
        assert!(verify_raw(&cms[..length], bytes).is_err(), "{length} bytes");
    }
    let error = verify_raw(&[cms.as_slice(), &[0]].concat(), bytes).unwrap_err();
    assert_eq!(error, SignatureError::NotCms("bytes follow the last element".into()));
}

#[test]
fn nesting_exhausts_neither_stack_nor_time() {
    let definite = (0..4000).fold(Vec::new(), |inner, _| der(SEQUENCE, &inner));
    for bomb in [[0x30, 0x80].repeat(6000), [0x24, 0x80].repeat(6000), [0xa0, 0x80].repeat(6000), definite] {
        assert!(verify_raw(&bomb, b"bytes").is_err());
        // The same where elements are put together anew.
        let mut inside = Reader::new(&bomb);
        if let Ok(element) = inside.read() {
            assert_eq!(element.to_der(), Err(BerError::TooDeep));
        }
    }
    let closed = [[0x24, 0x80].repeat(40), [0, 0].repeat(40)].concat();
    assert_eq!(Reader::new(&closed).read().unwrap_err(), BerError::TooDeep);
    let pieces = (0..40).fold(vec![0x04, 0], |inner, _| der(0x24, &inner));
    assert_eq!(Reader::new(&pieces).read().unwrap().octets(), Err(BerError::TooDeep));
}

#[test]
fn lengths_that_lie_are_refused() {
    for (bytes, expected) in [
        (&[0x30, 0x05, 0x02][..], BerError::Truncated),
        (&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], BerError::Truncated),
        (&[0x30, 0x85, 0, 0, 0, 0, 0], BerError::Length),
        (&[0x30, 0xff], BerError::Length),
        (&[0x04, 0x80, 0, 0], BerError::Length),
        (&[0x30, 0x80, 0x02, 0x01], BerError::Truncated),
        (&[0x30, 0x80, 0x02, 0x01, 0x00, 0x00], BerError::Tag),
        (&[0x30, 0x80, 0x02, 0x84, 0xff, 0xff, 0xff, 0xff, 0, 0], BerError::Truncated),
        (&[0x1f, 0x81, 0x00, 0x00], BerError::Tag),
        (&[0x00, 0x00], BerError::Tag),
        (&[], BerError::Truncated),
    ] {
        assert_eq!(Reader::new(bytes).read().unwrap_err(), expected, "{bytes:02x?}");
    }
}

#[test]
fn der_form_is_sorted_short_and_in_one_piece() {
    let ber = [
        0x31, 0x80, // an unsorted set of indefinite length:
        0x24, 0x80, 0x04, 0x01, b'b', 0x24, 0x03, 0x04, 0x01, b'c', 0, 0, // "bc" in pieces
        0x04, 0x81, 0x01, b'a', // a length longer than need be
        0x02, 0x01, 0x07, //
        0, 0,
    ];
    let element = Reader::new(&ber).read().unwrap();
    let expected = [0x31, 0x0a, 0x02, 0x01, 0x07, 0x04, 0x01, b'a', 0x04, 0x02, b'b', b'c'];
    assert_eq!(element.tag, SET);
    assert_eq!(element.to_der().unwrap(), expected);
    let again = Reader::new(&expected).read().unwrap();
    assert_eq!(again.to_der().unwrap(), expected);
}

#[test]
fn exactly_32_levels_may_nest() {
    let indefinite =
        |levels| [[0x24, 0x80].repeat(levels), [4, 1, 7].to_vec(), [0, 0].repeat(levels)].concat();
    let definite = |levels| (0..levels).fold(vec![4, 1, 7], |inner, _| der(0x24, &inner));
    for bytes in [indefinite(32), definite(32)] {
        let element = Reader::new(&bytes).read().unwrap();
        assert_eq!(element.octets(), Ok(vec![7]));
        assert_eq!(element.to_der(), Ok(vec![4, 1, 7]));
    }
    assert_eq!(Reader::new(&indefinite(33)).read().unwrap_err(), BerError::TooDeep);
    let bytes = definite(33);
    assert_eq!(Reader::new(&bytes).read().unwrap().octets(), Err(BerError::TooDeep));
    let sequences = |levels| (0..levels).fold(vec![4, 1, 7], |inner, _| der(SEQUENCE, &inner));
    for (levels, expected) in [(32, Ok(sequences(32))), (33, Err(BerError::TooDeep))] {
        assert_eq!(Reader::new(&sequences(levels)).read().unwrap().to_der(), expected, "{levels}");
    }
}

#[test]
fn only_octet_strings_are_pieces_of_an_octet_string() {
    let octets = |pieces: &[u8]| Reader::new(&der(0x24, pieces)).read().unwrap().octets();
    assert_eq!(octets(&[4, 1, 1, 0x24, 3, 4, 1, 2, 4, 0]), Ok(vec![1, 2]));
    for pieces in [&[2, 1, 1][..], &[0x30, 0], &[0x84, 1, 1], &[4, 1, 1, 2, 1, 1], &[0x24, 3, 2, 1, 1]] {
        assert_eq!(octets(pieces), Err(BerError::Unexpected), "{pieces:02x?}");
    }
}
