//! A real Chromium (Debian's packages `chromium` and `chromium-driver`), driven over WebDriver.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

/// One window.
pub(crate) struct Browser {
    driver: Child,
    session: String,
    http: reqwest::Client,
}

impl Browser {
    /// Starts one; `None` when there is none on this machine, which fails where everything is required.
    pub(crate) async fn start() -> Option<Self> {
        let driver = Command::new("chromedriver")
            .args(["--port=0", "--log-level=SEVERE"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut driver) = driver else {
            let required = std::env::var_os("EFGS_TEST_REQUIRE_ALL").is_some_and(|value| value == "1");
            assert!(!required, "there is no chromedriver: install chromium and chromium-driver");
            return None;
        };
        let port = port(&mut driver);
        let http = reqwest::Client::new();
        let options =
            json!({"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]});
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let root = format!("http://127.0.0.1:{port}/session");
        let answer = call(http.post(&root).body(wanted.to_string())).await;
        let session = format!("{root}/{}", answer["sessionId"].as_str().unwrap());
        Some(Self { driver, session, http })
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        call(self.http.post(format!("{}/{path}", self.session)).body(body.to_string())).await
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("goog/cdp/execute", json!({"cmd": command, "params": parameters})).await
    }

    /// Sets the size of the window and the colours that its owner prefers.
    pub(crate) async fn screen(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", scheme).await;
    }

    pub(crate) async fn open(&self, url: &str) {
        self.post("url", json!({ "url": url })).await;
    }

    /// What a script returns.
    pub(crate) async fn script(&self, text: &str) -> Value {
        self.post("execute/sync", json!({"script": text, "args": []})).await
    }

    /// Waits until a script returns true: the page asks the gateway every ten seconds.
    pub(crate) async fn until(&self, script: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.script(script).await != true {
            assert!(Instant::now() < deadline, "{script} did not become true");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn press(&self, key: &str) {
        let keys = [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        self.post("actions", json!({"actions": [{"type": "key", "id": "keyboard", "actions": keys}]})).await;
    }

    /// The whole page as a picture, in the folder that `EFGS_TEST_SCREENSHOTS` names.
    pub(crate) async fn screenshot(&self, name: &str) {
        let picture = self.devtools("Page.captureScreenshot", json!({"captureBeyondViewport": true})).await;
        let picture = BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        assert!(picture.starts_with(b"\x89PNG"));
        if let Some(folder) = std::env::var_os("EFGS_TEST_SCREENSHOTS").map(PathBuf::from) {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(format!("{name}.png")), picture).unwrap();
        }
    }

    /// Roles and names, as assistive technology gets them.
    pub(crate) async fn accessibility(&self) -> Vec<(String, String)> {
        let tree = self.devtools("Accessibility.getFullAXTree", json!({})).await;
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        let nodes = tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] != true);
        nodes.map(|node| (text(&node["role"]), text(&node["name"]))).collect()
    }

    /// What the browser's console holds against the page, without the connections that the test has broken.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let log = self.post("se/log", json!({"type": "browser"})).await;
        let messages =
            log.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned());
        messages.filter(|text| !text.contains("ERR_CONNECTION_REFUSED")).collect()
    }

    pub(crate) async fn end(self) {
        call(self.http.delete(&self.session)).await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}

/// Where the driver says that it listens.
fn port(driver: &mut Child) -> u16 {
    use std::io::{BufRead as _, BufReader};
    let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let mut said = lines.map_while(Result::ok).filter_map(|line| {
        let (_, port) = line.split_once("started successfully on port ")?;
        port.trim_end_matches('.').parse().ok()
    });
    said.next().unwrap()
}

async fn call(request: reqwest::RequestBuilder) -> Value {
    let body = request.send().await.unwrap().bytes().await.unwrap();
    let mut answer: Value = serde_json::from_slice(&body).unwrap();
    assert!(answer["value"]["error"].is_null(), "{answer}");
    answer["value"].take()
}
