//! Settings of the limits.

use bytesize::ByteSize;
use efgs_protocol::country::Country;
use serde::Deserialize;

use super::{Config, Network};

/// `[limits]`: what one country, one address and all together may take (spec §5.5, §6.3). All but the quotas of
/// a day hold for each instance by itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Keys accepted from one country on one UTC day, by all instances together.
    pub keys_per_day: u64,
    /// The same in bytes that they occupy in the database.
    pub bytes_per_day: ByteSize,
    /// Requests per second of one country; faster ones wait.
    pub requests_per_second: f64,
    /// Burst: requests or connections that may arrive at once after a pause.
    pub burst: u32,
    /// Uploads and other changes of one country that are under way at once; further ones wait their turn.
    pub concurrent_uploads: usize,
    /// The same of everything that only reads.
    pub concurrent_downloads: usize,
    /// Connections of one country that are open at once, and of all callers together that are not registered.
    pub connections: usize,
    /// Connections of one address that are open at once.
    pub connections_per_address: usize,
    /// New connections per second of one address; faster ones wait.
    pub handshakes_per_second: f64,
    /// Networks of balancers that pass TLS through: many countries share their addresses.
    pub shared_addresses: Vec<Network>,
    /// Bytes of request bodies that are received or stored at once, of all countries.
    pub memory: ByteSize,
    /// Uploads that wait for the processor, or for the database, at once, of all countries.
    pub queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // The specification's upper bound, at its 200 bytes for a key (spec §5.5.1).
            keys_per_day: 5_000_000,
            bytes_per_day: ByteSize::gb(2),
            requests_per_second: 100.0,
            burst: 200,
            concurrent_uploads: 4,
            concurrent_downloads: 8,
            connections: 64,
            connections_per_address: 256,
            handshakes_per_second: 100.0,
            shared_addresses: Vec::new(),
            memory: ByteSize::mib(48),
            queue: 64,
        }
    }
}

/// What one country may take: `[limits]`, and what its participant's section says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CountryLimits {
    /// See [`Limits::keys_per_day`].
    pub keys_per_day: u64,
    /// See [`Limits::bytes_per_day`].
    pub bytes_per_day: u64,
    /// See [`Limits::requests_per_second`].
    pub requests_per_second: f64,
    /// See [`Limits::burst`].
    pub burst: u32,
    /// See [`Limits::concurrent_uploads`].
    pub concurrent_uploads: usize,
    /// See [`Limits::concurrent_downloads`].
    pub concurrent_downloads: usize,
    /// See [`Limits::connections`].
    pub connections: usize,
}

impl Config {
    /// What a country may take.
    pub fn limits_of(&self, country: Country) -> CountryLimits {
        let (all, own) = (&self.limits, self.participant(country));
        CountryLimits {
            keys_per_day: own.keys_per_day.unwrap_or(all.keys_per_day),
            bytes_per_day: own.bytes_per_day.unwrap_or(all.bytes_per_day).as_u64(),
            requests_per_second: own.requests_per_second.unwrap_or(all.requests_per_second),
            burst: own.burst.unwrap_or(all.burst),
            concurrent_uploads: own.concurrent_uploads.unwrap_or(all.concurrent_uploads),
            concurrent_downloads: own.concurrent_downloads.unwrap_or(all.concurrent_downloads),
            connections: own.connections.unwrap_or(all.connections),
        }
    }
}
