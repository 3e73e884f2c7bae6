#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{process::Command, sync::LazyLock};

use CertificateType::{Authentication, Signing};
use base64::{Engine, engine::general_purpose::STANDARD};
use efgs_kit::config::{Encryption, EncryptionKey};
use efgs_protocol::key::{DiagnosisKey, InvalidReason, KeyData, ReportType};
use efgs_test_ca::{
    Identity, Request,
    cms::{self, Shape},
};

use super::*;
use crate::{
    StoredCertificate,
    testing::{authority, bundle, country, good, identity, now, registered, registry, row},
};

const STRICT: SignaturePolicy = SignaturePolicy { allow_sha1: false };
const WITH_SHA1: SignaturePolicy = SignaturePolicy { allow_sha1: true };

static CALLER: LazyLock<Identity> = LazyLock::new(|| good("DE", Authentication));
static SIGNER: LazyLock<Identity> = LazyLock::new(|| good("DE", Signing));

/// Row 11 lets the caller in, row 12 the signer.
fn rows() -> Vec<StoredCertificate> {
    vec![row(11, &CALLER.bundle), row(12, &SIGNER.bundle)]
}

/// With key 4 to encrypt, or none.
fn keyring(keys: usize) -> Keyring {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, STANDARD.encode([7; 32])).unwrap();
    Keyring::load(&Encryption { keys: vec![EncryptionKey { id: 4, file }; keys] }).unwrap()
}

fn key(number: u8) -> DiagnosisKey {
    DiagnosisKey {
        key_data: KeyData::new([number; 16]),
        rolling_start_interval_number: (now().timestamp() / 600) as u32 - 144,
        rolling_period: 144,
        transmission_risk_level: 3,
        origin: country("DE"),
        report_type: ReportType::ConfirmedTest,
        days_since_onset_of_symptoms: 2,
    }
}

fn batch(keys: impl IntoIterator<Item = DiagnosisKey>) -> KeyBatch {
    let mut batch = KeyBatch::new();
    keys.into_iter().for_each(|key| batch.push(key, &[country("FR"), country("NL")]));
    batch
}

fn numbered(numbers: impl IntoIterator<Item = u8>) -> KeyBatch {
    batch(numbers.into_iter().map(key))
}

fn upload(keys: KeyBatch, batch_signature: String) -> SignedUpload {
    SignedUpload {
        uploader: Uploader {
            country: country("DE"),
            certificate_id: 11,
            thumbprint: CALLER.certificate.thumbprint(),
        },
        tag: "tag".parse().unwrap(),
        media: MediaType::from_content_type("application/json; version=1.0").unwrap(),
        batch_signature,
        keys,
        at: now(),
        keep_encoding: false,
    }
}

fn signed_bytes(keys: &KeyBatch) -> Vec<u8> {
    CanonicalKeys::of(keys).signed_bytes()
}

fn sign(signer: &Identity, keys: &KeyBatch) -> String {
    signer.signer().unwrap().sign(&signed_bytes(keys)).unwrap()
}

fn signed_by(signer: &Identity, keys: KeyBatch) -> SignedUpload {
    upload(keys.clone(), sign(signer, &keys))
}

fn verify(upload: SignedUpload) -> Result<VerifiedUpload, VerifyError> {
    upload.verify(&registry(&rows()), STRICT, &keyring(1))
}

