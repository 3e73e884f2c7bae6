//! A gateway that lies is caught, whatever it lies about, and nothing of it is stored.

use std::path::Path;

use efgs_protocol::{anchor::TrustAnchor, key::KeyBatch, wire};
use efgs_test_ca::{KeyKind, Pki};

use super::{
    super::*,
    all,
    gateway::{Batch, Raw, Scene, entry, keys, participant, signed_with},
};
use crate::Format;

/// The second of three batches is a lie: what the download says. The first one is stored, nothing else; when
/// the gateway tells the truth again, the rest follows.
async fn caught(scene: &Scene, lie: impl FnOnce(&mut Batch)) -> DownloadError {
    let truth = scene.script.lock().unwrap().batches.clone();
    scene.lie(lie);
    let mut downloader = scene.open();
    let error = loop {
        match downloader.next().await {
            Ok(batch) => assert_eq!(batch.unwrap().batch_tag, "20261122-1", "a lie was stored"),
            Err(error) => break error,
        }
    };
    drop(downloader);
    let stored = "0000000001_2026-11-22_20261122-1";
    assert_eq!(scene.files(), [format!("{stored}.audit.json"), format!("{stored}.pb")]);
    // Also on a second attempt.
    assert_eq!(scene.open().next().await.unwrap_err().to_string(), error.to_string());
    scene.script.lock().unwrap().batches = truth;
    assert_eq!(all(&mut scene.open()).await, ["20261122-2", "20261123-1"]);
    error
}

/// A lie that is put aside: what the report says, in text and JSON. The evidence is kept.
async fn put_aside(scene: Scene, lie: impl FnOnce(&mut Batch)) -> String {
    let error = caught(&scene, lie).await;
    let DownloadError::Quarantined(quarantined) = &error else { panic!("{error}") };
    assert!(error.to_string().starts_with("batch 20261122-2 does not verify: "), "{error}");
    let folder = quarantined.folder.as_ref().unwrap();
    assert_eq!(*folder, scene.folder.path().join("state/quarantine/2026-11-22_20261122-2"));
    assert!(!folder.exists(), "it has verified since");
    let folder = folder.with_added_extension("resolved");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert!(folder.join("batch.pb").exists() && folder.join("audit.json").exists());
    let json: serde_json::Value = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!((&json["holds"], &json["batchTag"]), (&false.into(), &"20261122-2".into()));
    let text = read("report.txt");
    assert!(text.contains("DOES NOT VERIFY"), "{text}");
    for part in quarantined.reason.split(": ").skip(2) {
        assert!(text.contains(part), "{part}: {text}");
    }
    format!("{}\n{text}", quarantined.reason)
}

fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn pick(keys: &KeyBatch, indexes: &[usize]) -> KeyBatch {
    indexes.iter().map(|index| keys.get(*index)).collect()
}

#[tokio::test]
async fn an_altered_key() {
    let report = put_aside(Scene::new(), |batch| {
        let mut altered = KeyBatch::new();
        for (i, key) in batch.keys.iter().enumerate() {
            let mut changed = *key;
            changed.transmission_risk_level = if i == 4 { 8 } else { changed.transmission_risk_level };
            altered.push(changed, key.visited_countries());
        }
        batch.keys = altered;
    });
    says(&report.await, &["upload 2 (2 keys of NL): signature does not verify for these keys"]);
}

#[tokio::test]
async fn a_dropped_key() {
    let report = put_aside(Scene::new(), |batch| batch.keys = pick(&batch.keys, &[0, 1, 2, 3]));
    says(&report.await, &["the audit entries announce 5 keys, but the download has 4"]);
}

#[tokio::test]
async fn a_dropped_key_with_an_audit_that_covers_it_up() {
    let report = put_aside(Scene::new(), |batch| {
        batch.keys = pick(&batch.keys, &[0, 1, 2, 3]);
        batch.entries[1].amount = 1;
    });
    says(&report.await, &["upload 2 (1 keys of NL): signature does not verify for these keys"]);
}

#[tokio::test]
async fn an_added_key() {
    let report = put_aside(Scene::new(), |batch| {
        batch.keys = batch.keys.iter().chain(keys("NL", 99..100).iter()).collect();
    });
    says(&report.await, &["the audit entries announce 5 keys, but the download has 6"]);
}

#[tokio::test]
async fn keys_in_another_order() {
    let report = put_aside(Scene::new(), |batch| batch.keys = pick(&batch.keys, &[3, 4, 0, 1, 2]));
    says(
        &report.await,
        &["key 0 of the download belongs to the entry, but its origin is NL", "upload 2, NL: "],
    );
}

#[tokio::test]
async fn a_foreign_signer() {
    for of_the_same_country in [true, false] {
        let scene = Scene::new();
        let other_signer = participant(&scene.pki, "NL");
        let signer = if of_the_same_country { &other_signer.signing } else { &scene.germany.signing };
        let forged = signed_with(&scene.netherlands, signer, &keys("NL", 13..15));
        let thumbprint = signer.certificate.thumbprint();
        let report = put_aside(scene, |batch| batch.entries[1] = forged).await;
        let made_with =
            format!("the batch signature was made with certificate {thumbprint}, but the entry names");
        says(&report, &["upload 2 (2 keys of NL)", &made_with]);
    }
}

#[tokio::test]
async fn a_replaced_certificate() {
    let scene = Scene::new();
    // Another operator vouches for it.
    let other = participant(&Pki::new(KeyKind::Ec256).unwrap(), "NL");
    let forged = entry(&other, &keys("NL", 13..15));
    let report = put_aside(scene, |batch| batch.entries[1] = forged).await;
    says(
        &report,
        &[
            "upload 2 (2 keys of NL): the uploader certificate is not vouched for",
            "the signing certificate is not vouched for: the operator signature does not verify with the trust \
             anchor",
        ],
    );
}

