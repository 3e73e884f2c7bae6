//! `efgs upload` and the library under it, against the real gateway.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use efgs_client::gaen::{self, ExportHeader, ExportSigner, Section, TemporaryExposureKey};
use efgs_gateway::clock::Clock;
use efgs_protocol::{
    key::{DiagnosisKey, KeyBatch},
    media::Format,
    wire,
};
use openssl::{
    ec::{EcGroup, EcKey},
    nid::Nid,
};
use serde_json::{Value, json};

use crate::{
    client::{join, keys, pick},
    harness::{Case, Running, country, participant, tests},
    national_backend::{MOST_MEMORY, efgs, peak_memory, profile},
    process::{download_all, sorted},
};

tests![
    files_of_every_kind_come_to_the_gateway_once,
    what_the_gateway_has_already_is_left_out,
    invalid_keys_are_named_and_nothing_is_sent,
    an_export_that_somebody_else_signed_is_not_sent,
    kill_9_at_any_moment_loses_no_key_and_sends_none_twice,
    sigterm_brings_to_its_end_what_is_under_way,
    memory_does_not_grow_with_the_keys,
];

fn now() -> chrono::DateTime<chrono::Utc> {
    Clock::system().now()
}

fn json_lines(keys: &KeyBatch) -> Vec<u8> {
    let mut lines = Vec::new();
    for key in keys.iter() {
        wire::encode_key(Format::Json, key, &mut lines);
        lines.push(b'\n');
    }
    lines
}

fn signer() -> (ExportSigner, Vec<u8>) {
    let key = EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap();
    let signer = ExportSigner::from_pem(&key.private_key_to_pem().unwrap(), "262", "v1").unwrap();
    (signer, key.public_key_to_pem().unwrap())
}

fn export(path: &Path, keys: &KeyBatch, signer: ExportSigner) {
    let entries = keys.iter().map(|key| {
        let key = TemporaryExposureKey {
            key_data: key.key_data,
            rolling_start_interval_number: key.rolling_start_interval_number,
            rolling_period: key.rolling_period,
            transmission_risk_level: None,
            report_type: Some(key.report_type),
            days_since_onset_of_symptoms: Some(key.days_since_onset_of_symptoms),
        };
        (Section::New, key)
    });
    gaen::write(File::create(path).unwrap(), &ExportHeader::default(), entries, &[signer]).unwrap();
}

/// A gateway, and a folder with the profile of DE for it.
async fn set_up(case: &Case) -> Running {
    let gateway = case.gateway_at(Clock::system(), |_| {}).await;
    profile(&gateway, case.folder.path(), participant("DE"));
    gateway
}

