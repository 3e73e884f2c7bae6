//! The forms in which a certificate arrives: PEM, DER, PKCS#12.

use openssl::pkcs12::{ParsedPkcs12_2, Pkcs12};
use openssl::pkey::{PKey, Private};

use super::{Certificate, CertificateError};
use crate::signature::{ber, decode_base64};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// See [`Certificate::from_file_contents`].
pub(super) fn read(bytes: &[u8], password: Option<&str>) -> Result<Certificate, CertificateError> {
    if bytes.windows(11).any(|window| window == b"-----BEGIN ") {
        return Certificate::from_pem(bytes);
    }
    // Both binary forms are a SEQUENCE; PKCS#12 begins with its version, a certificate with a SEQUENCE.
    let first = ber::Reader::new(bytes).read().and_then(|outer| outer.children().read());
    if first.is_ok_and(|element| element.tag == ber::INTEGER) {
        return from_pkcs12(bytes, password).map(|(certificate, _)| certificate);
    }
    Certificate::from_der(bytes)
}

/// Opens a PKCS#12 file: its one certificate (the private key's, where there is a key) and the private key.
///
/// # Errors
/// When the password is missing or wrong, or the file holds no certificate or several without a key.
pub(crate) fn from_pkcs12(
    bytes: &[u8],
    password: Option<&str>,
) -> Result<(Certificate, Option<PKey<Private>>), CertificateError> {
    let unreadable = |e: openssl::error::ErrorStack| CertificateError::Pkcs12(e.to_string());
    let refused = |e: openssl::error::ErrorStack| {
        let is = |reason| e.errors().iter().any(|e| e.reason() == Some(reason));
        match password {
            _ if is("unsupported") => CertificateError::OutdatedEncryption,
            None if is("mac verify failure") => CertificateError::PasswordNeeded,
            Some(_) if is("mac verify failure") => CertificateError::WrongPassword,
            _ => unreadable(e),
        }
    };
    let sealed = Pkcs12::from_der(bytes).map_err(unreadable)?;
    let parsed = sealed.parse2(password.unwrap_or_default()).map_err(refused)?;
    let ParsedPkcs12_2 { cert, pkey, ca } = parsed;
    let others: Vec<_> = ca.into_iter().flatten().collect();
    let x509 = match (cert, others.as_slice()) {
        (Some(certificate), _) => certificate,
        (None, [only]) => only.clone(),
        (None, []) => return Err(CertificateError::Pkcs12("it holds no certificate".into())),
        (None, several) => return Err(CertificateError::SeveralCertificates(several.len())),
    };
    Ok((Certificate::from_der(&x509.to_der().map_err(unreadable)?)?, pkey))
}

/// The DER bytes of the only certificate in a PEM text.
pub(super) fn pem_to_der(pem: &[u8]) -> Result<Vec<u8>, CertificateError> {
    let pem = std::str::from_utf8(pem).map_err(|_| CertificateError::NotPem("not a text"))?;
    let (_, after) = pem.split_once(BEGIN).ok_or(CertificateError::NotPem("no BEGIN CERTIFICATE line"))?;
    let (body, rest) = after.split_once(END).ok_or(CertificateError::NotPem("no END CERTIFICATE line"))?;
    let others = rest.matches(BEGIN).count();
    if others > 0 {
        return Err(CertificateError::SeveralCertificates(others + 1));
    }
    if !rest.trim_ascii().is_empty() {
        return Err(CertificateError::TrailingData(rest.trim_ascii().len()));
    }
    decode_base64(body).ok_or(CertificateError::NotPem("its base64 is damaged"))
}
