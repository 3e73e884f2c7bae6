//! A queue in which countries take turns.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use efgs_protocol::country::Country;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::LimitError;

/// Gives out a few places. When they are taken, each country has a queue of its own and the queues take turns:
/// however much one country sends, another one waits for at most one of its pieces of work per place.
#[derive(Clone, Debug)]
pub struct Fair(Arc<Inner>);

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
    lanes: VecDeque<(Country, VecDeque<oneshot::Sender<Place>>)>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Place(Option<Arc<Inner>>);

impl Fair {
    pub(super) fn new(name: &'static str, places: usize) -> Self {
        let state = State { free: places, waiting: 0, lanes: VecDeque::new() };
        Self(Arc::new(Inner { name, state: Mutex::new(state) }))
    }

    /// Waits for a place, at most `patience` long. Where `most` are waiting already, of whichever country, nobody
    /// else waits.
    pub async fn place(
        &self,
        country: Country,
        most: usize,
        patience: Duration,
    ) -> Result<Place, LimitError> {
        let overloaded = LimitError::Overloaded { country, by: self.0.name };
        let place = {
            let mut state = self.0.state.lock();
            if state.free > 0 {
                state.free -= 1;
                return Ok(Place(Some(self.0.clone())));
            }
            if state.waiting >= most {
                return Err(overloaded);
            }
            let (sender, place) = oneshot::channel();
            state.waiting += 1;
            match state.lanes.iter_mut().find(|(whose, _)| *whose == country) {
                Some((_, lane)) => lane.push_back(sender),
                None => state.lanes.push_back((country, VecDeque::from([sender]))),
            }
            place
        };
        match tokio::time::timeout(patience, place).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(overloaded),
        }
    }
}

impl State {
    /// The first of the next country.
    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        let (country, mut lane) = self.lanes.pop_front()?;
        let first = lane.pop_front();
        if !lane.is_empty() {
            self.lanes.push_back((country, lane));
        }
        self.waiting -= 1;
        first
    }
}

impl Drop for Place {
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
                Err(mut place) => drop(place.0.take()),
            }
        }
    }
}
