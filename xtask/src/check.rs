//! What CI checks besides tests.

use std::process::{Command, Stdio};

use crate::fuzz::{Fuzz, Limit};
use crate::layers;
use crate::step::{Outcome, cargo, run, step};

const CARGO_DENY: &str = "0.20.2";
/// How many runs each fuzz target makes.
const FUZZ_RUNS: u32 = 50_000;

/// Every check, the cheap ones first; stops at the first that fails.
pub(crate) fn all(openapi: &str) -> Outcome {
    step("layers", layers::check)?;
    print!("{}", layers::shown()?);
    step("format", || run(&mut cargo(["fmt", "--all", "--check"])))?;
    step("lints", || {
        run(&mut cargo(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
    })?;
    // What is installed in production: without the demo, its test PKI and its client.
    step("lints of the release program", || {
        let release = [
            "clippy",
            "--package",
            "efgs-gateway",
            "--no-default-features",
            "--locked",
            "--",
            "-D",
            "warnings",
        ];
        run(&mut cargo(release))
    })?;
    step("docs", || {
        run(cargo(["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    step("API document", || {
        run(&mut cargo([
            "run",
            "--quiet",
            "--locked",
            "--package",
            "efgs-gateway",
            "--",
            "openapi",
            "--check",
            openapi,
        ]))
        .map_err(|e| format!("{e}\nwhen the API has changed: cargo xtask openapi"))
    })?;
    deny(&["licenses", "bans", "sources"])?;
    Fuzz { limit: Limit::Runs(FUZZ_RUNS), targets: Vec::new() }.run()
}

/// Known vulnerabilities in dependencies. Apart from the rest, because it fetches the advisory database, which not every
/// machine can reach; run it before a release and on a schedule.
pub(crate) fn advisories() -> Outcome {
    deny(&["advisories"])
}

fn deny(checks: &[&str]) -> Outcome {
    let installed = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if !installed(&mut cargo(["deny", "--version"])) {
        step("install cargo-deny", || {
            run(&mut cargo(["install", "--quiet", "--locked", "cargo-deny", "--version", CARGO_DENY]))
        })?;
    }
    step(&format!("dependencies: {}", checks.join(", ")), || {
        run(cargo(["deny", "--locked", "check", "--hide-inclusion-graph"]).args(checks))
    })
}
