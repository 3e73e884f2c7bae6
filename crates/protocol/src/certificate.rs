//! X.509 certificates of participants: thumbprint, subject country, PEM text and onboarding rules (spec §6.1).
//!
//! A [`Certificate`] is read once and then owned: its exact DER bytes, and every fact that the gateway, a
//! national backend or an onboarding officer asks for. Nothing here decides whether a certificate is trusted.

mod file;
mod issuance;
mod public_key;
mod rules;
#[cfg(test)]
mod tests;
mod thumbprint;

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use chrono::{DateTime, Utc};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};

use crate::country::Country;

pub(crate) use file::{certificates, from_pkcs12};
pub(crate) use public_key::{AlgorithmError, Hash, PublicKey, Scheme, VerifyError};
pub use rules::{Finding, Rule, UnknownRule};
pub use thumbprint::{InvalidThumbprint, Thumbprint};

/// What a certificate is registered for (spec §6.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CertificateType {
    /// Identifies a national backend when it calls the gateway.
    Authentication,
    /// Signs batches of diagnosis keys.
    Signing,
    /// Identifies a national backend when the gateway calls it.
    Callback,
}

impl CertificateType {
    /// The name in the registry and in the signed registration text, such as `AUTHENTICATION`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authentication => "AUTHENTICATION",
            Self::Signing => "SIGNING",
            Self::Callback => "CALLBACK",
        }
    }
}

impl fmt::Display for CertificateType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no [`CertificateType`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a certificate type: authentication, signing or callback")]
pub struct UnknownCertificateType(pub String);

impl FromStr for CertificateType {
    type Err = UnknownCertificateType;

    /// Reads the name in upper or lower case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Authentication, Self::Signing, Self::Callback]
            .into_iter()
            .find(|kind| kind.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownCertificateType(text.to_owned()))
    }
}

/// Why bytes are not the one certificate that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The bytes are not a DER certificate.
    #[error("not an X.509 certificate: {0}")]
    NotACertificate(String),
    /// A certificate is followed by other bytes.
    #[error("{0} bytes follow the certificate")]
    TrailingData(usize),
    /// The text holds no PEM certificate.
    #[error("no PEM certificate found: {0}")]
    NotPem(&'static str),
    /// More than one certificate where exactly one is expected, such as a chain.
    #[error("{0} certificates found, exactly one is expected")]
    SeveralCertificates(usize),
    /// The subject has no `C`.
    #[error("the certificate's subject has no country (C): {subject}")]
    NoCountry {
        /// The subject's distinguished name.
        subject: String,
    },
    /// The subject has more than one `C`, so that it is undecided which one counts.
    #[error("the certificate's subject has more than one country (C): {subject}")]
    SeveralCountries {
        /// The subject's distinguished name.
        subject: String,
    },
    /// The subject's `C` is not two upper-case letters.
    #[error("the certificate's country (C) {0:?} is not two upper-case letters")]
    InvalidCountry(String),
    /// A PKCS#12 file is protected and no password was given.
    #[error("the PKCS#12 file needs its password")]
    PasswordNeeded,
    /// A PKCS#12 file cannot be opened with the given password.
    #[error("the password does not open the PKCS#12 file")]
    WrongPassword,
    /// A PKCS#12 file is encrypted with an algorithm that OpenSSL does not offer any more, such as RC2.
    #[error(
        "the PKCS#12 file is encrypted with an outdated algorithm; ask for one with AES, or convert it: \
         openssl pkcs12 -legacy -in FILE -nokeys -clcerts -out certificate.pem"
    )]
    OutdatedEncryption,
    /// A PKCS#12 file is damaged or holds no certificate.
    #[error("the PKCS#12 file cannot be read: {0}")]
    Pkcs12(String),
}

/// One X.509 certificate, with its exact DER bytes (spec §4.1.4, §6.1).
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    pem: String,
    thumbprint: Thumbprint,
    subject: String,
    issuer: String,
    common_name: Option<String>,
    countries: Vec<String>,
    serial: String,
    not_before: DateTime<Utc>,
    not_after: DateTime<Utc>,
    version: u32,
    key: PublicKey,
    signature_hash: Result<Hash, AlgorithmError>,
    usage: rules::Usage,
}

