//! The order of the chain: which batch may follow which. A gateway could lead its callers in circles.

use std::fmt::Display;

use chrono::{Days, NaiveDate};
use efgs_protocol::batch_tag::{BatchTag, DayName, ObjectId};
use serde::{Deserialize, Serialize};

/// How long names of an unknown form are remembered: one day longer than batches are served.
const REMEMBERED_DAYS: u64 = 15;
/// How many of them at most. At one batch each minute 15 days have 21,600.
const MOST_REMEMBERED: usize = 50_000;
/// The longest name.
const LONGEST: usize = 64;

/// Why the chain is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ChainError(pub(super) String);

/// A batch's name, which is safe in a file name and in a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Tag(String);

impl TryFrom<String> for Tag {
    type Error = ChainError;

    fn try_from(text: String) -> Result<Self, ChainError> {
        Self::new(&text)
    }
}

impl Tag {
    pub(crate) fn new(text: &str) -> Result<Self, ChainError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_+=~".contains(&byte);
        if (1..=LONGEST).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            let start: String = text.chars().take(LONGEST).collect();
            Err(ChainError(format!(
                "the gateway names a batch {start:?}, which is not a batch tag: 1 to 64 letters, digits and - _ + = ~ \
                 are allowed"
            )))
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The day on which the batch was formed, if the name tells.
    pub(crate) fn date(&self) -> Option<NaiveDate> {
        match self.0.parse().ok()? {
            BatchTag::ObjectId(id) => Some(id.timestamp().date_naive()),
            BatchTag::DayName(name) => Some(name.day),
        }
    }

    /// Refuses a name of a day to come: once it was passed, no batch could follow it until then. One day is
    /// left for clocks and time zones.
    pub(super) fn check_day(&self, today: NaiveDate) -> Result<(), ChainError> {
        match self.date() {
            Some(date) if date > today.succ_opt().unwrap_or(today) => Err(ChainError(format!(
                "the gateway names a batch {} of {date}, but this machine's clock says that it is {today}: is the \
                 clock correct?",
                self.0
            ))),
            _ => Ok(()),
        }
    }

    /// Whether `answered` can be the same batch: names of different forms may be.
    pub(super) fn may_be(&self, answered: &Self) -> bool {
        match (self.0.parse(), answered.0.parse()) {
            (Ok(BatchTag::ObjectId(_)), Ok(BatchTag::DayName(_)))
            | (Ok(BatchTag::DayName(_)), Ok(BatchTag::ObjectId(_))) => true,
            _ => self == answered,
        }
    }

    /// Refuses an answer about another batch than this one, which was asked for.
    pub(crate) fn check_answer(&self, answered: &Self) -> Result<(), ChainError> {
        if self.may_be(answered) {
            return Ok(());
        }
        let (asked, answered) = (&self.0, &answered.0);
        Err(ChainError(format!("the gateway was asked for batch {asked} and answered with {answered}")))
    }
}

/// The names that the chain has passed, as far as is needed to know whether a name can follow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Passed {
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    newest_object_id: Option<ObjectId>,
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    newest_day_name: Option<DayName>,
    /// Names of another form, which have no order, with the days on which they were met; oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    others: Vec<(Tag, NaiveDate)>,
}

impl Passed {
    /// Whether a batch of this name can follow all that were passed.
    pub(super) fn check(&self, tag: &Tag) -> Result<(), ChainError> {
        let name = &tag.0;
        let again = || {
            format!("the chain is a loop: the gateway names {name} as the next batch, but it occurred before")
        };
        let backwards = |after: &dyn Display| {
            format!("the chain goes backwards: the gateway names {name} as the batch after {after}")
        };
        Err(ChainError(match (name.parse(), self.newest_object_id, self.newest_day_name) {
            (Ok(BatchTag::ObjectId(id)), Some(newest), _) if id == newest => again(),
            (Ok(BatchTag::ObjectId(id)), Some(newest), _) if id < newest => backwards(&newest),
            (Ok(BatchTag::DayName(day)), _, Some(newest)) if day == newest => again(),
            (Ok(BatchTag::DayName(day)), _, Some(newest)) if day < newest => backwards(&newest),
            (Err(_), ..) if self.others.iter().any(|(other, _)| other == tag) => again(),
            _ => return Ok(()),
        }))
    }

