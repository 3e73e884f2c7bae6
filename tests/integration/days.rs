//! The days that the keys are divided into.

use chrono::{Days, NaiveDate, NaiveTime, TimeDelta};
use efgs_gateway::{server::App, store::ExpiryStep};
use sea_orm::QueryResult;
use serde_json::json;

use crate::{
    client::{keys, pick},
    database::Kind,
    full::to_undivided_keys,
    harness::{Case, country, tests},
};

tests![
    what_waits_at_midnight_is_kept_as_long_as_its_batch,
    days_are_added_a_week_ahead_and_dropped_when_they_have_expired,
    an_upload_and_a_batch_add_the_day_that_is_missing,
    few_days_ahead_are_warned_of_and_none_makes_the_gateway_unready,
    statements_about_keys_read_only_their_day,
    the_keys_of_the_version_before_are_copied_and_stay_taken,
    the_view_shows_documents_with_their_batch,
    what_the_server_is_set_to_is_known,
];

fn number(day: NaiveDate) -> i64 {
    (day - NaiveDate::default()).num_days()
}

/// The days of a table's partitions, ascending.
async fn partitions(case: &Case, table: &str) -> Vec<i64> {
    case.db
        .column(&format!(
            "SELECT CAST(SUBSTR(partition_name, 2) AS SIGNED) FROM information_schema.partitions \
             WHERE table_schema = DATABASE() AND table_name = '{table}' ORDER BY partition_ordinal_position"
        ))
        .await
}

async fn what_waits_at_midnight_is_kept_as_long_as_its_batch(case: &Case) {
    let gateway = case.gateway().await;
    let (client, reader) = (gateway.client("DE"), gateway.client("NL"));
    let midnight = (case.today() + Days::new(1)).and_time(NaiveTime::MIN).and_utc();
    case.clock.set(midnight - TimeDelta::seconds(1));
    let before = client.upload_new("a", 3, case.clock.now()).await;
    case.clock.set(midnight);
    let after = client.upload_new("b", 2, case.clock.now()).await;
    gateway.form().await;
    let here = format!("SELECT COUNT(*) FROM diagnosis_key WHERE day = {}", number(case.today()));
    assert_eq!(case.db.number(&here).await, 5);
    let both = crate::client::join(&[&before, &after]);
    assert_eq!(reader.download(case.today(), None).await.expect(200).keys(), both);
    // The last day of the batch.
    case.clock.set(midnight + Days::new(15) - TimeDelta::seconds(1));
    assert!(gateway.app.expiry.expire_now().await.unwrap().is_empty());
    let other = case.gateway().await;
    let day = case.today() - Days::new(14);
    assert_eq!(other.client("NL").download(day, None).await.expect(200).keys(), both);
    case.clock.set(midnight + Days::new(15));
    let done = gateway.app.expiry.expire_now().await.unwrap();
    assert_eq!(done, ExpiryStep { keys: 5, uploads: 2, batches: 0 });
    assert_eq!(case.db.counts().await, [0, 0, 1]);
}

async fn days_are_added_a_week_ahead_and_dropped_when_they_have_expired(case: &Case) {
    let gateway = case.gateway().await;
    if case.db.kind == Kind::Sqlite {
        return;
    }
    let expected = |days: std::ops::RangeInclusive<i64>| {
        let today = number(case.today());
        days.map(|day| today + day).collect::<Vec<_>>()
    };
    assert_eq!(partitions(case, "diagnosis_key").await, expected(-14..=7));
    assert_eq!(partitions(case, "key_hash").await, expected(-16..=7));
    case.clock.set(case.clock.now() + Days::new(3));
    gateway.app.expiry.expire_now().await.unwrap();
    assert_eq!(partitions(case, "diagnosis_key").await, expected(-14..=7));
    assert_eq!(partitions(case, "key_hash").await, expected(-16..=7));
    // All instances may do so at once.
    case.clock.set(case.clock.now() + Days::new(3));
    let other = case.gateway().await;
    let add = async |app: &App| app.store.add_days(app.chain.oldest(), case.today()).await;
    let (one, two) = tokio::join!(add(&gateway.app), add(&other.app));
    one.unwrap();
    two.unwrap();
    assert_eq!(gateway.app.store.days_ahead(case.today()).await.unwrap(), 7);
}

async fn an_upload_and_a_batch_add_the_day_that_is_missing(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let first = client.upload_new("a", 2, case.clock.now()).await;
    // As if no gateway had been running.
    case.clock.set(case.clock.now() + Days::new(9));
    let formed = case.today();
    gateway.form().await;
    assert_eq!(gateway.client("NL").download(formed, None).await.expect(200).keys(), first);
    case.clock.set(case.clock.now() + Days::new(90));
    let second = client.upload_new("b", 2, case.clock.now()).await;
    gateway.form().await;
    assert_eq!(gateway.client("NL").download(case.today(), None).await.expect(200).keys(), second);
    assert_eq!(gateway.app.expiry.expire_now().await.unwrap().keys, 2);
}

