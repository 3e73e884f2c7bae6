//! The composition root: the parts of an instance ([`App`]), its listeners and jobs ([`Gateway`]), the routes,
//! the admin listener and the operator's page. It may use everything. Only the commands use it.

mod admin;
mod api;
mod app;
mod collect;
mod connection;
mod gateway;
mod listen;
mod observe;
pub mod overview;
mod readiness;
mod reload;
mod routes;

pub use api::{ApiDoc, document};
pub use app::{App, StartError};
pub use gateway::Gateway;
pub use readiness::Readiness;
pub use reload::Reload;
pub use routes::{OPERATIONS, Operation};