#[test]
fn an_upload_that_passes_says_what_was_verified() {
    let keys = numbered(1..=5);
    let signed = signed_by(&SIGNER, keys.clone());
    let verified = verify(signed_by(&SIGNER, keys.clone())).unwrap();
    assert_eq!(verified.country(), country("DE"));
    assert_eq!(verified.tag().as_str(), "tag");
    assert_eq!(verified.media(), signed.media);
    assert_eq!(verified.format_name(), "json");
    assert_eq!((verified.uploader_certificate_id(), verified.signing_certificate_id()), (11, 12));
    assert_eq!(verified.uploader_thumbprint(), CALLER.certificate.thumbprint());
    assert_eq!(verified.signing_thumbprint(), SIGNER.certificate.thumbprint());
    assert_eq!(verified.uploaded_at(), now());
    let signature = verified.batch_signature().len() as u64;
    let bytes = verified.payload_bytes() + 5 * 200 + signature + 1024;
    assert_eq!(verified.usage(), Usage { keys: 5, bytes });
    assert_eq!(verified.key_id(), 4);
    assert_eq!(verified.content_hash().as_slice(), Sha256::digest(signed_bytes(&keys)).as_slice());
    assert!(verified.repeats().is_empty());
    let lengths: usize = verified.keys().iter().map(|key| key.payload.len()).sum();
    assert_eq!(verified.payload_bytes(), lengths as u64);

    let text = sign(&SIGNER, &keys);
    assert_eq!(verify(upload(keys.clone(), text.clone())).unwrap().batch_signature(), text);
    let protobuf = SignedUpload {
        media: MediaType::from_content_type("application/protobuf; version=1.0").unwrap(),
        ..upload(keys, text)
    };
    assert_eq!(verify(protobuf).unwrap().format_name(), "protobuf");

    let renewed = verified.signed_under(9);
    assert_eq!((renewed.uploader_certificate_id(), renewed.signing_certificate_id()), (11, 9));
    assert_eq!(renewed.signing_thumbprint(), SIGNER.certificate.thumbprint());
}

#[test]
fn every_key_is_sealed_with_its_own_hash_in_the_order_of_the_request() {
    let mut revoked = key(3);
    revoked.report_type = ReportType::Revoked;
    let keys = batch([key(1), key(2), revoked, key(4), key(5), key(6)]);
    let hashes = CanonicalKeys::of(&keys).payload_hashes();
    let keyring = keyring(1);
    let verified = signed_by(&SIGNER, keys.clone()).verify(&registry(&rows()), STRICT, &keyring).unwrap();
    let positions: Vec<_> = verified.keys().iter().map(|key| key.position).collect();
    assert_eq!(positions, [0, 1, 2, 3, 4, 5]);
    for sealed in verified.keys() {
        let position = sealed.position as usize;
        assert_eq!(sealed.payload_hash, hashes[position]);
        let day = u32::from(sealed.rolling_day);
        assert_eq!(day, keys.get(position).rolling_start_interval_number / 144);
        assert_eq!(sealed.report_type, if position == 2 { 5 } else { 1 });
        let mut plain = Vec::new();
        wire::encode_key(Format::Protobuf, keys.get(position), &mut plain);
        let mut payload = sealed.payload.clone();
        assert_eq!(keyring.open(&sealed.payload_hash, &mut payload), Ok(plain.as_slice()));
        let moved = keyring.open(&hashes[(position + 1) % 6], &mut sealed.payload.clone()).is_err();
        assert!(moved, "a payload opens in another row");
    }
    let nonces: HashSet<_> = verified.keys().iter().map(|key| &key.payload[4..16]).collect();
    assert_eq!(nonces.len(), 6);
}

#[test]
fn the_encoding_is_kept_on_request_in_the_order_of_the_upload() {
    let keys = numbered([3, 1, 2]);
    assert_eq!(verify(signed_by(&SIGNER, keys.clone())).unwrap().take_encoding(), None);
    let upload = SignedUpload { keep_encoding: true, ..signed_by(&SIGNER, keys.clone()) };
    let mut verified = verify(upload).unwrap();
    assert_eq!(verified.take_encoding(), Some(wire::encode(Format::Protobuf, &keys)));
    assert_eq!(verified.take_encoding(), None);
}

