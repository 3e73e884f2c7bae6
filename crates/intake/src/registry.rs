//! The registry of certificates, in memory.
//!
//! A database row is valid only if both signatures of the offline trust anchor verify and all its columns agree
//! with the certificate. Any other row is ignored and reported. The registry is reloaded several times per
//! `trust.refresh`. After a whole `trust.refresh` without success every caller is rejected until a reload
//! succeeds, because a revocation could have been missed.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use efgs_protocol::{
    anchor::TrustAnchor,
    certificate::{Certificate, CertificateType, Thumbprint},
    country::Country,
};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

/// A registry row as it is in the database. It is untrusted until its signatures are verified, so nothing of it
/// is parsed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCertificate {
    /// The row's number; uploads refer to it.
    pub id: i64,
    /// SHA-256 of the DER.
    pub thumbprint: Vec<u8>,
    /// AUTHENTICATION, SIGNING or CALLBACK.
    pub kind: String,
    /// The country, two letters.
    pub country: String,
    /// The certificate.
    pub pem: String,
    /// The trust anchor's signature over the PEM text.
    pub operator_signature: String,
    /// The trust anchor's signature over country, type and thumbprint.
    pub registration_signature: String,
    /// Names of the rules that the operator waived, separated by commas.
    pub waived: String,
    /// Who waived the rules.
    pub waived_by: String,
    /// Why they waived them.
    pub waived_because: String,
    /// When it was imported.
    pub imported_at: DateTime<Utc>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A valid registry entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The number of its row.
    pub id: i64,
    /// The certificate.
    pub certificate: Certificate,
    /// The country it was registered for, which is also the one in its subject.
    pub country: Country,
    /// Its use.
    pub kind: CertificateType,
    /// When it was revoked, if it was.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Why a certificate is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inactive {
    /// No such certificate of this type is registered.
    #[error("is not registered")]
    Unknown,
    /// It was revoked.
    #[error("has been revoked")]
    Revoked,
    /// The operator has put it into `trust.deny_file`.
    #[error("is denied by the operator")]
    Denied,
    /// Its validity has ended.
    #[error("has expired")]
    Expired,
    /// A CA that is registered issued it, but for another use.
    #[error("names usages that do not permit its use")]
    NotPermitted,
    /// Its validity has not begun.
    #[error("is not yet valid")]
    NotYetValid,
}

/// All valid entries at one time.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    entries: Arc<HashMap<(Thumbprint, CertificateType), Registered>>,
    refused: Arc<[String]>,
    denied: Arc<HashSet<Thumbprint>>,
}

impl Registry {
    /// Verifies every row.
    pub fn verify(rows: &[StoredCertificate], anchor: &TrustAnchor) -> Self {
        let (mut entries, mut refused) = (HashMap::new(), Vec::new());
        for row in rows {
            match verify_row(row, anchor) {
                Ok(entry) => {
                    entries.insert((entry.certificate.thumbprint(), entry.kind), entry);
                }
                Err(reason) => refused.push(format!("certificate {}: {reason}", name(row))),
            }
        }
        Self { entries: Arc::new(entries), refused: refused.into(), denied: Arc::default() }
    }

    /// The same entries, of which these certificates are not accepted.
    fn denying(&self, denied: Arc<HashSet<Thumbprint>>) -> Self {
        Self { denied, ..self.clone() }
    }

    /// The certificate with this thumbprint and type, if it is active now.
    pub fn active(
        &self,
        thumbprint: Thumbprint,
        kind: CertificateType,
        now: DateTime<Utc>,
    ) -> Result<&Registered, Inactive> {
        if self.denied.contains(&thumbprint) {
            return Err(Inactive::Denied);
        }
        let entry = self.entries.get(&(thumbprint, kind)).ok_or(Inactive::Unknown)?;
        if entry.revoked_at.is_some() {
            Err(Inactive::Revoked)
        } else if now < entry.certificate.not_before() {
            Err(Inactive::NotYetValid)
        } else if now > entry.certificate.not_after() {
            Err(Inactive::Expired)
        } else {
            Ok(entry)
        }
    }

