//! Who may call and who may sign (spec §6.1).

mod caller;
mod deny;
mod proxy;
mod tls;
mod watch;

pub use caller::{Admission, Caller, CallerError, PeerIdentity, Reader, known_caller};
pub use deny::DenyFile;
pub use efgs_intake::{Inactive, Registered, Registry, RegistryUnavailable, Trust};
pub use tls::TlsSetup;

pub use watch::{ExpiryWatch, threshold};

use efgs_store::{Store, StoreError};
use tokio::time::Instant;

/// Reads the registry from the database.
pub async fn load(trust: &Trust, store: &Store) -> Result<(), StoreError> {
    // The age counts from before the query: it may miss what changes while it runs.
    let at = Instant::now();
    trust.take(store.certificates().await?, at);
    Ok(())
}
