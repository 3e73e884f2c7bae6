//! Chores of this repository that need more than cargo: `cargo xtask help`.
//!
//! It is the first thing that is compiled on a new machine, so it has few dependencies, and only where the standard library
//! cannot do the work: `syn` parses Rust for the check of the layers, which a search in the text gets wrong in both
//! directions, and `serde_json` reads `cargo metadata`. Both come with the gateway's own dependencies and compile in seconds.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks on its terminal")]

mod check;
mod fuzz;
mod layers;
mod servers;
mod step;

use std::env;
use std::fs;
use std::process::ExitCode;

use fuzz::Fuzz;
use servers::Servers;
use step::{Outcome, capture, cargo, root, run, step};

const HELP: &str = "\
cargo xtask <command>

  test [--sqlite-only] [-- <cargo test arguments>]
             every test, on SQLite, MariaDB and MySQL. Installs both servers where they are missing (Debian 12;
             root or sudo), starts them as throw-away servers on free loopback ports and removes them at the end.
             Example: cargo xtask test -- -p efgs-gateway upload
  check      what CI checks besides tests: layers, format, lints, docs, API document, licences, fuzzing
  layers [--check FILE | --write FILE]
             print the layers of modules and crates and what each uses; or compare them with the block between
             <!-- layers --> and <!-- /layers --> in a document, or replace it
  ci         check, then test
  fuzz [--runs <n> | --seconds <n>] [<target> ...]
             runs fuzz targets (see fuzz/README.md), all of them if none is named. With --seconds, each runs that
             many seconds (60 if nothing is said) and continues from what earlier runs found; with --runs, each makes
             that many runs from fuzz/seeds alone, as in `check`.
             Example: cargo xtask fuzz --seconds 600 signature bundle
  bench [-- <arguments>]
             the benchmarks (release build), with the same two servers
  servers    start the two servers, print the environment that tests read, keep them until Ctrl-C
  openapi    write the API document anew: openapi/efgs-gateway.json
  advisories look the dependencies up in the advisory database (needs access to it; CI has none)
  help       this text
";

const OPENAPI: &str = "openapi/efgs-gateway.json";

/// What the command line asks for.
#[derive(Debug, PartialEq)]
enum Task {
    Test { sqlite_only: bool, args: Vec<String> },
    Check,
    Layers(Layers),
    Ci,
    Bench { args: Vec<String> },
    Fuzz(Fuzz),
    Servers,
    Openapi,
    Advisories,
    Help,
}

/// What `layers` does with the text: print it, or compare or replace the block in a document.
#[derive(Debug, PartialEq)]
enum Layers {
    Print,
    Check(String),
    Write(String),
}

fn parse(args: impl Iterator<Item = String>) -> Outcome<Task> {
    let mut args = args;
    let command = args.next().unwrap_or_else(|| "help".to_owned());
    let (mut options, mut passed_on) = (Vec::new(), Vec::new());
    while let Some(arg) = args.next() {
        if arg == "--" {
            passed_on.extend(args.by_ref());
        } else {
            options.push(arg);
        }
    }
    let sqlite_only = options == ["--sqlite-only"];
    let task = match command.as_str() {
        "test" => Task::Test { sqlite_only, args: std::mem::take(&mut passed_on) },
        "bench" => Task::Bench { args: std::mem::take(&mut passed_on) },
        "check" => Task::Check,
        "layers" => Task::Layers(match &mut options[..] {
            [option, file] if option == "--check" => Layers::Check(std::mem::take(file)),
            [option, file] if option == "--write" => Layers::Write(std::mem::take(file)),
            _ => Layers::Print,
        }),
        "fuzz" => Task::Fuzz(Fuzz::parse(std::mem::take(&mut options))?),
        "ci" => Task::Ci,
        "servers" => Task::Servers,
        "openapi" => Task::Openapi,
        "advisories" => Task::Advisories,
        "help" | "--help" | "-h" => Task::Help,
        _ => return Err(format!("unknown command {command:?}\n\n{HELP}")),
    };
    let understood = options.is_empty()
        || (sqlite_only && matches!(task, Task::Test { .. }))
        || matches!(task, Task::Layers(Layers::Check(_) | Layers::Write(_)));
    if !understood || !passed_on.is_empty() {
        return Err(format!("{command} does not take these arguments\n\n{HELP}"));
    }
    Ok(task)
}

fn main() -> ExitCode {
    let outcome = parse(env::args().skip(1)).and_then(|task| match task {
        Task::Test { sqlite_only, args } => test(sqlite_only, &args),
        Task::Check => check::all(OPENAPI),
        Task::Layers(Layers::Print) => layers::shown().map(|text| print!("{text}")),
        Task::Layers(Layers::Check(file)) => layers::check_document(&file),
        Task::Layers(Layers::Write(file)) => layers::write_document(&file),
        Task::Ci => check::all(OPENAPI).and_then(|()| test(false, &[])),
        Task::Bench { args } => bench(&args),
        Task::Fuzz(fuzz) => fuzz.run(),
        Task::Servers => keep_servers(),
        Task::Openapi => openapi(),
        Task::Advisories => check::advisories(),
        Task::Help => {
            print!("{HELP}");
            Ok(())
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn test(sqlite_only: bool, args: &[String]) -> Outcome {
    let servers = if sqlite_only { None } else { Some(Servers::start()?) };
    let mut command = cargo(["test"]);
    // With --workspace cargo would not heed the packages that are asked for.
    if !args.iter().any(|arg| arg.starts_with("-p") || arg.starts_with("--package")) {
        command.arg("--workspace");
    }
    if let Some(servers) = &servers {
        command.envs(servers.environment()).env("EFGS_TEST_REQUIRE_ALL", "1");
    }
    step("cargo test", || run(command.args(args)))
}

fn bench(args: &[String]) -> Outcome {
    let servers = Servers::start()?;
    let mut command = cargo(["run", "--release", "--package", "efgs-bench", "--"]);
    step("benchmarks", || run(command.args(args).envs(servers.environment())))
}

fn keep_servers() -> Outcome {
    let servers = Servers::start()?;
    for (name, value) in servers.environment() {
        println!("export {name}='{value}'");
    }
    println!("# The servers run until Ctrl-C.");
    loop {
        std::thread::park();
    }
}

fn openapi() -> Outcome {
    let document = capture(&mut cargo(["run", "--quiet", "--package", "efgs-gateway", "--", "openapi"]))?;
    fs::write(root().join(OPENAPI), document).map_err(|e| format!("cannot write {OPENAPI}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Outcome<Task> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_reach_their_task() {
        let args = vec!["-p".to_owned(), "xtask".to_owned()];
        assert_eq!(parsed("test -- -p xtask"), Ok(Task::Test { sqlite_only: false, args }));
        assert_eq!(parsed("test --sqlite-only"), Ok(Task::Test { sqlite_only: true, args: Vec::new() }));
        assert_eq!(parsed("bench -- quick"), Ok(Task::Bench { args: vec!["quick".to_owned()] }));
        assert_eq!(parsed("layers"), Ok(Task::Layers(Layers::Print)));
        assert_eq!(parsed("layers --check A.md"), Ok(Task::Layers(Layers::Check("A.md".to_owned()))));
        assert_eq!(parsed("layers --write A.md"), Ok(Task::Layers(Layers::Write("A.md".to_owned()))));
        assert_eq!(parsed(""), Ok(Task::Help));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "tset",
            "layers --check",
            "layers --write a b",
            "layers a b",
            "test --sqlite",
            "check --sqlite-only",
            "check -- -p xtask",
            "test -p xtask",
            "fuzz -- x",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
