//! Deleting old records without breaking the proof.
//!
//! Before the first records of a chain are deleted, a statement says up to which one, and with which hash it
//! ends there; what is left is verified from that point. The same is done for the list of statements itself.
//!
//! What is deleted can no longer be verified, so it is verified first: signing a cut over tampered records would
//! legitimise them. The operator can force it with a reason, which the statement then contains.

use std::{collections::HashSet, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    AccessLog, ChainEnd, Statement, StatementKind,
    verify::{Finding, VerificationReport, past},
};
use crate::{
    health::{Health, JobWatch, Severity},
    jobs::{self, Shutdown},
    store::{Job, Lease, StoreError},
};

/// How much a run deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Records of requests.
    pub records: u64,
    /// Statements.
    pub statements: u64,
}

/// Why old records or statements were not deleted.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not as it was written. Everything else was deleted.
    #[error(
        "an old part of the access log is not as it was written and stays ({faults} faults, the first is {first}): look with \
         `efgs-gateway access-log verify`, keep what proves it, then delete it with \
         `efgs-gateway access-log expire --although REASON`"
    )]
    Unsound {
        /// How many faults there are.
        faults: u64,
        /// The first of them.
        first: Finding,
    },
}

impl AccessLog {
    /// The job, until the gateway stops.
    pub async fn run_retention(self: Arc<Self>, every: Duration, health: Arc<Health>, shutdown: Shutdown) {
        let pace = Duration::from_secs(60).min(every);
        // Old records that stay because they were changed must not make the gateways unready: otherwise write access to
        // the database would suffice to stop them.
        let watch = health.watch_with(Job::AccessLog.name(), every, Severity::Attention);
        jobs::repeat(watch.clone(), pace, shutdown, std::future::pending, || self.turn(every, &watch)).await;
    }

    async fn turn(&self, every: Duration, watch: &JobWatch) -> Result<(), RetentionError> {
        let overdue = self.store.overdue(Job::AccessLog).await?;
        watch.set_overdue(overdue);
        if overdue.is_none() {
            return Ok(());
        }
        let Some(lease) = self.store.acquire_lease(Job::AccessLog).await? else { return Ok(()) };
        jobs::under_lease(&self.store, lease, async |lease| {
            self.forget(lease, None).await?;
            self.store.set_due(lease, every).await?;
            watch.set_overdue(None);
            Ok(())
        })
        .await
    }

    /// Deletes now all that is too old; waits for the lease. With a reason also what is not as it was written: the
    /// statements about it say why.
    pub async fn forget_now(&self, although: Option<&str>) -> Result<Forgotten, RetentionError> {
        let lease = jobs::wait_for_lease(&self.store, Job::AccessLog).await?;
        jobs::under_lease(&self.store, lease, async |lease| self.forget(lease, although).await).await
    }

    /// What arrived, or was stated, before this time is forgotten.
    pub fn horizon(&self) -> Option<DateTime<Utc>> {
        let retention = TimeDelta::from_std(self.settings.retention).unwrap_or(TimeDelta::MAX);
        self.clock.now().checked_sub_signed(retention)
    }

    async fn forget(&self, lease: &Lease, although: Option<&str>) -> Result<Forgotten, RetentionError> {
        let Some(before) = self.horizon() else { return Ok(Forgotten::default()) };
        let (store, evidence) = (&self.store, self.evidence());
        let (mut done, mut all) = (Forgotten::default(), VerificationReport::default());
        // Chains before statements: each chain begins with one.
        let instances = store.logged_instances().await?;
        let past = past::walk(store, evidence, before).await?;
        for instance in &instances {
            let mut report = VerificationReport::default();
            let Some(old) = past.records(store, evidence, instance, before, &mut report).await? else {
                continue;
            };
            let sound = report.faults == 0;
            all.append(report);
            if !sound && although.is_none() {
                continue;
            }
            // An interrupted run may have stated it already.
            if !sound || !old.said {
                let statement = Statement::new(StatementKind::Cut, instance, &old.end, self.clock.now());
                let although = although.filter(|_| !sound).map(str::to_owned);
                self.append(&Statement { although, ..statement }).await?;
            }
            loop {
                match store.forget_records(lease, instance, old.end.sequence).await? {
                    0 => break,
                    records => done.records += records,
                }
            }
        }
        done.statements = self.trim(lease, &past, &mut all, although).await?;
        if done != Forgotten::default() {
            tracing::info!(records = done.records, statements = done.statements, %before, "old parts of the access log were deleted");
        }
        match all.findings.into_iter().next() {
            Some(first) if although.is_none() => Err(RetentionError::Unsound { faults: all.faults, first }),
            _ => Ok(done),
        }
    }

    /// Deletes statements that are too old, except what the records that are left are verified from.
    async fn trim(
        &self,
        lease: &Lease,
        past: &past::OldStatements,
        all: &mut VerificationReport,
        although: Option<&str>,
    ) -> Result<u64, RetentionError> {
        let store = &self.store;
        let mut live: HashSet<String> = store.logged_instances().await?.into_iter().collect();
        // A chain without records is live as long as its gateway runs, even if it gets no requests.
        live.extend(store.instances().await?.into_iter().map(|known| known.instance.id));
        live.insert(self.instance.id.clone());
        let mut report = VerificationReport::default();
        let first = past.statements(store, self.evidence(), &live, &mut report).await?;
        let Some(first) = first else { return Ok(0) };
        let sound = report.faults == 0;
        all.append(report);
        if !sound && although.is_none() {
            return Ok(0);
        }
        let statement =
            Statement::new(StatementKind::Trim, &self.instance.id, &ChainEnd::default(), self.clock.now());
        let although = although.filter(|_| !sound).map(str::to_owned);
        self.append(&Statement { sequence: first, although, ..statement }).await?;
        let mut deleted = 0;
        loop {
            match store.forget_statements(lease, first).await? {
                0 => return Ok(deleted),
                statements => deleted += statements,
            }
        }
    }
}
