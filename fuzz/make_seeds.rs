//! Writes `fuzz/seeds`: inputs from which fuzzing starts, made from the test vectors and from the shapes of the unit
//! tests. The same on every machine.

use std::{collections::BTreeMap, error::Error, fs, io::Cursor, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use efgs_client::gaen::{self, ExportHeader, Section, SignatureInfo, TemporaryExposureKey};
use efgs_protocol::{
    audit::AuditEntry,
    certificate::Certificate,
    key::{KeyData, ReportType},
};
// What the compiler's instrumentation calls, when this is built together with the targets.
use libfuzzer_sys as _;
use serde_json::{Value, json};

/// Each seed's target and name, and its content.
type Seeds = BTreeMap<(&'static str, String), Vec<u8>>;

fn main() -> Result<(), Box<dyn Error>> {
    let mut seeds = Seeds::new();
    batches(&mut seeds)?;
    certificates(&mut seeds)?;
    exports(&mut seeds)?;
    texts(&mut seeds);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for ((target, name), content) in seeds {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(slug(&name)), content)?;
    }
    Ok(())
}

fn slug(name: &str) -> String {
    let words = name.split(|character: char| !character.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

fn vectors(name: &str) -> Result<Value, Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/protocol/tests/vectors");
    Ok(serde_json::from_slice(&fs::read(folder.join(name))?)?)
}

/// The cases of a file of vectors.
fn cases(name: &str) -> Result<Vec<Value>, Box<dyn Error>> {
    vectors(name)?.as_array().cloned().ok_or_else(|| "the vectors are no list".into())
}

fn text<'a>(case: &'a Value, field: &str) -> Result<&'a str, String> {
    case[field].as_str().ok_or_else(|| format!("the case has no text {field}"))
}

fn base64(case: &Value, field: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    Ok(BASE64_STANDARD.decode(text(case, field)?)?)
}

