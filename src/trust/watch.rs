//! Warns before a certificate expires: 60, 30, 14 and 7 days ahead, and when it has.

use std::{collections::HashMap, path::Path, sync::Mutex};

use chrono::{DateTime, Utc};
use efgs_protocol::certificate::{Certificate, Thumbprint};

use super::Registry;
use crate::{config::Config, telemetry};

/// Days ahead at which a warning is logged; at 0 it has expired.
const DAYS: [i64; 5] = [60, 30, 14, 7, 0];

/// Remembers what has been said, so that each warning is logged once.
#[derive(Debug, Default)]
pub struct ExpiryWatch(Mutex<HashMap<Thumbprint, i64>>);

impl ExpiryWatch {
    /// Looks at every registered certificate that is not revoked, the trust anchor, and the gateway's own.
    pub fn look(&self, registry: &Registry, config: &Config, now: DateTime<Utc>) {
        for entry in registry.entries().filter(|entry| entry.revoked_at.is_none()) {
            self.judge(entry.country.as_str(), entry.kind.as_str(), &entry.certificate, now);
        }
        let own = |path: &Path| {
            let text = std::fs::read_to_string(path).ok()?;
            // The first of a chain is the gateway's; those behind it are its issuer's to look after.
            let end = "-----END CERTIFICATE-----";
            let first = text.find(end).map(|at| &text[..at + end.len()])?;
            Certificate::from_pem(first).ok()
        };
        let files = [
            ("TRUST-ANCHOR", Some(&config.trust.anchor)),
            ("TLS", config.tls.as_ref().map(|tls| &tls.certificate)),
            ("CALLBACK-CLIENT", config.callback.as_ref().map(|callback| &callback.certificate)),
        ];
        for (kind, path) in files {
            if let Some(certificate) = path.and_then(|path| own(path)) {
                self.judge("-", kind, &certificate, now);
            }
        }
    }

    fn judge(&self, country: &str, kind: &str, certificate: &Certificate, now: DateTime<Utc>) {
        let thumbprint = certificate.thumbprint();
        let left = days_left(certificate.not_after(), now);
        let labels = [
            ("country", country.to_owned()),
            ("type", kind.to_owned()),
            ("thumbprint", thumbprint.to_string()),
        ];
        metrics::gauge!(telemetry::CERTIFICATE_DAYS_LEFT, &labels).set(left as f64);
        let Some(threshold) = threshold(left) else { return };
        let Ok(mut said) = self.0.lock() else { return };
        if said.get(&thumbprint).is_some_and(|said| *said <= threshold) {
            return;
        }
        said.insert(thumbprint, threshold);
        let until = certificate.not_after();
        if threshold == 0 {
            tracing::error!(country, kind, %thumbprint, %until, "a certificate has expired; import a new one");
        } else {
            tracing::warn!(country, kind, %thumbprint, %until, days_left = left, "a certificate expires soon; ask for a new one");
        }
    }
}

/// Whole days until the certificate expires; 0 or less once it has.
pub fn days_left(not_after: DateTime<Utc>, now: DateTime<Utc>) -> i64 {
    let left = not_after - now;
    if left < chrono::TimeDelta::zero() { left.num_days().min(0) } else { left.num_days() + 1 }
}

/// The warning that so many days deserve: the smallest of 60, 30, 14, 7 and 0 that is not less.
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
