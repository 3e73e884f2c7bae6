//! A database that holds two weeks of keys beside an empty one in the same server: each measurement takes turns with
//! the same on the empty one. What is downloaded has been uploaded through the gateway; the keys of the days before
//! are only there.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::NaiveDate;
use efgs_protocol::wire;

use crate::{
    Outcome, bare,
    connection::{self, Connection},
    database::{Kind, Schema, as_root},
    download::{JSON, PROTOBUF, Repeated, chain, chain_of, download, expect, fill, get, read},
    fill,
    gateway::{Gateway, Site, size_of},
    load::{Figures, Processes, Side, Turns, drive},
    process::{Memory, cpu_seconds},
    report::{FullLine, Line, Report},
    upload::send_until,
    uploads::{KEYS, Maker, Upload, now},
};

/// Starts of each side, and first downloads of all batches after each. The first one of them does not count.
const STARTS: usize = 4;
/// Connections that upload, each of another country.
const WRITERS: usize = 2;
/// Uploads in one round.
const ROUND: usize = 24;
/// Connections that download the same again and again.
const READERS: usize = 8;
/// Batches that each connection reads which catches up: in JSON more than twice what the cache holds.
const CATCH_UP: usize = 200;
/// Days that expire while countries upload. One more warms up, and one expires alone: all but one of the filled days.
const EXPIRIES: u64 = fill::DAYS - 3;
/// Until then the records of requests are in the database.
const SHIPPED: Duration = Duration::from_secs(2);

/// As docs/operations.md wants them for so many keys.
fn settings(kind: Kind) -> &'static str {
    match kind {
        Kind::MySql => {
            "SET GLOBAL innodb_buffer_pool_size = 2 << 30; SET GLOBAL innodb_redo_log_capacity = 2 << 30"
        }
        _ => "SET GLOBAL innodb_buffer_pool_size = 2 << 30; SET GLOBAL innodb_log_file_size = 2 << 30",
    }
}

pub(crate) async fn measure(
    program: &Path,
    kind: Kind,
    time: Duration,
    keys: usize,
    report: &mut Report,
) -> Outcome {
    report.progress(format!("full database on {}", kind.name()));
    as_root(kind, settings(kind))?;
    let site = Site::new(program, kind).await?;
    let full = Schema::create(kind, site.folder.path()).await?;
    site.register(&full)?;
    let day = now().date_naive();
    let bench = Bench { site: &site, kind, full: &full, day, time };
    // The gateway adds the days and notes its encryption key, with which it could not open the keys that follow.
    drop(bench.start(&full)?);
    let maker = Maker::new(&site.participants[0])?;
    let pool = full.pool(2)?;
    let keys = fill::fill(&pool, &maker, keys, day, report).await?;
    pool.disconnect().await?;
    report.full(FullLine {
        what: format!("disk per key, {keys} keys"),
        baseline: None,
        full: size_of(full.files()?)? as f64 / keys as f64,
        unit: "B",
        ratio: None,
        aim: "<= 270 B",
    });

    let (gateways, tags) = bench.starts(report).await?;
    bench.repeated(&gateways, &tags, report).await?;
    bench.commits(&gateways[1], &tags[1], report).await?;
    bench.uploads(&gateways, report).await?;
    drop(gateways);
    bench.catch_up(report).await?;
    bench.expiry(keys, report).await?;
    full.remove().await?;
    site.schema.remove().await
}

struct Bench<'a> {
    /// Its own schema is the empty one.
    site: &'a Site,
    kind: Kind,
    full: &'a Schema,
    day: NaiveDate,
    time: Duration,
}

