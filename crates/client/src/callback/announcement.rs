//! What the gateway says when it calls.

use chrono::NaiveDate;
use efgs_protocol::batch_tag::BatchTag;

/// A batch that the gateway announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The batch.
    pub batch_tag: BatchTag,
    /// The day on which it was formed.
    pub date: NaiveDate,
}

impl Announcement {
    /// Reads the query of a call: `batchTag` and `date`, each once, and nothing else. Neither needs an escape,
    /// so none is understood.
    ///
    /// # Errors
    /// Says what is wrong, for the answer to the caller.
    pub fn from_query(query: &str) -> Result<Self, &'static str> {
        let (mut batch_tag, mut date) = (None, None);
        for parameter in query.split('&') {
            let taken = match parameter.split_once('=') {
                Some(("batchTag", text)) => {
                    batch_tag.replace(text.parse().map_err(|_| "batchTag is not a batch tag")?).is_some()
                }
                Some(("date", text)) => date.replace(day(text).ok_or("date is not a day")?).is_some(),
                _ => return Err("only batchTag and date are understood"),
            };
            if taken {
                return Err("a parameter comes twice");
            }
        }
        match (batch_tag, date) {
            (Some(batch_tag), Some(date)) => Ok(Self { batch_tag, date }),
            _ => Err("batchTag and date are needed"),
        }
    }
}

/// Only the form yyyy-MM-dd, of which chrono accepts more.
fn day(text: &str) -> Option<NaiveDate> {
    text.parse::<NaiveDate>().ok().filter(|day| day.to_string() == text)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_names_of_a_batch_are_understood() {
        for tag in ["20261124-3", "5fbd0f2c0102030405000001"] {
            let read = Announcement::from_query(&format!("date=2026-11-24&batchTag={tag}")).unwrap();
            assert_eq!(
                (read.batch_tag.to_string().as_str(), read.date.to_string().as_str()),
                (tag, "2026-11-24")
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for query in [
            "",
            "&",
            "batchTag=20261124-3",
            "date=2026-11-24",
            "batchTag=20261124-3&date=2026-11-24&x=1",
            "batchTag=20261124-3&date=2026-11-24&date=2026-11-24",
            "batchTag=20261124-3&date=2026-11-24&",
            "batchTag=20261124%2D3&date=2026-11-24",
            "batchTag=2020-9-28-Ab&date=2026-11-24",
            "batchTag=../../etc&date=2026-11-24",
            "batchTag=20261124-3&date=2026-1-4",
            "batchTag=20261124-3&date=+2026-11-24",
            "batchTag=20261124-3&date=20261124-3",
            "batchtag=20261124-3&date=2026-11-24",
        ] {
            assert!(Announcement::from_query(query).is_err(), "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_query_is_read_back_or_refused(query in "(batchTag|date|x)?=?[0-9a-f-]{0,24}(&(batchTag|date)=[0-9-]{0,12})*|.*") {
            if let Ok(read) = Announcement::from_query(&query) {
                let forms = [
                    format!("batchTag={}&date={}", read.batch_tag, read.date),
                    format!("date={}&batchTag={}", read.date, read.batch_tag),
                ];
                prop_assert!(forms.contains(&query));
            }
        }
    }
}
