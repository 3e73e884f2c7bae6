#![expect(clippy::unwrap_used, reason = "tests")]

use CertificateType::{Authentication, Callback, Signing};
use chrono::{Days, TimeDelta};
use efgs_protocol::bundle::Bundle;
use efgs_test_ca::{KeyKind, KeyPair, Pki, Request};

use super::*;
use crate::testing::{PKI, authority, bundle, country, good, now, registered, registry, row};

const SECOND: TimeDelta = TimeDelta::seconds(1);

#[test]
fn a_row_with_both_signatures_of_the_anchor_counts() {
    for kind in [Authentication, Signing, Callback] {
        let identity = good("DE", kind);
        let revoked = StoredCertificate { revoked_at: Some(now()), ..row(7, &identity.bundle) };
        for row in [row(7, &identity.bundle), revoked] {
            let registry = registry(std::slice::from_ref(&row));
            assert!(registry.refused().is_empty(), "{:?}", registry.refused());
            let expected = Registered {
                id: 7,
                certificate: identity.certificate.clone(),
                country: country("DE"),
                kind,
                revoked_at: row.revoked_at,
            };
            assert_eq!(registry.entries().collect::<Vec<_>>(), [&expected]);
        }
    }
}

#[test]
fn a_row_with_one_altered_column_does_not_count() {
    let (mine, other) = (good("DE", Signing), good("DE", Signing));
    let pem = mine.certificate.pem().to_owned();
    let foreign = bundle("NL", Signing, &mine.certificate);
    let caller = bundle("DE", Authentication, &mine.certificate);
    let other_anchor = Pki::new(KeyKind::Ec256).unwrap();
    let other_anchor =
        Bundle::sign(&other_anchor.anchor, country("DE"), Signing, mine.certificate.clone(), Vec::new())
            .unwrap();
    let operator =
        "its operator signature does not count: the operator signature does not verify with the trust anchor";
    let registration = "its registration signature does not count: the registration signature does not verify with the trust anchor";
    let canonical = "its PEM text is not in the canonical form";
    let thumbprint = "its thumbprint is not that of its certificate";
    let subject = "its country is not that of its certificate's subject";
    type Change<'a> = &'a dyn Fn(&mut StoredCertificate);
    let changes: &[(Change<'_>, &str)] = &[
        (&|row| row.kind = "SIGNER".into(), "its type is not known"),
        (&|row| row.kind.clear(), "its type is not known"),
        (&|row| row.kind = "AUTHENTICATION".into(), registration),
        (&|row| row.kind = "CALLBACK".into(), registration),
        (&|row| row.pem.clear(), "no PEM certificate found: no BEGIN CERTIFICATE line"),
        (&|row| row.pem = pem.replace('\n', "\r\n"), canonical),
        (&|row| row.pem = format!("subject=C=DE\n{pem}"), canonical),
        (&|row| row.pem = pem.trim_end().to_owned(), canonical),
        (&|row| row.pem = other.certificate.pem().to_owned(), thumbprint),
        (
            &|row| {
                row.pem = other.certificate.pem().to_owned();
                row.thumbprint = other.certificate.thumbprint().as_bytes().to_vec();
            },
            operator,
        ),
        (
            &|row| {
                row.pem = other.certificate.pem().to_owned();
                row.thumbprint = other.certificate.thumbprint().as_bytes().to_vec();
                row.operator_signature = other.bundle.operator_signature.clone();
            },
            registration,
        ),
        (&|row| row.thumbprint[31] ^= 1, thumbprint),
        (&|row| row.thumbprint.truncate(31), thumbprint),
        (&|row| row.thumbprint.clear(), thumbprint),
        (&|row| row.country = "NL".into(), subject),
        (&|row| row.country = "de".into(), subject),
        (&|row| row.operator_signature = other.bundle.operator_signature.clone(), operator),
        (&|row| row.operator_signature = row.registration_signature.clone(), operator),
        (&|row| row.operator_signature = other_anchor.operator_signature.clone(), operator),
        (&|row| row.operator_signature.clear(), operator),
        (
            &|row| row.operator_signature = "?".into(),
            "its operator signature does not count: the operator signature is not base64",
        ),
        (&|row| row.registration_signature = other.bundle.registration_signature.clone(), registration),
        (&|row| row.registration_signature = row.operator_signature.clone(), registration),
        (&|row| row.registration_signature = other_anchor.registration_signature.clone(), registration),
        (&|row| row.registration_signature = foreign.registration_signature.clone(), registration),
        (&|row| row.registration_signature = caller.registration_signature.clone(), registration),
        (&|row| row.registration_signature.clear(), registration),
        (
            &|row| row.registration_signature = "?".into(),
            "its registration signature does not count: the registration signature is not base64",
        ),
    ];
    let untouched = good("DE", Authentication);
    for (number, (change, reason)) in changes.iter().enumerate() {
        let mut altered = row(1, &mine.bundle);
        change(&mut altered);
        let expected = format!("certificate {}: {reason}", name(&altered));
        let registry = registry(&[altered, row(2, &untouched.bundle)]);
        assert_eq!(registry.refused(), [expected], "change {number}");
        for kind in [Authentication, Signing, Callback] {
            for certificate in [&mine.certificate, &other.certificate] {
                let unknown = Err(Inactive::Unknown);
                assert_eq!(
                    registry.active(certificate.thumbprint(), kind, now()),
                    unknown,
                    "change {number}"
                );
            }
        }
        // One bad row takes no other one with it.
        let entry = registry.active(untouched.certificate.thumbprint(), Authentication, now());
        assert_eq!(entry.map(|entry| entry.id), Ok(2), "change {number}");
    }
}

#[test]
fn a_certificate_that_names_no_country_or_another_one_does_not_count() {
    let request = |countries: &[&str]| Request {
        countries: countries.iter().map(ToString::to_string).collect(),
        ..Request::new(Signing, "DE")
    };
    for (countries, reason) in [
        (&[][..], "the certificate's subject has no country (C)"),
        (&["DE", "DE"], "the certificate's subject has more than one country (C)"),
        (&["NL"], "its country is not that of its certificate's subject"),
    ] {
        let registry = registry(&[row(1, &registered("DE", Signing, &request(countries)).bundle)]);
        let [refused] = registry.refused() else { unreachable!("{:?}", registry.refused()) };
        assert!(refused.contains(reason), "{refused}");
        assert_eq!(registry.entries().count(), 0);
    }
    // The operator signed it for Germany, the row and the certificate say Netherlands.
    let mut moved = row(1, &registered("DE", Signing, &request(&["NL"])).bundle);
    moved.country = "NL".into();
    let registry = registry(&[moved]);
    assert!(registry.refused()[0].contains("its registration signature does not count"));
    assert_eq!(registry.entries().count(), 0);
}

#[test]
fn a_refused_row_is_named_without_the_control_characters_in_it() {
    let mut altered = row(3, &good("DE", Signing).bundle);
    altered.kind = "SIGNING\n".into();
    altered.country = "D\u{1b}".into();
    altered.thumbprint = vec![0xab; 32];
    let text = format!("row 3 (SIGNING\\n of D\\u{{1b}}, thumbprint {})", "ab".repeat(32));
    assert_eq!(name(&altered), text);
    altered.thumbprint.push(0);
    assert!(name(&altered).ends_with("thumbprint of 33 bytes)"));
    let refused = registry(&[altered]);
    assert!(!refused.refused()[0].contains(char::is_control));
}

#[test]
fn a_certificate_is_active_between_its_two_ends_for_its_own_type() {
    let identity = good("DE", Signing);
    let certificate = &identity.certificate;
    let (begin, end) = (certificate.not_before(), certificate.not_after());
    let registry = registry(&[row(1, &identity.bundle)]);
    let at = |time| registry.active(certificate.thumbprint(), Signing, time).map(|entry| entry.id);
    assert_eq!(at(begin - SECOND), Err(Inactive::NotYetValid));
    assert_eq!(at(begin), Ok(1));
    assert_eq!(at(end), Ok(1));
    assert_eq!(at(end + SECOND), Err(Inactive::Expired));
    for kind in [Authentication, Callback] {
        assert_eq!(registry.active(certificate.thumbprint(), kind, begin), Err(Inactive::Unknown));
    }
    let other = Thumbprint::from_bytes([0; 32]);
    assert_eq!(registry.active(other, Signing, begin), Err(Inactive::Unknown));
}

#[test]
fn a_revoked_certificate_is_revoked_at_every_time() {
    let identity = good("DE", Signing);
    let certificate = &identity.certificate;
    // Also when the row says that this happens later.
    for revoked_at in [certificate.not_before(), certificate.not_after() + Days::new(9)] {
        let registry =
            registry(&[StoredCertificate { revoked_at: Some(revoked_at), ..row(1, &identity.bundle) }]);
        for time in [certificate.not_before() - SECOND, now(), certificate.not_after() + SECOND] {
            let revoked = Err(Inactive::Revoked);
            assert_eq!(registry.active(certificate.thumbprint(), Signing, time), revoked);
            assert_eq!(registry.admit(certificate, Signing, time), revoked);
        }
    }
}

#[test]
fn a_certificate_is_let_in_by_its_own_entry() {
    let (mine, other) = (good("DE", Signing), good("DE", Signing));
    let registry = registry(&[row(1, &mine.bundle)]);
    let admit = |certificate, kind, at| registry.admit(certificate, kind, at).map(|entry| entry.id);
    assert_eq!(admit(&mine.certificate, Signing, now()), Ok(1));
    assert_eq!(admit(&mine.certificate, Authentication, now()), Err(Inactive::Unknown));
    assert_eq!(admit(&other.certificate, Signing, now()), Err(Inactive::Unknown));
    let late = mine.certificate.not_after() + SECOND;
    assert_eq!(admit(&mine.certificate, Signing, late), Err(Inactive::Expired));
}

fn leaf(ca: &efgs_test_ca::Authority, change: impl FnOnce(&mut Request)) -> KeyPair {
    let mut request = Request::new(Authentication, "DE");
    change(&mut request);
    ca.issue(&request).unwrap()
}

#[test]
fn a_registered_authority_lets_its_certificates_in() {
    let (ca, same_name) = (authority("DE"), authority("DE"));
    let registry = registry(&[
        row(1, &good("DE", Authentication).bundle),
        row(2, &bundle("DE", Authentication, ca.certificate())),
        row(3, &good("NL", Authentication).bundle),
    ]);
    let admit = |pair: &KeyPair, kind| registry.admit(&pair.certificate, kind, now()).map(|entry| entry.id);
    assert_eq!(admit(&leaf(&ca, |_| {}), Authentication), Ok(2));
    // For no other use than the authority was registered for.
    assert_eq!(admit(&leaf(&ca, |_| {}), Signing), Err(Inactive::Unknown));
    assert_eq!(admit(&leaf(&ca, |request| request.kind = Signing), Signing), Err(Inactive::Unknown));
    // Another key under the same name is another authority.
    assert_eq!(admit(&leaf(&same_name, |_| {}), Authentication), Err(Inactive::Unknown));
    assert_eq!(admit(&leaf(&ca, |request| request.sha1 = true), Authentication), Err(Inactive::Unknown));
    let of = |countries: &[&str]| {
        leaf(&ca, |request| request.countries = countries.iter().map(ToString::to_string).collect())
    };
    for countries in [&[][..], &["NL"], &["DE", "DE"], &["DE", "NL"]] {
        assert_eq!(admit(&of(countries), Authentication), Err(Inactive::Unknown), "{countries:?}");
    }
}

#[test]
fn a_certificate_of_an_authority_must_itself_be_valid_and_permit_its_use() {
    let ca = authority("DE");
    let registry = registry(&[row(1, &bundle("DE", Authentication, ca.certificate()))]);
    let admit = |pair: &KeyPair, at| registry.admit(&pair.certificate, Authentication, at).map(|e| e.id);
    let good = leaf(&ca, |request| request.not_before = request.not_before + Days::new(10));
    let (begin, end) = (good.certificate.not_before(), good.certificate.not_after());
    assert_eq!(admit(&good, begin - SECOND), Err(Inactive::NotYetValid));
    assert_eq!(admit(&good, begin), Ok(1));
    assert_eq!(admit(&good, end), Ok(1));
    assert_eq!(admit(&good, end + SECOND), Err(Inactive::Expired));
    let server = leaf(&ca, |request| request.kind = Callback);
    assert_eq!(admit(&server, now()), Err(Inactive::NotPermitted));
}

#[test]
fn an_authority_lets_nobody_in_while_it_is_not_active() {
    let ca = authority("DE");
    let long = leaf(&ca, |request| {
        request.not_before = request.not_before - Days::new(100);
        request.not_after = request.not_after + Days::new(36_500);
    });
    let registered = row(1, &bundle("DE", Authentication, ca.certificate()));
    let (begin, end) = (ca.certificate().not_before(), ca.certificate().not_after());
    let admit =
        |registry: &Registry, at| registry.admit(&long.certificate, Authentication, at).map(|entry| entry.id);
    let active = registry(std::slice::from_ref(&registered));
    assert_eq!(admit(&active, begin - SECOND), Err(Inactive::NotYetValid));
    assert_eq!(admit(&active, begin), Ok(1));
    assert_eq!(admit(&active, end), Ok(1));
    assert_eq!(admit(&active, end + SECOND), Err(Inactive::Expired));
    let revoked = registry(&[StoredCertificate { revoked_at: Some(now()), ..registered }]);
    assert_eq!(admit(&revoked, now()), Err(Inactive::Revoked));
}

#[test]
fn a_certificate_with_an_entry_of_its_own_is_not_let_in_by_its_authority() {
    let ca = authority("DE");
    let leaf = leaf(&ca, |_| {});
    let own = row(2, &bundle("DE", Authentication, &leaf.certificate));
    let registry = registry(&[
        row(1, &bundle("DE", Authentication, ca.certificate())),
        StoredCertificate { revoked_at: Some(now()), ..own },
    ]);
    assert_eq!(registry.admit(&leaf.certificate, Authentication, now()), Err(Inactive::Revoked));
}

#[test]
fn a_revocation_that_disappears_stays_in_force_and_is_reported() {
    let (mine, other) = (row(1, &good("DE", Signing).bundle), row(2, &good("NL", Signing).bundle));
    let revoked = StoredCertificate { revoked_at: Some(now()), ..mine.clone() };
    let thumbprint = Thumbprint::from_bytes(mine.thumbprint.clone().try_into().unwrap());
    let trust = Trust::new(PKI.anchor.anchor().clone(), Duration::from_secs(5));
    let take = |rows: &[&StoredCertificate]| {
        trust.take(rows.iter().copied().cloned().collect(), Instant::now());
        let state = trust.registry().unwrap().active(thumbprint, Signing, now()).map(|entry| entry.id);
        (state, trust.undone().len())
    };
    assert_eq!(take(&[&mine, &other]), (Ok(1), 0));
    assert_eq!(take(&[&revoked, &other]), (Err(Inactive::Revoked), 0));
    // The column is emptied, the row is deleted, the row is back.
    assert_eq!(take(&[&mine, &other]), (Err(Inactive::Revoked), 1));
    assert_eq!(take(&[&other]), (Err(Inactive::Revoked), 1));
    assert!(trust.undone()[0].contains(&thumbprint.to_string()), "{:?}", trust.undone());
    assert_eq!(take(&[&revoked, &other]), (Err(Inactive::Revoked), 0));
}

/// A value of DER.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u16).to_be_bytes();
    [&[tag, 0x82], &length[..], content].concat()
}

