//! Keys and certificates, good ones and bad ones.

use chrono::{DateTime, Days, Utc};
use efgs_protocol::certificate::{Certificate, CertificateType};
use efgs_protocol::random;
use openssl::asn1::{Asn1Integer, Asn1Time};
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
    SubjectKeyIdentifier,
};
use openssl::x509::{X509, X509Builder, X509Name, X509NameRef};

use crate::Error;

/// The algorithm and size of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// EC on P-256. Quick to make.
    #[default]
    Ec256,
    /// EC on P-384.
    Ec384,
    /// EC on P-521.
    Ec521,
    /// EC on secp256k1, which the gateway does not support.
    Secp256k1,
    /// RSA with this many bits. 3072 bits take up to a second to make.
    Rsa(u32),
}

impl KeyKind {
    fn generate(self) -> Result<PKey<Private>, ErrorStack> {
        let curve = match self {
            Self::Rsa(bits) => return PKey::from_rsa(Rsa::generate(bits)?),
            Self::Ec256 => Nid::X9_62_PRIME256V1,
            Self::Ec384 => Nid::SECP384R1,
            Self::Ec521 => Nid::SECP521R1,
            Self::Secp256k1 => Nid::SECP256K1,
        };
        PKey::from_ec_key(EcKey::generate(EcGroup::from_curve_name(curve)?.as_ref())?)
    }
}

/// A certificate with its private key.
#[derive(Clone)]
pub struct KeyPair {
    /// The certificate.
    pub certificate: Certificate,
    /// The private key, PKCS#8 in PEM, not encrypted.
    pub key_pem: String,
}

impl KeyPair {
    fn new(x509: &X509, key: &PKey<Private>) -> Result<Self, Error> {
        // What OpenSSL writes as PEM is ASCII.
        let key_pem = String::from_utf8_lossy(&key.private_key_to_pem_pkcs8()?).into_owned();
        Ok(Self { certificate: Certificate::from_der(&x509.to_der()?)?, key_pem })
    }
}

/// What a certificate shall say. [`Request::new`] asks for a good one; change fields to get a bad one.
#[derive(Clone, Debug)]
pub struct Request {
    /// Decides the usages: client, signature or server.
    pub kind: CertificateType,
    /// The subject's `C`, as often as wanted; not checked.
    pub countries: Vec<String>,
    /// The subject's `CN`.
    pub common_name: String,
    /// The key.
    pub key: KeyKind,
    /// Sign the certificate with SHA-1.
    pub sha1: bool,
    /// The X.509 version, 1 or 3. Version 1 has no extensions.
    pub version: u8,
    /// First moment of validity.
    pub not_before: DateTime<Utc>,
    /// Last moment of validity.
    pub not_after: DateTime<Utc>,
    /// Host names and IP addresses that the certificate is for.
    pub hosts: Vec<String>,
}

impl Request {
    /// A certificate that a gateway accepts: EC P-256, SHA-256, valid from yesterday for a year.
    pub fn new(kind: CertificateType, country: &str) -> Self {
        let now = now();
        let hosts: &[&str] = match kind {
            CertificateType::Callback => &["localhost", "127.0.0.1", "::1"],
            CertificateType::Authentication | CertificateType::Signing => &[],
        };
        Self {
            kind,
            countries: vec![country.to_owned()],
            common_name: format!("{country} {}", kind.as_str().to_lowercase()),
            key: KeyKind::Ec256,
            sha1: false,
            version: 3,
            not_before: now - Days::new(1),
            not_after: now + Days::new(365),
            hosts: hosts.iter().map(ToString::to_string).collect(),
        }
    }