/// Batches in both formats, right ones and wrong ones.
fn batches(seeds: &mut Seeds) -> Result<(), Box<dyn Error>> {
    const PROTOBUF: [&str; 4] = ["batch_protobuf", "batch_prost", "batch_formats", "key_source"];
    const JSON: [&str; 2] = ["batch_json", "key_source"];
    let mut add = |targets: &[&'static str], name: &str, content: &[u8]| {
        for target in targets {
            seeds.insert((target, name.to_owned()), content.to_vec());
        }
    };

    let cases = cases("canonical.json")?;
    for case in &cases {
        let name = text(case, "name")?;
        add(&PROTOBUF, &format!("protobuf {name}"), &base64(case, "protobuf")?);
        add(&JSON, &format!("json {name}"), case["batch"].to_string().as_bytes());
    }

    // A key's message, and fields behind it that another version or another program may write.
    let one = base64(&cases[0], "protobuf")?;
    let message = &one[2..];
    for (name, more) in [
        ("unknown fields", &b"\x50\x01\x59\0\0\0\0\0\0\0\0\x5a\x02ab\x65\0\0\0\0"[..]),
        ("groups", b"\x53\x50\x01\x5b\x08\x01\x5c\x54"),
        ("numbers longer than needed", b"\x18\x90\x81\x80\x00\xa0\x00\x03"),
        ("numbers of 64 bits", b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ("a number of 65 bits", b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),
        ("key data of 15 bytes", b"\x0a\x0f123456789012345"),
        ("visited country in lower case", b"\x2a\x02de"),
        ("visited country not utf 8", b"\x2a\x02\xff\xff"),
        ("origin given twice", b"\x32\x02ES"),
        ("report type 6", b"\x38\x06"),
    ] {
        let length = u8::try_from(message.len() + more.len())?;
        let body = [&one, &[0x0a, length][..], message, more].concat();
        add(&PROTOBUF, &format!("protobuf {name}"), &body);
    }
    add(
        &PROTOBUF,
        "protobuf batch with unknown fields",
        &[&one[..], b"\x12\x01x\x98\x06\x01", &one].concat(),
    );

    let key = cases[0]["batch"]["keys"][0].clone();
    let changed = |changes: Value| {
        let mut key = key.clone();
        for (name, value) in changes.as_object().into_iter().flatten() {
            key[name] = value.clone();
        }
        json!({ "keys": [key] }).to_string()
    };
    for (name, body) in [
        ("null", changed(json!({ "rollingPeriod": null, "visitedCountries": null, "reportType": null }))),
        ("report type by number", changed(json!({ "reportType": 5, "transmissionRiskLevel": 0x7fff_ffff }))),
        ("unknown fields", changed(json!({ "new": { "deep": [1, null, 1.5e3, "\u{7f}é"] } }))),
        ("origin in lower case", changed(json!({ "origin": "nl" }))),
        ("key data of 15 bytes", changed(json!({ "keyData": "AAAAAAAAAAAAAAAAAAAA" }))),
        ("no keys", r#"{"keys":null,"other":[]}"#.to_owned()),
        (
            "escapes and the other name",
            r#"{"\u006beys":[{"keyData":"\u0041AAAAAAAAAAAAAAAAAAAAA==","origin":"\u004eL","daysSinceOnsetOfSymptoms":-14}]}"#
                .to_owned(),
        ),
        ("pretty", format!("{:#}\n", cases[2]["batch"])),
    ] {
        add(&JSON, &format!("json {name}"), body.as_bytes());
    }
    add(&["key_source"], "json lines", format!("{key}\n\n{key}\r\n").as_bytes());

    let numbers: Vec<u8> = (0..=u8::MAX).collect();
    add(&["canonical"], "eleven keys", &numbers);
    add(&["canonical"], "keys that begin alike", &[&[7, 16][..], &numbers[..21]].concat().repeat(20));
    Ok(())
}

/// Signatures, certificates, bundles and audit entries.
fn certificates(seeds: &mut Seeds) -> Result<(), Box<dyn Error>> {
    let signatures = cases("signatures.json")?;
    for case in &signatures {
        let name = text(case, "name")?;
        seeds.insert(("signature", name.to_owned()), base64(case, "batchSignature")?);
    }
    for name in ["rsa3072 sha256", "P-256 sha256", "P-384 sha256", "RSASSA-PSS", "SHA-1", "RSA 1024"] {
        let case = (signatures.iter())
            .find(|case| text(case, "name").is_ok_and(|found| found.starts_with(name)))
            .ok_or("no such signature")?;
        let certificate = Certificate::from_pem(text(case, "signerCertificate")?)?;
        seeds.insert(("certificate", format!("{name} der")), certificate.der().to_vec());
    }

    let operator = vectors("operator.json")?;
    let anchor = text(&operator, "anchor")?;
    seeds.insert(("certificate", "anchor pem".to_owned()), anchor.as_bytes().to_vec());
    let canonical = cases("canonical.json")?;
    for (number, entry) in operator["entries"].as_array().into_iter().flatten().enumerate() {
        let (pem, signature) = (text(entry, "pem")?, text(entry, "operatorSignature")?);
        let certificate = Certificate::from_pem(pem)?;
        let summary = format!("subject={}\r\n{}", certificate.subject(), pem.replace('\n', "\r\n"));
        seeds.insert(("certificate", format!("pem {number} with a summary")), summary.into_bytes());

        for (name, waived) in [
            ("", ""),
            (" waived", "Waived: key-size, validity\nWaived-By: A. Operator\nWaived-Because: until 2027\n"),
            (" waived by somebody", "Waived-By: A.\rOperator\n"),
        ] {
            let bundle = format!(
                "EFGS-Bundle: 1\nCountry: NL\nType: SIGNING\nThumbprint: {}\n{waived}Operator-Signature: \
                 {signature}\nRegistration-Signature: {signature}\n\n{pem}",
                certificate.thumbprint()
            );
            seeds.insert(("bundle", format!("bundle {number}{name}")), bundle.into_bytes());
        }

        let signed = &signatures[0];
        let signing = Certificate::from_pem(text(signed, "signerCertificate")?)?;
        let batch = (canonical.iter()).find(|case| case["name"] == signed["over"]).ok_or("no such batch")?;
        let entry = |country: &str, amount| -> Result<AuditEntry, Box<dyn Error>> {
            Ok(AuditEntry {
                country: country.parse()?,
                uploaded_time: "2026-11-22T10:15:30.123Z".parse()?,
                uploader_certificate: pem.to_owned(),
                uploader_thumbprint: certificate.thumbprint(),
                uploader_operator_signature: signature.to_owned(),
                signing_certificate: signing.pem().to_owned(),
                uploader_signing_thumbprint: signing.thumbprint(),
                signing_certificate_operator_signature: signature.to_owned(),
                amount,
                batch_signature: text(signed, "batchSignature")?.to_owned(),
            })
        };
        let amount = u32::try_from(batch["batch"]["keys"].as_array().map_or(0, Vec::len))?;
        let mut bytes = serde_json::to_vec(&[entry("NL", amount)?, entry("DE", 7)?])?;
        bytes.push(0);
        bytes.extend(base64(batch, "protobuf")?);
        seeds.insert(("audit", format!("entries {number}")), bytes);
    }
    Ok(())
}

/// Export files of the exposure notification framework: whole archives, and their two parts.
fn exports(seeds: &mut Seeds) -> Result<(), Box<dyn Error>> {
    let key = |byte, section| {
        let key = TemporaryExposureKey {
            key_data: KeyData::new([byte; 16]),
            rolling_start_interval_number: 2_987_136,
            rolling_period: 144,
            transmission_risk_level: Some(3),
            report_type: Some(ReportType::ConfirmedTest),
            days_since_onset_of_symptoms: Some(-2),
        };
        (section, key)
    };
    let header = ExportHeader {
        start_timestamp: Some(1_792_281_600),
        end_timestamp: Some(1_792_285_200),
        region: Some("DE".into()),
        batch_num: Some(1),
        batch_size: Some(1),
        signature_infos: vec![SignatureInfo {
            verification_key_version: Some("v1".into()),
            verification_key_id: Some("262".into()),
            signature_algorithm: Some(gaen::SIGNATURE_ALGORITHM.into()),
        }],
    };
    let keys = [key(1, Section::New), key(2, Section::New), key(3, Section::Revised)];
    for (name, keys) in [("no keys", &keys[..0]), ("three keys", &keys)] {
        let archive =
            gaen::write(Cursor::new(Vec::new()), &header, keys.iter().copied(), &[])?.0.into_inner();
        seeds.insert(("gaen_export", format!("archive {name}")), archive.clone());
        seeds.insert(("key_source", format!("gaen {name}")), archive);
    }

    let key = [&[0x3a, 21, 0x0a, 16][..], &[5; 16], b"\xf8\x01\x07"].concat();
    let revised = [&[0x42, 18, 0x0a, 16][..], &[6; 16]].concat();
    let short = b"\x3a\x03\x0a\x01\x09".to_vec();
    let unknown = b"\xfa\x01\x02\x01\x02\xf8\x01\xff\x01\xfd\x01\x01\x02\x03\x04".to_vec();
    let header = b"\x1a\x02DE\x32\x09\x0a\x03app\x22\x0226".to_vec();
    let signature = b"\x0a\x11\x0a\x07\x22\x03262\x1a\x00\x10\x01\x18\x01\x22\x02\x30\x00";
    let parts = |signatures: &[u8], fields: &[&Vec<u8>]| {
        let message: Vec<u8> = fields.iter().copied().flatten().copied().collect();
        [&[signatures.len() as u8][..], signatures, b"EK Export v1    ", &message].concat()
    };
    for (name, seed) in [
        ("header behind the keys", parts(b"", &[&key, &revised, &header])),
        ("unknown fields", parts(signature, &[&unknown, &header, &key, &key])),
        ("a key that is none", parts(signature, &[&key, &short, &revised])),
    ] {
        seeds.insert(("gaen_export", format!("parts {name}")), seed);
    }
    Ok(())
}

/// Short texts: tags, media types and announcements.
fn texts(seeds: &mut Seeds) {
    for (target, texts) in [
        (
            "batch_tag",
            &["5fbd0f2c0102030405000001", "20261124-3", "20240229-4294967295", "de-upload_2026.11.24~1"][..],
        ),
        (
            "media_type",
            &[
                "application/protobuf; version=1.0",
                "application/json;version=\"1.0.3\" ; charset=utf-8",
                "application/json; version=1.0; q=0.5, application/protobuf; version=1.0; q=1.000",
                "text/html;x=\"a\\\",b\";q=.3,\nApplication/JSON ; Version = 1.0",
                "*/*;q=0.1, application/protobuf; version=2.0",
            ],
        ),
        (
            "announcement",
            &["batchTag=20261124-3&date=2026-11-24", "date=2026-11-24&batchTag=5fbd0f2c0102030405000001"],
        ),
    ] {
        for (number, text) in texts.iter().enumerate() {
            seeds.insert((target, format!("text {number}")), text.as_bytes().to_vec());
        }
    }
}