    /// The entry that accepts this certificate: its own, or that of a CA that its country registered (spec
    /// appendix A) and that issued it. A leaf of a CA must itself be valid, of the same country, not a CA, and
    /// permitted for the use, and neither its key nor its number may be that of a revoked certificate.
    pub fn admit(
        &self,
        certificate: &Certificate,
        kind: CertificateType,
        now: DateTime<Utc>,
    ) -> Result<&Registered, Inactive> {
        let own = self.active(certificate.thumbprint(), kind, now);
        let Ok(country) = certificate.country() else { return own };
        if own != Err(Inactive::Unknown) || certificate.is_authority() {
            return own;
        }
        // A CA that was renewed with the same key has two entries. An active one decides.
        let mut found = own;
        for entry in self.entries.values().filter(|entry| entry.kind == kind && entry.country == country) {
            if found.is_err() && certificate.is_issued_by(&entry.certificate) {
                found = self.active(entry.certificate.thumbprint(), kind, now);
            }
        }
        if found == Err(Inactive::Unknown) {
            return own;
        }
        let revoked = |entry: &&Registered| entry.country == country && entry.revoked_at.is_some();
        let mut revoked = self.entries.values().filter(revoked).map(|entry| &entry.certificate);
        if revoked.any(|revoked| certificate.is_of_the_same_key_or_number_as(revoked)) {
            return Err(Inactive::Revoked);
        }
        if now < certificate.not_before() {
            return Err(Inactive::NotYetValid);
        }
        if now > certificate.not_after() {
            return Err(Inactive::Expired);
        }
        if !certificate.permits(kind) {
            return Err(Inactive::NotPermitted);
        }
        found
    }

    /// The rejected rows, each with the reason.
    pub fn refused(&self) -> &[String] {
        &self.refused
    }

    /// All valid entries, including revoked and expired certificates.
    pub fn entries(&self) -> impl Iterator<Item = &Registered> {
        self.entries.values()
    }
}

/// Describes a row by its own columns, which are untrusted.
fn name(row: &StoredCertificate) -> String {
    let thumbprint = match <[u8; 32]>::try_from(&*row.thumbprint) {
        Ok(bytes) => Thumbprint::from_bytes(bytes).to_string(),
        Err(_) => format!("of {} bytes", row.thumbprint.len()),
    };
    let (kind, country) = (row.kind.escape_debug(), row.country.escape_debug());
    format!("row {} ({kind} of {country}, thumbprint {thumbprint})", row.id)
}

fn verify_row(row: &StoredCertificate, anchor: &TrustAnchor) -> Result<Registered, String> {
    let kind: CertificateType = row.kind.parse().map_err(|_| "its type is not known".to_owned())?;
    let certificate = Certificate::from_pem(&row.pem).map_err(|e| e.to_string())?;
    if certificate.pem() != row.pem {
        return Err("its PEM text is not in the canonical form".into());
    }
    if row.thumbprint != certificate.thumbprint().as_bytes() {
        return Err("its thumbprint is not that of its certificate".into());
    }
    let country = certificate.country().map_err(|e| e.to_string())?;
    if row.country != country.as_str() {
        return Err("its country is not that of its certificate's subject".into());
    }
    anchor
        .verify_operator_signature(&row.pem, &row.operator_signature)
        .map_err(|e| format!("its operator signature does not count: {e}"))?;
    anchor
        .verify_registration(country, kind, certificate.thumbprint(), &row.registration_signature)
        .map_err(|e| format!("its registration signature does not count: {e}"))?;
    Ok(Registered { id: row.id, certificate, country, kind, revoked_at: row.revoked_at })
}

/// The registry is stale: it has not been loaded for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate registry has not been loaded for longer than `trust.refresh`")]
pub struct RegistryUnavailable;

/// The revocations that this process has seen, by thumbprint and type.
#[derive(Default)]
struct Revocations {
    seen: HashMap<(Vec<u8>, String), StoredCertificate>,
    /// Those that the database no longer has.
    undone: Vec<String>,
}

impl Revocations {
    /// Remembers the revocations of these rows. Puts back those that were removed.
    fn keep(&mut self, rows: &mut Vec<StoredCertificate>) {
        self.undone.clear();
        let mut missing = self.seen.clone();
        for row in rows.iter_mut() {
            let key = (row.thumbprint.clone(), row.kind.clone());
            match (missing.remove(&key), row.revoked_at) {
                (Some(revoked), None) => {
                    self.undone.push(format!("the revocation of certificate {}", name(row)));
                    row.revoked_at = revoked.revoked_at;
                }
                (None, Some(_)) => drop(self.seen.insert(key, row.clone())),
                _ => {}
            }
        }
        for row in missing.into_values() {
            self.undone.push(format!("the revoked certificate {}", name(&row)));
            rows.push(row);
        }
        // In the order in which the database lists them: rows in another order would be verified again.
        rows.sort_by_key(|row| row.id);
        self.undone.sort_unstable();
    }
}

struct Loaded {
    rows: Vec<StoredCertificate>,
    registry: Arc<Registry>,
    at: Instant,
}

