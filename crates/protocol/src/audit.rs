//! Audit entries and their verification (spec §5.7.2).
//!
//! An auditor holds what a country downloaded, the audit entries of the same batch, and the operator's trust
//! anchor, all from different sources. [`verify_batch`] checks that they fit together.

use std::fmt;
use std::ops::{Range, RangeInclusive};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize, Serializer};

use crate::anchor::{AnchorError, TrustAnchor};
use crate::batch_tag::BatchTag;
use crate::canonical::CanonicalKeys;
use crate::certificate::{Certificate, CertificateError, Thumbprint};
use crate::country::Country;
use crate::key::{self, KeyBatch};
use crate::signature::{self, SignatureError, SignaturePolicy};

/// By how much an entry's time may be wrong without being a failure: the clocks of a gateway's instances differ, and
/// some time may pass between an upload's check and its storage.
const LEEWAY: TimeDelta = TimeDelta::hours(1);

/// What an auditor may see of one upload (spec §5.7.2). All fields are always there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// Who uploaded.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub country: Country,
    /// When, UTC with milliseconds.
    #[serde(serialize_with = "milliseconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub uploaded_time: DateTime<Utc>,
    /// PEM of the certificate that the caller showed.
    pub uploader_certificate: String,
    /// SHA-256 of its DER, 64 lower-case hexadecimal digits.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub uploader_thumbprint: Thumbprint,
    /// Base64 of the trust anchor's signature over the PEM text.
    pub uploader_operator_signature: String,
    /// PEM of the certificate that signed the keys.
    pub signing_certificate: String,
    /// SHA-256 of its DER, 64 lower-case hexadecimal digits.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub uploader_signing_thumbprint: Thumbprint,
    /// Base64 of the trust anchor's signature over the PEM text.
    pub signing_certificate_operator_signature: String,
    /// Keys of this upload.
    pub amount: u32,
    /// Base64 of the CMS signature, as received.
    pub batch_signature: String,
}

fn milliseconds<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time_text(time))
}

/// The form of [`AuditEntry::uploaded_time`] on the wire.
pub fn time_text(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Why the entries as a whole do not match the download, so that no entry can be assigned its keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// The entries of the other countries announce more or fewer keys than were downloaded.
    #[error("the audit entries announce {announced} keys, but the download has {downloaded}")]
    Amounts {
        /// The sum of the other countries' amounts.
        announced: u64,
        /// The keys in the download.
        downloaded: u64,
    },
    /// The caller's own entry is before one of another country.
    #[error("audit entry {index} is the caller's own, but entries of other countries follow it")]
    OwnEntryNotLast {
        /// The position of the entry, counted from 0.
        index: usize,
    },
}

/// Which of an entry's two certificates is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The certificate that identified the uploading backend.
    Uploader,
    /// The certificate that signed the upload.
    Signing,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Uploader => "uploader",
            Self::Signing => "signing",
        })
    }
}

