#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod backend;
mod wrong;

use std::{collections::BTreeMap, fs};

use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;
use crate::gaen::{Section, TemporaryExposureKey};
use backend::{Backend, hours, key, many, now};

#[test]
fn a_key_goes_to_its_origin_to_each_visited_country_and_to_all() {
    let backend = Backend::new(|_| ());
    let published = backend.run(
        now(),
        &[
            (key(1, "DE"), &[]),
            (key(2, "DE"), &["NL"]),
            (key(3, "NL"), &["DE", "FR", "NL"]),
            (key(4, "PL"), &["FR"]),
            (key(5, "PL"), &[]),
        ],
    );
    let counts = ["DE", "NL", "FR", "EUR"].map(|region| backend.count(region));
    assert_eq!(counts, [3, 2, 2, 5]);
    assert_eq!(published.intake.keys, 5);
    assert_eq!(published.added.len(), 4);
    assert_eq!(published.start, "2026-11-24T09:00:00Z".parse::<DateTime<Utc>>().unwrap().timestamp());
    let path = &published.added[0].index.path;
    assert!(path.starts_with("DE/2026-11-24/09/1-") && path.ends_with(".zip"), "{path}");
}

#[test]
fn phones_get_only_what_they_understand() {
    let backend = Backend::new(|_| ());
    let mut odd = key(1, "DE");
    (odd.transmission_risk_level, odd.days_since_onset_of_symptoms) = (0x07ff_ffff, 2003);
    odd.report_type = ReportType::Unknown;
    let mut plain = key(2, "DE");
    (plain.transmission_risk_level, plain.days_since_onset_of_symptoms) = (8, -14);
    let mut recursive = key(3, "DE");
    recursive.report_type = ReportType::Recursive;
    let mut long = key(4, "DE");
    long.rolling_period = 145;
    let mut future = key(5, "DE");
    future.rolling_start_interval_number += 1000;
    let mut old = key(6, "DE");
    old.rolling_start_interval_number -= 15 * 144;
    let keys = [odd, plain, recursive, long, future, old].map(|key| (key, &[][..]));
    let intake = backend.run(now(), &keys).intake;
    let expected = Intake { keys: 6, report_type: 1, implausible: 2, too_old: 1, ..Intake::default() };
    assert_eq!(intake, expected);
    let mut published = backend.region("DE");
    published.sort_by_key(|(_, key)| key.key_data.as_bytes()[15]);
    let said = |key: &TemporaryExposureKey| {
        (key.transmission_risk_level, key.report_type, key.days_since_onset_of_symptoms)
    };
    assert_eq!(said(&published[0].1), (None, None, None));
    assert_eq!(said(&published[1].1), (Some(8), Some(ReportType::ConfirmedTest), Some(-14)));
    assert_eq!(published.len(), 2);
}

#[test]
fn a_key_waits_for_the_end_of_its_rolling_period_and_the_margin() {
    let backend = Backend::new(|_| ());
    let mut today = key(1, "DE");
    today.rolling_start_interval_number += 144;
    today.rolling_period = 60; // until 10:00
    let published = backend.run(now(), &[(today, &[])]);
    assert_eq!((published.regions[0].not_ended, published.added.len()), (1, 0));
    assert!(backend.run(hours(1), &[]).added.is_empty());
    assert_eq!(backend.run(hours(2), &[]).added.len(), 2);
    assert_eq!(backend.count("DE"), 1);
}

#[test]
fn few_keys_are_withheld_and_join_the_next_period() {
    let backend = Backend::new(|settings| settings.minimum = 10);
    let published = backend.run(now(), &many(0..9, "DE"));
    assert!(published.added.is_empty());
    assert_eq!(published.regions[0].withheld, 9);
    backend.run(hours(1), &many(9..10, "NL"));
    assert_eq!(["DE", "NL", "EUR"].map(|region| backend.count(region)), [0, 0, 10]);
    backend.run(hours(2), &many(10..11, "DE"));
    assert_eq!(["DE", "NL", "EUR"].map(|region| backend.count(region)), [10, 0, 10]);
}