/// Holds the registry and its age.
pub struct Trust {
    anchor: TrustAnchor,
    refresh: Duration,
    read_grace: Duration,
    loaded: RwLock<Option<Loaded>>,
    /// Whether the database has answered the last reading with a refusal.
    refused: AtomicBool,
    denied: RwLock<Arc<HashSet<Thumbprint>>>,
    revocations: Mutex<Revocations>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("refresh", &self.refresh).finish_non_exhaustive()
    }
}

impl Trust {
    /// Nothing is loaded yet, so every caller is rejected.
    pub fn new(anchor: TrustAnchor, refresh: Duration) -> Self {
        Self {
            anchor,
            refresh,
            read_grace: Duration::ZERO,
            loaded: RwLock::new(None),
            refused: AtomicBool::new(false),
            denied: RwLock::default(),
            revocations: Mutex::default(),
        }
    }

    /// With a time for which reads are decided by the last registry while the database is unreachable.
    pub fn with_read_grace(self, read_grace: Duration) -> Self {
        Self { read_grace, ..self }
    }

    /// The operator's trust anchor.
    pub fn anchor(&self) -> &TrustAnchor {
        &self.anchor
    }

    /// The registry. Fails if it is stale.
    pub fn registry(&self) -> Result<Arc<Registry>, RegistryUnavailable> {
        match &*self.loaded.read() {
            Some(loaded) if loaded.at.elapsed() <= self.refresh => Ok(loaded.registry.clone()),
            _ => Err(RegistryUnavailable),
        }
    }

    /// The registry for requests that only read what is in memory. While the database is unreachable, the last registry
    /// counts for `trust.read_grace`: a revocation needs the database too. A database that answers with a refusal is not
    /// unreachable.
    pub fn registry_for_reads(&self) -> Result<Arc<Registry>, RegistryUnavailable> {
        let age = if self.refused.load(Ordering::Relaxed) {
            self.refresh
        } else {
            self.refresh.max(self.read_grace)
        };
        match &*self.loaded.read() {
            Some(loaded) if loaded.at.elapsed() <= age => Ok(loaded.registry.clone()),
            _ => Err(RegistryUnavailable),
        }
    }

    /// Notes that a reading failed, and whether the database has refused it.
    pub fn failed(&self, refused: bool) {
        self.refused.store(refused, Ordering::Relaxed);
    }

    /// Certificates that are not accepted from now on, whatever the registry says.
    pub fn deny(&self, denied: HashSet<Thumbprint>) {
        let denied = Arc::new(denied);
        // In this order nothing that is loaded meanwhile lacks them.
        let mut loaded = self.loaded.write();
        *self.denied.write() = denied.clone();
        if let Some(loaded) = &mut *loaded {
            loaded.registry = Arc::new(loaded.registry.denying(denied));
        }
    }

    /// How long ago the registry was last read; `None` if never.
    pub fn age(&self) -> Option<Duration> {
        self.loaded.read().as_ref().map(|loaded| loaded.at.elapsed())
    }

    /// Takes the rows of the registry, read at this moment or later. Verifies them only if they have changed. A
    /// revocation that was seen before stays in force: see [`Trust::undone`].
    pub fn take(&self, mut rows: Vec<StoredCertificate>, at: Instant) {
        self.refused.store(false, Ordering::Relaxed);
        self.revocations.lock().keep(&mut rows);
        if let Some(loaded) = self.loaded.write().as_mut().filter(|loaded| loaded.rows[..] == rows) {
            loaded.at = at;
            return;
        }
        let registry = Registry::verify(&rows, &self.anchor);
        for reason in registry.refused() {
            tracing::error!(
                reason,
                "a row of the certificate table is rejected; it may have been tampered with"
            );
        }
        tracing::info!(
            certificates = registry.entries.len(),
            refused = registry.refused.len(),
            "the certificate registry has changed and was loaded"
        );
        let mut loaded = self.loaded.write();
        let registry = Arc::new(registry.denying(self.denied.read().clone()));
        *loaded = Some(Loaded { rows, registry, at });
    }

    /// The revocations that the database no longer has: nobody can undo one, so somebody changed the database.
    pub fn undone(&self) -> Vec<String> {
        self.revocations.lock().undone.clone()
    }

    /// Why rows of the registry are rejected.
    pub fn rejected(&self) -> Vec<String> {
        self.loaded.read().as_ref().map(|loaded| loaded.registry.refused().to_vec()).unwrap_or_default()
    }

    /// How often to call [`Trust::take`], so that a single failed attempt does not make the registry stale.
    pub fn pace(&self) -> Duration {
        self.refresh / 4
    }
}

#[cfg(test)]
mod tests;