/// One thing that is wrong with an audit entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A certificate is unreadable, or its subject has not exactly one country.
    #[error("the {role} certificate is unusable: {error}")]
    Certificate {
        /// Which certificate.
        role: Role,
        /// What is wrong with it.
        error: CertificateError,
    },
    /// A certificate has another thumbprint than the entry says.
    #[error("the {role} certificate has thumbprint {actual}, but the entry names {named}")]
    Thumbprint {
        /// Which certificate.
        role: Role,
        /// As the entry says.
        named: Thumbprint,
        /// As the certificate says.
        actual: Thumbprint,
    },
    /// A certificate belongs to another country than the entry.
    #[error("the {role} certificate belongs to {country}")]
    Country {
        /// Which certificate.
        role: Role,
        /// The country in its subject.
        country: Country,
    },
    /// The operator has not signed a certificate.
    #[error("the {role} certificate is not vouched for: {error}")]
    NotVouchedFor {
        /// Which certificate.
        role: Role,
        /// Why its operator signature does not count.
        error: AnchorError,
    },
    /// A key of the entry has another origin than the entry's country; others of its keys may have, too.
    #[error("key {index} of the download belongs to the entry, but its origin is {origin}")]
    Origin {
        /// The position of the first such key in the download, counted from 0.
        index: usize,
        /// Its origin.
        origin: Country,
    },
    /// At the entry's time, no gateway would have accepted one of its keys; this may also hold for others of its
    /// keys. The keys are signed and the time is not, so the time is wrong.
    #[error(
        "uploadedTime {} cannot be right: key {index} of the download belongs to the entry and began at interval \
         {rolling_start}, and only {earliest} to {latest} was accepted then",
        time_text(.time)
    )]
    KeyTime {
        /// The entry's time.
        time: DateTime<Utc>,
        /// The position of the first such key in the download, counted from 0.
        index: usize,
        /// The interval in which that key began.
        rolling_start: u32,
        /// The first interval that was accepted at the entry's time, an hour of leeway included.
        earliest: u32,
        /// The last one.
        latest: u32,
    },
    /// The entry's time is more than an hour after the batch was formed.
    #[error(
        "uploadedTime {} is later than {}, when the batch had been formed at the latest, as its tag says",
        time_text(.time), time_text(.formed_by)
    )]
    AfterBatch {
        /// The entry's time.
        time: DateTime<Utc>,
        /// When the batch had been formed at the latest.
        formed_by: DateTime<Utc>,
    },
    /// The batch signature does not count for the entry's keys.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The batch signature was made neither with the certificate that the entry shows nor with one of the same
    /// country that it issued (spec appendix A: a dedicated CA).
    #[error("the batch signature was made with certificate {actual}, but the entry names {named}")]
    OtherSigner {
        /// As the entry says.
        named: Thumbprint,
        /// As the signature says.
        actual: Thumbprint,
    },
}

/// What the auditor finds about one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The entry's country.
    pub country: Country,
    /// The position of the entry's keys in the download. `None` for the caller's own uploads: their keys are not
    /// in its download, so only their certificates, and their time against the batch's, were checked.
    pub keys: Option<Range<usize>>,
    /// Whether the batch signature uses SHA-1, which the policy then allowed.
    pub used_sha1: bool,
    /// Everything that is wrong; empty when the entry holds.
    pub failures: Vec<Failure>,
}

