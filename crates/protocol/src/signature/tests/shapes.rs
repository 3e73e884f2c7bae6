//! Signatures put together by hand, in shapes that no tool makes on request.

use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::x509::X509;

use super::ber::{INTEGER, OCTET_STRING, OID, SEQUENCE, SET, der};
use super::*;

const SHA1: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
const MD5: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2, 5];
const SHA224: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x04];
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4];
const TIME_STAMP: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 16, 2, 14];

const BYTES: &[u8] = b"signed bytes";

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    der(SEQUENCE, &parts.concat())
}

fn algorithm(oid: &[u8]) -> Vec<u8> {
    sequence(&[&der(OID, oid)])
}

fn attribute(kind: &[u8], value: &[u8]) -> Vec<u8> {
    sequence(&[&der(OID, kind), &der(SET, value)])
}

/// The parts of a SignedData by one EC key, each of which a test may spoil.
struct Parts {
    identity: Identity,
    now: DateTime<Utc>,
    content_type: Vec<u8>,
    content: Vec<u8>,
    certificates: Vec<Vec<u8>>,
    crls: Vec<u8>,
    issuer: Vec<u8>,
    /// Names the signer in the place of issuer and serial number.
    key_identifier: Option<Vec<u8>>,
    digest: Vec<u8>,
    /// In the order in which they are sent; what is signed is their DER form.
    attributes: Option<Vec<Vec<u8>>>,
    algorithm: Vec<u8>,
    unsigned: Vec<u8>,
    signers: usize,
}

impl Parts {
    fn good() -> Self {
        let (identity, now) = identity(&good_request());
        let x509 = X509::from_der(identity.certificate.der()).unwrap();
        Self {
            content_type: DATA.to_vec(),
            content: Vec::new(),
            certificates: vec![identity.certificate.der().to_vec()],
            crls: Vec::new(),
            issuer: x509.issuer_name().to_der().unwrap(),
            key_identifier: None,
            digest: algorithm(SHA256),
            attributes: Some(vec![
                attribute(CONTENT_TYPE, &der(OID, DATA)),
                attribute(MESSAGE_DIGEST, &der(OCTET_STRING, Hash::Sha256.digest(BYTES).as_ref())),
            ]),
            algorithm: algorithm(ECDSA_SHA256),
            unsigned: Vec::new(),
            signers: 1,
            identity,
            now,
        }
    }

    fn message(&self) -> Vec<u8> {
        self.attributes.clone().map_or(BYTES.to_vec(), |mut attributes| {
            attributes.sort();
            der(SET, &attributes.concat())
        })
    }

    fn encode(&self) -> String {
        let key = PKey::private_key_from_pem(self.identity.key_pem.as_bytes()).unwrap();
        let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
        let signature = signer.sign_oneshot_to_vec(&self.message()).unwrap();
        let x509 = X509::from_der(self.identity.certificate.der()).unwrap();
        let serial = x509.serial_number().to_bn().unwrap().to_vec();
        let issuer_and_serial = sequence(&[&self.issuer, &der(INTEGER, &serial)]);
        let signer_info = sequence(&[
            &der(INTEGER, &[1]),
            self.key_identifier.as_ref().unwrap_or(&issuer_and_serial),
            &self.digest,
            &self.attributes.as_ref().map(|a| der(0xa0, &a.concat())).unwrap_or_default(),
            &self.algorithm,
            &der(OCTET_STRING, &signature),
            &self.unsigned,
        ]);
        let signed_data = sequence(&[
            &der(INTEGER, &[1]),
            &der(SET, &self.digest),
            &sequence(&[&der(OID, &self.content_type), &self.content]),
            &der(0xa0, &self.certificates.concat()),
            &self.crls,
            &der(SET, &signer_info.repeat(self.signers)),
        ]);
        let cms = sequence(&[&der(OID, SIGNED_DATA), &der(0xa0, &signed_data)]);
        base64::engine::general_purpose::STANDARD.encode(cms)
    }

