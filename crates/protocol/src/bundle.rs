//! The onboarding bundle: a certificate with the operator's signatures, as it travels from the offline machine
//! to the gateway (spec §6.1.3).
//!
//! It is a text, so that it can be read, mailed and compared:
//!
//! ```text
//! EFGS-Bundle: 1
//! Country: DE
//! Type: AUTHENTICATION
//! Thumbprint: 9f86d0…
//! Waived: key-size
//! Operator-Signature: base64, over the PEM text below
//! Registration-Signature: base64, over country, type and thumbprint
//!
//! -----BEGIN CERTIFICATE-----
//! …
//! -----END CERTIFICATE-----
//! ```

use std::fmt;
use std::str::FromStr;

use crate::anchor::{AnchorError, AnchorKey, TrustAnchor};
use crate::certificate::{Certificate, CertificateError, CertificateType, Rule, Thumbprint};
use crate::country::Country;
use crate::signature::decode_base64;

const VERSION: &str = "EFGS-Bundle";
const COUNTRY: &str = "Country";
const TYPE: &str = "Type";
const THUMBPRINT: &str = "Thumbprint";
const WAIVED: &str = "Waived";
const OPERATOR_SIGNATURE: &str = "Operator-Signature";
const REGISTRATION_SIGNATURE: &str = "Registration-Signature";
const WAIVED_BY: &str = "Waived-By";
const WAIVED_BECAUSE: &str = "Waived-Because";
const HEADERS: [&str; 9] = [
    VERSION,
    COUNTRY,
    TYPE,
    THUMBPRINT,
    WAIVED,
    WAIVED_BY,
    WAIVED_BECAUSE,
    OPERATOR_SIGNATURE,
    REGISTRATION_SIGNATURE,
];

/// A certificate, what it is registered for, and the trust anchor's signatures.
///
/// A bundle that was parsed is well-formed; only [`Bundle::verify`] says that the operator made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The country that may use the certificate.
    pub country: Country,
    /// What it may be used for.
    pub kind: CertificateType,
    /// The certificate.
    pub certificate: Certificate,
    /// Rules that the certificate breaks and that the operator waived. A note for people; not signed.
    pub waived: Vec<Rule>,
    /// Who waived them; one line, possibly empty.
    pub waived_by: String,
    /// Why; one line, possibly empty.
    pub waived_because: String,
    /// The anchor's signature over the certificate's PEM text, in base64.
    pub operator_signature: String,
    /// The anchor's signature over country, type and thumbprint, in base64.
    pub registration_signature: String,
}

/// Why a text is not an onboarding bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// A line before the certificate is not `Name: value`.
    #[error("line {line} of the bundle is not of the form \"Name: value\"")]
    NotAHeader {
        /// Counted from 1.
        line: usize,
    },
    /// A header that does not exist.
    #[error("line {line} of the bundle has the unknown header {name:?}")]
    UnknownHeader {
        /// Counted from 1.
        line: usize,
        /// The header.
        name: String,
    },
    /// A header occurs twice.
    #[error("line {line} of the bundle repeats the header {name}")]
    RepeatedHeader {
        /// Counted from 1.
        line: usize,
        /// The header.
        name: &'static str,
    },
    /// A header is missing.
    #[error("the bundle has no header {0}")]
    MissingHeader(&'static str),
    /// A header's value is none that it can have.
    #[error("the bundle's header {name} is wrong: {reason}")]
    InvalidHeader {
        /// The header.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate below the headers is unusable.
    #[error("the bundle's certificate is unusable: {0}")]
    Certificate(#[from] CertificateError),
    /// The thumbprint in the header belongs to another certificate.
    #[error("the bundle names thumbprint {named}, but its certificate has {actual}")]
    OtherThumbprint {
        /// As the header says.
        named: Thumbprint,
        /// As the certificate says.
        actual: Thumbprint,
    },
}

impl Bundle {
    /// Signs a certificate for a country and a use. Whether it passes the rules is the caller's to check, see
    /// [`Certificate::check`].
    ///
    /// # Errors
    /// When the anchor cannot sign.
    pub fn sign(
        anchor: &AnchorKey,
        country: Country,
        kind: CertificateType,
        certificate: Certificate,
        waived: Vec<Rule>,
    ) -> Result<Self, AnchorError> {
        let operator_signature = anchor.sign_operator(certificate.pem())?;
        let registration_signature = anchor.sign_registration(country, kind, certificate.thumbprint())?;
        let (waived_by, waived_because) = (String::new(), String::new());
        Ok(Self {
            country,
            kind,
            certificate,
            waived,
            waived_by,
            waived_because,
            operator_signature,
            registration_signature,
        })
    }

    /// Verifies both signatures against the anchor.
    ///
    /// # Errors
    /// Names the signature that does not verify.
    pub fn verify(&self, anchor: &TrustAnchor) -> Result<(), AnchorError> {
        anchor.verify_operator_signature(self.certificate.pem(), &self.operator_signature)?;
        let thumbprint = self.certificate.thumbprint();
        anchor.verify_registration(self.country, self.kind, thumbprint, &self.registration_signature)
    }
}

impl fmt::Display for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{VERSION}: 1")?;
        writeln!(f, "{COUNTRY}: {}", self.country)?;
        writeln!(f, "{TYPE}: {}", self.kind)?;
        writeln!(f, "{THUMBPRINT}: {}", self.certificate.thumbprint())?;
        if !self.waived.is_empty() {
            let names: Vec<_> = self.waived.iter().map(|rule| rule.as_str()).collect();
            writeln!(f, "{WAIVED}: {}", names.join(", "))?;
        }
        for (name, text) in [(WAIVED_BY, &self.waived_by), (WAIVED_BECAUSE, &self.waived_because)] {
            if !text.is_empty() {
                writeln!(f, "{name}: {}", one_line(text))?;
            }
        }
        writeln!(f, "{OPERATOR_SIGNATURE}: {}", self.operator_signature)?;
        writeln!(f, "{REGISTRATION_SIGNATURE}: {}", self.registration_signature)?;
        write!(f, "\n{}", self.certificate.pem())
    }
}

