//! The rules that a certificate must pass before the operator signs it (spec §6.1.3).

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Months, SecondsFormat, Utc};
use x509_parser::prelude::{ExtendedKeyUsage, KeyUsage, X509Certificate};

use super::{Certificate, CertificateType, Hash, PublicKey};
use crate::country::Country;

/// One onboarding rule, by the name under which an operator waives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// X.509 version 3.
    Version,
    /// The subject's only `C` is the country that registers the certificate.
    Country,
    /// RSA with at least 3072 bits, or EC on P-256, P-384 or P-521.
    KeySize,
    /// The certificate's own signature uses SHA-256 or better.
    Hash,
    /// At least three months are left.
    Validity,
    /// The certificate has not expired.
    Expired,
    /// The certificate is valid already.
    NotYetValid,
    /// Where the certificate names usages, the one of its type is among them.
    Usage,
}

impl Rule {
    /// Every rule, in the order in which they are reported.
    pub const ALL: [Self; 8] = [
        Self::Version,
        Self::Country,
        Self::KeySize,
        Self::Hash,
        Self::Validity,
        Self::Expired,
        Self::NotYetValid,
        Self::Usage,
    ];

    /// The rule's name, such as `key-size`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Country => "country",
            Self::KeySize => "key-size",
            Self::Hash => "hash",
            Self::Validity => "validity",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::Usage => "usage",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no [`Rule`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a rule: version, country, key-size, hash, validity, expired, not-yet-valid or usage")]
pub struct UnknownRule(pub String);

impl FromStr for Rule {
    type Err = UnknownRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == text).ok_or_else(|| UnknownRule(text.to_owned()))
    }
}

/// Whether a certificate passes one rule, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// Whether it holds.
    pub passed: bool,
    /// What was found, for people.
    pub explanation: String,
}

/// The usages that a certificate names. `None` where it names none, which permits all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    key: Result<Option<KeyUsage>, Unreadable>,
    extended: Result<Option<Extended>, Unreadable>,
    ca: bool,
}

/// An extension that cannot be read or occurs twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unreadable;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extended {
    any: bool,
    server: bool,
    client: bool,
}

impl Usage {
    pub(super) fn read(x509: &X509Certificate<'_>) -> Self {
        let extended =
            |e: &ExtendedKeyUsage<'_>| Extended { any: e.any, server: e.server_auth, client: e.client_auth };
        Self {
            key: x509.key_usage().map(|u| u.map(|u| *u.value)).map_err(|_| Unreadable),
            ca: x509.basic_constraints().is_ok_and(|c| c.is_some_and(|c| c.value.ca)),
            extended: x509.extended_key_usage().map(|u| u.map(|u| extended(u.value))).map_err(|_| Unreadable),
        }
    }

    /// See [`Certificate::is_authority`].
    pub(super) fn is_authority(&self) -> bool {
        // In so many words: `openssl req -x509` marks every certificate as a CA.
        self.ca && matches!(&self.key, Ok(Some(key)) if key.key_cert_sign())
    }

    /// Says which usage is missing for a certificate of this type.
    pub(super) fn check(&self, kind: CertificateType) -> Result<&'static str, &'static str> {
        let Self { key: Ok(key), extended: Ok(extended), .. } = self else {
            return Err("a usage extension is unreadable or occurs twice");
        };
        let key_permits = |permits: fn(&KeyUsage) -> bool| key.as_ref().is_none_or(permits);
        let extended_permits =
            |permits: fn(&Extended) -> bool| extended.as_ref().is_none_or(|e| e.any || permits(e));
        match kind {
            CertificateType::Authentication | CertificateType::Signing if self.is_authority() => {
                Ok("a CA: the certificates that it issues for this country are accepted")
            }
            CertificateType::Authentication if !key_permits(KeyUsage::digital_signature) => {
                Err("the key usage lacks digitalSignature")
            }
            CertificateType::Authentication if !extended_permits(|e| e.client) => {
                Err("the extended key usage lacks clientAuth")
            }
            CertificateType::Signing if !key_permits(|u| u.digital_signature() || u.non_repudiation()) => {
                Err("the key usage lacks digitalSignature and nonRepudiation")
            }
            CertificateType::Callback if !key_permits(|u| u.digital_signature() || u.key_encipherment()) => {
                Err("the key usage lacks digitalSignature and keyEncipherment")
            }
            CertificateType::Callback if !extended_permits(|e| e.server) => {
                Err("the extended key usage lacks serverAuth")
            }
            _ if key.is_none() && extended.is_none() => Ok("no usages are named, so all are permitted"),
            _ => Ok("the named usages permit it"),
        }
    }
}

/// See [`Certificate::check`].
pub(super) fn check(
    certificate: &Certificate,
    country: Option<Country>,
    kind: CertificateType,
    now: DateTime<Utc>,
) -> Vec<Finding> {
    Rule::ALL
        .into_iter()
        .map(|rule| {
            let (passed, explanation) = apply(rule, certificate, country, kind, now);
            Finding { rule, passed, explanation }
        })
        .collect()
}

