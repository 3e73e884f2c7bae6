//! Any bytes as a certificate: DER, PEM or PKCS#12. What is understood can be written and read again.
#![no_main]

use chrono::DateTime;
use efgs_protocol::certificate::{Certificate, CertificateType};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Certificate::from_file_contents(bytes, Some("geheim"));
    for certificate in [Certificate::from_der(bytes), Certificate::from_pem(bytes)].into_iter().flatten() {
        assert_eq!(Certificate::from_pem(certificate.pem()).as_ref(), Ok(&certificate));
        assert_eq!(Certificate::from_der(certificate.der()).as_ref(), Ok(&certificate));
        let _ = certificate.check(certificate.country().ok(), CertificateType::Signing, DateTime::UNIX_EPOCH);
    }
});
