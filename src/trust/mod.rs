//! Who may call and who may sign (spec §6.1).

mod caller;
mod proxy;
mod registry;
mod tls;

pub use caller::{Caller, CallerError, PeerIdentity};
pub use registry::{Inactive, Registered, Registry, RegistryUnavailable, Trust};
pub use tls::{TlsError, TlsSetup};
