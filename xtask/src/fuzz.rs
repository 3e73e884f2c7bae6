//! Fuzzing with libFuzzer, on stable Rust and without cargo-fuzz.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use crate::step::{Outcome, capture, cargo, root, run, step};

/// What cargo-fuzz passes: the compiler counts the edges that a run takes and reports the operands of comparisons.
/// `cfg(fuzzing)` is not set, because some dependencies check less then.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Relative to the repository's root, so that the commands in messages are short.
const TARGET_DIR: &str = "target/fuzz";
/// In seconds. A run takes microseconds to milliseconds.
const SLOWEST_RUN: u32 = 20;
const MOST_MEMORY_MB: u32 = 1024;
/// How many lines of a failed target's output are shown: the panic, its backtrace, and the input if it is short.
const SHOWN_LINES: usize = 60;

/// How long each target runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// So many runs from the seeds alone: the same effort each time, whatever was found earlier.
    Runs(u32),
    /// So many seconds, continuing from what earlier runs found.
    Seconds(u32),
}

/// What is asked for.
#[derive(Debug, PartialEq)]
pub(crate) struct Fuzz {
    pub(crate) limit: Limit,
    /// None named: all of them.
    pub(crate) targets: Vec<String>,
}

impl Fuzz {
    pub(crate) fn parse(args: Vec<String>) -> Outcome<Self> {
        let mut fuzz = Self { limit: Limit::Seconds(60), targets: Vec::new() };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut number = || {
                let number = args.next().and_then(|text| text.parse().ok()).filter(|number| *number > 0);
                number.ok_or_else(|| format!("{arg} needs a number greater than 0"))
            };
            match arg.as_str() {
                "--runs" => fuzz.limit = Limit::Runs(number()?),
                "--seconds" => fuzz.limit = Limit::Seconds(number()?),
                option if option.starts_with('-') => return Err(format!("fuzz does not take {option}")),
                _ => fuzz.targets.push(arg),
            }
        }
        Ok(fuzz)
    }

    /// Builds the targets and runs them, as many at a time as there are processors.
    pub(crate) fn run(self) -> Outcome {
        let targets = self.targets()?;
        let host = host()?;
        step("fuzz: build", || {
            let args =
                ["build", "--quiet", "--locked", "--release", "--bins", "--manifest-path", "fuzz/Cargo.toml"];
            // Named explicitly, so that cargo applies the flags to the targets but not to build scripts.
            let into = ["--target", &host, "--target-dir", TARGET_DIR];
            run(cargo(args).args(into).env("RUSTFLAGS", RUSTFLAGS))
        })?;
        let programs = Path::new(TARGET_DIR).join(host).join("release");
        let waiting = Mutex::new(targets.into_iter());
        let next = || waiting.lock().ok()?.next();
        let worker = || {
            let mut failed = Vec::new();
            while let Some(target) = next() {
                let name = format!("fuzz: {target}");
                failed.extend(step(&name, || one(&programs, &target, self.limit)).err());
            }
            failed
        };
        let processors = thread::available_parallelism().map_or(1, |processors| processors.get());
        let failed: Vec<String> = thread::scope(|scope| {
            let workers: Vec<_> = (0..processors).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
        });
        if failed.is_empty() { Ok(()) } else { Err(failed.join("\n\n")) }
    }

    /// The targets that are asked for; every file in `fuzz/fuzz_targets` is one.
    fn targets(&self) -> Outcome<Vec<String>> {
        let folder = root().join("fuzz/fuzz_targets");
        let files = fs::read_dir(&folder).map_err(|e| format!("cannot read {}: {e}", folder.display()))?;
        let names = files.flatten().filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned()));
        let mut all: Vec<String> = names.collect();
        all.sort();
        match self.targets.iter().find(|target| !all.contains(target)) {
            Some(unknown) => Err(format!("there is no fuzz target {unknown}: {}", all.join(", "))),
            None if self.targets.is_empty() => Ok(all),
            None => Ok(self.targets.clone()),
        }
    }
}

/// The platform that the compiler builds for.
fn host() -> Outcome<String> {
    let version = String::from_utf8(capture(Command::new("rustc").arg("-vV"))?).unwrap_or_default();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "rustc -vV names no host".to_owned())
}

/// Runs one target.
fn one(programs: &Path, target: &str, limit: Limit) -> Outcome {
    let seeds = PathBuf::from("fuzz/seeds").join(target);
    if !root().join(&seeds).is_dir() {
        return Err(format!("the fuzz target {target} has no seeds in {}", seeds.display()));
    }
    let (corpus, length) = match limit {
        Limit::Runs(runs) => {
            let corpus = Path::new(TARGET_DIR).join("corpus").join(target);
            if root().join(&corpus).exists() {
                fs::remove_dir_all(root().join(&corpus))
                    .map_err(|e| format!("cannot remove {}: {e}", corpus.display()))?;
            }
            (corpus, format!("-runs={runs}"))
        }
        Limit::Seconds(seconds) => {
            (Path::new("fuzz/corpus").join(target), format!("-max_total_time={seconds}"))
        }
    };
    let artifacts = Path::new("fuzz/artifacts").join(target);
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(root().join(folder))
            .map_err(|e| format!("cannot create {}: {e}", folder.display()))?;
    }
    let program = programs.join(target);
    let output = Command::new(root().join(&program))
        .current_dir(root())
        .arg(length)
        .arg(format!("-timeout={SLOWEST_RUN}"))
        .arg(format!("-rss_limit_mb={MOST_MEMORY_MB}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args([&corpus, &seeds])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("cannot run {}: {e}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    if output.status.success() {
        println!("xtask: fuzz: {target}: {}", lines.last().copied().unwrap_or_default());
        return Ok(());
    }
    let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
    let input = text.lines().find_map(|line| Some(line.split_once("Test unit written to ")?.1));
    let (program, input) = (program.display(), input.unwrap_or("<input>"));
    // CI keeps no files, and libFuzzer prints only the shortest inputs.
    let bytes = fs::read(root().join(input)).unwrap_or_default();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Err(format!(
        "{shown}\nthe fuzz target {target} failed: {}\nto reproduce: {program} {input}\nto make the input elsewhere: \
         echo {hex} | xxd -r -p > {input}",
        output.status,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Outcome<Fuzz> {
        Fuzz::parse(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn the_limit_and_the_targets_are_read() {
        assert_eq!(parsed(""), Ok(Fuzz { limit: Limit::Seconds(60), targets: Vec::new() }));
        let targets = vec!["bundle".to_owned(), "audit".to_owned()];
        assert_eq!(parsed("bundle --runs 7 audit"), Ok(Fuzz { limit: Limit::Runs(7), targets }));
        for line in ["--runs", "--runs 0", "--seconds -1", "--seconds bundle", "--forever"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_target_has_seeds_and_is_built() {
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap_or_default();
        let targets = Fuzz { limit: Limit::Runs(1), targets: Vec::new() }.targets().unwrap_or_default();
        assert!(!targets.is_empty());
        for target in targets {
            let seeds = fs::read_dir(root().join("fuzz/seeds").join(&target));
            assert!(seeds.is_ok_and(|mut seeds| seeds.next().is_some()), "{target} has no seeds");
            assert!(
                manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")),
                "{target} is not built"
            );
        }
        let unknown = Fuzz { limit: Limit::Runs(1), targets: vec!["nothing".to_owned()] };
        assert!(unknown.targets().is_err());
    }
}
