//! Who may call and who may sign (spec §4.1.6, §6.1).

use chrono::{Days, TimeDelta};
use efgs_protocol::{canonical::CanonicalKeys, certificate::CertificateType};
use efgs_test_ca::{Identity, Request};
use openssl::{asn1::Asn1Integer, bn::BigNum, hash::MessageDigest, pkey::PKey, x509::X509};

use crate::{
    client::{Client, keys},
    harness::{Case, PKI, country, participant, tests},
};

tests![
    a_caller_without_exactly_one_country_is_403,
    a_caller_whose_certificate_has_expired_is_403,
    a_certificate_registered_for_another_use_is_rejected,
    a_thumbprint_with_a_leading_zero_byte_lets_in,
    one_country_cannot_upload_for_another,
    a_signer_that_is_not_active_is_400,
    a_signer_of_another_use_or_country_is_400,
    a_signer_is_the_one_that_the_signature_names,
    a_caller_without_a_chain_to_the_client_ca_is_refused_in_the_handshake,
];

/// A certificate that the operator registered, though its subject does not suit.
fn odd(kind: CertificateType, change: impl FnOnce(&mut Request)) -> Identity {
    let mut request = Request::new(kind, "DE");
    change(&mut request);
    PKI.identity(country("DE"), kind, &request).unwrap()
}

async fn a_caller_without_exactly_one_country_is_403(case: &Case) {
    let gateway = case.gateway().await;
    for countries in [vec![], vec!["DE".to_owned(), "NL".to_owned()], vec!["DE".to_owned(), "DE".to_owned()]]
    {
        let identity = odd(CertificateType::Authentication, |request| request.countries = countries.clone());
        gateway.register(&[&identity]).await;
        let answer = gateway.client_with(Some(&identity), "DE").download(case.today(), None).await;
        let message = answer.refused(403, "forbidden");
        assert!(message.contains("exactly one country"), "{countries:?}: {message}");
    }
}

async fn a_caller_whose_certificate_has_expired_is_403(case: &Case) {
    let gateway = case.gateway().await;
    let now = case.clock.now();
    let identity = odd(CertificateType::Authentication, |request| {
        request.not_before = now;
        request.not_after = now + Days::new(2);
    });
    gateway.register(&[&identity]).await;
    let client = gateway.client_with(Some(&identity), "DE");
    for (at, reason) in [
        (now - TimeDelta::seconds(1), Some("is not yet valid")),
        (now, None),
        (now + Days::new(2), None),
        (now + Days::new(2) + TimeDelta::seconds(1), Some("has expired")),
    ] {
        case.clock.set(at);
        let answer = client.download(case.today(), None).await;
        match reason {
            Some(reason) => assert!(answer.refused(403, "forbidden").contains(reason), "{answer:?}"),
            None => drop(answer.refused(404, "batch-not-found")),
        }
    }
}

async fn a_certificate_registered_for_another_use_is_rejected(case: &Case) {
    let gateway = case.gateway().await;
    let german = participant("DE");
    for identity in [&german.signing, &german.callback] {
        let client = gateway.client_with(Some(identity), "DE");
        let keys = keys(country("DE"), 1, case.clock.now());
        client.upload("a", &keys).await.refused(403, "forbidden");
        client.download(case.today(), None).await.refused(403, "forbidden");
    }
}

