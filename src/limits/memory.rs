//! Memory for the bodies of requests.

use std::{collections::HashMap, sync::Arc};

use efgs_protocol::country::Country;
use parking_lot::Mutex;

use super::LimitError;

/// Counts the memory of bodies that are being received or stored. Nothing waits for memory: a request that
/// cannot have it is refused, and what has been received of its body is freed.
#[derive(Debug)]
pub(super) struct Memory {
    total: u64,
    /// The limit of one country.
    share: u64,
    held: Mutex<HashMap<Country, u64>>,
}

/// The memory of one body, until it is dropped.
#[derive(Debug)]
pub struct Held {
    memory: Arc<Memory>,
    country: Country,
    bytes: u64,
}

impl Memory {
    pub(super) fn new(total: u64, share: u64) -> Arc<Self> {
        Arc::new(Self { total, share, held: Mutex::default() })
    }

    pub(super) fn nothing(self: &Arc<Self>, country: Country) -> Held {
        Held { memory: self.clone(), country, bytes: 0 }
    }
}

impl Held {
    /// Takes `bytes` more. Fails if its country or the instance has no more.
    pub fn grow(&mut self, bytes: u64) -> Result<(), LimitError> {
        let Memory { total, share, .. } = *self.memory;
        let country = self.country;
        let mut held = self.memory.held.lock();
        let all: u64 = held.values().sum();
        let own = held.entry(country).or_default();
        if *own + bytes > share {
            return Err(LimitError::Memory { country, share });
        }
        if all + bytes > total {
            return Err(LimitError::Overloaded { country, by: "memory" });
        }
        *own += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(own) = self.memory.held.lock().get_mut(&self.country) {
            *own -= self.bytes;
        }
    }
}