/// The same certificate with the other form of its ECDSA signature: (r, n - s) instead of (r, s).
fn mirrored(certificate: &Certificate) -> Certificate {
    use openssl::{bn, ec, ecdsa::EcdsaSig, nid::Nid, x509::X509};
    let x509 = X509::from_der(certificate.der()).unwrap();
    let signature = EcdsaSig::from_der(x509.signature().as_slice()).unwrap();
    let group = ec::EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let (mut order, mut s) = (bn::BigNum::new().unwrap(), bn::BigNum::new().unwrap());
    group.order(&mut order, &mut bn::BigNumContext::new().unwrap()).unwrap();
    s.checked_sub(&order, signature.s()).unwrap();
    let signature = EcdsaSig::from_private_components(signature.r().to_owned().unwrap(), s).unwrap();
    let signature = der(3, &[&[0], &*signature.to_der().unwrap()].concat());
    // What is signed, and the algorithm: SEQUENCE with a length of two bytes, and ecdsa-with-SHA256.
    let content = &certificate.der()[4..];
    let signed = 4 + usize::from(u16::from_be_bytes([content[2], content[3]]));
    let algorithm = &content[signed..signed + 12];
    Certificate::from_der(&der(0x30, &[&content[..signed], algorithm, &signature].concat())).unwrap()
}

