#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

const RANDOM: [u8; 5] = [1, 2, 3, 4, 5];

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 999_999_999).unwrap()
}

fn id(text: &str) -> ObjectId {
    text.parse().unwrap()
}

#[test]
fn an_object_id_is_time_random_and_counter() {
    let id = ObjectId::next(None, at(0x5f6b_1a2c), RANDOM);
    assert_eq!(id.to_string(), "5f6b1a2c0102030405000000");
    assert_eq!(id.timestamp(), DateTime::from_timestamp(0x5f6b_1a2c, 0).unwrap());
    assert_eq!(ObjectId::from_bytes(*id.as_bytes()), id);
}

#[test]
fn a_later_second_starts_anew() {
    let last = Some(id("5f6b1a2cffffffffff000009"));
    assert_eq!(ObjectId::next(last, at(0x5f6b_1a2d), RANDOM), id("5f6b1a2d0102030405000000"));
}

#[test]
fn in_the_same_second_or_an_earlier_one_the_counter_goes_on() {
    let last = Some(id("5f6b1a2caaaaaaaaaa0000ff"));
    for now in [0x5f6b_1a2c, 0x5f6b_1a2b, 0, -1] {
        assert_eq!(ObjectId::next(last, at(now), RANDOM), id("5f6b1a2caaaaaaaaaa000100"));
    }
}

#[test]
fn a_counter_that_is_used_up_borrows_the_next_second() {
    let last = Some(id("5f6b1affaaaaaaaaaaffffff"));
    assert_eq!(ObjectId::next(last, at(0x5f6b_1aff), RANDOM), id("5f6b1b000102030405000000"));
}

#[test]
fn object_ids_are_lower_case_and_complete() {
    for text in [
        "",
        "5f6b1a2c01020304050000",
        "5F6B1A2C0102030405000000",
        "5f6b1a2c010203040500000g",
        "ééééééééééééé",
    ] {
        assert!(text.parse::<ObjectId>().is_err(), "{text}");
        assert!(text.parse::<BatchTag>().is_err(), "{text}");
    }
}

#[test]
fn day_names() {
    let name: DayName = "20200928-1".parse().unwrap();
    assert_eq!(name, DayName { day: NaiveDate::from_ymd_opt(2020, 9, 28).unwrap(), sequence: 1 });
    assert_eq!("20200928-4294967295".parse::<DayName>().unwrap().sequence, u32::MAX);
    for text in [
        "20200928",
        "20200928-",
        "20200928-0",
        "20200928-01",
        "20200928-+1",
        "20200928-1 ",
        "20200928--1",
        "20200928-4294967296",
        "20200931-1",
        "20200900-1",
        "2020-09-28-1",
        "+2020928-1",
        "2020928-1",
        "null",
    ] {
        assert!(text.parse::<BatchTag>().is_err(), "{text}");
    }
}

#[test]
fn upload_tags_of_production() {
    for tag in ["2020-9-28-Ab+/c==-0", "1", &"a0".repeat(32), "!~"] {
        assert_eq!(tag.parse::<UploadTag>().unwrap().as_str(), tag);
    }
    assert_eq!("".parse::<UploadTag>(), Err(InvalidUploadTag::Length { found: 0 }));
    assert_eq!("x".repeat(65).parse::<UploadTag>(), Err(InvalidUploadTag::Length { found: 65 }));
    for (tag, position) in [("a b", 1), ("\t", 0), ("ab\x7f", 2), ("aé", 1)] {
        assert_eq!(tag.parse::<UploadTag>(), Err(InvalidUploadTag::Character { position }));
    }
}

proptest! {
    #[test]
    fn names_are_read_as_they_are_written(bytes: [u8; 12], days in 0..3_652_059i32, sequence in 1..=u32::MAX) {
        let id = BatchTag::ObjectId(ObjectId::from_bytes(bytes));
        prop_assert_eq!(id.to_string().parse::<BatchTag>(), Ok(id));
        let day = NaiveDate::from_num_days_from_ce_opt(days + 1).unwrap();
        let name = BatchTag::DayName(DayName { day, sequence });
        prop_assert_eq!(name.to_string().parse::<BatchTag>(), Ok(name));
    }

    #[test]
    fn what_is_read_is_what_was_written(text in "\\PC{0,30}|[0-9a-fA-F]{24}|[0-9]{8}-[0-9]{0,11}|[ -~]{0,70}") {
        if let Ok(tag) = text.parse::<BatchTag>() {
            prop_assert_eq!(tag.to_string(), text.clone());
        }
        if let Ok(tag) = text.parse::<UploadTag>() {
            prop_assert_eq!(tag.to_string(), text);
        }
    }

    #[test]
    fn names_grow_whatever_the_clock_does(
        mut last: [u8; 12],
        used_up: bool,
        clock in proptest::collection::vec((-10..10i64, any::<[u8; 5]>()), 1..20),
    ) {
        // The last second of the year 2106 has none after it.
        last[0] &= 0x7f;
        if used_up {
            last[9..].fill(0xff);
        }
        let mut last = ObjectId::from_bytes(last);
        let start = last.timestamp();
        for (seconds, random) in clock {
            let next = ObjectId::next(Some(last), start + chrono::TimeDelta::seconds(seconds), random);
            prop_assert!(next > last, "{} after {}", next, last);
            prop_assert!(next.to_string() > last.to_string());
            last = next;
        }
    }
}
