//! The walk along the list of statements.

use std::collections::BTreeMap;

use super::{
    super::{Hash, ORIGIN, SignedStatement, Statement, StatementKind, digest, hex},
    Evidence, Forced, MOST, StatedChain, Statements, VerificationReport, missing, parse,
};
use crate::store::{Store, StoreError, StoredStatement};

/// Deletions by the retention, as statements say. They count only when they are signed, or, from before signing began,
/// when an unbroken run of hashes leads to a signed statement: write access to the database suffices to write an
/// unsigned one.
#[derive(Debug, Default)]
struct StatedDeletions {
    /// Of each chain the last record, and its hash.
    cuts: BTreeMap<String, (i64, Hash)>,
    /// The first statement that stays.
    trimmed: i64,
}

impl StatedDeletions {
    fn add(&mut self, statement: &Statement) {
        match statement.kind {
            StatementKind::Cut => {
                self.cut(statement.instance.clone(), (statement.sequence, parse(&statement.hash)))
            }
            StatementKind::Trim => self.trimmed = self.trimmed.max(statement.sequence),
            StatementKind::Start | StatementKind::Head | StatementKind::End => {}
        }
    }

    fn cut(&mut self, instance: String, cut: (i64, Hash)) {
        let known = self.cuts.entry(instance).or_insert(cut);
        if cut.0 > known.0 {
            *known = cut;
        }
    }

    fn append(&mut self, other: &mut Self) {
        let Self { cuts, trimmed } = std::mem::take(other);
        self.trimmed = self.trimmed.max(trimmed);
        for (instance, cut) in cuts {
            self.cut(instance, cut);
        }
    }
}

/// Missing statements.
struct Gap {
    from: i64,
    to: i64,
    /// Whether the statement before them is still there. The retention deletes the first ones first.
    inside: bool,
}

/// Walks through the list of statements; returns what it says of each chain.
pub(super) async fn walk(
    store: &Store,
    evidence: &Evidence,
    report: &mut VerificationReport,
) -> Result<BTreeMap<String, StatedChain>, StoreError> {
    let mut known: BTreeMap<String, StatedChain> = BTreeMap::new();
    evidence.kept.tell(report);
    let mut kept = evidence.kept.iter().peekable();
    let mut gone: Vec<(i64, bool)> = Vec::new();
    // What is missing may have been forgotten because of its age: a statement further on says so.
    let (mut gaps, mut forgotten): (Vec<Gap>, StatedDeletions) = (Vec::new(), StatedDeletions::default());
    // What the statements since the last signed one say.
    let mut unsigned = StatedDeletions::default();
    let mut bare = UnsignedRun::default();
    let mut last: Option<(i64, Hash)> = None;
    let mut statements = Statements::new(store, i64::MIN);
    while let Some(row) = statements.next().await? {
        report.statements += 1;
        let number = row.number;
        if number < 1 {
            report.fault(None, number, "a statement before the beginning of the list: it was inserted");
            continue;
        }
        let expected = last.map_or(1, |(before, _)| before + 1);
        if number > expected && gaps.len() < MOST {
            let inside = last.is_some() && exists(store, expected - 1).await?;
            gaps.push(Gap { from: expected, to: number - 1, inside });
        }
        let follows = last.filter(|_| number == expected).map(|(_, digest)| digest);
        let follows = if number == 1 { Some(ORIGIN) } else { follows };
        last = Some((number, digest(&row.signed.statement)));
        let signed = signature(&row.signed, number, evidence, &mut bare, report);
        while let Some((before, _, young)) = kept.next_if(|(before, ..)| *before < number) {
            gone.push((before, young));
        }
        if let Some((_, kept, _)) = kept.next_if(|(kept, ..)| *kept == number) {
            report.compared += 1;
            if last.is_some_and(|(_, digest)| digest != kept) {
                report.fault(None, number, "the statement is another one than was kept elsewhere");
            }
        }
        let Some(statement) = read(&row) else {
            report.fault(None, number, "the statement was changed");
            unsigned = StatedDeletions::default();
            continue;
        };
        let linked = follows.is_some_and(|previous| hex(&previous) == statement.previous);
        if !linked {
            unsigned = StatedDeletions::default();
            if follows.is_some() {
                report.fault(
                    None,
                    number,
                    "the statement does not follow the one before it: one of them was changed",
                );
            }
        }
        if signed || !evidence.demands(number) {
            unsigned.add(&statement);
        }
        if signed || evidence.keys.is_empty() {
            forgotten.append(&mut unsigned);
        }
        if let Some(because) = &statement.although {
            let instance = (statement.kind != StatementKind::Trim).then(|| statement.instance.clone());
            let (sequence, because) = (statement.sequence, because.clone());
            report.forced.push(Forced { number, instance, sequence, because });
        }
        if statement.kind != StatementKind::Trim {
            let young = statement.kind.is_head() && evidence.is_young(&statement);
            let chain = known.entry(statement.instance).or_default();
            chain.open = match statement.kind {
                StatementKind::Start => true,
                StatementKind::End => false,
                _ => chain.open,
            };
            chain.last = chain.last.max(statement.sequence);
            if young {
                chain.note_young(statement.sequence, number);
            }
        }
    }
    bare.end(report);
    for gap in gaps.into_iter().filter(|gap| gap.inside || gap.to >= forgotten.trimmed) {
        let from = if gap.inside { gap.from } else { gap.from.max(forgotten.trimmed) };
        missing(report, None, from, gap.to);
    }
    let newest = last.map_or(0, |(number, _)| number);
    if report.statements > 0 && !evidence.keys.is_empty() && !evidence.demands(newest) {
        let what = "the list ends before the first statement that should be signed (--signed-from)";
        report.fault(None, newest, what);
    }
    gone.extend(kept.map(|(number, _, young)| (number, young)));
    for (number, young) in gone {
        let at_end = if number > newest { "at the end of the list " } else { "" };
        if number >= forgotten.trimmed {
            let what = format!("the statement that was kept elsewhere is missing {at_end}in the database");
            report.fault(None, number, what);
        } else if young {
            let what = "the statement that was kept elsewhere was forgotten, but is younger than `access_log.retention`";
            report.fault(None, number, what);
        }
    }
    evidence.kept.note_young(&mut known);
    for (instance, cut) in forgotten.cuts {
        if let Some(known) = known.get_mut(&instance) {
            known.cut = Some(cut);
            if let Some((sequence, number)) = known.young.filter(|(young, _)| *young <= cut.0) {
                let what = format!(
                    "the record was forgotten, but statement {number} about it is younger than `access_log.retention`"
                );
                report.fault(Some(&instance), sequence, what);
            }
        }
    }
    Ok(known)
}

