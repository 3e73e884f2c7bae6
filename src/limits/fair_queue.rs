//! A queue in which countries take turns.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use efgs_protocol::country::Country;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::LimitError;

/// Gives out a few places. When they are taken, each country has a queue of its own and the queues take turns:
/// however much one country sends, another one waits for at most one of its pieces of work per place.
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
    /// Never empty queues; the next one to be served first.
    lanes: VecDeque<(Country, VecDeque<oneshot::Sender<Permit>>)>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Permit(Option<Arc<Inner>>);

impl FairQueue {
    pub(super) fn new(name: &'static str, permits: usize) -> Self {
        let state = State { free: permits, waiting: 0, lanes: VecDeque::new() };
        Self(Arc::new(Inner { name, state: Mutex::new(state) }))
    }

    /// Waits for a place, at most `patience` long. Where `most` are waiting already, of whichever country, nobody
    /// else waits.
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
    /// The first of the next country.
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
            // Sent as a place, so that it is given back when the other side goes away just now.
            match next.send(Self(Some(inner.clone()))) {
                Ok(()) => return,
                // Gone before: the place is still ours to give.
                Err(mut permit) => drop(permit.0.take()),
            }
        }
    }
}
