//! Sets of regions, small enough to lie in each key's record.

use serde::{Deserialize, Serialize};

use super::ExportError;

/// A set of regions: a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RegionSet(pub(super) u64);

impl RegionSet {
    pub(super) fn contains(self, region: Self) -> bool {
        self.0 & region.0 != 0
    }

    pub(super) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// Which bit stands for which region. A name keeps its bit permanently.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Regions(Vec<String>);

impl Regions {
    /// Gives a bit to each name that has none yet.
    pub(super) fn name<'a>(&mut self, codes: impl Iterator<Item = &'a str>) -> Result<(), ExportError> {
        for code in codes {
            if !self.0.iter().any(|known| known == code) {
                self.0.push(code.to_owned());
            }
        }
        let most = u64::BITS as usize;
        if self.0.len() > most {
            let reason =
                format!("{} regions, with those of earlier runs, are more than {most}", self.0.len());
            return Err(ExportError::Settings(reason));
        }
        Ok(())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The set of these names, as far as they have bits.
    pub(super) fn mask<'a>(&self, codes: impl Iterator<Item = &'a str>) -> RegionSet {
        let bit = |code: &str| self.0.iter().position(|known| known == code).map(|place| 1 << place);
        RegionSet(codes.filter_map(bit).fold(0, |all, bit| all | bit))
    }
}