async fn exists(store: &Store, number: i64) -> Result<bool, StoreError> {
    Ok(store.statements_from(number, 1).await?.pop().is_some_and(|row| row.number == number))
}

/// The statement of a row, if the columns beside it say the same.
pub(super) fn read(row: &StoredStatement) -> Option<Statement> {
    let at = row.at.map(|at| at.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
    Statement::parse(&row.signed.statement).filter(|statement| {
        (statement.number, statement.sequence) == (row.number, row.sequence)
            && (statement.instance.as_str(), statement.kind.as_str()) == (&row.instance, &row.kind)
            && at.as_ref() == Some(&statement.at)
    })
}

/// Statements without a signature where there should be one, as long as they follow each other.
#[derive(Default)]
struct UnsignedRun(Option<(i64, i64)>);

impl UnsignedRun {
    fn add(&mut self, number: i64, report: &mut VerificationReport) {
        match &mut self.0 {
            Some((_, to)) if to.checked_add(1) == Some(number) => *to = number,
            _ => {
                self.end(report);
                self.0 = Some((number, number));
            }
        }
    }

    fn end(&mut self, report: &mut VerificationReport) {
        let Some((from, to)) = self.0.take() else { return };
        let which = match to - from {
            0 => "this statement is not signed".to_owned(),
            _ => format!("the statements from this one to {to} are not signed"),
        };
        let what = format!(
            "{which}: the signatures were removed, or a gateway ran without the key; if signing began only afterwards, \
             say so with --signed-from {}",
            to.saturating_add(1)
        );
        report.fault(None, from, what);
    }
}

/// Whether a statement is signed, as it must be.
fn signature(
    signed: &SignedStatement,
    number: i64,
    evidence: &Evidence,
    bare: &mut UnsignedRun,
    report: &mut VerificationReport,
) -> bool {
    if evidence.keys.is_empty() {
        return false;
    }
    let verified = evidence.verifies(signed);
    if verified {
        report.signed += 1;
    } else if let Some(id) = &signed.key_id {
        let what = if evidence.keys.iter().any(|key| key.id() == id) {
            "the signature does not verify".to_owned()
        } else {
            format!("the statement is signed with another key ({id}): name its public key with --public-key")
        };
        report.fault(None, number, what);
    } else if evidence.demands(number) {
        bare.add(number, report);
    }
    verified
}
