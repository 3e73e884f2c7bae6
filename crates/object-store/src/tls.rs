//! Which servers are trusted.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt as _;

use crate::SettingsError;

/// Trusts servers with a certificate of these authorities (PEM), or of those that the system trusts. Names its
/// cryptography provider, so that it does not depend on the program's default.
pub(crate) fn config(ca_pem: Option<&str>) -> Result<ClientConfig, SettingsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| SettingsError::Client(e.to_string()))?;
    let builder = match ca_pem {
        Some(pem) => builder.with_root_certificates(roots(pem).map_err(SettingsError::Ca)?),
        None => builder.with_platform_verifier().map_err(|e| SettingsError::Client(e.to_string()))?,
    };
    Ok(builder.with_no_client_auth())
}

fn roots(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(root.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    if roots.is_empty() { Err("there is no certificate in it".into()) } else { Ok(roots) }
}
