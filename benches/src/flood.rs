//! The latency of one country's downloads while another country floods the gateway with 32 connections.
//!
//! The gateway has its default limits. Quiet and flooded turns alternate, so that whatever else the machine does
//! hits both. The flood comes from an address of its own, as another country's would.

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::NaiveDate;
use efgs_protocol::wire;
use rustls::ClientConfig;

use crate::{
    Outcome,
    connection::{self, Connection},
    database::Kind,
    download::{JSON, PROTOBUF, chain, download, fill},
    gateway::{Gateway, Site},
    load::percentile_ms,
    process::Memory,
    report::{FloodLine, Latency, Report},
    uploads::{KEYS, Maker},
};

/// Connections of the country that floods.
const CONNECTIONS: usize = 32;
/// Where they come from.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Uploads that are prepared; sent again when all have been sent.
const UPLOADS: usize = 300;
/// The other country's pause between two requests: it keeps well within its own pace.
const PAUSE: Duration = Duration::from_millis(15);
/// Turns of each kind, quiet and flooded.
const TURNS: u32 = 3;

/// What `docs/limits.md` promises: the other country's p99, in milliseconds.
const BOUND_MS: f64 = 250.0;
/// And the gateway's memory, in bytes.
const MEMORY: u64 = 256 << 20;

/// In seconds: on a connection that is kept, and on new ones.
type Latencies = [Vec<f64>; 2];

fn latency(mut seconds: Vec<f64>) -> Latency {
    let [p50_ms, p99_ms] = [0.5, 0.99].map(|share| percentile_ms(&mut seconds, share));
    Latency { requests: seconds.len(), p50_ms, p99_ms }
}

/// What one connection of a flood does until the flood is over; it counts what was served.
type Wave = Arc<dyn Fn(&Flood) -> Outcome + Send + Sync>;

struct Flood {
    port: u16,
    tls: Arc<ClientConfig>,
    over: AtomicBool,
    next: AtomicUsize,
    served: AtomicUsize,
    refused: AtomicUsize,
}

impl Flood {
    fn open(&self) -> Outcome<Connection> {
        Connection::open_from(ADDRESS, self.port, &self.tls)
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn count(&self, served: bool) {
        if served { &self.served } else { &self.refused }.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends these requests, one after the other, over and over.
    fn send(&self, requests: &[Vec<u8>]) -> Outcome {
        let mut connection = self.open()?;
        while self.goes_on() {
            let request = &requests[self.next.fetch_add(1, Ordering::Relaxed) % requests.len()];
            let head = connection.exchange(request, |_| {})?;
            self.count(head.status() < 300);
        }
        Ok(())
    }

    /// A full handshake and nothing else.
    fn shake_hands(&self) -> Outcome {
        drop(self.open()?);
        self.count(true);
        Ok(())
    }

    /// Announces a large body and sends it byte by byte.
    fn dawdle(&self, head: &[u8]) -> Outcome {
        let mut connection = self.open()?;
        connection.send(head)?;
        while self.goes_on() {
            std::thread::sleep(Duration::from_millis(50));
            connection.send(&[0; 1024])?;
        }
        Ok(())
    }
}

pub(crate) async fn measure(program: &Path, kind: Kind, time: Duration, report: &mut Report) -> Outcome {
    report.progress(format!("flood on {}", kind.name()));
    let site = Site::new(program, kind).await?;
    let day = crate::uploads::now().date_naive();
    let tags = {
        let gateway = site.start("")?;
        fill(&site, &gateway).await?;
        chain(&site, &gateway, day).await?
    };
    let rude = site.participants.first().ok_or("there is no participant")?;
    let maker = Maker::new(rude)?;
    let uploads: Vec<Vec<u8>> =
        (0..UPLOADS).map(|_| Ok(maker.upload(KEYS)?.request)).collect::<Outcome<_>>()?;
    let downloads: Vec<Vec<u8>> =
        tags.iter().flat_map(|tag| [PROTOBUF, JSON].map(|accept| download(day, tag, accept))).collect();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PROTOBUF}\r\n{}: slow\r\n{}: AAAA\r\n\
         Content-Length: 10000000\r\n\r\n",
        wire::UPLOAD_PATH,
        wire::BATCH_TAG,
        wire::BATCH_SIGNATURE
    );
    let waves: [(&str, Wave); 4] = [
        ("uploads", Arc::new(move |flood: &Flood| flood.send(&uploads))),
        ("downloads", Arc::new(move |flood: &Flood| flood.send(&downloads))),
        ("handshakes", Arc::new(Flood::shake_hands)),
        ("slow bodies", Arc::new(move |flood: &Flood| flood.dawdle(head.as_bytes()))),
    ];
    // Empty: the defaults.
    let gateway = site.start("[limits]\n")?;
    let tls = connection::client(&site.pki, &rude.authentication, false)?;
    let bench = Bench { site: &site, kind, gateway, day, tags, turn: time / (2 * TURNS) };
    for (name, wave) in waves {
        bench.compare(name, wave, &tls, report).await?;
    }
    let Bench { gateway, .. } = bench;
    drop(gateway);
    site.schema.remove().await
}

