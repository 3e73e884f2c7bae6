#![expect(clippy::unwrap_used, reason = "tests")]

use chrono::{Days, TimeDelta};
use efgs_test_ca::efgs_protocol::certificate::CertificateType as TestType;
use efgs_test_ca::{KeyKind, KeyPair, Request};
use openssl::asn1::Asn1Time;
use openssl::ec::{Asn1Flag, EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::PKey;
use openssl::rsa::{Padding, Rsa};
use openssl::sign::{RsaPssSaltlen, Signer};
use openssl::x509::extension::{BasicConstraints, KeyUsage};
use openssl::x509::{X509, X509Name};
use proptest::prelude::*;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use super::*;
use crate::signature::ber;

fn request(kind: TestType) -> Request {
    Request::new(kind, "DE")
}

fn signing() -> KeyPair {
    request(TestType::Signing).self_signed().unwrap()
}

/// The certificate as this build of the crate sees it.
fn read(pair: &KeyPair) -> Certificate {
    Certificate::from_der(pair.certificate.der()).unwrap()
}

#[test]
fn pem_is_to_the_byte_what_openssl_prints() {
    let kinds = [KeyKind::Ec256, KeyKind::Ec521, KeyKind::Rsa(2048), KeyKind::Rsa(2304)];
    for key in kinds {
        let pair = Request { key, ..request(TestType::Callback) }.self_signed().unwrap();
        let certificate = read(&pair);
        let openssl = X509::from_der(certificate.der()).unwrap();
        assert_eq!(certificate.pem().as_bytes(), openssl.to_pem().unwrap());
        assert_eq!(certificate.thumbprint().as_bytes(), &*openssl.digest(MessageDigest::sha256()).unwrap());
        assert_eq!(Certificate::from_pem(certificate.pem()).unwrap(), certificate);
    }
}

proptest! {
    #[test]
    fn pem_lines_hold_64_columns_and_lead_back(der in proptest::collection::vec(any::<u8>(), 1..300)) {
        let pem = pem_text(&der);
        let lines: Vec<_> = pem.strip_suffix('\n').unwrap().split('\n').collect();
        let (last, full) = lines[1..lines.len() - 1].split_last().unwrap();
        prop_assert!(full.iter().all(|line| line.len() == 64));
        prop_assert!((1..=64).contains(&last.len()));
        prop_assert_eq!(file::pem_to_der(pem.as_bytes()).unwrap(), der);
    }

    #[test]
    fn arbitrary_bytes_are_no_certificate(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Certificate::from_der(&bytes).is_err());
        prop_assert!(Certificate::from_file_contents(&bytes, Some("password")).is_err());
    }

    #[test]
    fn a_changed_certificate_is_read_or_refused_without_panic(at in any::<prop::sample::Index>(), byte: u8) {
        let mut der = include_bytes_of_a_certificate();
        let at = at.index(der.len());
        der[at] = byte;
        if let Ok(certificate) = Certificate::from_der(&der) {
            let _ = certificate.check(None, CertificateType::Signing, certificate.not_before());
        }
    }

    #[test]
    fn thumbprints_survive_their_text(bytes: [u8; 32]) {
        let thumbprint = Thumbprint::from_bytes(bytes);
        let text = thumbprint.to_string();
        prop_assert_eq!(text.len(), 64);
        prop_assert_eq!(text.parse::<Thumbprint>().unwrap(), thumbprint);
        prop_assert_eq!(text.to_uppercase().parse::<Thumbprint>().unwrap(), thumbprint);
        let json = serde_json::to_string(&thumbprint).unwrap();
        prop_assert_eq!(json, format!("\"{text}\""));
    }
}

fn include_bytes_of_a_certificate() -> Vec<u8> {
    static DER: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    DER.get_or_init(|| signing().certificate.der().to_vec()).clone()
}

#[test]
fn thumbprints_keep_leading_zeros_and_refuse_everything_else() {
    let zeros = format!("00{}", "ab".repeat(31));
    assert_eq!(zeros.parse::<Thumbprint>().unwrap().to_string(), zeros);
    for text in [
        "",
        "ab",
        &"a".repeat(63),
        &"a".repeat(65),
        &"g".repeat(64),
        &"é".repeat(32),
        &format!("{} ", "a".repeat(63)),
    ] {
        assert!(text.parse::<Thumbprint>().is_err(), "{text}");
    }
}