impl Bench<'_> {
    fn settings(schema: &Schema) -> String {
        format!("[access_log]\nspool = \"spool-{}\"\n", schema.name)
    }

    fn start(&self, schema: &Schema) -> Outcome<Gateway> {
        self.site.start_on(schema, &Self::settings(schema))
    }

    fn processes(&self, gateway: &Gateway) -> Processes {
        gateway.processes(self.kind)
    }

    /// How long a start takes, and the first downloads after it. Gives gateways on both schemas, and the batches.
    async fn starts(&self, report: &mut Report) -> Outcome<([Gateway; 2], [Vec<String>; 2])> {
        let schemas = [&self.site.schema, self.full];
        let mut tags = [Vec::new(), Vec::new()];
        for (schema, tags) in schemas.iter().zip(&mut tags) {
            let gateway = self.start(schema)?;
            fill(self.site, &gateway).await?;
            *tags = chain(self.site, &gateway, self.day).await?;
        }
        let none = || Side::new(Processes { server: 0, database: None });
        let (mut sides, mut seconds) = ([none(), none()], [0.0, 0.0]);
        let mut serve = [None, None];
        for turn in 0..STARTS {
            for at in [0, 1] {
                serve[at] = None;
                let begun = Instant::now();
                let gateway = self.start(schemas[at])?;
                if turn > 0 {
                    seconds[at] += begun.elapsed().as_secs_f64() / (STARTS - 1) as f64;
                }
                sides[at].continue_with(self.processes(&gateway));
                // The chain is loaded after the start.
                chain(self.site, &gateway, self.day).await?;
                let (site, tags) = (self.site, &tags[at]);
                sides[at]
                    .round(async { Ok(read(site, gateway.port, self.day, tags, PROTOBUF).await?.0) })
                    .await?;
                serve[at] = Some(gateway);
            }
        }
        let [Some(empty), Some(full)] = serve else { return Err("no gateway was started".into()) };
        report.full(compared("start", seconds, "s", "<= 2 s"));
        report.memory("full, after a start and the first downloads".into(), Memory::of(full.id()));
        let name = "first download of a batch";
        add(report, name, 1, &sides, "");
        Ok(([empty, full], tags))
    }

    /// Cached downloads and audits.
    async fn repeated(
        &self,
        gateways: &[Gateway; 2],
        tags: &[Vec<String>; 2],
        report: &mut Report,
    ) -> Outcome {
        for (name, audit) in [("cached download", false), ("audit", true)] {
            let request = |tag: &str| match audit {
                true => get(&format!("{}/{}/{tag}", wire::AUDIT_PATH, self.day), &[]),
                false => download(self.day, tag, PROTOBUF),
            };
            let mut sides = Vec::new();
            for (gateway, tags) in gateways.iter().zip(tags) {
                let (tls, request) = (self.site.reader(true)?, request(&tags[0]));
                sides.push(Repeated::new(gateway.port, &tls, READERS, request, self.processes(gateway))?);
            }
            let mut turns = Turns::new(self.time);
            while turns.another() {
                for side in &mut sides {
                    side.turn().await?;
                }
            }
            let sides: Vec<Side> = sides.into_iter().map(|repeated| repeated.side).collect();
            add(report, name, READERS, &sides, "");
        }
        Ok(())
    }

    /// What cached downloads cost the database, beside what the two idle gateways do in the same time.
    async fn commits(&self, gateway: &Gateway, tags: &[String], report: &mut Report) -> Outcome {
        let tls = self.site.reader(true)?;
        let request = download(self.day, &tags[0], PROTOBUF);
        let mut side = Repeated::new(gateway.port, &tls, READERS, request, self.processes(gateway))?;
        // The first round does not count as requests, so it is over before.
        side.turn().await?;
        tokio::time::sleep(SHIPPED).await;
        let names = ["Handler_commit", "Com_commit"];
        let count = || names.map(|name| self.counter(name));
        let (begun, before) = (Instant::now(), count());
        let mut turns = Turns::new(self.time);
        while turns.another() {
            side.turn().await?;
        }
        tokio::time::sleep(SHIPPED).await;
        let (took, between) = (begun.elapsed(), count());
        tokio::time::sleep(took).await;
        let thousands = side.side.figures().requests as f64 / 1000.0;
        for (((name, before), between), after) in names.into_iter().zip(before).zip(between).zip(count()) {
            let (before, between, after) = (before?, between?, after?);
            report.full(FullLine {
                what: format!("{name} for 1,000 cached downloads, baseline: idle"),
                baseline: Some((after - between) as f64 / thousands),
                full: (between - before) as f64 / thousands,
                unit: "",
                ratio: None,
                aim: "<= 20",
            });
        }
        Ok(())
    }

    /// A counter of the database server.
    fn counter(&self, name: &str) -> Outcome<u64> {
        let said = as_root(self.kind, &format!("SHOW GLOBAL STATUS LIKE '{name}'"))?;
        Ok(said.split_whitespace().nth(1).ok_or("the server has no such counter")?.parse()?)
    }

    fn uploader(&self, gateway: &Gateway) -> Outcome<Uploader> {
        let writers = &self.site.participants[..WRITERS];
        Ok(Uploader {
            open: writers.iter().map(|it| self.site.writer(gateway.port, it)).collect::<Outcome<_>>()?,
            makers: writers.iter().map(Maker::new).collect::<Outcome<_>>()?,
            processes: self.processes(gateway),
        })
    }

    /// Uploads of both sides, and bare inserts into the full database.
    async fn uploads(&self, gateways: &[Gateway; 2], report: &mut Report) -> Outcome {
        let mut uploaders = [self.uploader(&gateways[0])?, self.uploader(&gateways[1])?];
        let mut sides = uploaders.each_ref().map(|it| Side::new(it.processes));
        let database = self.kind.process();
        let mut bare = Side::new(Processes { server: std::process::id(), database });
        let pool = self.full.pool(WRITERS)?;
        let mut turns = Turns::new(self.time);
        while turns.another() {
            for (uploader, side) in uploaders.iter_mut().zip(&mut sides) {
                uploader.round(side, ROUND, Arc::default()).await?;
            }
            let mut uploads = uploaders[1].make(ROUND)?;
            // A batch that is not there: the gateway does not serve them.
            uploads.iter_mut().for_each(|upload| upload.batch = Some([0; 12]));
            bare.round(bare::insert_all(&pool, WRITERS, Arc::new(uploads))).await?;
        }
        pool.disconnect().await?;
        let [empty, full] = sides.each_ref().map(Side::figures);
        add(report, "upload of 5,000 keys", WRITERS, &sides, ">= 0.85");
        let pair = |of: fn(&Figures) -> f64| [of(&empty), of(&full)];
        report.full(compared("upload, p50", pair(|it| it.p50_ms), "ms", ""));
        report.full(compared("upload, p99", pair(|it| it.p99_ms), "ms", "<= 1.3"));
        report.full(FullLine {
            what: "upload, baseline: bare insert into the same tables".into(),
            baseline: Some(bare.figures().requests_per_second),
            full: full.requests_per_second,
            unit: "1/s",
            ratio: Some(sides[1].ratio_to(&bare)),
            aim: ">= 0.85",
        });
        Ok(())
    }

    /// The memory of a gateway while three countries read today's batches in JSON and two others upload.
    async fn catch_up(&self, report: &mut Report) -> Outcome {
        let mut tags = Vec::new();
        {
            // Another process, so that the memory is that of one that has only begun.
            let gateway = self.start(self.full)?;
            let mut uploader = self.uploader(&gateway)?;
            while tags.len() < CATCH_UP {
                uploader.round(&mut Side::new(uploader.processes), ROUND, Arc::default()).await?;
                tags = chain_of(self.site, &gateway, self.day, tags.len().max(1)).await?;
            }
        }
        tags.truncate(CATCH_UP);
        let gateway = self.start(self.full)?;
        chain_of(self.site, &gateway, self.day, CATCH_UP).await?;
        let mut open = Vec::new();
        for participant in &self.site.participants[WRITERS..] {
            let tls = connection::client(&self.site.pki, &participant.authentication, true)?;
            for _ in 0..READERS {
                open.push(Connection::open(gateway.port, &tls)?);
            }
        }
        let requests: Vec<_> = tags.iter().map(|tag| download(self.day, tag, JSON)).collect();
        let over = Arc::new(AtomicBool::new(false));
        let reading = async {
            let read = drive(open, move |connection, _, turn| {
                let Some(request) = requests.get(turn) else { return Ok(false) };
                expect(200, &connection.exchange(request, |_| {})?)?;
                Ok(true)
            });
            let read = read.await;
            over.store(true, Ordering::Relaxed);
            read
        };
        let mut uploader = self.uploader(&gateway)?;
        let mut side = Side::new(uploader.processes);
        let uploading = async {
            while !over.load(Ordering::Relaxed) {
                uploader.round(&mut side, ROUND, over.clone()).await?;
            }
            Ok(())
        };
        tokio::try_join!(reading, uploading)?;
        let memory = Memory::of(gateway.id());
        report.memory(format!("full, after {} batches were read in JSON", tags.len()), memory);
        report.full(FullLine {
            what: format!("memory at most, {} batches in JSON for 3 countries", tags.len()),
            baseline: None,
            full: memory.peak as f64 / f64::from(1 << 20),
            unit: "MiB",
            ratio: None,
            aim: "<= 200 MiB",
        });
        Ok(())
    }

    /// The oldest days expire: one when nobody uploads, the others under uploads.
    async fn expiry(&self, keys: usize, report: &mut Report) -> Outcome {
        let gateway = self.start(self.full)?;
        let database = self.kind.process().ok_or("the database server is not running")?;
        let before = cpu_seconds(database);
        let alone = self.expire(1)?;
        let processor = cpu_seconds(database) - before;
        let mut uploader = self.uploader(&gateway)?;
        let [mut quiet, mut busy] = [Side::new(uploader.processes), Side::new(uploader.processes)];
        let mut longest: f64 = 0.0;
        for day in 0..=EXPIRIES {
            uploader.round(&mut quiet, ROUND, Arc::default()).await?;
            // The first round of both sides warms up.
            let over = Arc::new(AtomicBool::new(false));
            let expire = async {
                let took = tokio::task::block_in_place(|| self.expire(2 + day));
                over.store(true, Ordering::Relaxed);
                took
            };
            let (_, took) = tokio::try_join!(uploader.round(&mut busy, 2 * ROUND, over.clone()), expire)?;
            longest = longest.max(took);
        }
        let a_day = keys / fill::DAYS as usize;
        for (what, full) in [
            ("the command alone", alone),
            ("processor time of the database, alone", processor),
            ("the longest under uploads", longest),
        ] {
            let what = format!("expiry of {a_day} keys: {what}");
            report.full(FullLine { what, baseline: None, full, unit: "s", ratio: None, aim: "<= 5 s" });
        }
        let [quiet, busy] = [quiet.figures(), busy.figures()];
        report.full(compared(
            "upload, p99 during expiry, baseline: without",
            [quiet.p99_ms, busy.p99_ms],
            "ms",
            "<= 1.1",
        ));
        Ok(())
    }

    /// Makes the oldest of the filled days expire, so that so many are gone; how many seconds that took.
    fn expire(&self, days: u64) -> Outcome<f64> {
        let more = format!("{}[retention]\ndays = {}\n", Self::settings(self.full), fill::DAYS - days);
        self.site.configure(self.full, &more)?;
        let begun = Instant::now();
        let said: serde_json::Value =
            serde_json::from_str(&self.site.run_on(self.full, &["expire", "--json"])?)?;
        let took = begun.elapsed().as_secs_f64();
        if said["keys"].as_u64().is_none_or(|keys| keys == 0) {
            return Err(format!("no keys expired: {said}").into());
        }
        Ok(took)
    }
}

