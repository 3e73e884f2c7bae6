//! Leases: which instance does a job.
//!
//! A lease is a row with an owner, a token and an expiry, taken with one conditional UPDATE whose count
//! decides. Locks of the database would not do: on a Galera cluster they are local to a node. The token
//! fences: whatever a job writes, it writes in a transaction that first proves that its lease still holds.
//!
//! A database that dies while a lease is taken or given back leaves it unknown whether that was done. So an owner
//! is a name that this process uses again once nobody in it works under that name, and a lease can be taken from
//! its own name: otherwise a job would rest for a whole [`LEASE_TERM`] after a failover.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use sea_orm::Value;

use efgs_kit::health::LEASE_TERM;

use super::{
    Store, StoreError,
    error::Failure,
    row::values,
    sql,
    tx::{Queries, Tx},
};

/// The jobs that only one instance does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Forming batches.
    Batching,
    /// Deleting what is too old.
    Expiry,
    /// Sealing stored payloads with another key.
    Rotation,
    /// Writing to the journal what is not in it yet.
    Journal,
    /// Deleting what is too old of the access log.
    AccessLog,
}

impl Job {
    /// The name of the job's row.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batching => "batching",
            Self::Expiry => "expiry",
            Self::Rotation => "rotation",
            Self::Journal => "journal",
            Self::AccessLog => "access-log",
        }
    }
}

/// Proof that this instance may do a job, until it is released or expires.
#[derive(Debug)]
pub struct Lease {
    owner: Name,
    token: i64,
}

/// The names under which this process holds leases or has tried to, without those that are in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(Arc<Mutex<Vec<(Job, String)>>>);

impl Names {
    /// A name for a job that nobody else in this process has while it lives.
    fn lend(&self, job: Job) -> Name {
        let mut free = self.0.lock();
        let text = match free.iter().position(|(of, _)| *of == job) {
            Some(at) => free.swap_remove(at).1,
            None => efgs_protocol::random::hex::<16>(),
        };
        Name { job, text, names: self.clone() }
    }
}

/// One of them, until it is dropped.
#[derive(Debug)]
struct Name {
    job: Job,
    text: String,
    names: Names,
}

impl Drop for Name {
    fn drop(&mut self) {
        let mut free = self.names.0.lock();
        free.push((self.job, std::mem::take(&mut self.text)));
    }
}

impl Lease {
    /// What proves it: the values of `name = ? AND owner = ? AND token = ?`.
    fn key(&self) -> Vec<Value> {
        values![self.owner.job.name(), self.owner.text.as_str(), self.token]
    }
}

impl Store {
    /// Takes the lease of a job, or says `None` when somebody else has it.
    pub async fn acquire_lease(&self, job: Job) -> Result<Option<Lease>, StoreError> {
        let owner = self.lease_names.lend(job);
        let name = owner.text.as_str();
        let token = self
            .repeat("acquire lease", || async {
                let sql = format!(
                    "UPDATE job SET owner = ?, token = token + 1, expires_at = {now} + ? \
                     WHERE name = ? AND (owner IS NULL OR owner = ? OR expires_at <= {now})",
                    now = sql::now_ms(self.backend())
                );
                if self.db.run(&sql, values![name, LEASE_TERM, job.name(), name]).await? == 0 {
                    return Ok(None);
                }
                let sql = "SELECT token FROM job WHERE name = ? AND owner = ?";
                self.db.row(sql, values![job.name(), name]).await
            })
            .await?;
        Ok(token.map(|token| Lease { owner, token }))
    }

    /// Gives the lease back; another instance can take it at once.
    pub async fn release_lease(&self, lease: Lease) -> Result<(), StoreError> {
        let sql = "UPDATE job SET owner = NULL, expires_at = 0 WHERE name = ? AND owner = ? AND token = ?";
        self.run("release lease", sql, lease.key()).await?;
        Ok(())
    }

    /// Whether the job's interval has passed since it was last done, on whichever instance.
    pub async fn is_due(&self, job: Job) -> Result<bool, StoreError> {
        Ok(self.overdue(job).await?.is_some())
    }

    /// For how long the job has been due without any instance having done it; `None` when it is not due. A job that was
    /// never done is due from now on.
    pub async fn overdue(&self, job: Job) -> Result<Option<Duration>, StoreError> {
        let sql = format!(
            "SELECT CASE due_at WHEN 0 THEN 0 ELSE {now} - due_at END FROM job WHERE name = ? AND due_at <= {now}",
            now = sql::now_ms(self.backend())
        );
        self.row("job due", &sql, values![job.name()]).await
    }

    /// Records that the job has been done, and that it is next due after `interval`.
    pub async fn set_due(&self, lease: &Lease, interval: Duration) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE job SET due_at = {} + ? WHERE name = ? AND owner = ? AND token = ?",
            sql::now_ms(self.backend())
        );
        self.run("job done", &sql, [values![interval], lease.key()].concat()).await?;
        Ok(())
    }

    /// The job is due within `interval` at the latest: what was set with a longer one counts no more.
    pub async fn shorten_due(&self, job: Job, interval: Duration) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE job SET due_at = {now} + ? WHERE name = ? AND due_at > {now} + ?",
            now = sql::now_ms(self.backend())
        );
        self.run("shorten interval", &sql, values![interval, job.name(), interval]).await?;
        Ok(())
    }

    /// A step of a job that writes nothing to the database itself: proves that its lease still holds, and prolongs it.
    pub async fn prolong(&self, lease: &Lease) -> Result<(), StoreError> {
        self.repeat("prolong lease", || self.prove(lease)).await
    }

    /// One attempt of it.
    pub(super) async fn prove(&self, lease: &Lease) -> Result<(), Failure> {
        let prove = self.tx_once(|mut tx| async move {
            tx.fence(lease).await?;
            Ok(tx.commit(()))
        });
        prove.await
    }

    pub(super) fn backend(&self) -> sea_orm::DatabaseBackend {
        self.db.get_database_backend()
    }
}

impl Tx<'_> {
    /// First step of every transaction of a job: proves that the lease still holds and prolongs it. The row stays
    /// locked until the end of the transaction, so two holders can never write at once.
    pub(super) async fn fence(&mut self, lease: &Lease) -> Result<(), Failure> {
        let sql = format!(
            "UPDATE job SET expires_at = {} + ? WHERE name = ? AND owner = ? AND token = ?",
            sql::now_ms(self.store.backend())
        );
        match self.run(&sql, [values![LEASE_TERM], lease.key()].concat()).await? {
            0 => Err(Failure::LeaseLost),
            _ => Ok(()),
        }
    }
}
