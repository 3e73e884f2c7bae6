//! How full the pools of connections are.

use std::sync::atomic::Ordering;

use super::{Store, bulk::Bulk};

/// One pool of connections to the database, now.
#[derive(Clone, Copy, Debug)]
pub struct PoolState {
    /// `control` (sea-orm), `bulk` or `log` (mysql_async).
    pub name: &'static str,
    /// Connections that are used.
    pub busy: usize,
    /// Connections that wait to be used.
    pub idle: usize,
    /// Connections that there may be.
    pub max: usize,
}

impl Store {
    /// The pools: one on SQLite, three on MySQL and MariaDB.
    pub fn pools(&self) -> Vec<PoolState> {
        let (size, idle, max) = match &self.bulk {
            Bulk::Sqlite => {
                let pool = self.db.get_sqlite_connection_pool();
                (pool.size(), pool.num_idle(), pool.options().get_max_connections())
            }
            Bulk::MySql { .. } => {
                let pool = self.db.get_mysql_connection_pool();
                (pool.size(), pool.num_idle(), pool.options().get_max_connections())
            }
        };
        let (size, max) = (size as usize, max as usize);
        let mut pools = vec![PoolState { name: "control", busy: size.saturating_sub(idle), idle, max }];
        for (name, pool) in [("bulk", &self.bulk), ("log", &self.log)] {
            let Bulk::MySql { pool, max } = pool else { continue };
            let metrics = pool.metrics();
            let size = metrics.connection_count.load(Ordering::Relaxed);
            let idle = metrics.connections_in_pool.load(Ordering::Relaxed);
            pools.push(PoolState { name, busy: size.saturating_sub(idle), idle, max: *max });
        }
        pools
    }
}