#[test]
fn a_pem_text_holds_exactly_one_certificate() {
    let (one, two) = (read(&signing()), read(&signing()));
    let pem = one.pem();
    for text in [
        pem.replace('\n', "\r\n"),
        format!("subject=CN = x\n\n{pem}\n\n"),
        pem.trim_end().to_owned(),
        pem.replace('=', ""),
    ] {
        assert_eq!(Certificate::from_pem(&text).unwrap(), one);
    }
    let refused = |text: String| Certificate::from_pem(text).unwrap_err();
    assert_eq!(refused(format!("{pem}{}", two.pem())), CertificateError::SeveralCertificates(2));
    assert_eq!(refused(format!("{pem}rest")), CertificateError::TrailingData(4));
    assert_eq!(refused(String::new()), CertificateError::NotPem("no BEGIN CERTIFICATE line"));
    assert_eq!(refused(pem[..200].to_owned()), CertificateError::NotPem("no END CERTIFICATE line"));
    assert_eq!(refused(pem.replacen('M', "*", 1)), CertificateError::NotPem("its base64 is damaged"));
    let trailing = pem_text(&[one.der(), &[5, 0]].concat());
    assert_eq!(refused(trailing), CertificateError::TrailingData(2));
}

#[test]
fn a_file_is_recognised_by_its_content() {
    let pair = signing();
    let certificate = read(&pair);
    let key = PKey::private_key_from_pem(pair.key_pem.as_bytes()).unwrap();
    let x509 = X509::from_der(certificate.der()).unwrap();
    let pkcs12 =
        |password| Pkcs12::builder().pkey(&key).cert(&x509).build2(password).unwrap().to_der().unwrap();

    let read = |bytes: &[u8], password| Certificate::from_file_contents(bytes, password);
    assert_eq!(read(certificate.pem().as_bytes(), None).unwrap(), certificate);
    assert_eq!(read(certificate.der(), None).unwrap(), certificate);
    assert_eq!(read(&pkcs12("geheim"), Some("geheim")).unwrap(), certificate);
    assert_eq!(read(&pkcs12(""), None).unwrap(), certificate);
    assert_eq!(read(&pkcs12("geheim"), None).unwrap_err(), CertificateError::PasswordNeeded);
    assert_eq!(read(&pkcs12("geheim"), Some("Geheim")).unwrap_err(), CertificateError::WrongPassword);
    let mut damaged = pkcs12("geheim");
    damaged.truncate(500);
    assert!(read(&damaged, Some("geheim")).is_err());
    let no_key = Pkcs12::builder().cert(&x509).build2("geheim").unwrap().to_der().unwrap();
    assert_eq!(read(&no_key, Some("geheim")).unwrap(), certificate);

    // Made by old tools. It holds a certificate only.
    let outdated = include_bytes!("tests/rc2.p12");
    assert_eq!(read(outdated, Some("geheim")).unwrap_err(), CertificateError::OutdatedEncryption);
    assert_eq!(read(outdated, Some("Geheim")).unwrap_err(), CertificateError::WrongPassword);

    let with_key = from_pkcs12(&pkcs12("geheim"), Some("geheim")).unwrap();
    assert_eq!(with_key.certificate, certificate);
    assert!(with_key.key.is_some());
    assert!(matches!(read(pair.key_pem.as_bytes(), None), Err(CertificateError::NotPem(_))));
    assert!(matches!(read(b"hello", None), Err(CertificateError::NotACertificate(_))));
}

#[test]
fn the_country_is_the_only_one_or_none() {
    let countries = |names: &[&str]| {
        let countries = names.iter().map(ToString::to_string).collect();
        read(&Request { countries, ..request(TestType::Signing) }.self_signed().unwrap()).country()
    };
    assert_eq!(countries(&["DE"]).unwrap().as_str(), "DE");
    assert!(matches!(countries(&[]), Err(CertificateError::NoCountry { .. })));
    assert!(matches!(countries(&["DE", "NL"]), Err(CertificateError::SeveralCountries { .. })));
    assert!(matches!(countries(&["DE", "DE"]), Err(CertificateError::SeveralCountries { .. })));
    assert_eq!(countries(&["de"]), Err(CertificateError::InvalidCountry("de".into())));
}

