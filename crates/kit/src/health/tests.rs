#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::time::Duration;

use super::{Health, JobState};
use crate::clock::Clock;

const SECOND: Duration = Duration::from_secs(1);

fn health() -> Health {
    Health::new(Clock::system(), SECOND)
}

fn job(health: &Health) -> JobState {
    health.jobs().pop().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_job_is_stalled_after_three_of_its_intervals_without_progress() {
    let health = health();
    let watch = health.watch("batching", 300 * SECOND);
    tokio::time::advance(900 * SECOND).await;
    assert_eq!(job(&health).stalled, None);
    watch.failed("the database is unreachable".into());
    tokio::time::advance(SECOND).await;
    let expected = "the job batching has made no progress for 15 min: the database is unreachable";
    assert_eq!(job(&health).stalled.map(|warning| warning.text).as_deref(), Some(expected));
    watch.progressed();
    assert_eq!((job(&health).stalled, job(&health).last_error), (None, None));
}

#[tokio::test(start_paused = true)]
async fn work_that_no_instance_has_done_is_noticed_by_those_that_stand_by() {
    let health = health();
    let watch = health.watch("expiry", 60 * SECOND);
    watch.set_overdue(Some(100 * SECOND));
    watch.progressed();
    assert_eq!(job(&health).stalled, None);
    // Two intervals after it was due it has not been done for three.
    tokio::time::advance(21 * SECOND).await;
    watch.progressed();
    let expected = "no instance has done the job expiry, which is overdue by 2 min";
    assert_eq!(job(&health).stalled.map(|warning| warning.text).as_deref(), Some(expected));
    watch.set_overdue(None);
    assert_eq!(job(&health).stalled, None);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_a_dead_instance_left_behind_is_waited_for() {
    let health = health();
    let watch = health.watch("batching", SECOND);
    watch.set_overdue(Some(31 * SECOND));
    assert_eq!(job(&health).stalled, None);
    tokio::time::advance(SECOND).await;
    assert!(job(&health).stalled.is_some());
}

#[tokio::test(start_paused = true)]
async fn an_interval_is_never_shorter_than_one_operation_on_the_database() {
    let health = health();
    let _watch = health.watch("callbacks", SECOND / 10);
    tokio::time::advance(3 * SECOND).await;
    assert_eq!(job(&health).stalled, None);
    tokio::time::advance(SECOND).await;
    assert!(job(&health).stalled.is_some());
}
