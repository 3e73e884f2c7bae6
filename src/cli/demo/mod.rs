//! `demo`.

use clap::Args;

use super::Outcome;

/// The whole story on an empty machine
#[derive(Debug, Args)]
pub(super) struct DemoArgs {}

pub(super) async fn run(_: DemoArgs) -> Outcome {
    Err("to be written".into())
}