#[test]
fn what_a_certificate_says() {
    let request = Request { common_name: "Ünïcode, Inc.".into(), ..request(TestType::Signing) };
    let certificate = read(&request.self_signed().unwrap());
    assert_eq!(certificate.common_name(), Some("Ünïcode, Inc."));
    assert_eq!(certificate.subject(), "C=DE, O=EFGS test, CN=Ünïcode, Inc.");
    assert_eq!(certificate.issuer(), certificate.subject());
    assert_eq!(certificate.not_before().timestamp(), request.not_before.timestamp());
    assert_eq!(certificate.not_after().timestamp(), request.not_after.timestamp());
    assert_eq!((certificate.version(), certificate.hash_description().as_str()), (3, "SHA-256"));
    let serial = X509::from_der(certificate.der()).unwrap().serial_number().to_bn().unwrap();
    assert_eq!(
        certificate.serial().replace(':', "").to_uppercase(),
        serial.to_hex_str().unwrap().to_uppercase()
    );
    for (key, description) in [
        (KeyKind::Ec256, "EC P-256"),
        (KeyKind::Ec384, "EC P-384"),
        (KeyKind::Ec521, "EC P-521"),
        (KeyKind::Rsa(2048), "RSA 2048"),
        (KeyKind::Secp256k1, "EC curve 1.3.132.0.10"),
    ] {
        let pair = Request { key, ..request.clone() }.self_signed().unwrap();
        assert_eq!(read(&pair).key_description(), description);
    }
}

#[test]
fn validity_includes_both_ends() {
    let certificate = read(&signing());
    let second = TimeDelta::seconds(1);
    assert!(!certificate.is_valid_at(certificate.not_before() - second));
    assert!(certificate.is_valid_at(certificate.not_before()));
    assert!(certificate.is_valid_at(certificate.not_after()));
    assert!(!certificate.is_valid_at(certificate.not_after() + second));
}

#[test]
fn each_rule_is_broken_by_its_own_kind_of_certificate() {
    let good = request(TestType::Signing);
    let now = good.not_before + Days::new(1);
    let broken = |request: Request, kind: CertificateType, country: &str| -> Vec<Rule> {
        let certificate = read(&request.self_signed().unwrap());
        let country = Some(country.parse().unwrap());
        let findings = certificate.check(country, kind, now);
        assert!(findings.iter().map(|f| f.rule).eq(Rule::ALL));
        findings.into_iter().filter(|finding| !finding.passed).map(|finding| finding.rule).collect()
    };
    let signing = |change: fn(&mut Request)| {
        let mut request = request(TestType::Signing);
        change(&mut request);
        broken(request, CertificateType::Signing, "DE")
    };
    assert_eq!(signing(|_| {}), []);
    assert_eq!(signing(|r| r.version = 1), [Rule::Version]);
    assert_eq!(signing(|r| r.countries = vec!["NL".into()]), [Rule::Country]);
    assert_eq!(signing(|r| r.countries.clear()), [Rule::Country]);
    assert_eq!(signing(|r| r.key = KeyKind::Rsa(2048)), [Rule::KeySize]);
    assert_eq!(signing(|r| r.key = KeyKind::Secp256k1), [Rule::KeySize]);
    assert_eq!(signing(|r| r.sha1 = true), [Rule::Hash]);
    assert_eq!(signing(|r| r.not_after = r.not_before + Days::new(80)), [Rule::Validity]);
    assert_eq!(signing(|r| r.not_after = r.not_before + Days::new(100)), []);
    assert_eq!(
        signing(|r| {
            r.not_after = r.not_before;
            r.not_before = r.not_before - Days::new(9);
        }),
        [Rule::Validity, Rule::Expired]
    );
    assert_eq!(signing(|r| r.not_before = r.not_before + Days::new(2)), [Rule::NotYetValid]);

    use CertificateType::{Authentication, Callback, Signing};
    assert_eq!(broken(request(TestType::Callback), Authentication, "DE"), [Rule::Usage]);
    assert_eq!(broken(request(TestType::Authentication), Callback, "DE"), [Rule::Usage]);
    assert_eq!(broken(request(TestType::Authentication), Authentication, "DE"), []);
    assert_eq!(broken(request(TestType::Callback), Callback, "DE"), []);
    // A signing certificate here names a key usage that the others need as well, and no extended one.
    assert_eq!(broken(request(TestType::Signing), Authentication, "DE"), []);
    assert_eq!(broken(request(TestType::Authentication), Signing, "DE"), []);
    let authority = efgs_test_ca::Authority::new("ca", KeyKind::Ec256).unwrap();
    let authority = Certificate::from_der(authority.certificate().der()).unwrap();
    assert!(authority.check(None, Signing, now).iter().all(|finding| finding.passed));
}

