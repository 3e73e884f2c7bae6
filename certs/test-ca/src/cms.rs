//! Batch signatures in the shapes that real backends produce, and in some that a gateway must refuse.
//!
//! A well-behaved signature comes from [`Identity::signer`](crate::Identity::signer).

use efgs_protocol::certificate::Certificate;
use openssl::base64::encode_block;
use openssl::cms::{CMSOptions, CmsContentInfo};
use openssl::pkey::PKey;
use openssl::stack::Stack;
use openssl::x509::X509;

use crate::{Error, Identity};

/// How a signature differs from the usual one: DER, detached, with signed attributes, the signer named by
/// issuer and serial number, and only the signer's certificate inside.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// Sign the content itself, without signed attributes.
    pub no_attributes: bool,
    /// Name the signer by its subject key identifier.
    pub key_identifier: bool,
    /// Leave the signer's certificate out.
    pub no_certificate: bool,
    /// Send the content along, which a gateway refuses.
    pub attached: bool,
    /// Certificates that have nothing to do with the signature.
    pub other_certificates: Vec<Certificate>,
    /// BER: indefinite lengths, and octet strings in pieces, wherever the rules permit them.
    pub ber: bool,
}

/// Signs in another shape than usual; the result is base64 like a `batchSignature`.
///
/// # Errors
/// When OpenSSL fails.
pub fn sign(identity: &Identity, signed_bytes: &[u8], shape: &Shape) -> Result<String, Error> {
    let mut options = CMSOptions::BINARY | CMSOptions::NOSMIMECAP;
    options.set(CMSOptions::NOATTR, shape.no_attributes);
    options.set(CMSOptions::USE_KEYID, shape.key_identifier);
    options.set(CMSOptions::CMS_NOCERTS, shape.no_certificate);
    options.set(CMSOptions::DETACHED, !shape.attached);
    let mut others = Stack::new()?;
    for certificate in &shape.other_certificates {
        others.push(X509::from_der(certificate.der())?)?;
    }
    let x509 = X509::from_der(identity.certificate.der())?;
    let key = PKey::private_key_from_pem(identity.key_pem.as_bytes())?;
    let cms = CmsContentInfo::sign(Some(&x509), Some(&key), Some(&others), Some(signed_bytes), options)?;
    let der = cms.to_der()?;
    Ok(encode_block(&if shape.ber { to_ber(&der, Inside::Signature) } else { der }))
}

/// Certificates are compared by their exact bytes and stay as they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Signature,
    Certificates,
}

/// Rewrites DER, as OpenSSL makes it, into the loosest BER. A SignedData's certificates are the only field `[0]`
/// whose first child is a SEQUENCE of a SEQUENCE of a field `[0]`.
fn to_ber(der: &[u8], inside: Inside) -> Vec<u8> {
    let mut ber = Vec::new();
    let mut rest = der;
    while let [tag, ..] = *rest {
        let (header, length) = header(rest);
        let (element, after) = rest.split_at(header + length);
        let content = &element[header..];
        rest = after;
        match tag {
            _ if inside == Inside::Certificates => ber.extend_from_slice(element),
            0x04 if length < 0x80 => {
                let (first, second) = content.split_at(length / 2);
                ber.extend_from_slice(&[0x24, 0x80, 0x04, first.len() as u8]);
                ber.extend_from_slice(first);
                ber.extend_from_slice(&[0x04, second.len() as u8]);
                ber.extend_from_slice(second);
                ber.extend_from_slice(&[0, 0]);
            }
            tag if tag & 0x20 != 0 => {
                let inside = if tag == 0xa0 && holds_certificates(content) {
                    Inside::Certificates
                } else {
                    Inside::Signature
                };
                ber.extend_from_slice(&[tag, 0x80]);
                ber.extend(to_ber(content, inside));
                ber.extend_from_slice(&[0, 0]);
            }
            _ => ber.extend_from_slice(element),
        }
    }
    ber
}

fn holds_certificates(content: &[u8]) -> bool {
    let mut at = content;
    for expected in [0x30, 0x30, 0xa0] {
        if at.first() != Some(&expected) {
            return false;
        }
        at = &at[header(at).0..];
    }
    true
}

/// The sizes of a DER element's header and content.
fn header(der: &[u8]) -> (usize, usize) {
    match der[1] {
        short @ 0..0x80 => (2, short.into()),
        long => {
            let count = usize::from(long & 0x7f);
            (2 + count, der[2..2 + count].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
        }
    }
}