/// 1 certificate in 256, found with one key and changing serial numbers.
fn with_leading_zero() -> Identity {
    let mut identity = odd(CertificateType::Authentication, |_| {});
    let key = PKey::private_key_from_pem(identity.key_pem.as_bytes()).unwrap();
    let first = X509::from_der(identity.certificate.der()).unwrap();
    for serial in 1..10_000 {
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        let serial = BigNum::from_u32(serial).unwrap();
        builder.set_serial_number(Asn1Integer::from_bn(&serial).unwrap().as_ref()).unwrap();
        builder.set_subject_name(first.subject_name()).unwrap();
        builder.set_issuer_name(first.subject_name()).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(first.not_before()).unwrap();
        builder.set_not_after(first.not_after()).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let der = builder.build().to_der().unwrap();
        if openssl::sha::sha256(&der)[0] == 0 {
            let kind = CertificateType::Authentication;
            let certificate = efgs_protocol::certificate::Certificate::from_der(&der).unwrap();
            let bundle = efgs_protocol::bundle::Bundle::sign(
                &PKI.anchor,
                country("DE"),
                kind,
                certificate.clone(),
                Vec::new(),
            );
            identity.certificate = certificate;
            identity.bundle = bundle.unwrap();
            return identity;
        }
    }
    panic!("no thumbprint begins with a zero byte");
}

async fn a_thumbprint_with_a_leading_zero_byte_lets_in(case: &Case) {
    let gateway = case.gateway().await;
    let identity = with_leading_zero();
    assert!(identity.certificate.thumbprint().to_string().starts_with("00"));
    gateway.register(&[&identity]).await;
    let client = gateway.client_with(Some(&identity), "DE");
    client.upload_new("a", 1, case.clock.now()).await;
    let batch = gateway.form().await.remove(0);
    let entries = gateway.client("NL").audit(case.today(), &batch).await.expect(200).audit();
    assert_eq!(entries[0].uploader_thumbprint, identity.certificate.thumbprint());
    // And a revocation finds it.
    let revoked = gateway.app.store.revoke_certificate(identity.certificate.thumbprint(), case.clock.now());
    assert_eq!(revoked.await.unwrap(), 1);
    gateway.reload().await;
    client.download(case.today(), None).await.refused(403, "forbidden");
}

async fn one_country_cannot_upload_for_another(case: &Case) {
    let gateway = case.gateway().await;
    let now = case.clock.now();
    let german = participant("DE");
    // Called and signed by DE, keys of NL; the same with one foreign key among own ones.
    let client = gateway.client("DE");
    let foreign = keys(country("NL"), 2, now);
    let message = client.upload("a", &foreign).await.refused(400, "foreign-origin");
    assert!(message.contains("key 0") && message.contains("NL"), "{message}");
    let mixed = crate::client::join(&[&keys(country("DE"), 2, now), &foreign]);
    let message = client.upload("a", &mixed).await.refused(400, "foreign-origin");
    assert!(message.contains("key 2"), "{message}");
    // Called by DE, signed by NL, whosever the keys are.
    let mixed_up = gateway.client_with(Some(&german.authentication), "NL");
    for code in ["DE", "NL"] {
        let keys = keys(country(code), 1, now);
        let message = mixed_up.upload("a", &keys).await.refused(400, "untrusted-signer");
        assert!(message.contains("NL") && message.contains("DE"), "{message}");
    }
    assert_eq!(case.db.counts().await, [0, 0, 0]);
}

async fn a_signer_that_is_not_active_is_400(case: &Case) {
    let gateway = case.gateway().await;
    let now = case.clock.now();
    let client = gateway.client("DE");
    let upload = async |identity: &Identity| {
        let keys = keys(country("DE"), 1, case.clock.now());
        client.signing_with(identity).upload("a", &keys).await
    };
    let unregistered = odd(CertificateType::Signing, |_| {});
    let message = upload(&unregistered).await.refused(400, "untrusted-signer");
    assert!(message.contains(&unregistered.certificate.thumbprint().to_string()), "{message}");
    assert!(message.contains("is not registered"), "{message}");
    let short = odd(CertificateType::Signing, |request| {
        request.not_before = now + Days::new(1);
        request.not_after = now + Days::new(2);
    });
    gateway.register(&[&short]).await;
    upload(&short).await.refused(400, "invalid-signature");
    case.clock.set(now + Days::new(3));
    upload(&short).await.refused(400, "invalid-signature");
    let revoked = odd(CertificateType::Signing, |_| {});
    gateway.register(&[&revoked]).await;
    gateway.app.store.revoke_certificate(revoked.certificate.thumbprint(), now).await.unwrap();
    gateway.reload().await;
    let message = upload(&revoked).await.refused(400, "untrusted-signer");
    assert!(message.contains("has been revoked"), "{message}");
    assert_eq!(case.db.counts().await, [0, 0, 0]);
}

