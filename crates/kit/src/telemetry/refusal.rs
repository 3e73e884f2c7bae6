//! Rejected callers: counted and logged with their address.
//!
//! An operator who helps a country to connect needs the address. It appears only in the process's log, never in
//! the access log or in a metric.

use std::{io, net::IpAddr, time::Instant};

use rustls::{AlertDescription, Error as TlsError, PeerIncompatible};

use super::{HANDSHAKES_FAILED, sparing::Sparing};

/// Why handshakes fail, as the metric says it.
pub const FAILURES: [&str; 8] = [
    "no-certificate",
    "client-certificate",
    "server-certificate",
    "tls-version",
    "not-tls",
    "timeout",
    "closed",
    "other",
];

static LINES: Sparing = Sparing::new();

/// A handshake failed; without an error it took too long.
pub fn handshake(peer: IpAddr, error: Option<&io::Error>) {
    let reason = reason(error);
    metrics::counter!(HANDSHAKES_FAILED, "reason" => reason).increment(1);
    let error = error.map(ToString::to_string).unwrap_or_default();
    if reason == "closed" {
        // Load balancers check every few seconds whether the port is open.
        tracing::debug!(%peer, reason, error, "a TLS handshake failed");
    } else if let Some(left_out) = LINES.ask(&format!("{peer} {reason}"), Instant::now()) {
        tracing::warn!(%peer, reason, error, left_out, "a TLS handshake failed");
    }
}

/// Logs the rejected request of an unregistered caller, unless the same line was written recently.
pub fn caller(peer: Option<IpAddr>, request_id: &str, reason: &str) {
    let peer = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
    if let Some(left_out) = LINES.ask(&format!("{peer} {reason}"), Instant::now()) {
        tracing::warn!(peer, request_id, reason, left_out, "a caller was rejected");
    }
}

/// Whether the failure of an unregistered caller's request is to be logged: the same one was not logged recently.
pub fn failure(reason: &str) -> bool {
    LINES.ask(reason, Instant::now()).is_some()
}

/// One of [`FAILURES`].
fn reason(error: Option<&io::Error>) -> &'static str {
    let Some(error) = error else { return "timeout" };
    let Some(tls) = error.get_ref().and_then(|error| error.downcast_ref::<TlsError>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => "closed",
            _ => "other",
        };
    };
    match tls {
        TlsError::NoCertificatesPresented => "no-certificate",
        TlsError::InvalidCertificate(_) => "client-certificate",
        TlsError::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown,
        ) => "server-certificate",
        TlsError::AlertReceived(AlertDescription::NoCertificate) => "no-certificate",
        TlsError::AlertReceived(AlertDescription::ProtocolVersion)
        | TlsError::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::SupportedVersionsExtensionRequired
            // Without this extension it cannot be TLS 1.2, which rustls finds before it looks at the version.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired,
        ) => "tls-version",
        TlsError::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled) => "closed",
        TlsError::InvalidMessage(_) => "not-tls",
        _ => "other",
    }
}
