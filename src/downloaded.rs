//! What each country has downloaded, so that it is not told what it has (spec §5.6.4).

use std::collections::HashMap;

use efgs_protocol::{batch_tag::ObjectId, country::Country};
use parking_lot::Mutex;

use crate::store::{Store, StoreError};

/// The newest batch that each country has downloaded from this instance. It is written to the database once a
/// second at most, not with each download.
#[derive(Debug, Default)]
pub struct Downloaded(Mutex<HashMap<Country, Newest>>);

#[derive(Clone, Copy, Debug)]
struct Newest {
    batch: ObjectId,
    recorded: bool,
}

impl Downloaded {
    /// A country has got this batch.
    pub fn note(&self, country: Country, batch: ObjectId) {
        let mut all = self.0.lock();
        let newest = all.entry(country).or_insert(Newest { batch, recorded: false });
        if newest.batch < batch {
            *newest = Newest { batch, recorded: false };
        }
    }

    /// The newest that a country has got.
    pub fn newest(&self, country: Country) -> Option<ObjectId> {
        self.0.lock().get(&country).map(|newest| newest.batch)
    }

    /// Writes down what is new.
    pub async fn record(&self, store: &Store) -> Result<(), StoreError> {
        let new: Vec<(Country, ObjectId)> =
            self.0.lock().iter().filter(|(_, n)| !n.recorded).map(|(c, n)| (*c, n.batch)).collect();
        if new.is_empty() {
            return Ok(());
        }
        store.record_downloads(&new).await?;
        let mut all = self.0.lock();
        for (country, batch) in new {
            if let Some(newest) = all.get_mut(&country).filter(|newest| newest.batch == batch) {
                newest.recorded = true;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Downloaded;
    use efgs_protocol::{batch_tag::ObjectId, country::Country};

    #[test]
    fn an_older_batch_changes_nothing() -> Result<(), Box<dyn std::error::Error>> {
        let (nl, id) = (Country::new("NL")?, |n| ObjectId::from_bytes([n; 12]));
        let downloaded = Downloaded::default();
        assert_eq!(downloaded.newest(nl), None);
        for (batch, newest) in [(3, 3), (2, 3), (4, 4)] {
            downloaded.note(nl, id(batch));
            assert_eq!(downloaded.newest(nl), Some(id(newest)));
        }
        assert_eq!(downloaded.newest(Country::new("DE")?), None);
        Ok(())
    }
}
