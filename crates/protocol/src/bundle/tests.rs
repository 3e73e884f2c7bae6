#![expect(clippy::unwrap_used, reason = "tests")]

use efgs_test_ca::efgs_protocol::certificate::CertificateType as TestType;
use efgs_test_ca::{KeyKind, Request};

use super::*;

fn anchor() -> AnchorKey {
    let pair = efgs_test_ca::Pki::new(KeyKind::Ec256).unwrap().anchor_pair;
    AnchorKey::from_pem(pair.certificate.pem(), &pair.key_pem, None).unwrap()
}

fn certificate() -> Certificate {
    let pair = Request::new(TestType::Signing, "DE").self_signed().unwrap();
    Certificate::from_der(pair.certificate.der()).unwrap()
}

fn bundle(anchor: &AnchorKey, waived: Vec<Rule>) -> Bundle {
    Bundle::sign(anchor, "DE".parse().unwrap(), CertificateType::Signing, certificate(), waived).unwrap()
}

#[test]
fn a_bundle_survives_its_text() {
    let anchor = anchor();
    for waived in [vec![], vec![Rule::KeySize], vec![Rule::KeySize, Rule::Validity]] {
        let bundle = bundle(&anchor, waived);
        let text = bundle.to_string();
        assert!(text.starts_with("EFGS-Bundle: 1\nCountry: DE\nType: SIGNING\nThumbprint: "), "{text}");
        assert_eq!(text.contains("\nWaived: "), !bundle.waived.is_empty());
        assert_eq!(text.parse::<Bundle>().unwrap(), bundle);
        bundle.verify(anchor.anchor()).unwrap();
        assert!(bundle.verify(self::anchor().anchor()).is_err());
    }
}

#[test]
fn order_and_line_ends_do_not_matter() {
    let bundle = bundle(&anchor(), vec![Rule::Hash]);
    let text = bundle.to_string();
    let (headers, pem) = text.split_once("\n\n").unwrap();
    let mut lines: Vec<_> = headers.lines().collect();
    lines.reverse();
    for text in [
        format!("{}\n\n{pem}", lines.join("\n")),
        text.replace('\n', "\r\n"),
        format!("\n\n{text}\n\n"),
        text.replace("Type: SIGNING", "Type:   signing  "),
        text.replace("Waived: hash", "Waived: hash,"),
    ] {
        assert_eq!(text.parse::<Bundle>().unwrap(), bundle, "{text}");
    }
}

#[test]
fn a_bundle_that_was_read_survives_its_text() {
    let text = bundle(&anchor(), vec![]).to_string();
    for (more, by) in
        [("Waived-By: A. Operator\n", "A. Operator"), ("Waived-By: A.\rOperator\n", "A. Operator")]
    {
        let text = text.replace("Operator-Signature: ", &format!("{more}Operator-Signature: "));
        let bundle: Bundle = text.parse().unwrap();
        assert_eq!(bundle.waived_by, by);
        assert_eq!(bundle.to_string().parse::<Bundle>().unwrap(), bundle, "{text}");
    }
}

#[test]
fn each_mistake_has_its_own_error() {
    let bundle = bundle(&anchor(), vec![Rule::Hash]);
    let text = bundle.to_string();
    let refused = |text: String| text.parse::<Bundle>().unwrap_err();
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from));
        refused(text.replacen(from, to, 1))
    };
    assert_eq!(refused(String::new()), BundleError::MissingHeader("EFGS-Bundle"));
    assert_eq!(changed("Country: DE\n", ""), BundleError::MissingHeader("Country"));
    assert_eq!(
        changed("Operator-Signature: ", "Registration-Signature: "),
        BundleError::RepeatedHeader { line: 7, name: "Registration-Signature" }
    );
    assert_eq!(
        changed("Country: DE", "Land: DE"),
        BundleError::UnknownHeader { line: 2, name: "Land".into() }
    );
    assert_eq!(changed("Country: DE", "DE"), BundleError::NotAHeader { line: 2 });
    assert_eq!(
        refused(format!("\n{}", text.replacen("Type:", "Type", 1))),
        BundleError::NotAHeader { line: 4 }
    );

    let invalid = |from: &str, to: &str, expected: &str| {
        let error = changed(from, to);
        assert!(matches!(error, BundleError::InvalidHeader { name, .. } if name == expected), "{error}");
    };
    invalid("Bundle: 1", "Bundle: 2", "EFGS-Bundle");
    invalid("Country: DE", "Country: de", "Country");
    invalid("Type: SIGNING", "Type: SEALING", "Type");
    invalid("Thumbprint: ", "Thumbprint: x", "Thumbprint");
    invalid("Waived: hash", "Waived: hush", "Waived");
    invalid("Operator-Signature: ", "Operator-Signature: ?", "Operator-Signature");
    invalid(&bundle.registration_signature, "", "Registration-Signature");

    let other = certificate();
    let swapped = changed(bundle.certificate.pem(), other.pem());
    let expected =
        BundleError::OtherThumbprint { named: bundle.certificate.thumbprint(), actual: other.thumbprint() };
    assert_eq!(swapped, expected);
    let twice = refused(format!("{text}{}", other.pem()));
    assert_eq!(twice, BundleError::Certificate(CertificateError::SeveralCertificates(2)));
}

#[test]
fn a_changed_bundle_does_not_verify() {
    let anchor = anchor();
    let good = bundle(&anchor, vec![]);
    let other = bundle(&anchor, vec![]);
    let verify = |change: fn(&mut Bundle, &Bundle)| {
        let mut bundle = good.clone();
        change(&mut bundle, &other);
        bundle.verify(anchor.anchor())
    };
    assert_eq!(verify(|_, _| {}), Ok(()));
    let registration = Err(AnchorError::Mismatch("registration"));
    assert_eq!(verify(|bundle, _| bundle.country = "NL".parse().unwrap()), registration);
    assert_eq!(verify(|bundle, _| bundle.kind = CertificateType::Authentication), registration);
    assert_eq!(
        verify(|bundle, other| bundle.registration_signature.clone_from(&other.registration_signature)),
        registration
    );
    let operator = Err(AnchorError::Mismatch("operator"));
    assert_eq!(verify(|bundle, other| bundle.certificate = other.certificate.clone()), operator);
    assert_eq!(
        verify(|bundle, other| bundle.operator_signature.clone_from(&other.operator_signature)),
        operator
    );
}
