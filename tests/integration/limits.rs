//! What a country may take: quotas of a day, pace, connections, memory; and that others are served meanwhile.

use std::time::Duration;

use bytesize::ByteSize;
use chrono::{DateTime, Days, NaiveTime, TimeDelta, Utc};
use efgs_gateway::{
    clock::Clock,
    config::{Config, Participant},
};

use efgs_protocol::media::Format;

use crate::{
    client::{Answer, Client, all_at_once, keys},
    harness::{Case, country, output_of, participant, tests, until},
};

tests![
    the_quota_of_a_day_is_exact_over_two_instances_and_a_refused_tag_is_free,
    what_stores_nothing_counts_nothing_and_a_withdrawal_gives_nothing_back,
    the_quota_in_bytes_is_what_an_upload_occupies,
    a_participant_has_its_own_quota,
    who_sends_too_fast_is_told_when_to_come_again,
    a_country_waits_for_its_own_uploads_and_nobody_else_does,
    uploads_are_shed_before_memory_is_full_and_downloads_are_served,
    a_country_holds_no_more_connections_than_its_own,
    an_address_opens_no_more_connections_than_its_own,
    the_list_of_participants_shows_the_quota,
];

/// The time in Retry-After, which must be an HTTP date.
fn retry_after(answer: &Answer) -> DateTime<Utc> {
    let text = answer.header("retry-after").unwrap();
    assert!(text.ends_with(" GMT"), "{text}");
    DateTime::parse_from_rfc2822(text).unwrap().to_utc()
}

fn midnight(case: &Case) -> DateTime<Utc> {
    (case.today() + Days::new(1)).and_time(NaiveTime::MIN).and_utc()
}

async fn used(case: &Case, country: &str) -> (i64, i64) {
    let number = |column: &'static str| async move {
        let sql = format!("SELECT {column} FROM quota WHERE country = '{country}'");
        case.db.column::<i64>(&sql).await.iter().sum()
    };
    (number("used_keys").await, number("used_bytes").await)
}

async fn the_quota_of_a_day_is_exact_over_two_instances_and_a_refused_tag_is_free(case: &Case) {
    let limit = |config: &mut Config| config.limits.keys_per_day = 25;
    let (first, second) = (case.gateway_with(limit).await, case.gateway_with(limit).await);
    let clients: Vec<Client> = [&first, &second].iter().map(|gateway| gateway.client("DE")).collect();
    let uploads: Vec<_> =
        (0..20).map(|i| (format!("u{i}"), keys(country("DE"), 3, case.clock.now()))).collect();
    let sending = uploads.iter().enumerate().map(|(i, (tag, keys))| clients[i % 2].upload(tag, keys));
    let answers = all_at_once(sending).await;
    let accepted = |answer: &Answer| answer.status == 201;
    assert_eq!(answers.iter().filter(|answer| accepted(answer)).count(), 8);
    assert_eq!(case.db.counts().await, [8, 24, 0]);
    for answer in answers.iter().filter(|answer| !accepted(answer)) {
        assert_eq!(retry_after(answer), midnight(case));
        let message = answer.refused(429, "quota-exceeded");
        assert!(message.contains("of its 25 keys") && message.contains("midnight UTC"), "{message}");
    }
    // What fits still fits, and then nothing does.
    clients[0].upload_new("fits", 1, case.clock.now()).await;
    for client in &clients {
        let one = keys(country("DE"), 1, case.clock.now());
        client.upload("full", &one).await.refused(429, "quota-exceeded");
    }
    assert_eq!(used(case, "DE").await.0, 25);
    // A retry of what was stored is answered as before, by either instance.
    for (answer, (tag, keys)) in answers.iter().zip(&uploads).filter(|(answer, _)| accepted(answer)) {
        assert_eq!(answer.tag(), *tag);
        for client in &clients {
            client.upload(tag, keys).await.expect(201);
        }
    }
    // Another country has a quota of its own.
    second.client("NL").upload_new("a", 20, case.clock.now()).await;
    // Until a moment before midnight nothing changes; then the same tag is free.
    let (refused_tag, refused_keys) =
        &answers.iter().zip(&uploads).find(|(answer, _)| !accepted(answer)).unwrap().1;
    case.clock.set(midnight(case) - TimeDelta::seconds(1));
    for gateway in [&first, &second] {
        gateway.reload().await;
    }
    clients[1].upload(refused_tag, refused_keys).await.refused(429, "quota-exceeded");
    case.clock.set(midnight(case));
    for gateway in [&first, &second] {
        gateway.reload().await;
    }
    clients[1].upload(refused_tag, refused_keys).await.expect(201);
    assert_eq!(used(case, "DE").await.0, 28);
}

