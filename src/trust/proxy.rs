//! Callers behind a load balancer that terminates TLS (spec §7). It adds the thumbprint and the subject of the
//! client certificate as headers. Only headers from a trusted peer are accepted.

use std::net::IpAddr;

use base64::{Engine, engine::general_purpose::STANDARD};
use efgs_protocol::{certificate::Thumbprint, country::Country};

use super::{CallerError, PeerIdentity};
use crate::config::Network;

/// The header with the SHA-256 of the client certificate.
pub(super) const THUMBPRINT: &str = "X-SSL-Client-SHA256";
/// The header with the subject of the client certificate.
pub(super) const SUBJECT: &str = "X-SSL-Client-DN";

/// The caller that the load balancer's headers name.
pub(super) fn identify(
    peer: Option<IpAddr>,
    trusted: &[Network],
    thumbprints: &[&[u8]],
    subjects: &[&[u8]],
) -> Result<PeerIdentity, CallerError> {
    // A dual-stack listener shows IPv4 peers as IPv6 addresses.
    let peer = peer.map(|peer| peer.to_canonical());
    if !peer.is_some_and(|peer| trusted.iter().any(|network| network.contains(peer))) {
        return Err(CallerError::UntrustedPeer);
    }
    let one = |name, values: &[&[u8]]| match values {
        [value] => std::str::from_utf8(value).map(str::to_owned).map_err(|_| CallerError::ProxyHeader(name)),
        _ => Err(CallerError::ProxyHeader(name)),
    };
    let thumbprint = one(THUMBPRINT, thumbprints)?;
    let thumbprint = read_thumbprint(&thumbprint).ok_or(CallerError::ProxyHeader(THUMBPRINT))?;
    let subject = one(SUBJECT, subjects)?;
    Ok(PeerIdentity { thumbprint, country: read_country(&subject), certificate: None })
}

/// 64 hexadecimal digits of either case, or base64 of the 32 bytes, URL-encoded or not.
fn read_thumbprint(text: &str) -> Option<Thumbprint> {
    let text = percent_decode(text.trim())?;
    if text.len() == 64 {
        return text.to_ascii_lowercase().parse().ok();
    }
    let bytes = STANDARD.decode(text.as_bytes()).ok()?;
    bytes.try_into().ok().map(Thumbprint::from_bytes)
}

/// The only `C` of a distinguished name (RFC 2253), URL-encoded or not; `None` if there is none or several.
fn read_country(subject: &str) -> Option<Country> {
    let subject = percent_decode(subject)?;
    let mut countries = attributes(&subject)?.into_iter().filter_map(|(name, value)| {
        let name = name.trim().to_ascii_lowercase();
        let name = name.strip_prefix("oid.").unwrap_or(&name);
        matches!(name, "c" | "2.5.4.6").then_some(value)
    });
    let country = countries.next()?;
    if countries.next().is_some() { None } else { Country::new(country.trim()).ok() }
}

/// The attributes of a distinguished name; `None` if it is malformed.
fn attributes(subject: &str) -> Option<Vec<(String, String)>> {
    let mut all = Vec::new();
    let (mut name, mut value) = (String::new(), None::<String>);
    let (mut quoted, mut characters) = (false, subject.chars());
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                // Keeps the backslash: a country code needs no escapes, so a value with one is not a country.
                value.as_mut().unwrap_or(&mut name).extend(['\\', characters.next()?]);
            }
            '"' => quoted = !quoted,
            ',' | ';' | '+' if !quoted => all.push((std::mem::take(&mut name), value.take()?)),
            '=' if !quoted && value.is_none() => value = Some(String::new()),
            other => match &mut value {
                Some(value) => value.push(other),
                None => name.push(other),
            },
        }
    }
    if quoted {
        return None;
    }
    all.push((name, value?));
    Some(all)
}

