//! What an operator takes from `deploy/` to watch the gateway: alert rules that are tested, a runbook for each, and no
//! query for something that the gateway does not export.
//!
//! `promtool` comes from Debian's package `prometheus`; where it is missing its tests say so and pass, or fail when
//! `EFGS_TEST_REQUIRE_ALL=1`. That a running gateway exports what `docs/metrics.md` lists, and that a running Prometheus
//! finds something for each query, is tested in `integration`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why it is skipped"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const RULES: &str = "deploy/prometheus/efgs.rules.yml";
const TESTS: &str = "deploy/prometheus/tests/efgs.test.yml";
const DASHBOARD: &str = "deploy/grafana/dashboards/efgs.json";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// All rules, recording ones too.
fn rules() -> Vec<Value> {
    let groups = yaml(RULES)["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// The alerts by name.
fn alerts() -> BTreeMap<String, Value> {
    rules().into_iter().filter_map(|rule| Some((rule["alert"].as_str()?.to_owned(), rule.clone()))).collect()
}

fn promtool(arguments: &[&str]) {
    match Command::new("promtool").args(arguments).current_dir(ROOT).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            assert!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&said));
        }
        Err(_) if std::env::var_os("EFGS_TEST_REQUIRE_ALL").is_some_and(|value| value == "1") => {
            panic!("promtool is not installed: apt install prometheus")
        }
        Err(_) => eprintln!("skipped: promtool is not installed: apt install prometheus"),
    }
}

#[test]
fn prometheus_accepts_its_configuration_and_rules() {
    promtool(&["check", "config", "deploy/prometheus/prometheus.yml"]);
}

#[test]
fn the_alerts_fire_when_they_must_and_only_then() {
    promtool(&["test", "rules", TESTS]);
}

/// Its own checker, `amtool`, looks at the rest where it is installed.
#[test]
fn alertmanager_is_told_of_alerts_and_receivers_that_there_are() {
    const CONFIG: &str = "deploy/prometheus/alertmanager.yml";
    let (config, alerts) = (yaml(CONFIG), alerts());
    let list = |value: &Value| value.as_array().unwrap().clone();
    let receivers = list(&config["receivers"]);
    let routes = [vec![config["route"].clone()], list(&config["route"]["routes"])].concat();
    for route in &routes {
        assert!(receivers.iter().any(|receiver| receiver["name"] == route["receiver"]), "{route}");
    }
    let inhibited = list(&config["inhibit_rules"]);
    let matchers =
        inhibited.iter().flat_map(|rule| ["source_matchers", "target_matchers"].map(|side| &rule[side]));
    let matchers = matchers.chain(routes.iter().map(|route| &route["matchers"]));
    let matchers: Vec<Value> = matchers.filter_map(Value::as_array).flatten().cloned().collect();
    let mut named = 0;
    for matcher in &matchers {
        let Some(names) = matcher.as_str().unwrap().strip_prefix("alertname=") else { continue };
        for name in names.trim_start_matches('~').trim_matches('"').split('|') {
            assert!(alerts.contains_key(name), "{name} is no alert: {matcher}");
            named += 1;
        }
    }
    assert!(named > 5, "{matchers:?}");
    match Command::new("amtool").args(["check-config", CONFIG]).current_dir(ROOT).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => eprintln!("amtool is not installed: only the names were checked"),
    }
}

#[test]
fn each_alert_is_seen_firing_in_a_test() {
    let mut fired = BTreeSet::new();
    for test in yaml(TESTS)["tests"].as_array().unwrap() {
        for check in test["alert_rule_test"].as_array().unwrap() {
            if check["exp_alerts"].as_array().is_some_and(|expected| !expected.is_empty()) {
                fired.insert(check["alertname"].as_str().unwrap().to_owned());
            }
        }
    }
    assert_eq!(fired, alerts().into_keys().collect());
}

