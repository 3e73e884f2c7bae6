//! What an operator should look at.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;

use super::{Overview, Severity, Warning};
use crate::{
    app::App,
    store::{Subscription, SubscriptionState},
};

/// A country that is as many batches behind, and has not downloaded for [`SILENT`], is told of.
const BEHIND: u64 = 3;
const SILENT: TimeDelta = TimeDelta::hours(2);

/// Finds what is not as it should be, the worst first.
pub(super) async fn find(
    app: &Arc<App>,
    overview: &Overview,
    subscriptions: &[Subscription],
) -> Vec<Warning> {
    let problem = |text: String| Warning { severity: Severity::Problem, text };
    let attention = |text: String| Warning { severity: Severity::Attention, text };
    let readiness = app.readiness(Duration::from_secs(2)).await;
    let mut found: Vec<Warning> = readiness.reasons.into_iter().map(problem).collect();
    found.extend(readiness.warnings.into_iter().map(attention));
    if let Ok(registry) = app.trust.registry() {
        let refused = registry.refused().iter();
        found.extend(
            refused.map(|reason| problem(format!("the registry leaves out a certificate: {reason}"))),
        );
    }
    if let Some(since) = overview.waiting.since {
        let waited = overview.at - since;
        let limit = TimeDelta::from_std(app.config.batching.interval * 3).unwrap_or(TimeDelta::MAX);
        if waited > limit {
            found.push(problem(format!(
                "an upload has waited for a batch for {} minutes",
                waited.num_minutes()
            )));
        }
    }
    for instance in overview.instances.iter().filter(|instance| instance.dead) {
        found.push(attention(format!(
            "the instance {} on {} has not been heard of for {} minutes: was it killed?",
            instance.id,
            instance.host,
            instance.silent_seconds / 60
        )));
    }
    for country in &overview.countries {
        let code = &country.country;
        let silent = country.last_download.is_none_or(|at| overview.at - at > SILENT);
        match country.behind {
            Some(behind) if behind >= BEHIND && silent => {
                found.push(attention(format!("{code} is {behind} batches behind and does not download")));
            }
            _ => {}
        }
        if country.certificate_days.is_none() {
            found.push(attention(format!("{code} has no active certificate: it cannot take part")));
        }
    }
    for subscription in subscriptions {
        let (country, name) = (subscription.country, &subscription.name);
        match subscription.state {
            SubscriptionState::Active => {}
            SubscriptionState::Paused => {
                let error = subscription.last_error.as_deref().unwrap_or("no reason is known");
                found.push(attention(format!("the callback {name} of {country} is paused: {error}")));
            }
            SubscriptionState::Held => {
                found.push(attention(format!("the callback {name} of {country} was paused by the operator")));
            }
        }
    }
    found.extend(app.config.warnings().into_iter().map(attention));
    found.sort_by_key(|warning| warning.severity);
    found
}
