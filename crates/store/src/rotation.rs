//! Which encryption keys the stored payloads need, and replacing payloads by others sealed anew.
//!
//! All payloads of an upload are sealed with one encryption key, which the upload's row names: both are written in one
//! transaction. So the index on the key's id answers what millions of payloads would.

use super::{
    Lease, Store, StoreError, StoredPayload,
    error::Failure,
    row::{Bind, Table, row, values},
    sql,
    tx::{Queries, Tx, unless_taken},
};

/// Payloads that one statement replaces, and about how many bytes: it must fit a packet of every server, and compares
/// each row with all of them.
const ROWS: usize = 250;
const BYTES: usize = 1 << 20;

row! {
    /// How much is sealed with one encryption key.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct KeyUse {
        /// The encryption key.
        id: u32,
        /// Uploads that need it.
        uploads: u64,
        /// Diagnosis keys in them.
        keys: u64,
    }
}

impl Store {
    /// How much is sealed with each encryption key, ascending. Looks at each upload in an index.
    pub async fn encryption_keys(&self) -> Result<Vec<KeyUse>, StoreError> {
        let sql = format!(
            "SELECT key_id, COUNT(*), CAST(SUM(amount) AS {}) FROM upload WHERE key_id >= 0 \
             GROUP BY key_id ORDER BY key_id",
            sql::integer(self.backend())
        );
        self.rows("encryption keys", &sql, values![]).await
    }

    /// Which encryption keys the stored payloads need, ascending. One look-up for each, however much is stored.
    pub async fn keys_in_use(&self) -> Result<Vec<u32>, StoreError> {
        self.repeat("keys in use", || self.find_keys_in_use()).await
    }

    async fn find_keys_in_use(&self) -> Result<Vec<u32>, Failure> {
        let (mut found, mut last) = (Vec::new(), -1_i64);
        loop {
            let sql = "SELECT MIN(key_id) FROM upload WHERE key_id > ?";
            let Some(next) = self.db.row(sql, values![last]).await?.flatten() else { return Ok(found) };
            last = next;
            found.push(last as u32);
        }
    }

    /// The mark of each encryption key that a gateway has had.
    pub async fn key_marks(&self) -> Result<Vec<(u32, Vec<u8>)>, StoreError> {
        self.rows("key marks", "SELECT id, sealed FROM encryption_key", values![]).await
    }

    /// Leaves the mark of a key, unless it has one.
    pub async fn mark_key(&self, id: u32, mark: &[u8]) -> Result<(), StoreError> {
        self.repeat("mark key", || async {
            let sql = "INSERT INTO encryption_key (id, sealed) VALUES (?, ?)";
            unless_taken(self.db.run(sql, values![id, mark]).await)?;
            Ok(())
        })
        .await
    }

    /// A stored payload that is sealed with this encryption key, if there is one.
    pub async fn payload_sealed_with(&self, id: u32) -> Result<Option<StoredPayload>, StoreError> {
        let newest = "SELECT MAX(id) FROM upload WHERE key_id = ?";
        let Some::<i64>(upload) = self.row("payload of a key", newest, values![id]).await?.flatten() else {
            return Ok(None);
        };
        let day = sql::day_of_upload(self.backend());
        let sql =
            StoredPayload::select(&format!("WHERE day = {day} AND upload_id = ? ORDER BY position LIMIT 1"));
        self.row::<StoredPayload>("payload of a key", &sql, values![upload, upload]).await
    }

    /// The first upload behind `after` that needs another encryption key than `id`. One look-up for each other key:
    /// `key_id <> ?` would read all uploads when there is none.
    pub async fn next_to_rotate(&self, id: u32, after: i64) -> Result<Option<i64>, StoreError> {
        self.repeat("next to rotate", || async {
            let mut first = None;
            for other in self.find_keys_in_use().await?.into_iter().filter(|other| *other != id) {
                let sql = "SELECT MIN(id) FROM upload WHERE key_id = ? AND id > ?";
                let of_key: Option<i64> = self.db.row(sql, values![other, after]).await?.flatten();
                first = first.into_iter().chain(of_key).min();
            }
            Ok(first)
        })
        .await
    }

    /// Replaces all payloads of an upload, by others that are sealed with the encryption key `id`. A key that has
    /// expired in the meantime stays away.
    pub async fn replace_payloads(
        &self,
        lease: &Lease,
        upload: i64,
        id: u32,
        payloads: &[StoredPayload],
    ) -> Result<(), StoreError> {
        let payloads: Vec<_> =
            payloads.iter().map(|new| (new.payload_hash.as_slice(), new.payload.as_slice())).collect();
        let payloads = &payloads;
        self.tx("rotate", |mut tx| async move {
            tx.fence(lease).await?;
            tx.replace_payloads(upload, id, payloads).await?;
            Ok(tx.commit(()))
        })
        .await
    }
}

impl Tx<'_> {
    /// Replaces all payloads of an upload, found by their hashes, in a transaction: a second one of the same upload
    /// waits for it at the upload's row. One statement for many rows, because the locks are held to the end: 5,000 keys
    /// take about 0.2 s.
    pub(super) async fn replace_payloads(
        &mut self,
        upload: i64,
        id: u32,
        payloads: &[(&[u8], &[u8])],
    ) -> Result<(), Failure> {
        self.run("UPDATE upload SET key_id = ? WHERE id = ?", values![id, upload]).await?;
        // From here on no batch moves its keys to another day.
        let day = format!("{} AS day", sql::day_of_upload(self.store.backend()));
        let Some::<u16>(day) = self.row(&format!("SELECT {day}"), values![upload]).await?.flatten() else {
            return Ok(());
        };
        let mut left = payloads;
        while !left.is_empty() {
            let mut bytes = 0;
            let fits = left.iter().take(ROWS).take_while(|(_, payload)| {
                bytes += payload.len();
                bytes <= BYTES
            });
            let (some, rest) = left.split_at(fits.count().max(1));
            left = rest;
            let sql = format!(
                "UPDATE diagnosis_key SET payload = CASE payload_hash {} ELSE payload END \
                 WHERE day = ? AND upload_id = ? AND payload_hash IN ({})",
                "WHEN ? THEN ? ".repeat(some.len()),
                sql::placeholders(some.len())
            );
            let pairs = some.iter().flat_map(|(hash, payload)| [hash.bind(), payload.bind()]);
            let hashes = some.iter().map(|(hash, _)| hash.bind());
            self.run(&sql, pairs.chain(values![day, upload]).chain(hashes).collect()).await?;
        }
        Ok(())
    }
}
