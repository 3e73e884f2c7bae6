//! From an upload that was read to one that may be stored.
//!
//! Three things decide that, all in memory: the [`Registry`] of certificates that the operator's trust anchor has
//! signed, the [`Keyring`] of the encryption at rest, and [`SignedUpload::verify`], which alone makes a
//! [`VerifiedUpload`]. Knows neither HTTP nor SQL.

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
