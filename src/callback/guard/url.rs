//! Which URLs can be registered and called (spec §5.6.6).

use std::net::IpAddr;

use hyper::http::uri::PathAndQuery;
use rustls::pki_types::ServerName;
use url::{Host, Url};

use super::{Check, Refused};

/// Characters of a URL.
const MAX_LENGTH: usize = 2048;

/// A URL in a valid form. Its addresses have not been checked.
#[derive(Clone, Debug)]
pub(super) struct CallbackUrl {
    /// The host as in TLS and in the header `Host`.
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) path: String,
    /// The name or address that the certificate must contain.
    pub(super) name: ServerName<'static>,
}

impl CallbackUrl {
    /// Checks both the text and the parsed URL. Parsing like a browser repairs backslashes, empty user names
    /// and numeric addresses, which another parser would read differently.
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        if text.chars().count() > MAX_LENGTH {
            return Err(Refused::new(Check::Length, format!("it has more than {MAX_LENGTH} characters")));
        }
        if text.contains('\\') {
            return Err(Refused::new(Check::Backslash, "it has a backslash"));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Refused::new(Check::Syntax, "it has white space or control characters"));
        }
        let url = Url::parse(text).map_err(|e| Refused::new(Check::Syntax, e.to_string()))?;
        if url.scheme() != "https" {
            return Err(Refused::new(Check::Https, format!("its scheme is {:?}", url.scheme())));
        }
        let rest = text.get("https".len()..).and_then(|rest| rest.strip_prefix("://"));
        let authority = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
        if authority.is_empty() {
            return Err(Refused::new(Check::Syntax, "it does not begin with https:// and a host"));
        }
        if authority.contains('@') || !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::new(Check::Userinfo, "it has a user name or an @ before the host"));
        }
        if text.contains('#') {
            return Err(Refused::new(Check::Fragment, "it has a fragment"));
        }
        if text.contains('?') {
            return Err(Refused::new(Check::Query, "it has a query; the gateway adds its own"));
        }
        let port = url.port_or_known_default().unwrap_or_default();
        if port == 0 {
            return Err(Refused::new(Check::Port, "its port is 0"));
        }
        let host = host(&url, authority)?;
        let path = url.path().to_owned();
        path.parse::<PathAndQuery>().map_err(|e| Refused::new(Check::Syntax, e.to_string()))?;
        let name = match &host {
            Host::Domain(name) => ServerName::try_from(name.clone())
                .map_err(|_| Refused::new(Check::Host, format!("{name:?} is not the name of a host")))?,
            Host::Ipv4(v4) => ServerName::IpAddress((*v4).into()),
            Host::Ipv6(v6) => ServerName::IpAddress((*v6).into()),
        };
        Ok(Self { host, port, path, name })
    }

    /// The host, if it is an address.
    pub(super) fn address(&self) -> Option<IpAddr> {
        match &self.host {
            Host::Domain(_) => None,
            Host::Ipv4(v4) => Some((*v4).into()),
            Host::Ipv6(v6) => Some((*v6).into()),
        }
    }
}

fn host(url: &Url, authority: &str) -> Result<Host, Refused> {
    let host = url.host().ok_or_else(|| Refused::new(Check::Host, "it has no host"))?.to_owned();
    match &host {
        // Not 2130706433, 0x7f.1 or 127.1: other parsers read a different address, or none.
        Host::Ipv4(v4) if authority.split(':').next() != Some(v4.to_string().as_str()) => {
            Err(Refused::new(Check::Host, format!("write the address {v4} as four decimal numbers")))
        }
        Host::Domain(name) if name.ends_with('.') => {
            Err(Refused::new(Check::Host, "its host ends with a full stop"))
        }
        _ => Ok(host),
    }
}
