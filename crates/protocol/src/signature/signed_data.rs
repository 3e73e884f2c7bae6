//! The parts of a CMS SignedData (RFC 5652 §5) that a detached signature by one signer needs.

use std::borrow::Cow;

use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};
use x509_parser::x509::AlgorithmIdentifier;

use super::SignatureError;
use super::ber::{self, BerError, Element, Reader};
use crate::certificate::{Hash, Scheme};

// The contents of object identifiers in the arc 1.2.840.113549.1 (PKCS), without tag and length.
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4];

/// The context-specific tags [0] and [1], constructed.
const FIELD_0: u8 = 0xa0;
const FIELD_1: u8 = 0xa1;
/// The context-specific tag [0], primitive.
const FIELD_0_PRIMITIVE: u8 = 0x80;

/// A SignedData with exactly one signer and no content.
pub(super) struct SignedData<'a> {
    certificates: Vec<Element<'a>>,
    pub(super) signer: Signer<'a>,
}

/// How a signature names the certificate that made it.
enum SignerId<'a> {
    IssuerAndSerial { issuer: Vec<u8>, serial: &'a [u8] },
    KeyIdentifier(Cow<'a, [u8]>),
}

pub(super) struct Signer<'a> {
    id: SignerId<'a>,
    digest: Vec<u8>,
    attributes: Option<Element<'a>>,
    algorithm: Vec<u8>,
    pub(super) signature: Cow<'a, [u8]>,
}

/// The signed attributes: what the signature covers in the place of the content.
pub(super) struct SignedAttributes<'a> {
    /// The SET OF Attribute in DER, which is what is signed (RFC 5652 §5.4).
    pub(super) der: Vec<u8>,
    pub(super) message_digest: Cow<'a, [u8]>,
}

impl<'a> SignedData<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, SignatureError> {
        let mut outer = Reader::new(bytes);
        let mut content_info = outer.expect(ber::SEQUENCE)?.children();
        outer.finish()?;
        if content_info.expect(ber::OID)?.content != SIGNED_DATA {
            return Err(SignatureError::NotCms("its content is of another type".into()));
        }
        let mut content = content_info.expect(FIELD_0)?.children();
        content_info.finish()?;
        let mut fields = content.expect(ber::SEQUENCE)?.children();
        content.finish()?;

        fields.expect(ber::INTEGER)?; // version
        fields.expect(ber::SET)?; // digest algorithms, which the signer names again
        let mut encapsulated = fields.expect(ber::SEQUENCE)?.children();
        let certificates = fields.optional(FIELD_0)?;
        fields.optional(FIELD_1)?; // revocation lists
        let signers = fields.expect(ber::SET)?.children().collect::<Result<Vec<_>, _>>()?;
        fields.finish()?;

        let content_type = encapsulated.expect(ber::OID)?;
        if encapsulated.optional(FIELD_0)?.is_some() {
            return Err(SignatureError::ContentPresent);
        }
        encapsulated.finish()?;
        if content_type.content != DATA {
            return Err(SignatureError::ContentTypeNotData);
        }
        let certificates =
            certificates.map(|set| set.children().collect::<Result<Vec<_>, _>>()).transpose()?;
        match signers.as_slice() {
            [only] => {
                Ok(Self { certificates: certificates.unwrap_or_default(), signer: Signer::parse(*only)? })
            }
            [] => Err(SignatureError::NoSigner),
            several => Err(SignatureError::SeveralSigners(several.len())),
        }
    }

    /// The bytes of the certificate that the signer identifier names.
    pub(super) fn signer_certificate(&self) -> Result<&'a [u8], SignatureError> {
        let mut unreadable = 0;
        for element in self.certificates.iter().filter(|element| element.tag == ber::SEQUENCE) {
            match X509Certificate::from_der(element.raw) {
                Ok((_, certificate)) if self.signer.id.names(&certificate) => return Ok(element.raw),
                Ok(_) => {}
                Err(_) => unreadable += 1,
            }
        }
        Err(SignatureError::CertificateMissing { present: self.certificates.len(), unreadable })
    }
}

impl SignerId<'_> {
    fn names(&self, certificate: &X509Certificate<'_>) -> bool {
        match self {
            Self::IssuerAndSerial { issuer, serial } => {
                *serial == certificate.raw_serial() && same_name(issuer, certificate.issuer())
            }
            Self::KeyIdentifier(id) => certificate.iter_extensions().any(|extension| {
                matches!(extension.parsed_extension(), ParsedExtension::SubjectKeyIdentifier(key) if key.0 == id.as_ref())
            }),
        }
    }
}

