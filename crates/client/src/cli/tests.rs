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
