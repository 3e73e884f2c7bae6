//! What an auditor is told (spec §5.7).

use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::{DateTime, Days, TimeDelta};
use efgs_gateway::{clock::Clock, server::App};
use efgs_protocol::{audit::verify_batch, signature::SignaturePolicy, wire};

use crate::{
    client::{Client, Request},
    harness::{Case, PKI, Running, country, output_of, tests},
    process::Process,
};

tests![
    the_entries_cut_the_download_exactly_and_own_ones_come_last,
    all_ten_fields_are_there_in_their_form,
    pem_and_operator_signatures_hold_for_openssl,
    revoked_certificates_are_still_audited,
    dates_and_tags_are_checked,
    a_batch_signature_is_told_as_it_was_received,
    an_entry_that_was_withdrawn_leaves_an_audit_that_was_in_memory,
    unread_audits_of_padded_signatures_take_little_memory,
];

/// A batch with uploads of three countries, in turns; its name.
async fn mixed_batch(case: &Case, gateway: &Running) -> String {
    for (i, code) in ["NL", "DE", "IT", "DE", "NL", "NL"].iter().enumerate() {
        gateway.client(code).upload_new(&format!("{i}"), i + 1, case.clock.now()).await;
        case.clock.set(case.clock.now() + TimeDelta::milliseconds(1234));
    }
    gateway.form().await.remove(0)
}

async fn the_entries_cut_the_download_exactly_and_own_ones_come_last(case: &Case) {
    let gateway = case.gateway().await;
    let batch = mixed_batch(case, &gateway).await;
    let expected: [(&str, &[(&str, u32)]); 4] = [
        ("NL", &[("DE", 2), ("IT", 3), ("DE", 4), ("NL", 1), ("NL", 5), ("NL", 6)]),
        ("DE", &[("NL", 1), ("IT", 3), ("NL", 5), ("NL", 6), ("DE", 2), ("DE", 4)]),
        ("IT", &[("NL", 1), ("DE", 2), ("DE", 4), ("NL", 5), ("NL", 6), ("IT", 3)]),
        ("IE", &[("NL", 1), ("DE", 2), ("IT", 3), ("DE", 4), ("NL", 5), ("NL", 6)]),
    ];
    for (code, entries) in expected {
        let auditor = gateway.client(code);
        let told = auditor.audit(case.today(), &batch).await.expect(200).audit();
        let short: Vec<(&str, u32)> =
            told.iter().map(|entry| (entry.country.as_str(), entry.amount)).collect();
        assert_eq!(short, entries, "{code}");
        let downloaded = auditor.download(case.today(), Some(&batch)).await.expect(200).keys();
        let policy = SignaturePolicy { allow_sha1: false };
        let anchor = PKI.anchor.anchor();
        let verdicts =
            verify_batch(&told, &downloaded, batch.parse().ok(), country(code), anchor, policy).unwrap();
        assert_eq!(verdicts.len(), 6);
        for verdict in verdicts {
            assert!(verdict.holds(), "{code}: {verdict:?}");
        }
    }
}

async fn all_ten_fields_are_there_in_their_form(case: &Case) {
    let gateway = case.gateway().await;
    let at: DateTime<chrono::Utc> = case.clock.now() + TimeDelta::microseconds(123_456);
    case.clock.set(at);
    let writer = gateway.client("DE");
    writer.upload_new("a", 7, at).await;
    let batch = gateway.form().await.remove(0);
    for code in ["NL", "DE"] {
        let answer = gateway.client(code).audit(case.today(), &batch).await.expect(200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let entries = answer.json();
        let entry = entries[0].as_object().unwrap();
        let mut names: Vec<&str> = entry.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "amount",
                "batchSignature",
                "country",
                "signingCertificate",
                "signingCertificateOperatorSignature",
                "uploadedTime",
                "uploaderCertificate",
                "uploaderOperatorSignature",
                "uploaderSigningThumbprint",
                "uploaderThumbprint",
            ]
        );
        assert_eq!(entry["amount"], 7);
        assert!(entry.iter().all(|(name, value)| name == "amount" || value.is_string()), "{entry:?}");
        assert_eq!(entry["uploadedTime"], at.format("%Y-%m-%dT%H:%M:%S.123Z").to_string());
        assert_eq!(entry["country"], "DE");
        let thumbprint = entry["uploaderSigningThumbprint"].as_str().unwrap();
        assert_eq!(thumbprint, writer.signing.certificate.thumbprint().to_string());
        assert!(thumbprint.len() == 64 && !thumbprint.contains(char::is_uppercase));
    }
}

