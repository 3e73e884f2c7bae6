//! From a decoded upload to one that may be stored.
//!
//! Three things take part, all in memory: the [`Registry`] of certificates that the operator's trust anchor has
//! signed, the [`Keyring`] for encryption at rest, and [`SignedUpload::verify`], the only constructor of a
//! [`VerifiedUpload`]. Depends on neither HTTP nor SQL.

mod encryption;
mod registry;
#[cfg(test)]
mod testing;
mod usage;
mod verify;

pub use encryption::{EncryptionError, Keyring, Sealer};
pub use registry::{Inactive, Registered, Registry, RegistryUnavailable, StoredCertificate, Trust};
pub use usage::Usage;
pub use verify::{SealedKey, SignedUpload, Uploader, VerifiedUpload, VerifyError};