fn apply(
    rule: Rule,
    certificate: &Certificate,
    country: Option<Country>,
    kind: CertificateType,
    now: DateTime<Utc>,
) -> (bool, String) {
    let (not_before, not_after) = (certificate.not_before, certificate.not_after);
    let date = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    match rule {
        Rule::Version => (certificate.version == 3, format!("X.509 version {}", certificate.version)),
        Rule::Country => match (certificate.country(), country) {
            (Err(e), _) => (false, e.to_string()),
            (Ok(found), Some(expected)) if found != expected => {
                (false, format!("the subject's country is {found}, not {expected}"))
            }
            (Ok(found), _) => (true, format!("the subject's country is {found}")),
        },
        Rule::KeySize => {
            let passed = match &certificate.key {
                PublicKey::Rsa { bits, .. } => *bits >= 3072,
                PublicKey::Ec { .. } => true,
                PublicKey::Unsupported { .. } => false,
            };
            (passed, format!("{}; at least RSA 3072 or EC P-256 is needed", certificate.key))
        }
        Rule::Hash => {
            let passed = matches!(&certificate.signature_hash, Ok(hash) if *hash != Hash::Sha1);
            (passed, format!("signed with {}; SHA-256 or better is needed", certificate.hash_description()))
        }
        Rule::Validity => {
            let passed = now.checked_add_months(Months::new(3)).is_some_and(|least| least <= not_after);
            let days = (not_after - now).num_days();
            (passed, format!("valid until {}, {days} days from now; 3 months are needed", date(not_after)))
        }
        Rule::Expired => (now <= not_after, format!("valid until {}", date(not_after))),
        Rule::NotYetValid => (not_before <= now, format!("valid from {}", date(not_before))),
        Rule::Usage => match certificate.usage.check(kind) {
            Ok(why) => (true, format!("{kind}: {why}")),
            Err(why) => (false, format!("{kind}: {why}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{CertificateType::*, *};

    // RFC 5280, section 4.2.1.3.
    const DIGITAL_SIGNATURE: u16 = 1;
    const NON_REPUDIATION: u16 = 1 << 1;
    const KEY_ENCIPHERMENT: u16 = 1 << 2;
    const KEY_CERT_SIGN: u16 = 1 << 5;

    const PERMITTED: Result<&str, &str> = Ok("the named usages permit it");

    fn usage(key: Option<u16>, extended: Option<[bool; 3]>, ca: bool) -> Usage {
        let extended = extended.map(|[any, server, client]| Extended { any, server, client });
        Usage { key: Ok(key.map(|flags| KeyUsage { flags })), extended: Ok(extended), ca }
    }

    #[test]
    fn each_type_needs_one_of_its_own_key_usages() {
        let missing = |kind| match kind {
            Authentication => Err("the key usage lacks digitalSignature"),
            Signing => Err("the key usage lacks digitalSignature and nonRepudiation"),
            Callback => Err("the key usage lacks digitalSignature and keyEncipherment"),
        };
        for (flag, permitted) in [
            (0, &[][..]),
            (DIGITAL_SIGNATURE, &[Authentication, Signing, Callback]),
            (NON_REPUDIATION, &[Signing]),
            (KEY_ENCIPHERMENT, &[Callback]),
            (KEY_CERT_SIGN, &[]),
        ] {
            for kind in [Authentication, Signing, Callback] {
                let expected = if permitted.contains(&kind) { PERMITTED } else { missing(kind) };
                assert_eq!(usage(Some(flag), None, false).check(kind), expected, "{kind} {flag:#b}");
            }
        }
    }

    #[test]
    fn an_extended_key_usage_names_the_side_of_the_connection_or_any() {
        for (extended, authentication, callback) in [
            ([true, false, false], PERMITTED, PERMITTED),
            ([false, true, false], Err("the extended key usage lacks clientAuth"), PERMITTED),
            ([false, false, true], PERMITTED, Err("the extended key usage lacks serverAuth")),
        ] {
            let usage = usage(None, Some(extended), false);
            assert_eq!(usage.check(Authentication), authentication, "{extended:?}");
            assert_eq!(usage.check(Callback), callback, "{extended:?}");
            assert_eq!(usage.check(Signing), PERMITTED, "{extended:?}");
        }
    }

    #[test]
    fn without_usages_all_are_permitted_and_unreadable_ones_permit_nothing() {
        for kind in [Authentication, Signing, Callback] {
            let named = usage(None, None, false);
            assert_eq!(named.check(kind), Ok("no usages are named, so all are permitted"));
            let unreadable = "a usage extension is unreadable or occurs twice";
            assert_eq!(Usage { key: Err(Unreadable), ..named.clone() }.check(kind), Err(unreadable));
            assert_eq!(Usage { extended: Err(Unreadable), ..named }.check(kind), Err(unreadable));
        }
    }

    #[test]
    fn an_authority_is_a_ca_that_may_sign_certificates() {
        for (key, ca, expected) in [
            (Some(KEY_CERT_SIGN), true, true),
            (Some(KEY_CERT_SIGN), false, false),
            (Some(DIGITAL_SIGNATURE), true, false),
            (None, true, false),
        ] {
            let usage = usage(key, Some([false, false, false]), ca);
            assert_eq!(usage.is_authority(), expected, "{key:?} {ca}");
            // No other usage is asked of an authority; the gateway calls no authority.
            for kind in [Authentication, Signing] {
                let accepted = usage.check(kind).is_ok_and(|text| text.starts_with("a CA: "));
                assert_eq!(accepted, expected, "{kind} {key:?} {ca}");
            }
            assert!(usage.check(Callback).is_err());
        }
    }
}
