//! Who may call and who may sign (spec §6.1).

mod caller;
mod proxy;
mod registry;
mod tls;
mod watch;

pub use caller::{Admission, Caller, CallerError, PeerIdentity, known_caller};
pub use registry::{Inactive, Registered, Registry, RegistryUnavailable, Trust};
pub use tls::{TlsError, TlsSetup};
pub(crate) use tls::{load_identity, load_roots};
pub use watch::{ExpiryWatch, threshold};
