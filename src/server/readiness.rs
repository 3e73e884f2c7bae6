//! Whether the gateway is ready.

use std::time::Duration;

use super::App;
use crate::health::{Severity, Trouble, Warning, short};

/// A certificate that expires within this many days is a warning.
const WARN_DAYS: i64 = 30;
/// Fewer days than these that can be stored ahead are a warning. The expiry job keeps seven.
const FEW_DAYS: i64 = 3;

/// The answer of the readiness check.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// Why the instance is not ready; empty if it is.
    pub reasons: Vec<String>,
    /// What the operator should look at soon.
    pub warnings: Vec<Warning>,
    /// Whether the database answers.
    pub database: bool,
    /// Whether reads are served although the database does not answer: they would be if the instance were not ready for
    /// another reason.
    pub serves_reads: bool,
}

impl Readiness {
    /// What `/health/ready` says: `up`, `degraded` (readers are served, uploads are not) or `down`.
    pub fn status(&self) -> &'static str {
        match (self.reasons.is_empty(), self.serves_reads) {
            (true, _) => "up",
            (false, true) => "degraded",
            (false, false) => "down",
        }
    }
}

/// How long it is waited for the database when reads can be served without it: load balancers do not wait longer.
const SHORT: Duration = Duration::from_secs(2);

impl App {
    /// Notes what the last reading of the registry and of the withdrawals has shown.
    pub(super) fn watch_decisions(&self) {
        let rejected = self.trust.rejected();
        let text = (!rejected.is_empty()).then(|| rejected.join("; "));
        self.health.set_trouble(Trouble::RegistryRows, text);
        let mut undone = self.trust.undone();
        undone.extend(
            self.chain.undone_withdrawals().iter().map(|id| format!("the withdrawal of upload {id}")),
        );
        let text = (!undone.is_empty()).then(|| undone.join("; "));
        if self.health.set_trouble(Trouble::Undone, text.clone())
            && let Some(what) = text
        {
            tracing::error!(what, "{}", Trouble::Undone.text());
        }
    }

    /// Checks this instance. Waits for the database for at most `patience`.
    pub async fn readiness(&self, patience: Duration) -> Readiness {
        let mut readiness = Readiness::default();
        if let Err(error) = self.trust.registry() {
            readiness.reasons.push(error.to_string());
        }
        let spool = self.access_log.spool_state();
        let records = spool.as_ref().is_some_and(|spool| spool.refusing.is_none());
        let reads =
            records && !self.config.trust.read_grace.is_zero() && self.trust.registry_for_reads().is_ok();
        let patience = if reads { patience.min(SHORT) } else { patience };
        let store = self.store.clone();
        let ping = self.workers.run(async move { store.ping().await });
        match tokio::time::timeout(patience, ping).await {
            Ok(Ok(Ok(()))) => readiness.database = true,
            Ok(Ok(Err(error))) => {
                readiness.serves_reads = reads && error.is_unreachable();
                readiness.reasons.push(error.to_string());
            }
            Ok(Err(error)) => readiness.reasons.push(error.to_string()),
            Err(_) => {
                readiness.serves_reads = reads;
                readiness.reasons.push(format!("the database does not answer within {}", short(patience)));
            }
        }
        if !self.chain.is_loaded() {
            let batches = self.chain.len();
            readiness.reasons.push(format!("the chain of batches is being loaded: {batches} so far"));
        }
        let attention = |text: String| Warning { severity: Severity::Attention, text };
        for warning in self.health.jobs().into_iter().filter_map(|job| job.stalled) {
            match warning.severity {
                Severity::Problem => readiness.reasons.push(warning.text),
                Severity::Attention => readiness.warnings.push(warning),
            }
        }
        if let Some(journal) = self.journal.journal() {
            let refused = journal.failing().map(|error| format!("uploads are refused: {error}"));
            readiness.warnings.extend(refused.map(|text| Warning { severity: Severity::Problem, text }));
            readiness.warnings.extend(journal.warnings().into_iter().map(attention));
        }
        if let Some(spool) = spool {
            readiness.reasons.extend(spool.refusing.map(|why| format!("requests are refused: {why}")));
            if spool.bytes > spool.max_bytes / 2 {
                readiness.warnings.push(attention(format!(
                    "the spool of the access log is more than half full: {} records wait for the database",
                    spool.records
                )));
            }
        }
        let trouble = |(what, why): (Trouble, String)| Warning {
            severity: what.severity(),
            text: format!("{}: {why}", what.text()),
        };
        readiness.warnings.extend(self.health.troubles().into_iter().map(trouble));
        let database = self.health.database();
        let remedy = "the gateway's account needs the right to ALTER its tables, or `efgs-gateway migrate` must be run \
                      each day with an account that has it: see docs/operations.md";
        match database.days_ahead {
            Some(days @ ..1) => {
                let day = if days < 0 { "today" } else { "tomorrow" };
                readiness.reasons.push(format!("the database has no partition for {day}: {remedy}"));
            }
            Some(days @ ..FEW_DAYS) => {
                let text = format!("the database has partitions for {days} more days only: {remedy}");
                readiness.warnings.push(attention(text));
            }
            _ => {}
        }
        readiness.warnings.extend(database.too_small.into_iter().map(attention));
        let now = self.clock.now();
        for certificate in self.health.certificates().iter() {
            let name = certificate.name();
            match certificate.days_left(now) {
                ..=0 if certificate.kind.is_vital() => {
                    readiness.serves_reads = false;
                    readiness.reasons.push(format!("{name} has expired"));
                }
                ..=0 => readiness.warnings.push(attention(format!("{name} has expired"))),
                days @ 1..=WARN_DAYS => {
                    readiness.warnings.push(attention(format!("{name} expires in {days} days or less")));
                }
                _ => {}
            }
        }
        readiness
    }
}
