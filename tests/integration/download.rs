//! Serving batches (spec §5.3).

use std::io::Read as _;

use chrono::{Days, NaiveDate, TimeDelta};
use efgs_gateway::{
    config::{ChainScope, Config, Secret, TagStyle},
    server::App,
};
use efgs_protocol::media::Format;

use crate::{
    client::{Answer, Client, JSON, PROTOBUF, Request, join, keys, media},
    database::Kind,
    free_port::free_port,
    harness::{Case, Running, country, tests, until},
};

tests![
    what_comes_in_one_format_goes_out_in_the_other_in_the_same_order,
    a_batch_is_found_by_its_date_and_by_both_names,
    the_next_tag_is_null_until_there_is_a_next_batch,
    a_batch_formed_by_another_instance_is_seen_at_once,
    a_countrys_own_keys_are_left_out,
    a_batch_of_only_own_keys_is_200_and_empty,
    dates_are_checked,
    a_tag_and_a_date_must_fit,
    the_best_supported_accept_range_wins,
    a_known_batch_is_304_with_the_tags_of_now,
    the_same_request_always_gives_the_same_bytes,
    compressed_bodies_hold_the_same_bytes,
    the_chain_goes_on_across_midnight,
    a_participant_can_have_its_chain_end_at_midnight,
    a_participant_can_be_told_day_names,
    a_batch_of_another_major_version_is_skipped,
    half_an_upload_is_never_served,
    keys_are_read_from_a_replica_that_has_them_and_else_from_the_primary,
    the_next_batch_is_ready_before_it_is_asked_for,
    a_batch_on_disk_needs_no_database_and_goes_with_a_withdrawal,
];

async fn what_comes_in_one_format_goes_out_in_the_other_in_the_same_order(case: &Case) {
    let gateway = case.gateway().await;
    let (german, dutch) = (gateway.client("DE"), gateway.client("NL"));
    let first = keys(country("DE"), 30, case.clock.now());
    german.send(german.request_in(Format::Json, "a", &first)).await.expect(201);
    let second = keys(country("DE"), 30, case.clock.now());
    german.send(german.request_in(Format::Protobuf, "b", &second)).await.expect(201);
    assert_eq!(gateway.form().await.len(), 1, "both formats of one major version are one batch");
    for format in Format::ALL {
        let request = Client::download_request(case.today(), None).header("Accept", media(format));
        let answer = dutch.send(request).await.expect(200);
        assert_eq!(answer.header("content-type"), Some(media(format)));
        assert_eq!(answer.keys(), join(&[&first, &second]));
        assert_eq!(answer.body, efgs_protocol::wire::encode(format, &join(&[&first, &second])));
    }
}

async fn a_batch_is_found_by_its_date_and_by_both_names(case: &Case) {
    let gateway = case.gateway().await;
    let reader = gateway.client("NL");
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    let first = gateway.form().await.remove(0);
    let keys = gateway.client("DE").upload_new("b", 1, case.clock.now()).await;
    let second = gateway.form().await.remove(0);
    assert!(second > first && second.len() == 24);
    let day = case.today();
    let day_name = format!("{}-2", day.format("%Y%m%d"));
    for name in [&second, &day_name] {
        let answer = reader.download(day, Some(name)).await.expect(200);
        assert_eq!((answer.tag(), answer.keys()), (second.clone(), keys.clone()));
    }
    let earlier = reader.download(day - Days::new(3), None).await.expect(200);
    assert_eq!((earlier.tag(), earlier.next()), (first, second.clone()));
    for unknown in
        ["20201122-1", "0123456789abcdef01234567", "x", &second.to_uppercase(), &format!("{day_name}0")]
    {
        reader.download(day, Some(unknown)).await.refused(404, "batch-not-found");
    }
}

async fn the_next_tag_is_null_until_there_is_a_next_batch(case: &Case) {
    let gateway = case.gateway().await;
    let reader = gateway.client("NL");
    reader.download(case.today(), None).await.refused(404, "batch-not-found");
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    reader.download(case.today(), None).await.refused(404, "batch-not-found");
    let first = gateway.form().await.remove(0);
    for _ in 0..2 {
        let answer = reader.download(case.today(), None).await.expect(200);
        assert_eq!((answer.tag(), answer.next()), (first.clone(), "null".to_owned()));
    }
    gateway.client("DE").upload_new("b", 1, case.clock.now()).await;
    let second = gateway.form().await.remove(0);
    assert_eq!(reader.download(case.today(), Some(&first)).await.expect(200).next(), second);
}

