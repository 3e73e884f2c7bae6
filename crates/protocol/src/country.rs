//! Countries, as the protocol names them (spec §4.1.2).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::excerpt;

/// A country: two upper-case ASCII letters, as in ISO 3166-1 alpha-2 (spec §4.1.2).
///
/// Whether such a country exists or takes part is not asked here: that is a matter of the trusted
/// certificates (spec §6.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

/// A text that is not two upper-case ASCII letters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} is not a country code of two upper-case letters")]
pub struct InvalidCountry {
    /// The beginning of the text, quoted and escaped.
    pub found: String,
}

impl Country {
    /// Parses two upper-case letters.
    ///
    /// # Errors
    /// Anything else, lower-case letters included, is an [`InvalidCountry`].
    pub fn new(text: &str) -> Result<Self, InvalidCountry> {
        Self::from_bytes(text.as_bytes())
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidCountry> {
        match *bytes {
            [first @ b'A'..=b'Z', second @ b'A'..=b'Z'] => Ok(Self([first, second])),
            _ => Err(InvalidCountry { found: excerpt(bytes) }),
        }
    }

    /// The two letters.
    pub fn as_str(&self) -> &str {
        #[expect(clippy::expect_used, reason = "the only constructor lets two ASCII letters through")]
        str::from_utf8(&self.0).expect("ASCII letters")
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 2] {
        &self.0
    }
}

impl FromStr for Country {
    type Err = InvalidCountry;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Country {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Country {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Letters;

        impl de::Visitor<'_> for Letters {
            type Value = Country;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a country code of two upper-case letters")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Country, E> {
                Country::new(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Letters)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_upper_case_letters_and_nothing_else() {
        assert_eq!(Country::new("NL").unwrap().as_str(), "NL");
        for text in ["", "N", "nl", "Nl", "NLD", " NL", "N1", "ÄÖ", "Ä", "N\0"] {
            assert!(Country::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_error_shows_what_was_found_but_never_all_of_it() {
        let error = Country::new("de\n").unwrap_err();
        assert_eq!(error.to_string(), r#""de\n" is not a country code of two upper-case letters"#);
        assert!(Country::new(&"x".repeat(1 << 20)).unwrap_err().to_string().len() < 120);
    }

    #[test]
    fn serde_speaks_the_two_letters() {
        let country: Country = serde_json::from_str(r#""ES""#).unwrap();
        assert_eq!(serde_json::to_string(&country).unwrap(), r#""ES""#);
        assert!(serde_json::from_str::<Country>(r#""es""#).is_err());
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_shown_as_it_came(text in "[A-Z]{2}|[A-Za-z]{0,3}|\\PC{0,3}") {
            match text.parse::<Country>() {
                Ok(country) => prop_assert_eq!(country.to_string(), text),
                Err(_) => prop_assert!(text.len() != 2 || !text.bytes().all(|byte| byte.is_ascii_uppercase())),
            }
        }
    }
}
