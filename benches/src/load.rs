//! Rounds of requests on several connections, two sides taking turns.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    Outcome,
    connection::Connection,
    process::{Memory, cpu_seconds},
};

/// One round of one side.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
    /// How long each request took, in seconds.
    pub(crate) latencies: Vec<f64>,
    /// Seconds of processor time: of the server's process, and of the database server's.
    cpu: [f64; 2],
}

impl Round {
    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }
}

/// Calls `step` on every connection, each in a thread of its own, until it says that there is nothing left. It
/// is told which connection it is and how often it has been called for that one. Gives the connections back:
/// they are kept alive over the rounds.
pub(crate) async fn drive(
    connections: Vec<Connection>,
    step: impl Fn(&mut Connection, usize, usize) -> Outcome<bool> + Send + Sync + 'static,
) -> Outcome<(Vec<Connection>, Round)> {
    let step = Arc::new(step);
    let start = Instant::now();
    let mut threads = Vec::new();
    for (at, mut connection) in connections.into_iter().enumerate() {
        let step = step.clone();
        threads.push(tokio::task::spawn_blocking(move || {
            let mut latencies = Vec::new();
            loop {
                let begin = Instant::now();
                if !step(&mut connection, at, latencies.len())? {
                    return Outcome::Ok((connection, latencies));
                }
                latencies.push(begin.elapsed().as_secs_f64());
            }
        }));
    }
    let mut connections = Vec::new();
    let mut round = Round::default();
    for thread in threads {
        let (connection, latencies) = thread.await??;
        connections.push(connection);
        round.latencies.extend(latencies);
    }
    round.seconds = start.elapsed().as_secs_f64();
    Ok((connections, round))
}

/// The processes whose use of the processor is measured beside a side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processes {
    /// The gateway, nginx, or this program where it drives the database itself.
    pub(crate) server: u32,
    /// The database server, if it is a process of its own.
    pub(crate) database: Option<u32>,
}

impl Processes {
    fn cpu_seconds(self) -> [f64; 2] {
        [cpu_seconds(self.server), self.database.map_or(0.0, cpu_seconds)]
    }
}

/// All rounds of one side. The first one warms it up and does not count.
#[derive(Debug)]
pub(crate) struct Side {
    processes: Processes,
    rounds: Vec<Round>,
}

/// What was measured of one side.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) requests: usize,
    pub(crate) requests_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Processor time of the server's process per request, in milliseconds.
    pub(crate) server_cpu_ms: f64,
    /// The same of the database server, if it is a process of its own.
    pub(crate) database_cpu_ms: Option<f64>,
    /// Of the server's process, after the rounds.
    pub(crate) memory: Memory,
}

/// The latency that this share of the requests kept to, in milliseconds.
pub(crate) fn percentile_ms(latencies: &mut [f64], share: f64) -> f64 {
    latencies.sort_unstable_by(f64::total_cmp);
    latencies.get((latencies.len().saturating_sub(1) as f64 * share) as usize).map_or(f64::NAN, |it| it * 1e3)
}

impl Side {
    pub(crate) fn new(processes: Processes) -> Self {
        Self { processes, rounds: Vec::new() }
    }

    /// From now on, the rounds are of another process.
    pub(crate) fn continue_with(&mut self, processes: Processes) {
        self.processes = processes;
    }

    /// Runs a round and takes its figures in.
    pub(crate) async fn round(&mut self, work: impl Future<Output = Outcome<Round>>) -> Outcome {
        let before = self.processes.cpu_seconds();
        let mut round = work.await?;
        let after = self.processes.cpu_seconds();
        round.cpu = [after[0] - before[0], after[1] - before[1]];
        self.rounds.push(round);
        Ok(())
    }

    fn counted(&self) -> &[Round] {
        self.rounds.get(1..).unwrap_or_default()
    }

    pub(crate) fn figures(&self) -> Figures {
        let mut latencies: Vec<f64> =
            self.counted().iter().flat_map(|round| round.latencies.iter().copied()).collect();
        let seconds: f64 = self.counted().iter().map(|round| round.seconds).sum();
        let requests = latencies.len();
        let cpu_ms = [0, 1]
            .map(|at| self.counted().iter().map(|round| round.cpu[at]).sum::<f64>() * 1e3 / requests as f64);
        Figures {
            requests,
            requests_per_second: requests as f64 / seconds,
            p50_ms: percentile_ms(&mut latencies, 0.5),
            p99_ms: percentile_ms(&mut latencies, 0.99),
            server_cpu_ms: cpu_ms[0],
            database_cpu_ms: self.processes.database.map(|_| cpu_ms[1]),
            memory: Memory::of(self.processes.server),
        }
    }

    /// How fast this side is compared with the other one: the median of the ratios of rounds that were
    /// neighbours, so that a disturbance of the machine counts once.
    pub(crate) fn ratio_to(&self, other: &Self) -> f64 {
        let mut ratios: Vec<f64> = self
            .counted()
            .iter()
            .zip(other.counted())
            .map(|(own, other)| own.rate() / other.rate())
            .collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let middle = ratios.len() / 2;
        if ratios.len() % 2 == 1 { ratios[middle] } else { (ratios[middle - 1] + ratios[middle]) / 2.0 }
    }
}

/// Says for how long two sides take turns: once to warm up, at least twice, and until the time is over.
pub(crate) struct Turns {
    end: Instant,
    made: usize,
}

impl Turns {
    pub(crate) fn new(time: Duration) -> Self {
        Self { end: Instant::now() + time, made: 0 }
    }

    pub(crate) fn another(&mut self) -> bool {
        self.made += 1;
        self.made <= 3 || Instant::now() < self.end
    }
}