    /// Remembers a name.
    pub(super) fn pass(&mut self, tag: &Tag, today: NaiveDate) {
        match tag.0.parse() {
            Ok(BatchTag::ObjectId(id)) => self.newest_object_id = Some(id),
            Ok(BatchTag::DayName(name)) => self.newest_day_name = Some(name),
            Err(_) => {
                let oldest = today.checked_sub_days(Days::new(REMEMBERED_DAYS)).unwrap_or_default();
                self.others.push((tag.clone(), today));
                let too_many = self.others.len().saturating_sub(MOST_REMEMBERED);
                let outdated = self.others.iter().take_while(|(_, date)| *date < oldest).count();
                self.others.drain(..too_many.max(outdated));
            }
        }
    }
}

/// Names in their text form.
mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn tag(text: &str) -> Tag {
        Tag::new(text).unwrap()
    }

    fn passed(tags: &[&str]) -> Passed {
        let mut passed = Passed::default();
        for name in tags {
            passed.check(&tag(name)).unwrap();
            passed.pass(&tag(name), "2026-11-22".parse().unwrap());
        }
        let kept = serde_json::to_string(&passed).unwrap();
        assert_eq!(serde_json::from_str::<Passed>(&kept).unwrap(), passed, "{kept}");
        passed
    }

    #[test]
    fn names_must_grow() {
        let (older, newer) = ("6920f1a2c00102030405000007", "20261122-9");
        assert_eq!(older.len(), 26);
        let older = &older[..24];
        let chain = passed(&[older, "20261121-3", newer]);
        chain.check(&tag("20261122-10")).unwrap();
        chain.check(&tag("20261123-1")).unwrap();
        chain.check(&tag("6920f1a3c001020304050000")).unwrap();
        chain.check(&tag("anything-else")).unwrap();
        let says = |name: &str| chain.check(&tag(name)).unwrap_err().to_string();
        assert!(says("20261122-9").contains("a loop"));
        assert!(says("20261122-8").contains("goes backwards"));
        assert!(says(older).contains("a loop"));
        assert!(says("0000f1a3c001020304050000").contains("goes backwards"));
    }

    #[test]
    fn names_without_an_order_are_remembered_for_a_while() {
        let mut chain = passed(&["a", "b", "c"]);
        let again = chain.check(&tag("a")).unwrap_err().to_string();
        assert!(again.starts_with("the chain is a loop: the gateway names a as"), "{again}");
        chain.pass(&tag("d"), "2026-12-07".parse().unwrap());
        assert!(chain.check(&tag("a")).is_err());
        chain.pass(&tag("e"), "2026-12-08".parse().unwrap());
        chain.check(&tag("a")).unwrap();
        assert!(chain.check(&tag("d")).is_err());
        for i in 0..=MOST_REMEMBERED {
            chain.pass(&tag(&format!("x{i}")), "2026-12-08".parse().unwrap());
        }
        assert_eq!(chain.others.len(), MOST_REMEMBERED);
    }

    #[test]
    fn names_tell_their_day_and_may_be_the_same_batch() {
        assert_eq!(tag("20261122-9").date(), "2026-11-22".parse().ok());
        assert_eq!(tag("000151800000000000000000").date(), "1970-01-02".parse().ok());
        assert_eq!(tag("a").date(), None);
        assert!(tag("20261122-9").may_be(&tag("000151800000000000000000")));
        assert!(!tag("20261122-9").may_be(&tag("20261122-8")));
        assert!(!tag("20261122-9").may_be(&tag("a")));
    }

    #[test]
    fn dangerous_names_are_refused() {
        for name in
            ["", "..", "../../etc/cron.d/x", "a/b", "a\\b", "a.pb", "a b", "a\n", "é", &"a".repeat(65)]
        {
            let error = Tag::new(name).unwrap_err();
            assert!(error.to_string().contains("not a batch tag"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_one_component_of_a_path(text in ".*") {
            if let Ok(Tag(name)) = Tag::new(&text) {
                let path = std::path::Path::new(&name);
                prop_assert_eq!(path.components().count(), 1);
                prop_assert_eq!(path.file_name().unwrap(), name.as_str());
            }
        }
    }
}
