//! The parts of a CMS SignedData (RFC 5652 §5) that a detached signature by one signer needs.

use std::fmt;

use cms::attr::MessageDigest;
use cms::cert::IssuerAndSerialNumber;
use cms::signed_data::{SignedAttributes, SignerIdentifier, SignerInfo};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5911::{ID_CONTENT_TYPE, ID_DATA, ID_MESSAGE_DIGEST, ID_SIGNED_DATA};
use der::{Decode as _, Encode as _};
use x509_cert::attr::AttributeValue;
use x509_cert::name::Name;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};
use x509_parser::x509::AlgorithmIdentifier;

use super::SignatureError;
use super::ber::{self, BerError, Element, Reader};
use crate::certificate::{AlgorithmError, Hash, Scheme};

/// The context-specific tags `[0]` and `[1]`, constructed.
const FIELD_0: u8 = 0xa0;
const FIELD_1: u8 = 0xa1;
/// The context-specific tag `[0]`, primitive.
const FIELD_0_PRIMITIVE: u8 = 0x80;

/// A SignedData with exactly one signer and no content.
pub(super) struct SignedData<'a> {
    certificates: Vec<Element<'a>>,
    signer: SignerInfo,
}

/// The signed attributes: what the signature covers in the place of the content.
pub(super) struct SignedContent {
    /// The SET OF Attribute in DER, which is what is signed (RFC 5652 §5.4).
    pub(super) der: Vec<u8>,
    pub(super) message_digest: MessageDigest,
}

impl<'a> SignedData<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, SignatureError> {
        let mut outer = Reader::new(bytes);
        let mut content_info = outer.expect(ber::SEQUENCE)?.children();
        outer.finish()?;
        if content_info.expect(ber::OID)?.content != ID_SIGNED_DATA.as_bytes() {
            return Err(not_cms("its content is of another type"));
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
        if content_type.content != ID_DATA.as_bytes() {
            return Err(SignatureError::ContentTypeNotData);
        }
        let certificates =
            certificates.map(|set| set.children().collect::<Result<Vec<_>, _>>()).transpose()?;
        match signers.as_slice() {
            [only] => {
                Ok(Self { certificates: certificates.unwrap_or_default(), signer: signer_info(*only)? })
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
                Ok((_, certificate)) if names(&self.signer.sid, &certificate) => return Ok(element.raw),
                Ok(_) => {}
                Err(_) => unreadable += 1,
            }
        }
        Err(SignatureError::CertificateMissing { present: self.certificates.len(), unreadable })
    }

    /// The hash of the content, for the messageDigest attribute.
    pub(super) fn digest(&self) -> Result<Hash, SignatureError> {
        read_algorithm(&self.signer.digest_alg, Hash::read)
    }

    /// How the signature was made. Its own hash may differ from `digest`.
    pub(super) fn scheme(&self, digest: Hash) -> Result<Scheme, SignatureError> {
        read_algorithm(&self.signer.signature_algorithm, |algorithm| Scheme::read(algorithm, Some(digest)))
    }

    /// The signed attributes, if there are any.
    pub(super) fn signed_attributes(&self) -> Result<Option<SignedContent>, SignatureError> {
        let Some(attributes) = &self.signer.signed_attrs else { return Ok(None) };
        if attribute(attributes, ID_CONTENT_TYPE)? != Some(&ID_DATA.into()) {
            return Err(SignatureError::ContentTypeNotData);
        }
        let message_digest =
            attribute(attributes, ID_MESSAGE_DIGEST)?.ok_or(SignatureError::MessageDigestMissing)?;
        let message_digest = message_digest.decode_as().map_err(not_cms)?;
        Ok(Some(SignedContent { der: attributes.to_der().map_err(not_cms)?, message_digest }))
    }

    /// The signature value.
    pub(super) fn signature(&self) -> &[u8] {
        self.signer.signature.as_bytes()
    }
}

/// Reads a SignerInfo from its DER form. Its unsigned attributes are ignored, so they are left empty: nothing
/// in them may make a signature unreadable. A serial number beyond 21 octets does (RFC 5280 permits 20).
fn signer_info(element: Element<'_>) -> Result<SignerInfo, SignatureError> {
    if element.tag != ber::SEQUENCE {
        return Err(BerError::Unexpected.into());
    }
    let mut fields = Vec::with_capacity(element.content.len());
    for (position, field) in element.children().enumerate() {
        let field = field?;
        fields.extend(match field.tag {
            // The second field's [0] is a key identifier in pieces; a later one holds the signed attributes.
            FIELD_0 if position == 1 => ber::der(FIELD_0_PRIMITIVE, &field.octets()?),
            FIELD_1 => ber::der(FIELD_1, &[]),
            _ => field.to_der()?,
        });
    }
    SignerInfo::from_der(&ber::der(ber::SEQUENCE, &fields)).map_err(not_cms)
}

fn names(id: &SignerIdentifier, certificate: &X509Certificate<'_>) -> bool {
    match id {
        SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber { issuer, serial_number }) => {
            serial_number.as_bytes() == certificate.raw_serial() && same_name(issuer, certificate.issuer())
        }
        SignerIdentifier::SubjectKeyIdentifier(id) => certificate.iter_extensions().any(|extension| {
            matches!(extension.parsed_extension(), ParsedExtension::SubjectKeyIdentifier(key) if key.0 == id.0.as_bytes())
        }),
    }
}

/// Whether two distinguished names are the same. Some libraries build the signer identifier anew from the
/// name's text and so change string types; that is no other name. Nothing rests on this comparison: the
/// signature must verify with the key of the certificate that it finds.
fn same_name(name: &Name, other: &X509Name<'_>) -> bool {
    let attributes = name.iter().map(|attribute| (attribute.oid.as_bytes(), attribute.value.value()));
    let others = other.iter_attributes().map(|other| (other.attr_type().as_bytes(), other.as_slice()));
    attributes.eq(others)
}

/// The only value of the only attribute of this type.
fn attribute(
    attributes: &SignedAttributes,
    kind: ObjectIdentifier,
) -> Result<Option<&AttributeValue>, SignatureError> {
    let mut found = attributes.iter().filter(|attribute| attribute.oid == kind);
    let Some(attribute) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(not_cms("a signed attribute occurs twice"));
    }
    match attribute.values.as_slice() {
        [only] => Ok(Some(only)),
        _ => Err(not_cms("a signed attribute has not exactly one value")),
    }
}

/// Hands an algorithm identifier to those who read it from certificates too.
fn read_algorithm<T>(
    algorithm: &AlgorithmIdentifierOwned,
    read: impl FnOnce(&AlgorithmIdentifier<'_>) -> Result<T, AlgorithmError>,
) -> Result<T, SignatureError> {
    let der = algorithm.to_der().map_err(not_cms)?;
    match AlgorithmIdentifier::from_der(&der) {
        Ok((_, algorithm)) => Ok(read(&algorithm)?),
        Err(_) => Err(not_cms("an algorithm identifier is malformed")),
    }
}

fn not_cms(why: impl fmt::Display) -> SignatureError {
    SignatureError::NotCms(why.to_string())
}