#[test]
fn the_content_is_the_same_in_any_order_and_format() {
    let hash = |numbers: &[u8], media: &str| {
        let upload = SignedUpload {
            media: MediaType::from_content_type(media).unwrap(),
            ..signed_by(&SIGNER, numbered(numbers.iter().copied()))
        };
        *verify(upload).unwrap().content_hash()
    };
    let json = hash(&[1, 2, 3], "application/json; version=1.0");
    assert_eq!(hash(&[3, 1, 2], "application/json; version=1.0"), json);
    assert_eq!(hash(&[2, 3, 1], "application/protobuf; version=1.0"), json);
    assert_ne!(hash(&[1, 2], "application/json; version=1.0"), json);
    assert_ne!(hash(&[1, 2, 3, 3], "application/json; version=1.0"), json);
}

#[test]
fn a_signature_holds_whatever_the_order_of_the_keys() {
    let signature = sign(&SIGNER, &numbered([1, 2, 3]));
    verify(upload(numbered([3, 1, 2]), signature)).unwrap();
}

#[test]
fn a_key_that_repeats_is_a_conflict_of_the_later_one() {
    assert_eq!(repeats(&[[1; 32], [2; 32], [1; 32], [1; 32]]), [2, 3]);
    assert!(repeats(&[[1; 32], [2; 32]]).is_empty());
    // The same key data alone is no repeat.
    let mut other = key(1);
    other.rolling_period = 1;
    let verified = verify(signed_by(&SIGNER, batch([key(1), key(2), key(1), other]))).unwrap();
    assert_eq!(verified.repeats(), [2]);
    assert_eq!((verified.keys().len(), verified.usage().keys), (4, 4));
}

#[test]
fn a_key_out_of_range_is_refused_before_the_signature_is_read() {
    let mut bad = key(2);
    bad.rolling_period = 145;
    let error = verify(upload(batch([key(1), bad]), "?".into())).unwrap_err();
    let VerifyError::Key(InvalidKey { index: 1, reason: InvalidReason::RollingPeriod { found: 145 } }) =
        error
    else {
        panic!("{error:?}")
    };
}

#[test]
fn a_signature_that_does_not_verify_is_refused() {
    let keys = numbered([1, 2]);
    let verify = |text: String| verify(upload(keys.clone(), text)).unwrap_err();
    for (text, expected) in [
        ("?".to_owned(), SignatureError::NotBase64),
        (sign(&SIGNER, &numbered([1])), SignatureError::MessageDigestMismatch),
        (sign(&SIGNER, &numbered([1, 2, 2])), SignatureError::MessageDigestMismatch),
    ] {
        let VerifyError::Signature(error) = verify(text) else { panic!("{expected}") };
        assert_eq!(error, expected);
    }
    let shape = Shape { no_attributes: true, ..Shape::default() };
    let mut altered = STANDARD.decode(cms::sign(&SIGNER, &signed_bytes(&keys), &shape).unwrap()).unwrap();
    *altered.last_mut().unwrap() ^= 1;
    let error = verify(STANDARD.encode(altered));
    assert!(matches!(error, VerifyError::Signature(SignatureError::Mismatch)), "{error:?}");
}

