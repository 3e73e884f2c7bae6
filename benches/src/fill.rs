//! Fills a schema with the keys of the last days, faster than uploads could.

use std::time::Instant;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use efgs_protocol::key::OLDEST_DAYS;
use mysql_async::{Pool, TxOpts, prelude::Queryable};

use crate::{
    Outcome, bare,
    report::Report,
    uploads::{KEYS, Maker, Row, Upload},
};

/// Days that are filled, the last one yesterday: one less than the retention, so that nothing expires by itself.
pub(crate) const DAYS: u64 = 13;
/// Connections that insert.
const CONNECTIONS: usize = 2;
/// Uploads in one transaction.
const TRANSACTION: usize = 40;
/// The gateway keeps the hashes of keys that began this many days before today, or later.
const HASH_DAYS: u64 = OLDEST_DAYS + 1;

/// When an upload was made and what its batch is called. Each upload is a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Planned {
    at: DateTime<Utc>,
    sequence: usize,
    batch: [u8; 12],
}

/// The uploads of all days, in their order.
fn plan(uploads: usize, today: NaiveDate) -> Vec<Planned> {
    let days = DAYS as usize;
    let mut all = Vec::with_capacity(uploads);
    for day in 0..days {
        let amount = uploads * (day + 1) / days - uploads * day / days;
        let date = today.checked_sub_days(Days::new((days - day) as u64)).unwrap_or_default();
        for sequence in 1..=amount {
            let seconds = 86_400 * (sequence - 1) / amount;
            let at = date.and_time(NaiveTime::MIN).and_utc() + TimeDelta::seconds(seconds as i64);
            // An ObjectId: the time, random bytes (here the same for all), a counter.
            let mut batch = [0; 12];
            batch[..4].copy_from_slice(&(at.timestamp() as u32).to_be_bytes());
            batch[8..].copy_from_slice(&(sequence as u32).to_be_bytes());
            all.push(Planned { at, sequence, batch });
        }
    }
    all
}

/// Another upload of the size of `like`: its hashes and payloads are random, so nobody can download it.
fn another(like: &Upload, planned: Planned) -> Upload {
    let age = (like.at.date_naive() - planned.at.date_naive()).num_days() as u16;
    let rows = like.rows.iter().map(|row| {
        let mut payload = vec![0; row.payload.len()];
        rand::fill(&mut payload[..]);
        let rolling_day = row.rolling_day - age;
        Row { rolling_day, payload_hash: rand::random(), payload, ..*row }
    });
    Upload {
        country: like.country,
        tag: format!("{:016x}", rand::random::<u64>()),
        signature: like.signature.clone(),
        content_hash: rand::random(),
        at: planned.at,
        batch: Some(planned.batch),
        request: Vec::new(),
        rows: rows.collect(),
    }
}

/// Inserts about so many keys of the days before `today`; how many it were.
pub(crate) async fn fill(
    pool: &Pool,
    maker: &Maker,
    keys: usize,
    today: NaiveDate,
    report: &Report,
) -> Outcome<usize> {
    let plan = plan(keys.div_ceil(KEYS), today);
    let first_hashes = (today - NaiveDate::default()).num_days() as u16 - HASH_DAYS as u16;
    let (begun, mut done, mut said) = (Instant::now(), 0, 0);
    for uploads in plan.chunks(TRANSACTION * CONNECTIONS) {
        let mut tasks = Vec::new();
        for uploads in uploads.chunks(TRANSACTION) {
            let (pool, uploads, like) = (pool.clone(), uploads.to_vec(), maker.upload(KEYS)?);
            tasks.push(tokio::spawn(async move { insert(&pool, &like, &uploads, first_hashes).await }));
        }
        for task in tasks {
            task.await??;
        }
        done += uploads.len();
        let share = done * 20 / plan.len();
        if share > said {
            said = share;
            let (keys, seconds) = (done * KEYS, begun.elapsed().as_secs_f64());
            report.progress(format!("filled {keys} keys, {:.0} a second", keys as f64 / seconds));
        }
    }
    // What the servers do by themselves some time after as many changes.
    pool.get_conn().await?.query_drop("ANALYZE TABLE upload, batch, diagnosis_key, key_hash").await?;
    Ok(done * KEYS)
}

/// One transaction.
async fn insert(pool: &Pool, like: &Upload, uploads: &[Planned], first_hashes: u16) -> Outcome {
    let mut connection = pool.get_conn().await?;
    let mut tx = connection.start_transaction(TxOpts::default()).await?;
    for planned in uploads {
        bare::insert_in(&mut tx, &another(like, *planned), first_hashes).await?;
        let at = planned.at.format("%Y-%m-%d %H:%M:%S").to_string();
        tx.exec_drop(
            "INSERT INTO batch (id, day, sequence, format_major, amount, formed_at) VALUES (?, DATE(?), ?, 1, ?, ?)",
            (planned.batch, &at, planned.sequence, KEYS, &at),
        )
        .await?;
    }
    Ok(tx.commit().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_covers_the_days_before_today_with_ascending_batches() {
        let today = NaiveDate::from_ymd_opt(2026, 3, 20).unwrap_or_default();
        let plan = plan(1000, today);
        assert_eq!(plan.len(), 1000);
        assert!(plan.is_sorted_by(|a, b| a.batch < b.batch && a.at <= b.at));
        let mut days: Vec<_> = plan.iter().map(|upload| upload.at.date_naive()).collect();
        days.dedup();
        let expected: Vec<_> =
            (1..=DAYS).rev().filter_map(|ago| today.checked_sub_days(Days::new(ago))).collect();
        assert_eq!(days, expected);
        for day in days {
            let mut sequences =
                plan.iter().filter(|upload| upload.at.date_naive() == day).map(|it| it.sequence);
            assert!(sequences.by_ref().zip(1..).all(|(found, wanted)| found == wanted), "{day}");
        }
    }
}