async fn few_days_ahead_are_warned_of_and_none_makes_the_gateway_unready(case: &Case) {
    let gateway = case.gateway().await;
    if case.db.kind == Kind::Sqlite {
        return;
    }
    let today = number(case.today());
    for (drop, ready, said) in [
        (4..=7, true, None),
        (3..=3, true, Some("partitions for 2 more days only")),
        (1..=2, false, Some("no partition for tomorrow")),
        (0..=0, false, Some("no partition for today")),
    ] {
        let names: Vec<_> = drop.map(|day| format!("p{}", today + day)).collect();
        let sql = format!("ALTER TABLE key_hash DROP PARTITION {}", names.join(", "));
        case.db.execute(&sql).await;
        gateway.app.expiry.look_at_database().await.unwrap();
        let readiness = gateway.app.readiness(std::time::Duration::from_secs(5)).await;
        assert_eq!(readiness.reasons.is_empty(), ready, "{readiness:?}");
        let texts = readiness.warnings.iter().map(|warning| &warning.text).chain(&readiness.reasons);
        let mut texts = texts.filter(|text| text.contains("partition"));
        match said {
            Some(said) => assert!(texts.any(|text| text.contains(said)), "{readiness:?}"),
            None => assert_eq!(texts.next(), None),
        }
    }
    gateway.app.expiry.expire_now().await.unwrap();
    gateway.app.expiry.look_at_database().await.unwrap();
    assert_eq!(gateway.app.health.database().days_ahead, Some(7));
}

async fn statements_about_keys_read_only_their_day(case: &Case) {
    let gateway = case.gateway().await;
    if case.db.kind == Kind::Sqlite {
        return;
    }
    for day in 0..2 {
        case.clock.set(case.clock.now() + Days::new(day));
        for tag in ["a", "b", "c"] {
            gateway.client("DE").upload_new(&format!("{tag}{day}"), 500, case.clock.now()).await;
        }
        gateway.form().await;
    }
    case.db.rows("ANALYZE TABLE diagnosis_key, key_hash, upload, batch").await;
    let ids: Vec<i64> = case.db.column("SELECT id FROM upload ORDER BY id").await;
    let (one, other) = (ids[3], ids[5]);
    let day = number(case.today());
    let explain =
        if case.db.kind == Kind::MySql { "EXPLAIN FORMAT=TRADITIONAL" } else { "EXPLAIN PARTITIONS" };
    let hash: Vec<Vec<u8>> = case.db.column("SELECT hash FROM key_hash LIMIT 1").await;
    let hash: String = hash[0].iter().map(|byte| format!("{byte:02x}")).collect();
    let of_upload = format!(
        "SELECT DATEDIFF(COALESCE(b.day, u.uploaded_at), '1970-01-01') FROM upload u \
         LEFT JOIN batch b ON b.id = u.batch_id WHERE u.id = {one}"
    );
    for (sql, table, key, pruned) in [
        (
            format!(
                "SELECT payload FROM diagnosis_key WHERE day = {day} AND upload_id IN ({one}, {other}) ORDER BY upload_id, position"
            ),
            "diagnosis_key",
            "PRIMARY",
            true,
        ),
        (
            format!(
                "SELECT payload FROM diagnosis_key WHERE day = ({of_upload}) AND upload_id = {one} ORDER BY position"
            ),
            "diagnosis_key",
            "PRIMARY",
            // The day is known only while it is carried out.
            false,
        ),
        (
            format!("SELECT hash FROM key_hash WHERE rolling_day = {day} AND hash IN (x'{hash}', x'00')"),
            "key_hash",
            "PRIMARY",
            true,
        ),
        (
            format!("SELECT upload_id FROM diagnosis_key WHERE report_type = 5 AND day = {day}"),
            "diagnosis_key",
            "diagnosis_key_report_type",
            true,
        ),
    ] {
        let plan = case.db.rows(&format!("{explain} {sql}")).await;
        let table_of = |row: &QueryResult| row.try_get::<Option<String>>("", "table").unwrap();
        let tables: Vec<_> = plan.iter().map(table_of).collect();
        let at = tables.iter().position(|name| name.as_deref() == Some(table));
        let row = &plan[at.unwrap_or_else(|| panic!("{sql}: {ids:?} {tables:?}"))];
        let read = |column: &str| row.try_get::<Option<String>>("", column).unwrap().unwrap_or_default();
        assert_eq!(read("key"), key, "{sql}");
        assert!(["ref", "range", "const"].contains(&&*read("type")), "{sql}: {}", read("type"));
        assert!(!read("Extra").contains("filesort"), "{sql}: {}", read("Extra"));
        if pruned {
            assert_eq!(read("partitions"), format!("p{day}"), "{sql}");
        }
    }
}

