//! Calling countries back when there is a new batch (spec §5.6).
//!
//! A country registers URLs ([`register`]). The transaction that forms a batch queues one notification for
//! each; a job ([`run`]) calls them. The guard ([`Guard`]) is the only place that opens outgoing
//! connections, and decides where they may lead.

mod deliver;
mod downloaded;
mod guard;
pub mod register;

pub use deliver::run;
pub use downloaded::Downloaded;
pub use guard::{CallError, Guard, GuardError, Refused, Resolve, SystemResolver, Target};
pub use register::CallbackError;
