#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::http::Method;
use chrono::NaiveDate;
use efgs_protocol::country::Country;

use super::{Arrival, FairQueue, Kind, LimitError, Limits, memory::Memory, pace::Pace};
use crate::{config::Config, intake::Usage};

const LONG: Duration = Duration::from_secs(60);

fn country(code: &str) -> Country {
    code.parse().unwrap()
}

fn limits(more: &str) -> Arc<Limits> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.toml");
    let text = "[tls]\ncertificate = \"a\"\nprivate_key = \"b\"\n[database]\nurl = \"sqlite:x\"\n\
                [trust]\nanchor = \"c\"\n[encryption]\nkeys = [{ id = 1, file = \"d\" }]\n";
    std::fs::write(&path, format!("{text}{more}")).unwrap();
    Limits::new(&Config::load(&path).unwrap(), 2, 1)
}

#[test]
fn a_pace_lets_a_burst_through_and_then_one_after_the_other() {
    let mut pace = Pace::new(10.0, 3);
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let ms = Duration::from_millis;
    for _ in 0..3 {
        assert_eq!(pace.take(start, LONG), Ok(Duration::ZERO));
    }
    // Each request gets its own time, in the order of arrival.
    assert_eq!(pace.take(start, LONG), Ok(ms(100)));
    assert_eq!(pace.take(at(50), LONG), Ok(ms(150)));
    // A refused request is not counted.
    for _ in 0..5 {
        assert_eq!(pace.take(at(50), ms(100)), Err(ms(250)));
    }
    assert_eq!(pace.take(at(50), ms(250)), Ok(ms(250)));
    assert!(!pace.is_rested(at(599)));
    assert!(pace.is_rested(at(600)));
    for _ in 0..3 {
        assert_eq!(pace.take(at(600), LONG), Ok(Duration::ZERO));
    }
    assert_eq!(pace.take(at(600), LONG), Ok(ms(100)));
}

/// Waits for a permit and reports it.
fn wait(
    fair: &FairQueue,
    code: &'static str,
    order: &tokio::sync::mpsc::UnboundedSender<(&'static str, super::Permit)>,
) -> tokio::task::JoinHandle<()> {
    let (fair, order) = (fair.clone(), order.clone());
    tokio::spawn(async move {
        let permit = fair.permit(country(code), 5, LONG).await.unwrap();
        order.send((code, permit)).unwrap();
    })
}

#[tokio::test]
async fn countries_take_turns_whatever_one_of_them_has_waiting() {
    let fair = FairQueue::new("test", 1);
    let (order, mut permits) = tokio::sync::mpsc::unbounded_channel();
    let first = fair.permit(country("DE"), 5, LONG).await.unwrap();
    let mut waiting = Vec::new();
    for code in ["DE", "DE", "DE", "NL", "IT"] {
        waiting.push(wait(&fair, code, &order));
        tokio::task::yield_now().await;
    }
    // The queue is full, for every country.
    for code in ["DE", "ES"] {
        let refused = fair.permit(country(code), 5, LONG).await.unwrap_err();
        assert_eq!(refused, LimitError::Overloaded { country: country(code), by: "test" });
    }
    // A request that has gone away is skipped.
    waiting[1].abort();
    tokio::task::yield_now().await;
    drop(first);
    let mut served = Vec::new();
    for _ in 0..4 {
        let (code, permit) = permits.recv().await.unwrap();
        served.push(code);
        drop(permit);
    }
    assert_eq!(served, ["DE", "NL", "IT", "DE"]);
    // The permit is free again.
    drop(fair.permit(country("ES"), 0, Duration::ZERO).await.unwrap());
}

#[tokio::test]
async fn nobody_waits_longer_than_its_patience_and_no_place_is_lost() {
    let fair = FairQueue::new("test", 1);
    let permit = fair.permit(country("DE"), 5, LONG).await.unwrap();
    fair.permit(country("NL"), 5, Duration::from_millis(1)).await.unwrap_err();
    drop(permit);
    drop(fair.permit(country("IT"), 0, Duration::ZERO).await.unwrap());
}

#[test]
fn memory_is_bounded_for_a_country_and_for_all_and_comes_back() {
    let memory = Memory::new(100, 60);
    let mut own = memory.nothing(country("DE"));
    own.grow(40).unwrap();
    let mut second = memory.nothing(country("DE"));
    second.grow(20).unwrap();
    let too_much = LimitError::Memory { country: country("DE"), share: 60 };
    assert_eq!(second.grow(1), Err(too_much));
    let mut other = memory.nothing(country("NL"));
    other.grow(40).unwrap();
    let full = LimitError::Overloaded { country: country("NL"), by: "memory" };
    assert_eq!(other.grow(1), Err(full));
    drop(own);
    other.grow(20).unwrap();
    second.grow(20).unwrap();
}

#[tokio::test]
async fn what_a_country_has_under_way_is_bounded_by_kind() {
    let limits = limits(
        "[server]\nrequest_timeout = \"10ms\"\n[limits]\nconcurrent_uploads = 1\n[participants.NL]\nconcurrent_uploads = 2\n",
    );
    let de = country("DE");
    let admitted = limits.admit(de, &Method::POST).await.unwrap();
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        let refused = limits.admit(de, &method).await.unwrap_err();
        assert_eq!(refused, LimitError::Concurrency { country: de, kind: Kind::Uploads, limit: 1 });
    }
    let reading = limits.admit(de, &Method::GET).await.unwrap();
    let other = [
        limits.admit(country("NL"), &Method::POST).await.unwrap(),
        limits.admit(country("NL"), &Method::POST).await.unwrap(),
    ];
    limits.admit(country("NL"), &Method::POST).await.unwrap_err();
    drop(admitted);
    limits.admit(de, &Method::POST).await.unwrap();
    drop((reading, other));
}

