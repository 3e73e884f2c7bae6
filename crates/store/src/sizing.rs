//! Whether the server's memory is large enough for what is stored.

use sea_orm::DatabaseBackend;

use super::{
    Store, StoreError,
    row::{row, values},
};

/// Bytes of the index that decides whether a key is new, for each stored key. It is read and written in random order.
const INDEX_BYTES: u64 = 60;
/// Smaller redo logs make the server write changed pages to the disk all the time.
const REDO_BYTES: u64 = 1 << 30;
/// With fewer keys every setting is large enough.
const MANY: u64 = 1_000_000;

row! {
    /// What decides how fast uploads stay on a full database.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Sizing {
        /// Bytes of the buffer pool.
        pool: u64,
        /// Bytes of the redo log.
        redo: u64,
        /// Keys that are stored, about.
        keys: u64,
    }
}

impl Sizing {
    /// Which settings are too small, and what to do.
    pub fn too_small(&self) -> Vec<String> {
        let needed = self.keys * INDEX_BYTES;
        let mut all = Vec::new();
        if self.keys >= MANY && self.pool < needed {
            all.push(format!(
                "the database's buffer pool of {} is smaller than the index of {} stored keys, which makes uploads slow: \
                 set innodb_buffer_pool_size to {} or more",
                mib(self.pool),
                self.keys,
                mib(needed)
            ));
        }
        if self.keys >= MANY && self.redo < REDO_BYTES {
            all.push(format!(
                "the database's redo log of {} makes uploads slow: set innodb_redo_log_capacity (MySQL) or \
                 innodb_log_file_size (MariaDB) to {} or more",
                mib(self.redo),
                mib(REDO_BYTES)
            ));
        }
        all
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

impl Store {
    /// The server's settings and how much is stored; none on SQLite.
    pub async fn sizing(&self) -> Result<Option<Sizing>, StoreError> {
        if self.backend() == DatabaseBackend::Sqlite {
            return Ok(None);
        }
        let sql = "SELECT CAST(@@innodb_buffer_pool_size AS SIGNED), \
                   CAST(/*!80030 @@innodb_redo_log_capacity */ /*M! @@innodb_log_file_size */ AS SIGNED), \
                   CAST((SELECT table_rows FROM information_schema.tables WHERE table_schema = DATABASE() \
                   AND table_name = 'key_hash') AS SIGNED)";
        self.row("look at settings", sql, values![]).await
    }
}

#[cfg(test)]
mod tests {
    use super::Sizing;

    #[test]
    fn a_small_pool_or_redo_log_is_reported_once_there_are_many_keys() {
        let (mib, gib) = (1 << 20, 1 << 30);
        let reported = |pool, redo, keys| Sizing { pool, redo, keys }.too_small();
        assert_eq!(reported(128 * mib, 100 * mib, 999_999), Vec::<String>::new());
        assert_eq!(reported(2 * gib, gib, 31_000_000), Vec::<String>::new());
        let small = reported(gib, gib, 31_000_000);
        assert!(small.len() == 1 && small[0].contains("innodb_buffer_pool_size to 1774 MiB"), "{small:?}");
        let small = reported(2 * gib, 100 * mib, 1_000_000);
        assert!(small.len() == 1 && small[0].contains("redo log of 100 MiB"), "{small:?}");
        assert_eq!(reported(mib, mib, 1_000_000).len(), 2);
    }
}
