//! Which encryption keys the stored payloads need, and replacing payloads by others sealed anew.
//!
//! All keys of an upload are sealed with one encryption key, and are sealed anew from the last position to the
//! first. So the first and the last payload stand for their upload, also when a rotation was interrupted, and
//! also when the next one goes back to the key before.

use sea_orm::{ConnectionTrait, DbErr, QueryResult};

use super::{Lease, Store, StoreError, StoredPayload, error::Failure, sql};

/// Payloads that one transaction replaces: few enough that nobody waits for its locks.
const STEP: usize = 500;

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
    /// Which encryption keys the stored payloads need, ascending; an upload that needs two counts for both. Two
    /// looks at each upload, not one at each key.
    pub async fn encryption_keys(&self) -> Result<Vec<KeyUse>, StoreError> {
        self.repeat("encryption keys", || async {
            let integer = sql::integer(self.backend());
            let sql = format!(
                "SELECT key_id, COUNT(*) AS uploads, CAST(SUM(amount) AS {integer}) AS amount FROM \
                 (SELECT DISTINCT u.id AS upload_id, u.amount AS amount, HEX(SUBSTR(k.payload, 1, 4)) AS key_id \
                 FROM upload u JOIN diagnosis_key k ON k.upload_id = u.id AND k.position IN (0, u.amount - 1)) needed \
                 GROUP BY key_id ORDER BY key_id"
            );
            let mut found = Vec::new();
            for row in self.db.query_all_raw(self.statement(&sql, [])).await? {
                let id: String = row.try_get("", "key_id")?;
                let (uploads, keys): (i64, i64) = (row.try_get("", "uploads")?, row.try_get("", "amount")?);
                found.push(KeyUse {
                    id: u32::from_str_radix(&id, 16).unwrap_or_default(),
                    uploads: uploads.unsigned_abs(),
                    keys: keys.unsigned_abs(),
                });
            }
            Ok(found)
        })
        .await
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
            let sql = "SELECT k.upload_id AS upload_id, k.payload_hash AS payload_hash, k.payload AS payload FROM upload u \
                 JOIN diagnosis_key k ON k.upload_id = u.id AND k.position = 0 \
                 WHERE SUBSTR(k.payload, 1, 4) = ? ORDER BY u.id DESC LIMIT 1";
            let row = self.db.query_one_raw(self.statement(sql, [id.to_be_bytes().to_vec().into()])).await?;
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

    /// The first upload behind `after` that needs another encryption key than `id`.
    pub async fn next_to_rotate(&self, id: u32, after: i64) -> Result<Option<i64>, StoreError> {
        self.repeat("next to rotate", || async {
            let sql = "SELECT u.id AS id FROM upload u \
                 JOIN diagnosis_key k ON k.upload_id = u.id AND k.position IN (0, u.amount - 1) \
                 WHERE u.id > ? AND SUBSTR(k.payload, 1, 4) <> ? ORDER BY u.id LIMIT 1";
            let values = [after.into(), id.to_be_bytes().to_vec().into()];
            match self.db.query_one_raw(self.statement(sql, values)).await? {
                Some(row) => Ok(Some(row.try_get("", "id")?)),
                None => Ok(None),
            }
        })
        .await
    }

    /// Replaces payloads of one upload, all of them and in the order of their positions. A key that has expired
    /// in the meantime stays away.
    pub async fn replace_payloads(
        &self,
        lease: &Lease,
        payloads: &[StoredPayload],
    ) -> Result<(), StoreError> {
        for step in payloads.rchunks(STEP) {
            self.repeat("rotate", || async {
                let tx = self.begin().await?;
                self.fence(&tx, lease).await?;
                for new in step.iter().rev() {
                    let sql = "UPDATE diagnosis_key SET payload = ? WHERE upload_id = ? AND payload_hash = ?";
                    let values =
                        [new.payload.clone().into(), new.upload_id.into(), new.payload_hash.clone().into()];
                    tx.execute_raw(self.statement(sql, values)).await?;
                }
                tx.commit().await?;
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}