async fn what_stores_nothing_counts_nothing_and_a_withdrawal_gives_nothing_back(case: &Case) {
    let gateway = case.gateway_with(|config| config.limits.keys_per_day = 10).await;
    let client = gateway.client("DE");
    let stored = client.upload_new("a", 6, case.clock.now()).await;
    let after = used(case, "DE").await;
    assert_eq!(after.0, 6);
    client.upload("a", &stored).await.expect(201);
    client.upload("b", &stored).await.expect(207);
    client.upload("a", &keys(country("DE"), 2, case.clock.now())).await.refused(409, "upload-tag-taken");
    assert_eq!(used(case, "DE").await, after);
    let withdraw = crate::client::Request::new("DELETE", "/diagnosiskeys/upload/a");
    client.send(withdraw).await.expect(200);
    let five = keys(country("DE"), 5, case.clock.now());
    client.upload("c", &five).await.refused(429, "quota-exceeded");
    client.upload_new("d", 4, case.clock.now()).await;
    assert_eq!(used(case, "DE").await.0, 10);
}

async fn the_quota_in_bytes_is_what_an_upload_occupies(case: &Case) {
    let gateway = case.gateway().await;
    let mut sizes = Vec::new();
    for (code, format) in [("DE", Format::Json), ("NL", Format::Protobuf)] {
        let client = gateway.client(code);
        let request = client.request_in(format, "a", &keys(country(code), 4, case.clock.now()));
        let signature = request.headers.iter().find(|(name, _)| name == "batchSignature").unwrap().1.len();
        client.send(request).await.expect(201);
        let (keys, bytes) = used(case, code).await;
        assert_eq!(keys, 4);
        sizes.push(bytes as u64 - signature as u64);
    }
    // Without its signature, an upload has the same size in both formats, up to the length of the countries.
    assert!(sizes[0].abs_diff(sizes[1]) < 100 && sizes[0] > 1024 + 4 * 250, "{sizes:?}");
    let size = used(case, "DE").await.1 as u64;
    let limit = |config: &mut Config| config.limits.bytes_per_day = ByteSize(2 * size + 100);
    let client = case.gateway_with(limit).await.client("DE");
    let larger = keys(country("DE"), 6, case.clock.now());
    let message = client.upload("b", &larger).await.refused(429, "quota-exceeded");
    assert!(message.contains(&format!("{size} of its {} bytes", 2 * size + 100)), "{message}");
    client.upload_new("b", 4, case.clock.now()).await;
}

async fn a_participant_has_its_own_quota(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.limits.keys_per_day = 2;
            let own = Participant { keys_per_day: Some(5), ..Participant::default() };
            config.participants.insert(country("NL"), own);
        })
        .await;
    for (code, limit) in [("DE", 2), ("NL", 5)] {
        let client = gateway.client(code);
        let more = keys(country(code), limit + 1, case.clock.now());
        client.upload("a", &more).await.refused(429, "quota-exceeded");
        client.upload_new("a", limit, case.clock.now()).await;
    }
}

