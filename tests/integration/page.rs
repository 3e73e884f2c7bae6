//! The operator's page: what it says, and how it behaves in a real browser.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use efgs_gateway::{config::Config, store::Job};
use efgs_protocol::batch_tag::ObjectId;
use reqwest::header::CONTENT_SECURITY_POLICY;
use serde_json::Value;

use crate::{
    browser::Browser,
    callback::put,
    client::{Request, keys},
    database::Kind,
    harness::{Case, PKI, Running, country, import, participant, tests, until},
};

tests![
    it_says_how_each_country_is_served,
    it_says_whose_uploads_are_refused_and_what_else_a_country_does_not_notice,
    what_others_have_written_is_shown_and_not_carried_out,
    nothing_comes_from_elsewhere,
    without_the_database_it_says_so,
    in_a_browser_thirty_countries_fit_every_screen_and_the_keyboard_reaches_all,
];

async fn get(gateway: &Running, path: &str) -> reqwest::Response {
    reqwest::get(format!("http://127.0.0.1:{}{path}", gateway.admin)).await.unwrap()
}

async fn json(gateway: &Running) -> Value {
    gateway.app.access_log.shipped().await;
    // The answer of up to two seconds ago serves everybody; what the test has just done must be in it.
    let overview = efgs_gateway::server::overview::Overview::gather(&gateway.app).await.unwrap();
    serde_json::to_value(overview).unwrap()
}

fn of<'a>(overview: &'a Value, list: &str, key: &str, name: &str) -> &'a Value {
    overview[list].as_array().unwrap().iter().find(|entry| entry[key] == name).unwrap()
}