impl Certificate {
    /// Reads exactly one DER certificate.
    ///
    /// # Errors
    /// When the bytes are no certificate or go on after it.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let invalid = |e: String| CertificateError::NotACertificate(e);
        let (rest, x509) = X509Certificate::from_der(der).map_err(|e| invalid(e.to_string()))?;
        if !rest.is_empty() {
            return Err(CertificateError::TrailingData(rest.len()));
        }
        let time = |t: x509_parser::time::ASN1Time| {
            DateTime::from_timestamp(t.timestamp(), 0)
                .ok_or_else(|| invalid(format!("date {t} is out of range")))
        };
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| match a.as_str() {
            Ok(text) => text.to_owned(),
            Err(_) => String::from_utf8_lossy(a.as_slice()).into_owned(),
        };
        let subject = x509.subject();
        Ok(Self {
            pem: pem_text(der),
            thumbprint: Thumbprint::of(der),
            subject: name_text(subject),
            issuer: name_text(x509.issuer()),
            common_name: subject.iter_common_name().next().map(text),
            countries: subject.iter_country().map(text).collect(),
            serial: x509.raw_serial_as_string(),
            not_before: time(x509.validity().not_before)?,
            not_after: time(x509.validity().not_after)?,
            version: x509.version().0.saturating_add(1),
            key: PublicKey::read(x509.public_key()),
            signature_hash: Scheme::read(&x509.signature_algorithm, None).map(Scheme::hash),
            usage: rules::Usage::read(&x509),
            der: der.to_vec(),
        })
    }

    /// Reads a text with exactly one PEM certificate. Text before it is skipped (tools print a summary there);
    /// after it only white space may follow.
    ///
    /// # Errors
    /// When there is no certificate, more than one, or other data after it.
    pub fn from_pem(pem: impl AsRef<[u8]>) -> Result<Self, CertificateError> {
        Self::from_der(&file::pem_to_der(pem.as_ref())?)
    }

    /// Reads a certificate file as a country sends it: PEM, DER, or PKCS#12 with its password. Which of them
    /// it is shows in the content.
    ///
    /// # Errors
    /// When it is none of them, holds more than one certificate, or the password is missing or wrong.
    pub fn from_file_contents(bytes: &[u8], password: Option<&str>) -> Result<Self, CertificateError> {
        file::read(bytes, password)
    }

    /// The exact DER bytes.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The PEM text, to the byte as `openssl x509` prints it: 64 columns, LF, a final LF. This is the text
    /// that an operator signature covers (spec §5.7.2).
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the DER bytes, the certificate's name in the registry.
    pub fn thumbprint(&self) -> Thumbprint {
        self.thumbprint
    }

    /// The country in the subject's only `C`.
    ///
    /// # Errors
    /// When the subject has no `C`, more than one, or one that is not two upper-case letters.
    pub fn country(&self) -> Result<Country, CertificateError> {
        match self.countries.as_slice() {
            [only] => only.parse().map_err(|_| CertificateError::InvalidCountry(only.clone())),
            [] => Err(CertificateError::NoCountry { subject: self.subject.clone() }),
            _ => Err(CertificateError::SeveralCountries { subject: self.subject.clone() }),
        }
    }

    /// The subject's first common name, if there is one.
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// The subject's distinguished name, for people.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The issuer's distinguished name, for people.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The serial number, as hexadecimal bytes separated by colons.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The first moment at which the certificate is valid.
    pub fn not_before(&self) -> DateTime<Utc> {
        self.not_before
    }

    /// The last moment at which the certificate is valid.
    pub fn not_after(&self) -> DateTime<Utc> {
        self.not_after
    }

    /// Whether `time` lies within the validity, both ends included.
    pub fn is_valid_at(&self, time: DateTime<Utc>) -> bool {
        self.not_before <= time && time <= self.not_after
    }

    /// The public key's algorithm and size, for people: `RSA 3072`, `EC P-256`.
    pub fn key_description(&self) -> String {
        self.key.to_string()
    }

    /// The X.509 version, 1 to 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The hash of the certificate's own signature, for people: `SHA-256`.
    pub fn hash_description(&self) -> String {
        match &self.signature_hash {
            Ok(hash) => hash.to_string(),
            Err(e) => e.to_string(),
        }
    }

    /// Applies the onboarding rules (spec §6.1.3) and tells of each whether it holds, in the order of
    /// [`Rule::ALL`]. Without `country`, any one country will do.
    pub fn check(&self, country: Option<Country>, kind: CertificateType, now: DateTime<Utc>) -> Vec<Finding> {
        rules::check(self, country, kind, now)
    }

    pub(crate) fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The hash of the certificate's own signature; a trust anchor signs with the same one.
    pub(crate) fn signature_hash(&self) -> &Result<Hash, AlgorithmError> {
        &self.signature_hash
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("subject", &self.subject)
            .field("thumbprint", &self.thumbprint)
            .finish_non_exhaustive()
    }
}

fn name_text(name: &X509Name<'_>) -> String {
    name.to_string()
}

fn pem_text(der: &[u8]) -> String {
    let base64 = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::with_capacity(base64.len() + base64.len() / 64 + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
