//! The command `efgs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    efgs_client::cli::main()
}
