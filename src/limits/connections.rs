//! Connections: how many of one address and of one country are open, and how fast they come.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use efgs_protocol::country::Country;
use parking_lot::Mutex;

use super::{Limits, pace::Pace, refused};

/// Addresses that are remembered, open connections or not, before those that have rested are forgotten.
const REMEMBERED: usize = 4096;

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Connections {
    addresses: Mutex<HashMap<IpAddr, AddressUse>>,
    /// `None` are callers that are not registered, all together.
    countries: Mutex<HashMap<Option<Country>, usize>>,
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

#[derive(Clone, Copy, Debug)]
enum Whose {
    Address(IpAddr),
    Country(Option<Country>),
}

/// What becomes of a new connection, before its handshake.
#[derive(Debug)]
pub enum Arrival {
    /// Its address has limits of its own elsewhere.
    Free,
    /// It may go on after a wait.
    Counted(Open, Duration),
    /// It is closed.
    Refused,
}

impl Limits {
    /// A new connection of an address. One that comes too fast waits, at most for `patience`: a client that
    /// connects again and again is slowed, and its handshakes leave time for those of others.
    pub fn arrive(self: &Arc<Self>, address: IpAddr, patience: Duration) -> Arrival {
        if self.config.limits.shared_addresses.iter().any(|network| network.contains(address)) {
            return Arrival::Free;
        }
        let (address, now) = (customer_prefix(address), Instant::now());
        let mut addresses = self.connections.addresses.lock();
        if addresses.len() >= REMEMBERED {
            addresses.retain(|_, usage| usage.open > 0 || !usage.pace.is_rested(now));
        }
        let usage = addresses.entry(address).or_insert_with(|| AddressUse {
            open: 0,
            pace: Pace::new(self.config.limits.handshakes_per_second, self.config.limits.burst),
        });
        if usage.open < self.config.limits.connections_per_address
            && let Ok(wait) = usage.pace.take(now, patience)
        {
            usage.open += 1;
            return Arrival::Counted(Open { limits: self.clone(), whose: Whose::Address(address) }, wait);
        }
        refused(None, "address");
        Arrival::Refused
    }

    /// A connection whose handshake is over: a country's, or (`None`) one of nobody who is registered. No answer
    /// means that it is to be closed.
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
        match self.whose {
            Whose::Address(address) => {
                if let Some(usage) = connections.addresses.lock().get_mut(&address) {
                    usage.open -= 1;
                }
            }
            Whose::Country(country) => {
                if let Some(open) = connections.countries.lock().get_mut(&country) {
                    *open -= 1;
                }
            }
        }
    }
}

/// The addresses that one customer of a network can choose from: one of IPv4, 2^64 of IPv6.
fn customer_prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            Ipv6Addr::from(prefix).into()
        }
        v4 => v4,
    }
}
