//! The forms in which a certificate arrives: PEM, DER, PKCS#12.

use openssl::pkcs12::{ParsedPkcs12_2, Pkcs12};
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

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
        return from_pkcs12(bytes, password).map(|contents| contents.certificate);
    }
    Certificate::from_der(bytes)
}

/// What a PKCS#12 file holds.
pub(crate) struct Pkcs12Contents {
    /// The private key's certificate; without a key the only one.
    pub(crate) certificate: Certificate,
    /// Other certificates beside a private key's: those of its issuers.
    pub(crate) others: Vec<Certificate>,
    pub(crate) key: Option<PKey<Private>>,
}

/// Opens a PKCS#12 file.
///
/// # Errors
/// When the password is missing or wrong, or the file holds no certificate or several without a key.
pub(crate) fn from_pkcs12(bytes: &[u8], password: Option<&str>) -> Result<Pkcs12Contents, CertificateError> {
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
    let read = |x509: X509| Certificate::from_der(&x509.to_der().map_err(unreadable)?);
    let mut others = ca.into_iter().flatten().map(read).collect::<Result<Vec<_>, _>>()?;
    let certificate = match (cert, others.len()) {
        (Some(certificate), _) => read(certificate)?,
        (None, 1) => others.remove(0),
        (None, 0) => return Err(CertificateError::Pkcs12("it holds no certificate".into())),
        (None, several) => return Err(CertificateError::SeveralCertificates(several)),
    };
    Ok(Pkcs12Contents { certificate, others, key: pkey })
}

/// The certificates of a PEM text, in its order; what stands between them is skipped.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<Certificate>, CertificateError> {
    let unreadable = |e: openssl::error::ErrorStack| CertificateError::NotACertificate(e.to_string());
    let stack = X509::stack_from_pem(pem).map_err(unreadable)?;
    stack.iter().map(|x509| Certificate::from_der(&x509.to_der().map_err(unreadable)?)).collect()
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
