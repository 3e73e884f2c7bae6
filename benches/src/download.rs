//! Downloads and audits of full batches, beside nginx that serves the same bytes as a file.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use chrono::NaiveDate;
use efgs_protocol::wire;
use rustls::ClientConfig;

use crate::{
    Outcome,
    connection::{Connection, Head},
    database::Kind,
    gateway::{Gateway, Site},
    load::{Processes, Round, Side, Turns, drive},
    nginx::Nginx,
    process::Memory,
    report::{Line, Report},
    upload::send_all,
    uploads::{KEYS, Maker, now},
};

pub(crate) const PROTOBUF: &str = "application/protobuf; version=1.0";
pub(crate) const JSON: &str = "application/json; version=1.0";
/// Full batches to serve.
const BATCHES: usize = 24;
/// Uploads in a batch, each of another country.
const UPLOADS: usize = 4;
/// How long one side has its turn.
const TURN: Duration = Duration::from_millis(700);
/// How long the last batch may take to be formed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn measure(
    program: &Path,
    kind: Kind,
    time: Duration,
    (download, audit): (bool, bool),
    report: &mut Report,
) -> Outcome {
    report.progress(format!("download and audit on {}", kind.name()));
    let site = Site::new(program, kind).await?;
    let day = now().date_naive();
    let tags = {
        // Another process, so that the memory that is reported below is that of a gateway which only serves.
        let gateway = site.start("")?;
        fill(&site, &gateway).await?;
        chain(&site, &gateway, day).await?
    };
    let gateway = site.start("")?;
    report.memory(format!("{}, idle after the start", kind.name()), Memory::of(gateway.id()));
    let bench = Bench { site: &site, kind, day, gateway, time };
    if download {
        bench.downloads(&tags, report).await?;
    }
    if audit {
        let audit = get(&format!("{}/{day}/{}", wire::AUDIT_PATH, tags[0]), &[]);
        let line = bench.compare("audit of a batch of 4 uploads", 8, audit, None).await?;
        report.add(line);
    }
    let Bench { gateway, .. } = bench;
    drop(gateway);
    if download {
        let gateway = site.start("[download]\ncache = \"4MiB\"\n")?;
        for accept in [PROTOBUF, JSON] {
            read(&site, gateway.port, day, &tags, accept).await?;
        }
        let when = "the same batches, read by a gateway with download.cache = \"4MiB\"";
        report.memory(when.into(), Memory::of(gateway.id()));
    }
    site.schema.remove().await
}

/// Uploads batches of several countries.
pub(crate) async fn fill(site: &Site, gateway: &Gateway) -> Outcome {
    // The batching job's first turn forms a batch of whatever waits, full or not: let it find nothing.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut open = Vec::new();
    let mut makers = Vec::new();
    for participant in &site.participants[..UPLOADS] {
        open.push(site.writer(gateway.port, participant)?);
        makers.push(Maker::new(participant)?);
    }
    for _ in 0..BATCHES {
        let uploads = makers.iter().map(|maker| maker.upload(KEYS / UPLOADS)).collect::<Outcome<_>>()?;
        (open, _) = send_all(open, Arc::new(uploads)).await?;
    }
    Ok(())
}

/// The names of all batches, once they are formed. Nothing is read: each answer is 304.
pub(crate) async fn chain(site: &Site, gateway: &Gateway, day: NaiveDate) -> Outcome<Vec<String>> {
    chain_of(site, gateway, day, BATCHES).await
}