async fn who_sends_too_fast_is_told_when_to_come_again(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.limits.requests_per_second = 0.01;
            config.limits.burst = 2;
        })
        .await;
    let client = gateway.client("DE");
    for _ in 0..2 {
        client.download(case.today(), None).await.refused(404, "batch-not-found");
    }
    // Of whatever kind, and before anything else is looked at.
    for request in [client.request("a", &keys(country("DE"), 1, case.clock.now())).without("batchTag"), {
        Client::download_request(case.today(), None)
    }] {
        let answer = client.send(request).await;
        answer.refused(429, "too-many-requests");
        let wait = retry_after(&answer) - case.clock.now();
        assert!(wait > TimeDelta::seconds(60) && wait <= TimeDelta::seconds(100), "{wait}");
    }
    // Who may not call is told that first, and other countries are not concerned.
    let unregistered = gateway.client_with(Some(&participant("DE").callback), "DE");
    unregistered.download(case.today(), None).await.refused(403, "forbidden");
    gateway.client("NL").upload_new("a", 1, case.clock.now()).await;
}

/// The bytes of an upload, and where to cut them so that its body is begun but not complete.
fn unfinished(client: &Client, tag: &str, amount: usize, now: DateTime<Utc>) -> (Vec<u8>, usize) {
    let raw = client.request(tag, &keys(client.country(), amount, now)).raw();
    let cut = raw.len() - 10;
    (raw, cut)
}

async fn a_country_waits_for_its_own_uploads_and_nobody_else_does(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.limits.concurrent_uploads = 1;
            config.limits.concurrent_downloads = 1;
        })
        .await;
    let client = gateway.client("DE");
    let (raw, cut) = unfinished(&client, "slow", 3, case.clock.now());
    let mut slow = client.connect();
    slow.write(&raw[..cut]).unwrap();
    let now = case.clock.now();
    // As soon as the slow one has the place, the next waits behind it.
    let mut before = 0;
    let waiting = loop {
        let next = gateway.client("DE");
        let mut uploading =
            tokio::spawn(async move { next.upload_new(&format!("next-{before}"), 1, now).await });
        match tokio::time::timeout(Duration::from_millis(500), &mut uploading).await {
            Ok(done) => drop(done.unwrap()),
            Err(_) => break uploading,
        }
        before += 1;
        assert!(before < 50, "nobody waits");
    };
    for _ in 0..5 {
        client.download(case.today(), None).await.refused(404, "batch-not-found");
        gateway.client("NL").upload_new(&format!("{:x}", rand::random::<u64>()), 1, now).await;
    }
    assert!(!waiting.is_finished());
    slow.write(&raw[cut..]).unwrap();
    slow.answer().expect(201);
    waiting.await.unwrap();
    assert_eq!(case.db.counts().await[0], before + 7);
}

async fn uploads_are_shed_before_memory_is_full_and_downloads_are_served(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            config.upload.max_bytes = ByteSize::kib(64);
            config.limits.memory = ByteSize::kib(64);
        })
        .await;
    let first = gateway.client("IT").upload_new("first", 3, case.clock.now()).await;
    gateway.form().await;
    let client = gateway.client("DE");
    let (raw, cut) = unfinished(&client, "slow", 1000, case.clock.now());
    assert!((40_000..64_000).contains(&raw.len()), "{}", raw.len());
    let mut slow = client.connect();
    slow.write(&raw[..cut]).unwrap();
    let other = gateway.client("NL");
    let upload = keys(country("NL"), 1000, case.clock.now());
    // When the slow one's body has arrived, there is no memory for another one.
    let refused = until("an upload that is shed", async || {
        let answer = other.upload("shed", &upload).await;
        (answer.status != 201).then_some(answer)
    })
    .await;
    refused.refused(503, "unavailable");
    assert_eq!(retry_after(&refused), case.clock.now() + TimeDelta::seconds(10));
    let uploaded = case.db.counts().await[0];
    for code in ["NL", "DE", "IE"] {
        let answer = gateway.client(code).download(case.today(), None).await.expect(200);
        assert_eq!(answer.keys(), first);
    }
    slow.write(&raw[cut..]).unwrap();
    slow.answer().expect(201);
    assert_eq!(case.db.counts().await[0], uploaded + 1);
    other.upload_new("later", 1000, case.clock.now()).await;
}

