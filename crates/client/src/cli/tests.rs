#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use clap::CommandFactory as _;

use super::*;

#[test]
fn the_arguments_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_shows_an_example() {
    fn check(command: &clap::Command, path: &str) {
        let name = format!("{path} {}", command.get_name());
        if command.has_subcommands() {
            command.get_subcommands().filter(|c| c.get_name() != "help").for_each(|c| check(c, &name));
        } else {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Example:\n ") && help.contains(&name), "{name}: {help:?}");
            assert!(command.get_about().is_some(), "{name} says what it does");
        }
    }
    check(&Cli::command(), "");
}

/// The command with these arguments, in this process.
fn run_with(arguments: &[&str]) -> Outcome {
    let Cli { global, command } = Cli::parse_from(std::iter::once("efgs").chain(arguments.iter().copied()));
    let context = Context { console: Console::new(global.json, true), path: global.profile };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&context, command))
}

#[test]
fn init_writes_a_profile_that_can_be_read_and_replaces_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nl.toml");
    let file = path.to_str().unwrap();
    let init = ["init", file, "--country", "NL", "--url", "https://gateway.example:1/efgs/"];
    assert_eq!(run_with(&init).unwrap(), Exit::Done);
    let profile = Profile::load(&path).unwrap();
    assert_eq!(profile.country().as_str(), "NL");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("url = \"https://gateway.example:1/efgs\"") && !text.contains("XX"), "{text}");

    let again = run_with(&["init", file]).unwrap_err();
    assert!(again.to_string().contains("--force replaces it"), "{again}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    assert_eq!(run_with(&["init", file, "--force"]).unwrap(), Exit::Done);
    assert_ne!(std::fs::read_to_string(&path).unwrap(), text);
    assert!(run_with(&["init", file, "--force", "--url", "http://gateway"]).is_err());
}

#[test]
fn a_dry_run_looks_once() {
    let error = run_with(&["download", "--dry-run", "--follow"]).unwrap_err();
    assert_eq!(Exit::of(&*error), Exit::Usage);
    assert!(error.to_string().contains("without --follow"), "{error}");
}

#[test]
fn every_exit_code_is_explained() {
    use Exit::{Done, Failed, Later, Partly, Unverified, Usage};
    for exit in [Done, Failed, Usage, Unverified, Partly, Later] {
        assert!(Exit::explained().contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
    }
    assert_eq!(Exit::explained().lines().count(), 7);
}

#[test]
fn manual_pages_are_written_for_all_commands_and_list_the_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run_with(&["man", "--folder", folder.path().to_str().unwrap()]).unwrap(), Exit::Done);
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let main = read("efgs.1");
    assert!(main.contains("Exit codes:") && main.contains("did not verify"), "{main}");
    assert!(read("efgs-callback-put.1").contains("dry"));
    for command in Cli::command().get_subcommands() {
        let page = read(&format!("efgs-{}.1", command.get_name()));
        assert!(command.has_subcommands() || page.contains("Example:"), "{page}");
    }
}
