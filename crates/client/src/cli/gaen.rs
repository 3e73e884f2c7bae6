//! Arguments of the commands that read GAEN exports.

use std::{error::Error, fs, path::PathBuf};

use clap::Args;
use efgs_protocol::country::Country;

use crate::{gaen::VerifyingKey, source::GaenDefaults};

#[derive(Debug, Args)]
pub(super) struct GaenArgs {
    /// The countries visited, for the keys of GAEN export zips among the files, which do not contain them
    #[arg(long, value_name = "COUNTRIES", value_delimiter = ',')]
    visited: Vec<Country>,
    /// The public key or certificate (PEM) whose signature GAEN export zips among the files must have
    #[arg(long, value_name = "FILE")]
    gaen_key: Option<PathBuf>,
}

impl GaenArgs {
    /// What export files do not say of a country's keys.
    pub(super) fn defaults(self, origin: Country) -> Result<GaenDefaults, String> {
        let key = self.gaen_key.map(|path| {
            let wrong = |error: &dyn Error| format!("--gaen-key {}: {error}", path.display());
            VerifyingKey::from_pem(&fs::read(&path).map_err(|error| wrong(&error))?)
                .map_err(|error| wrong(&error))
        });
        Ok(GaenDefaults { origin, visited_countries: self.visited, key: key.transpose()? })
    }
}
