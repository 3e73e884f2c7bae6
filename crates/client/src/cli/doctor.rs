//! `efgs doctor`: checks the profile and the gateway, and suggests remedies.

use clap::Args;
use efgs_protocol::clock::Clock;
use serde_json::json;

use super::{
    Context, Outcome,
    output::{Exit, clean},
};
use crate::{
    Profile,
    doctor::{self, Check, State},
};

/// Check the profile, its certificates, and whether the gateway accepts them
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs doctor --profile efgs-client.toml\n\nIt changes nothing, and the gateway stores nothing. Exit code 1 when a check failed, 0 otherwise, also with warnings."
)]
pub(super) struct DoctorArgs {
    /// Check only the files; do not call the gateway
    #[arg(long)]
    offline: bool,
}

pub(super) async fn run(context: &Context, args: &DoctorArgs) -> Outcome {
    let clock = Clock::system();
    let checks = match Profile::load(&context.path) {
        Ok(profile) => {
            let mut checks = doctor::examine_files(&profile, &clock);
            if !args.offline {
                checks.extend(doctor::examine_gateway(&profile, &clock).await);
            }
            checks
        }
        Err(error) => vec![Check::failed("profile", error, "fix the profile first")],
    };
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let (failed, warnings) = (count(State::Failed), count(State::Warning));
    let mut text: String = checks.iter().map(line).collect();
    text += &match (failed, warnings) {
        (0, 0) => "all is well".to_owned(),
        (0, warnings) => format!("it works; warnings: {warnings}"),
        (failed, warnings) => format!("failed: {failed}, warnings: {warnings}"),
    };
    context.console.result(&json!({"checks": checks, "failed": failed, "warnings": warnings}), text)?;
    Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
}

fn line(check: &Check) -> String {
    let mark = match check.state {
        State::Ok => "ok",
        State::Warning => "warning",
        State::Failed => "FAILED",
        State::Skipped => "-",
    };
    let remedy = check.remedy.as_ref().map(|remedy| format!("\n{:34}-> {remedy}", "")).unwrap_or_default();
    clean(&format!("{mark:<8}{:<26}{}{remedy}\n", check.check, check.detail))
}
