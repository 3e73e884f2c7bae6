//! Keys as JSON: in a batch, or each on a line.

use std::{fmt, io::BufRead};

use efgs_protocol::wire;
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    Each, SourceProblem, hand_on,
    stream::{Budget, Stream},
};

pub(super) fn read_lines(
    mut stream: Stream<impl BufRead>,
    budget: &Budget,
    each: &mut Each<'_>,
) -> Result<(), SourceProblem> {
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line)? > 0 {
        let key = line.trim_ascii();
        if !key.is_empty() {
            if hand_on(each, |one| wire::decode_json_key(key, one)).is_break() {
                return Ok(());
            }
            budget.renew();
        }
        line.clear();
    }
    Ok(())
}

pub(super) fn read_batch(
    stream: Stream<impl BufRead>,
    budget: &Budget,
    each: &mut Each<'_>,
) -> Result<(), SourceProblem> {
    let mut visitor = BatchVisitor { budget, each, broken_off: false };
    let mut json = serde_json::Deserializer::from_reader(stream);
    let read = json.deserialize_map(&mut visitor).and_then(|()| json.end());
    match read {
        Err(_) if visitor.broken_off => Ok(()),
        Err(error) if error.is_io() => Err(SourceProblem::Read(error.into())),
        // The parser's own words quote what it finds, which may be key data.
        Err(error) => Err(SourceProblem::Malformed(format!(
            "not {{\"keys\":[…]}} as JSON: {} at line {} column {}",
            if error.is_eof() { "it ends too early" } else { "unexpected content" },
            error.line(),
            error.column()
        ))),
        Ok(()) => Ok(()),
    }
}

/// Takes the object of a batch, and the list of keys in it.
struct BatchVisitor<'r, 'e> {
    budget: &'r Budget,
    each: &'r mut Each<'e>,
    broken_off: bool,
}

impl<'de> Visitor<'de> for &mut BatchVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a batch of keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = false;
        while let Some(field) = map.next_key::<String>()? {
            match field.as_str() {
                "keys" if seen => return Err(A::Error::duplicate_field("keys")),
                "keys" => {
                    seen = true;
                    map.next_value_seed(&mut *self)?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if seen { Ok(()) } else { Err(A::Error::missing_field("keys")) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut keys: A) -> Result<(), A::Error> {
        while let Some(key) = keys.next_element::<Box<RawValue>>()? {
            if hand_on(self.each, |one| wire::decode_json_key(key.get().as_bytes(), one)).is_break() {
                self.broken_off = true;
                return Err(A::Error::custom("broken off"));
            }
            self.budget.renew();
        }
        Ok(())
    }
}

/// The list of keys.
impl<'de> DeserializeSeed<'de> for &mut BatchVisitor<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}