#[test]
fn a_signer_must_be_registered_active_and_of_the_callers_country() {
    let keys = numbered([1]);
    let verify = |signer: &Identity, rows: &[StoredCertificate]| {
        signed_by(signer, keys.clone()).verify(&registry(rows), STRICT, &keyring(1))
    };
    let inactive = |signer: &Identity, rows: &[StoredCertificate]| match verify(signer, rows) {
        Err(VerifyError::SignerInactive { thumbprint, reason }) => {
            assert_eq!(thumbprint, signer.certificate.thumbprint());
            reason
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(inactive(&good("DE", Signing), &rows()), Inactive::Unknown);
    // What is registered for calls does not sign.
    assert_eq!(inactive(&CALLER, &rows()), Inactive::Unknown);
    let mut revoked = rows();
    revoked[1].revoked_at = Some(now());
    assert_eq!(inactive(&SIGNER, &revoked), Inactive::Revoked);
    let mut tampered = rows();
    tampered[1].registration_signature = tampered[0].registration_signature.clone();
    assert_eq!(inactive(&SIGNER, &tampered), Inactive::Unknown);

    let none = registered("DE", Signing, &Request { countries: vec![], ..Request::new(Signing, "DE") });
    let error = verify(&none, &rows()).unwrap_err();
    assert!(matches!(error, VerifyError::SignerCountry(CertificateError::NoCountry { .. })), "{error:?}");

    let foreign = good("NL", Signing);
    let error = verify(&foreign, &[rows(), vec![row(3, &foreign.bundle)]].concat()).unwrap_err();
    let VerifyError::SignerNotCaller { signer, caller } = error else { panic!("{error:?}") };
    assert_eq!((signer, caller), (country("NL"), country("DE")));
}

#[test]
fn a_signer_whose_authority_is_registered_signs_under_the_authoritys_row() {
    let ca = authority("DE");
    let leaf = identity("DE", Signing, ca.issue(&Request::new(Signing, "DE")).unwrap());
    let upload = || signed_by(&leaf, numbered([1]));
    let calls = [rows(), vec![row(5, &bundle("DE", Authentication, ca.certificate()))]].concat();
    let error = upload().verify(&registry(&calls), STRICT, &keyring(1)).unwrap_err();
    assert!(matches!(error, VerifyError::SignerInactive { reason: Inactive::Unknown, .. }), "{error:?}");
    let signs = [rows(), vec![row(5, &bundle("DE", Signing, ca.certificate()))]].concat();
    let verified = upload().verify(&registry(&signs), STRICT, &keyring(1)).unwrap();
    assert_eq!(verified.signing_certificate_id(), 5);
    assert_eq!(verified.signing_thumbprint(), leaf.certificate.thumbprint());
}

#[test]
fn a_key_of_another_country_is_refused_after_the_signer() {
    let mut foreign = key(2);
    foreign.origin = country("NL");
    let keys = batch([key(1), foreign, key(3)]);
    let error = verify(signed_by(&SIGNER, keys.clone())).unwrap_err();
    let VerifyError::ForeignOrigin { index: 1, origin, caller } = error else { panic!("{error:?}") };
    assert_eq!((origin, caller), (country("NL"), country("DE")));
    let error = verify(signed_by(&good("DE", Signing), keys)).unwrap_err();
    assert!(matches!(error, VerifyError::SignerInactive { .. }), "{error:?}");
}

#[test]
fn without_a_key_to_encrypt_with_nothing_is_accepted() {
    let upload = signed_by(&SIGNER, numbered([1]));
    let error = upload.verify(&registry(&rows()), STRICT, &keyring(0)).unwrap_err();
    assert!(matches!(error, VerifyError::Encryption(EncryptionError::UnknownKey(0))), "{error:?}");
}

#[test]
fn sha1_needs_the_policy_and_changes_nothing_else() {
    let keys = numbered([1, 2]);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("signed-bytes"), signed_bytes(&keys)).unwrap();
    std::fs::write(file("signer.pem"), format!("{}{}", SIGNER.certificate.pem(), SIGNER.key_pem)).unwrap();
    let arguments = "cms -sign -binary -md sha1 -signer signer.pem -in signed-bytes -outform DER";
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(&folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let verify = |policy, rows: &[StoredCertificate], keyring: &Keyring| {
        upload(keys.clone(), STANDARD.encode(&output.stdout)).verify(&registry(rows), policy, keyring)
    };
    let error = verify(STRICT, &rows(), &keyring(1)).unwrap_err();
    assert!(matches!(error, VerifyError::Signature(SignatureError::WeakHash("SHA-1"))), "{error:?}");
    let verified = verify(WITH_SHA1, &rows(), &keyring(1)).unwrap();
    assert_eq!(verified.content_hash().as_slice(), Sha256::digest(signed_bytes(&keys)).as_slice());
    let error = verify(WITH_SHA1, &rows()[..1], &keyring(1)).unwrap_err();
    assert!(matches!(error, VerifyError::SignerInactive { .. }), "{error:?}");
}