/// Runs the command to its end; its exit code and its report.
fn run(case: &Case, arguments: &[&str], input: &[u8]) -> (i32, Value, String) {
    let arguments = [&["upload", "--json"], arguments].concat();
    let mut command = efgs(case.folder.path(), &arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let report = serde_json::from_slice(&stdout).unwrap_or_default();
    (status.code().unwrap(), report, String::from_utf8(stderr).unwrap())
}

/// What another country can download.
async fn downloaded(gateway: &Running) -> Vec<[u8; 16]> {
    gateway.form().await;
    download_all(&gateway.client("NL"), now().date_naive()).await
}

async fn files_of_every_kind_come_to_the_gateway_once(case: &Case) {
    let gateway = set_up(case).await;
    let folder = case.folder.path();
    let parts: Vec<KeyBatch> = (0..5).map(|_| keys(country("DE"), 150, now())).collect();
    std::fs::write(folder.join("a.json"), wire::encode(Format::Json, &parts[0])).unwrap();
    std::fs::write(folder.join("b.bin"), wire::encode(Format::Protobuf, &parts[1])).unwrap();
    // Some keys repeat.
    std::fs::write(folder.join("c.ndjson"), json_lines(&join(&[&parts[0], &parts[2]]))).unwrap();
    let (signer, public_key) = signer();
    export(&folder.join("d.zip"), &parts[3], signer);
    std::fs::write(folder.join("publisher.pem"), public_key).unwrap();
    let options = ["--max-keys", "100", "--gaen-key", "publisher.pem", "--visited", "DE,FR"];
    let arguments = [&options[..], &["a.json", "b.bin", "c.ndjson", "d.zip", "-"]].concat();
    let input = json_lines(&parts[4]);

    let dry = [&arguments[..], &["--dry-run"]].concat();
    let (code, report, errors) = run(case, &dry, &input);
    assert_eq!((code, &report["keys"]["unsent"]), (0, &json!(750)), "{errors}");
    assert_eq!(case.db.counts().await, [0, 0, 0]);

    let (code, report, errors) = run(case, &arguments, &input);
    assert_eq!(code, 0, "{report} {errors}");
    let counts = json!({"read": 900, "invalid": 0, "too_old": 0, "repeated": 150, "done_before": 0, "stored": 750, "existing": 0, "unsent": 0});
    assert_eq!(report["keys"], counts);
    let formats: Vec<&Value> =
        report["files"].as_array().unwrap().iter().map(|file| &file["format"]).collect();
    assert_eq!(formats, ["json", "protobuf", "json-lines", "gaen", "json-lines"]);
    assert_eq!(downloaded(&gateway).await, sorted(&parts));
    let stored = case.db.counts().await;
    assert_eq!(stored[1], 750);

    // Again, and in another state folder, which knows nothing.
    let (code, report, _) = run(case, &arguments, &input);
    assert_eq!((code, &report["keys"]["stored"], &report["uploads"]), (0, &json!(0), &json!([])));
    std::fs::remove_dir_all(folder.join("efgs-state")).unwrap();
    let (code, report, _) = run(case, &arguments, &input);
    assert_eq!((code, &report["keys"]["unsent"]), (0, &json!(0)));
    assert_eq!(case.db.counts().await, stored);
}

async fn what_the_gateway_has_already_is_left_out(case: &Case) {
    let gateway = set_up(case).await;
    let all = keys(country("DE"), 40, now());
    gateway.client("DE").upload("other", &pick(&all, [3, 17, 18])).await.expect(201);
    std::fs::write(case.folder.path().join("keys"), wire::encode(Format::Protobuf, &all)).unwrap();
    let (code, report, _) = run(case, &["keys"], b"");
    assert_eq!(code, 0);
    assert_eq!((&report["keys"]["stored"], &report["keys"]["existing"]), (&json!(37), &json!(3)));
    assert_eq!(downloaded(&gateway).await, sorted([&all]));
    // The tag in the report is one that can be withdrawn.
    let tag = report["uploads"][0]["tag"].as_str().unwrap();
    assert_eq!(crate::process::stored(case, tag).await, 37);
}

async fn invalid_keys_are_named_and_nothing_is_sent(case: &Case) {
    let gateway = set_up(case).await;
    let good = keys(country("DE"), 10, now());
    let mut all = good.clone();
    all.push(DiagnosisKey { rolling_start_interval_number: 1, ..*good.get(0) }, &[]);
    all.push(DiagnosisKey { origin: country("NL"), ..*good.get(0) }, &[]);
    all.push(DiagnosisKey { rolling_start_interval_number: u32::MAX, ..*good.get(0) }, &[]);
    let (code, report, errors) = run(case, &["-"], &json_lines(&all));
    assert_eq!((code, &report["outcome"]), (1, &json!("invalid")));
    let named: Vec<&Value> = report["invalid"].as_array().unwrap().iter().map(|key| &key["key"]).collect();
    // The one that is only too old is no mistake.
    assert_eq!((named, &report["keys"]["too_old"]), (vec![&json!(11), &json!(12)], &json!(1)));
    assert!(errors.contains("--skip-invalid"), "{errors}");
    assert_eq!(case.db.counts().await, [0, 0, 0]);
    let (code, report, _) = run(case, &["--skip-invalid", "-"], &json_lines(&all));
    assert_eq!((code, &report["keys"]["stored"]), (4, &json!(10)));
    assert_eq!(downloaded(&gateway).await, sorted([&good]));
}

async fn an_export_that_somebody_else_signed_is_not_sent(case: &Case) {
    let _gateway = set_up(case).await;
    let folder = case.folder.path();
    export(&folder.join("export.zip"), &keys(country("DE"), 10, now()), signer().0);
    std::fs::write(folder.join("publisher.pem"), signer().1).unwrap();
    let (code, _, errors) = run(case, &["--gaen-key", "publisher.pem", "export.zip"], b"");
    assert_eq!(code, 3);
    assert!(errors.contains("export.zip") && errors.contains("signature"), "{errors}");
    assert_eq!(case.db.counts().await, [0, 0, 0]);
}

async fn kill_9_at_any_moment_loses_no_key_and_sends_none_twice(case: &Case) {
    let kills: usize = std::env::var("EFGS_TEST_KILL_ROUNDS").map_or(5, |n| n.parse().unwrap());
    let gateway = set_up(case).await;
    let folder = case.folder.path();
    let mut files: Vec<KeyBatch> = Vec::new();
    let (mut killed, mut ended) = (0, true);
    while killed < kills {
        if ended {
            let new = keys(country("DE"), 600, now());
            std::fs::write(folder.join("keys"), wire::encode(Format::Protobuf, &new)).unwrap();
            files.push(new);
        }
        let mut child = efgs(folder, &["upload", "--quiet", "--max-keys", "10", "keys"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // From before the first call to after the last one.
        tokio::time::sleep(Duration::from_millis(rand::random_range(5..400))).await;
        ended = match child.try_wait().unwrap() {
            Some(status) => {
                assert_eq!(status.code(), Some(0));
                true
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                killed += 1;
                false
            }
        };
    }
    let (code, report, errors) = run(case, &["--max-keys", "10", "keys"], b"");
    assert_eq!((code, &report["outcome"]), (0, &json!("complete")), "{errors}");
    // A last time, without its memory.
    std::fs::remove_dir_all(folder.join("efgs-state")).unwrap();
    assert_eq!(run(case, &["--max-keys", "10", "keys"], b"").0, 0);
    let [uploads, stored, _] = case.db.counts().await;
    let expected = 600 * files.len();
    assert_eq!((uploads as usize, stored as usize), (expected / 10, expected));
    assert_eq!(downloaded(&gateway).await, sorted(&files));
}

async fn sigterm_brings_to_its_end_what_is_under_way(case: &Case) {
    let gateway = set_up(case).await;
    let folder = case.folder.path();
    let all = keys(country("DE"), 2000, now());
    std::fs::write(folder.join("keys"), wire::encode(Format::Protobuf, &all)).unwrap();
    let child = efgs(folder, &["upload", "--json", "--max-keys", "5", "keys"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    crate::harness::until("the first upload", async || (case.db.counts().await[0] > 0).then_some(())).await;
    let kill = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["outcome"]), (Some(5), &json!("interrupted")));
    // The report knows of all that was stored.
    assert_eq!(report["keys"]["stored"], case.db.counts().await[1]);
    assert_eq!(run(case, &["--max-keys", "5", "keys"], b"").0, 0);
    assert_eq!(downloaded(&gateway).await, sorted([&all]));
}

/// `EFGS_TEST_MANY_KEYS=1000000` for the full size.
#[expect(clippy::print_stdout, reason = "at its full size it is run for this figure")]
async fn memory_does_not_grow_with_the_keys(case: &Case) {
    let amount: usize = std::env::var("EFGS_TEST_MANY_KEYS").map_or(10_000, |n| n.parse().unwrap());
    let _gateway = set_up(case).await;
    let folder = case.folder.path();
    let mut file = BufWriter::new(File::create(folder.join("keys.json")).unwrap());
    file.write_all(wire::JSON_OPEN).unwrap();
    for at in 0..amount.div_ceil(1000) {
        let separator = if at == 0 { &b""[..] } else { wire::JSON_SEPARATOR };
        let text = wire::encode(Format::Json, &keys(country("DE"), 1000, now()));
        let inner = text.strip_prefix(wire::JSON_OPEN).unwrap().strip_suffix(wire::JSON_CLOSE).unwrap();
        file.write_all(separator).and_then(|()| file.write_all(inner)).unwrap();
    }
    file.write_all(wire::JSON_CLOSE).and_then(|()| file.flush()).unwrap();

    let begin = Instant::now();
    let mut child = efgs(folder, &["upload", "--quiet", "keys.json"]).stdout(Stdio::null()).spawn().unwrap();
    let (status, peak) = peak_memory(&mut child).await;
    println!("{amount} keys: {} MiB at most, {:.1} s", peak >> 20, begin.elapsed().as_secs_f64());
    assert_eq!(status.code(), Some(0));
    assert_eq!(case.db.counts().await[1] as usize, amount.next_multiple_of(1000));
    assert!(peak > 0 && peak < MOST_MEMORY, "{} MiB", peak >> 20);
}