async fn a_batch_formed_by_another_instance_is_seen_at_once(case: &Case) {
    let (one, other) = (case.gateway().await, case.gateway().await);
    let reader = other.client("NL");
    let mut tags = Vec::new();
    for tag in ["a", "b", "c"] {
        one.client("DE").upload_new(tag, 1, case.clock.now()).await;
        tags.extend(one.form().await);
        let last = tags.last().unwrap().clone();
        assert_eq!(reader.download(case.today(), Some(&last)).await.expect(200).next(), "null");
        if let [.., before, _] = &tags[..] {
            assert_eq!(reader.download(case.today(), Some(before)).await.expect(200).next(), last);
        }
    }
}

async fn a_countrys_own_keys_are_left_out(case: &Case) {
    let gateway = case.gateway().await;
    let now = case.clock.now();
    let (german, dutch) = (gateway.client("DE"), gateway.client("NL"));
    let d1 = german.upload_new("1", 2, now).await;
    let n1 = dutch.upload_new("1", 3, now).await;
    let d2 = german.upload_new("2", 4, now).await;
    let i1 = gateway.client("IT").upload_new("1", 1, now).await;
    gateway.form().await;
    for (code, expected) in [
        ("DE", join(&[&n1, &i1])),
        ("NL", join(&[&d1, &d2, &i1])),
        ("IT", join(&[&d1, &n1, &d2])),
        ("IE", join(&[&d1, &n1, &d2, &i1])),
    ] {
        for format in Format::ALL {
            let request = Client::download_request(case.today(), None).header("Accept", media(format));
            assert_eq!(gateway.client(code).send(request).await.keys(), expected, "{code} {format:?}");
        }
    }
}

