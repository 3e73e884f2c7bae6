//! A wrong clock, a wrong folder: nothing is lost.

use super::*;

#[test]
fn a_clock_that_is_behind_loses_no_batch() {
    let backend = Backend::new(|settings| settings.trust_clock = true);
    backend.batch("0000000001_2026-11-24_20261124-1.pb", 0..3);
    let boot = DateTime::UNIX_EPOCH + TimeDelta::minutes(3);
    let (batches, published) = backend.run_batches(boot);
    assert_eq!((batches, published.intake.implausible, published.added.len()), (1, 3, 0));
    let (batches, published) = backend.run_batches(now());
    assert_eq!((batches, published.intake.implausible), (1, 0));
    assert_eq!(backend.count("DE"), 3);
    assert_eq!(backend.run_batches(hours(1)).0, 0);
}

#[test]
fn a_clock_that_jumps_is_not_believed_unless_confirmed() {
    let backend = Backend::new(|_| ());
    backend.run(now(), &many(0..5, "DE"));
    let everything = || {
        let of_state = |name: &str| fs::read(backend.state().join(name)).unwrap();
        (backend.files(), of_state("export.json"), of_state("keys-1"))
    };
    let before = everything();
    let boot = DateTime::UNIX_EPOCH + TimeDelta::minutes(3);
    for wrong in [boot, hours(-2), hours(49), hours(24 * 365)] {
        let error = backend.try_open(wrong, &backend.folder()).err().unwrap();
        assert!(matches!(error, ExportError::Clock { .. }), "{wrong}: {error}");
        let text = error.to_string();
        let said = wrong.format("clock says %F %T UTC").to_string();
        assert!(text.contains(&said) && text.contains("2026-11-24 10:20:00"), "{text}");
        assert!(text.contains("--trust-clock"), "{text}");
        assert!(before == everything(), "{wrong}");
    }
    backend.run(hours(47), &many(5..9, "DE"));
    backend.run(hours(46), &[]);
    assert_eq!(backend.count("DE"), 9);

    // After a long pause that is confirmed it goes on, with the new time.
    let backend = Backend { settings: |settings| settings.trust_clock = true, ..backend };
    backend.run(hours(24 * 10), &[]);
    let backend = Backend { settings: |_| (), ..backend };
    backend.run(hours(24 * 10 + 1), &[]);
    assert_eq!(backend.count("DE"), 9);
}

#[test]
fn an_archive_of_the_future_does_not_keep_back_those_of_today() {
    let backend = Backend::new(|settings| settings.trust_clock = true);
    backend.run(hours(30), &many(0..5, "DE"));
    backend.run(now(), &many(5..9, "DE"));
    assert_eq!(backend.count("DE"), 9);
}

#[test]
fn archives_stay_in_their_folder() {
    let backend = Backend::new(|_| ());
    backend.run(now(), &many(0..5, "DE"));
    let other = backend.folders.path().join("other");
    let publish = |folder: &Path| {
        let mut exporter = backend.try_open(hours(1), folder).unwrap();
        many(5..9, "DE").iter().for_each(|(key, _)| exporter.add(key, &[]));
        exporter.publish(false).map_err(|error| error.to_string())
    };
    let refused = publish(&other).unwrap_err();
    let known = backend.folder().display().to_string();
    assert!(refused.contains(&format!("are in {known}, not in {}", other.display())), "{refused}");
    assert!(!other.exists());
    // A folder that was moved as it was is the same one.
    fs::rename(backend.folder(), &other).unwrap();
    publish(&other).unwrap();
    fs::rename(&other, backend.folder()).unwrap();
    assert_eq!(publish(&backend.folder()).unwrap().intake.known, 4);
    assert_eq!(backend.count("DE"), 9);
}

#[test]
fn an_index_never_lists_what_is_not_there() {
    let backend = Backend::new(|_| ());
    let published = backend.run(now(), &many(0..5, "DE"));
    let path = &published.added[0].index.path;
    let archive = backend.folder().join(path);
    let bytes = fs::read(&archive).unwrap();
    fs::remove_file(&archive).unwrap();
    let before = backend.files();
    let mut exporter = backend.open(hours(1));
    many(5..9, "DE").iter().for_each(|(key, _)| exporter.add(key, &[]));
    let refused = exporter.publish(false).unwrap_err().to_string();
    assert!(refused.contains("lacks 1 of its archives") && refused.contains(path.as_str()), "{refused}");
    assert!(backend.files() == before);
    drop(exporter);
    fs::write(&archive, bytes).unwrap();
    backend.run(hours(1), &many(5..9, "DE"));
    assert_eq!(backend.count("DE"), 9);
}
