//! What an upload uses of its country's quota.

use std::ops::Add;

/// A number of keys, and of bytes of their request bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Keys.
    pub keys: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Usage {
    /// No quota.
    pub const UNLIMITED: Self = Self { keys: u64::MAX, bytes: u64::MAX };

    /// Whether it is within `quota`.
    pub fn fits(self, quota: Self) -> bool {
        self.keys <= quota.keys && self.bytes <= quota.bytes
    }
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { keys: self.keys.saturating_add(other.keys), bytes: self.bytes.saturating_add(other.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::Usage;

    fn usage(keys: u64, bytes: u64) -> Usage {
        Usage { keys, bytes }
    }

    #[test]
    fn a_quota_limits_keys_and_bytes_each() {
        let quota = usage(3, 40);
        for fits in [usage(0, 0), usage(3, 40), usage(3, 0), usage(0, 40)] {
            assert!(fits.fits(quota), "{fits:?}");
        }
        for exceeds in [usage(4, 0), usage(0, 41), usage(4, 41), Usage::UNLIMITED] {
            assert!(!exceeds.fits(quota), "{exceeds:?}");
        }
        assert!(Usage::UNLIMITED.fits(Usage::UNLIMITED));
    }

    #[test]
    fn a_sum_that_is_too_large_stays_the_largest() {
        assert_eq!(usage(1, 20) + usage(2, 30), usage(3, 50));
        assert_eq!(usage(u64::MAX, 1) + usage(1, 1), usage(u64::MAX, 2));
        assert_eq!(usage(1, u64::MAX) + usage(1, 1), usage(2, u64::MAX));
        assert!(!(usage(u64::MAX, 0) + usage(1, 0)).fits(usage(1, 1)));
    }
}
