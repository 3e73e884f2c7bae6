//! Reloading certificates and encryption keys while the gateway serves.
//!
//! Open connections keep the certificate with which they were opened. New connections use the new one. A file
//! that cannot be used is not taken over, and the log says why.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use efgs_protocol::certificate::Certificate;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::App;
use crate::{
    config::{Config, Encryption, Tls},
    health::{CertificateUse, Trouble},
    intake::Keyring,
    jobs::Shutdown,
    rotation::{self, RotationError},
    trust::{self, ExpiryWatch, TlsSetup},
};

/// How often the files of `[tls]` and `[callback]` are checked.
const PACE: Duration = Duration::from_secs(30);

/// What can be reloaded in a running gateway.
#[derive(Debug)]
pub struct Reload {
    app: Arc<App>,
    tls: Option<(Tls, Arc<TlsSetup>)>,
    tls_files: FileWatch,
    callback_files: FileWatch,
    expiry: ExpiryWatch,
}

impl Reload {
    pub(crate) fn new(app: Arc<App>, tls: Option<(Tls, Arc<TlsSetup>)>) -> Self {
        let tls_files = match &tls {
            Some((files, _)) => {
                let own = [files.certificate.clone(), files.private_key.clone()];
                own.into_iter().chain(files.client_ca.clone()).collect()
            }
            None => Vec::new(),
        };
        let callback_files = match &app.config.callback {
            Some(files) => {
                let own = [files.certificate.clone(), files.private_key.clone()];
                own.into_iter().chain(files.ca.clone()).collect()
            }
            None => Vec::new(),
        };
        let (tls_files, callback_files) = (FileWatch::new(tls_files), FileWatch::new(callback_files));
        Self { app, tls, tls_files, callback_files, expiry: ExpiryWatch::default() }
    }

    pub(crate) fn app(&self) -> &App {
        &self.app
    }

    /// Checks the expiry of all certificates.
    pub fn look_at_certificates(&self) {
        let Ok(registry) = self.app.trust.registry() else { return };
        let shown = [
            (CertificateUse::Tls, self.tls.as_ref().and_then(|(_, tls)| tls.certificate())),
            (CertificateUse::CallbackClient, self.app.callbacks.guard.certificate()),
        ];
        let shown =
            shown.into_iter().filter_map(|(kind, der)| Some((kind, Certificate::from_der(&der?).ok()?)));
        let anchor = (CertificateUse::TrustAnchor, self.app.trust.anchor().certificate().clone());
        let in_use: Vec<_> = shown.chain([anchor]).collect();
        let now = self.app.clock.now();
        self.app.health.set_certificates(self.expiry.look(&registry, &self.app.config, &in_use, now));
    }

    /// Reloads the certificates, the encryption keys of `new` and the registry. Other changed settings need a
    /// restart, and `ready` warns of them.
    pub async fn all(&self, new: &Config) {
        self.tls();
        self.callback();
        let later = self.needs_restart(new);
        let later =
            if later.is_empty() { Ok(()) } else { Err(format!("restart to use them: {}", later.join(", "))) };
        self.note(Trouble::Settings, later);
        let keys = self.keys(&new.encryption).await;
        if let Ok(ids) = &keys {
            tracing::info!(?ids, "the encryption keys were read again");
        }
        self.note(Trouble::EncryptionKeys, keys);
        if let Err(error) = trust::load(&self.app.trust, &self.app.store).await {
            tracing::error!(%error, "the certificate registry could not be loaded");
        }
        self.look_at_certificates();
    }

    /// Reloads certificates whose files have changed since the last check, or could not be used then.
    pub fn changed_files(&self) {
        let troubles = self.app.health.troubles();
        if self.tls_files.changed() || troubles.contains_key(&Trouble::TlsCertificate) {
            self.tls();
        }
        if self.callback_files.changed() || troubles.contains_key(&Trouble::CallbackCertificate) {
            self.callback();
        }
    }

