//! Certificates and private keys in PEM files that settings name.

use std::path::{Path, PathBuf};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

/// What is wrong with a file of `[tls]` or `[callback]`.
#[derive(Debug, thiserror::Error)]
#[error("`{key}` ({path}): {reason}", path = path.display())]
pub struct TlsError {
    key: &'static str,
    path: PathBuf,
    reason: String,
}

impl TlsError {
    /// The file that this key of the configuration names is not right.
    pub fn new(key: &'static str, path: &Path, reason: impl Into<String>) -> Self {
        Self { key, path: path.to_owned(), reason: reason.into() }
    }
}

/// A certificate with its chain and its private key; each file comes with the key that names it.
pub fn load_identity(
    (certificate_key, certificate): (&'static str, &Path),
    (private_key_key, private_key): (&'static str, &Path),
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let certificates = certificates(certificate_key, certificate)?;
    let fail = |reason: String| TlsError { key: private_key_key, path: private_key.to_owned(), reason };
    let text = std::fs::read(private_key).map(Zeroizing::new);
    let text = text.map_err(|e| fail(format!("cannot be read: {e}")))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|e| fail(describe(&e)))?;
    CertifiedKey::from_der(certificates, key, provider).map_err(|e| fail(e.to_string()))
}

/// The authorities in a file.
pub fn load_roots(key: &'static str, path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(key, path)? {
        roots.add(root).map_err(|e| TlsError { key, path: path.to_owned(), reason: e.to_string() })?;
    }
    Ok(roots)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |reason: String| TlsError { key, path: path.to_owned(), reason };
    let all = CertificateDer::pem_file_iter(path).map_err(|e| fail(describe(&e)))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|e| fail(describe(&e)))?;
    if all.is_empty() { Err(fail("there is no certificate in it (PEM)".into())) } else { Ok(all) }
}

fn describe(error: &rustls::pki_types::pem::Error) -> String {
    match error {
        rustls::pki_types::pem::Error::Io(e) => format!("cannot be read: {e}"),
        rustls::pki_types::pem::Error::NoItemsFound => {
            "there is no private key or certificate in it (PEM)".into()
        }
        other => format!("is not valid PEM: {other}"),
    }
}