async fn a_batch_of_only_own_keys_is_200_and_empty(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    client.upload_new("a", 2, case.clock.now()).await;
    gateway.form().await;
    for (format, body) in [(Format::Protobuf, ""), (Format::Json, r#"{"keys":[]}"#)] {
        let request = Client::download_request(case.today(), None).header("Accept", media(format));
        let answer = client.send(request).await.expect(200);
        assert_eq!((answer.text().as_str(), answer.next().as_str()), (body, "null"));
        assert_eq!(answer.header("content-type"), Some(media(format)));
        assert_eq!(answer.header("content-length"), Some(body.len().to_string().as_str()));
    }
}

async fn dates_are_checked(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let get = |date: &str| Request::get(format!("/diagnosiskeys/download/{date}")).header("Accept", PROTOBUF);
    for date in [
        "22.11.2026",
        "2026-13-01",
        "2026-02-30",
        "20261122",
        "2026-1-2",
        "today",
        "2026-11-22T00:00",
        "+99999-01-01",
        "-0001-01-01",
    ] {
        let message = client.send(get(date)).await.refused(400, "invalid-date");
        assert!(message.contains(date), "{message}");
    }
    let today = case.today();
    client.download(today - Days::new(14), None).await.refused(404, "batch-not-found");
    client.download(today - Days::new(15), None).await.refused(410, "gone");
    client.download(NaiveDate::MIN.max(today - Days::new(20_000)), None).await.refused(410, "gone");
    client.download(today + Days::new(1), None).await.refused(404, "batch-not-found");
    // The retention counts UTC dates: at midnight another day is gone.
    case.clock.set(case.clock.now() + TimeDelta::hours(12));
    client.download(today - Days::new(14), None).await.refused(410, "gone");
    client.download(today - Days::new(13), None).await.refused(404, "batch-not-found");
}

async fn a_tag_and_a_date_must_fit(case: &Case) {
    let gateway = case.gateway().await;
    let (writer, reader) = (gateway.client("DE"), gateway.client("NL"));
    let today = case.today();
    writer.upload_new("a", 1, case.clock.now()).await;
    let first = gateway.form().await.remove(0);
    case.clock.set(case.clock.now() + Days::new(2));
    writer.upload_new("b", 1, case.clock.now()).await;
    let second = gateway.form().await.remove(0);
    // Formed before the date: refused. Formed on a later day: served.
    let message = reader.download(today + Days::new(1), Some(&first)).await.refused(400, "batch-before-date");
    assert!(message.contains(&today.to_string()), "{message}");
    for days in 0..=2 {
        let answer = reader.download(today + Days::new(days), Some(&second)).await.expect(200);
        assert_eq!(answer.tag(), second);
    }
    assert_eq!(reader.download(today + Days::new(1), None).await.expect(200).tag(), second);
    reader.download(today + Days::new(3), Some(&second)).await.refused(400, "batch-before-date");
    reader.download(today - Days::new(20), Some(&second)).await.refused(410, "gone");
}

async fn the_best_supported_accept_range_wins(case: &Case) {
    let gateway = case.gateway().await;
    let reader = gateway.client("NL");
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    gateway.form().await;
    let get = || Client::download_request(case.today(), None);
    let chosen = [
        ("application/json;version=1.0", JSON),
        ("application/json; version=1.0; q=0.5, application/protobuf; version=1.0", PROTOBUF),
        ("text/html, application/json; version=\"1.0\", */*; q=0.1", JSON),
        ("application/protobuf; version=2.0, application/json; version=1.0; q=0.1", JSON),
        ("APPLICATION/PROTOBUF;VERSION=1.0", PROTOBUF),
    ];
    for (accept, expected) in chosen {
        let answer = reader.send(get().header("Accept", accept)).await.expect(200);
        assert_eq!(answer.header("content-type"), Some(expected), "{accept}");
    }
    let both = get().header("Accept", "text/html").also("Accept", JSON);
    assert_eq!(reader.send(both).await.expect(200).header("content-type"), Some(JSON));
    for accept in [
        "*/*",
        "application/*",
        "application/json",
        "application/protobuf",
        "application/json; version=1.1",
        "application/json; version=1.0; q=0",
        "text/plain",
        "",
    ] {
        reader.send(get().header("Accept", accept)).await.refused(406, "not-acceptable");
    }
    reader.send(get().without("Accept")).await.refused(406, "not-acceptable");
}

async fn a_known_batch_is_304_with_the_tags_of_now(case: &Case) {
    let gateway = case.gateway().await;
    let reader = gateway.client("NL");
    let writer = gateway.client("DE");
    writer.upload_new("a", 5, case.clock.now()).await;
    let first = gateway.form().await.remove(0);
    let get = || Client::download_request(case.today(), Some(&first));
    let answer = reader.send(get()).await.expect(200);
    let etag = answer.header("etag").unwrap().to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "a strong one: {etag}");
    assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
    writer.upload_new("b", 1, case.clock.now()).await;
    let second = gateway.form().await.remove(0);
    for known in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
        let answer = reader.send(get().header("If-None-Match", known)).await.expect(304);
        assert_eq!((answer.tag(), answer.next(), answer.body.len()), (first.clone(), second.clone(), 0));
        assert_eq!(answer.header("etag"), Some(etag.as_str()));
    }
    assert_eq!(reader.send(get().header("If-None-Match", "\"x\"")).await.expect(200).next(), second);
    // What gives other bytes has another tag.
    let mut etags = vec![etag];
    let other = |answer: Answer| answer.expect(200).header("etag").unwrap().to_owned();
    etags.push(other(reader.send(get().header("Accept", JSON)).await));
    etags.push(other(reader.send(get().header("Accept-Encoding", "gzip")).await));
    etags.push(other(reader.download(case.today(), Some(&second)).await));
    etags.push(other(writer.send(get()).await));
    let distinct: std::collections::HashSet<_> = etags.iter().collect();
    assert_eq!(distinct.len(), 5, "{etags:?}");
}

