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
//! A **national backend** opens a TLS connection with a client certificate ([`trust`]). Each request finds out
//! anew which country that is (`Caller`), from a registry that holds only what the operator's offline trust
//! anchor has signed. An **upload** ([`upload`]) is decoded, its keys are checked, its signature is verified
//! over bytes built from the parsed keys, and what comes out, a `VerifiedUpload`, is stored in one transaction
//! ([`store`]), each key encrypted ([`intake`]). A job ([`batching`]) puts whole uploads into **batches**.
//! A **download** ([`download`]) finds its batch in the [`chain`] and sends the sealed segments of the other
//! countries; who registered for it is **called back** when there is a batch ([`callback`]). An **audit** ([`audit`]) tells who signed what. What is older than 14 days is never served and
//! soon deleted ([`expiry`]).

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

// The layers below, under short names.
pub use efgs_intake as intake;
pub use efgs_kit::{clock, config, health, instance, pem, telemetry};
pub use efgs_store as store;