#[test]
fn a_revoked_certificate_of_an_authority_comes_back_in_no_other_form() {
    let ca = authority("DE");
    let leaf = leaf(&ca, |_| {});
    let mirrored = mirrored(&leaf.certificate);
    assert_ne!(mirrored.thumbprint(), leaf.certificate.thumbprint());
    let of_the_ca = row(1, &bundle("DE", Authentication, ca.certificate()));
    let own = row(2, &bundle("DE", Authentication, &leaf.certificate));
    let admit = |own| {
        let registry = registry(&[of_the_ca.clone(), own]);
        registry.admit(&mirrored, Authentication, now()).map(|entry| entry.id)
    };
    assert_eq!(admit(own.clone()), Ok(1));
    assert_eq!(admit(StoredCertificate { revoked_at: Some(now()), ..own }), Err(Inactive::Revoked));
}

#[test]
fn of_a_renewed_authority_one_active_certificate_is_enough() {
    let ca = authority("DE");
    let renewed = ca.renew().unwrap();
    let leaf = leaf(&ca, |_| {});
    let old = row(1, &bundle("DE", Authentication, ca.certificate()));
    let new = row(2, &bundle("DE", Authentication, renewed.certificate()));
    let revoked = |row: &StoredCertificate| StoredCertificate { revoked_at: Some(now()), ..row.clone() };
    // The entries are in another order each time.
    for _ in 0..32 {
        let admit = |rows: &[StoredCertificate]| {
            registry(rows).admit(&leaf.certificate, Authentication, now()).map(|entry| entry.id)
        };
        assert_eq!(admit(&[revoked(&old), new.clone()]), Ok(2));
        assert_eq!(admit(&[old.clone(), revoked(&new)]), Ok(1));
        assert_eq!(admit(&[revoked(&old), revoked(&new)]), Err(Inactive::Revoked));
    }
}