    fn verdict(&self) -> Result<(), SignatureError> {
        let signed = verify(&self.encode(), BYTES, self.now, WITH_SHA1)?;
        assert_eq!(signed.certificate.der(), self.identity.certificate.der());
        assert!(!signed.used_sha1);
        Ok(())
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Self), expected: SignatureError) {
        let mut parts = Self::good();
        change(&mut parts);
        assert_eq!(parts.verdict(), Err(expected));
    }

    #[track_caller]
    fn accepted(change: impl FnOnce(&mut Self)) {
        let mut parts = Self::good();
        change(&mut parts);
        assert_eq!(parts.verdict(), Ok(()));
        assert!(openssl_verifies(&parts.encode(), BYTES), "OpenSSL disagrees");
    }
}

#[test]
fn the_parts_fit_together() {
    Parts::accepted(|_| {});
    Parts::accepted(|parts| parts.attributes = None);
}

#[test]
fn what_is_beside_the_signature_is_ignored() {
    let foreign = Parts::good().certificates.remove(0);
    Parts::accepted(|parts| parts.certificates.insert(0, foreign));
    Parts::accepted(|parts| parts.unsigned = der(0xa1, &attribute(TIME_STAMP, &[0x05, 0])));

    // OpenSSL reads everything and stumbles over these; they are none of our business.
    let odd_certificate = sequence(&[&der(INTEGER, &[1])]);
    let attribute_certificate = der(0xa2, &der(INTEGER, &[1]));
    let odd_list = der(0xa1, &sequence(&[]));
    let mut parts = Parts::good();
    parts.certificates.insert(0, odd_certificate);
    parts.certificates.insert(0, attribute_certificate);
    parts.crls = odd_list;
    parts.unsigned = der(0xa1, &der(INTEGER, &[1]));
    assert_eq!(parts.verdict(), Ok(()));
}

#[test]
fn unsigned_attributes_come_last_and_once() {
    let unsigned = der(0xa1, &attribute(TIME_STAMP, &[0x05, 0]));
    for change in [
        (|parts, unsigned| parts.unsigned = unsigned.repeat(2)) as fn(&mut Parts, Vec<u8>),
        |parts, unsigned| parts.digest.extend(unsigned),
    ] {
        let mut parts = Parts::good();
        change(&mut parts, unsigned.clone());
        assert!(matches!(parts.verdict(), Err(SignatureError::NotCms(_))));
    }
}

#[test]
fn a_key_identifier_may_come_in_pieces() {
    let identifier = |parts: &Parts| {
        let x509 = X509::from_der(parts.identity.certificate.der()).unwrap();
        x509.subject_key_id().unwrap().as_slice().to_vec()
    };
    let pieces = |identifier: &[u8]| {
        let (first, second) = identifier.split_at(7);
        [der(OCTET_STRING, first), der(0x24, &der(OCTET_STRING, second))].concat()
    };
    Parts::accepted(|parts| parts.key_identifier = Some(der(0x80, &identifier(parts))));
    Parts::accepted(|parts| parts.key_identifier = Some(der(0xa0, &pieces(&identifier(parts)))));
    Parts::accepted(|parts| {
        let pieces = pieces(&identifier(parts));
        parts.key_identifier = Some([&[0xa0, 0x80], pieces.as_slice(), &[0, 0]].concat());
    });
    let missing = SignatureError::CertificateMissing { present: 1, unreadable: 0 };
    Parts::refused(|parts| parts.key_identifier = Some(der(0x80, &identifier(parts)[1..])), missing);
}

#[test]
fn an_issuer_name_with_other_string_types_is_the_same_name() {
    Parts::accepted(|parts| {
        // UTF8String becomes PrintableString.
        let strings = parts.issuer.iter().filter(|byte| **byte == 0x0c).count();
        assert!(strings > 0);
        parts.issuer.iter_mut().filter(|byte| **byte == 0x0c).for_each(|byte| *byte = 0x13);
    });
    let missing = SignatureError::CertificateMissing { present: 1, unreadable: 0 };
    Parts::refused(|parts| *parts.issuer.last_mut().unwrap() ^= 1, missing);
}