async fn pem_and_operator_signatures_hold_for_openssl(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    let batch = gateway.form().await.remove(0);
    let entry = gateway.client("NL").audit(case.today(), &batch).await.expect(200).audit().remove(0);
    let folder = case.folder.path();
    for (pem, signature) in [
        (&entry.uploader_certificate, &entry.uploader_operator_signature),
        (&entry.signing_certificate, &entry.signing_certificate_operator_signature),
    ] {
        std::fs::write(folder.join("certificate.pem"), pem).unwrap();
        let printed = output_of("openssl", &["x509", "-in", "certificate.pem"], folder);
        assert_eq!(String::from_utf8(printed).unwrap(), *pem);
        std::fs::write(folder.join("signature"), BASE64_STANDARD.decode(signature).unwrap()).unwrap();
        let public = output_of("openssl", &["x509", "-in", "trust-anchor.pem", "-noout", "-pubkey"], folder);
        std::fs::write(folder.join("anchor.pub"), public).unwrap();
        let verify = "dgst -sha256 -verify anchor.pub -signature signature certificate.pem";
        output_of("openssl", &verify.split(' ').collect::<Vec<_>>(), folder);
    }
}

async fn revoked_certificates_are_still_audited(case: &Case) {
    let gateway = case.gateway().await;
    let writer = gateway.client("DE");
    let keys = writer.upload_new("a", 2, case.clock.now()).await;
    let batch = gateway.form().await.remove(0);
    let reader = gateway.client("NL");
    let before = reader.audit(case.today(), &batch).await.expect(200);
    for identity in [&crate::harness::participant("DE").authentication, &writer.signing] {
        let thumbprint = identity.certificate.thumbprint();
        let revoked = gateway.app.store.revoke_certificate(thumbprint, case.clock.now()).await.unwrap();
        assert_eq!(revoked, 1);
    }
    gateway.reload().await;
    writer.upload("b", &keys).await.refused(403, "forbidden");
    assert_eq!(reader.audit(case.today(), &batch).await.expect(200).body, before.body);
    assert_eq!(reader.download(case.today(), Some(&batch)).await.expect(200).keys(), keys);
}

async fn dates_and_tags_are_checked(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    let batch = gateway.form().await.remove(0);
    let auditor = gateway.client("NL");
    let (today, day_name) = (case.today(), format!("{}-1", case.today().format("%Y%m%d")));
    // What a download returned can be audited with the same date, by either name.
    for days in [0, 1, 14] {
        for name in [&batch, &day_name] {
            let date = today - Days::new(days);
            assert_eq!(auditor.audit(date, name).await.expect(200).audit().len(), 1);
        }
    }
    auditor.audit(today - Days::new(15), &batch).await.refused(410, "gone");
    auditor.audit(today + Days::new(1), &batch).await.refused(404, "batch-not-found");
    for unknown in ["20201122-1", "null", "0123456789abcdef01234567"] {
        auditor.audit(today, unknown).await.refused(404, "batch-not-found");
    }
    let get = crate::client::Request::get(format!("/diagnosiskeys/audit/download/22.11.2026/{batch}"));
    auditor.send(get).await.refused(400, "invalid-date");
}

async fn a_batch_signature_is_told_as_it_was_received(case: &Case) {
    let gateway = case.gateway().await;
    let writer: Client = gateway.client("DE");
    let keys = crate::client::keys(country("DE"), 2, case.clock.now());
    let request = writer.request("a", &keys);
    let signature = request.headers.iter().find(|(name, _)| name == "batchSignature").unwrap().1.clone();
    // A retry has another signature over the same bytes; the first one counts.
    writer.send(request).await.expect(201);
    writer.upload("a", &keys).await.expect(201);
    let batch = gateway.form().await.remove(0);
    let entries = gateway.client("NL").audit(case.today(), &batch).await.expect(200).audit();
    assert_eq!((entries.len(), &entries[0].batch_signature), (1, &signature));
}

