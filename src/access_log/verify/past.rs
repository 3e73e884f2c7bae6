//! What is old enough to be deleted, and whether it is as it was written.
//!
//! Columns are not trusted: the age of a statement comes from its signed text, and the age of a record from the
//! statements about it or from what its hash covers.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};

use super::{
    super::{ChainEnd, Hash, StatementKind, digest, hex},
    ChainWalk, Evidence, PAGE, StatedChain, Statements, VerificationReport, missing, newest_cut, parse,
};
use crate::store::{Store, StoreError};

/// The old part of the list of statements.
#[derive(Debug, Default)]
pub(in crate::access_log) struct OldStatements {
    chains: HashMap<String, OldChain>,
    /// The first statement that there is.
    first: Option<i64>,
    /// The last one that is old.
    last: Option<i64>,
    /// The one behind that.
    next: Option<i64>,
    /// The first one that is not old.
    young: Option<i64>,
    /// What is wrong, and with which statement.
    faults: Vec<(i64, &'static str)>,
}

/// What old statements say of a chain.
#[derive(Debug)]
struct OldChain {
    /// The statement from which what is left of it is verified: the first one, or the last cut.
    from: i64,
    /// The last head: its number, the record, and its hash.
    head: Option<(i64, i64, Hash)>,
}

/// Records of a chain that may be forgotten.
#[derive(Debug)]
pub(in crate::access_log) struct OldRecords {
    /// The last of them.
    pub(in crate::access_log) end: ChainEnd,
    /// Whether a cut says so already.
    pub(in crate::access_log) said: bool,
}

/// Walks through the statements that are older than `before`.
pub(in crate::access_log) async fn walk(
    store: &Store,
    evidence: &Evidence,
    before: DateTime<Utc>,
) -> Result<OldStatements, StoreError> {
    let mut past = OldStatements::default();
    let trims = store.newest_trims(PAGE).await?;
    let begin = trims.iter().find_map(|row| evidence.read(row)).map_or(1, |trim| trim.sequence);
    let mut last: Option<(i64, Hash)> = None;
    let mut statements = Statements::new(store, i64::MIN);
    while let Some(row) = statements.next().await? {
        let number = row.number;
        past.first.get_or_insert(number);
        if past.last.is_some() {
            past.next.get_or_insert(number);
        }
        // An interrupted run may have left statements that are before the beginning.
        let expected = last.map_or(begin.min(number), |(before, _)| before.saturating_add(1));
        if number < 1 {
            past.faults.push((number, "a statement before the beginning of the list: it was inserted"));
        } else if number > expected {
            past.faults.push((expected, "statements are missing from here on"));
        }
        let follows = last.filter(|_| number == expected).map(|(_, digest)| hex(&digest));
        last = Some((number, digest(&row.signed.statement)));
        let Some(statement) = evidence.read(&row) else {
            past.faults.push((number, "the statement was changed, or is not signed with a known key"));
            continue;
        };
        if follows.is_some_and(|previous| previous != statement.previous) {
            past.faults.push((number, "the statement does not follow the one before it"));
        }
        if row.at.is_none_or(|at| at >= before) {
            past.young = Some(number);
            return Ok(past);
        }
        (past.last, past.next) = (Some(number), None);
        let chain = match statement.kind {
            StatementKind::Trim => continue,
            _ => past.chains.entry(statement.instance).or_insert(OldChain { from: number, head: None }),
        };
        match statement.kind {
            StatementKind::Cut => chain.from = number,
            StatementKind::Head | StatementKind::End => {
                chain.head = Some((number, statement.sequence, parse(&statement.hash)));
            }
            StatementKind::Start | StatementKind::Trim => {}
        }
    }
    Ok(past)
}

impl OldStatements {
    /// The records of a chain that are old, and into `report` what is wrong with them.
    pub(in crate::access_log) async fn records(
        &self,
        store: &Store,
        evidence: &Evidence,
        instance: &str,
        before: DateTime<Utc>,
        report: &mut VerificationReport,
    ) -> Result<Option<OldRecords>, StoreError> {
        let chain = self.chains.get(instance);
        let cut = newest_cut(store, evidence, instance).await?;
        let is_young = match self.young {
            Some(young) => store.is_named_from(instance, young).await?,
            None => false,
        };
        let mut ends = Vec::from_iter(cut);
        ends.extend(chain.and_then(|chain| chain.head).map(|(_, sequence, hash)| (sequence, hash)));
        let mut ends: Vec<_> =
            ends.into_iter().map(|(sequence, hash)| ChainEnd::new(sequence, hash)).collect();
        if !is_young {
            // Behind the last head of a gateway that was killed.
            ends.extend(store.last_outdated(instance, before).await?);
        }
        let Some(end) = ends.into_iter().max_by_key(|end| end.sequence) else { return Ok(None) };
        if chain.is_none() && cut.is_none() && !is_young {
            report.fault(Some(instance), 0, "no statement with a known signature names this chain");
        }
        let known = StatedChain { last: end.sequence, cut, ..StatedChain::default() };
        let said = cut.is_some_and(|(cut, _)| cut >= end.sequence);
        let (end_of_walk, mut changed) = (end.sequence, Vec::new());
        let walk =
            ChainWalk { store, evidence, instance, known, end: end_of_walk, report, changed: &mut changed };
        walk.run().await?;
        Ok(Some(OldRecords { end, said }))
    }

    /// The first statement that stays, if others do not, and into `report` what is wrong with those. The chains that
    /// are `live` are verified from the statements that are left about them.
    pub(in crate::access_log) async fn statements(
        &self,
        store: &Store,
        evidence: &Evidence,
        live: &HashSet<String>,
        report: &mut VerificationReport,
    ) -> Result<Option<i64>, StoreError> {
        let (Some(first), Some(last)) = (self.first, self.last) else { return Ok(None) };
        let needed = self.chains.iter().filter(|(instance, _)| live.contains(*instance));
        let needed = needed.map(|(_, chain)| chain.from).min().unwrap_or(i64::MAX);
        let stays = needed.min(self.next.unwrap_or(last.saturating_add(1)));
        if first >= stays {
            return Ok(None);
        }
        for (number, what) in self.faults.iter().filter(|(number, _)| *number < stays) {
            report.fault(None, *number, *what);
        }
        for (instance, chain) in self.chains.iter().filter(|(instance, _)| !live.contains(*instance)) {
            let Some((_, head, _)) = chain.head.filter(|(number, ..)| *number < stays) else { continue };
            // Its records are missing, and without this statement that can no longer be proved.
            let cut = newest_cut(store, evidence, instance).await?.map_or(0, |(cut, _)| cut);
            if cut < head {
                missing(report, Some(instance), cut + 1, head);
            }
        }
        Ok(Some(stays))
    }
}