#[test]
fn attributes_are_signed_in_their_der_order_whatever_order_they_are_sent_in() {
    let reversed = |parts: &mut Parts| parts.attributes.as_mut().unwrap().reverse();
    let mut parts = Parts::good();
    reversed(&mut parts);
    assert_eq!(parts.verdict(), Ok(()));

    // Sorted by their bytes: neither by type nor by their own size.
    for size in [1, 40, 126, 127, 128, 300] {
        let value = [der(INTEGER, &[5]), der(OCTET_STRING, &vec![7; size]), der(SEQUENCE, &[])].concat();
        parts.attributes.as_mut().unwrap().insert(1, attribute(TIME_STAMP, &value));
        assert_eq!(parts.verdict(), Ok(()), "{size}");
        reversed(&mut parts);
        assert_eq!(parts.verdict(), Ok(()), "{size}");
    }
}

#[test]
fn content_and_signers() {
    Parts::refused(
        |parts| parts.content = der(0xa0, &der(OCTET_STRING, BYTES)),
        SignatureError::ContentPresent,
    );
    Parts::refused(
        |parts| parts.content = der(0xa0, &der(OCTET_STRING, b"")),
        SignatureError::ContentPresent,
    );
    Parts::refused(|parts| parts.content_type = SIGNED_DATA.to_vec(), SignatureError::ContentTypeNotData);
    Parts::refused(|parts| parts.signers = 0, SignatureError::NoSigner);
    Parts::refused(|parts| parts.signers = 2, SignatureError::SeveralSigners(2));
    let missing = |present, unreadable| SignatureError::CertificateMissing { present, unreadable };
    Parts::refused(|parts| parts.certificates.clear(), missing(0, 0));
    Parts::refused(|parts| parts.certificates = vec![sequence(&[])], missing(1, 1));
}

#[test]
fn attributes_must_say_what_they_have_to() {
    let digest = |parts: &Parts| parts.attributes.as_ref().unwrap()[1].clone();
    let kind = attribute(CONTENT_TYPE, &der(OID, DATA));
    let other_kind = attribute(CONTENT_TYPE, &der(OID, SIGNED_DATA));

    Parts::refused(|parts| parts.attributes = Some(vec![kind.clone()]), SignatureError::MessageDigestMissing);
    Parts::refused(|parts| parts.attributes = Some(vec![]), SignatureError::ContentTypeNotData);
    Parts::refused(|parts| parts.attributes = Some(vec![digest(parts)]), SignatureError::ContentTypeNotData);
    Parts::refused(
        |parts| parts.attributes = Some(vec![other_kind, digest(parts)]),
        SignatureError::ContentTypeNotData,
    );
    let wrong = attribute(MESSAGE_DIGEST, &der(OCTET_STRING, Hash::Sha256.digest(b"other").as_ref()));
    Parts::refused(
        |parts| parts.attributes = Some(vec![kind.clone(), wrong.clone()]),
        SignatureError::MessageDigestMismatch,
    );
    Parts::refused(
        |parts| parts.attributes = Some(vec![kind.clone(), wrong, digest(parts)]),
        SignatureError::NotCms("a signed attribute occurs twice".into()),
    );
}

