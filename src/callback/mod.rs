//! Calling countries back when there is a new batch (spec §5.6).
//!
//! A country registers URLs ([`register`]). The transaction that forms a batch queues one notification for each
//! URL. A job ([`Callbacks::run`]) delivers the notifications. The guard ([`Guard`]) is the only place that
//! opens outgoing connections, and decides which addresses are allowed.

mod deliver;
mod guard;
pub mod register;

pub use guard::{CallError, Check, Guard, GuardError, Refused, Resolve, SystemResolver, Target};
pub use register::CallbackError;

use std::sync::Arc;

use tokio::sync::Notify;

use crate::{
    chain::Chain, clock::Clock, config::Config, downloaded::Downloaded, health::Health, instance::Instance,
    store::Store, trust::Trust, workers::Workers,
};

/// What registering and calling URLs needs.
#[derive(Clone, Debug)]
pub struct Callbacks {
    /// The section `[callback]`, and the database timeout.
    pub config: Arc<Config>,
    /// Identifies this instance.
    pub instance: Instance,
    /// The clock.
    pub clock: Clock,
    /// The subscriptions and their queues.
    pub store: Store,
    /// The registry.
    pub trust: Arc<Trust>,
    /// The names of batches.
    pub chain: Arc<Chain>,
    /// What each country has downloaded.
    pub downloaded: Arc<Downloaded>,
    /// Checks and calls URLs.
    pub guard: Arc<Guard>,
    /// The job's health.
    pub health: Arc<Health>,
    /// The threads that process requests.
    pub workers: Workers,
    /// Wakes the job.
    pub wake: Arc<Notify>,
}
