//! The figures, as a table for people and as JSON.

use std::fmt;

use serde::Serialize;

use crate::{
    Outcome,
    load::{Figures, Side},
    process::Memory,
};

/// All that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    measurements: Vec<Line>,
    floods: Vec<FloodLine>,
    full: Vec<FullLine>,
    memory: Vec<MemoryLine>,
}

/// A figure of a full database, beside what it is compared with and what it is to be.
#[derive(Debug, Serialize)]
pub(crate) struct FullLine {
    pub(crate) what: String,
    /// The same of an empty database, unless `what` says otherwise.
    pub(crate) baseline: Option<f64>,
    pub(crate) full: f64,
    pub(crate) unit: &'static str,
    /// The full database's to the baseline's.
    pub(crate) ratio: Option<f64>,
    /// Empty: there is none.
    pub(crate) aim: &'static str,
}

/// What another country notices of a flood.
#[derive(Debug, Serialize)]
pub(crate) struct FloodLine {
    pub(crate) name: String,
    pub(crate) quiet: Latency,
    pub(crate) flooded: Latency,
    /// Requests, or handshakes, of the flood that were served, and others.
    pub(crate) served: usize,
    pub(crate) refused: usize,
}

/// How long requests took.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) requests: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// One measurement, and what it is compared with.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    name: String,
    connections: usize,
    gateway: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Baseline>,
}

#[derive(Debug, Serialize)]
struct Baseline {
    name: &'static str,
    figures: Figures,
    /// Requests per second of the gateway for each one of the baseline; the median over the rounds.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct MemoryLine {
    when: String,
    #[serde(flatten)]
    memory: Memory,
}

impl Line {
    pub(crate) fn new(name: impl Into<String>, connections: usize, gateway: &Side) -> Self {
        let gateway = gateway.figures();
        Self { name: name.into(), connections, gateway, keys_per_second: None, baseline: None }
    }

    /// Each request carries this many keys.
    pub(crate) fn with_keys(mut self, keys: usize) -> Self {
        self.keys_per_second = Some(self.gateway.requests_per_second * keys as f64);
        self
    }

    pub(crate) fn beside(mut self, name: &'static str, baseline: &Side, gateway: &Side) -> Self {
        let ratio = gateway.ratio_to(baseline);
        self.baseline = Some(Baseline { name, figures: baseline.figures(), ratio });
        self
    }
}

impl Report {
    pub(crate) fn add(&mut self, line: Line) {
        let ratio = line.baseline.as_ref().map(|it| format!(", {:.2} of {}", it.ratio, it.name));
        self.progress(format!(
            "{} on {} connections: {:.1}/s{}",
            line.name,
            line.connections,
            line.gateway.requests_per_second,
            ratio.unwrap_or_default()
        ));
        self.measurements.push(line);
    }

    pub(crate) fn flood(&mut self, line: FloodLine) {
        self.progress(format!(
            "{}: p99 {:.1} ms, quiet {:.1} ms",
            line.name, line.flooded.p99_ms, line.quiet.p99_ms
        ));
        self.floods.push(line);
    }

    pub(crate) fn full(&mut self, line: FullLine) {
        self.progress(format!("{}: {:.2} {}", line.what, line.full, line.unit));
        self.full.push(line);
    }

    pub(crate) fn memory(&mut self, when: String, memory: Memory) {
        self.memory.push(MemoryLine { when, memory });
    }

    /// Tells a person who waits what is going on.
    pub(crate) fn progress(&self, what: impl fmt::Display) {
        eprintln!("bench: {what}");
    }

    pub(crate) fn to_json(&self) -> Outcome<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.full.is_empty() {
            writeln!(f, "{:<58} {:>10} {:>10} {:<6} {:>6}  aim", "", "baseline", "full", "", "ratio")?;
        }
        for FullLine { what, baseline, full, unit, ratio, aim } in &self.full {
            let (baseline, ratio) = (text(*baseline, 2), text(*ratio, 2));
            writeln!(f, "{what:<58} {baseline:>10} {full:>10.2} {unit:<6} {ratio:>6}  {aim}")?;
        }
        if !self.full.is_empty() {
            writeln!(f)?;
        }
        if !self.floods.is_empty() {
            writeln!(
                f,
                "{:<50} {:>8} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8}",
                "another country, while one floods with",
                "requests",
                "p50 ms",
                "p99 ms",
                "quiet p50",
                "quiet p99",
                "served",
                "refused"
            )?;
        }
        for FloodLine { name, quiet, flooded, served, refused } in &self.floods {
            writeln!(
                f,
                "{name:<50} {:>8} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {served:>8} {refused:>8}",
                flooded.requests, flooded.p50_ms, flooded.p99_ms, quiet.p50_ms, quiet.p99_ms
            )?;
        }
        if self.measurements.is_empty() {
            writeln!(f)?;
            return self.memory_table(f);
        }
        writeln!(
            f,
            "{:<44} {:>4} {:>10} {:>9} {:>9} {:>9} {:>10} {:>10} {:>9} {:>6}",
            "",
            "conn",
            "requests/s",
            "keys/s",
            "p50 ms",
            "p99 ms",
            "server CPU",
            "database",
            "memory",
            "ratio"
        )?;
        for line in &self.measurements {
            row(f, &line.name, line.connections, &line.gateway, line.keys_per_second, None)?;
            if let Some(Baseline { name, figures, ratio }) = &line.baseline {
                let keys = line
                    .keys_per_second
                    .map(|keys| keys / line.gateway.requests_per_second * figures.requests_per_second);
                row(f, &format!("    {name}"), line.connections, figures, keys, Some(*ratio))?;
            }
        }
        writeln!(
            f,
            "\nServer CPU and database: processor time per request, in ms, of the gateway (nginx, or the program\nthat inserts) and of the database server. Ratio: gateway to baseline, median of neighbouring rounds.\n"
        )?;
        self.memory_table(f)
    }
}

impl Report {
    fn memory_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<60} {:>9} {:>9}", "memory of the gateway", "now", "peak")?;
        for MemoryLine { when, memory } in &self.memory {
            writeln!(f, "{when:<60} {:>9} {:>9}", mebibytes(memory.resident), mebibytes(memory.peak))?;
        }
        Ok(())
    }
}

fn row(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    connections: usize,
    figures: &Figures,
    keys: Option<f64>,
    ratio: Option<f64>,
) -> fmt::Result {
    writeln!(
        f,
        "{name:<44} {connections:>4} {:>10.1} {:>9} {:>9.2} {:>9.2} {:>10.3} {:>10} {:>9} {:>6}",
        figures.requests_per_second,
        text(keys, 0),
        figures.p50_ms,
        figures.p99_ms,
        figures.server_cpu_ms,
        text(figures.database_cpu_ms, 3),
        mebibytes(figures.memory.resident),
        text(ratio, 2)
    )
}

fn text(value: Option<f64>, digits: usize) -> String {
    value.map_or(String::new(), |it| format!("{it:.digits$}"))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