/// The same of a day on which at least so many batches are formed.
pub(crate) async fn chain_of(
    site: &Site,
    gateway: &Gateway,
    day: NaiveDate,
    batches: usize,
) -> Outcome<Vec<String>> {
    let mut connection = Connection::open(gateway.port, &site.reader(true)?)?;
    let patience = Instant::now() + PATIENCE;
    loop {
        let mut tags: Vec<String> = Vec::new();
        loop {
            let mut headers = vec![("Accept", PROTOBUF), ("If-None-Match", "*")];
            headers.extend(tags.last().map(|tag| (wire::BATCH_TAG, tag.as_str())));
            let request = get(&format!("{}/{day}", wire::DOWNLOAD_PATH), &headers);
            let head = connection.exchange(&request, |_| {})?;
            if tags.is_empty() {
                tags.extend(head.header(wire::BATCH_TAG).map(str::to_owned));
            }
            match head.header(wire::NEXT_BATCH_TAG) {
                Some(next) if next != wire::NO_NEXT_BATCH => tags.push(next.to_owned()),
                _ => break,
            }
        }
        if tags.len() >= batches {
            return Ok(tags);
        }
        if Instant::now() > patience {
            return Err(format!("{} batches were formed instead of {batches}", tags.len()).into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Downloads batches, one after the other; the round, and the last body.
pub(crate) async fn read(
    site: &Site,
    port: u16,
    day: NaiveDate,
    tags: &[String],
    accept: &str,
) -> Outcome<(Round, Vec<u8>)> {
    let requests: Vec<Vec<u8>> = tags.iter().map(|tag| download(day, tag, accept)).collect();
    let last = Arc::new(Mutex::new(Vec::new()));
    let body = last.clone();
    let connection = Connection::open(port, &site.reader(true)?)?;
    let (_, round) = drive(vec![connection], move |connection, _, turn| {
        let Some(request) = requests.get(turn) else { return Ok(false) };
        let mut body = body.lock().map_err(|e| e.to_string())?;
        body.clear();
        expect(200, &connection.exchange(request, |piece| body.extend_from_slice(piece))?)?;
        Ok(true)
    })
    .await?;
    let body = std::mem::take(&mut *last.lock().map_err(|e| e.to_string())?);
    Ok((round, body))
}

/// What measurements of one gateway share.
struct Bench<'a> {
    site: &'a Site,
    kind: Kind,
    day: NaiveDate,
    gateway: Gateway,
    time: Duration,
}

impl Bench<'_> {
    async fn downloads(&self, tags: &[String], report: &mut Report) -> Outcome {
        let (newest, older) = (&tags[tags.len() - 1], &tags[tags.len() - 2]);
        let files = self.site.folder.path().join("static");
        fs::create_dir(&files)?;
        for (accept, format, file) in [(PROTOBUF, "protobuf", "batch.pb"), (JSON, "JSON", "batch.json")] {
            let mut first = Side::new(self.gateway.processes(self.kind));
            // What is measured is the first download of each batch: there is nothing to warm up.
            first.round(async { Ok(Round::default()) }).await?;
            first
                .round(async { Ok(read(self.site, self.gateway.port, self.day, tags, accept).await?.0) })
                .await?;
            let name = format!("first download of a batch, {format}, {}", self.kind.name());
            report.add(Line::new(name, 1, &first).with_keys(KEYS));
            let (_, body) =
                read(self.site, self.gateway.port, self.day, std::slice::from_ref(older), accept).await?;
            fs::write(files.join(file), body)?;
        }
        let when = format!("after all {BATCHES} batches were read in both formats");
        report.memory(when, Memory::of(self.gateway.id()));

        let nginx = Nginx::start(self.site.folder.path())?;
        for (name, tag, accept, file, connections) in [
            ("download, protobuf", older, PROTOBUF, "/batch.pb", 1),
            ("download, protobuf", older, PROTOBUF, "/batch.pb", 8),
            ("download, protobuf, the newest batch", newest, PROTOBUF, "/batch.pb", 8),
            ("download, JSON", older, JSON, "/batch.json", 8),
        ] {
            let (own, other) = (download(self.day, tag, accept), get(file, &[]));
            let line = self.compare(name, connections, own, Some((&nginx, other))).await?;
            report.add(line.with_keys(KEYS));
        }
        report.memory("after the downloads".into(), Memory::of(self.gateway.id()));
        for (name, resume) in
            [("new connection, small request", false), ("resumed connection, small request", true)]
        {
            report.add(self.connections(name, &nginx, resume).await?);
        }
        report.memory("after the connections".into(), Memory::of(self.gateway.id()));
        Ok(())
    }

    /// The same request again and again on connections that are kept alive.
    async fn compare(
        &self,
        name: &str,
        connections: usize,
        request: Vec<u8>,
        nginx: Option<(&Nginx, Vec<u8>)>,
    ) -> Outcome<Line> {
        let tls = self.site.reader(true)?;
        let mut own =
            Repeated::new(self.gateway.port, &tls, connections, request, self.gateway.processes(self.kind))?;
        let mut other = nginx
            .map(|(nginx, request)| {
                let processes = Processes { server: nginx.id(), database: None };
                Repeated::new(nginx.port, &tls, connections, request, processes)
            })
            .transpose()?;
        let mut turns = Turns::new(self.time);
        while turns.another() {
            own.turn().await?;
            if let Some(other) = &mut other {
                other.turn().await?;
            }
        }
        let line = Line::new(name, connections, &own.side);
        Ok(match other {
            Some(other) => line.beside("nginx", &other.side, &own.side),
            None => line,
        })
    }

    /// Connects, sends a small request and closes, two at a time.
    async fn connections(&self, name: &str, nginx: &Nginx, resume: bool) -> Outcome<Line> {
        let request = b"OPTIONS /diagnosiskeys HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut sides = Vec::new();
        for (port, processes) in [
            (self.gateway.port, self.gateway.processes(self.kind)),
            (nginx.port, Processes { server: nginx.id(), database: None }),
        ] {
            // Sessions are remembered here.
            sides.push((port, self.site.reader(resume)?, Side::new(processes)));
        }
        let mut turns = Turns::new(self.time);
        while turns.another() {
            for (port, tls, side) in &mut sides {
                let (port, tls) = (*port, tls.clone());
                side.round(async move {
                    // The first session, so that from now on there is one to resume.
                    let mut open = Vec::new();
                    for _ in 0..2 {
                        let mut connection = Connection::open(port, &tls)?;
                        connection.exchange(request, |_| {})?;
                        open.push(connection);
                    }
                    let end = Instant::now() + TURN;
                    let (_, round) = drive(open, move |connection, _, _| {
                        if Instant::now() >= end {
                            return Ok(false);
                        }
                        *connection = Connection::open(port, &tls)?;
                        if connection.was_resumed() != resume {
                            return Err("a session was not resumed as it should have been".into());
                        }
                        expect(200, &connection.exchange(request, |_| {})?)?;
                        Ok(true)
                    })
                    .await?;
                    Ok(round)
                })
                .await?;
            }
        }
        let [(.., own), (.., other)] = &*sides else { return Err("there are two sides".into()) };
        Ok(Line::new(name, 2, own).beside("nginx", other, own))
    }
}

/// One side that gets the same request again and again.
pub(crate) struct Repeated {
    connections: Vec<Connection>,
    request: Arc<Vec<u8>>,
    status: u16,
    pub(crate) side: Side,
}

impl Repeated {
    pub(crate) fn new(
        port: u16,
        tls: &Arc<ClientConfig>,
        connections: usize,
        request: Vec<u8>,
        processes: Processes,
    ) -> Outcome<Self> {
        let connections = (0..connections).map(|_| Connection::open(port, tls)).collect::<Outcome<_>>()?;
        Ok(Self { connections, request: Arc::new(request), status: 200, side: Side::new(processes) })
    }

    /// Expects another answer than 200.
    pub(crate) fn answered(self, status: u16) -> Self {
        Self { status, ..self }
    }

    pub(crate) async fn turn(&mut self) -> Outcome {
        let connections = std::mem::take(&mut self.connections);
        let (request, status) = (self.request.clone(), self.status);
        let end = Instant::now() + TURN;
        let back = &mut self.connections;
        self.side
            .round(async move {
                let (connections, round) = drive(connections, move |connection, _, _| {
                    if Instant::now() >= end {
                        return Ok(false);
                    }
                    expect(status, &connection.exchange(&request, |_| {})?)?;
                    Ok(true)
                })
                .await?;
                *back = connections;
                Ok(round)
            })
            .await
    }
}

pub(crate) fn expect(status: u16, head: &Head) -> Outcome {
    if head.status() == status { Ok(()) } else { Err(format!("unexpected answer: {head:?}").into()) }
}

pub(crate) fn download(day: NaiveDate, tag: &str, accept: &str) -> Vec<u8> {
    get(&format!("{}/{day}", wire::DOWNLOAD_PATH), &[("Accept", accept), (wire::BATCH_TAG, tag)])
}

pub(crate) fn get(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").into_bytes()
}
