//! docs/joining.md, run word for word.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "shared/free_port.rs"]
mod free_port;

use std::{
    os::unix::fs::PermissionsExt as _,
    process::{Command, ExitCode, Stdio},
};

use free_port::free_port;
use libtest_mimic::{Arguments, Trial};

/// With this variable the test program is the command `efgs`: Cargo offers a package's tests only the package's
/// own programs.
const AS_EFGS: &str = "EFGS_TEST_AS_EFGS";

/// What the demo offers to paste, pasted.
const PASTED: &str = "(cd rehearsal && grep '^  efgs ' ../demo.log > pasted.sh && test \"$(wc -l < pasted.sh)\" = 4 && \
                      bash -ex pasted.sh)";

fn main() -> ExitCode {
    if std::env::var_os(AS_EFGS).is_some() {
        return efgs_client::cli::main();
    }
    let trial = Trial::test("a_country_joins_word_for_word", || {
        a_country_joins();
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn a_country_joins() {
    let page = include_str!("../docs/joining.md");
    let blocks: Vec<&str> =
        page.split("\n```sh\n").skip(1).filter_map(|block| block.split("\n```").next()).collect();
    assert!(blocks.len() > 8, "the page has several blocks");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let programs = folder.path().join("programs");
    std::fs::create_dir(&programs).expect("the folder is ours");
    let this = std::env::current_exe().expect("a program has a path");
    for (name, program, variable) in [
        ("efgs", this.as_path(), AS_EFGS),
        ("efgs-gateway", env!("CARGO_BIN_EXE_efgs-gateway").as_ref(), "X"),
    ] {
        let script = programs.join(name);
        let text = format!("#!/bin/sh\n{variable}=1 exec '{}' \"$@\"\n", program.display());
        std::fs::write(&script, text).expect("the folder is ours");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("the file is ours");
    }
    let port = free_port();
    // The programs are built already, and other tests may have the usual port; nothing else is changed.
    let script = format!("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{}", blocks.join("\n"))
        .replace("cargo build --release --workspace\n", "")
        .replace("$PWD/target/release", &programs.display().to_string())
        .replace(":8443", &format!(":{port}"))
        .replace("kill %1", &format!("{PASTED}\nkill %1"));
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(folder.path())
        .env_remove("EFGS_PROFILE")
        .stdin(Stdio::null())
        .output()
        .expect("bash is there");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "joining stopped:\n{text}");
    for expected in [
        "all is well",
        "all verified",
        "sent by an earlier run",
        "+ efgs --profile DE/efgs-client.toml audit",
    ] {
        assert!(text.contains(expected), "{expected:?} is missing:\n{text}");
    }
}