#[tokio::test]
async fn another_trust_anchor() {
    let scene = Scene::new();
    let mut options = scene.options();
    let other = Pki::new(KeyKind::Ec256).unwrap();
    options.auditor.anchor = TrustAnchor::from_pem(other.anchor_pair.certificate.pem()).unwrap();
    let error = Downloader::open(options, scene.target()).unwrap().next().await.unwrap_err();
    says(
        &error.to_string(),
        &["batch 20261122-1", "does not verify with the trust anchor", "was not stored"],
    );
    assert!(scene.files().is_empty());
}

#[tokio::test]
async fn an_audit_without_one_of_the_entries() {
    let report = put_aside(Scene::new(), |batch| drop(batch.entries.remove(0)));
    says(&report.await, &["the audit entries announce 2 keys, but the download has 5"]);
}

#[tokio::test]
async fn an_audit_that_is_none() {
    let scene = Scene::new();
    scene.script.lock().unwrap().audit = Some("[{\"country\":\"DE\"}]".into());
    let error = scene.open().next().await.unwrap_err();
    says(&error.to_string(), &["batch 20261122-1", "the answer to the audit cannot be read: missing field"]);
    assert!(scene.files().is_empty());
}

#[tokio::test]
async fn a_body_that_was_cut() {
    // With a length that hides it.
    let scene = Scene::new();
    let whole = wire::encode(Format::Protobuf, &scene.script.lock().unwrap().batches[1].keys);
    let cut = whole[..whole.len() - 3].to_vec();
    let report = put_aside(scene, |batch| batch.raw = Some(Raw::Body(cut))).await;
    says(&report, &["the keys cannot be read: the body cannot be read"]);
    // Shorter than its length.
    let error = caught(&Scene::new(), |batch| batch.raw = Some(Raw::CutOff)).await;
    assert!(error.is_temporary());
    says(&error.to_string(), &["no answer from the gateway"]);
}

#[tokio::test]
async fn a_body_without_an_end() {
    let error = caught(&Scene::new(), |batch| batch.raw = Some(Raw::Endless)).await;
    says(&error.to_string(), &["the answer has more than 67108864 bytes"]);
}

#[tokio::test]
async fn a_chain_that_leads_elsewhere() {
    for (next, complaint) in [
        ("20261122-2", "the chain is a loop: the gateway names 20261122-2"),
        (
            "20261122-1",
            "the chain goes backwards: the gateway names 20261122-1 as the batch after 20261122-2",
        ),
        ("20261121-7", "the chain goes backwards: the gateway names 20261121-7"),
        (
            "99991231-1",
            "names a batch 99991231-1 of 9999-12-31, but this machine's clock says that it is 2026-11-24",
        ),
        ("20261126-1", "names a batch 20261126-1 of 2026-11-26"),
        ("../../../etc/cron.d/efgs", "names a batch \"../../../etc/cron.d/efgs\", which is not a batch tag"),
        ("a/../../b", "which is not a batch tag"),
        (".hidden", "which is not a batch tag"),
        ("x y", "which is not a batch tag"),
    ] {
        let error = caught(&Scene::new(), |batch| batch.next = Some(next.into())).await;
        says(&error.to_string(), &[complaint, "nothing of this was stored"]);
    }
}

#[tokio::test]
async fn a_link_that_changes_to_an_earlier_batch() {
    let scene = Scene::new();
    assert_eq!(all(&mut scene.open()).await.len(), 3);
    scene.script.lock().unwrap().batches[2].next = Some("20261122-2".into());
    let error = scene.open().next().await.unwrap_err();
    says(&error.to_string(), &["the chain goes backwards"]);
}

#[tokio::test]
async fn another_batch_than_the_one_that_was_asked_for() {
    let scene = Scene::new();
    all(&mut scene.open()).await;
    scene.add("20261124-1", 100);
    scene.script.lock().unwrap().misname = Some(("20261124-1".into(), "20261124-9".into()));
    let error = scene.open().next().await.unwrap_err();
    says(&error.to_string(), &["was asked for batch 20261124-1 and answered with 20261124-9"]);
}

#[tokio::test]
async fn a_batch_that_is_suddenly_unknown() {
    let scene = Scene::new();
    all(&mut scene.open()).await;
    scene.script.lock().unwrap().batches.clear();
    let error = scene.open().next().await.unwrap_err();
    says(&error.to_string(), &["does not know batch 20261123-1", "a different gateway"]);
}

#[tokio::test]
async fn one_batch_can_be_left_out_when_it_is_named() {
    let scene = Scene::new();
    scene.lie(|batch| batch.keys = pick(&batch.keys, &[0]));
    let open = |tag: &str| {
        let options = DownloadOptions { continue_past: Some(tag.into()), ..scene.options() };
        Downloader::open(options, scene.target()).unwrap()
    };
    let mut other = open("20261123-1");
    other.next().await.unwrap();
    assert!(matches!(other.next().await, Err(DownloadError::Quarantined(_))));
    drop(other);
    assert_eq!(all(&mut open("20261122-2")).await, ["20261123-1"]);
    let events = scene.events.lock().unwrap();
    let passed = events.iter().find_map(|event| match event {
        DownloadEvent::Passed(quarantined) => quarantined.folder.clone(),
        _ => None,
    });
    assert!(Path::new(&passed.unwrap()).join("report.txt").exists());
    assert_eq!(Stored::batches(&scene.batches_folder()).unwrap().len(), 2);
}
