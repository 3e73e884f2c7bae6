//! Each claim of `docs/threat-model.md` names a test that exists.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

#[test]
fn each_claim_names_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/threat-model.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.contains("| --- |"));
    let mut claims = 0;
    for row in rows.filter(|row| !row.starts_with("| attempt ")) {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {row}");
        for name in named {
            let (file, function) = name.split_once("::").unwrap_or((name, ""));
            let file = if file.contains('/') { file.into() } else { format!("tests/integration/{file}.rs") };
            let text = std::fs::read_to_string(root.join(&file)).unwrap_or_default();
            assert!(text.contains(&format!("fn {function}")), "{name} does not exist: {row}");
            claims += 1;
        }
    }
    assert!(claims > 15);
}
