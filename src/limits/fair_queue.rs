//! A queue that serves the countries in turn.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use efgs_protocol::country::Country;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::LimitError;

/// Hands out a fixed number of permits. When none is free, each country has its own queue and the queues are
/// served in turn: however much one country sends, another waits for at most one of its pieces of work per
/// permit.
#[derive(Clone, Debug)]
pub struct FairQueue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: &'static str,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    waiting: usize,
    /// Non-empty queues. The first one is served next.
    lanes: VecDeque<(Country, VecDeque<oneshot::Sender<Permit>>)>,
}

/// Held until it is dropped.
#[derive(Debug)]
pub struct Permit(Option<Arc<Inner>>);

impl FairQueue {
    pub(super) fn new(name: &'static str, permits: usize) -> Self {
        let state = State { free: permits, waiting: 0, lanes: VecDeque::new() };
        Self(Arc::new(Inner { name, state: Mutex::new(state) }))
    }

    /// Waits for a permit, at most for `patience`. Fails with [`LimitError::Overloaded`] after that, or at once
    /// if `most` requests of any country are already waiting.
    pub async fn permit(
        &self,
        country: Country,
        most: usize,
        patience: Duration,
    ) -> Result<Permit, LimitError> {
        let overloaded = LimitError::Overloaded { country, by: self.0.name };
        let permit = {
            let mut state = self.0.state.lock();
            if state.free > 0 {
                state.free -= 1;
                return Ok(Permit(Some(self.0.clone())));
            }
            if state.waiting >= most {
                return Err(overloaded);
            }
            let (sender, permit) = oneshot::channel();
            state.waiting += 1;
            match state.lanes.iter_mut().find(|(whose, _)| *whose == country) {
                Some((_, lane)) => lane.push_back(sender),
                None => state.lanes.push_back((country, VecDeque::from([sender]))),
            }
            permit
        };
        match tokio::time::timeout(patience, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(overloaded),
        }
    }
}

impl State {
    /// The next waiting request.
    fn next(&mut self) -> Option<oneshot::Sender<Permit>> {
        let (country, mut lane) = self.lanes.pop_front()?;
        let first = lane.pop_front();
        if !lane.is_empty() {
            self.lanes.push_back((country, lane));
        }
        self.waiting -= 1;
        first
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(inner) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = inner.state.lock();
                let next = state.next();
                if next.is_none() {
                    state.free += 1;
                }
                next
            };
            let Some(next) = next else { return };
            // Sent as a permit, so that a receiver that disappears at this moment still releases it.
            match next.send(Self(Some(inner.clone()))) {
                Ok(()) => return,
                // The receiver has gone: pass the permit to the next one.
                Err(mut permit) => drop(permit.0.take()),
            }
        }
    }
}
