//! Connection limits: how many connections one address and one country may have open, and how fast an address
//! may open them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use efgs_protocol::country::Country;
use parking_lot::Mutex;

use super::{Limits, pace::Pace, refused};

/// When more addresses than this are remembered, idle ones are forgotten.
const REMEMBERED: usize = 4096;

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    addresses: Mutex<HashMap<IpAddr, AddressUse>>,
    /// `None`: all unregistered callers together.
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

/// The prefix that one customer of a network controls: a single IPv4 address, or a /64 of IPv6.
fn customer_prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            Ipv6Addr::from(prefix).into()
        }
        v4 => v4,
    }
}
