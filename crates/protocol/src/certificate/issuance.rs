//! A dedicated CA instead of a leaf (spec appendix A): a country may register the certificate below which
//! every certificate of its own counts.

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Certificate, CertificateType, Hash, Scheme};

impl Certificate {
    /// Whether it may issue certificates: it is a CA, and its key usage says keyCertSign.
    pub fn is_authority(&self) -> bool {
        self.usage.is_authority()
    }

    /// Whether `authority` issued this certificate directly, with a hash better than SHA-1. Neither validity nor
    /// country is looked at.
    pub fn is_issued_by(&self, authority: &Self) -> bool {
        let (Ok((_, leaf)), Ok((_, issuer))) =
            (X509Certificate::from_der(&self.der), X509Certificate::from_der(&authority.der))
        else {
            return false;
        };
        if !authority.is_authority() || leaf.issuer().as_raw() != issuer.subject().as_raw() {
            return false;
        }
        match Scheme::read(&leaf.signature_algorithm, None) {
            Ok(scheme) if scheme.hash() != Hash::Sha1 => {
                let message = leaf.tbs_certificate.as_ref();
                authority.key.verify(scheme, message, &leaf.signature_value.data).is_ok()
            }
            _ => false,
        }
    }

    /// Whether it is another form of `other`, or renewed with the same key: the same issuer and serial number, or the
    /// same public key. An ECDSA signature has two valid forms, so that anyone can make a certificate with another
    /// thumbprint out of one that they have.
    pub fn is_of_the_same_key_or_number_as(&self, other: &Self) -> bool {
        let (Ok((_, mine)), Ok((_, theirs))) =
            (X509Certificate::from_der(&self.der), X509Certificate::from_der(&other.der))
        else {
            return false;
        };
        mine.public_key().raw == theirs.public_key().raw
            || (mine.issuer().as_raw() == theirs.issuer().as_raw()
                && mine.raw_serial() == theirs.raw_serial())
    }

    /// Whether its usages, where it names any, permit what this type is for.
    pub fn permits(&self, kind: CertificateType) -> bool {
        self.usage.check(kind).is_ok()
    }
}
