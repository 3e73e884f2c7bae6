//! The Federation Gateway: national contact-tracing backends exchange signed batches of diagnosis keys.
//!
//! # The data path, in one page
//!
//! ```text
//! TLS handshake → Caller → upload::upload → SignedUpload::verify → VerifiedUpload → store
//!                                              batching job → store
//! TLS handshake → Caller → download::download → chain → sealed segments → bytes
//! ```
//!
//! A **national backend** opens a TLS connection with a client certificate ([`trust`]). Each request determines
//! its country (`Caller`) from a registry that holds only what the operator's offline trust anchor has signed.
//! An **upload** ([`upload`]) is decoded, its keys are checked, and its signature is verified over bytes built
//! from the parsed keys. The result, a `VerifiedUpload`, is stored in one transaction ([`store`]) with each key
//! encrypted ([`intake`]). A job ([`batching`]) puts whole uploads into **batches**. A **download**
//! ([`download`]) finds its batch in the [`chain`] and sends the other countries' segments from the
//! [`body_cache`]. The gateway **calls back** countries that registered for it when there is a batch
//! ([`callback`]). An **audit** ([`audit`]) shows who signed what. Data older than 14 days is never served and
//! is soon deleted ([`expiry`]).

pub mod access_log;
pub mod audit;
pub mod batching;
pub mod body_cache;
pub mod callback;
pub mod chain;
pub mod cli;
pub mod download;
pub mod downloaded;
pub mod expiry;
pub mod http;
pub mod jobs;
pub mod journal;
pub mod limits;
pub mod options;
pub mod rotation;
pub mod server;
pub mod trust;
pub mod upload;
pub mod withdrawal;
pub mod workers;

// Short names for the layers below.
pub use efgs_intake as intake;
pub use efgs_kit::{clock, config, health, instance, pem, telemetry};
pub use efgs_store as store;