/// Decodes `%xx`. A `%` that begins no escape stays. `None` if the result is not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits =
            bytes.get(at + 1..at + 3).filter(|_| byte == b'%').and_then(|d| std::str::from_utf8(d).ok());
        match digits
            .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|d| u8::from_str_radix(d, 16).ok())
        {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_of_a_subject_seen_in_production_names_its_country() {
        for (subject, country) in [
            ("CN=x,O=y,C=CZ", "CZ"),
            ("C=NL,O=y", "NL"),
            ("C=ES", "ES"),
            ("CN=a b, O=c d, C=DE", "DE"),
            ("CN%3Dx%2CO%3Dy%2CC%3DIT", "IT"),
            ("CN%3Dx%20y%2C%20C%3DFI", "FI"),
            ("OU=a,OU=b,O=x,O=y,C=IE", "IE"),
            (r"CN=Ministry\, of Health,C=DE", "DE"),
            (r"CN=x\,C=FR,C=DE", "DE"),
            ("CN=\"x, C=FR\",C=DE", "DE"),
            ("CN=x+C=DE", "DE"),
            ("c=DE,cn=x", "DE"),
            ("2.5.4.6=DE,CN=x", "DE"),
            (r"O=back\\,C=DE", "DE"),
        ] {
            assert_eq!(read_country(subject), Some(Country::new(country).unwrap()), "{subject}");
        }
    }

    #[test]
    fn a_subject_without_exactly_one_country_names_none() {
        for subject in [
            "",
            "CN=x",
            "C=",
            "C=DE,C=NL",
            "C=DE+C=NL",
            "C=de",
            "C=DEU",
            "CN=x,C",
            "C=DE,",
            r"CN=x\,C=DE",
            "CN=\"x,C=DE\"",
            "CN=\"x,C=DE",
            "CN=x%2CC=DE,C=NL",
            "XC=DE",
            "DC=DE",
            "C=DE\\",
        ] {
            assert_eq!(read_country(subject), None, "{subject}");
        }
    }

    #[test]
    fn leading_zero_bytes_of_a_thumbprint_survive_in_every_form() {
        let mut bytes = [0xfb; 32];
        bytes[0] = 0;
        let thumbprint = Thumbprint::from_bytes(bytes);
        let hex = thumbprint.to_string();
        let base64 = STANDARD.encode(bytes);
        let encoded = base64.replace('+', "%2B").replace('/', "%2F").replace('=', "%3d");
        assert!(encoded.contains('%'));
        for form in [hex.clone(), hex.to_uppercase(), base64, encoded] {
            assert_eq!(read_thumbprint(&form), Some(thumbprint), "{form}");
        }
        for wrong in ["", "00", &hex[1..], &hex[2..], &format!("{hex}0"), "zz", "%"] {
            assert_eq!(read_thumbprint(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn headers_count_only_once_and_only_from_a_trusted_peer() {
        let trusted = ["10.1.0.0/16".parse().unwrap(), "::1".parse().unwrap()];
        let thumbprint = Thumbprint::from_bytes([7; 32]).to_string();
        let (t, s) = (thumbprint.as_bytes(), b"C=DE".as_slice());
        let identify = |peer: &str, ts: &[&[u8]], ss: &[&[u8]]| {
            super::identify(Some(peer.parse().unwrap()), &trusted, ts, ss).map(|peer| peer.country)
        };
        let de = Some(Country::new("DE").unwrap());
        assert_eq!(identify("10.1.2.3", &[t], &[s]), Ok(de));
        assert_eq!(identify("::ffff:10.1.2.3", &[t], &[s]), Ok(de));
        assert_eq!(identify("::1", &[t], &[s]), Ok(de));
        for peer in ["10.2.0.1", "127.0.0.1", "::2"] {
            assert_eq!(identify(peer, &[t], &[s]), Err(CallerError::UntrustedPeer));
        }
        assert_eq!(super::identify(None, &trusted, &[t], &[s]).err(), Some(CallerError::UntrustedPeer));
        for (ts, ss) in [(&[][..], &[s][..]), (&[t, t], &[s]), (&[t], &[]), (&[t], &[s, s]), (&[b"x"], &[s])]
        {
            assert!(
                matches!(identify("10.1.2.3", ts, ss), Err(CallerError::ProxyHeader(_))),
                "{ts:?} {ss:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(text in "[ -~]{0,80}") {
            let _ = (read_thumbprint(&text), read_country(&text));
        }

        #[test]
        fn what_is_escaped_or_quoted_is_never_taken_for_an_attribute(inner in "[A-Za-z=,+;. ]{0,30}") {
            let escaped: String = inner.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert_eq!(read_country(&format!("CN={escaped},C=NL")), Country::new("NL").ok());
            prop_assert_eq!(read_country(&format!("CN=\"{inner}\",C=NL")), Country::new("NL").ok());
        }
    }
}
