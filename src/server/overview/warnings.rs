//! Warnings that need the operator's attention, and notes that need none.

use std::time::Duration;

use chrono::TimeDelta;

use super::{App, Overview};
use crate::{
    health::{Severity, Warning},
    store::{Ending, Subscription, SubscriptionState},
};

/// Warn of a country that is this many batches behind and has not downloaded for [`SILENT`].
const BEHIND: u64 = 3;
const SILENT: TimeDelta = TimeDelta::hours(2);
/// Warn of a country whose last uploads were refused, this many in a row.
const REFUSED: u64 = 3;
/// Collects the warnings, the worst first, and the notes.
pub(super) async fn find(
    app: &App,
    overview: &Overview,
    subscriptions: &[Subscription],
    endings: &[Ending],
) -> (Vec<Warning>, Vec<String>) {
    let problem = |text: String| Warning { severity: Severity::Problem, text };
    let attention = |text: String| Warning { severity: Severity::Attention, text };
    let readiness = app.readiness(Duration::from_secs(2)).await;
    let mut found: Vec<Warning> = readiness.reasons.into_iter().map(problem).collect();
    found.extend(readiness.warnings);
    let mut notes = app.config.warnings();
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
            "the instance {} on {} has not reported for {} minutes: was it killed?",
            instance.id,
            instance.host,
            instance.silent_seconds / 60
        )));
    }
    let hour = overview.at - TimeDelta::hours(1);
    let failed: Vec<&Ending> = endings.iter().filter(|e| e.status >= 500 && e.at >= hour).collect();
    if let Some(newest) = failed.first() {
        found.push(attention(format!(
            "5xx answers in the last hour: {}, the newest {}; the log has the reasons",
            failed.len(),
            newest.error.as_deref().unwrap_or("without a code"),
        )));
    }
    for country in &overview.countries {
        let code = &country.country;
        let refused = &country.refused;
        if refused.uploads >= REFUSED {
            found.push(problem(format!(
                "{code}: its last {} uploads were refused: {}",
                refused.uploads, refused.code
            )));
        }
        // Rounded up, because what is left may be too little for an upload.
        let newest = endings.iter().find(|e| e.upload && e.country.as_ref() == Some(code));
        let over = newest.is_some_and(|e| {
            e.error.as_deref() == Some("quota-exceeded") && e.at.date_naive() == overview.at.date_naive()
        });
        if over || country.quota_percent >= 100.0 {
            found.push(attention(format!("{code} has used up its quota of today")));
        }
        let silent = country.last_download.is_none_or(|at| overview.at - at > SILENT);
        match country.behind {
            Some(behind) if behind >= BEHIND && silent => {
                found.push(attention(format!("{code} is {behind} batches behind and does not download")));
            }
            _ => {}
        }
        if country.certificate_days.is_none() {
            found.push(attention(format!("{code} has no active certificate: it cannot take part")));
            continue;
        }
        for kind in &country.certificates_missing {
            let effect = if *kind == "SIGNING" { "its uploads are refused" } else { "it cannot call" };
            found.push(attention(format!("{code} has no active {kind} certificate: {effect}")));
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
                notes.push(format!("the callback {name} of {country} was paused by the operator"));
            }
        }
    }
    found.sort_by_key(|warning| warning.severity);
    (found, notes)
}
