//! Statements that were kept elsewhere.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{
    super::{Hash, SignedStatement, Statement, digest},
    Evidence, MOST, StatedChain, VerificationReport,
};

/// Statements that were kept elsewhere: of each only what is compared, about 60 bytes.
#[derive(Clone, Debug, Default)]
pub struct KeptStatements {
    /// By their number: the hash, and whether it is too young to be forgotten.
    statements: BTreeMap<i64, (Hash, bool)>,
    /// Of each chain the first record that a young one names, and the number of that statement.
    young: BTreeMap<String, (i64, i64)>,
    /// What is wrong with them, regardless of the database.
    faults: Vec<(i64, String)>,
}

impl KeptStatements {
    fn fault(&mut self, number: i64, what: impl Into<String>) {
        if self.faults.len() < MOST {
            self.faults.push((number, what.into()));
        }
    }

    pub(super) fn tell(&self, report: &mut VerificationReport) {
        for (number, what) in &self.faults {
            report.fault(None, *number, what);
        }
    }

    /// Number, hash, and whether it is young, in the order of the numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (i64, Hash, bool)> {
        self.statements.iter().map(|(number, (hash, young))| (*number, *hash, *young))
    }

    /// Notes which chains must not have been forgotten.
    pub(super) fn note_young(&self, known: &mut BTreeMap<String, StatedChain>) {
        for (instance, (sequence, number)) in &self.young {
            if let Some(known) = known.get_mut(instance) {
                known.note_young(*sequence, *number);
            }
        }
    }
}

impl Evidence {
    /// Adds a statement that was kept elsewhere. The keys come first, and what is young.
    pub fn keep(&mut self, signed: &SignedStatement) {
        let Some(statement) = Statement::parse(&signed.statement) else {
            return self
                .kept
                .fault(0, format!("a line of the file is not a statement: {:?}", signed.statement));
        };
        let number = statement.number;
        if self.demands(number) && !self.verifies(signed) {
            self.kept.fault(number, "a statement of the file is not signed with the key");
        }
        let young = self.is_young(&statement);
        let hash = digest(&signed.statement);
        match self.kept.statements.entry(number) {
            Entry::Occupied(other) if other.get().0 != hash => {
                let what =
                    "the file has two statements with this number that differ: there have been two histories";
                self.kept.fault(number, what);
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(free) => drop(free.insert((hash, young))),
        }
        if young && statement.kind.is_head() {
            let first = self.kept.young.entry(statement.instance).or_insert((statement.sequence, number));
            *first = (*first).min((statement.sequence, number));
        }
    }
}
