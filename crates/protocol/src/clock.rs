//! The only source of wall-clock time.
//!
//! Everything that decides by the time of day (validity, days, retention, tags) asks a [`Clock`], so that a
//! test can stand at midnight without waiting for it. Leases are the exception: they use the clock of the
//! database, so that instances with different clocks agree. It is here because the gateway and its clients share it.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use chrono::{DateTime, Utc};

/// Tells the time, in UTC, to the microsecond (what the databases keep).
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still at `time` until [`Clock::set`]; clones show the same time.
    pub fn manual(time: DateTime<Utc>) -> Self {
        Self(Some(Arc::new(AtomicI64::new(time.timestamp_micros()))))
    }

    /// Moves a manual clock, backwards too; the machine's clock is left alone.
    pub fn set(&self, time: DateTime<Utc>) {
        if let Some(micros) = &self.0 {
            micros.store(time.timestamp_micros(), Ordering::SeqCst);
        }
    }

    /// The time now.
    pub fn now(&self) -> DateTime<Utc> {
        let micros = match &self.0 {
            Some(micros) => micros.load(Ordering::SeqCst),
            None => system_micros(),
        };
        DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::UNIX_EPOCH)
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine for the time")]
fn system_micros() -> i64 {
    Utc::now().timestamp_micros()
}
