//! The download with memory: every batch once, verified, in the order of the chain (spec §5.3, §5.7).

mod stored;

pub use stored::{Stored, StoredError, StoredFormat};
