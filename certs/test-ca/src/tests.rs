#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;

use efgs_protocol::bundle::Bundle;
use efgs_protocol::signature::{self, SignaturePolicy};

use super::*;

#[test]
fn every_certificate_passes_every_rule_and_every_bundle_verifies() {
    let pki = Pki::new(KeyKind::Ec256).unwrap();
    for (country, key) in [("DE", KeyKind::Ec256), ("NL", KeyKind::Rsa(3072)), ("IT", KeyKind::Ec521)] {
        let country = country.parse().unwrap();
        let participant = pki.participant_with(country, |request| Request { key, ..request }).unwrap();
        for identity in [&participant.authentication, &participant.signing, &participant.callback] {
            let bundle = &identity.bundle;
            assert_eq!(bundle.country, country);
            bundle.verify(pki.anchor.anchor()).unwrap();
            for finding in identity.certificate.check(Some(country), bundle.kind, issue::now()) {
                assert!(finding.passed, "{finding:?}");
            }
        }
        let signed = participant.signing.signer().unwrap().sign(b"bytes").unwrap();
        let by = signature::verify(&signed, b"bytes", issue::now(), SignaturePolicy::default()).unwrap();
        assert_eq!(by.certificate, participant.signing.certificate);
    }
}

#[test]
fn written_files_are_complete_and_private_keys_are_private() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::new(KeyKind::Ec256).unwrap();
    pki.write(folder.path()).unwrap();
    pki.participant("DE".parse().unwrap()).unwrap().write(&folder.path().join("DE")).unwrap();

    let anchor = std::fs::read(folder.path().join("trust-anchor.pem")).unwrap();
    let key = std::fs::read(folder.path().join("trust-anchor.key")).unwrap();
    let anchor = AnchorKey::from_pem(anchor, key, None).unwrap();
    let bundle: Bundle =
        std::fs::read_to_string(folder.path().join("DE/signing.bundle")).unwrap().parse().unwrap();
    bundle.verify(anchor.anchor()).unwrap();
    let chain = std::fs::read_to_string(folder.path().join("server.pem")).unwrap();
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);

    let keys =
        ["trust-anchor", "server", "callback-client", "DE/authentication", "DE/signing", "DE/callback"];
    for key in keys {
        let path = folder.path().join(format!("{key}.key"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{key}");
    }
    assert!(matches!(pki.write(folder.path()), Err(Error::Write { .. })), "keys are never overwritten");
}
