//! A dedicated CA instead of a leaf (spec appendix A), and rotation.

use chrono::Days;
use efgs_protocol::{
    audit::verify_batch,
    bundle::Bundle,
    certificate::{Certificate, CertificateType},
    signature::SignaturePolicy,
};
use efgs_test_ca::{Authority, Identity, KeyKind, KeyPair, Request};

use crate::{
    client::keys,
    harness::{Case, PKI, Running, country, participant, tests},
};

tests![
    certificates_that_a_registered_authority_issued_may_call_and_sign_and_are_audited,
    an_authority_admits_only_its_own_country_its_own_use_and_what_is_valid,
    a_revoked_authority_takes_its_certificates_with_it,
    certificates_of_one_country_overlap_while_they_rotate,
];

fn authority(code: &str) -> Authority {
    Authority::of_country(code, "national CA", KeyKind::Ec256).unwrap()
}

fn bundle(code: &str, kind: CertificateType, certificate: &Certificate) -> Bundle {
    Bundle::sign(&PKI.anchor, country(code), kind, certificate.clone(), Vec::new()).unwrap()
}

/// A certificate as its owner has it; the bundle is never registered.
fn identity(code: &str, kind: CertificateType, pair: KeyPair) -> Identity {
    let bundle = bundle(code, kind, &pair.certificate);
    Identity { certificate: pair.certificate, key_pem: pair.key_pem, bundle }
}

async fn register(gateway: &Running, kind: CertificateType, certificate: &Certificate) {
    crate::harness::import(&gateway.app, &bundle("DE", kind, certificate)).await;
    gateway.reload().await;
}

async fn certificates_that_a_registered_authority_issued_may_call_and_sign_and_are_audited(case: &Case) {
    let gateway = case.gateway().await;
    let ca = authority("DE");
    for kind in [CertificateType::Authentication, CertificateType::Signing] {
        register(&gateway, kind, ca.certificate()).await;
    }
    let issue = |kind| identity("DE", kind, ca.issue(&Request::new(kind, "DE")).unwrap());
    let (caller, signer) = (issue(CertificateType::Authentication), issue(CertificateType::Signing));
    let client = gateway.client_with(Some(&caller), "DE").signing_with(&signer);
    let sent = client.upload_new("a", 3, case.clock.now()).await;
    client.upload("a", &sent).await.expect(201);
    // Another certificate of the same authority is another signer.
    let other = client.signing_with(&issue(CertificateType::Signing));
    other.upload("a", &sent).await.refused(409, "upload-tag-taken");

    let batch = gateway.form().await.remove(0);
    let reader = gateway.client("NL");
    let downloaded = reader.download(case.today(), None).await.expect(200).keys();
    let entries = reader.audit(case.today(), &batch).await.expect(200).audit();
    // The operator vouches for the authority, so that is what an auditor is shown.
    assert_eq!(entries[0].signing_certificate, ca.certificate().pem());
    assert_eq!(entries[0].uploader_thumbprint, ca.certificate().thumbprint());
    let policy = SignaturePolicy { allow_sha1: false };
    let verdicts =
        verify_batch(&entries, &downloaded, batch.parse().ok(), country("NL"), PKI.anchor.anchor(), policy)
            .unwrap();
    assert!(verdicts.iter().all(|verdict| verdict.holds()), "{verdicts:?}");
}

async fn an_authority_admits_only_its_own_country_its_own_use_and_what_is_valid(case: &Case) {
    let gateway = case.gateway().await;
    let ca = authority("DE");
    register(&gateway, CertificateType::Authentication, ca.certificate()).await;
    let good = Request::new(CertificateType::Authentication, "DE");
    let calls = async |pair: KeyPair| {
        let caller = identity("DE", CertificateType::Authentication, pair);
        gateway.client_with(Some(&caller), "DE").download(case.today(), None).await.status
    };
    assert_eq!(calls(ca.issue(&good).unwrap()).await, 404);
    let bad = [
        Request { countries: vec!["NL".into()], ..good.clone() },
        Request { countries: vec![], ..good.clone() },
        Request { not_after: case.clock.now() - Days::new(1), ..good.clone() },
        Request { not_before: case.clock.now() + Days::new(1), ..good.clone() },
        Request { kind: CertificateType::Callback, ..good.clone() },
        Request { sha1: true, ..good.clone() },
    ];
    for request in bad {
        assert_eq!(calls(ca.issue(&request).unwrap()).await, 403);
    }
    // An authority of the same name with another key.
    assert_eq!(calls(authority("DE").issue(&good).unwrap()).await, 403);
    // Registered to call, not to sign.
    let request = Request::new(CertificateType::Signing, "DE");
    let signer = identity("DE", CertificateType::Signing, ca.issue(&request).unwrap());
    let client = gateway.client("DE").signing_with(&signer);
    client.upload("a", &keys(country("DE"), 1, case.clock.now())).await.refused(400, "untrusted-signer");
}

async fn a_revoked_authority_takes_its_certificates_with_it(case: &Case) {
    let gateway = case.gateway().await;
    let ca = authority("DE");
    register(&gateway, CertificateType::Authentication, ca.certificate()).await;
    let request = Request::new(CertificateType::Authentication, "DE");
    let caller = identity("DE", CertificateType::Authentication, ca.issue(&request).unwrap());
    let client = gateway.client_with(Some(&caller), "DE");
    client.download(case.today(), None).await.expect(404);
    gateway.app.store.revoke_certificate(ca.certificate().thumbprint(), case.clock.now()).await.unwrap();
    gateway.reload().await;
    client.download(case.today(), None).await.refused(403, "forbidden");
}

async fn certificates_of_one_country_overlap_while_they_rotate(case: &Case) {
    let gateway = case.gateway().await;
    let next = PKI.participant(country("DE")).unwrap();
    gateway.register(&[&next.authentication, &next.signing]).await;
    let old = gateway.client("DE");
    let new = gateway.client_with(Some(&next.authentication), "DE").signing_with(&next.signing);
    old.upload_new("a", 1, case.clock.now()).await;
    new.upload_new("b", 1, case.clock.now()).await;
    let app = &gateway.app;
    for identity in [&participant("DE").authentication, &participant("DE").signing] {
        app.store.revoke_certificate(identity.certificate.thumbprint(), case.clock.now()).await.unwrap();
    }
    gateway.reload().await;
    old.upload("c", &keys(country("DE"), 1, case.clock.now())).await.refused(403, "forbidden");
    new.upload_new("c", 1, case.clock.now()).await;
    // What the old certificates signed stays.
    gateway.form().await;
    assert_eq!(gateway.client("NL").download(case.today(), None).await.expect(200).keys().len(), 3);
}
