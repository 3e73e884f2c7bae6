//! Calling countries back when there is a new batch (spec §5.6).
//!
//! A country registers URLs ([`register`]). The transaction that forms a batch queues one notification for
//! each; a job ([`Callbacks::run`]) calls them. The guard ([`Guard`]) is the only place that opens outgoing
//! connections, and decides where they may lead.

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

/// What registers URLs and calls them.
#[derive(Clone, Debug)]
pub struct Callbacks {
    /// `[callback]`, and how long the database may take.
    pub config: Arc<Config>,
    /// Which instance this is.
    pub instance: Instance,
    /// The time.
    pub clock: Clock,
    /// The subscriptions and their queues.
    pub store: Store,
    /// Whose certificates count.
    pub trust: Arc<Trust>,
    /// The names of batches.
    pub chain: Arc<Chain>,
    /// What countries have already.
    pub downloaded: Arc<Downloaded>,
    /// Where callbacks may lead.
    pub guard: Arc<Guard>,
    /// How the job stands.
    pub health: Arc<Health>,
    /// Where requests are worked on.
    pub workers: Workers,
    /// Tells the job that there is something to announce.
    pub wake: Arc<Notify>,
}
