//! The only source of randomness, for keys and nonces as well as for ids and waiting times: AWS-LC's generator, which the
//! operating system seeds. When the system gives no randomness, AWS-LC ends the process: nobody goes on with numbers that
//! others can guess.

/// Fills the bytes.
#[expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "the one source; it never fails, see above"
)]
pub fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("AWS-LC ends the process when there is no randomness");
}

/// So many bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// An id of so many bytes in hexadecimal digits.
pub fn hex<const N: usize>() -> String {
    bytes::<N>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number from 0 to 1.
pub fn unit() -> f64 {
    f64::from(u32::from_ne_bytes(bytes())) / f64::from(u32::MAX)
}

/// A factor from `1 - spread` to `1 + spread`, by which waiting times differ, so that many who wait do not come at once.
pub fn jitter(spread: f64) -> f64 {
    1.0 + spread * (2.0 * unit() - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_long_enough_and_differ() {
        let (one, other) = (hex::<8>(), hex::<8>());
        assert!(one.len() == 16 && one.bytes().all(|b| b.is_ascii_hexdigit()), "{one}");
        assert_ne!(one, other);
    }

    #[test]
    fn jitter_stays_within_its_spread() {
        let all: Vec<f64> = (0..1000).map(|_| jitter(0.25)).collect();
        assert!(all.iter().all(|factor| (0.75..=1.25).contains(factor)));
        assert!(all.iter().any(|factor| *factor < 0.9) && all.iter().any(|factor| *factor > 1.1));
    }
}
