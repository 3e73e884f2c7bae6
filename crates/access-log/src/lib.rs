//! The formats of the access log: what a record contains, how records and statements are chained, how a statement is
//! signed, and what is counted per day. `docs/access-log.md` describes how others verify it.

pub mod operation;
mod record;
pub mod segment;
mod statement;
mod tally;

pub use record::{Entry, Hash, ORIGIN, Record, hash, hex, unhex};
pub use statement::{Key, KeyError, SignedStatement, Signer, Statement, StatementKind, digest};
pub use tally::{NOBODY, Tally, tallies};

/// Where a chain of records ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainEnd {
    /// Number of the last record; 0 when there is none.
    pub sequence: i64,
    /// Its hash.
    pub hash: Hash,
    /// Hashes of the last records of attempts to write whose outcome is not known.
    pub open: Vec<Hash>,
}

impl Default for ChainEnd {
    fn default() -> Self {
        Self { sequence: 0, hash: ORIGIN, open: Vec::new() }
    }
}

impl ChainEnd {
    /// A chain whose last record has this number and this hash.
    pub fn new(sequence: i64, hash: Hash) -> Self {
        Self { sequence, hash, open: Vec::new() }
    }

    /// Where to continue when `found` is the end in the database. It counts only when this instance wrote it. If the
    /// database disagrees with an instance's memory, the instance neither extends that state nor uses the missing numbers
    /// again, so that the difference stays visible.
    pub fn or_what_was_written(&self, found: Self, open: &[Hash]) -> Self {
        if found.hash == self.hash || open.contains(&found.hash) {
            found
        } else {
            Self::new(self.sequence.max(found.sequence), self.hash)
        }
    }
}