async fn the_same_request_always_gives_the_same_bytes(case: &Case) {
    let gateways = [case.gateway().await, case.gateway().await];
    for code in ["DE", "IT", "NL"] {
        gateways[0].client(code).upload_new("a", 20, case.clock.now()).await;
    }
    gateways[0].form().await;
    for format in Format::ALL {
        let mut answers = Vec::new();
        for gateway in &gateways {
            for _ in 0..2 {
                let request = Client::download_request(case.today(), None).header("Accept", media(format));
                let answer = gateway.client("NL").send(request).await.expect(200);
                answers.push((answer.body.clone(), answer.header("etag").unwrap().to_owned()));
            }
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]));
    }
}

async fn compressed_bodies_hold_the_same_bytes(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 100, case.clock.now()).await;
    gateway.form().await;
    let reader = gateway.client("NL");
    for format in Format::ALL {
        let get = || Client::download_request(case.today(), None).header("Accept", media(format));
        let plain = reader.send(get()).await.expect(200);
        assert_eq!(plain.header("content-encoding"), None);
        for encoding in ["gzip", "zstd"] {
            let answer = reader.send(get().header("Accept-Encoding", encoding)).await.expect(200);
            assert_eq!(answer.header("content-encoding"), Some(encoding));
            assert_eq!(answer.header("content-type"), Some(media(format)));
            assert!(answer.body.len() < plain.body.len());
            let mut bytes = Vec::new();
            match encoding {
                "gzip" => flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut bytes).unwrap(),
                _ => zstd::stream::read::Decoder::new(&answer.body[..])
                    .unwrap()
                    .read_to_end(&mut bytes)
                    .unwrap(),
            };
            assert_eq!(bytes, plain.body);
        }
        let unknown = reader.send(get().header("Accept-Encoding", "br")).await.expect(200);
        assert_eq!(unknown.body, plain.body);
        let none = get().header("Accept-Encoding", "identity;q=0, br");
        reader.send(none).await.refused(406, "not-acceptable");
    }
}

/// Two batches on the clock's day, two on the next; their names and the first day.
async fn two_days(case: &Case, gateway: &crate::harness::Running) -> (NaiveDate, Vec<String>) {
    let day = case.today();
    let mut names = Vec::new();
    for tag in 0..4 {
        if tag == 2 {
            case.clock.set(case.clock.now() + TimeDelta::hours(13));
        }
        gateway.client("DE").upload_new(&tag.to_string(), 1, case.clock.now()).await;
        names.extend(gateway.form().await);
    }
    assert_eq!(case.today(), day + Days::new(1));
    (day, names)
}

async fn the_chain_goes_on_across_midnight(case: &Case) {
    let gateway = case.gateway().await;
    let (day, names) = two_days(case, &gateway).await;
    let reader = gateway.client("NL");
    // NL keeps its date while it follows the chain.
    let mut answer = reader.download(day, None).await.expect(200);
    let mut seen = vec![answer.tag()];
    while answer.next() != "null" {
        answer = reader.download(day, Some(&answer.next())).await.expect(200);
        seen.push(answer.tag());
    }
    assert_eq!(seen, names);
    assert_eq!(reader.download(day + Days::new(1), None).await.expect(200).tag(), names[2]);
}

async fn a_participant_can_have_its_chain_end_at_midnight(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.participants.entry(country("IE")).or_default().chain = ChainScope::Day;
        })
        .await;
    let (day, names) = two_days(case, &gateway).await;
    let reader = gateway.client("IE");
    for (offset, expected) in [(0, &names[..2]), (1, &names[2..])] {
        let mut answer = reader.download(day + Days::new(offset), None).await.expect(200);
        let mut seen = vec![answer.tag()];
        while answer.next() != "null" {
            answer = reader.download(day + Days::new(offset), Some(&answer.next())).await.expect(200);
            seen.push(answer.tag());
        }
        assert_eq!(seen, expected);
    }
    // A day without batches is not filled with the next day's.
    reader.download(day - Days::new(1), None).await.refused(404, "batch-not-found");
    assert_eq!(gateway.client("NL").download(day - Days::new(1), None).await.expect(200).tag(), names[0]);
}