struct Bench<'a> {
    site: &'a Site,
    kind: Kind,
    gateway: Gateway,
    day: NaiveDate,
    tags: Vec<String>,
    turn: Duration,
}

impl Bench<'_> {
    /// What the other country notices of one kind of flood, beside its quiet turns.
    async fn compare(&self, name: &str, wave: Wave, tls: &Arc<ClientConfig>, report: &mut Report) -> Outcome {
        let (mut quiet, mut flooded) = (Latencies::default(), Latencies::default());
        let (mut served, mut refused) = (0, 0);
        for turn in 0..=TURNS {
            // The first turn warms up and does not count.
            let count = |all: &mut Latencies, found: Latencies| {
                if turn > 0 {
                    all.iter_mut().zip(found).for_each(|(all, found)| all.extend(found));
                }
            };
            count(&mut quiet, self.serve().await?);
            let flood = Arc::new(Flood {
                port: self.gateway.port,
                tls: tls.clone(),
                over: AtomicBool::new(false),
                next: AtomicUsize::new(turn as usize * UPLOADS / (TURNS as usize + 1)),
                served: AtomicUsize::new(0),
                refused: AtomicUsize::new(0),
            });
            let threads: Vec<_> = (0..CONNECTIONS)
                .map(|_| {
                    let (flood, wave) = (flood.clone(), wave.clone());
                    std::thread::spawn(move || {
                        while flood.goes_on() {
                            // Reopens a closed connection, as a flood does.
                            if wave(&flood).is_err() {
                                flood.count(false);
                            }
                        }
                    })
                })
                .collect();
            let found = self.serve().await;
            flood.over.store(true, Ordering::Relaxed);
            let ended =
                tokio::task::spawn_blocking(move || threads.into_iter().all(|thread| thread.join().is_ok()));
            if !ended.await? {
                return Err("a connection of the flood panicked".into());
            }
            count(&mut flooded, found?);
            served += flood.served.load(Ordering::Relaxed);
            refused += flood.refused.load(Ordering::Relaxed);
        }
        let memory = Memory::of(self.gateway.id());
        report.memory(format!("after a flood of {name}, {}", self.kind.name()), memory);
        if memory.peak > MEMORY {
            return Err(format!("the gateway needed {} bytes of memory under {name}", memory.peak).into());
        }
        for (what, (quiet, flooded)) in
            ["a connection that is kept", "a new connection"].into_iter().zip(quiet.into_iter().zip(flooded))
        {
            let (quiet, flooded) = (latency(quiet), latency(flooded));
            report.flood(FloodLine { name: format!("{name}: {what}"), quiet, flooded, served, refused });
            if flooded.p99_ms > BOUND_MS {
                return Err(format!("{name}: p99 of {:.0} ms is more than {BOUND_MS}", flooded.p99_ms).into());
            }
        }
        Ok(())
    }

    /// Downloads for a while: on a connection that is kept, and, each fifth time, on a new one.
    async fn serve(&self) -> Outcome<Latencies> {
        let requests: Vec<_> = self.tags.iter().map(|tag| download(self.day, tag, PROTOBUF)).collect();
        let (port, tls, turn) = (self.gateway.port, self.site.reader(false)?, self.turn);
        let watch = move || {
            let mut found = Latencies::default();
            let mut kept = Connection::open(port, &tls)?;
            let start = Instant::now();
            for (at, request) in requests.iter().cycle().enumerate() {
                if start.elapsed() >= turn {
                    break;
                }
                std::thread::sleep(PAUSE);
                let new = at % 5 == 4;
                let begin = Instant::now();
                if new {
                    kept = Connection::open(port, &tls)?;
                }
                let head = kept.exchange(request, |_| {})?;
                found[usize::from(new)].push(begin.elapsed().as_secs_f64());
                if head.status() != 200 {
                    return Err(format!("the other country was answered {head:?}").into());
                }
            }
            Outcome::Ok(found)
        };
        tokio::task::spawn_blocking(watch).await?
    }
}
