//! Child processes that end with this one, and what the kernel says of a process.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use serde::Serialize;

use crate::Outcome;

/// How long a process may take to say that it is ready.
const START: Duration = Duration::from_secs(60);

/// A server in a separate process. It is stopped when this value is dropped, and by the kernel when the
/// thread that started it does.
pub(crate) struct Server(Child);

impl Server {
    /// Starts a program and waits until `ready` finds what it looks for in a line of its standard error.
    pub(crate) fn start<T: Send + 'static>(
        program: &Path,
        arguments: &[&str],
        ready: impl Fn(&str) -> Option<T> + Send + 'static,
    ) -> Outcome<(Self, T)> {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let child = child.map_err(|e| format!("cannot run setpriv {}: {e}", program.display()))?;
        let mut server = Self(child);
        let said = Arc::new(Mutex::new(Vec::new()));
        let (found, finds) = mpsc::channel();
        if let Some(stderr) = server.0.stderr.take() {
            let said = said.clone();
            std::thread::spawn(move || listen(stderr, &said, |line| ready(line).map(|it| found.send(it))));
        }
        match finds.recv_timeout(START) {
            Ok(it) => Ok((server, it)),
            Err(_) => {
                let said = said.lock().map(|lines| lines.join("\n")).unwrap_or_default();
                Err(format!("{} did not start:\n{said}", program.display()).into())
            }
        }
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = Command::new("kill").arg(self.0.id().to_string()).status();
        if !ended.is_ok_and(|status| status.success()) {
            drop(self.0.kill());
        }
        drop(self.0.wait());
    }
}

/// Reads to the end, so that the process never waits for a reader; keeps what it said at first.
fn listen<R>(stderr: ChildStderr, said: &Mutex<Vec<String>>, mut ready: impl FnMut(&str) -> Option<R>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        // What goes wrong while something is measured explains the figures.
        if line.contains("\"level\":\"ERROR\"") {
            eprintln!("{line}");
        }
        drop(ready(&line));
        if let Ok(mut said) = said.lock()
            && said.len() < 100
        {
            said.push(line);
        }
    }
}

/// Seconds of processor time that a process and its children have used so far, threads that ended included.
pub(crate) fn cpu_seconds(id: u32) -> f64 {
    /// The kernel counts in hundredths of a second on every platform that this runs on.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The name in brackets may hold spaces; user and system time are the 14th and 15th field.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|id| id.parse().ok()).map(cpu_seconds);
    ticks / TICKS_PER_SECOND + children.sum::<f64>()
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident: u64,
    /// The most that was ever resident.
    pub(crate) peak: u64,
}

impl Memory {
    pub(crate) fn of(id: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            let kilobytes: u64 =
                line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default();
            kilobytes * 1024
        };
        Self { resident: bytes("VmRSS:"), peak: bytes("VmHWM:") }
    }
}