    /// Makes a key and a certificate for it that is signed with that same key: a leaf, not an authority.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn self_signed(&self) -> Result<KeyPair, Error> {
        self.issue(None)
    }

    fn issue(&self, authority: Option<&Authority>) -> Result<KeyPair, Error> {
        let key = self.key.generate()?;
        let subject = name(&self.countries, &self.common_name)?;
        let mut builder = builder(&subject, &key, self.not_before, self.not_after)?;
        builder.set_version(i32::from(self.version) - 1)?;
        builder.set_issuer_name(authority.map_or(&subject, |a| a.x509.subject_name()))?;
        if self.version == 3 {
            self.extend(&mut builder, authority)?;
        }
        let digest = if self.sha1 { MessageDigest::sha1() } else { MessageDigest::sha256() };
        builder.sign(authority.map_or(&key, |a| &a.key), digest)?;
        KeyPair::new(&builder.build(), &key)
    }

    fn extend(&self, builder: &mut X509Builder, authority: Option<&Authority>) -> Result<(), ErrorStack> {
        builder.append_extension(BasicConstraints::new().critical().build()?)?;
        builder.append_extension(KeyUsage::new().critical().digital_signature().build()?)?;
        let mut extended = ExtendedKeyUsage::new();
        match self.kind {
            CertificateType::Authentication => builder.append_extension(extended.client_auth().build()?)?,
            CertificateType::Callback => builder.append_extension(extended.server_auth().build()?)?,
            CertificateType::Signing => {}
        }
        let issuer = authority.map(|a| a.x509.as_ref());
        let identifier = SubjectKeyIdentifier::new().build(&builder.x509v3_context(issuer, None))?;
        builder.append_extension(identifier)?;
        if issuer.is_some() {
            let context = builder.x509v3_context(issuer, None);
            let identifier = AuthorityKeyIdentifier::new().keyid(true).build(&context)?;
            builder.append_extension(identifier)?;
        }
        if !self.hosts.is_empty() {
            let mut names = SubjectAlternativeName::new();
            for host in &self.hosts {
                match host.parse::<std::net::IpAddr>() {
                    Ok(_) => names.ip(host),
                    Err(_) => names.dns(host),
                };
            }
            let names = names.build(&builder.x509v3_context(issuer, None))?;
            builder.append_extension(names)?;
        }
        Ok(())
    }
}

/// A certificate authority.
pub struct Authority {
    x509: X509,
    key: PKey<Private>,
    pair: KeyPair,
}

impl Authority {
    /// Makes an authority that is valid from yesterday for ten years. Its certificate is signed with SHA-256.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn new(common_name: &str, key: KeyKind) -> Result<Self, Error> {
        Self::of_country("EU", common_name, key)
    }

    /// Makes an authority with this `C` in its subject, such as a country's own (spec appendix A).
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn of_country(country: &str, common_name: &str, key: KeyKind) -> Result<Self, Error> {
        let subject = name(&[country.into()], common_name)?;
        Self::of_subject(&subject, key.generate()?)
    }

    /// Makes another certificate of this authority, with the same subject and the same key. Each verifies what the
    /// other issued.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn renew(&self) -> Result<Self, Error> {
        Self::of_subject(self.x509.subject_name(), self.key.clone())
    }

    fn of_subject(subject: &X509NameRef, key: PKey<Private>) -> Result<Self, Error> {
        let now = now();
        let mut builder = builder(subject, &key, now - Days::new(1), now + Days::new(3650))?;
        builder.set_version(2)?;
        builder.set_issuer_name(subject)?;
        builder.append_extension(BasicConstraints::new().critical().ca().build()?)?;
        builder.append_extension(
            KeyUsage::new().critical().digital_signature().key_cert_sign().crl_sign().build()?,
        )?;
        let identifier = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
        builder.append_extension(identifier)?;
        builder.sign(&key, MessageDigest::sha256())?;
        let x509 = builder.build();
        Ok(Self { pair: KeyPair::new(&x509, &key)?, x509, key })
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.pair.certificate
    }

    /// Makes a key and a certificate for it that this authority signs.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn issue(&self, request: &Request) -> Result<KeyPair, Error> {
        request.issue(Some(self))
    }

    pub(crate) fn into_pair(self) -> KeyPair {
        self.pair
    }
}

/// The default start of validity. For another one set the fields of a [`Request`].
#[expect(clippy::disallowed_methods, reason = "a certificate that real TLS accepts needs the real time")]
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now()
}

fn builder(
    subject: &X509NameRef,
    key: &PKey<Private>,
    not_before: DateTime<Utc>,
    not_after: DateTime<Utc>,
) -> Result<X509Builder, ErrorStack> {
    let mut builder = X509::builder()?;
    let mut serial: [u8; 16] = random::bytes();
    // Positive, and always of the same length.
    serial[0] = serial[0] & 0x3f | 0x40;
    let serial = BigNum::from_slice(&serial)?;
    builder.set_serial_number(Asn1Integer::from_bn(&serial)?.as_ref())?;
    builder.set_subject_name(subject)?;
    builder.set_pubkey(key)?;
    builder.set_not_before(Asn1Time::from_unix(not_before.timestamp())?.as_ref())?;
    builder.set_not_after(Asn1Time::from_unix(not_after.timestamp())?.as_ref())?;
    Ok(builder)
}

fn name(countries: &[String], common_name: &str) -> Result<X509Name, ErrorStack> {
    let mut name = X509Name::builder()?;
    for country in countries {
        name.append_entry_by_text("C", country)?;
    }
    name.append_entry_by_text("O", "EFGS test")?;
    name.append_entry_by_text("CN", common_name)?;
    Ok(name.build())
}
