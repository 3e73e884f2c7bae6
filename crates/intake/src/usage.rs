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
