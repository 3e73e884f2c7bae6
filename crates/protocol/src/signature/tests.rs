#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod shapes;
mod untrusted;

use chrono::Days;
use efgs_test_ca::Identity;
use efgs_test_ca::efgs_protocol::certificate::CertificateType;
use openssl::cms::{CMSOptions, CmsContentInfo};
use serde::Deserialize;

use super::*;

const STRICT: SignaturePolicy = SignaturePolicy { allow_sha1: false };
const WITH_SHA1: SignaturePolicy = SignaturePolicy { allow_sha1: true };

/// A signature made by an independent implementation, and what must be said about it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vector {
    name: String,
    over: String,
    signer_certificate: String,
    batch_signature: String,
    expect: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Canonical {
    name: String,
    signed_bytes: String,
}

/// The vectors, each with the signed bytes that it is about.
fn vectors() -> Vec<(Vector, Vec<u8>)> {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../../tests/vectors/signatures.json")).unwrap();
    let canonical: Vec<Canonical> =
        serde_json::from_str(include_str!("../../tests/vectors/canonical.json")).unwrap();
    assert_eq!(vectors.len(), 45);
    let with_bytes = |vector: Vector| {
        let over = canonical.iter().find(|case| case.name == vector.over).unwrap();
        (vector, over.signed_bytes.clone().into_bytes())
    };
    vectors.into_iter().map(with_bytes).collect()
}

/// A moment at which the vectors' certificates are valid.
fn vector_time() -> DateTime<Utc> {
    "2027-01-01T00:00:00Z".parse().unwrap()
}

/// A signing certificate of the test CA, and a moment at which it is valid.
fn identity(request: &efgs_test_ca::Request) -> (Identity, DateTime<Utc>) {
    let pki = efgs_test_ca::Pki::new(efgs_test_ca::KeyKind::Ec256).unwrap();
    let kind = CertificateType::Signing;
    let identity = pki.identity("DE".parse().unwrap(), kind, request).unwrap();
    let now = identity.certificate.not_before() + Days::new(1);
    (identity, now)
}

fn good_request() -> efgs_test_ca::Request {
    efgs_test_ca::Request::new(CertificateType::Signing, "DE")
}

#[test]
fn vectors_get_the_verdict_that_they_expect() {
    for (vector, bytes) in vectors() {
        let name = &vector.name;
        match (verify(&vector.batch_signature, &bytes, vector_time(), STRICT), vector.expect.as_str()) {
            (Ok(signed), "valid") => {
                assert_eq!(signed.certificate.pem(), vector.signer_certificate, "{name}");
                assert!(!signed.used_sha1, "{name}");
            }
            (Err(error), expect) if expect != "valid" => {
                assert!(error.to_string().contains(expect), "{name}: {error}");
            }
            (other, expect) => panic!("{name}: expected {expect}, got {other:?}"),
        }
    }
}

#[test]
fn sha1_is_accepted_and_reported_only_where_the_policy_allows_it() {
    let mut accepted = 0;
    for (vector, bytes) in vectors() {
        let name = &vector.name;
        let strict = verify(&vector.batch_signature, &bytes, vector_time(), STRICT);
        let lenient = verify(&vector.batch_signature, &bytes, vector_time(), WITH_SHA1);
        if vector.expect == "SHA-1" {
            assert_eq!(strict, Err(SignatureError::WeakHash("SHA-1")), "{name}");
            let signed = lenient.unwrap();
            assert!(signed.used_sha1, "{name}");
            assert_eq!(signed.certificate.pem(), vector.signer_certificate, "{name}");
            let wrong = verify(&vector.batch_signature, b"other keys", vector_time(), WITH_SHA1);
            assert_eq!(wrong, Err(SignatureError::MessageDigestMismatch), "{name}");
            accepted += 1;
        } else {
            assert_eq!(strict, lenient, "{name}");
        }
    }
    assert_eq!(accepted, 2);
}