async fn the_keys_of_the_version_before_are_copied_and_stay_taken(case: &Case) {
    let first = case.gateway().await;
    let client = first.client("DE");
    let batched = client.upload_new("a", 1200, case.clock.now()).await;
    first.form().await;
    let waiting = client.upload_new("b", 3, case.clock.now()).await;
    case.stop(&first).await;
    to_undivided_keys(case).await;
    // By two instances at once.
    let [one, two] =
        [(); 2].map(|()| App::new(case.config(), case.clock.clone(), None).unwrap().store.clone());
    let (first, second) = tokio::join!(one.migrate(), two.migrate());
    first.unwrap();
    second.unwrap();
    tokio::join!(one.close(), two.close());

    // Goes on where it was interrupted: when the hashes of the second upload were copied, and its keys were not.
    let done = "DELETE FROM seaql_migrations WHERE version = 'm0011_days'";
    assert_eq!(case.db.execute(done).await, 1);
    let old = "CREATE TABLE diagnosis_key_old AS \
               SELECT upload_id, position, payload_hash, report_type, payload FROM diagnosis_key";
    case.db.execute(old).await;
    case.db.execute("DELETE FROM diagnosis_key WHERE upload_id = (SELECT MAX(id) FROM upload)").await;
    let gateway = case.gateway().await;
    assert_eq!(case.db.counts().await, [2, 1203, 1]);
    assert_eq!(case.db.number("SELECT COUNT(*) FROM key_hash WHERE rolling_day = 0").await, 1203);

    let (client, reader) = (gateway.client("DE"), gateway.client("NL"));
    assert_eq!(reader.download(case.today(), None).await.expect(200).keys(), batched);
    client.upload("a", &batched).await.expect(201);
    let new = keys(country("DE"), 2, case.clock.now());
    let mixed = pick(&crate::client::join(&[&new, &waiting, &batched]), [0, 2, 1, 1000]);
    let answer = client.upload("c", &mixed).await.expect(207);
    assert_eq!(answer.json(), json!({"201": [0, 2], "409": [1, 3], "500": []}));
    client.upload("c", &new).await.expect(201);
    gateway.form().await;

    // Until they are too old to be uploaded.
    let seconds = case.clock.now().timestamp();
    let now = format!("UPDATE seaql_migrations SET applied_at = {seconds} WHERE version = 'm0011_days'");
    assert_eq!(case.db.execute(&now).await, 1);
    let older = "SELECT COUNT(*) FROM key_hash WHERE rolling_day = 0";
    case.clock.set(case.clock.now() + Days::new(16));
    gateway.app.expiry.expire_now().await.unwrap();
    assert_eq!(case.db.number(older).await, 1203);
    case.clock.set(case.clock.now() + Days::new(1));
    gateway.app.expiry.expire_now().await.unwrap();
    assert_eq!(case.db.number(older).await, 0);
    assert_eq!(case.db.counts().await, [0, 0, 1]);
}

async fn the_view_shows_documents_with_their_batch(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 2, case.clock.now()).await;
    case.clock.set(case.clock.now() + Days::new(1));
    let batch = gateway.form().await.remove(0);
    gateway.client("IT").upload_new("b", 3, case.clock.now()).await;
    let count = |condition: &str| format!("SELECT COUNT(*) FROM document WHERE {condition}");
    assert_eq!(case.db.number(&count(&format!("batch_tag = '{batch}'"))).await, 2);
    assert_eq!(case.db.number(&count("batch_day IS NULL AND uploader_country = 'IT'")).await, 3);
    assert_eq!(case.db.number(&count("diagnosis_type >= 0 AND LENGTH(payload_hash) = 64")).await, 5);
}

async fn what_the_server_is_set_to_is_known(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 500, case.clock.now()).await;
    if case.db.kind != Kind::Sqlite {
        case.db.rows("ANALYZE TABLE key_hash").await;
    }
    let sizing = gateway.app.store.sizing().await.unwrap();
    if case.db.kind == Kind::Sqlite {
        assert_eq!(sizing, None);
        return;
    }
    // As xtask/scripts/db.sh starts it.
    let sizing = sizing.unwrap();
    assert_eq!((sizing.pool, sizing.redo), (256 << 20, 128 << 20));
    assert!(sizing.keys <= 1000, "{sizing:?}");
}