#[test]
fn each_alert_has_its_page_and_each_page_its_alert() {
    let alerts = alerts();
    let index = read("docs/runbooks/README.md");
    for (name, alert) in &alerts {
        let page = format!("docs/runbooks/{name}.md");
        assert_eq!(alert["annotations"]["runbook_url"], page, "{name}");
        assert!(alert["annotations"]["summary"].is_string(), "{name}");
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(["page", "ticket", "none"].contains(&severity), "{name}: {severity}");
        let text = read(&page);
        let headings: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
        let expected = [&format!("# {name}"), "## Meaning", "## Impact", "## Diagnosis", "## Resolution"];
        assert_eq!(headings, expected, "{page}");
        assert!(index.contains(&format!("[{name}]({name}.md)")), "{name} is not in docs/runbooks/README.md");
    }
    for file in fs::read_dir(Path::new(ROOT).join("docs/runbooks")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let name = name.strip_suffix(".md").unwrap();
        assert!(name == "README" || alerts.contains_key(name), "{name}.md has no alert");
    }
}

/// Each `efgs-gateway …` of the runbooks: what is wrong with its arguments would be said with exit code 2.
#[test]
fn the_commands_of_the_runbooks_are_the_gateways() {
    let mut commands = BTreeSet::new();
    for name in alerts().keys() {
        let text = read(&format!("docs/runbooks/{name}.md"));
        for start in text.split("efgs-gateway ").skip(1) {
            let end = start.find(['`', '\n', '#', '|']).unwrap_or(start.len());
            commands.insert(start[..end].trim().to_owned());
        }
    }
    assert!(commands.len() > 10, "{commands:?}");
    let folder = tempfile::tempdir().unwrap();
    for command in commands {
        let output = Command::new(env!("CARGO_BIN_EXE_efgs-gateway"))
            .args(command.replace("THUMBPRINT", &"0".repeat(64)).split_whitespace())
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_ne!(output.status.code(), Some(2), "efgs-gateway {command}: {said}");
    }
}

/// The metrics of `docs/metrics.md` with their labels.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let text = read("docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let mut labels: BTreeSet<String> = cells[2].split(", ").map(str::to_owned).collect();
        // What Prometheus itself adds, and how it calls a label that it has itself.
        labels.extend(["instance", "job", "exported_job", "le"].map(str::to_owned));
        (cells[0].trim_end_matches('`').to_owned(), labels)
    })
    .collect()
}

/// The metrics that an expression names, each with the labels that it is asked for between braces.
fn named_in(expression: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = ["efgs_", "process_"].iter().filter_map(|prefix| rest.find(prefix)).min() {
        rest = &rest[start..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        rest = behind;
        let matchers = behind.strip_prefix('{').and_then(|matchers| matchers.split_once('}'));
        let matchers = matchers.map(|(matchers, _)| matchers).unwrap_or_default();
        let labels = matchers.split(',').filter_map(|matcher| matcher.split_once('='));
        let labels = labels.map(|(label, _)| label.trim().trim_end_matches('!').to_owned()).collect();
        let stem = name.strip_suffix("_bucket").unwrap_or(name);
        found.push((stem.to_owned(), labels));
    }
    found
}

#[test]
fn rules_and_dashboard_ask_for_nothing_that_is_not_exported() {
    let documented = documented();
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions = rules().into_iter().chain(targets.cloned());
    let expressions: Vec<String> =
        expressions.map(|asks| asks["expr"].as_str().unwrap().to_owned()).collect();
    assert!(expressions.len() > 60, "{}", expressions.len());
    for expression in &expressions {
        for (name, labels) in named_in(expression) {
            let known = documented.get(&name);
            let known = known.unwrap_or_else(|| panic!("{name} is not in docs/metrics.md: {expression}"));
            for label in labels {
                assert!(known.contains(&label), "{name} has no label {label}: {expression}");
            }
        }
    }
    let all = expressions.concat();
    let unused: Vec<&String> = documented.keys().filter(|name| !all.contains(*name)).collect();
    assert!(unused.len() < 20, "metrics that nobody looks at: {unused:?}");
}

#[test]
fn names_and_labels_are_found_in_an_expression() {
    let expression = "sum(rate(efgs_a_bucket{status=~\"5..\", x!=\"y\"}[5m])) / efgs_b + efgs:c > process_d";
    let found = named_in(expression);
    let labels = vec!["status".to_owned(), "x".to_owned()];
    let expected = [("efgs_a".to_owned(), labels), ("efgs_b".into(), vec![]), ("process_d".into(), vec![])];
    assert_eq!(found, expected);
}

#[test]
fn the_panels_have_ids_of_their_own_and_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        let place = |field: &str| panel["gridPos"][field].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{}", panel["title"]);
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(places.insert((x, y)), "{} is on another panel", panel["title"]);
            }
        }
    }
}
