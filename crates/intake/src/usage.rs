//! What an upload takes of its country's quota.

use std::ops::Add;

/// Keys, and the bytes of the bodies that they came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Keys.
    pub keys: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Usage {
    /// More than anybody uses: no quota.
    pub const UNLIMITED: Self = Self { keys: u64::MAX, bytes: u64::MAX };

    /// Whether it is within a quota.
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