#[test]
fn padding_looks_like_keys_and_goes_wherever_they_go() {
    let padded = |settings: &mut ExportSettings| (settings.minimum, settings.padding) = (20, true);
    let backend = Backend::new(padded);
    let real = [(key(1, "DE"), &["FR"][..]), (key(2, "DE"), &[]), (key(3, "DE"), &["FR"])];
    let published = backend.run(now(), &real);
    let report = |region: &str| published.regions.iter().find(|one| one.region == region).unwrap();
    // The padding of FR is also in DE, as are the keys that it looks like.
    assert!(report("DE").new >= 20 && report("DE").padding == report("DE").new - 3, "{published:?}");
    assert_eq!((report("FR").new, report("FR").padding), (20, 18));
    assert_eq!((report("NL").new, report("NL").padding), (0, 0));
    let sets = ["DE", "FR", "EUR"].map(|region| {
        backend.region(region).into_iter().map(|(_, key)| *key.key_data.as_bytes()).collect::<BTreeSet<_>>()
    });
    assert!(sets[0].len() >= 20 && sets[1].len() >= 20);
    // A key that is missing in the archive with all keys would give itself away; so would one of DE only.
    assert!(sets[0].is_subset(&sets[2]) && sets[1].is_subset(&sets[2]) && sets[1].is_subset(&sets[0]));
    let like = |key: TemporaryExposureKey| (key.rolling_start_interval_number, key.report_type);
    let all = backend.region("DE");
    assert!(all.iter().all(|(_, key)| like(*key) == like(all[0].1)));
    // The next run adds none.
    assert!(backend.run(hours(1), &real).added.is_empty());
    let names = |published: &Published| {
        published.added.iter().map(|file| file.index.path.clone()).collect::<Vec<_>>()
    };
    assert_ne!(names(&Backend::new(padded).run(now(), &real)), names(&published), "who knows the secret?");
}

#[test]
fn nothing_is_published_twice_and_nothing_is_lost() {
    let backend = Backend::new(|_| ());
    backend.run(now(), &many(0..50, "DE"));
    let before = backend.files();
    let again = backend.run(now(), &many(0..50, "DE"));
    assert_eq!((again.added.len(), again.intake.known), (0, 50));
    assert_eq!(backend.files(), before);
    // The period has its archive: the next keys wait for the next period, and old archives stay as they are.
    let waiting = backend.run(now(), &many(40..60, "DE"));
    assert_eq!((waiting.added.len(), waiting.regions[0].withheld), (0, 10));
    let next = backend.run(hours(1), &[]);
    assert_eq!(next.regions[0].new, 10);
    assert_eq!(backend.count("DE"), 60);
    let after = backend.files();
    assert!(before.iter().all(|(path, bytes)| path.extension().unwrap() != "zip" || after[path] == *bytes));
}

#[test]
fn the_same_keys_give_the_same_archives_in_whatever_order_they_come() {
    let names = |keys: &[(DiagnosisKey, &[&str])]| {
        let backend = Backend::new(|_| ());
        let published = backend.run(now(), keys);
        published.added.into_iter().map(|file| file.index.path).collect::<Vec<_>>()
    };
    let mut keys = many(0..50, "DE");
    let first = names(&keys);
    // The names have the hash of what was signed; only the private key is another one.
    keys.reverse();
    assert_eq!(first, names(&keys));
    keys.pop();
    assert_ne!(first, names(&keys));
}

#[test]
fn a_period_is_split_into_files_of_about_the_same_length() {
    let backend = Backend::new(|settings| settings.max_keys = 40);
    let published = backend.run(now(), &many(0..101, "DE"));
    let files: Vec<_> = published.added.iter().filter(|file| file.region == "DE").map(|f| &f.index).collect();
    let lengths: Vec<_> = files.iter().map(|file| (file.batch_num, file.batch_size, file.keys)).collect();
    assert_eq!(lengths, [(1, 3, 34), (2, 3, 34), (3, 3, 33)]);
    assert_eq!(backend.count("DE"), 101);
}

#[test]
fn what_is_revoked_is_taken_back_or_never_published() {
    let backend = Backend::new(|_| ());
    let mut unsure = key(1, "DE");
    unsure.report_type = ReportType::SelfReport;
    let mut late = key(3, "DE");
    late.rolling_start_interval_number += 144;
    late.rolling_period = 60;
    backend.run(now(), &[(unsure, &["FR"]), (key(2, "DE"), &[]), (late, &[])]);
    assert_eq!((backend.count("DE"), backend.count("FR")), (2, 1));

    let revoked = |key: DiagnosisKey| DiagnosisKey { report_type: ReportType::Revoked, ..key };
    let confirmed = DiagnosisKey { report_type: ReportType::ConfirmedTest, ..unsure };
    let never = [(revoked(late), &[][..]), (revoked(key(4, "DE")), &[]), (key(4, "DE"), &[])];
    let next =
        backend.run(hours(3), &[&[(revoked(key(2, "DE")), &[][..]), (confirmed, &[])][..], &never].concat());
    let report = &next.regions[0];
    assert_eq!((report.region.as_str(), report.new, report.revised), ("DE", 0, 2));
    let mut revised = backend.region("DE").split_off(2);
    revised.sort_by_key(|(_, key)| key.key_data.as_bytes()[15]);
    let said: Vec<_> = revised.iter().map(|(section, key)| (*section, key.report_type.unwrap())).collect();
    assert_eq!(
        said,
        [(Section::Revised, ReportType::ConfirmedTest), (Section::Revised, ReportType::Revoked)]
    );
    // The other country had only the one that is confirmed now.
    assert_eq!(backend.count("FR"), 2);
    // Certainty never goes back: the first report, heard again, changes nothing.
    assert!(backend.run(hours(4), &[(unsure, &[]), (key(2, "DE"), &[])]).added.is_empty());
}

