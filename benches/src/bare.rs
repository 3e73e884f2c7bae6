//! The same rows as an upload's, inserted by the bare database driver: prepared inserts of 500 keys and 2,500 hashes, in
//! one durable transaction.

use std::{sync::Arc, time::Instant};

use chrono::{Datelike, NaiveDate, Timelike};
use mysql_async::{Conn, Params, Pool, Transaction, TxOpts, Value, prelude::Queryable};

use crate::{Outcome, load::Round, uploads::Upload};

/// Keys of one insert.
const ROWS: usize = 500;
/// Hashes of one insert.
const HASHES: usize = 2500;

/// Inserts all uploads on as many connections at once.
pub(crate) async fn insert_all(pool: &Pool, connections: usize, uploads: Arc<Vec<Upload>>) -> Outcome<Round> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(pool.get_conn().await?);
    }
    let start = Instant::now();
    let mut tasks = Vec::new();
    for (at, mut connection) in open.into_iter().enumerate() {
        let uploads = uploads.clone();
        tasks.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            for upload in uploads.iter().skip(at).step_by(connections) {
                let begin = Instant::now();
                insert(&mut connection, upload).await?;
                latencies.push(begin.elapsed().as_secs_f64());
            }
            Outcome::Ok(latencies)
        }));
    }
    let mut round = Round::default();
    for task in tasks {
        round.latencies.extend(task.await??);
    }
    round.seconds = start.elapsed().as_secs_f64();
    Ok(round)
}

async fn insert(connection: &mut Conn, upload: &Upload) -> Outcome {
    let mut tx = connection.start_transaction(TxOpts::default()).await?;
    insert_in(&mut tx, upload, 0).await?;
    Ok(tx.commit().await?)
}

/// Inserts an upload's rows, of the hashes only those of keys of `first_hashes` or later: as the gateway keeps them.
pub(crate) async fn insert_in(tx: &mut Transaction<'_>, upload: &Upload, first_hashes: u16) -> Outcome {
    let (day, time) = (upload.at.date_naive(), upload.at.time());
    let row: Vec<Value> = vec![
        upload.country.as_str().into(),
        upload.tag.as_bytes().into(),
        "protobuf".into(),
        1.into(),
        0.into(),
        upload.rows.len().into(),
        upload.rows.iter().map(|row| row.payload.len()).sum::<usize>().into(),
        upload.content_hash.as_slice().into(),
        upload.signature.as_str().into(),
        1.into(),
        upload.content_hash.as_slice().into(),
        2.into(),
        upload.content_hash.as_slice().into(),
        Value::Date(
            day.year() as u16,
            day.month() as u8,
            day.day() as u8,
            time.hour() as u8,
            time.minute() as u8,
            time.second() as u8,
            time.nanosecond() / 1000,
        ),
        upload.batch.into(),
    ];
    tx.exec_drop(
        "INSERT INTO upload (country, upload_tag, format, format_major, format_minor, amount, payload_bytes, \
         content_hash, batch_signature, uploader_certificate_id, uploader_thumbprint, signing_certificate_id, \
         signing_thumbprint, uploaded_at, batch_id, key_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
        Params::Positional(row),
    )
    .await?;
    let id = tx.last_insert_id().ok_or("the database gave an upload no number")?;
    let kept = upload.rows.iter().filter(|row| row.rolling_day >= first_hashes);
    let mut hashes: Vec<_> = kept.map(|row| (row.rolling_day, &row.payload_hash[..16])).collect();
    hashes.sort_unstable();
    for hashes in hashes.chunks(HASHES) {
        let values = hashes.iter().flat_map(|(day, hash)| [(*day).into(), (*hash).into()]).collect();
        let marks = vec!["(?,?)"; hashes.len()].join(",");
        let sql = format!("INSERT INTO key_hash (rolling_day, hash) VALUES {marks}");
        tx.exec_drop(sql, Params::Positional(values)).await?;
    }
    let day = (day - NaiveDate::default()).num_days();
    for rows in upload.rows.chunks(ROWS) {
        let mut values = Vec::with_capacity(rows.len() * 6);
        for row in rows {
            values.extend([
                day.into(),
                id.into(),
                row.position.into(),
                row.payload_hash.as_slice().into(),
                row.report_type.into(),
                row.payload.as_slice().into(),
            ]);
        }
        let marks = vec!["(?,?,?,?,?,?)"; rows.len()].join(",");
        let sql = format!(
            "INSERT INTO diagnosis_key (day, upload_id, position, payload_hash, report_type, payload) VALUES {marks}"
        );
        tx.exec_drop(sql, Params::Positional(values)).await?;
    }
    Ok(())
}