#[test]
fn openssl_is_of_the_same_opinion_about_the_mathematics() {
    for (vector, bytes) in vectors() {
        let expected = match vector.expect.as_str() {
            "valid" | "SHA-1" | "key too short" => true,
            "signature does not verify" | "messageDigest does not match" => false,
            // Rules of ours, not of mathematics.
            _ => continue,
        };
        // OpenSSL takes the signature's hash from the digest algorithm and knows no other.
        let expected = expected && !vector.name.starts_with("digest SHA-256, signature sha1");
        assert_eq!(openssl_verifies(&vector.batch_signature, &bytes), expected, "{}", vector.name);
    }
}

fn openssl_verifies(batch_signature: &str, signed_bytes: &[u8]) -> bool {
    let mut cms = CmsContentInfo::from_der(&decode_base64(batch_signature).unwrap()).unwrap();
    let options = CMSOptions::BINARY | CMSOptions::NOVERIFY;
    cms.verify(None, None, Some(signed_bytes), None, options).is_ok()
}

#[test]
fn a_signature_of_our_own_verifies_here_and_with_openssl() {
    use efgs_test_ca::KeyKind::{Ec256, Ec384, Ec521, Rsa};
    for key in [Ec256, Ec384, Ec521, Rsa(2048)] {
        let (identity, now) = identity(&efgs_test_ca::Request { key, ..good_request() });
        let signer = BatchSigner::from_pem(identity.certificate.pem(), &identity.key_pem).unwrap();
        let signature = signer.sign(b"signed bytes").unwrap();
        let signed = verify(&signature, b"signed bytes", now, STRICT).unwrap();
        assert_eq!(&signed.certificate, signer.certificate());
        assert!(openssl_verifies(&signature, b"signed bytes"));
        assert_eq!(
            verify(&signature, b"signed bytes.", now, STRICT),
            Err(SignatureError::MessageDigestMismatch)
        );
    }
}

#[test]
fn a_signer_needs_the_key_of_its_certificate() {
    let (one, _) = identity(&good_request());
    let (other, _) = identity(&good_request());
    let error = BatchSigner::from_pem(one.certificate.pem(), &other.key_pem).err().unwrap();
    assert!(matches!(error, SignError::KeyOfAnotherCertificate(_)), "{error}");
    let error = BatchSigner::from_pem(one.certificate.pem(), "no key").err().unwrap();
    assert_eq!(error, SignError::Key);
}

#[test]
fn the_signer_must_be_valid_now() {
    let (identity, now) = identity(&good_request());
    let signature = identity.signer().unwrap().sign(b"bytes").unwrap();
    let (not_before, not_after) = (identity.certificate.not_before(), identity.certificate.not_after());
    let second = chrono::TimeDelta::seconds(1);
    for good in [not_before, now, not_after] {
        verify(&signature, b"bytes", good, STRICT).unwrap();
    }
    let early = verify(&signature, b"bytes", not_before - second, STRICT);
    assert_eq!(early, Err(SignatureError::NotYetValid { not_before }));
    let late = verify(&signature, b"bytes", not_after + second, STRICT);
    assert_eq!(late, Err(SignatureError::Expired { not_after }));
}

#[test]
fn base64_may_be_folded_and_lack_its_padding() {
    let (vector, bytes) = vectors().swap_remove(0);
    let folded = vector.batch_signature.as_bytes().chunks(60).map(|line| str::from_utf8(line).unwrap());
    let folded: Vec<_> = folded.collect();
    for text in [
        folded.join(" "),
        folded.join("\t"),
        folded.join("\r\n "),
        vector.batch_signature.trim_end_matches('=').to_owned(),
    ] {
        verify(&text, &bytes, vector_time(), STRICT).unwrap();
    }
    for text in ["*", "AAAA=AAA", &vector.batch_signature.replace('/', "_")] {
        assert_eq!(verify(text, &bytes, vector_time(), STRICT), Err(SignatureError::NotBase64), "{text}");
    }
    assert!(matches!(verify("", &bytes, vector_time(), STRICT), Err(SignatureError::NotCms(_))));
}