#[test]
fn a_later_report_can_add_countries() {
    let backend = Backend::new(|_| ());
    backend.run(now(), &[(key(1, "DE"), &[])]);
    let intake = backend.run(hours(1), &[(key(1, "DE"), &["NL"])]).intake;
    assert_eq!(intake.changed, 1);
    assert_eq!(["DE", "NL", "EUR"].map(|region| backend.count(region)), [1, 1, 1]);
}

#[test]
fn archives_older_than_14_days_leave_the_index_and_the_folder() {
    let backend = Backend::new(|settings| settings.trust_clock = true);
    backend.run(now(), &many(0..5, "DE"));
    // What a killed run leaves, and what is none of our business.
    let day = backend.folder().join("DE/2026-11-24");
    fs::write(day.join("09/1-0123.zip.tmp"), "half").unwrap();
    fs::write(backend.folder().join("robots.txt"), "").unwrap();
    fs::create_dir(backend.folder().join("DE/logo")).unwrap();
    fs::write(backend.folder().join("DE/logo/a.svg"), "").unwrap();
    backend.run(hours(14 * 24), &[]);
    assert_eq!(fs::read_dir(day.join("09")).unwrap().count(), 1);
    assert_eq!(backend.run(hours(14 * 24 + 1), &many(0..5, "DE")).expired, 2);
    assert_eq!((backend.count("DE"), backend.count("EUR")), (0, 0));
    assert!(!day.exists());
    let left = backend.files();
    assert_eq!(left.keys().filter(|path| path.extension().unwrap() == "zip").count(), 0);
    assert!(left.contains_key(&backend.folder().join("DE/logo/a.svg")));
    assert!(left.contains_key(&backend.folder().join("robots.txt")));
}

#[test]
fn a_run_that_was_killed_is_made_up_for() {
    let backend = Backend::new(|_| ());
    backend.run(now(), &many(0..5, "DE"));
    let remembered = fs::read(backend.state().join("export.json")).unwrap();
    let keys = fs::read(backend.state().join("keys-1")).unwrap();
    backend.run(hours(1), &many(5..9, "DE"));
    let index = fs::read(backend.folder().join("index.json")).unwrap();

    // Killed before it counted: archives of the period are there, and no more.
    fs::write(backend.state().join("export.json"), remembered).unwrap();
    fs::write(backend.state().join("keys-1"), keys).unwrap();
    let published = backend.run(hours(1), &many(5..10, "DE"));
    assert_eq!(published.regions[0].new, 5);
    assert_eq!((backend.count("DE"), backend.count("EUR")), (10, 10));
    let zips = backend.files().into_keys().filter(|path| path.extension().unwrap() == "zip").count();
    assert_eq!(zips, 4, "the archive that never counted is gone");

    // Killed before it wrote the index.
    fs::write(backend.folder().join("index.json"), index).unwrap();
    backend.run(hours(1), &[]);
    assert_eq!(backend.count("DE"), 10);
}

#[test]
fn a_dry_run_tells_and_writes_nothing() {
    let backend = Backend::new(|settings| (settings.minimum, settings.padding) = (10, true));
    let mut exporter = backend.open(now());
    exporter.add(&key(1, "DE"), &[]);
    let published = exporter.publish(true).unwrap();
    assert_eq!((published.regions[0].new, published.regions[0].padding), (10, 9));
    assert!(!backend.folder().exists());
    let left: Vec<_> =
        fs::read_dir(backend.state()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["export.lock"]);
}

#[test]
fn downloaded_batches_are_taken_once() {
    let backend = Backend::new(|_| ());
    let take = |now| {
        let (batches, published) = backend.run_batches(now);
        (batches, published.intake.keys)
    };
    backend.batch("0000000001_2026-11-24_20261124-1.pb", 0..3);
    assert_eq!(take(now()), (1, 3));
    backend.batch("0000000002_2026-11-24_20261124-2.pb", 3..5);
    assert_eq!(take(hours(1)), (1, 2));
    assert_eq!(take(hours(1)), (0, 0));
    assert_eq!((backend.count("DE"), backend.count("NL")), (5, 5));
    let folder = backend.batches();
    fs::write(folder.join("0000000003_2026-11-24_20261124-3.pb"), "cut off").unwrap();
    assert!(matches!(backend.open(hours(2)).add_batches(&folder), Err(ExportError::Batches(_))));
}

