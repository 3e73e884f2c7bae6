#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, path::Path};

use super::{
    DemoArgs,
    folder::Folder,
    free, invite, quote, reachable, refuse_environment,
    report::{Report, check},
    set_up,
};

fn printed(report: impl FnOnce(&mut Report<&mut Vec<u8>>), colour: bool) -> String {
    let mut out = Vec::new();
    report(&mut Report::new(&mut out, colour));
    String::from_utf8(out).unwrap()
}

fn any_port(keep: &Path) -> DemoArgs {
    DemoArgs { once: true, listen: Some("127.0.0.1:0".parse().unwrap()), keep: Some(keep.to_owned()) }
}

/// What the demo prints with a folder, and whether every step held.
async fn demo(folder: &Path) -> (String, bool) {
    let mut out = Vec::new();
    let mut report = Report::new(&mut out, false);
    let stage = set_up(&any_port(folder), &mut report).await.unwrap();
    stage.run(&mut report).await.unwrap();
    invite::invite(&mut report, &stage).await.unwrap();
    stage.gateway.stop().await;
    let held = report.all_held();
    (String::from_utf8(out).unwrap(), held)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_steps_hold_twice_in_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let (text, held) = demo(folder.path()).await;
        assert!(held, "{text}");
        let printed_steps = text.split("The gateway keeps serving").next().unwrap();
        for line in printed_steps.lines().filter(|line| !line.starts_with("Folder: ")) {
            assert!(line.chars().count() <= 80, "too long for a terminal: {line}");
        }
    }
    for country in ["DE", "NL", "BE"] {
        let profile =
            efgs_client::Profile::load(&folder.path().join(country).join("efgs-client.toml")).unwrap();
        assert_eq!(profile.country().as_str(), country);
        profile.gateway().unwrap();
        profile.signer().unwrap();
        profile.anchor().unwrap();
        assert_eq!(profile.warnings(), Vec::<String>::new());
    }
    for private in ["trust-anchor.key", "server.key", "payload-1.key", "DE/signing.key"] {
        let mode = fs::metadata(folder.path().join(private)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{private}");
    }
    for named in ["server-ca.pem", "NL/authentication.key", "NL/upload.json", "NL/upload.signature"] {
        assert!(folder.path().join(named).exists(), "{named}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_does_something_else_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    drop(Folder::prepare(Some(folder.path()), "127.0.0.1:0".parse().unwrap()).unwrap());
    let path = folder.path().join("efgs.toml");
    let config = fs::read_to_string(&path).unwrap() + "\n[upload]\nmax_keys = 4\n";
    fs::write(path, config).unwrap();
    let (text, held) = demo(folder.path()).await;
    assert!(!held);
    assert!(text.contains("✗ DE uploads 5 keys as protobuf"), "{text}");
    assert!(text.contains("answer: expected 201, got the gateway answered 413 too-many-keys: "), "{text}");
    assert!(text.contains("keys that wait: expected 5, got 0"), "{text}");
    assert!(text.contains("steps failed."), "{text}");
}

#[test]
fn a_folder_of_somebody_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "").unwrap();
    let error = Folder::prepare(Some(folder.path()), "127.0.0.1:0".parse().unwrap()).err().unwrap();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_temporary_folder_is_deleted() {
    let folder = Folder::prepare(None, "127.0.0.1:0".parse().unwrap()).unwrap();
    let path = folder.path().to_owned();
    assert!(folder.is_temporary() && folder.config().exists());
    drop(folder);
    assert!(!path.exists());
}

#[test]
fn a_taken_address_is_left_only_when_nobody_asked_for_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    assert_eq!(free(taken, true), Ok("127.0.0.1:0".parse().unwrap()));
    assert!(free(taken, false).unwrap_err().contains("--listen"));
    let any = "127.0.0.1:0".parse().unwrap();
    assert_eq!(free(any, false), Ok(any));
    assert!(free("192.0.2.1:0".parse().unwrap(), true).unwrap_err().contains("this machine only"));
}

#[test]
fn clients_call_an_address_that_the_certificate_names() {
    for (listen, call) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("[::1]:1", "[::1]:1")] {
        assert_eq!(reachable(listen.parse().unwrap()).to_string(), call);
    }
}

#[test]
fn an_operators_environment_is_not_taken_over() {
    assert_eq!(refuse_environment(["PATH".to_owned()].into_iter()), Ok(()));
    let error = refuse_environment(["EFGS__DATABASE__URL".to_owned()].into_iter()).unwrap_err();
    assert!(error.contains("env -u EFGS__DATABASE__URL"), "{error}");
}

#[test]
fn paths_survive_a_shell() {
    assert_eq!(quote("/tmp/efgs-demo"), "/tmp/efgs-demo");
    assert_eq!(quote("/tmp/it's"), r"'/tmp/it'\''s'");
}

#[test]
fn results_stand_in_one_column() {
    let text = printed(
        |report| {
            report.step("short", "good", "because", [check("x", 1, 1)]).unwrap();
            report.step("rather longer", "good", "because", [check("x", 1, 1)]).unwrap();
        },
        false,
    );
    let columns: Vec<_> =
        text.lines().filter_map(|line| line.find("good").map(|at| line[..at].chars().count())).collect();
    assert_eq!(columns, [58, 58], "{text}");
}

#[test]
fn a_step_that_does_not_hold_says_what_was_expected() {
    fn example(report: &mut Report<&mut Vec<u8>>) {
        let wrong = check("keys", 5, 4).or_say("four");
        report.step("first", "good", "because", [check("status", 201, 201)]).unwrap();
        report.step("second", "good", "because", [check("status", 201, 201), wrong]).unwrap();
        assert!(!report.all_held());
        report.summary().unwrap();
    }
    let text = printed(example, false);
    assert!(text.ends_with("      keys: expected 5, got four\n\n✗ 1 of 2 steps failed.\n"), "{text}");
    assert!(!text.contains('\x1b'));
    assert!(printed(example, true).contains("\x1b[31;1m✗\x1b[0m"));
}
