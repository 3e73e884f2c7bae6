#![expect(clippy::unwrap_used, reason = "tests")]

use efgs_test_ca::{Authority, KeyKind, KeyPair, Request};
use openssl::hash::MessageDigest;
use openssl::sign::Verifier;
use openssl::symm::Cipher;
use openssl::x509::X509;
use serde::Deserialize;

use super::*;

const TEXT: &str = "-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n";

fn pair(key: KeyKind) -> KeyPair {
    efgs_test_ca::Pki::new(key).unwrap().anchor_pair
}

fn anchor_key(pair: &KeyPair) -> AnchorKey {
    AnchorKey::from_pem(pair.certificate.pem(), &pair.key_pem, None).unwrap()
}

#[derive(Deserialize)]
struct Vectors {
    anchor: String,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    pem: String,
    operator_signature: String,
}

#[test]
fn operator_signatures_of_another_implementation_verify() {
    let vectors: Vectors = serde_json::from_str(include_str!("../../tests/vectors/operator.json")).unwrap();
    let anchor = TrustAnchor::from_pem(&vectors.anchor).unwrap();
    assert_eq!(anchor.certificate().pem(), vectors.anchor);
    assert_eq!(vectors.entries.len(), 2);
    for Entry { pem, operator_signature } in &vectors.entries {
        assert_eq!(Certificate::from_pem(pem).unwrap().pem(), pem);
        anchor.verify_operator_signature(pem, operator_signature).unwrap();
        let mismatch = Err(AnchorError::Mismatch("operator"));
        assert_eq!(
            anchor.verify_operator_signature(&pem.replace('\n', "\r\n"), operator_signature),
            mismatch
        );
        assert_eq!(anchor.verify_operator_signature(pem.trim_end(), operator_signature), mismatch);
        let not_base64 = Err(AnchorError::NotBase64("operator"));
        assert_eq!(anchor.verify_operator_signature(pem, "?"), not_base64);
        assert_eq!(anchor.verify_operator_signature(pem, ""), mismatch);
    }
}

#[test]
fn what_an_anchor_signs_verifies_here_and_with_openssl() {
    for key in [KeyKind::Rsa(2048), KeyKind::Ec256, KeyKind::Ec384, KeyKind::Ec521] {
        let pair = pair(key);
        let key = anchor_key(&pair);
        let signature = key.sign_operator(TEXT).unwrap();
        key.anchor().verify_operator_signature(TEXT, &signature).unwrap();

        let public = X509::from_pem(pair.certificate.pem().as_bytes()).unwrap().public_key().unwrap();
        let mut verifier = Verifier::new(MessageDigest::sha256(), &public).unwrap();
        assert!(verifier.verify_oneshot(&decode_base64(&signature).unwrap(), TEXT.as_bytes()).unwrap());

        let other = TrustAnchor::from_pem(self::pair(KeyKind::Ec256).certificate.pem()).unwrap();
        assert_eq!(other.verify_operator_signature(TEXT, &signature), Err(AnchorError::Mismatch("operator")));
    }
}

#[test]
fn a_registration_holds_for_its_country_type_and_certificate_only() {
    let key = anchor_key(&pair(KeyKind::Ec256));
    let [de, nl] = ["DE", "NL"].map(|country| country.parse::<Country>().unwrap());
    let [one, two] = [[1; 32], [2; 32]].map(Thumbprint::from_bytes);
    use CertificateType::{Authentication, Signing};
    assert_eq!(
        registration_text(de, Authentication, one),
        format!("efgs-registration-v1\nDE\nAUTHENTICATION\n{}\n", "01".repeat(32))
    );
    let signature = key.sign_registration(de, Signing, one).unwrap();
    let verify =
        |country, kind, thumbprint| key.anchor().verify_registration(country, kind, thumbprint, &signature);
    assert_eq!(verify(de, Signing, one), Ok(()));
    for (country, kind, thumbprint) in [(nl, Signing, one), (de, Authentication, one), (de, Signing, two)] {
        assert_eq!(verify(country, kind, thumbprint), Err(AnchorError::Mismatch("registration")));
    }
    // One kind of signature is never the other.
    assert!(key.anchor().verify_operator_signature(TEXT, &signature).is_err());
}

#[test]
fn the_private_key_may_be_encrypted() {
    let pair = pair(KeyKind::Ec256);
    let key = PKey::private_key_from_pem(pair.key_pem.as_bytes()).unwrap();
    let encrypted = key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), b"geheim").unwrap();
    let open = |passphrase| AnchorKey::from_pem(pair.certificate.pem(), &encrypted, passphrase);
    assert!(open(Some("geheim")).is_ok());
    assert_eq!(open(Some("Geheim")).err(), Some(AnchorError::Key(SignError::Key)));
    assert_eq!(open(None).err(), Some(AnchorError::Key(SignError::Key)));
}

#[test]
fn unsuitable_anchors_are_refused() {
    let one = pair(KeyKind::Ec256);
    let two = pair(KeyKind::Ec256);
    let error = AnchorKey::from_pem(one.certificate.pem(), &two.key_pem, None).err().unwrap();
    assert!(matches!(error, AnchorError::Key(SignError::KeyOfAnotherCertificate(_))), "{error}");

    let error = |pem: &str| TrustAnchor::from_pem(pem).unwrap_err().to_string();
    for (key, reason) in
        [(KeyKind::Rsa(1024), "its key is RSA 1024"), (KeyKind::Secp256k1, "its key is EC curve")]
    {
        let authority = Authority::new("weak", key).unwrap();
        assert!(error(authority.certificate().pem()).contains(reason));
    }
    let kind = efgs_test_ca::efgs_protocol::certificate::CertificateType::Signing;
    let sha1 = Request { sha1: true, ..Request::new(kind, "EU") }.self_signed().unwrap();
    assert!(error(sha1.certificate.pem()).contains("signed with SHA-1"));
    assert!(error("nothing").contains("no PEM certificate"));
}
