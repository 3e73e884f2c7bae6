//! Uploads of 5,000 keys, beside bare inserts of the same rows in another schema of the same server.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    Outcome, bare,
    connection::Connection,
    database::{Kind, Schema},
    gateway::Site,
    load::{Processes, Round, Side, Turns, drive},
    process::Memory,
    report::{Line, Report},
    uploads::{KEYS, Maker, Upload},
};

/// Uploads in one round of one side.
const ROUND: usize = 24;

pub(crate) async fn measure(program: &Path, kind: Kind, time: Duration, report: &mut Report) -> Outcome {
    report.progress(format!("upload on {}", kind.name()));
    let site = Site::new(program, kind).await?;
    // SQLite has no server that somebody else could use meanwhile, and so no baseline.
    let bare = match kind {
        Kind::Sqlite => None,
        Kind::MariaDb | Kind::MySql => Some(Schema::create(kind, site.folder.path()).await?),
    };
    if let Some(bare) = &bare {
        site.migrate(bare)?;
    }
    let gateway = site.start("")?;
    report.memory(format!("{}, idle after the start", kind.name()), Memory::of(gateway.id()));
    for connections in [1, 4] {
        // Each connection is another country's: uploads of one country take turns.
        let mut open = Vec::new();
        let mut makers = Vec::new();
        for participant in &site.participants[..connections] {
            open.push(site.writer(gateway.port, participant)?);
            makers.push(Maker::new(participant)?);
        }
        let pool = bare.as_ref().map(|schema| schema.pool(connections)).transpose()?;
        let mut own = Side::new(gateway.processes(kind));
        let mut other = Side::new(Processes { server: std::process::id(), database: kind.process() });
        let mut turns = Turns::new(time);
        while turns.another() {
            let uploads = makers.iter().cycle().take(ROUND).map(|maker| maker.upload(KEYS));
            let uploads: Arc<Vec<Upload>> = Arc::new(uploads.collect::<Outcome<_>>()?);
            own.round(async {
                let (back, round) = send_all(std::mem::take(&mut open), uploads.clone()).await?;
                open = back;
                Ok(round)
            })
            .await?;
            if let Some(pool) = &pool {
                other.round(bare::insert_all(pool, connections, uploads)).await?;
            }
        }
        let mut line = Line::new(format!("upload, {}", kind.name()), connections, &own).with_keys(KEYS);
        if let Some(pool) = pool {
            line = line.beside("bare insert", &other, &own);
            pool.disconnect().await?;
        }
        report.add(line);
    }
    report.memory(format!("{}, after the uploads", kind.name()), Memory::of(gateway.id()));
    drop(gateway);
    if let Some(bare) = bare {
        bare.remove().await?;
    }
    site.schema.remove().await
}

/// Sends each upload once. The uploads of the connections' countries follow each other in turn.
pub(crate) async fn send_all(
    connections: Vec<Connection>,
    uploads: Arc<Vec<Upload>>,
) -> Outcome<(Vec<Connection>, Round)> {
    send_until(connections, uploads, Arc::default()).await
}

/// The same until `over` is set: what is then left is not sent.
pub(crate) async fn send_until(
    connections: Vec<Connection>,
    uploads: Arc<Vec<Upload>>,
    over: Arc<AtomicBool>,
) -> Outcome<(Vec<Connection>, Round)> {
    let all = connections.len();
    drive(connections, move |connection, at, turn| {
        if over.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Some(upload) = uploads.get(turn * all + at) else { return Ok(false) };
        let mut body = Vec::new();
        let head = connection.exchange(&upload.request, |piece| body.extend_from_slice(piece))?;
        if head.status() != 201 {
            let body = String::from_utf8_lossy(&body);
            return Err(format!("an upload was answered {}: {body}", head.status()).into());
        }
        Ok(true)
    })
    .await
}