/// Countries that upload to a gateway, on a connection each.
struct Uploader {
    open: Vec<Connection>,
    makers: Vec<Maker>,
    processes: Processes,
}

impl Uploader {
    fn make(&self, amount: usize) -> Outcome<Vec<Upload>> {
        self.makers.iter().cycle().take(amount).map(|maker| maker.upload(KEYS)).collect()
    }

    /// Sends so many uploads, or fewer when `over` is set before.
    async fn round(&mut self, side: &mut Side, amount: usize, over: Arc<AtomicBool>) -> Outcome {
        let uploads = Arc::new(self.make(amount)?);
        side.round(async {
            let (open, round) = send_until(std::mem::take(&mut self.open), uploads, over).await?;
            self.open = open;
            Ok(round)
        })
        .await
    }
}

/// A figure of both databases: of the empty one, and of the full one.
fn compared(what: &str, [empty, full]: [f64; 2], unit: &'static str, aim: &'static str) -> FullLine {
    FullLine { what: what.to_owned(), baseline: Some(empty), full, unit, ratio: Some(full / empty), aim }
}

/// Reports the rates of both sides, the empty database's first.
fn add(report: &mut Report, name: &str, connections: usize, sides: &[Side], aim: &'static str) {
    let [empty, full] = sides else { return };
    report.add(Line::new(format!("full: {name}"), connections, full).beside("empty", empty, full));
    let rates = [empty, full].map(|side| side.figures().requests_per_second);
    report.full(FullLine {
        ratio: Some(full.ratio_to(empty)),
        ..compared(&format!("{name}, {connections} connections"), rates, "1/s", aim)
    });
}
