//! The journal: what uploads pay for it, and how long it takes to fill an empty database from it again. What
//! countries see afterwards is compared with what they saw before, byte by byte.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use efgs_protocol::wire;

use crate::{
    Outcome,
    connection::Connection,
    database::{Kind, Schema},
    download::{PROTOBUF, get},
    gateway::{Gateway, Site, size_of},
    load::{Side, Turns},
    report::{Line, Report},
    upload::send_all,
    uploads::{KEYS, Maker, now},
};

/// Uploads in one round.
const ROUND: usize = 20;

/// What a country sees: of each batch its names, validator, keys and audit.
type Seen = Vec<(Vec<Option<String>>, Vec<u8>, Vec<u8>)>;

pub(crate) async fn measure(
    program: &Path,
    kind: Kind,
    time: Duration,
    keys: usize,
    report: &mut Report,
) -> Outcome {
    report.progress(format!("journal on {}", kind.name()));
    let site = Site::new(program, kind).await?;
    let more = "[journal]\nfolder = \"journal\"\n";
    std::fs::create_dir(site.folder.path().join("journal"))?;
    let gateway = site.start(more)?;
    let mut uploaded = 0;
    for connections in [1, 4] {
        let mut own = Side::new(gateway.processes(kind));
        let mut turns = Turns::new(time);
        while turns.another() {
            own.round(upload(&site, &gateway, connections)).await?;
            uploaded += ROUND * KEYS;
        }
        report.add(
            Line::new(format!("upload with a journal, {}", kind.name()), connections, &own).with_keys(KEYS),
        );
    }
    while uploaded < keys {
        upload(&site, &gateway, 4).await?;
        uploaded += ROUND * KEYS;
    }
    site.configure(&site.schema, more)?;
    site.run_on(&site.schema, &["batch", "form"])?;
    let before = look(&site, &gateway)?;
    drop(gateway);

    let other = Schema::create(kind, site.folder.path()).await?;
    site.configure(&other, more)?;
    let begun = Instant::now();
    let said = site.run_on(&other, &["journal", "verify"])?;
    report.progress(format!("{} ({:.1} s)", said.trim(), begun.elapsed().as_secs_f64()));
    let begun = Instant::now();
    let said = site.run_on(&other, &["journal", "replay"])?;
    report.progress(format!(
        "{} ({:.1} s with the process's start)",
        said.trim(),
        begun.elapsed().as_secs_f64()
    ));
    let gateway = site.start_on(&other, more)?;
    if look(&site, &gateway)? != before {
        return Err("after the replay countries see something else than before".into());
    }
    report.progress(format!(
        "the same {} batches are served, byte by byte, with the same audits",
        before.len()
    ));
    drop(gateway);
    report.progress(format!(
        "the journal has {:.1} MiB",
        size_of(site.folder.path().join("journal"))? as f64 / (1 << 20) as f64
    ));
    other.remove().await?;
    site.schema.remove().await
}

async fn upload(site: &Site, gateway: &Gateway, connections: usize) -> Outcome<crate::load::Round> {
    let mut open = Vec::new();
    let mut uploads = Vec::new();
    let writers = &site.participants[..connections];
    for participant in writers {
        open.push(site.writer(gateway.port, participant)?);
    }
    let makers = writers.iter().map(Maker::new).collect::<Outcome<Vec<_>>>()?;
    for maker in makers.iter().cycle().take(ROUND) {
        uploads.push(maker.upload(KEYS)?);
    }
    Ok(send_all(open, Arc::new(uploads)).await?.1)
}

/// All batches of today, and their audits, as one country sees them.
fn look(site: &Site, gateway: &Gateway) -> Outcome<Seen> {
    let day = now().date_naive();
    let mut connection = Connection::open(gateway.port, &site.reader(true)?)?;
    let mut seen = Seen::new();
    let mut tag: Option<String> = None;
    loop {
        let mut headers = vec![("Accept", PROTOBUF)];
        headers.extend(tag.as_deref().map(|tag| (wire::BATCH_TAG, tag)));
        let (mut body, mut audit) = (Vec::new(), Vec::new());
        let request = get(&format!("{}/{day}", wire::DOWNLOAD_PATH), &headers);
        let head = connection.exchange(&request, |piece| body.extend_from_slice(piece))?;
        let header = |name| head.header(name).map(str::to_owned);
        let this =
            header(wire::BATCH_TAG).ok_or_else(|| format!("a download was answered {}", head.status()))?;
        let request = get(&format!("{}/{day}/{this}", wire::AUDIT_PATH), &[]);
        connection.exchange(&request, |piece| audit.extend_from_slice(piece))?;
        let next = header(wire::NEXT_BATCH_TAG);
        seen.push((vec![Some(this), next.clone(), header("ETag")], body, audit));
        match next {
            Some(next) if next != wire::NO_NEXT_BATCH => tag = Some(next),
            _ => return Ok(seen),
        }
    }
}
