//! Which encryption keys the stored payloads need, and replacing payloads by others sealed anew.
//!
//! All payloads of an upload are sealed with one encryption key, which the upload's row names: both are written in one
//! transaction. So the index on the key's id answers what millions of payloads would.

use sea_orm::{ConnectionTrait, DbErr, QueryResult};

use super::{Lease, Store, StoreError, StoredPayload, error::Failure, sql};

/// Payloads that one statement replaces, and about how many bytes: it must fit a packet of every server, and compares
/// each row with all of them.
const ROWS: usize = 250;
const BYTES: usize = 1 << 20;

/// How much is sealed with one encryption key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// The encryption key.
    pub id: u32,
    /// Uploads that need it.
    pub uploads: u64,
    /// Diagnosis keys in them.
    pub keys: u64,
}

impl Store {
    /// How much is sealed with each encryption key, ascending. Looks at each upload in an index.
    pub async fn encryption_keys(&self) -> Result<Vec<KeyUse>, StoreError> {
        self.repeat("encryption keys", || async {
            let integer = sql::integer(self.backend());
            let sql = format!(
                "SELECT key_id, COUNT(*) AS uploads, CAST(SUM(amount) AS {integer}) AS total FROM upload \
                 WHERE key_id >= 0 GROUP BY key_id ORDER BY key_id"
            );
            let mut found = Vec::new();
            for row in self.db.query_all_raw(self.statement(&sql, [])).await? {
                let (uploads, keys): (i64, i64) = (row.try_get("", "uploads")?, row.try_get("", "total")?);
                found.push(KeyUse {
                    id: row.try_get::<i64>("", "key_id")? as u32,
                    uploads: uploads.unsigned_abs(),
                    keys: keys.unsigned_abs(),
                });
            }
            Ok(found)
        })
        .await
    }

    /// Which encryption keys the stored payloads need, ascending. One look-up for each, however much is stored.
    pub async fn keys_in_use(&self) -> Result<Vec<u32>, StoreError> {
        self.repeat("keys in use", || self.find_keys_in_use()).await
    }

    async fn find_keys_in_use(&self) -> Result<Vec<u32>, Failure> {
        let (mut found, mut last) = (Vec::new(), -1_i64);
        loop {
            let sql = "SELECT MIN(key_id) AS next FROM upload WHERE key_id > ?";
            let row = self.db.query_one_raw(self.statement(sql, [last.into()])).await?;
            let Some(next) = row.map(|row| row.try_get("", "next")).transpose()?.flatten() else {
                return Ok(found);
            };
            last = next;
            found.push(last as u32);
        }
    }

    /// The mark of each encryption key that a gateway has had.
    pub async fn key_marks(&self) -> Result<Vec<(u32, Vec<u8>)>, StoreError> {
        self.repeat("key marks", || async {
            let rows =
                self.db.query_all_raw(self.statement("SELECT id, sealed FROM encryption_key", [])).await?;
            let mark =
                |row: &QueryResult| Ok((row.try_get::<i64>("", "id")? as u32, row.try_get("", "sealed")?));
            Ok(rows.iter().map(mark).collect::<Result<_, DbErr>>()?)
        })
        .await
    }

    /// Leaves the mark of a key, unless it has one.
    pub async fn mark_key(&self, id: u32, mark: &[u8]) -> Result<(), StoreError> {
        self.repeat("mark key", || async {
            let sql = "INSERT INTO encryption_key (id, sealed) VALUES (?, ?)";
            let values = [i64::from(id).into(), mark.to_vec().into()];
            match self.db.execute_raw(self.statement(sql, values)).await.map_err(Failure::from) {
                Ok(_) | Err(Failure::Duplicate) => Ok(()),
                Err(failure) => Err(failure),
            }
        })
        .await
    }

    /// A stored payload that is sealed with this encryption key, if there is one.
    pub async fn payload_sealed_with(&self, id: u32) -> Result<Option<StoredPayload>, StoreError> {
        self.repeat("payload of a key", || async {
            let sql = "SELECT upload_id, payload_hash, payload FROM diagnosis_key \
                 WHERE upload_id = (SELECT MAX(id) FROM upload WHERE key_id = ?) ORDER BY position LIMIT 1";
            let row = self.db.query_one_raw(self.statement(sql, [i64::from(id).into()])).await?;
            let payload = |row: QueryResult| {
                Ok::<_, DbErr>(StoredPayload {
                    upload_id: row.try_get("", "upload_id")?,
                    payload_hash: row.try_get("", "payload_hash")?,
                    payload: row.try_get("", "payload")?,
                })
            };
            Ok(row.map(payload).transpose()?)
        })
        .await
    }

    /// The first upload behind `after` that needs another encryption key than `id`. One look-up for each other key:
    /// `key_id <> ?` would read all uploads when there is none.
    pub async fn next_to_rotate(&self, id: u32, after: i64) -> Result<Option<i64>, StoreError> {
        self.repeat("next to rotate", || async {
            let mut first = None;
            for other in self.find_keys_in_use().await?.into_iter().filter(|other| *other != id) {
                let sql = "SELECT MIN(id) AS first FROM upload WHERE key_id = ? AND id > ?";
                let values = [i64::from(other).into(), after.into()];
                let row = self.db.query_one_raw(self.statement(sql, values)).await?;
                let of_key: Option<i64> = row.map(|row| row.try_get("", "first")).transpose()?.flatten();
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
        self.repeat("rotate", || async {
            let tx = self.begin().await?;
            self.fence(&tx, lease).await?;
            self.replace_on(&tx, upload, id, &payloads).await?;
            tx.commit().await?;
            Ok(())
        })
        .await
    }

    /// Replaces all payloads of an upload, found by their hashes, in a transaction: a second one of the same upload
    /// waits for it at the upload's row. One statement for many rows, because the locks are held to the end: 5,000 keys
    /// take about 0.2 s.
    pub(super) async fn replace_on(
        &self,
        tx: &impl ConnectionTrait,
        upload: i64,
        id: u32,
        payloads: &[(&[u8], &[u8])],
    ) -> Result<(), Failure> {
        let sql = "UPDATE upload SET key_id = ? WHERE id = ?";
        tx.execute_raw(self.statement(sql, [i64::from(id).into(), upload.into()])).await?;
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
                 WHERE upload_id = ? AND payload_hash IN ({})",
                "WHEN ? THEN ? ".repeat(some.len()),
                sql::placeholders(some.len())
            );
            let pairs =
                some.iter().flat_map(|(hash, payload)| [hash.to_vec().into(), payload.to_vec().into()]);
            let hashes = some.iter().map(|(hash, _)| hash.to_vec().into());
            let values: Vec<sea_orm::Value> = pairs.chain([upload.into()]).chain(hashes).collect();
            tx.execute_raw(self.statement(&sql, values)).await?;
        }
        Ok(())
    }
}