#[test]
fn an_authority_is_let_in_by_no_other_authority() {
    let ca = authority("DE");
    let renewed = ca.renew().unwrap();
    let registry = registry(&[row(1, &bundle("DE", Authentication, ca.certificate()))]);
    // The same subject and key: the registered one did issue it.
    assert!(renewed.certificate().is_issued_by(ca.certificate()));
    assert_eq!(registry.admit(renewed.certificate(), Authentication, now()), Err(Inactive::Unknown));
    assert_eq!(registry.admit(ca.certificate(), Authentication, now()).map(|entry| entry.id), Ok(1));
}

const REFRESH: Duration = Duration::from_secs(60);

fn trust() -> Trust {
    Trust::new(PKI.anchor.anchor().clone(), REFRESH)
}

#[tokio::test(start_paused = true)]
async fn a_registry_counts_for_one_refresh_after_it_was_read() {
    let trust = trust();
    assert_eq!(trust.registry().err(), Some(RegistryUnavailable));
    assert_eq!(trust.age(), None);
    let rows = vec![row(1, &good("DE", Signing).bundle)];
    trust.take(rows.clone(), Instant::now());
    assert_eq!(trust.registry().unwrap().entries().count(), 1);
    assert_eq!(trust.age(), Some(Duration::ZERO));
    tokio::time::advance(REFRESH).await;
    assert_eq!(trust.age(), Some(REFRESH));
    assert!(trust.registry().is_ok());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(trust.registry().err(), Some(RegistryUnavailable));
    // What counts is when the rows were read, not when they were taken over.
    trust.take(rows.clone(), Instant::now() - REFRESH - Duration::from_millis(1));
    assert_eq!(trust.registry().err(), Some(RegistryUnavailable));
    trust.take(rows, Instant::now() - REFRESH);
    assert!(trust.registry().is_ok());
}

