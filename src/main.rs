//! The command `efgs-gateway`.

use std::process::ExitCode;

fn main() -> ExitCode {
    efgs_gateway::cli::main()
}