#[test]
fn rules_and_types_are_read_back_from_their_names() {
    for rule in Rule::ALL {
        assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
    }
    assert!("keysize".parse::<Rule>().is_err());
    assert_eq!("signing".parse::<CertificateType>().unwrap(), CertificateType::Signing);
    assert_eq!("Callback".parse::<CertificateType>().unwrap(), CertificateType::Callback);
    assert_eq!("AUTHENTICATION".parse::<CertificateType>().unwrap(), CertificateType::Authentication);
    assert!("AUTH".parse::<CertificateType>().is_err());
}

/// RSASSA-PSS with these parameters: hash, mask function, its hash, salt, trailer.
fn pss(hash: &[u8], mask: &[u8], mask_hash: &[u8], salt: u8, trailer: u8) -> Result<Scheme, AlgorithmError> {
    let der = |tag: u8, content: &[u8]| [&[tag, content.len() as u8], content].concat();
    let algorithm = |oid: &[u8], parameters: &[u8]| der(0x30, &[&der(6, oid)[..], parameters].concat());
    let parameters = [
        der(0xa0, &algorithm(hash, &[])),
        der(0xa1, &algorithm(mask, &algorithm(mask_hash, &[]))),
        der(0xa2, &der(2, &[salt])),
        der(0xa3, &der(2, &[trailer])),
    ];
    let whole = algorithm(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10], &der(0x30, &parameters.concat()));
    Scheme::read(&AlgorithmIdentifier::from_der(&whole).unwrap().1, None)
}

#[test]
fn the_parameters_of_rsassa_pss_are_checked() {
    const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
    const SHA512: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3];
    const MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8];
    assert_eq!(pss(SHA256, MGF1, SHA256, 32, 1), Ok(Scheme::RsaPss { hash: Hash::Sha256, salt: 32 }));
    assert_eq!(pss(SHA512, MGF1, SHA512, 20, 1), Ok(Scheme::RsaPss { hash: Hash::Sha512, salt: 20 }));
    for (refused, what) in [
        (pss(SHA256, SHA256, SHA256, 32, 1), "another mask function"),
        (pss(SHA256, MGF1, SHA512, 32, 1), "two different hashes"),
        (pss(SHA256, MGF1, SHA256, 32, 2), "an unknown trailer"),
    ] {
        assert!(refused.unwrap_err().to_string().contains(what), "{what}");
    }
}

#[test]
fn rsassa_pss_verifies_with_any_salt() {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let spki = key.public_key_to_der().unwrap();
    let (_, spki) = SubjectPublicKeyInfo::from_der(&spki).unwrap();
    let public = PublicKey::read(&spki);
    for (hash, digest, length) in
        [(Hash::Sha256, MessageDigest::sha256(), 32), (Hash::Sha512, MessageDigest::sha512(), 64)]
    {
        for salt in [0, 20, length, 256 - length - 2] {
            let mut signer = Signer::new(digest, &key).unwrap();
            signer.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
            signer.set_rsa_pss_saltlen(RsaPssSaltlen::custom(salt.into())).unwrap();
            let signature = signer.sign_oneshot_to_vec(b"message").unwrap();
            let scheme = Scheme::RsaPss { hash, salt };
            assert_eq!(public.verify(scheme, b"message", &signature), Ok(()), "{hash} {salt}");
            assert_eq!(public.verify(scheme, b"massage", &signature), Err(VerifyError::Mismatch));
            let other = Scheme::RsaPss { hash, salt: salt + 1 };
            assert_eq!(public.verify(other, b"message", &signature), Err(VerifyError::Mismatch));
            assert_eq!(
                public.verify(Scheme::RsaPkcs1(hash), b"message", &signature),
                Err(VerifyError::Mismatch)
            );
            assert_eq!(
                public.verify(Scheme::Ecdsa(hash), b"message", &signature),
                Err(VerifyError::Unsupported)
            );
        }
    }
}

