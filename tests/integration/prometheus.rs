//! A real Prometheus that scrapes a gateway, with the configuration, the rules and the dashboard of `deploy/`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::{free_port::free_port, harness::until};

/// Where Prometheus is installed.
pub(crate) struct Installed(PathBuf);

pub(crate) struct Prometheus {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn deploy(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)).unwrap()
}

impl Prometheus {
    /// Whether it is installed; when it is not and all is required, the test fails.
    pub(crate) fn installed() -> Option<Installed> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|folder| folder.join("prometheus"));
        let found = found.into_iter().find(|program| program.is_file());
        let required = std::env::var_os("EFGS_TEST_REQUIRE_ALL").is_some_and(|value| value == "1");
        assert!(found.is_some() || !required, "Prometheus is not installed: apt install prometheus");
        found.map(Installed)
    }

    /// Starts it, to scrape the gateway with this admin port.
    pub(crate) async fn start(Installed(program): Installed, admin: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = deploy("prometheus/prometheus.yml")
            .replace("gateway:8081", &format!("127.0.0.1:{admin}"))
            .replace("interval: 15s", "interval: 500ms");
        fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        fs::write(folder.path().join("efgs.rules.yml"), deploy("prometheus/efgs.rules.yml")).unwrap();
        let port = free_port();
        // It dies with this thread, whatever becomes of that.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error"])
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let prometheus = Self { child, url: format!("http://127.0.0.1:{port}/api/v1/"), _folder: folder };
        until("Prometheus scrapes the gateway", async || {
            let up = prometheus.try_query("up{job=\"efgs\"} == 1").await.unwrap_or_default();
            (!up.is_empty()).then_some(())
        })
        .await;
        prometheus
    }

    async fn try_query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let mut url = url::Url::parse(&format!("{}query", self.url)).unwrap();
        url.query_pairs_mut().append_pair("query", expression);
        let answer = reqwest::get(url).await.map_err(|e| e.to_string())?;
        let body: Value = serde_json::from_str(&answer.text().await.map_err(|e| e.to_string())?)
            .map_err(|e| e.to_string())?;
        match &body["data"]["result"] {
            Value::Array(found) if body["status"] == "success" => Ok(found.clone()),
            _ => Err(body.to_string()),
        }
    }

    /// What an expression finds now.
    pub(crate) async fn query(&self, expression: &str) -> Vec<Value> {
        self.try_query(expression).await.unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// Waits until the gateway has been scraped after this moment.
    pub(crate) async fn scraped(&self) {
        let scrapes =
            async || self.query("count_over_time(up{job=\"efgs\"}[1h])").await[0]["value"][1].clone();
        let before: u64 = scrapes().await.as_str().unwrap().parse().unwrap();
        until("two more scrapes", async || {
            let now: u64 = scrapes().await.as_str().unwrap().parse().unwrap();
            (now >= before + 2).then_some(())
        })
        .await;
    }

    /// The rules by name, once each has been evaluated: its health.
    pub(crate) async fn rules(&self) -> BTreeMap<String, String> {
        until("all rules are evaluated", async || {
            let answer = reqwest::get(format!("{}rules", self.url)).await.unwrap().text().await.unwrap();
            let body: Value = serde_json::from_str(&answer).unwrap();
            let groups = body["data"]["groups"].as_array()?;
            let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
            let text = |rule: &Value, field: &str| rule[field].as_str().unwrap().to_owned();
            let rules: BTreeMap<_, _> =
                rules.map(|rule| (text(rule, "name"), text(rule, "health"))).collect();
            rules.values().all(|health| health != "unknown").then_some(rules)
        })
        .await
    }
}

/// Every query of the dashboard, with its variables filled in; each with the title of its panel.
pub(crate) fn dashboard_queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&deploy("grafana/dashboards/efgs.json")).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$__rate_interval", "1m");
            let query = query.replace("$instance", ".*").replace("$country", ".*");
            assert!(!query.contains('$'), "an unknown variable: {query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    queries
}