#[test]
fn algorithms() {
    Parts::refused(|parts| parts.digest = algorithm(MD5), SignatureError::WeakHash("MD5"));
    Parts::refused(
        |parts| parts.digest = algorithm(SHA224),
        SignatureError::AlgorithmUnsupported("digest algorithm 2.16.840.1.101.3.4.2.4".into()),
    );
    // The messageDigest attribute holds SHA-256, whatever the signer says.
    Parts::refused(|parts| parts.digest = algorithm(SHA384), SignatureError::MessageDigestMismatch);
    // Without parameters, RSASSA-PSS means SHA-1; and this is an EC key.
    let mut parts = Parts::good();
    parts.algorithm = algorithm(PSS);
    assert_eq!(verify(&parts.encode(), BYTES, parts.now, STRICT), Err(SignatureError::WeakHash("SHA-1")));
    Parts::refused(
        |parts| parts.algorithm = algorithm(PSS),
        SignatureError::AlgorithmUnsupported("RSASSA-PSS with SHA-1 with a key EC P-256".into()),
    );
    Parts::refused(
        |parts| parts.algorithm = algorithm(SHA256),
        SignatureError::AlgorithmUnsupported("signature algorithm 2.16.840.1.101.3.4.2.1".into()),
    );
}

#[test]
fn sha1_as_the_digest_alone_is_sha1_too() {
    let mut parts = Parts::good();
    parts.digest = algorithm(SHA1);
    let digest = attribute(MESSAGE_DIGEST, &der(OCTET_STRING, Hash::Sha1.digest(BYTES).as_ref()));
    parts.attributes.as_mut().unwrap()[1] = digest;
    let verdict = |policy| verify(&parts.encode(), BYTES, parts.now, policy);
    assert_eq!(verdict(STRICT), Err(SignatureError::WeakHash("SHA-1")));
    assert!(verdict(WITH_SHA1).unwrap().used_sha1);
}

#[test]
fn the_signature_itself_must_verify() {
    let mut parts = Parts::good();
    let (other, _) = identity(&good_request());
    parts.identity.key_pem = other.key_pem;
    assert_eq!(parts.verdict(), Err(SignatureError::Mismatch));
    parts.attributes = None;
    assert_eq!(parts.verdict(), Err(SignatureError::Mismatch));
}

#[test]
fn a_curve_outside_the_contract_is_refused() {
    let key = efgs_test_ca::KeyKind::Secp256k1;
    let (identity, now) = identity(&efgs_test_ca::Request { key, ..good_request() });
    let signature = efgs_test_ca::cms::sign(&identity, BYTES, &Default::default()).unwrap();
    let refused = SignatureError::KeyUnsupported("EC curve 1.3.132.0.10".into());
    assert_eq!(verify(&signature, BYTES, now, STRICT), Err(refused));
}

#[test]
fn every_shape_verifies_with_every_kind_of_key() {
    use efgs_test_ca::KeyKind::{Ec256, Ec384, Ec521, Rsa};
    use efgs_test_ca::cms::{Shape, sign};
    let (other, _) = identity(&good_request());
    for key in [Ec256, Ec384, Ec521, Rsa(2048)] {
        let (identity, now) = identity(&efgs_test_ca::Request { key, ..good_request() });
        for number in 0..16 {
            let others = if number & 8 == 0 { vec![] } else { vec![other.certificate.clone()] };
            let shape = Shape {
                no_attributes: number & 1 != 0,
                key_identifier: number & 2 != 0,
                ber: number & 4 != 0,
                other_certificates: others,
                ..Shape::default()
            };
            let signature = sign(&identity, BYTES, &shape).unwrap();
            let signed = verify(&signature, BYTES, now, STRICT).unwrap_or_else(|e| panic!("{shape:?}: {e}"));
            assert_eq!(signed.certificate.der(), identity.certificate.der());
            assert!(openssl_verifies(&signature, BYTES), "{shape:?}");
            assert!(verify(&signature, b"other bytes", now, STRICT).is_err(), "{shape:?}");

            let attached = sign(&identity, BYTES, &Shape { attached: true, ..shape.clone() }).unwrap();
            assert_eq!(verify(&attached, BYTES, now, STRICT), Err(SignatureError::ContentPresent));
            let bare = sign(&identity, BYTES, &Shape { no_certificate: true, ..shape }).unwrap();
            let error = verify(&bare, BYTES, now, STRICT).unwrap_err();
            assert!(matches!(error, SignatureError::CertificateMissing { .. }), "{error}");
        }
    }
}