/// Whether two distinguished names are the same. Some libraries build the signer identifier anew from the
/// name's text and so change string types; that is no other name. Nothing rests on this comparison: the
/// signature must verify with the key of the certificate that it finds.
fn same_name(der: &[u8], name: &X509Name<'_>) -> bool {
    if der == name.as_raw() {
        return true;
    }
    let Ok((_, other)) = X509Name::from_der(der) else { return false };
    let attributes = |name: &X509Name<'_>| -> Vec<(String, Vec<u8>)> {
        name.iter_attributes().map(|a| (a.attr_type().to_id_string(), a.as_slice().to_vec())).collect()
    };
    attributes(&other) == attributes(name)
}

impl<'a> Signer<'a> {
    fn parse(signer_info: Element<'a>) -> Result<Self, SignatureError> {
        if signer_info.tag != ber::SEQUENCE {
            return Err(BerError::Unexpected.into());
        }
        let mut fields = signer_info.children();
        fields.expect(ber::INTEGER)?; // version
        let id = fields.read()?;
        let id = match id.tag {
            ber::SEQUENCE => {
                let mut id = id.children();
                let issuer = id.expect(ber::SEQUENCE)?.to_der()?;
                let serial = id.expect(ber::INTEGER)?.content;
                id.finish()?;
                SignerId::IssuerAndSerial { issuer, serial }
            }
            FIELD_0 | FIELD_0_PRIMITIVE => SignerId::KeyIdentifier(id.octets()?),
            _ => return Err(BerError::Unexpected.into()),
        };
        let digest = fields.expect(ber::SEQUENCE)?.to_der()?;
        let attributes = fields.optional(FIELD_0)?;
        let algorithm = fields.expect(ber::SEQUENCE)?.to_der()?;
        let signature = fields.read()?;
        if signature.tag & !ber::CONSTRUCTED != ber::OCTET_STRING {
            return Err(BerError::Unexpected.into());
        }
        let signature = signature.octets()?;
        fields.optional(FIELD_1)?; // unsigned attributes
        fields.finish()?;
        Ok(Self { id, digest, attributes, algorithm, signature })
    }

    /// The hash of the content, for the messageDigest attribute.
    pub(super) fn digest(&self) -> Result<Hash, SignatureError> {
        Ok(Hash::read(&algorithm(&self.digest)?)?)
    }

    /// How the signature was made. Its own hash may differ from `digest`.
    pub(super) fn scheme(&self, digest: Hash) -> Result<Scheme, SignatureError> {
        Ok(Scheme::read(&algorithm(&self.algorithm)?, Some(digest))?)
    }

    /// The signed attributes, if there are any.
    pub(super) fn signed_attributes(&self) -> Result<Option<SignedAttributes<'a>>, SignatureError> {
        let Some(element) = self.attributes else { return Ok(None) };
        let content_type = attribute(element, CONTENT_TYPE)?;
        if content_type.is_none_or(|value| value.tag != ber::OID || value.content != DATA) {
            return Err(SignatureError::ContentTypeNotData);
        }
        let message_digest =
            attribute(element, MESSAGE_DIGEST)?.ok_or(SignatureError::MessageDigestMissing)?.octets()?;
        Ok(Some(SignedAttributes { der: element.with_tag(ber::SET).to_der()?, message_digest }))
    }
}

/// The only value of the only attribute of this type.
fn attribute<'a>(attributes: Element<'a>, kind: &[u8]) -> Result<Option<Element<'a>>, SignatureError> {
    let mut found = None;
    for element in attributes.children() {
        let mut attribute = element?.children();
        if attribute.expect(ber::OID)?.content != kind {
            continue;
        }
        let mut values = attribute.expect(ber::SET)?.children();
        attribute.finish()?;
        let value = values.read()?;
        values.finish()?;
        if found.replace(value).is_some() {
            return Err(SignatureError::NotCms("a signed attribute occurs twice".into()));
        }
    }
    Ok(found)
}

fn algorithm(der: &[u8]) -> Result<AlgorithmIdentifier<'_>, SignatureError> {
    match AlgorithmIdentifier::from_der(der) {
        Ok((_, algorithm)) => Ok(algorithm),
        Err(_) => Err(SignatureError::NotCms("an algorithm identifier is malformed".into())),
    }
}
