//! From one country's phones to another's: an export file made by other programs goes up on one side, and comes
//! out on the other, verified, as a signed export file that other programs read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use efgs_gateway::clock::Clock;
use efgs_protocol::{media::Format, wire};
use serde_json::Value;

use crate::{
    client::keys,
    gaen_tools::{self, Export, Fields, Made, quote, unquote},
    harness::{Case, Running, country, participant, tests},
    national_backend::{efgs, profile},
    object_store::{ACCESS_KEY, ObjectStore, REGION, SECRET_KEY},
};

tests![keys_of_three_countries_reach_the_phones_of_each, a_bucket_is_made_like_the_folder];

/// How many keys go through, of all countries. The whole proof takes 200,000.
fn amount() -> usize {
    std::env::var("EFGS_TEST_PHONES_KEYS").map_or(120, |keys| keys.parse().unwrap())
}

/// A country of the proof: how its files are made, and which countries its users visited.
struct Publisher {
    code: &'static str,
    visited: &'static str,
    header: &'static str,
    info: &'static str,
    zip: &'static [&'static str],
    entries: &'static [&'static str],
    /// Whether its keys say how the infection was established, and when symptoms began.
    second_generation: bool,
}

const INFO: &str = "verification_key_version: \"v1\" verification_key_id: \"262\" signature_algorithm: \"1.2.840.10045.4.3.2\"";

/// What is found in the world: both generations, packed and stored, other entries, another order.
const PUBLISHERS: [Publisher; 3] = [
    Publisher {
        code: "DE",
        visited: "NL",
        header: "start_timestamp: 1606176000 end_timestamp: 1606179600 region: \"DE\" batch_num: 1 batch_size: 1",
        info: INFO,
        zip: &["-9"],
        entries: &["export.bin", "export.sig"],
        second_generation: true,
    },
    Publisher {
        code: "NL",
        visited: "",
        header: "start_timestamp: 1606176000 end_timestamp: 1606179600 region: \"204\"",
        info: "app_bundle_id: \"nl.example\" android_package: \"nl.example\" verification_key_id: \"204\"",
        zip: &["-0"],
        entries: &["README.txt", "export.sig", "export.bin"],
        second_generation: false,
    },
    Publisher {
        code: "IT",
        visited: "DE,FR",
        header: "region: \"222\" batch_num: 2 batch_size: 3",
        info: INFO,
        zip: &["-1"],
        entries: &["export.sig", "export.bin", "notes.md"],
        second_generation: true,
    },
];

impl Publisher {
    /// Keys of some days ago, whose rolling period has ended whatever the time is.
    fn keys(&self, amount: usize) -> Vec<Fields> {
        let day = Clock::system().now().timestamp() as u64 / 86_400;
        let key = |number: usize| {
            let start = (day - 2 - number as u64 % 8) * 144;
            let mut fields = vec![
                ("key_data", quote(&rand::random::<[u8; 16]>())),
                ("rolling_start_interval_number", start.to_string()),
            ];
            if self.second_generation {
                fields.push(("report_type", ["CONFIRMED_TEST", "SELF_REPORT"][number % 2].into()));
                fields.push(("days_since_onset_of_symptoms", (number as i32 % 29 - 14).to_string()));
                fields.push(("rolling_period", "144".into()));
            } else {
                // A rolling period of a day may be left out.
                fields.push(("transmission_risk_level", (number % 9).to_string()));
            }
            fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
        };
        (0..amount).map(key).collect()
    }

    /// Where the keys belong.
    fn regions(&self) -> BTreeSet<&'static str> {
        self.visited.split(',').filter(|code| !code.is_empty()).chain([self.code, "EUR"]).collect()
    }
}

/// A country's backend: its folder, with profile and keys.
struct Backend {
    folder: PathBuf,
}