async fn an_entry_that_was_withdrawn_leaves_an_audit_that_was_in_memory(case: &Case) {
    let gateway = case.gateway().await;
    let batch = mixed_batch(case, &gateway).await;
    let auditor = gateway.client("NL");
    let before = auditor.audit(case.today(), &batch).await.expect(200);
    assert_eq!(auditor.audit(case.today(), &batch).await.expect(200).body, before.body);
    let withdraw = Request::new("DELETE", format!("{}/1", wire::UPLOAD_PATH));
    gateway.client("DE").send(withdraw).await.expect(200);
    let after = auditor.audit(case.today(), &batch).await.expect(200);
    assert_eq!((before.header("withdrawnUploads"), after.header("withdrawnUploads")), (Some("0"), Some("1")));
    let mut expected = before.audit();
    expected.remove(0);
    assert_eq!(after.audit(), expected);
}

/// What a country can store: one key in each upload, signatures padded to their limit. Only the uploads' rows matter
/// here, so that they are copies of one.
async fn padded_uploads(case: &Case, amount: usize) {
    let columns = "country, format, format_major, format_minor, amount, payload_bytes, content_hash, \
                   uploader_certificate_id, uploader_thumbprint, signing_certificate_id, signing_thumbprint, \
                   uploaded_at, key_id";
    let signature = "A".repeat(16 << 10);
    let first = case.db.number("SELECT MIN(id) FROM upload").await;
    for chunk in (0..amount).collect::<Vec<_>>().chunks(20) {
        let copies = chunk
            .iter()
            .map(|i| format!("SELECT {columns}, 'copy-{i}', '{signature}' FROM upload WHERE id = {first}"));
        let copies = copies.collect::<Vec<_>>().join(" UNION ALL ");
        let sql = format!("INSERT INTO upload ({columns}, upload_tag, batch_signature) {copies}");
        case.db.execute(&sql).await;
    }
}

async fn unread_audits_of_padded_signatures_take_little_memory(case: &Case) {
    case.prepare().await;
    let process = Process::start(&case.write_config(&case.config_text()));
    let now = Clock::system().now();
    process.client("DE").upload_new("first", 1, now).await;
    padded_uploads(case, 5000).await;
    let app = App::new(case.config(), Clock::system(), None).unwrap();
    app.batching.form_now().await.unwrap();
    app.chain.refresh().await.unwrap();
    let formed = app.chain.newest(30);
    app.store.clone().close().await;
    // 4 MiB of signatures in each.
    assert_eq!(formed.iter().map(|batch| batch.uploads.len()).max(), Some(256));
    let url = format!("{}/{}", wire::AUDIT_PATH, now.date_naive());
    let mut unread = Vec::new();
    for (i, batch) in formed.iter().take(16).enumerate() {
        let mut connection = process.client(["DE", "NL", "IT", "IE"][i % 4]).connect();
        connection.write(&Request::get(format!("{url}/{}", batch.id)).raw()).unwrap();
        unread.push(connection);
    }
    // They are being sent when the first bytes are here.
    let mut kept = Vec::new();
    for mut connection in unread {
        let head = connection.head();
        if head.starts_with("HTTP/1.1 200 ") {
            kept.push(connection);
        } else {
            assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
        }
    }
    let resident = process.resident();
    assert!(kept.len() >= 8, "two of each country, which has a quarter of the memory");
    assert!(resident < 256 << 20, "{} MiB", resident >> 20);
    // Memory comes back when they have gone.
    drop(kept);
    let batch = formed[16].id.to_string();
    let told = process.client("NL").audit(now.date_naive(), &batch).await.expect(200).audit();
    assert_eq!(told.len(), formed[16].uploads.len());
    process.stop().await;
    // They have no keys.
    case.db.execute("DELETE FROM upload WHERE id > (SELECT MIN(upload_id) FROM diagnosis_key)").await;
}
