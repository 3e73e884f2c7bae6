//! docs/walk-through.md, run word for word.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "shared/free_port.rs"]
mod free_port;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use free_port::free_port;

/// The `sh` blocks of the page, in order.
fn walk_through() -> String {
    let page = include_str!("../docs/walk-through.md");
    let blocks: Vec<&str> =
        page.split("\n```sh\n").skip(1).filter_map(|block| block.split("\n```").next()).collect();
    assert!(blocks.len() > 5, "the walk-through has several blocks");
    blocks.join("\n")
}

#[test]
fn every_command_of_the_walk_through_succeeds() {
    let program = Path::new(env!("CARGO_BIN_EXE_efgs-gateway"));
    let (national, admin) = (free_port(), free_port());
    // The program is built already, and other tests may have the usual ports; nothing else is changed.
    let script = format!("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{}", walk_through())
        .replace("cargo build --release\n", "")
        .replace(
            "$PWD/target/release",
            program.parent().expect("it is in a folder").to_str().expect("a plain path"),
        )
        .replace("localhost:8443", &format!("localhost:{national}"))
        .replace("127.0.0.1:8081", &format!("127.0.0.1:{admin}"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(folder.path())
        .env("EFGS__SERVER__LISTEN", format!("127.0.0.1:{national}"))
        .env("EFGS__SERVER__ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
        .stdin(Stdio::null())
        .output()
        .expect("bash is there");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the walk-through stopped:\n{text}");
    for expected in
        ["HTTP/1.1 201 Created", "CMS Verification successful", "Verified OK", "\"code\":\"forbidden\""]
    {
        assert!(text.contains(expected), "{expected:?} is missing:\n{text}");
    }
}