async fn it_says_how_each_country_is_served(case: &Case) {
    let hourly = |config: &mut Config| config.batching.interval = Duration::from_secs(3600);
    let gateway = case.gateway_with(hourly).await;
    let now = case.clock.now();
    gateway.client("DE").upload_new("a", 7, now).await;
    gateway.form().await;
    gateway.client("NL").download(case.today(), None).await.expect(200);
    // It is written down within a second.
    let seen = "SELECT COUNT(*) FROM downloaded";
    until("the download is recorded", async || (case.db.number(seen).await == 1).then_some(())).await;
    for tag in ["b", "c"] {
        gateway.client("IT").upload_new(tag, 3, now).await;
        gateway.form().await;
    }
    gateway.client("DE").upload_new("d", 2, now).await;
    put(&gateway.client("NL"), "notify", "https://[2606:4700::1111]/notify").await.expect(200);

    let overview = json(&gateway).await;
    let (de, nl) = (of(&overview, "countries", "country", "DE"), of(&overview, "countries", "country", "NL"));
    assert_eq!((&de["keysToday"], &nl["keysToday"]), (&9.into(), &0.into()));
    assert_eq!((&de["behind"], &nl["behind"]), (&Value::Null, &2.into()));
    assert_eq!(nl["callbacks"], 1);
    assert!(de["certificateDays"].as_i64().unwrap() > 300, "{de}");
    assert_eq!(de["lastUpload"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap(), now);
    assert_eq!(nl["lastUpload"], Value::Null);

    let hours = overview["hours"].as_array().unwrap();
    assert_eq!(hours.len(), 14 * 24);
    assert_eq!(hours[14 * 24 - 1]["keys"], 15);
    assert!(hours[..14 * 24 - 1].iter().all(|hour| hour["keys"] == 0));
    assert_eq!(overview["batches"][0]["keys"], 3, "the newest first");
    assert_eq!(overview["batches"].as_array().unwrap().len(), 3);
    assert_eq!((&overview["waiting"]["uploads"], &overview["waiting"]["keys"]), (&1.into(), &2.into()));
    let this = of(&overview, "instances", "id", &gateway.app.instance.id);
    assert_eq!(this["dead"], false);
    assert!(of(&overview, "jobs", "name", "batching")["lastError"].is_null());
    // The tests' database servers have certificates that do not last.
    let warnings = overview["warnings"].as_array().unwrap();
    let texts = warnings.iter().map(|warning| warning["text"].as_str().unwrap());
    let texts: Vec<_> = texts.filter(|text| !text.contains("DATABASE-CA")).collect();
    assert_eq!(texts, [""; 0], "{warnings:?}");
    // What is only a matter of the configuration is no warning.
    let notes = overview["notes"].as_array().unwrap();
    assert!(
        notes.iter().any(|note| note.as_str().unwrap().starts_with("`[callback]` is not set")),
        "{notes:?}"
    );

    let page = get(&gateway, "/").await.text().await.unwrap();
    for text in ["Germany", "`[callback]` is not set", "2 keys in 1 uploads", &gateway.app.instance.id] {
        assert!(page.contains(text), "{text}: {page}");
    }

    // An instance that was killed, a callback that is paused, an upload that waits too long.
    case.db.execute("INSERT INTO instance (id, host, version, started_at, seen_at) SELECT 'dead000000000000', 'elsewhere', '0', seen_at - 200000, seen_at - 120000 FROM instance").await;
    gateway.app.store.hold_subscription(country("NL"), "notify").await.unwrap();
    // As long as this test has the lease.
    let lease = gateway.app.store.acquire_lease(Job::Batching).await.unwrap().unwrap();
    case.clock.set(now + TimeDelta::hours(4));
    let overview = json(&gateway).await;
    let warnings = overview["warnings"].to_string();
    for text in [
        "an upload has waited for a batch for 240 minutes",
        "the instance dead000000000000 on elsewhere has not reported for 2 minutes",
    ] {
        assert!(warnings.contains(text), "{text}: {warnings}");
    }
    assert!(!warnings.contains("the callback notify"), "{warnings}");
    assert!(overview["notes"].to_string().contains("the callback notify of NL was paused by the operator"));
    let nl = of(&overview, "countries", "country", "NL");
    assert_eq!(
        (&nl["callbacks"], &nl["callbacksPaused"], &nl["callbacksHeld"]),
        (&0.into(), &0.into(), &1.into())
    );
    gateway.app.store.release_lease(lease).await.unwrap();
    gateway.form().await;
}

async fn it_says_whose_uploads_are_refused_and_what_else_a_country_does_not_notice(case: &Case) {
    let limits = |config: &mut efgs_gateway::config::Config| config.limits.keys_per_day = 5;
    let (gateway, other) = (case.gateway_with(limits).await, case.gateway().await);
    let now = case.clock.now();
    let (de, nl) = (gateway.client("DE"), gateway.client("NL"));
    de.upload_new("before", 1, now).await;
    // DE signs with NL's certificate, at one gateway and at the other; NL makes the same mistake and fixes it.
    let de = [&gateway, &other].map(|to| to.client("DE").signing_with(&nl.signing));
    let new_keys = |code| keys(country(code), 1, now);
    for i in 0..4 {
        case.clock.set(now + TimeDelta::seconds(i + 1));
        let keys = new_keys("DE");
        de[i as usize % 2].upload(&format!("{i}"), &keys).await.refused(400, "untrusted-signer");
        let keys = new_keys("NL");
        let wrong = nl.signing_with(&participant("DE").signing);
        wrong.upload(&format!("{i}"), &keys).await.refused(400, "untrusted-signer");
    }
    case.clock.set(now + TimeDelta::minutes(1));
    nl.upload_new("fixed", 5, now).await;
    let ie = gateway.client("IE");
    ie.upload_new("most", 4, now).await;
    case.clock.set(now + TimeDelta::minutes(2));
    ie.upload("more", &keys(country("IE"), 2, now)).await.refused(429, "quota-exceeded");
    case.recorded().await;
    for certificate in gateway.app.store.certificates().await.unwrap() {
        if (certificate.country.as_str(), certificate.kind.as_str()) == ("IT", "SIGNING") {
            let thumbprint = certificate.thumbprint.try_into().unwrap();
            let thumbprint = efgs_protocol::certificate::Thumbprint::from_bytes(thumbprint);
            gateway.app.store.revoke_certificate(thumbprint, now).await.unwrap();
        }
    }
    gateway.reload().await;

    let overview = json(&gateway).await;
    let refused = |code| of(&overview, "countries", "country", code)["refused"].clone();
    assert_eq!(refused("DE"), serde_json::json!({"uploads": 4, "code": "untrusted-signer"}));
    for fixed in ["NL", "IE"] {
        assert_eq!(refused(fixed), serde_json::json!({"uploads": 0, "code": ""}), "{fixed}");
    }
    let it = of(&overview, "countries", "country", "IT");
    assert_eq!(it["certificatesMissing"], serde_json::json!(["SIGNING"]));
    let warnings = overview["warnings"].as_array().unwrap();
    let texts: Vec<_> = warnings.iter().map(|warning| warning["text"].as_str().unwrap()).collect();
    for text in [
        "DE: its last 4 uploads were refused: untrusted-signer",
        "IT has no active SIGNING certificate: its uploads are refused",
        "NL has used up its quota of today",
        "IE has used up its quota of today",
    ] {
        assert!(texts.contains(&text), "{text}: {texts:?}");
    }
    assert!(
        !texts.iter().any(|text| text.starts_with("NL: its last")
            || text.starts_with("IE: its last")
            || text.contains("5xx")),
        "{texts:?}"
    );

    case.db.execute("ALTER TABLE callback_subscription RENAME TO away").await;
    nl.send(Request::get("/diagnosiskeys/callback")).await.expect(500);
    case.db.execute("ALTER TABLE away RENAME TO callback_subscription").await;
    let warnings = json(&gateway).await["warnings"].to_string();
    assert!(warnings.contains("5xx answers in the last hour: 1, the newest internal"), "{warnings}");
    case.clock.set(now + TimeDelta::hours(2));
    assert!(!json(&gateway).await["warnings"].to_string().contains("5xx"));
    case.clock.set(now + TimeDelta::hours(30));
    let overview = json(&gateway).await;
    assert_eq!(of(&overview, "countries", "country", "DE")["refused"]["uploads"], 0, "that was yesterday");
    gateway.form().await;
}

async fn what_others_have_written_is_shown_and_not_carried_out(case: &Case) {
    let gateway = case.gateway().await;
    let id = "<script>alert(1)</script>\"'&";
    let url: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
    put(&gateway.client("NL"), &url.replace('+', "%20"), "https://[2606:4700::1111]/notify")
        .await
        .expect(200);
    gateway.app.store.hold_subscription(country("NL"), id).await.unwrap();
    let page = get(&gateway, "/").await.text().await.unwrap();
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{page}");
    assert!(!page.contains("<script>alert"), "{page}");
}

async fn nothing_comes_from_elsewhere(case: &Case) {
    let gateway = case.gateway().await;
    let answer = get(&gateway, "/").await;
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    let policy = header(CONTENT_SECURITY_POLICY.as_str());
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"), "{policy}");
    assert_eq!((header("x-frame-options"), header("cache-control")), ("DENY".into(), "no-store".into()));
    let page = answer.text().await.unwrap();
    for what in [" src=", "<link", "url(", "@import", "http://", "https://", "style=\"", "onclick"] {
        assert!(!page.contains(what), "{what}");
    }
}

async fn without_the_database_it_says_so(case: &Case) {
    let gateway = case.gateway().await;
    case.db.execute("ALTER TABLE callback_subscription RENAME TO away").await;
    let answer = get(&gateway, "/").await;
    assert_eq!(answer.status(), 503);
    let text = answer.text().await.unwrap();
    assert!(text.starts_with("The overview is not available: "), "{text}");
    case.db.execute("ALTER TABLE away RENAME TO callback_subscription").await;
    assert_eq!(get(&gateway, "/").await.status(), 200);
}

const COUNTRIES: [&str; 30] = [
    "AT", "BE", "BG", "CH", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IS",
    "IT", "LI", "LT", "LU", "LV", "MT", "NL", "NO", "PL", "PT", "RO", "SE", "SI",
];

/// Thirty countries with 14 days of traffic, more by day than by night; some are late, one has never called.
async fn federation(case: &Case, gateway: &Running) {
    let now = case.clock.now();
    for code in COUNTRIES {
        let participant = PKI.participant(country(code)).unwrap();
        for identity in [&participant.authentication, &participant.signing] {
            import(&gateway.app, &identity.bundle).await;
        }
    }
    gateway.reload().await;
    let sql_time = |at: DateTime<Utc>| at.format("%Y-%m-%d %H:%M:%S%.6f").to_string();
    let (mut uploads, mut batches, mut sequence) = (Vec::new(), Vec::new(), 0);
    let mut last = None;
    for hour in (0..14 * 24).rev() {
        let at = now - TimeDelta::hours(hour) - TimeDelta::minutes(7);
        sequence = if last == Some(at.date_naive()) { sequence + 1 } else { 1 };
        last = Some(at.date_naive());
        let id = ObjectId::from_bytes({
            let mut bytes = [7; 12];
            bytes[..4].copy_from_slice(&(at.timestamp() as u32).to_be_bytes());
            bytes
        });
        let mut amount = 0;
        for (i, code) in COUNTRIES.iter().enumerate().take(29) {
            let busy = [1, 1, 1, 1, 2, 3, 6, 10, 14, 16, 16, 14, 12, 12, 13, 14, 13, 11, 9, 7, 5, 3, 2, 1];
            let keys = busy[at.hour() as usize] * (3 + (i * 7 + hour as usize * 5) % 11) / 2;
            amount += keys;
            uploads.push(format!(
                "('{code}', '{hour}', 'protobuf', 1, 0, {keys}, 1, '{}', '', 1, '{}', 1, '{}', '{}', X'{id}')",
                "0".repeat(32), "0".repeat(32), "0".repeat(32), sql_time(at)
            ));
        }
        batches.push(format!(
            "(X'{id}', '{}', {sequence}, 1, {amount}, '{}')",
            at.date_naive(),
            sql_time(at)
        ));
    }
    for rows in uploads.chunks(1000) {
        case.db.execute(&format!("INSERT INTO upload (country, upload_tag, format, format_major, format_minor, amount, payload_bytes, content_hash, batch_signature, uploader_certificate_id, uploader_thumbprint, signing_certificate_id, signing_thumbprint, uploaded_at, batch_id) VALUES {}", rows.join(","))).await;
    }
    let counted = "REPLACE INTO quota (country, day, used_keys, used_bytes) \
                   SELECT country, DATE(uploaded_at), SUM(amount), SUM(payload_bytes) FROM upload \
                   GROUP BY country, DATE(uploaded_at)";
    case.db.execute(counted).await;
    case.db
        .execute(&format!(
            "INSERT INTO batch (id, day, sequence, format_major, amount, formed_at) VALUES {}",
            batches.join(",")
        ))
        .await;
    let micros = |minutes: i64| (now - TimeDelta::minutes(minutes)).timestamp_micros();
    for (i, code) in COUNTRIES.iter().enumerate().take(28) {
        let behind = [0, 0, 0, 1, 0, 0, 2][i % 7] + if i == 11 { 40 } else { 0 };
        case.db.execute(&format!("INSERT INTO downloaded (country, batch_id) SELECT '{code}', id FROM batch ORDER BY id DESC LIMIT 1 OFFSET {behind}")).await;
        case.db.execute(&format!("INSERT INTO statistic (day, country, instance, last_download_at) VALUES ('{}', '{code}', '0000000000000000', {})", case.today(), micros(2 + 61 * behind))).await;
    }
    for code in ["CZ", "DE", "ES", "NL"] {
        gateway
            .app
            .store
            .put_subscription(country(code), "notify", &format!("https://{code}.example/callback"), 256)
            .await
            .unwrap();
    }
    gateway.app.store.hold_subscription(country("ES"), "notify").await.unwrap();
    case.db.execute("UPDATE callback_subscription SET state = 'paused', last_error = 'connect: Connection refused' WHERE country = 'CZ'").await;
}

async fn in_a_browser_thirty_countries_fit_every_screen_and_the_keyboard_reaches_all(case: &Case) {
    // What the browser does is the same with every database.
    let gateway = case.gateway().await;
    if case.db.kind != Kind::Sqlite {
        return;
    }
    let Some(browser) = Browser::start().await else { return };
    federation(case, &gateway).await;
    let url = format!("http://127.0.0.1:{}/", gateway.admin);
    for (name, width, height) in [("wide", 1440, 1000), ("tablet", 820, 1180), ("phone", 390, 844)] {
        for scheme in ["light", "dark"] {
            browser.screen(width, height, scheme).await;
            browser.open(&url).await;
            let overflow =
                "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
            assert_eq!(browser.script(overflow).await, 0, "{name}: the page is wider than the screen");
            let rows = "return document.querySelectorAll('#countries-table tbody tr').length";
            assert_eq!(browser.script(rows).await, 30);
            let hidden = "return [...document.querySelectorAll('#countries-table td span')].filter(cell => cell.getBoundingClientRect().right > innerWidth).length";
            assert_eq!(browser.script(hidden).await, 0, "{name}: cells outside the screen");
            // Contrast of every text with what it stands on (WCAG 2.1, 1.4.3).
            let poor = browser.script(include_str!("contrast.js")).await;
            assert_eq!(poor, serde_json::json!([]), "{name}, {scheme}: too little contrast");
            browser.screenshot(&format!("{name}-{scheme}")).await;
        }
    }
    // The keyboard reaches the details and opens them; what is open and focused survives a refresh.
    browser.screen(1440, 1000, "light").await;
    browser.open(&url).await;
    let mut reached = Vec::new();
    for _ in 0..8 {
        browser.press("\u{e004}").await;
        let focus = "return document.activeElement.id || document.activeElement.textContent";
        reached.push(browser.script(focus).await.as_str().unwrap().to_owned());
        if reached.last().is_some_and(|id| id == "per-day-summary") {
            break;
        }
    }
    assert_eq!(reached.first().map(String::as_str), Some("To the countries"), "{reached:?}");
    assert_eq!(reached.last().map(String::as_str), Some("per-day-summary"), "{reached:?}");
    browser.press(" ").await;
    assert_eq!(browser.script("return document.getElementById('per-day').open").await, true);
    let before = case.clock.now();
    gateway.client("DE").upload_new("new", 4321, before).await;
    let waiting = "return document.getElementById('batches').textContent.includes('4\u{202f}321 keys')";
    browser.until(waiting).await;
    assert_eq!(browser.script("return document.getElementById('per-day').open").await, true);
    assert_eq!(browser.script("return document.activeElement.id").await, "per-day-summary");
    // For a screen reader: names, roles, and no table that the narrow layout has taken apart.
    browser.screen(390, 844, "light").await;
    let tree = browser.accessibility().await;
    for (role, name) in [
        ("heading", "Countries"),
        ("region", "Keys per hour"),
        ("table", "How each country is served"),
        ("columnheader", "Last download"),
        ("rowheader", "DE Germany"),
        ("status", ""),
    ] {
        let there = tree.iter().any(|(r, n)| r == role && (name.is_empty() || n == name));
        assert!(there, "{role} {name}: {tree:?}");
    }
    // The gateway goes away: the page says that it is old.
    case.stop(&gateway).await;
    browser.until("return !document.getElementById('away').hidden").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.end().await;
    // What was put there by hand has no keys.
    for table in ["upload", "diagnosis_key", "batch"] {
        case.db.execute(&format!("DELETE FROM {table}")).await;
    }
}