    /// Checks the files regularly until the gateway stops.
    pub(crate) async fn watch(self: Arc<Self>, mut shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                () = tokio::time::sleep(PACE) => {}
            }
            let this = self.clone();
            // A panic in there has been logged. The next turn checks again.
            drop(tokio::task::spawn_blocking(move || this.changed_files()).await);
        }
    }

    /// The settings that differ from those with which this gateway was started.
    fn needs_restart(&self, new: &Config) -> Vec<String> {
        let old = &self.app.config;
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        let pair =
            |name, old: &dyn std::fmt::Debug, new: &dyn std::fmt::Debug| (name, text(old) != text(new));
        let sections = [
            pair("[server]", &old.server, &new.server),
            pair("[tls]", &old.tls, &new.tls),
            pair("[database]", &old.database, &new.database),
            pair("[trust]", &old.trust, &new.trust),
            pair("[upload]", &old.upload, &new.upload),
            pair("[limits]", &old.limits, &new.limits),
            pair("[batching]", &old.batching, &new.batching),
            pair("[download]", &old.download, &new.download),
            pair("[retention]", &old.retention, &new.retention),
            pair("[journal]", &old.journal, &new.journal),
            pair("[access_log]", &old.access_log, &new.access_log),
            pair("[callback]", &old.callback, &new.callback),
            pair("[tracing]", &old.tracing, &new.tracing),
            pair("[participants]", &old.participants, &new.participants),
        ];
        let changed = sections.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name.to_owned());
        let anchor = Certificate::from_pem(std::fs::read(&old.trust.anchor).unwrap_or_default());
        let other = anchor
            .is_ok_and(|anchor| anchor.thumbprint() != self.app.trust.anchor().certificate().thumbprint());
        changed.chain(other.then(|| format!("the trust anchor in {}", old.trust.anchor.display()))).collect()
    }

    fn tls(&self) {
        let Some((files, tls)) = &self.tls else { return };
        let read = tls.reload(files);
        if read.is_ok() {
            tracing::info!("the TLS certificate was read again");
        }
        self.note(Trouble::TlsCertificate, read);
    }

    fn callback(&self) {
        let Some(config) = &self.app.config.callback else { return };
        let read = self.app.callbacks.guard.reload(config);
        if read.is_ok() {
            tracing::info!("the certificate for callbacks was read again");
        }
        self.note(Trouble::CallbackCertificate, read);
    }

    /// Sets or clears the warning for what was not reloaded. Logs only changes.
    fn note<T>(&self, what: Trouble, read: Result<T, impl std::fmt::Display>) {
        let why = read.err().map(|error| error.to_string());
        if self.app.health.set_trouble(what, why.clone())
            && let Some(error) = why
        {
            tracing::error!(error, "{}", what.text());
        }
    }

    async fn keys(&self, new: &Encryption) -> Result<Vec<u32>, KeysError> {
        let new = Keyring::load(new)?;
        rotation::check(&self.app.store, &new).await?;
        self.app.keyring.replace(&new);
        Ok(new.ids())
    }
}

#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Rotation(#[from] RotationError),
}

/// Detects changed file contents.
#[derive(Debug)]
struct FileWatch {
    paths: Vec<PathBuf>,
    seen: Mutex<Vec<Option<[u8; 32]>>>,
}

impl FileWatch {
    fn new(paths: Vec<PathBuf>) -> Self {
        let seen = Mutex::new(paths.iter().map(|path| digest(path)).collect());
        Self { paths, seen }
    }

    /// Whether anything has changed since the last call. Two files that belong together are seldom written at
    /// once: loading half of a pair fails, and the other half is the next change.
    fn changed(&self) -> bool {
        let now: Vec<_> = self.paths.iter().map(|path| digest(path)).collect();
        let mut seen = self.seen.lock();
        let changed = *seen != now;
        *seen = now;
        changed
    }
}

fn digest(path: &Path) -> Option<[u8; 32]> {
    std::fs::read(path).ok().map(|content| Sha256::digest(&*Zeroizing::new(content)).into())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_change_is_noticed_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.pem");
        let watch = FileWatch::new(vec![path.clone()]);
        assert!(!watch.changed());
        for content in ["one", "two"] {
            std::fs::write(&path, content).unwrap();
            assert!(watch.changed());
            assert!(!watch.changed());
        }
        std::fs::remove_file(&path).unwrap();
        assert!(watch.changed());
        assert!(!watch.changed());
    }
}
