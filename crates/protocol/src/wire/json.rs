//! The JSON format of a batch (spec §4.1.3).

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::error::Category;

use super::DecodeError;
use crate::{
    country::{Country, InvalidCountry},
    excerpt,
    key::{DiagnosisKey, InvalidKey, InvalidReason, KeyBatch, KeyData, KeyRef, MAX_VISITED, ReportType},
};

/// The text before the keys of a batch in JSON.
pub const JSON_OPEN: &[u8] = br#"{"keys":["#;
/// The text between two keys of a batch in JSON.
pub const JSON_SEPARATOR: &[u8] = b",";
/// The text after the keys of a batch in JSON.
pub const JSON_CLOSE: &[u8] = b"]}";

pub(super) fn encode(batch: &KeyBatch) -> Vec<u8> {
    let mut out = JSON_OPEN.to_vec();
    for (index, key) in batch.iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(JSON_SEPARATOR);
        }
        encode_key(key, &mut out);
    }
    out.extend_from_slice(JSON_CLOSE);
    out
}

/// A diagnosis key (spec §4.1.3).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = DiagnosisKey))]
pub struct KeyObject<'a> {
    /// 16 bytes, base64.
    key_data: String,
    /// Unix time divided by 600, from 15 days ago to now.
    rolling_start_interval_number: u32,
    /// Windows of 10 minutes.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 144))]
    rolling_period: u32,
    /// 0 to 8, or 2147483647 for "not given".
    transmission_risk_level: i32,
    /// ISO 3166-1 alpha-2.
    #[cfg_attr(feature = "openapi", schema(value_type = [String]))]
    visited_countries: &'a [Country],
    /// ISO 3166-1 alpha-2; the uploading country.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    origin: Country,
    #[cfg_attr(feature = "openapi", schema(value_type = ReportType))]
    report_type: &'static str,
    /// May encode more than days; not range-checked.
    #[serde(rename = "days_since_onset_of_symptoms")]
    days_since_onset_of_symptoms: i32,
}

pub(super) fn encode_key(key: KeyRef<'_>, out: &mut Vec<u8>) {
    let object = KeyObject {
        key_data: BASE64_STANDARD.encode(key.key_data.as_bytes()),
        rolling_start_interval_number: key.rolling_start_interval_number,
        rolling_period: key.rolling_period,
        transmission_risk_level: key.transmission_risk_level,
        visited_countries: key.visited_countries(),
        origin: key.origin,
        report_type: key.report_type.name(),
        days_since_onset_of_symptoms: key.days_since_onset_of_symptoms,
    };
    #[expect(clippy::expect_used, reason = "neither writing to a Vec nor a struct of plain values can fail")]
    serde_json::to_writer(out, &object).expect("a key as JSON");
}

pub(super) fn decode(body: &[u8], max_keys: usize) -> Result<KeyBatch, DecodeError> {
    let mut reading = Reading { batch: KeyBatch::new(), max_keys, refusal: None };
    let mut json = serde_json::Deserializer::from_slice(body);
    match Batch(&mut reading).deserialize(&mut json).and_then(|()| json.end()) {
        Ok(()) => Ok(reading.batch),
        Err(error) => Err(reading.refusal.unwrap_or_else(|| {
            DecodeError::Malformed(format!("{}, after {} keys", malformed(&error), reading.batch.len()))
        })),
    }
}

pub(super) fn decode_key(bytes: &[u8], into: &mut KeyBatch) -> Result<(), DecodeError> {
    let key: JsonKey =
        serde_json::from_slice(bytes).map_err(|error| DecodeError::Malformed(malformed(&error)))?;
    let index = into.len();
    let (key, visited) = key.convert().map_err(|reason| InvalidKey { index, reason })?;
    into.push(key, &visited);
    Ok(())
}

/// Says what is wrong and where. Not in the words of the parser, which quotes what it finds: that may be key
/// data, or megabytes.
fn malformed(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        Category::Eof => "the JSON ends too early",
        Category::Data => "a JSON value of a wrong type or range, or a field that is given twice,",
        Category::Syntax | Category::Io => "not JSON",
    };
    format!("{what} at line {} column {}", error.line(), error.column())
}

/// The batch as far as it has been read, and why reading stopped if the parser is not the one who says so.
struct Reading {
    batch: KeyBatch,
    max_keys: usize,
    refusal: Option<DecodeError>,
}

impl Reading {
    fn refuse<E: Error>(&mut self, refusal: DecodeError) -> E {
        self.refusal = Some(refusal);
        E::custom("refused")
    }
}

/// The batch: an object with a list of keys.
struct Batch<'r>(&'r mut Reading);

impl<'de> DeserializeSeed<'de> for Batch<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Batch<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a batch of keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "camelCase")]
        enum Field {
            Keys,
            #[serde(other)]
            Unknown,
        }

        let mut seen = false;
        while let Some(field) = map.next_key()? {
            match field {
                Field::Keys if seen => return Err(A::Error::duplicate_field("keys")),
                Field::Keys => map.next_value_seed(Keys(self.0))?,
                Field::Unknown => drop(map.next_value::<IgnoredAny>()?),
            }
            seen |= matches!(field, Field::Keys);
        }
        Ok(())
    }
}

/// The list of keys. Each is converted as soon as it has been read, so that no more than one is held twice.
struct Keys<'r>(&'r mut Reading);

