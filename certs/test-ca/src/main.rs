//! Writes a throw-away public-key infrastructure as files, see the README beside the sources.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use efgs_protocol::country::Country;
use efgs_test_ca::{KeyKind, Pki};

const USAGE: &str = "Usage: efgs-test-ca DIR [COUNTRY…]

Writes a throw-away PKI into DIR: trust anchor, server and callback client, and a folder for each country
(default: DE NL IT). Example: efgs-test-ca /tmp/pki DE FR";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((folder, countries)) = arguments.split_first().filter(|(first, _)| !first.starts_with('-'))
    else {
        println!("{USAGE}");
        let asked = arguments.first().is_some_and(|first| first == "--help" || first == "-h");
        return if asked { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    };
    match write(Path::new(folder), countries) {
        Ok(()) => {
            println!("wrote a throw-away PKI to {folder}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path, countries: &[String]) -> Result<(), Box<dyn Error>> {
    let countries = match countries {
        [] => ["DE", "NL", "IT"].map(Country::new).into_iter().collect::<Result<Vec<_>, _>>()?,
        some => some.iter().map(|country| country.parse()).collect::<Result<_, _>>()?,
    };
    let pki = Pki::new(KeyKind::Rsa(3072))?;
    pki.write(folder)?;
    for country in countries {
        pki.participant(country)?.write(&folder.join(country.as_str()))?;
    }
    Ok(())
}