impl Backend {
    fn new(case: &Case, gateway: &Running, code: &str) -> Self {
        let folder = case.folder.path().join(code);
        fs::create_dir(&folder).unwrap();
        let path = profile(gateway, &folder, participant(code));
        let export = format!(
            "[export]\nsigning_key = \"publisher.key\"\nkey_id = \"{code}\"\ncountries = [\"DE\", \"NL\", \"IT\", \"FR\"]\n\
             minimum = 10\nmax_keys = {}\n",
            amount() / 5
        );
        fs::write(&path, fs::read_to_string(&path).unwrap() + &export).unwrap();
        gaen_tools::make_keys(&folder);
        Self { folder }
    }

    /// Runs a command; what it printed as JSON.
    async fn efgs(&self, arguments: &[&str]) -> Value {
        let mut command = efgs(&self.folder, arguments);
        command.args(["--json", "--quiet"]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// All archives of a region, as the index lists them, each read by other programs.
    fn archives(&self, region: &str) -> Vec<Export> {
        let phones = self.folder.join("phones");
        let index: Value = serde_json::from_slice(&fs::read(phones.join("index.json")).unwrap()).unwrap();
        let mut exports = Vec::new();
        for day in index["regions"][region]["days"].as_object().unwrap().values() {
            for file in day["hours"].as_object().unwrap().values().flat_map(|files| files.as_array().unwrap())
            {
                let path = phones.join(file["path"].as_str().unwrap());
                let sum = sha256(&path);
                assert_eq!(file["sha256"], sum);
                let export = gaen_tools::read(&path, &self.folder.join("publisher.pem"), &self.folder);
                assert_eq!(file["keys"], export.keys.len());
                assert_eq!(export.header["region"], format!("{region:?}"));
                assert_eq!(export.header["batch_num"], file["batchNum"].to_string());
                assert_eq!(export.header["batch_size"], file["batchSize"].to_string());
                let time = |name: &str| export.header[name].parse::<i64>().unwrap();
                assert!(time("end_timestamp") > time("start_timestamp"));
                assert!(export.revised.is_empty());
                exports.push(export);
            }
        }
        exports
    }
}

fn sha256(path: &Path) -> String {
    let folder = path.parent().unwrap();
    let output =
        crate::harness::output_of("openssl", &["dgst", "-sha256", "-r", path.to_str().unwrap()], folder);
    String::from_utf8(output).unwrap().split(' ').next().unwrap().to_owned()
}

/// What phones must find: the same key, with what was left out at its default.
fn complete(mut key: Fields) -> (Vec<u8>, Fields) {
    key.entry("rolling_period".into()).or_insert_with(|| "144".into());
    let data = unquote(&key.remove("key_data").unwrap());
    (data, key)
}

async fn keys_of_three_countries_reach_the_phones_of_each(case: &Case) {
    if !gaen_tools::are_there() {
        return;
    }
    let gateway = case
        .gateway_at(Clock::system(), |config| config.trust.refresh = std::time::Duration::from_secs(3600))
        .await;
    let backends = PUBLISHERS.map(|publisher| (Backend::new(case, &gateway, publisher.code), publisher));

    let mut expected: BTreeMap<&str, BTreeMap<Vec<u8>, Fields>> = BTreeMap::new();
    for (backend, publisher) in &backends {
        let keys = publisher.keys(amount() / 3);
        let (revised, new) = keys.split_at(if publisher.code == "IT" { 3 } else { 0 });
        let Publisher { header, info, zip, entries, .. } = *publisher;
        gaen_tools::make(
            &backend.folder,
            "own.zip",
            &Made { header, info, keys: new, revised, zip, entries },
        );
        for region in publisher.regions() {
            expected.entry(region).or_default().extend(keys.iter().cloned().map(complete));
        }
        let mut upload = vec!["upload", "own.zip", "--gaen-key", "publisher.pem"];
        if !publisher.visited.is_empty() {
            upload.extend(["--visited", publisher.visited]);
        }
        backend.efgs(&upload).await;
    }
    // The last of them; with many keys, full batches are formed while they come.
    gateway.form().await;
    assert_eq!(gateway.app.store.pending().await.unwrap().keys, 0);

    for (backend, publisher) in &backends {
        backend.efgs(&["download", "--into", "batches"]).await;
        let mut export = vec!["export", "own.zip", "--gaen-key", "publisher.pem"];
        if !publisher.visited.is_empty() {
            export.extend(["--visited", publisher.visited]);
        }
        let report = backend.efgs(&export).await;
        assert_eq!(report["intake"]["keys"], amount() / 3 * 3, "{report}");
        for (region, expected) in &expected {
            let archives = backend.archives(region);
            assert_eq!(archives.len(), expected.len().div_ceil(amount() / 5), "{region}");
            let mut found = BTreeMap::new();
            for export in archives {
                let keys: Vec<_> = export.keys.into_iter().map(complete).collect();
                assert!(keys.is_sorted_by_key(|(data, _)| data.clone()));
                for (data, fields) in keys {
                    assert_eq!(found.insert(data, fields), None, "{region}: a key twice");
                }
            }
            assert_eq!(found.len(), expected.len(), "{}: {region}", publisher.code);
            assert!(found == *expected, "{}: a key in {region} has changed", publisher.code);
        }
        // Nothing twice.
        let again = backend.efgs(&export).await;
        assert_eq!(again["added"].as_array().unwrap().len(), 0);
    }
}

async fn a_bucket_is_made_like_the_folder(case: &Case) {
    case.prepare().await;
    let store = ObjectStore::start();
    let folder = case.folder.path();
    gaen_tools::make_keys(folder);
    fs::write(folder.join("access"), ACCESS_KEY).unwrap();
    fs::write(folder.join("secret"), format!("{SECRET_KEY}\n")).unwrap();
    let profile = format!(
        "country = \"DE\"\n[export]\nsigning_key = \"publisher.key\"\nkey_id = \"262\"\nminimum = 1\n\
         countries = [\"DE\", \"FR\"]\n\
         [export.bucket]\nendpoint = \"{}\"\nname = \"efgs-journal\"\nregion = \"{REGION}\"\nprefix = \"phones/\"\n\
         access_key_file = \"access\"\nsecret_key_file = \"secret\"\n",
        store.endpoint
    );
    fs::write(folder.join("efgs-client.toml"), profile).unwrap();
    // Of some days ago, so that all of them may be published.
    let now = Clock::system().now() - chrono::Days::new(2);
    fs::write(folder.join("own.json"), wire::encode(Format::Json, &keys(country("DE"), 30, now))).unwrap();
    let export = async |code: i32| {
        let mut command = efgs(folder, &["export", "own.json"]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!said.contains(SECRET_KEY) && !said.contains("X-Amz"), "{said}");
        said
    };

    export(0).await;
    assert_eq!(store.refused(), Vec::<String>::new());
    let puts = store.puts();
    let is_zip = |name: &str| name.ends_with(".zip");
    let first_index = puts.iter().position(|put| !is_zip(&put.name)).unwrap();
    assert_eq!(first_index, 3);
    assert!(!puts[first_index..].iter().any(|put| is_zip(&put.name)), "an archive after an index");
    assert_eq!(puts.last().unwrap().name, "phones/index.json");
    assert_eq!(puts[0].content_type, "application/zip");
    assert!(puts[0].cache_control.contains("immutable"));
    assert_eq!(puts.last().unwrap().cache_control, "public, max-age=300");
    let names = store.names();
    for name in &names {
        let file = folder.join(name);
        assert!(store.object(name).unwrap() == fs::read(&file).unwrap(), "{name}");
    }

    // What has left the index is deleted, what is missing comes back, what is not ours stays.
    store.insert("phones/DE/2020-01-01/07/1-0123456789abcdef.zip", b"old");
    store.insert("phones/logo.zip", b"ours");
    store.insert(&puts[0].name, b"damaged");
    store.set_unreachable(true);
    assert!(export(5).await.contains("SlowDown"));
    store.set_unreachable(false);
    export(0).await;
    let mut expected = [names, vec!["phones/logo.zip".into()]].concat();
    expected.sort();
    assert_eq!(store.names(), expected);
    assert!(store.object(&puts[0].name).unwrap() == fs::read(folder.join(&puts[0].name)).unwrap());
    store.stop().await;
}