async fn a_participant_can_be_told_day_names(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.batching.tags = TagStyle::DaySequence;
            config.participants.entry(country("IE")).or_default().tags = Some(TagStyle::ObjectId);
        })
        .await;
    let (day, names) = two_days(case, &gateway).await;
    let (one, next) = (day.format("%Y%m%d"), (day + Days::new(1)).format("%Y%m%d"));
    let day_names = [format!("{one}-1"), format!("{one}-2"), format!("{next}-1"), format!("{next}-2")];
    for (code, told) in [("NL", &day_names[..]), ("IE", &names[..])] {
        let reader = gateway.client(code);
        let mut answer = reader.download(day, None).await.expect(200);
        for i in 0..4 {
            assert_eq!(answer.tag(), told[i]);
            assert_eq!(answer.next(), told.get(i + 1).map_or("null", String::as_str));
            if i < 3 {
                answer = reader.download(day, Some(&answer.next())).await.expect(200);
            }
        }
    }
}

async fn a_batch_of_another_major_version_is_skipped(case: &Case) {
    let gateway = case.gateway().await;
    let writer = gateway.client("DE");
    for tag in ["a", "b", "c", "d"] {
        writer.upload_new(tag, 1, case.clock.now()).await;
    }
    // As a later version of the gateway would have stored them.
    let ids: Vec<i64> = case.db.column("SELECT id FROM upload ORDER BY id").await;
    case.db
        .execute(&format!("UPDATE upload SET format_major = 2 WHERE id IN ({}, {})", ids[0], ids[2]))
        .await;
    let names = gateway.form().await;
    assert_eq!(names.len(), 2, "a batch holds uploads of one major version");
    let reader = gateway.client("NL");
    let answer = reader.download(case.today(), None).await.expect(200);
    assert_eq!((answer.tag(), answer.next(), answer.keys().len()), (names[1].clone(), "null".into(), 2));
    reader.download(case.today(), Some(&names[0])).await.refused(404, "batch-not-found");
}

async fn half_an_upload_is_never_served(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 3, case.clock.now()).await;
    gateway.form().await;
    assert_eq!(case.db.execute("DELETE FROM diagnosis_key WHERE position = 1").await, 1);
    let answer = gateway.client("NL").download(case.today(), None).await;
    answer.refused(500, "internal");
    case.db.execute("DELETE FROM diagnosis_key").await;
    case.db.execute("DELETE FROM upload").await;
}

fn config_with_replica(case: &Case) -> efgs_gateway::config::Database {
    let read_urls = vec![Secret::new("mysql://a:b@c/d")];
    efgs_gateway::config::Database { read_urls, ..case.config().database }
}

async fn keys_are_read_from_a_replica_that_has_them_and_else_from_the_primary(case: &Case) {
    if case.db.kind == Kind::Sqlite {
        // It has no replicas.
        let config = Config { database: config_with_replica(case), ..case.config() };
        let refused = App::new(config, case.clock.clone(), None).unwrap_err().to_string();
        assert!(refused.contains("`database.read_urls`"), "{refused}");
        case.prepare().await;
        return;
    }
    // What the replica has not got yet, this test copies when it likes.
    let replica = case.other_db().await;
    let with = |url: &str| {
        let url = Secret::new(url);
        move |config: &mut Config| config.database.read_urls = vec![url]
    };
    let gateway = case.gateway_with(with(&replica.url)).await;
    let fill = App::new(
        {
            let mut config = case.config();
            config.database.url = Some(Secret::new(replica.url.as_str()));
            config
        },
        case.clock.clone(),
        None,
    );
    let fill = fill.unwrap();
    fill.store.migrate().await.unwrap();
    fill.store.add_days(fill.chain.oldest(), case.today()).await.unwrap();
    fill.store.clone().close().await;
    let name = |url: &str| url.rsplit('/').next().unwrap().to_owned();
    let (here, there) = (name(&case.db.url), name(&replica.url));
    let keys = gateway.client("DE").upload_new("a", 30, case.clock.now()).await;
    gateway.form().await;
    let reader = |gateway: &Running| gateway.client("NL");
    let download =
        async |gateway: &Running| reader(gateway).download(case.today(), None).await.expect(200).keys();
    // It lags behind: first it has nothing, then a part.
    assert_eq!(download(&gateway).await, keys);
    let copy = format!("INSERT INTO {there}.diagnosis_key SELECT * FROM {here}.diagnosis_key WHERE position");
    replica.execute(&format!("{copy} < 29")).await;
    let gateway = case.gateway_with(with(&replica.url)).await;
    assert_eq!(download(&gateway).await, keys);
    // It has all, and the primary is not asked: there the keys are gone.
    replica.execute(&format!("{copy} = 29")).await;
    case.db.execute("DELETE FROM diagnosis_key").await;
    let gateway = case.gateway_with(with(&replica.url)).await;
    assert_eq!(download(&gateway).await, keys);
    case.db.execute(&format!("INSERT INTO {here}.diagnosis_key SELECT * FROM {there}.diagnosis_key")).await;
    // What it has cannot be opened.
    replica.execute("UPDATE diagnosis_key SET payload = REVERSE(payload) WHERE position = 7").await;
    let gateway = case.gateway_with(with(&replica.url)).await;
    assert_eq!(download(&gateway).await, keys);
    // It does not answer.
    let port = free_port();
    let gateway = case.gateway_with(with(&format!("mysql://nobody:nothing@127.0.0.1:{port}/{there}"))).await;
    assert_eq!(download(&gateway).await, keys);
}