#[test]
fn days_have_archives_of_their_own() {
    let backend = Backend::new(|settings| settings.period = Period::Daily);
    let mut before = key(1, "DE");
    before.rolling_start_interval_number -= 144;
    let published = backend.run(now(), &[(before, &[]), (key(2, "DE"), &[])]);
    // The other key ended at midnight: the margin had not passed when the day ended.
    assert_eq!((published.regions[0].new, published.regions[0].not_ended), (1, 1));
    assert!(published.added[0].index.path.starts_with("DE/2026-11-23/1-"), "{published:?}");
    assert!(backend.run(hours(13), &[]).added.is_empty());
    backend.run(hours(14), &[]);
    assert_eq!(backend.count("DE"), 2);
}

#[test]
fn what_cannot_work_is_named() {
    let backend = Backend::new(|_| ());
    let signer = || ExportSigner::from_pem(&backend.key, "262", "v1").unwrap();
    let open = |settings| {
        Exporter::open(settings, &backend.state(), &backend.folder(), now()).err().unwrap().to_string()
    };
    assert!(open(ExportSettings::new([], Vec::new())).contains("no signing key"));
    let none = ExportSettings { combined: None, ..ExportSettings::new([], vec![signer()]) };
    assert!(open(none).contains("neither a country nor"));
    let code = ExportSettings { combined: Some("../x".into()), ..ExportSettings::new([], vec![signer()]) };
    assert!(open(code).contains("region code"));

    backend.run(now(), &many(0..5, "DE"));
    let held = backend.open(now());
    let other = ExportSettings::new([], vec![signer()]);
    assert!(open(other).contains("another efgs uses"));
    drop(held);
    let keys = backend.state().join("keys-1");
    let mut bytes = fs::read(&keys).unwrap();
    bytes[3] ^= 1;
    fs::write(&keys, bytes).unwrap();
    assert!(open(ExportSettings::new([], vec![signer()])).contains("keys-1 is damaged"));
}

#[cfg(unix)]
#[test]
fn the_state_is_private_and_archives_are_public() {
    use std::os::unix::fs::PermissionsExt as _;

    let backend = Backend::new(|settings| (settings.minimum, settings.padding) = (10, true));
    let published = backend.run(now(), &many(0..5, "DE"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&backend.state()), 0o700);
    let mut names: Vec<_> = fs::read_dir(backend.state())
        .unwrap()
        .map(|entry| entry.unwrap())
        .inspect(|entry| assert_eq!(mode(&entry.path()), 0o600, "{entry:?}"))
        .map(|entry| entry.file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["export.json", "export.lock", "keys-1", "padding-secret"]);
    // As far as this process's umask lets it: 022 as a rule.
    let probe = backend.folders.path().join("probe");
    fs::write(&probe, "").unwrap();
    for path in [&*published.added[0].index.path, "index.json", "DE/index.json", "DE/index.txt"] {
        assert_eq!(mode(&backend.folder().join(path)), mode(&probe) & 0o644, "{path}");
    }
}

proptest! {
    // Each case is many runs that write to the disk.
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// However keys arrive, in however many runs: each is published once in each of its regions.
    #[test]
    fn every_key_once_in_every_region(
        arrivals in prop::collection::vec((0u32..60, 0usize..4, 0i64..6), 0..150),
        minimum in 0usize..12,
        max_keys in 1usize..20,
    ) {
        const VISITED: [&[&str]; 4] = [&[], &["NL"], &["NL", "FR"], &["PL"]];
        let backend = Backend::new(|_| ());
        let mut expected: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
        let mut arrivals = arrivals;
        arrivals.sort_by_key(|(_, _, hour)| *hour);
        for (number, visited, _) in &arrivals {
            for region in VISITED[*visited].iter().chain(&["DE", "EUR"]).filter(|region| **region != "PL") {
                expected.entry(region).or_default().insert(*number);
            }
        }
        for hour in 0..=6 {
            let mut exporter = backend.open(hours(hour));
            // All that was withheld goes out in the last run.
            exporter.settings.minimum = if hour == 6 { 0 } else { minimum };
            exporter.settings.max_keys = max_keys;
            for (number, visited, _) in arrivals.iter().filter(|(_, _, at)| *at == hour) {
                let visited: Vec<_> = VISITED[*visited].iter().map(|country| country.parse().unwrap()).collect();
                exporter.add(&key(*number, "DE"), &visited);
            }
            exporter.publish(false).unwrap();
        }
        for region in ["DE", "NL", "FR", "EUR"] {
            let mut found: Vec<_> = backend.region(region).into_iter()
                .map(|(_, key)| u32::from_be_bytes(key.key_data.as_bytes()[12..].try_into().unwrap())).collect();
            found.sort_unstable();
            let expected: Vec<_> = expected.remove(region).unwrap_or_default().into_iter().collect();
            prop_assert_eq!(found, expected);
        }
    }
}