#[test]
fn an_address_is_an_ipv4_address_or_a_network_of_ipv6() {
    let limits = limits("[limits]\nconnections_per_address = 1\nshared_addresses = [\"10.0.0.0/8\"]\n");
    let arrive = |address: &str| limits.arrive(address.parse::<IpAddr>().unwrap(), LONG);
    let counted = |arrival: Arrival| match arrival {
        Arrival::Counted(open, _) => Some(open),
        _ => None,
    };
    let first = counted(arrive("192.0.2.1")).unwrap();
    let v6 = counted(arrive("2001:db8::1")).unwrap();
    for again in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::2", "2001:db8:0:0:ffff::"] {
        assert!(matches!(arrive(again), Arrival::Refused), "{again}");
    }
    for other in ["192.0.2.2", "2001:db8:0:1::1"] {
        assert!(counted(arrive(other)).is_some(), "{other}");
    }
    // A /56 has twice as many connections, and a /48 four times.
    let networks = ["2001:db8:0:1::1", "2001:db8:0:2::1"];
    let second = counted(arrive(networks[0])).unwrap();
    assert!(matches!(arrive(networks[1]), Arrival::Refused));
    assert!(matches!(arrive("10.1.2.3"), Arrival::Free));
    drop((first, v6, second));
    assert!(counted(arrive("192.0.2.1")).is_some());
}

#[test]
fn a_country_has_its_own_connections_and_unregistered_callers_share_theirs() {
    let limits = limits("[limits]\nconnections = 1\n[participants.NL]\nconnections = 2\n");
    let open: Vec<_> = ["DE", "NL", "NL"].map(|code| limits.enter(Some(country(code)))).into();
    assert!(open.iter().all(Option::is_some));
    let unregistered = limits.enter(None);
    assert!(unregistered.is_some());
    for who in [Some(country("DE")), Some(country("NL")), None] {
        assert!(limits.enter(who).is_none(), "{who:?}");
    }
    drop(open);
    assert!(limits.enter(Some(country("DE"))).is_some());
}

#[test]
fn a_quota_that_is_used_up_is_known_until_the_day_ends() {
    let limits = limits("[limits]\nkeys_per_day = 10\nbytes_per_day = \"100B\"\n");
    let (de, day) = (country("DE"), NaiveDate::from_ymd_opt(2026, 11, 22).unwrap());
    let usage = |keys, bytes| Usage { keys, bytes };
    assert_eq!(limits.known_over_quota(de, day, usage(11, 1)), None);
    let error = limits.over_quota(de, day, usage(8, 10), usage(3, 1));
    let midnight: chrono::DateTime<chrono::Utc> = "2026-11-23T00:00:00Z".parse().unwrap();
    assert_eq!(error.retry_at("2026-11-22T10:00:00Z".parse().unwrap()), midnight);
    assert_eq!(limits.known_over_quota(de, day, usage(3, 1)), Some(error));
    assert_eq!(limits.known_over_quota(de, day, usage(2, 1)), None);
    let bytes = limits.known_over_quota(de, day, usage(1, 91)).unwrap();
    assert!(bytes.to_string().contains("10 of its 100 bytes of 2026-11-22"), "{bytes}");
    assert_eq!(limits.known_over_quota(de, day.succ_opt().unwrap(), usage(3, 1)), None);
    assert_eq!(limits.known_over_quota(country("NL"), day, usage(3, 1)), None);
}