async fn a_signer_of_another_use_or_country_is_400(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let german = participant("DE");
    for identity in [&german.authentication, &german.callback] {
        let keys = keys(country("DE"), 1, case.clock.now());
        client.signing_with(identity).upload("a", &keys).await.refused(400, "untrusted-signer");
    }
    for countries in [vec![], vec!["DE".to_owned(), "NL".to_owned()]] {
        let identity = odd(CertificateType::Signing, |request| request.countries = countries);
        gateway.register(&[&identity]).await;
        let keys = keys(country("DE"), 1, case.clock.now());
        client.signing_with(&identity).upload("a", &keys).await.refused(400, "untrusted-signer");
    }
    // Registered for DE by mistake, while its subject says NL.
    let mut request = Request::new(CertificateType::Signing, "NL");
    request.common_name = "mistake".into();
    let identity = PKI.identity(country("DE"), CertificateType::Signing, &request).unwrap();
    gateway.register(&[&identity]).await;
    let keys = keys(country("DE"), 1, case.clock.now());
    client.signing_with(&identity).upload("a", &keys).await.refused(400, "untrusted-signer");
    assert_eq!(case.db.counts().await, [0, 0, 0]);
}

async fn a_signer_is_the_one_that_the_signature_names(case: &Case) {
    use efgs_test_ca::cms::{Shape, sign};
    let gateway = case.gateway().await;
    let client: Client = gateway.client("DE");
    let keys = keys(country("DE"), 1, case.clock.now());
    // The signature of an unregistered signer that carries the registered certificate along.
    let unregistered = odd(CertificateType::Signing, |_| {});
    let shape = Shape { other_certificates: vec![client.signing.certificate.clone()], ..Shape::default() };
    let forged = sign(&unregistered, &CanonicalKeys::of(&keys).signed_bytes(), &shape).unwrap();
    let request = client.request("a", &keys).header("batchSignature", forged);
    client.send(request).await.refused(400, "untrusted-signer");
}

async fn a_caller_without_a_chain_to_the_client_ca_is_refused_in_the_handshake(case: &Case) {
    let authority = efgs_test_ca::Authority::new("client CA", efgs_test_ca::KeyKind::Ec256).unwrap();
    let path = case.folder.path().join("client-ca.pem");
    std::fs::write(&path, authority.certificate().pem()).unwrap();
    let gateway = case.gateway_with(|config| config.tls.as_mut().unwrap().client_ca = Some(path)).await;
    let issue = |registered: bool| {
        let kind = CertificateType::Authentication;
        let pair = authority.issue(&Request::new(kind, "DE")).unwrap();
        let bundle = efgs_protocol::bundle::Bundle::sign(
            &PKI.anchor,
            country(if registered { "DE" } else { "NL" }),
            kind,
            pair.certificate.clone(),
            Vec::new(),
        );
        Identity { certificate: pair.certificate, key_pem: pair.key_pem, bundle: bundle.unwrap() }
    };
    let chained = issue(true);
    gateway.register(&[&chained]).await;
    let answer = gateway.client_with(Some(&chained), "DE").download(case.today(), None).await;
    answer.refused(404, "batch-not-found");
    // The chain alone does not let in.
    let answer = gateway.client_with(Some(&issue(false)), "DE").download(case.today(), None).await;
    answer.refused(403, "forbidden");
    // Registered, but self-signed.
    let get = Client::download_request(case.today(), None);
    gateway.client("DE").try_send(get).await.unwrap_err();
}
