//! What is known of each country: for the operator's page and for `participant list`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use efgs_protocol::certificate::CertificateType;

use super::App;
use crate::{
    health::days_left,
    intake::Usage,
    store::{StoreError, Subscription, SubscriptionState, Traffic},
    trust::Registry,
};

const KINDS: [CertificateType; 3] =
    [CertificateType::Authentication, CertificateType::Signing, CertificateType::Callback];

/// A country that is registered or has data.
#[derive(Clone, Debug, Default)]
pub struct Participant {
    /// Active certificates: authentication, signing, callback.
    pub certificates: [usize; 3],
    /// For each of these types, days until none is left.
    pub days_left: [Option<i64>; 3],
    /// What it has uploaded and downloaded.
    pub traffic: Traffic,
    /// Its daily quota.
    pub quota: Usage,
    /// Callbacks: active, paused after failures, paused by the operator.
    pub callbacks: [usize; 3],
}

impl Participant {
    /// All countries, ordered by code.
    pub async fn all(
        app: &App,
        registry: &Registry,
        subscriptions: &[Subscription],
        now: DateTime<Utc>,
    ) -> Result<BTreeMap<String, Self>, StoreError> {
        let mut participants: BTreeMap<String, Self> = BTreeMap::new();
        for entry in registry.entries() {
            let participant = participants.entry(entry.country.to_string()).or_default();
            if registry.active(entry.certificate.thumbprint(), entry.kind, now).is_err() {
                continue;
            }
            if let Some(kind) = KINDS.iter().position(|kind| *kind == entry.kind) {
                participant.certificates[kind] += 1;
                let left = days_left(entry.certificate.not_after(), now);
                participant.days_left[kind] = participant.days_left[kind].max(Some(left));
            }
        }
        for (country, traffic) in app.store.traffic(now.date_naive()).await? {
            participants.entry(country).or_default().traffic = traffic;
        }
        for subscription in subscriptions {
            let callbacks = &mut participants.entry(subscription.country.to_string()).or_default().callbacks;
            callbacks[match subscription.state {
                SubscriptionState::Active => 0,
                SubscriptionState::Paused => 1,
                SubscriptionState::Held => 2,
            }] += 1;
        }
        for (country, participant) in &mut participants {
            // The column was written from a country code.
            if let Ok(country) = country.parse() {
                participant.quota = app.limits.quota(country);
            }
        }
        Ok(participants)
    }

    /// Days until it has no active certificate of a type that it has now; `None` if it has no certificate.
    pub fn days(&self) -> Option<i64> {
        self.days_left.into_iter().flatten().min()
    }

    /// The required types of which it has no active certificate.
    pub fn missing(&self) -> Vec<&'static str> {
        let needed = KINDS.iter().zip(self.days_left).take(2);
        needed.filter(|(_, left)| left.is_none()).map(|(kind, _)| kind.as_str()).collect()
    }

    /// The used part of the daily quota of keys or of bytes, whichever is more, in percent.
    pub fn quota_percent(&self) -> f64 {
        let Usage { keys, bytes } = self.traffic.today;
        percent(keys, self.quota.keys).max(percent(bytes, self.quota.bytes))
    }
}

/// The used part of a limit in percent, rounded up to a tenth.
pub fn percent(used: u64, limit: u64) -> f64 {
    if limit == 0 { 100.0 } else { (used as f64 * 1000.0 / limit as f64).ceil() / 10.0 }
}
