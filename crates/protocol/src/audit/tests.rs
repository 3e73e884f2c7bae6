#![expect(clippy::unwrap_used, reason = "tests")]

use chrono::{Days, TimeDelta};
use efgs_test_ca::efgs_protocol::{bundle::Bundle, certificate::CertificateType};
use efgs_test_ca::{Authority, KeyKind, Participant, Pki, Request};

use super::*;
use crate::key::{DiagnosisKey, KeyData, ReportType};
use crate::signature::BatchSigner;

const STRICT: SignaturePolicy = SignaturePolicy { allow_sha1: false };
/// When the keys begin: the start of a day.
const BEGIN: u32 = 2_676_960;
/// The batch is formed the day after.
const BATCH: &str = "20201125-1";

/// When the keys are uploaded: ten hours after they began.
fn uploaded() -> DateTime<Utc> {
    at("2020-11-24T10:15:30.123Z")
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn country(code: &str) -> Country {
    code.parse().unwrap()
}

/// Some keys of a country, different for each number.
fn keys(origin: &str, numbers: std::ops::Range<u8>) -> KeyBatch {
    let mut batch = KeyBatch::new();
    for number in numbers {
        let key = DiagnosisKey {
            key_data: KeyData::new([number; 16]),
            rolling_start_interval_number: BEGIN,
            rolling_period: 144,
            transmission_risk_level: 3,
            origin: country(origin),
            report_type: ReportType::ConfirmedTest,
            days_since_onset_of_symptoms: 2,
        };
        batch.push(key, &[country("FR")]);
    }
    batch
}

fn entry(participant: &Participant, keys: &KeyBatch) -> AuditEntry {
    let (authentication, signing) = (&participant.authentication, &participant.signing);
    let signer = BatchSigner::from_pem(signing.certificate.pem(), &signing.key_pem).unwrap();
    AuditEntry {
        country: country(participant.country.as_str()),
        uploaded_time: uploaded(),
        uploader_certificate: authentication.certificate.pem().to_owned(),
        uploader_thumbprint: Thumbprint::of(authentication.certificate.der()),
        uploader_operator_signature: authentication.bundle.operator_signature.clone(),
        signing_certificate: signing.certificate.pem().to_owned(),
        uploader_signing_thumbprint: Thumbprint::of(signing.certificate.der()),
        signing_certificate_operator_signature: signing.bundle.operator_signature.clone(),
        amount: u32::try_from(keys.len()).unwrap(),
        batch_signature: signer.sign(&CanonicalKeys::of(keys).signed_bytes()).unwrap(),
    }
}

/// Valid when the keys are uploaded.
fn valid(request: Request) -> Request {
    Request { not_before: uploaded() - Days::new(20), not_after: uploaded() + Days::new(20), ..request }
}

/// A batch of two uploads by DE and one each by NL and IT, as IT sees it.
struct Scene {
    anchor: TrustAnchor,
    germany: Participant,
    entries: Vec<AuditEntry>,
    download: KeyBatch,
    batch: &'static str,
}

impl Scene {
    fn new() -> Self {
        let pki = Pki::new(KeyKind::Ec256).unwrap();
        let [germany, netherlands, italy] =
            ["DE", "NL", "IT"].map(|code| pki.participant_with(code.parse().unwrap(), valid).unwrap());
        let uploads = [keys("DE", 0..3), keys("NL", 3..8), keys("DE", 8..9)];
        let own = keys("IT", 9..12);
        let entries = vec![
            entry(&germany, &uploads[0]),
            entry(&netherlands, &uploads[1]),
            entry(&germany, &uploads[2]),
            entry(&italy, &own),
        ];
        let download = uploads.iter().flat_map(KeyBatch::iter).collect();
        let anchor = TrustAnchor::from_pem(pki.anchor_pair.certificate.pem()).unwrap();
        Self { anchor, germany, entries, download, batch: BATCH }
    }

    fn verdicts(&self) -> Result<Vec<Verdict>, AuditError> {
        let batch = self.batch.parse().ok();
        verify_batch(&self.entries, &self.download, batch, country("IT"), &self.anchor, STRICT)
    }

    /// The failures of each entry, after a change.
    fn failures(change: impl FnOnce(&mut Self)) -> Vec<Vec<Failure>> {
        let mut scene = Self::new();
        change(&mut scene);
        let verdicts = scene.verdicts().unwrap();
        assert!(
            verdicts.iter().all(|verdict| verdict.holds() == verdict.failures.is_empty()),
            "{verdicts:?}"
        );
        verdicts.into_iter().map(|verdict| verdict.failures).collect()
    }
}

#[test]
fn an_honest_batch_holds() {
    let verdicts = Scene::new().verdicts().unwrap();
    assert!(verdicts.iter().all(Verdict::holds), "{verdicts:?}");
    let keys: Vec<_> = verdicts.iter().map(|verdict| verdict.keys.clone()).collect();
    assert_eq!(keys, [Some(0..3), Some(3..8), Some(8..9), None]);
    assert_eq!(verdicts[1].country, country("NL"));
    assert!(verdicts.iter().all(|verdict| !verdict.used_sha1));
    let nothing = verify_batch(&[], &KeyBatch::new(), None, country("IT"), &Scene::new().anchor, STRICT);
    assert_eq!(nothing, Ok(vec![]));
}

#[test]
fn amounts_must_cut_the_download_exactly() {
    let mut scene = Scene::new();
    scene.entries[0].amount += 1;
    assert_eq!(scene.verdicts(), Err(AuditError::Amounts { announced: 10, downloaded: 9 }));
    scene.entries[0].amount = u32::MAX;
    scene.entries[1].amount = u32::MAX;
    let announced = 2 * u64::from(u32::MAX) + 1;
    assert_eq!(scene.verdicts(), Err(AuditError::Amounts { announced, downloaded: 9 }));

    let mut scene = Scene::new();
    scene.entries.remove(1);
    assert_eq!(scene.verdicts(), Err(AuditError::Amounts { announced: 4, downloaded: 9 }));
    scene.entries.swap(0, 2);
    assert_eq!(scene.verdicts(), Err(AuditError::OwnEntryNotLast { index: 0 }));

    // The caller's own amount says nothing about the download.
    assert!(Scene::failures(|scene| scene.entries[3].amount = 77).concat().is_empty());
}

#[test]
fn a_shifted_border_spoils_both_sides() {
    let failures = Scene::failures(|scene| {
        scene.entries[0].amount -= 1;
        scene.entries[1].amount += 1;
    });
    let mismatch = Failure::Signature(SignatureError::MessageDigestMismatch);
    assert_eq!(failures[0], std::slice::from_ref(&mismatch));
    assert_eq!(failures[1], [Failure::Origin { index: 2, origin: country("DE") }, mismatch]);
    assert!(failures[2..].concat().is_empty());
}

#[test]
fn entries_in_another_order_than_the_keys_do_not_hold() {
    let failures = Scene::failures(|scene| scene.entries.swap(0, 2));
    assert_eq!(failures.iter().map(Vec::is_empty).collect::<Vec<_>>(), [false, false, false, true]);
}

#[test]
fn an_exchanged_key_is_found() {
    let failures = Scene::failures(|scene| {
        let forged = [keys("DE", 0..3), keys("NL", 103..108), keys("DE", 8..9)];
        scene.download = forged.iter().flat_map(KeyBatch::iter).collect();
    });
    assert_eq!(failures[1], [Failure::Signature(SignatureError::MessageDigestMismatch)]);
    assert!(failures[0].is_empty() && failures[2].is_empty());
}

#[test]
fn another_signer_than_the_entry_shows_is_found() {
    let mut thumbprints = None;
    let failures = Scene::failures(|scene| {
        let Participant { authentication, signing, .. } = &scene.germany;
        let entry = &mut scene.entries[2];
        let named = Thumbprint::of(authentication.certificate.der());
        thumbprints = Some((named, Thumbprint::of(signing.certificate.der())));
        entry.signing_certificate = authentication.certificate.pem().to_owned();
        entry.uploader_signing_thumbprint = named;
        entry.signing_certificate_operator_signature = authentication.bundle.operator_signature.clone();
    });
    let (named, actual) = thumbprints.unwrap();
    assert_eq!(failures[2], [Failure::OtherSigner { named, actual }]);
}

#[test]
fn what_a_registered_authority_issued_signs_for_its_own_country_only() {
    let pki = Pki::new(KeyKind::Ec256).unwrap();
    let germany = pki.participant_with("DE".parse().unwrap(), valid).unwrap();
    let authority = Authority::of_country("DE", "national CA", KeyKind::Ec256).unwrap();
    let certificate = authority.certificate();
    let kind = CertificateType::Signing;
    let bundle = Bundle::sign(&pki.anchor, germany.country, kind, certificate.clone(), Vec::new()).unwrap();
    let anchor = TrustAnchor::from_pem(pki.anchor_pair.certificate.pem()).unwrap();
    let upload = keys("DE", 0..3);
    for code in ["DE", "NL"] {
        let issued = authority.issue(&valid(Request::new(kind, code))).unwrap();
        let signer = BatchSigner::from_pem(issued.certificate.pem(), &issued.key_pem).unwrap();
        let shown = AuditEntry {
            signing_certificate: certificate.pem().to_owned(),
            uploader_signing_thumbprint: Thumbprint::of(certificate.der()),
            signing_certificate_operator_signature: bundle.operator_signature.clone(),
            batch_signature: signer.sign(&CanonicalKeys::of(&upload).signed_bytes()).unwrap(),
            ..entry(&germany, &upload)
        };
        let (named, actual) = (shown.uploader_signing_thumbprint, Thumbprint::of(issued.certificate.der()));
        let verdict =
            verify_batch(&[shown], &upload, None, country("IT"), &anchor, STRICT).unwrap().remove(0);
        let expected = if code == "DE" { vec![] } else { vec![Failure::OtherSigner { named, actual }] };
        assert_eq!(verdict.failures, expected, "{code}");
    }
}

#[test]
fn certificates_must_be_vouched_for_and_belong_to_the_entry() {
    let other = Scene::new();
    let foreign = &other.entries[1]; // NL, under another anchor
    let failures = Scene::failures(|scene| {
        scene.entries[3].uploader_certificate.clone_from(&foreign.uploader_certificate);
    });
    let mismatch = AnchorError::Mismatch("operator");
    let [not_vouched_for, thumbprint, nationality] = failures[3].as_slice() else {
        unreachable!("{failures:?}");
    };
    assert_eq!(*not_vouched_for, Failure::NotVouchedFor { role: Role::Uploader, error: mismatch.clone() });
    assert!(matches!(thumbprint, Failure::Thumbprint { role: Role::Uploader, .. }));
    assert_eq!(*nationality, Failure::Country { role: Role::Uploader, country: country("NL") });
    assert_eq!(nationality.to_string(), "the uploader certificate belongs to NL");

    let failures = Scene::failures(|scene| scene.entries[0].signing_certificate = "nothing".into());
    let error = CertificateError::NotPem("no BEGIN CERTIFICATE line");
    assert_eq!(
        failures[0],
        [
            Failure::NotVouchedFor { role: Role::Signing, error: mismatch.clone() },
            Failure::Certificate { role: Role::Signing, error }
        ]
    );
    let failures = Scene::failures(|scene| {
        scene.entries[0].signing_certificate_operator_signature =
            scene.entries[0].uploader_operator_signature.clone();
    });
    assert_eq!(failures[0], [Failure::NotVouchedFor { role: Role::Signing, error: mismatch }]);
    let text = failures[0][0].to_string();
    assert!(text.starts_with("the signing certificate is not vouched for: "), "{text}");
}

#[test]
fn validity_is_judged_at_the_time_of_the_upload() {
    let failures = Scene::failures(|scene| scene.entries[0].uploaded_time += TimeDelta::days(10_000));
    assert!(
        matches!(failures[0].as_slice(), [.., Failure::Signature(SignatureError::Expired { .. })]),
        "{failures:?}"
    );
}

/// The failures of the entry at this position, uploaded at this time into a batch of this name.
fn failures_at(position: usize, time: &str, batch: &'static str) -> Vec<Failure> {
    let mut failures = Scene::failures(|scene| {
        scene.entries[position].uploaded_time = at(time);
        scene.batch = batch;
    });
    let found = failures.remove(position);
    assert!(failures.concat().is_empty(), "{failures:?}");
    found
}

#[test]
fn the_time_is_one_at_which_the_keys_could_be_uploaded() {
    // An interval and an hour before the keys began, and an hour after the fifteenth day.
    let (first, last) = ("2020-11-23T22:50:00Z", "2020-12-10T00:59:59.999Z");
    for time in [first, last] {
        assert_eq!(failures_at(1, time, "20201210-1"), []);
    }
    let failures = failures_at(1, "2020-11-23T22:49:59Z", BATCH);
    let [Failure::KeyTime { index: 3, rolling_start: BEGIN, latest, .. }] = failures[..] else {
        unreachable!("{failures:?}");
    };
    assert_eq!(latest, BEGIN - 1);
    let failures = failures_at(1, "2020-12-10T01:00:00Z", "20201210-1");
    let [Failure::KeyTime { index: 3, earliest, .. }] = failures[..] else { unreachable!("{failures:?}") };
    assert_eq!(earliest, BEGIN + 144);
    let text = failures[0].to_string();
    assert!(text.starts_with("uploadedTime 2020-12-10T01:00:00.000Z cannot be right: key 3"), "{text}");
    // Of the caller's own upload the keys are not there.
    assert_eq!(failures_at(3, "2020-11-20T00:00:00Z", BATCH), []);
}

#[test]
fn the_time_is_not_after_the_batch() {
    let formed_by = at("2020-11-26T00:00:00Z");
    for position in [0, 3] {
        assert_eq!(failures_at(position, "2020-11-26T01:00:00Z", BATCH), []);
        let time = at("2020-11-26T01:00:00.001Z");
        let failures = failures_at(position, "2020-11-26T01:00:00.001Z", BATCH);
        assert_eq!(failures, [Failure::AfterBatch { time, formed_by }]);
        assert_eq!(failures_at(position, "2020-11-26T01:00:00.001Z", "a tag that tells nothing"), []);
    }
    // An ObjectId of 2020-11-24T10:00:00Z.
    assert_eq!(failures_at(1, "2020-11-24T11:00:00Z", "5fbcd9a00102030405000000"), []);
    assert_eq!(failures_at(1, "2020-11-24T11:00:01Z", "5fbcd9a00102030405000000").len(), 1);
    // As far as times go.
    for time in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
        assert!(!Scene::failures(|scene| scene.entries[0].uploaded_time = time)[0].is_empty());
    }
}

#[test]
fn json_has_the_ten_names_that_backends_read() {
    let mut entry = Scene::new().entries.remove(0);
    entry.uploaded_time = "2026-11-22T10:15:30.123987Z".parse().unwrap();
    let json = serde_json::to_value(&entry).unwrap();
    let names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [
        "country",
        "uploadedTime",
        "uploaderCertificate",
        "uploaderThumbprint",
        "uploaderOperatorSignature",
        "signingCertificate",
        "uploaderSigningThumbprint",
        "signingCertificateOperatorSignature",
        "amount",
        "batchSignature",
    ];
    expected.sort_unstable();
    let mut names = names;
    names.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(json["uploadedTime"], "2026-11-22T10:15:30.123Z");
    assert_eq!(json["uploaderThumbprint"], entry.uploader_thumbprint.to_string());
    let back: AuditEntry = serde_json::from_value(json).unwrap();
    entry.uploaded_time = "2026-11-22T10:15:30.123Z".parse().unwrap();
    assert_eq!(back, entry);
    entry.uploaded_time = "2026-11-22T10:15:30Z".parse().unwrap();
    assert_eq!(serde_json::to_value(&entry).unwrap()["uploadedTime"], "2026-11-22T10:15:30.000Z");
}
