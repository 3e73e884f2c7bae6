//! Forgetting old records without breaking the proof.
//!
//! Before the first records of a chain are deleted, a statement says up to which one, and with which hash it
//! ends there; what is left is verified from that point. The same is done for the list of statements itself.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};

use super::{Kind, Statement};
use crate::{
    app::App,
    health::JobWatch,
    jobs::{self, Shutdown},
    store::{ChainEnd, Job, Lease, StoreError},
};

/// What a run deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Records of requests.
    pub records: u64,
    /// Statements.
    pub statements: u64,
}

/// The job, until the gateway stops.
pub async fn run(app: Arc<App>, shutdown: Shutdown) {
    let pace = std::time::Duration::from_secs(60).min(app.config.retention.interval);
    let watch = app.health.watch(Job::AccessLog.name(), app.config.retention.interval);
    jobs::repeat(watch.clone(), pace, shutdown, std::future::pending, || turn(&app, &watch)).await;
}

async fn turn(app: &App, watch: &JobWatch) -> Result<(), StoreError> {
    let overdue = app.store.overdue(Job::AccessLog).await?;
    watch.set_overdue(overdue);
    if overdue.is_none() {
        return Ok(());
    }
    let Some(lease) = app.store.acquire_lease(Job::AccessLog).await? else { return Ok(()) };
    jobs::under_lease(&app.store, lease, async |lease| {
        forget(app, lease).await?;
        app.store.set_due(lease, app.config.retention.interval).await?;
        watch.set_overdue(None);
        Ok(())
    })
    .await
}

/// Deletes now all that is too old; waits for the lease.
pub async fn forget_now(app: &App) -> Result<Forgotten, StoreError> {
    let lease = jobs::wait_for_lease(&app.store, Job::AccessLog).await?;
    jobs::under_lease(&app.store, lease, async |lease| forget(app, lease).await).await
}

async fn forget(app: &App, lease: &Lease) -> Result<Forgotten, StoreError> {
    let retention = TimeDelta::from_std(app.config.access_log.retention).unwrap_or(TimeDelta::MAX);
    let Some(before) = app.clock.now().checked_sub_signed(retention) else { return Ok(Forgotten::default()) };
    let mut done = Forgotten::default();
    for instance in app.store.logged_instances().await? {
        let Some(end) = app.store.last_outdated(&instance, before).await? else { continue };
        // A run that was cut off has said it already.
        let said = app.store.newest_cut(&instance).await?.is_some_and(|cut| cut.sequence >= end.sequence);
        if !said {
            let statement = Statement::new(Kind::Cut, &instance, &end, app.clock.now());
            app.access_log.append(&app.store, &statement).await?;
        }
        loop {
            match app.store.forget_records(lease, &instance, end.sequence).await? {
                0 => break,
                records => done.records += records,
            }
        }
    }
    done.statements = trim(app, lease, before).await?;
    if done != Forgotten::default() {
        tracing::info!(records = done.records, statements = done.statements, %before, "what was too old of the access log was deleted");
    }
    Ok(done)
}

/// Deletes statements that are too old, except what the records that are left are verified from.
async fn trim(app: &App, lease: &Lease, before: DateTime<Utc>) -> Result<u64, StoreError> {
    let mut live: HashMap<String, i64> =
        app.store.logged_instances().await?.into_iter().map(|instance| (instance, i64::MAX)).collect();
    let (mut end, mut from) = (None, 1);
    'list: loop {
        let page = app.store.statements_from(from, 1000).await?;
        let Some(last) = page.last() else { break };
        from = last.number.saturating_add(1);
        for statement in &page {
            if statement.at.is_none_or(|at| at >= before) {
                break 'list;
            }
            end = Some(statement.number);
            if let Some(from) = live.get_mut(&statement.instance)
                && (*from == i64::MAX || statement.kind == Kind::Cut.as_str())
            {
                *from = statement.number;
            }
        }
    }
    // The first statement that stays.
    let Some(first) = end.map(|end| live.values().copied().fold(end + 1, i64::min)) else { return Ok(0) };
    if app.store.statements_from(1, 1).await?.first().is_none_or(|oldest| oldest.number >= first) {
        return Ok(0);
    }
    let statement = Statement::new(Kind::Trim, &app.instance.id, &ChainEnd::default(), app.clock.now());
    let statement = Statement { sequence: first, ..statement };
    app.access_log.append(&app.store, &statement).await?;
    let mut deleted = 0;
    loop {
        match app.store.forget_statements(lease, first).await? {
            0 => return Ok(deleted),
            statements => deleted += statements,
        }
    }
}
