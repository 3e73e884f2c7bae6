//! What the tests of several modules need: certificates, and the rows of the registry that hold them.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::LazyLock;

use chrono::{DateTime, Days, Utc};
use efgs_protocol::{
    bundle::Bundle,
    certificate::{Certificate, CertificateType},
    country::Country,
};
use efgs_test_ca::{Authority, Identity, KeyKind, KeyPair, Pki, Request};

use crate::{Registry, StoredCertificate};

/// The operator's side.
pub(crate) static PKI: LazyLock<Pki> = LazyLock::new(|| Pki::new(KeyKind::Ec256).unwrap());

pub(crate) fn country(code: &str) -> Country {
    code.parse().unwrap()
}

/// A self-signed certificate that is registered for the country and the use, whether it suits them or not.
pub(crate) fn registered(code: &str, kind: CertificateType, request: &Request) -> Identity {
    PKI.identity(country(code), kind, request).unwrap()
}

/// A good certificate of a country.
pub(crate) fn good(code: &str, kind: CertificateType) -> Identity {
    registered(code, kind, &Request::new(kind, code))
}

pub(crate) fn authority(code: &str) -> Authority {
    Authority::of_country(code, "national CA", KeyKind::Ec256).unwrap()
}

/// The operator's signatures over a certificate, for a country and a use.
pub(crate) fn bundle(code: &str, kind: CertificateType, certificate: &Certificate) -> Bundle {
    Bundle::sign(&PKI.anchor, country(code), kind, certificate.clone(), Vec::new()).unwrap()
}

/// A certificate as its owner has it.
pub(crate) fn identity(code: &str, kind: CertificateType, pair: KeyPair) -> Identity {
    let bundle = bundle(code, kind, &pair.certificate);
    Identity { certificate: pair.certificate, key_pem: pair.key_pem, bundle }
}

/// The row of a bundle, as an import writes it.
pub(crate) fn row(id: i64, bundle: &Bundle) -> StoredCertificate {
    StoredCertificate {
        id,
        thumbprint: bundle.certificate.thumbprint().as_bytes().to_vec(),
        kind: bundle.kind.to_string(),
        country: bundle.country.to_string(),
        pem: bundle.certificate.pem().to_owned(),
        operator_signature: bundle.operator_signature.clone(),
        registration_signature: bundle.registration_signature.clone(),
        waived: String::new(),
        waived_by: String::new(),
        waived_because: String::new(),
        imported_at: bundle.certificate.not_before(),
        revoked_at: None,
    }
}

pub(crate) fn registry(rows: &[StoredCertificate]) -> Registry {
    Registry::verify(rows, PKI.anchor.anchor())
}

/// A moment at which the certificates of the test PKI are valid.
pub(crate) fn now() -> DateTime<Utc> {
    PKI.anchor_pair.certificate.not_before() + Days::new(1)
}
