//! Audits of single batches, from the gateway and from the disk.

use efgs_protocol::{key::KeyBatch, signature::SignaturePolicy};

use super::{
    super::*,
    all,
    gateway::{Scene, country, day, entry, keys, participant},
};
use crate::audit::{AuditError, AuditReport, Audited};

async fn online(scene: &Scene, tag: &str) -> Result<AuditReport, AuditError> {
    scene.auditor().audit_online(&scene.options().gateway, day("2026-11-22"), tag).await
}

#[tokio::test]
async fn a_report_says_who_uploaded_who_signed_and_whether_it_holds() {
    let scene = Scene::new();
    let own = participant(&scene.pki, "IT");
    scene.lie(|batch| batch.entries.push(entry(&own, &keys("IT", 50..57))));
    let report = online(&scene, "20261122-2").await.unwrap();
    assert!(report.holds && report.first_failure().is_none());
    let text = report.to_string();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(text.lines().next().unwrap(), "batch 20261122-2 of 2026-11-22: 5 keys, 3 uploads: verified");
    assert_eq!(lines[1], ["country", "keys", "uploaded", "thumbprint", "operator", "verdict", "signer"]);
    let thumbprint = scene.germany.signing.certificate.thumbprint().to_string();
    assert_eq!(lines[2][..3], ["1", "DE", "3"]);
    assert_eq!(lines[2][4..7], [&thumbprint[..12], "ok", "ok"]);
    assert_eq!((lines[4][1], lines[4][2], lines[4][6]), ("IT", "7", "own"));
    assert_eq!(lines.len(), 5, "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["uploads"][1]["country"], "NL");
    assert_eq!((&json["uploads"][1]["firstKey"], &json["uploads"][2]["firstKey"]), (&3.into(), &().into()));
    assert_eq!((&json["holds"], &json["keys"]), (&true.into(), &5.into()));
}

#[tokio::test]
async fn what_is_wrong_is_told_upload_by_upload() {
    let scene = Scene::new();
    scene.lie(|batch| batch.keys = batch.keys.iter().take(3).chain(keys("DE", 90..92).iter()).collect());
    let report = online(&scene, "20261122-2").await.unwrap();
    assert!(!report.holds);
    let text = report.to_string();
    assert!(text.contains("5 keys, 2 uploads: DOES NOT VERIFY"), "{text}");
    assert!(text.contains("  upload 2, NL: key 3 of the download"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("1  DE") && line.contains("ok  ")), "{text}");
    assert!(text.lines().any(|line| line.starts_with("2  NL") && line.contains("FAILED")), "{text}");
    assert!(matches!(online(&scene, "20261122-7").await, Err(AuditError::NoBatch { .. })));
}

#[tokio::test]
async fn the_time_of_an_upload_is_not_believed_against_its_keys_and_its_batch() {
    for (time, complaint) in [
        (
            "2026-11-20T12:00:00Z",
            "upload 2 (2 keys of NL): uploadedTime 2026-11-20T12:00:00.000Z cannot be right",
        ),
        (
            "2026-11-23T12:00:00Z",
            "uploadedTime 2026-11-23T12:00:00.000Z is later than 2026-11-23T00:00:00.000Z",
        ),
    ] {
        let scene = Scene::new();
        scene.lie(|batch| batch.entries[1].uploaded_time = time.parse().unwrap());
        let report = online(&scene, "20261122-2").await.unwrap();
        assert!(report.first_failure().unwrap().contains(complaint), "{report}");
    }
}

#[tokio::test]
async fn the_audit_is_of_the_batch_that_was_asked_for() {
    let scene = Scene::new();
    assert_eq!(online(&scene, "20261123-1").await.unwrap().date, day("2026-11-23"), "its own day");
    scene.script.lock().unwrap().misname = Some(("20261122-2".into(), "20261122-1".into()));
    let error = online(&scene, "20261122-2").await.unwrap_err();
    assert!(error.to_string().contains("asked for batch 20261122-2 and answered with 20261122-1"), "{error}");
    assert!(matches!(online(&scene, "../x").await, Err(AuditError::NoBatch { .. })));
}

#[tokio::test]
async fn a_stored_batch_is_audited_without_the_gateway() {
    let scene = Scene::new();
    all(&mut scene.open()).await;
    let stored = Stored::batches(&scene.batches_folder()).unwrap();
    let auditor = scene.auditor();
    drop(scene.server);
    assert!(auditor.audit_stored(&stored[1]).unwrap().holds);
    // Changed on the disk.
    let other = stored[0].keys().unwrap();
    std::fs::write(&stored[1].path, efgs_protocol::wire::encode(crate::Format::Protobuf, &other)).unwrap();
    assert!(!auditor.audit_stored(&stored[1]).unwrap().holds);
    // Exchanged as a whole: it verifies, but it is another batch.
    std::fs::copy(stored[0].audit_path(), stored[1].audit_path()).unwrap();
    let report = auditor.audit_stored(&stored[1]).unwrap();
    assert_eq!(
        report.first_failure().unwrap(),
        "the audit beside the batch is about 20261122-1 of 2026-11-22"
    );
    assert!(!report.holds);
    std::fs::remove_file(stored[2].audit_path()).unwrap();
    let error = auditor.audit_stored(&stored[2]).unwrap_err();
    assert!(error.to_string().contains("cannot read the audit"), "{error}");
}

#[tokio::test]
async fn sha1_is_named_with_its_remedy_and_can_be_allowed() {
    let scene = Scene::new();
    let sha1 = keys("NL", 13..15);
    let mut forged = entry(&scene.netherlands, &sha1);
    let signing = &scene.netherlands.signing;
    let bytes = efgs_protocol::canonical::CanonicalKeys::of(&sha1).signed_bytes();
    let folder = scene.folder.path();
    std::fs::write(folder.join("signer.pem"), format!("{}{}", signing.certificate.pem(), signing.key_pem))
        .unwrap();
    std::fs::write(folder.join("bytes"), bytes).unwrap();
    let command = "cms -sign -binary -md sha1 -signer signer.pem -in bytes -outform DER";
    let signed = std::process::Command::new("openssl").args(command.split(' ')).current_dir(folder).output();
    forged.batch_signature = openssl::base64::encode_block(&signed.unwrap().stdout);
    scene.lie(|batch| batch.entries[1] = forged);
    let report = online(&scene, "20261122-2").await.unwrap();
    assert!(report.first_failure().unwrap().contains("allow_sha1"), "{report}");
    let mut auditor = scene.auditor();
    auditor.policy = SignaturePolicy { allow_sha1: true };
    let gateway = scene.options().gateway;
    let report = auditor.audit_online(&gateway, day("2026-11-22"), "20261122-2").await.unwrap();
    assert!(report.holds && report.to_string().contains("ok, SHA-1"), "{report}");
}

#[test]
fn an_audit_is_kept_as_it_is_written() {
    let audited = Audited {
        batch_tag: "a".into(),
        date: day("2026-11-22"),
        country: country("IT"),
        withdrawn_uploads: 1,
        uploads: Vec::new(),
    };
    let text = serde_json::to_string(&audited).unwrap();
    assert_eq!(serde_json::from_str::<Audited>(&text).unwrap(), audited);
    let report = Scene::new().auditor().audit(&audited, &KeyBatch::new());
    assert_eq!(report.to_string(), "batch a of 2026-11-22: 0 keys, 0 uploads, 1 withdrawn: verified\n");
}