async fn the_next_batch_is_ready_before_it_is_asked_for(case: &Case) {
    let gateway = case.gateway().await;
    let mut names = Vec::new();
    for tag in ["a", "b", "c"] {
        gateway.client("DE").upload_new(tag, 5, case.clock.now()).await;
        names.push(gateway.form().await.remove(0));
    }
    let reader = gateway.client("NL");
    reader.download(case.today(), Some(&names[0])).await.expect(200);
    // That one and the next, and nothing further.
    until("two batches are ready", async || (gateway.app.body_cache.size().await.0 == 2).then_some(())).await;
    case.db.execute("ALTER TABLE diagnosis_key RENAME TO renamed").await;
    assert_eq!(reader.download(case.today(), Some(&names[1])).await.expect(200).keys().len(), 5);
    case.db.execute("ALTER TABLE renamed RENAME TO diagnosis_key").await;
    assert_eq!(reader.download(case.today(), Some(&names[2])).await.expect(200).keys().len(), 5);
}

async fn a_batch_on_disk_needs_no_database_and_goes_with_a_withdrawal(case: &Case) {
    let folder = case.folder.path().join("disk-cache");
    let start = async || {
        let folder = folder.clone();
        let with = |config: &mut Config| {
            config.download.disk_cache = bytesize::ByteSize::mib(10);
            config.download.disk_folder = folder;
        };
        case.gateway_with(with).await
    };
    let files = || {
        let all = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_none()).collect::<Vec<_>>()
    };
    let gateway = start().await;
    let keys = gateway.client("DE").upload_new("a", 5, case.clock.now()).await;
    gateway.client("IT").upload_new("b", 5, case.clock.now()).await;
    gateway.form().await;
    let download = async |gateway: &Running| gateway.client("IT").download(case.today(), None).await;
    assert_eq!(download(&gateway).await.expect(200).keys(), keys);
    until("it is on disk", async || (files().len() == 1).then_some(())).await;
    case.stop(&gateway).await;
    // Another start has nothing in memory.
    case.db.execute("ALTER TABLE diagnosis_key RENAME TO renamed").await;
    let gateway = start().await;
    assert_eq!(download(&gateway).await.expect(200).keys(), keys);
    case.db.execute("ALTER TABLE renamed RENAME TO diagnosis_key").await;
    // A file that was altered is made again.
    std::fs::write(&files()[0], "altered").unwrap();
    let gateway = start().await;
    assert_eq!(download(&gateway).await.expect(200).keys(), keys);
    until("it is whole again", async || (files().first()?.metadata().unwrap().len() > 100).then_some(()))
        .await;
    let before = files();
    gateway.client("DE").send(Request::new("DELETE", "/diagnosiskeys/upload/a")).await.expect(200);
    assert_eq!(download(&gateway).await.expect(200).keys().len(), 0);
    until("the new file", async || (files().len() == 1 && files() != before).then_some(())).await;
    // The files go with the retention.
    case.clock.set(case.clock.now() + Days::new(15));
    gateway.app.body_cache.forget_before(gateway.app.chain.oldest()).await;
    assert_eq!(files().len(), 0);
}