impl FromStr for Bundle {
    type Err = BundleError;

    /// Reads a bundle. The order of the headers does not matter, lines may end in CR LF, and empty lines
    /// before the headers are skipped; anything else unknown, repeated or missing is an error.
    fn from_str(text: &str) -> Result<Self, BundleError> {
        let (headers, certificate) = Headers::split(text)?;
        if headers.required(VERSION)? != "1" {
            return Err(invalid(VERSION, "only version 1 is known"));
        }
        let country = headers.parse(COUNTRY)?;
        let kind = headers.parse(TYPE)?;
        let named: Thumbprint = headers.parse(THUMBPRINT)?;
        let waived = (headers.get(WAIVED).unwrap_or_default().split(','))
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(|name| name.parse().map_err(|e| invalid(WAIVED, e)))
            .collect::<Result<_, _>>()?;
        let operator_signature = headers.signature(OPERATOR_SIGNATURE)?;
        let registration_signature = headers.signature(REGISTRATION_SIGNATURE)?;
        let certificate = Certificate::from_pem(certificate)?;
        if certificate.thumbprint() != named {
            return Err(BundleError::OtherThumbprint { named, actual: certificate.thumbprint() });
        }
        let text = |name| one_line(headers.get(name).unwrap_or_default());
        Ok(Self {
            country,
            kind,
            certificate,
            waived,
            waived_by: text(WAIVED_BY),
            waived_because: text(WAIVED_BECAUSE),
            operator_signature,
            registration_signature,
        })
    }
}

/// The values of [`HEADERS`], in their order.
#[derive(Default)]
struct Headers<'a>([Option<&'a str>; HEADERS.len()]);

impl<'a> Headers<'a> {
    /// Takes the headers up to the empty line after them, and what follows.
    fn split(text: &'a str) -> Result<(Self, &'a str), BundleError> {
        let mut headers = Self::default();
        let mut rest = text.trim_start();
        let mut line = 1 + text[..text.len() - rest.len()].matches('\n').count();
        loop {
            let (header, after) = rest.split_once('\n').unwrap_or((rest, ""));
            rest = after;
            if header.trim().is_empty() {
                return Ok((headers, rest));
            }
            let (name, value) = header.split_once(':').ok_or(BundleError::NotAHeader { line })?;
            let index = (HEADERS.iter().position(|known| *known == name))
                .ok_or_else(|| BundleError::UnknownHeader { line, name: name.to_owned() })?;
            if headers.0[index].replace(value.trim()).is_some() {
                return Err(BundleError::RepeatedHeader { line, name: HEADERS[index] });
            }
            line += 1;
        }
    }

    fn get(&self, name: &'static str) -> Option<&'a str> {
        HEADERS.iter().zip(self.0).find(|(known, _)| **known == name).and_then(|(_, value)| value)
    }

    fn required(&self, name: &'static str) -> Result<&'a str, BundleError> {
        self.get(name).ok_or(BundleError::MissingHeader(name))
    }

    fn parse<T: FromStr<Err: fmt::Display>>(&self, name: &'static str) -> Result<T, BundleError> {
        self.required(name)?.parse().map_err(|e| invalid(name, e))
    }

    fn signature(&self, name: &'static str) -> Result<String, BundleError> {
        let value = self.required(name)?;
        match decode_base64(value) {
            Some(bytes) if !bytes.is_empty() => Ok(value.to_owned()),
            _ => Err(invalid(name, "it is not base64")),
        }
    }
}

/// A text without line breaks, which would begin another header.
fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

fn invalid(name: &'static str, reason: impl fmt::Display) -> BundleError {
    BundleError::InvalidHeader { name, reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
