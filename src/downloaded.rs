//! What each country has downloaded, so that callbacks skip batches that it already has (spec §5.6.4).

use std::collections::HashMap;

use efgs_protocol::{batch_tag::ObjectId, country::Country};
use parking_lot::Mutex;

use crate::store::{Store, StoreError};

/// The newest batch that each country has downloaded from this instance. Written to the database at most once
/// per second, not with each download.
#[derive(Debug, Default)]
pub struct Downloaded(Mutex<HashMap<Country, Newest>>);

#[derive(Clone, Copy, Debug)]
struct Newest {
    batch: ObjectId,
    recorded: bool,
}

impl Downloaded {
    /// Records that a country has downloaded this batch.
    pub fn note(&self, country: Country, batch: ObjectId) {
        let mut all = self.0.lock();
        let newest = all.entry(country).or_insert(Newest { batch, recorded: false });
        if newest.batch < batch {
            *newest = Newest { batch, recorded: false };
        }
    }

    /// The newest batch that a country has downloaded.
    pub fn newest(&self, country: Country) -> Option<ObjectId> {
        self.0.lock().get(&country).map(|newest| newest.batch)
    }

    /// Writes the changes to the database.
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