impl<'de> DeserializeSeed<'de> for Keys<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Keys<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of keys")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut keys: A) -> Result<(), A::Error> {
        while let Some(key) = keys.next_element::<JsonKey>()? {
            let index = self.0.batch.len();
            if index == self.0.max_keys {
                return Err(self.0.refuse(DecodeError::TooManyKeys { max: index }));
            }
            let (key, visited) =
                key.convert().map_err(|reason| self.0.refuse(InvalidKey { index, reason }.into()))?;
            self.0.batch.push(key, &visited);
        }
        Ok(())
    }
}

/// A key: an object with these fields, each of which may be missing or null.
struct JsonKey(Fields);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Fields {
    key_data: Option<Checked<KeyData>>,
    rolling_start_interval_number: Option<u32>,
    rolling_period: Option<u32>,
    transmission_risk_level: Option<i32>,
    visited_countries: Option<Checked<Vec<Country>>>,
    origin: Option<Checked<Country, InvalidCountry>>,
    report_type: Option<Checked<ReportType>>,
    #[serde(rename = "days_since_onset_of_symptoms", alias = "daysSinceOnsetOfSymptoms")]
    days_since_onset_of_symptoms: Option<i32>,
}

impl JsonKey {
    fn convert(self) -> Result<(DiagnosisKey, Vec<Country>), InvalidReason> {
        let Self(fields) = self;
        let visited = fields.visited_countries.map_or(Ok(Vec::new()), |checked| checked.0)?;
        let key = DiagnosisKey {
            key_data: fields
                .key_data
                .map_or(Err(InvalidReason::KeyDataLength { found: 0 }), |checked| checked.0)?,
            rolling_start_interval_number: fields.rolling_start_interval_number.unwrap_or_default(),
            rolling_period: fields.rolling_period.unwrap_or_default(),
            transmission_risk_level: fields.transmission_risk_level.unwrap_or_default(),
            origin: fields
                .origin
                .map_or_else(|| Country::new(""), |checked| checked.0)
                .map_err(InvalidReason::Origin)?,
            report_type: fields.report_type.map_or(Ok(ReportType::Unknown), |checked| checked.0)?,
            days_since_onset_of_symptoms: fields.days_since_onset_of_symptoms.unwrap_or_default(),
        };
        Ok((key, visited))
    }
}

impl<'de> Deserialize<'de> for JsonKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = JsonKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            // Only this method: derived alone, the fields could also be given as a list.
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<JsonKey, A::Error> {
                Fields::deserialize(MapAccessDeserializer::new(map)).map(JsonKey)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// A value of the right JSON type, which is what it should be or not. The reason why not waits here until the
/// key's index can be added to it.
struct Checked<T, E = InvalidReason>(Result<T, E>);

impl<'de> Deserialize<'de> for Checked<KeyData> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(|text: &str| {
            let bytes = BASE64_STANDARD.decode(text).map_err(|_| InvalidReason::KeyDataNotBase64)?;
            let bytes = bytes
                .try_into()
                .map_err(|bytes: Vec<u8>| InvalidReason::KeyDataLength { found: bytes.len() })?;
            Ok(KeyData::new(bytes))
        }))
    }
}

impl<'de> Deserialize<'de> for Checked<Country, InvalidCountry> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(Country::new))
    }
}

/// A string, and how it is checked.
struct Text<F>(F);

impl<T, E, F: FnOnce(&str) -> Result<T, E>> Visitor<'_> for Text<F> {
    type Value = Checked<T, E>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<D: Error>(self, text: &str) -> Result<Checked<T, E>, D> {
        Ok(Checked(self.0(text)))
    }
}

impl<'de> Deserialize<'de> for Checked<ReportType> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNumber;

        impl NameOrNumber {
            fn check<D>(
                report_type: Option<ReportType>,
                found: impl FnOnce() -> String,
            ) -> Result<Checked<ReportType>, D> {
                Ok(Checked(report_type.ok_or_else(|| InvalidReason::ReportType { found: found() })))
            }
        }

        impl Visitor<'_> for NameOrNumber {
            type Value = Checked<ReportType>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a report type by name or number")
            }

            fn visit_str<D: Error>(self, name: &str) -> Result<Self::Value, D> {
                Self::check(ReportType::from_name(name), || excerpt(name.as_bytes()))
            }

            fn visit_i64<D: Error>(self, number: i64) -> Result<Self::Value, D> {
                Self::check(number.try_into().ok().and_then(ReportType::from_number), || number.to_string())
            }

            fn visit_u64<D: Error>(self, number: u64) -> Result<Self::Value, D> {
                Self::check(number.try_into().ok().and_then(ReportType::from_number), || number.to_string())
            }
        }

        deserializer.deserialize_any(NameOrNumber)
    }
}

impl<'de> Deserialize<'de> for Checked<Vec<Country>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Checked<Vec<Country>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of countries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Self::Value, A::Error> {
                let mut countries = Vec::new();
                while let Some(Checked(country)) = texts.next_element::<Checked<Country, InvalidCountry>>()? {
                    let position = countries.len();
                    let reason = match country {
                        _ if position == MAX_VISITED => InvalidReason::TooManyVisitedCountries,
                        Ok(country) => {
                            countries.push(country);
                            continue;
                        }
                        Err(invalid) => InvalidReason::VisitedCountry { position, invalid },
                    };
                    // Read the rest nevertheless, so that the error can name the index.
                    while texts.next_element::<IgnoredAny>()?.is_some() {}
                    return Ok(Checked(Err(reason)));
                }
                Ok(Checked(Ok(countries)))
            }
        }

        deserializer.deserialize_seq(List)
    }
}