#[test]
fn keys_out_of_the_ordinary_are_described_and_never_used() {
    let describe = |der: &[u8]| PublicKey::read(&SubjectPublicKeyInfo::from_der(der).unwrap().1);
    let ec = |curve, flag| {
        let mut group = EcGroup::from_curve_name(curve).unwrap();
        group.set_asn1_flag(flag);
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        describe(&key.public_key_to_der().unwrap())
    };
    let explicit = ec(Nid::X9_62_PRIME256V1, Asn1Flag::EXPLICIT_CURVE);
    assert_eq!(
        (explicit.to_string().as_str(), explicit.is_too_short()),
        ("EC with explicit parameters", false)
    );
    let short = ec(Nid::SECP224R1, Asn1Flag::NAMED_CURVE);
    assert_eq!((short.to_string().as_str(), short.is_too_short()), ("EC curve 1.3.132.0.33", true));
    let edwards = describe(&PKey::generate_ed25519().unwrap().public_key_to_der().unwrap());
    assert_eq!((edwards.to_string().as_str(), edwards.is_too_short()), ("algorithm 1.3.101.112", false));
    for key in [explicit, short, edwards] {
        assert!(!key.is_supported());
        assert_eq!(key.verify(Scheme::Ecdsa(Hash::Sha256), b"", b""), Err(VerifyError::Unsupported));
    }
}

#[test]
fn an_issuer_is_an_authority_of_that_name_and_key() {
    let test_ca = |country, name| efgs_test_ca::Authority::of_country(country, name, KeyKind::Ec256).unwrap();
    let certificate = |ca: &efgs_test_ca::Authority| Certificate::from_der(ca.certificate().der()).unwrap();
    let ca = test_ca("DE", "national CA");
    let authority = certificate(&ca);
    let leaf = read(&ca.issue(&request(TestType::Signing)).unwrap());
    assert!(authority.is_authority());
    assert!(!leaf.is_authority());
    assert!(leaf.is_issued_by(&authority));
    assert!(leaf.is_issued_by(&certificate(&ca.renew().unwrap())));
    assert!(authority.is_issued_by(&authority));
    assert!(!authority.is_issued_by(&leaf));

    // The same name with another key, and another name.
    assert!(!leaf.is_issued_by(&certificate(&test_ca("DE", "national CA"))));
    assert!(!leaf.is_issued_by(&certificate(&test_ca("DE", "other CA"))));
    let sha1 = Request { sha1: true, ..request(TestType::Signing) };
    assert!(!read(&ca.issue(&sha1).unwrap()).is_issued_by(&authority));
    // Its own key signed it under its own name, but it is no authority.
    let own = read(&signing());
    assert!(!own.is_issued_by(&own));
}

#[test]
fn an_issuer_with_the_right_key_under_another_name_is_none() {
    let key = PKey::from_ec_key(
        EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap(),
    );
    let key = key.unwrap();
    let authority = |name: &str| {
        let mut subject = X509Name::builder().unwrap();
        subject.append_entry_by_text("C", "DE").unwrap();
        subject.append_entry_by_text("CN", name).unwrap();
        let subject = subject.build();
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        builder.set_subject_name(&subject).unwrap();
        builder.set_issuer_name(&subject).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&Asn1Time::from_unix(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::from_unix(9_999).unwrap()).unwrap();
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
        builder.append_extension(KeyUsage::new().key_cert_sign().build().unwrap()).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        Certificate::from_der(&builder.build().to_der().unwrap()).unwrap()
    };
    let (one, other) = (authority("one"), authority("other"));
    assert!(one.is_issued_by(&authority("one")));
    assert!(!one.is_issued_by(&other));
}