#[tokio::test(start_paused = true)]
async fn reads_are_decided_by_the_last_registry_for_the_grace_unless_the_database_refuses() {
    let grace = REFRESH * 10;
    let trust = trust().with_read_grace(grace);
    assert!(trust.registry_for_reads().is_err(), "it was never read");
    trust.take(vec![row(1, &good("DE", Signing).bundle)], Instant::now());
    tokio::time::advance(grace).await;
    assert_eq!(trust.registry().err(), Some(RegistryUnavailable));
    assert!(trust.registry_for_reads().is_ok());
    trust.failed(true);
    assert!(trust.registry_for_reads().is_err());
    trust.failed(false);
    assert!(trust.registry_for_reads().is_ok());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(trust.registry_for_reads().is_err());
    // A grace that is shorter than the refresh, or none, changes nothing.
    let trust = self::trust();
    trust.take(Vec::new(), Instant::now());
    assert!(trust.registry_for_reads().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_denied_certificate_is_not_accepted_whatever_is_loaded_later() {
    let trust = trust();
    let identity = good("DE", Signing);
    let (certificate, thumbprint) = (&identity.certificate, identity.certificate.thumbprint());
    let rows = vec![row(1, &identity.bundle)];
    let state = || {
        let registry = trust.registry().unwrap();
        let active = registry.active(thumbprint, Signing, now()).err();
        assert_eq!(registry.admit(certificate, Signing, now()).err(), active);
        active
    };
    trust.take(rows.clone(), Instant::now());
    assert_eq!(state(), None);
    trust.deny(HashSet::from([thumbprint]));
    assert_eq!(state(), Some(Inactive::Denied));
    trust.take(Vec::new(), Instant::now());
    trust.take(rows, Instant::now());
    assert_eq!(state(), Some(Inactive::Denied));
    trust.deny(HashSet::new());
    assert_eq!(state(), None);
}

#[tokio::test(start_paused = true)]
async fn rows_are_verified_again_only_when_one_has_changed() {
    let trust = trust();
    let first = row(1, &good("DE", Signing).bundle);
    let rows = vec![first.clone(), row(2, &good("NL", Signing).bundle)];
    trust.take(rows.clone(), Instant::now());
    let loaded = trust.registry().unwrap();
    tokio::time::advance(REFRESH * 2).await;
    trust.take(rows.clone(), Instant::now());
    assert!(Arc::ptr_eq(&loaded, &trust.registry().unwrap()));
    trust.take(vec![first.clone()], Instant::now());
    assert_eq!(trust.registry().unwrap().entries().count(), 1);
    trust.take(rows, Instant::now());
    assert!(!Arc::ptr_eq(&loaded, &trust.registry().unwrap()));
    trust.take(vec![StoredCertificate { revoked_at: Some(now()), ..first }], Instant::now());
    assert!(trust.registry().unwrap().entries().all(|entry| entry.revoked_at.is_some()));
}

#[test]
fn a_registry_is_read_four_times_per_refresh() {
    let trust = trust();
    assert_eq!(trust.pace(), REFRESH / 4);
    assert_eq!(trust.anchor(), PKI.anchor.anchor());
    assert_eq!(format!("{trust:?}"), "Trust { refresh: 60s, .. }");
}
