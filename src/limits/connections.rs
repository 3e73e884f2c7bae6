//! Connection limits: how many connections one address and one country may have open, and how fast an address
//! may open them.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use efgs_protocol::country::Country;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Limits, pace::Pace, refused};

/// When more addresses than this are remembered, idle ones are forgotten.
const REMEMBERED: usize = 4096;

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    addresses: Mutex<HashMap<Prefix, AddressUse>>,
    /// `None`: all unregistered callers together.
    countries: Mutex<HashMap<Option<Country>, usize>>,
    /// Connections without a complete handshake, in the order of arrival.
    unfinished: Mutex<Unfinished>,
}

#[derive(Debug, Default)]
struct Unfinished {
    newest: u64,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A connection that has no complete handshake, until it is dropped.
#[derive(Debug)]
pub struct UnfinishedHandshake {
    limits: Arc<Limits>,
    number: u64,
    displaced: oneshot::Receiver<()>,
}

impl UnfinishedHandshake {
    /// Runs to the end, or returns `None` as soon as a newer connection needs the place.
    pub async fn unless_displaced<T>(mut self, handshake: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = handshake => Some(done),
            _ = &mut self.displaced => {
                refused(None, "handshakes");
                None
            }
        }
    }
}

impl Drop for UnfinishedHandshake {
    fn drop(&mut self) {
        self.limits.connections.unfinished.lock().waiting.remove(&self.number);
    }
}

#[derive(Debug)]
struct AddressUse {
    open: usize,
    pace: Pace,
}

/// An open connection, until it is dropped.
#[derive(Debug)]
pub struct Open {
    limits: Arc<Limits>,
    whose: Whose,
}

#[derive(Debug)]
enum Whose {
    Address(Vec<Prefix>),
    Country(Option<Country>),
}

/// The decision about a new connection, before its handshake.
#[derive(Debug)]
pub enum Arrival {
    /// The address is exempt (`limits.shared_addresses`).
    Free,
    /// The connection is counted and may continue after a wait.
    Counted(Open, Duration),
    /// The connection is to be closed.
    Refused,
}

impl Limits {
    /// Counts a new connection of an address. An address that opens connections too fast waits, at most for
    /// `patience`, so that its handshakes leave processor time for those of others.
    pub fn arrive(self: &Arc<Self>, address: IpAddr, patience: Duration) -> Arrival {
        if self.config.limits.shared_addresses.iter().any(|network| network.contains(address)) {
            return Arrival::Free;
        }
        let (prefixes, now) = (Prefix::of(address), Instant::now());
        let mut addresses = self.connections.addresses.lock();
        if addresses.len() >= REMEMBERED {
            addresses.retain(|_, usage| usage.open > 0 || !usage.pace.is_rested(now));
        }
        let limits = &self.config.limits;
        let full = |prefix: &Prefix| {
            let open = addresses.get(prefix).map_or(0, |usage| usage.open);
            open >= limits.connections_per_address.saturating_mul(prefix.share())
        };
        if prefixes.iter().any(full) {
            refused(None, "address");
            return Arrival::Refused;
        }
        let mut longest = Duration::ZERO;
        for prefix in &prefixes {
            let share = prefix.share() as u32;
            let usage = addresses.entry(*prefix).or_insert_with(|| AddressUse {
                open: 0,
                pace: Pace::new(
                    limits.handshakes_per_second * f64::from(share),
                    limits.burst.saturating_mul(share),
                ),
            });
            match usage.pace.take(now, patience) {
                Ok(wait) => longest = longest.max(wait),
                Err(_) => {
                    refused(None, "address");
                    return Arrival::Refused;
                }
            }
        }
        for prefix in &prefixes {
            if let Some(usage) = addresses.get_mut(prefix) {
                usage.open += 1;
            }
        }
        Arrival::Counted(Open { limits: self.clone(), whose: Whose::Address(prefixes) }, longest)
    }

    /// Counts a connection whose handshake begins. A quarter of all connections may be without a complete
    /// handshake; when there are more, the oldest ends: one that completes its handshake does so in milliseconds.
    pub fn begin_handshake(self: &Arc<Self>) -> UnfinishedHandshake {
        let most = (self.config.server.max_connections / 4).max(1);
        let (displace, displaced) = oneshot::channel();
        let mut unfinished = self.connections.unfinished.lock();
        unfinished.newest += 1;
        let number = unfinished.newest;
        unfinished.waiting.insert(number, displace);
        if unfinished.waiting.len() > most {
            // Dropping the other end would do as well; sending says so.
            let _ = unfinished.waiting.pop_first().map(|(_, oldest)| oldest.send(()));
        }
        UnfinishedHandshake { limits: self.clone(), number, displaced }
    }

    /// Counts a connection after its handshake: a country's, or (`None`) an unregistered caller's. Returns
    /// `None` if the connection is above the limit and has to be closed.
    pub fn enter(self: &Arc<Self>, country: Option<Country>) -> Option<Open> {
        let most = match country {
            Some(country) => self.of(country).settings.connections,
            None => self.config.limits.connections,
        };
        let mut countries = self.connections.countries.lock();
        let open = countries.entry(country).or_default();
        if *open >= most {
            refused(country, "connections");
            return None;
        }
        *open += 1;
        Some(Open { limits: self.clone(), whose: Whose::Country(country) })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let connections = &self.limits.connections;
        match &self.whose {
            Whose::Address(prefixes) => {
                let mut addresses = connections.addresses.lock();
                for prefix in prefixes {
                    if let Some(usage) = addresses.get_mut(prefix) {
                        usage.open -= 1;
                    }
                }
            }
            Whose::Country(country) => {
                if let Some(open) = connections.countries.lock().get_mut(country) {
                    *open -= 1;
                }
            }
        }
    }
}

/// Addresses that may belong to one customer of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The prefixes that count a connection: an IPv4 address alone, or the /64, /56 and /48 of an IPv6 address,
    /// because providers assign any of these to one customer.
    fn of(address: IpAddr) -> Vec<Self> {
        match address.to_canonical() {
            IpAddr::V6(address) => [64, 56, 48]
                .map(|length: u8| {
                    let prefix = u128::from(address) >> (128 - length) << (128 - length);
                    Self { address: Ipv6Addr::from(prefix).into(), length }
                })
                .into(),
            v4 => vec![Self { address: v4, length: 32 }],
        }
    }

    /// How many times the limits of one address it has.
    fn share(self) -> usize {
        match self.length {
            48 => 4,
            56 => 2,
            _ => 1,
        }
    }
}