#[test]
fn a_certificate_permits_what_its_usages_name() {
    use CertificateType::{Authentication, Callback, Signing};
    for (named, permitted) in [
        (TestType::Authentication, [true, true, false]),
        (TestType::Signing, [true, true, true]),
        (TestType::Callback, [false, true, true]),
    ] {
        let certificate = read(&request(named).self_signed().unwrap());
        let found = [Authentication, Signing, Callback].map(|kind| certificate.permits(kind));
        assert_eq!(found, permitted, "{named}");
    }
}

/// Calls `read` with an algorithm identifier that has no parameters.
fn with_algorithm<T>(oid: &str, read: impl FnOnce(&AlgorithmIdentifier<'_>) -> T) -> T {
    let oid = const_oid::ObjectIdentifier::new_unwrap(oid);
    let algorithm = ber::der(ber::SEQUENCE, &ber::der(ber::OID, oid.as_bytes()));
    read(&AlgorithmIdentifier::from_der(&algorithm).unwrap().1)
}

#[test]
fn every_algorithm_identifier_names_its_own_scheme() {
    use Hash::{Sha1, Sha256, Sha384, Sha512};
    for (oid, expected) in [
        ("1.3.14.3.2.26", Ok(Sha1)),
        ("2.16.840.1.101.3.4.2.1", Ok(Sha256)),
        ("2.16.840.1.101.3.4.2.2", Ok(Sha384)),
        ("2.16.840.1.101.3.4.2.3", Ok(Sha512)),
        ("1.2.840.113549.2.2", Err(AlgorithmError::Weak("MD2"))),
        ("1.2.840.113549.2.5", Err(AlgorithmError::Weak("MD5"))),
        ("1.2.3", Err(AlgorithmError::Unsupported("digest algorithm 1.2.3".into()))),
    ] {
        assert_eq!(with_algorithm(oid, Hash::read), expected, "{oid}");
    }
    let unsupported = |oid: &str| Err(AlgorithmError::Unsupported(format!("signature algorithm {oid}")));
    for (oid, expected) in [
        ("1.2.840.113549.1.1.5", Ok(Scheme::RsaPkcs1(Sha1))),
        ("1.2.840.113549.1.1.11", Ok(Scheme::RsaPkcs1(Sha256))),
        ("1.2.840.113549.1.1.12", Ok(Scheme::RsaPkcs1(Sha384))),
        ("1.2.840.113549.1.1.13", Ok(Scheme::RsaPkcs1(Sha512))),
        ("1.2.840.113549.1.1.10", Ok(Scheme::RsaPss { hash: Sha1, salt: 20 })),
        ("1.2.840.10045.4.1", Ok(Scheme::Ecdsa(Sha1))),
        ("1.2.840.10045.4.3.2", Ok(Scheme::Ecdsa(Sha256))),
        ("1.2.840.10045.4.3.3", Ok(Scheme::Ecdsa(Sha384))),
        ("1.2.840.10045.4.3.4", Ok(Scheme::Ecdsa(Sha512))),
        ("1.2.840.113549.1.1.2", Err(AlgorithmError::Weak("MD2"))),
        ("1.2.840.113549.1.1.4", Err(AlgorithmError::Weak("MD5"))),
        // SHA-224, which is outside the contract.
        ("1.2.840.113549.1.1.14", unsupported("1.2.840.113549.1.1.14")),
        ("1.2.840.10045.4.3.1", unsupported("1.2.840.10045.4.3.1")),
    ] {
        // The hash that is named beside it changes nothing.
        for digest in [None, Some(Sha384)] {
            assert_eq!(with_algorithm(oid, |algorithm| Scheme::read(algorithm, digest)), expected, "{oid}");
        }
        if let Ok(scheme) = expected {
            assert!(scheme.to_string().ends_with(&format!(" with {}", scheme.hash())), "{scheme}");
        }
    }
    for (oid, expected) in
        [("1.2.840.113549.1.1.1", Scheme::RsaPkcs1(Sha384)), ("1.2.840.10045.2.1", Scheme::Ecdsa(Sha384))]
    {
        assert_eq!(with_algorithm(oid, |algorithm| Scheme::read(algorithm, Some(Sha384))), Ok(expected));
        assert_eq!(with_algorithm(oid, |algorithm| Scheme::read(algorithm, None)), unsupported(oid));
    }
}
