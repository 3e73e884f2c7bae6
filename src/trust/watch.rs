//! Warns before a certificate expires (60, 30, 14 and 7 days ahead) and when it has expired.

use std::{collections::HashMap, path::Path};

use chrono::{DateTime, Utc};
use efgs_protocol::{
    certificate::{Certificate, Thumbprint},
    country::Country,
};
use parking_lot::Mutex;

use super::Registry;
use crate::{
    config::Config,
    health::{CertificateUse, WatchedCertificate},
};

/// Days ahead at which a warning is logged; 0: expired.
const DAYS: [i64; 5] = [60, 30, 14, 7, 0];

/// Remembers the warnings, so that each is logged once.
#[derive(Debug, Default)]
pub struct ExpiryWatch(Mutex<HashMap<Thumbprint, i64>>);

impl ExpiryWatch {
    /// Checks every registered certificate that is not revoked, those that the gateway has `in_use` (not their
    /// files, which may be newer), and its authorities. Returns all of them.
    pub fn look(
        &self,
        registry: &Registry,
        config: &Config,
        in_use: &[(CertificateUse, Certificate)],
        now: DateTime<Utc>,
    ) -> Vec<WatchedCertificate> {
        let watched = |country, kind, certificate: &Certificate| WatchedCertificate {
            country,
            kind,
            thumbprint: certificate.thumbprint(),
            not_after: certificate.not_after(),
        };
        let registered = registry.entries().filter(|entry| entry.revoked_at.is_none());
        let mut all: Vec<_> = registered
            .map(|entry| {
                watched(Some(entry.country), CertificateUse::Registered(entry.kind), &entry.certificate)
            })
            .collect();
        all.extend(in_use.iter().map(|(kind, certificate)| watched(None, *kind, certificate)));
        let (tls, callback) = (config.tls.as_ref(), config.callback.as_ref());
        let authorities = [
            (CertificateUse::TlsClientCa, tls.and_then(|tls| tls.client_ca.as_ref())),
            (CertificateUse::CallbackCa, callback.and_then(|callback| callback.ca.as_ref())),
            (CertificateUse::DatabaseCa, config.database.tls_ca.as_ref()),
        ];
        for (kind, path) in authorities {
            let certificates = path.map(|path| read(path)).unwrap_or_default();
            all.extend(certificates.iter().map(|certificate| watched(None, kind, certificate)));
        }
        for certificate in &all {
            self.warn(certificate, now);
        }
        all
    }

    fn warn(&self, certificate: &WatchedCertificate, now: DateTime<Utc>) {
        let WatchedCertificate { country, kind, thumbprint, not_after: until } = certificate;
        let left = certificate.days_left(now);
        let Some(threshold) = threshold(left) else { return };
        let mut said = self.0.lock();
        if said.get(thumbprint).is_some_and(|said| *said <= threshold) {
            return;
        }
        said.insert(*thumbprint, threshold);
        let kind = kind.name();
        let country = country.as_ref().map_or("-", Country::as_str);
        if threshold == 0 {
            tracing::error!(country, kind, %thumbprint, %until, "a certificate has expired; import a new one");
        } else {
            tracing::warn!(country, kind, %thumbprint, %until, days_left = left, "a certificate expires soon; ask for a new one");
        }
    }
}

/// All readable certificates of a PEM file.
fn read(path: &Path) -> Vec<Certificate> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive(END).filter_map(|pem| Certificate::from_pem(pem).ok()).collect()
}

/// The warning that is due: the smallest of 60, 30, 14, 7 and 0 that is not below the days left.
pub fn threshold(left: i64) -> Option<i64> {
    DAYS.into_iter().rev().find(|days| left <= *days)
}

#[cfg(test)]
mod tests {
    use super::threshold;

    #[test]
    fn a_warning_falls_into_the_nearest_of_its_steps() {
        let steps = [
            (61, None),
            (60, Some(60)),
            (31, Some(60)),
            (30, Some(30)),
            (14, Some(14)),
            (8, Some(14)),
            (7, Some(7)),
            (1, Some(7)),
            (0, Some(0)),
            (-5, Some(0)),
        ];
        for (left, expected) in steps {
            assert_eq!(threshold(left), expected, "{left}");
        }
    }
}