async fn a_country_holds_no_more_connections_than_its_own(case: &Case) {
    let gateway = case.gateway_with(|config| config.limits.connections = 2).await;
    let (de, nl) = (gateway.client("DE"), gateway.client("NL"));
    // Unregistered callers share what they may hold.
    let unregistered = gateway.client_with(Some(&participant("DE").callback), "DE");
    for client in [&de, &unregistered] {
        let mut held = vec![client.connect(), client.connect()];
        let request = Client::download_request(case.today(), None).raw();
        for connection in &mut held {
            // So that the gateway has seen it.
            connection.write(&request).unwrap();
            assert!([404, 403].contains(&connection.answer().status));
        }
        if client.try_send(Client::download_request(case.today(), None)).await.is_ok() {
            // An unregistered caller loses its connection with the answer.
            assert!(held[0].is_closed());
            continue;
        }
        nl.download(case.today(), None).await.refused(404, "batch-not-found");
        drop(held.pop());
        until("a connection is free again", async || {
            client.try_send(Client::download_request(case.today(), None)).await.ok()
        })
        .await;
    }
}

async fn an_address_opens_no_more_connections_than_its_own(case: &Case) {
    let limit = |config: &mut Config| config.limits.connections_per_address = 3;
    let gateway = case.gateway_with(limit).await;
    let open = || std::net::TcpStream::connect(("127.0.0.1", gateway.address)).unwrap();
    // Each time a new connection: one that came before the others were counted would stay open.
    let send = async || gateway.client("DE").try_send(Client::download_request(case.today(), None)).await;
    // Not one of them has even begun the handshake.
    let mut held = Vec::new();
    until("a connection that is refused", async || {
        held.push(open());
        send().await.err()
    })
    .await;
    held.clear();
    until("a connection is free again", async || send().await.ok()).await;
    // Balancers that pass TLS through have no limit of their own.
    let shared = |config: &mut Config| {
        limit(config);
        config.limits.shared_addresses = vec!["127.0.0.0/8".parse().unwrap()];
    };
    let gateway = case.gateway_with(shared).await;
    let open = || std::net::TcpStream::connect(("127.0.0.1", gateway.address)).unwrap();
    let held: Vec<_> = (0..5).map(|_| open()).collect();
    gateway.client("DE").download(case.today(), None).await.refused(404, "batch-not-found");
    drop(held);
}

async fn the_list_of_participants_shows_the_quota(case: &Case) {
    let gateway = case.gateway_at(Clock::system(), |_| {}).await;
    let now = gateway.app.clock.now();
    let stored = keys(country("NL"), 30, now);
    let request = gateway.client("NL").request("a", &stored);
    gateway.client("NL").send(request.clone()).await.expect(201);
    let text = format!("{}keys_per_day = 1000\nbytes_per_day = \"1MB\"\n", case.config_text());
    let config = case.write_config(&text);
    let list = |more: &[&str]| {
        let arguments = [&["participant", "list", "--config", config.to_str().unwrap()], more].concat();
        String::from_utf8(output_of(env!("CARGO_BIN_EXE_efgs-gateway"), &arguments, case.folder.path()))
            .unwrap()
    };
    let json: serde_json::Value = serde_json::from_str(&list(&["--json"])).unwrap();
    let nl = json.as_array().unwrap().iter().find(|one| one["country"] == "NL").unwrap();
    assert_eq!((&nl["keysToday"], &nl["keys"]), (&30.into(), &30.into()));
    let quota = &nl["quota"];
    assert_eq!(
        (&quota["keys"], &quota["keysLimit"], &quota["keysPercent"]),
        (&30.into(), &1000.into(), &3.0.into())
    );
    assert_eq!(
        (&quota["bytes"], &quota["bytesLimit"]),
        (&used(case, "NL").await.1.into(), &1_000_000.into())
    );
    let table = list(&[]);
    let row = table.lines().find(|line| line.starts_with("NL")).unwrap();
    assert!(table.contains(" QUOTA ") && row.contains(" 3.0% "), "{table}");
    let idle = table.lines().find(|line| line.starts_with("DE")).unwrap();
    assert!(idle.contains(" 0.0% "), "{table}");
}