impl Verdict {
    /// Whether nothing is wrong with the entry.
    pub fn holds(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Verifies a batch (spec §5.7.2). The amounts of the entries, in order, must divide the downloaded keys exactly.
/// Each part must have a batch signature by the certificate that the entry shows. The signer's certificate must
/// have been valid when the upload was stored. Certificates that have expired or were revoked since are still
/// accepted. Returns one verdict for each entry, in their order.
///
/// The time of an entry is not signed. It is checked against two bounds, with an hour of tolerance. The keys, which
/// the country has signed, could be uploaded at that time: none had yet to begin, none was older than 15 days. If
/// `batch` is given, the time is not after the batch was formed, which its tag says. So a forged time, chosen to
/// make another certificate valid or to change the order of events, is bounded but not excluded.
///
/// `caller` is the country that downloaded. Its own entries come last and have no keys in the download.
///
/// # Errors
/// When the entries as a whole do not match the download.
pub fn verify_batch(
    entries: &[AuditEntry],
    downloaded: &KeyBatch,
    batch: Option<BatchTag>,
    caller: Country,
    anchor: &TrustAnchor,
    policy: SignaturePolicy,
) -> Result<Vec<Verdict>, AuditError> {
    let others = entries.iter().take_while(|entry| entry.country != caller).count();
    if entries[others..].iter().any(|entry| entry.country != caller) {
        return Err(AuditError::OwnEntryNotLast { index: others });
    }
    let announced = entries[..others].iter().map(|entry| u64::from(entry.amount)).sum();
    let downloaded_keys = downloaded.len() as u64;
    if announced != downloaded_keys {
        return Err(AuditError::Amounts { announced, downloaded: downloaded_keys });
    }
    let mut keys = downloaded.iter().enumerate();
    let mut start = 0;
    let verdicts = entries.iter().enumerate().map(|(position, entry)| {
        let mut verdict =
            Verdict { country: entry.country, keys: None, used_sha1: false, failures: Vec::new() };
        entry.check_certificates(anchor, &mut verdict.failures);
        let time = entry.uploaded_time;
        if let Some(formed_by) = batch.map(|batch| batch.formed_by()).filter(|formed| earlier(time) > *formed)
        {
            verdict.failures.push(Failure::AfterBatch { time, formed_by });
        }
        if position < others {
            let end = start + entry.amount as usize;
            verdict.keys = Some(start..end);
            start = end;
            let accepted = entry.accepted_starts();
            let (mut foreign, mut untimely) = (false, false);
            let slice = keys.by_ref().take(entry.amount as usize).map(|(index, key)| {
                // Report one failure of each kind: a forged batch may have any number of them.
                if key.origin != entry.country && !std::mem::replace(&mut foreign, true) {
                    verdict.failures.push(Failure::Origin { index, origin: key.origin });
                }
                let rolling_start = key.rolling_start_interval_number;
                if !accepted.contains(&rolling_start) && !std::mem::replace(&mut untimely, true) {
                    let (earliest, latest) = accepted.clone().into_inner();
                    verdict.failures.push(Failure::KeyTime { time, index, rolling_start, earliest, latest });
                }
                key
            });
            let slice: KeyBatch = slice.collect();
            match entry.check_signature(&slice, policy) {
                Ok(used_sha1) => verdict.used_sha1 = used_sha1,
                Err(failure) => verdict.failures.push(failure),
            }
        }
        verdict
    });
    Ok(verdicts.collect())
}

impl AuditEntry {
    fn check_certificates(&self, anchor: &TrustAnchor, failures: &mut Vec<Failure>) {
        let uploader = (
            Role::Uploader,
            &self.uploader_certificate,
            self.uploader_thumbprint,
            &self.uploader_operator_signature,
        );
        let signing = (
            Role::Signing,
            &self.signing_certificate,
            self.uploader_signing_thumbprint,
            &self.signing_certificate_operator_signature,
        );
        for (role, pem, named, operator_signature) in [uploader, signing] {
            if let Err(error) = anchor.verify_operator_signature(pem, operator_signature) {
                failures.push(Failure::NotVouchedFor { role, error });
            }
            let certificate = match Certificate::from_pem(pem) {
                Ok(certificate) => certificate,
                Err(error) => {
                    failures.push(Failure::Certificate { role, error });
                    continue;
                }
            };
            let actual = certificate.thumbprint();
            if actual != named {
                failures.push(Failure::Thumbprint { role, named, actual });
            }
            match certificate.country() {
                Ok(country) if country != self.country => failures.push(Failure::Country { role, country }),
                Ok(_) => {}
                Err(error) => failures.push(Failure::Certificate { role, error }),
            }
        }
    }

    /// The intervals in which a key may have begun that was uploaded at the entry's time, give or take the leeway.
    fn accepted_starts(&self) -> RangeInclusive<u32> {
        let later = self.uploaded_time.checked_add_signed(LEEWAY).unwrap_or(DateTime::<Utc>::MAX_UTC);
        let earliest = *key::accepted_starts(earlier(self.uploaded_time)).start();
        earliest..=*key::accepted_starts(later).end()
    }

    /// Verifies the batch signature over the entry's keys, and says whether it uses SHA-1.
    fn check_signature(&self, keys: &KeyBatch, policy: SignaturePolicy) -> Result<bool, Failure> {
        let signed_bytes = CanonicalKeys::of(keys).signed_bytes();
        let signed = signature::verify(&self.batch_signature, &signed_bytes, self.uploaded_time, policy)?;
        let (named, actual) = (self.uploader_signing_thumbprint, signed.certificate.thumbprint());
        // A country may have registered its CA. Then the entry shows the CA, and the operator has signed it.
        let issued = || {
            let authority = Certificate::from_pem(&self.signing_certificate).ok();
            let country = signed.certificate.country().ok();
            authority.is_some_and(|ca| signed.certificate.is_issued_by(&ca)) && country == Some(self.country)
        };
        if named != actual && !issued() {
            return Err(Failure::OtherSigner { named, actual });
        }
        Ok(signed.used_sha1)
    }
}

/// A time less the leeway.
fn earlier(time: DateTime<Utc>) -> DateTime<Utc> {
    time.checked_sub_signed(LEEWAY).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

#[cfg(test)]
mod tests;
