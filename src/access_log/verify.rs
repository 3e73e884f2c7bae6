//! Finding whatever was changed, moved, inserted or removed.
//!
//! First the list of statements is walked: numbers without a gap, each with the hash of the one before it,
//! signed. Then each chain of records: numbers without a gap, each with the hash of the one before it, and at
//! each statement the hash that was stated. Both are read in pages, so memory does not grow with the log.

mod kept;
mod list;
pub(super) mod past;

use std::collections::{VecDeque, btree_map::Entry};

use chrono::{DateTime, Utc};
use serde::Serialize;

pub use self::kept::KeptStatements;
use super::{self as access_log, Hash, Key, ORIGIN, Record, SignedStatement, Statement, hash};
use crate::store::{Store, StoreError, StoredRecord, StoredStatement};

/// Findings that are kept; further ones are counted.
const MOST: usize = 1000;

/// Changed rows that are compared with each other, to find those that were moved.
const COMPARED: usize = 64;

const PAGE: u32 = 1000;

/// A record or statement that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whose chain of records; none for the list of statements.
    pub instance: Option<String>,
    /// The record's number in the chain, or the statement's in the list.
    pub sequence: i64,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.instance {
            Some(instance) => write!(f, "instance {instance} record {}: ", self.sequence)?,
            None => write!(f, "statement {}: ", self.sequence)?,
        }
        f.write_str(&self.what)
    }
}

/// A deletion that the operator forced although records or statements were not as they were written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forced {
    /// The statement that says so.
    pub number: i64,
    /// Whose chain; none for statements.
    pub instance: Option<String>,
    /// The last record, or the first statement that stayed.
    pub sequence: i64,
    /// The operator's reason.
    pub because: String,
}

/// Records of a chain that no statement covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Uncovered {
    /// Whose chain.
    pub instance: String,
    /// The first of them.
    pub from: i64,
    /// The last of them, where the chain ends.
    pub to: i64,
}

/// A chain that no statement ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpenChain {
    /// Whose chain.
    pub instance: String,
    /// The last record that a statement names; 0 when none does.
    pub last: i64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerificationReport {
    /// Records that were read.
    pub records: u64,
    /// Instances that have records or statements.
    pub chains: u64,
    /// Statements that were read.
    pub statements: u64,
    /// Of these, statements whose signature was verified.
    pub signed: u64,
    /// Statements kept elsewhere that were compared.
    pub compared: u64,
    /// Records behind the last statement about their chain. Their gateway has not made one yet, or was killed: nothing
    /// proves that they are its own.
    pub uncovered: Vec<Uncovered>,
    /// Chains that were begun and have not ended. Their gateway runs, or was killed, or its machine has crashed: then
    /// records at the end may be missing.
    pub open: Vec<OpenChain>,
    /// Deletions that the operator forced.
    pub forced: Vec<Forced>,
    /// Number of faults.
    pub faults: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
}

/// What is verified against, beside the database itself.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Keys that may have signed.
    pub keys: Vec<Key>,
    /// Statements that were kept elsewhere.
    pub kept: KeptStatements,
    /// The first statement that must be signed, if there are keys. Those before it are from a time without a key. Only
    /// the operator can say so: the database cannot prove it, because signatures can be removed.
    pub signed_from: i64,
    /// What was stated at this time or later must not have been deleted yet.
    pub forgotten_before: Option<DateTime<Utc>>,
}

impl Evidence {
    /// Whether one of the keys has signed a statement.
    pub(super) fn verifies(&self, signed: &SignedStatement) -> bool {
        self.keys.iter().any(|key| key.verifies(signed))
    }

    /// Whether the statement with this number must be signed.
    fn demands(&self, number: i64) -> bool {
        !self.keys.is_empty() && number >= self.signed_from
    }

    /// The statement of a row, if it is as it was written, and signed if it must be.
    fn read(&self, row: &StoredStatement) -> Option<Statement> {
        list::read(row).filter(|_| self.verifies(&row.signed) || !self.demands(row.number))
    }

    /// Whether a statement is too young to have been deleted.
    fn is_young(&self, statement: &Statement) -> bool {
        let at = statement.at.parse::<DateTime<Utc>>().ok();
        at.zip(self.forgotten_before).is_some_and(|(at, before)| at >= before)
    }
}

impl VerificationReport {
    fn fault(&mut self, instance: Option<&str>, sequence: i64, what: impl Into<String>) {
        self.faults += 1;
        if self.findings.len() < MOST {
            self.findings.push(Finding {
                instance: instance.map(str::to_owned),
                sequence,
                what: what.into(),
            });
        }
    }

    /// Adds the faults of another one.
    pub(super) fn append(&mut self, other: Self) {
        self.faults += other.faults;
        self.findings.extend(other.findings);
        self.findings.truncate(MOST);
    }
}

/// What the statements say of a chain.
#[derive(Clone, Copy, Debug, Default)]
struct StatedChain {
    /// The last record that is named; 0 when none is.
    last: i64,
    /// The last record that is forgotten, and its hash.
    cut: Option<(i64, Hash)>,
    /// The first record that a statement names which is too young to be forgotten, and that statement.
    young: Option<(i64, i64)>,
    /// Whether it was begun and has not ended.
    open: bool,
}

impl StatedChain {
    fn note_young(&mut self, sequence: i64, number: i64) {
        let young = (sequence, number);
        self.young = Some(self.young.map_or(young, |known| known.min(young)));
    }
}

/// Verifies all statements and all records.
pub async fn verify(store: &Store, evidence: &Evidence) -> Result<VerificationReport, StoreError> {
    let mut report = VerificationReport::default();
    let mut known = list::walk(store, evidence, &mut report).await?;
    for instance in store.logged_instances().await? {
        if let Entry::Vacant(unknown) = known.entry(instance) {
            let instance = unknown.key().clone();
            if !begun_meanwhile(store, &instance).await? {
                let what =
                    "no statement names this chain: its records were inserted, or its statements removed";
                report.fault(Some(&instance), 0, what);
            }
            unknown.insert(StatedChain::default());
        }
    }
    report.chains = known.len() as u64;
    let mut changed = Vec::new();
    for (instance, known) in known {
        if known.open && report.open.len() < MOST {
            report.open.push(OpenChain { instance: instance.clone(), last: known.last });
        }
        let (report, changed) = (&mut report, &mut changed);
        ChainWalk { store, evidence, instance: &instance, known, end: i64::MAX, report, changed }
            .run()
            .await?;
    }
    moved(&changed, &mut report);
    Ok(report)
}

/// Statements in the order of their numbers, read in pages.
struct Statements<'a> {
    store: &'a Store,
    page: VecDeque<StoredStatement>,
    /// The number from which the next page is read; `None` after the last page.
    from: Option<i64>,
}

impl<'a> Statements<'a> {
    fn new(store: &'a Store, from: i64) -> Self {
        Self { store, page: VecDeque::new(), from: Some(from) }
    }

    async fn next(&mut self) -> Result<Option<StoredStatement>, StoreError> {
        if let Some(from) = self.from.filter(|_| self.page.is_empty()) {
            self.page = self.store.statements_from(from, PAGE).await?.into();
            // The greatest number has no successor.
            self.from = self.page.back().and_then(|last| last.number.checked_add(1));
        }
        Ok(self.page.pop_front())
    }
}

/// Whether a chain is named now: it may have begun after the statements were read.
async fn begun_meanwhile(store: &Store, instance: &str) -> Result<bool, StoreError> {
    let mut statements = Statements::new(store, 1);
    while let Some(statement) = statements.next().await? {
        if statement.instance == instance {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The last record of a chain that is forgotten, and its hash.
async fn newest_cut(
    store: &Store,
    evidence: &Evidence,
    instance: &str,
) -> Result<Option<(i64, Hash)>, StoreError> {
    let cuts = store.newest_cuts(instance, PAGE).await?;
    let cut = cuts.iter().find_map(|cut| evidence.read(cut));
    Ok(cut.map(|cut| (cut.sequence, parse(&cut.hash))))
}

fn missing(report: &mut VerificationReport, instance: Option<&str>, from: i64, to: i64) {
    let of = if instance.is_some() { "record" } else { "statement" };
    let what = match to - from {
        0 => format!("the {of} is missing"),
        more => format!("{} {of}s are missing, from this one to {to}", more + 1),
    };
    report.fault(instance, from, what);
}

/// Lower-case digits to bytes; what is malformed fits no record.
fn parse(text: &str) -> Hash {
    let byte = |i: usize| text.get(2 * i..2 * i + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    std::array::from_fn(|i| byte(i).unwrap_or(0xff))
}

/// A walk along one chain of records.
struct ChainWalk<'a> {
    store: &'a Store,
    evidence: &'a Evidence,
    instance: &'a str,
    known: StatedChain,
    /// The last record to look at.
    end: i64,
    report: &'a mut VerificationReport,
    changed: &'a mut Vec<Record>,
}

/// The record before the one at hand.
struct PreviousRecord {
    sequence: i64,
    hash: Hash,
    /// Whether its hash can be relied on.
    intact: bool,
}

impl ChainWalk<'_> {
    async fn run(mut self) -> Result<(), StoreError> {
        let mut before: Option<PreviousRecord> = None;
        let mut heads = Heads { page: VecDeque::new(), from: i64::MIN, after: i64::MIN, done: false };
        let mut from = Some(i64::MIN);
        let end = self.end;
        while let Some(first) = from.filter(|from| *from <= end) {
            let page = self.store.records_of(self.instance, first, PAGE).await?;
            // The greatest number has no successor.
            from = page.last().and_then(|last| last.sequence.checked_add(1));
            for row in page.into_iter().take_while(|row| row.sequence <= end) {
                self.report.records += 1;
                if row.sequence < 1 {
                    let what = "a record before the beginning of the chain: it was inserted";
                    self.report.fault(Some(self.instance), row.sequence, what);
                } else {
                    before = Some(self.step(row, before, &mut heads).await?);
                }
            }
        }
        let cut = self.known.cut.map_or(0, |(sequence, _)| sequence);
        let last = before.map(|before| before.sequence);
        let covered = self.known.last.max(cut);
        if let Some(to) = last.filter(|last| *last > covered && self.report.uncovered.len() < MOST) {
            let instance = self.instance.to_owned();
            self.report.uncovered.push(Uncovered { instance, from: covered.saturating_add(1), to });
        }
        self.gap(last, covered.saturating_add(1)).await
    }

    /// Looks whether records are missing between one and the next.
    async fn gap(&mut self, before: Option<i64>, next: i64) -> Result<(), StoreError> {
        let cut = self.known.cut.map_or(0, |(sequence, _)| sequence);
        // The records that are left can begin at any number while the retention deletes.
        let from = before.unwrap_or(cut).saturating_add(1);
        if from >= next {
            return Ok(());
        }
        // The retention may have overtaken this walk. It deletes the first records first.
        let overtaken = self.is_cut(next - 1).await?
            && match before {
                Some(before) => !self.exists(before).await?,
                None => true,
            };
        if !overtaken {
            missing(self.report, Some(self.instance), from, next - 1);
        }
        Ok(())
    }

    async fn exists(&self, sequence: i64) -> Result<bool, StoreError> {
        let row = self.store.records_of(self.instance, sequence, 1).await?.pop();
        Ok(row.is_some_and(|row| row.sequence == sequence))
    }

    async fn step(
        &mut self,
        row: StoredRecord,
        before: Option<PreviousRecord>,
        heads: &mut Heads,
    ) -> Result<PreviousRecord, StoreError> {
        let sequence = row.sequence;
        self.gap(before.as_ref().map(|before| before.sequence), sequence).await?;
        let (cut, cut_hash) = self.known.cut.unwrap_or((0, ORIGIN));
        // The record that this one must follow, if it is known by its hash.
        let follows = match &before {
            _ if sequence == cut.saturating_add(1) => Some((cut_hash, sequence)),
            None if sequence == 1 => Some((ORIGIN, sequence)),
            Some(before) if before.sequence + 1 == sequence && before.intact => {
                Some((before.hash, before.sequence))
            }
            _ => None,
        };
        let stated = heads.at(self.store, self.instance, sequence).await?;
        let Some(record) = row.record else {
            self.report.fault(Some(self.instance), sequence, "the record was changed");
            return Ok(PreviousRecord { sequence, hash: ORIGIN, intact: false });
        };
        let intact = record.is_intact();
        if !intact {
            self.report.fault(Some(self.instance), sequence, "the record was changed");
        } else if let Some((hash, at)) = follows
            && hash != record.previous
        {
            let what = if at == sequence {
                "the record does not follow where the chain begins"
            } else {
                "the record was replaced: the next one follows another record than this"
            };
            self.report.fault(Some(self.instance), at, what);
        } else if sequence == cut && record.hash != cut_hash {
            let what = "the record, or one before it, was replaced: the cut behind it names another hash";
            self.report.fault(Some(self.instance), sequence, what);
        } else if let Some((number, _)) = stated.iter().find(|(_, hash)| *hash != record.hash) {
            let what =
                format!("the record, or one before it, was replaced: statement {number} names another hash");
            self.report.fault(Some(self.instance), sequence, what);
        }
        let hash = record.hash;
        if !intact && self.changed.len() < COMPARED {
            self.changed.push(record);
        }
        Ok(PreviousRecord { sequence, hash, intact })
    }

    /// Whether the retention has taken a record in the meantime.
    async fn is_cut(&mut self, sequence: i64) -> Result<bool, StoreError> {
        // A cut from before signing began was in the list already.
        let evidence = Evidence { keys: self.evidence.keys.clone(), ..Evidence::default() };
        if let Some(cut) = newest_cut(self.store, &evidence, self.instance).await?
            && self.known.cut.is_none_or(|(known, _)| cut.0 > known)
        {
            self.known.cut = Some(cut);
        }
        Ok(self.known.cut.is_some_and(|(cut, _)| sequence <= cut))
    }
}

/// The heads of a chain, in the order of its records.
struct Heads {
    page: VecDeque<(i64, i64, Hash)>,
    /// Record and statement of the last one that was read.
    from: i64,
    after: i64,
    done: bool,
}

impl Heads {
    /// What is stated of a record: numbers of statements and hashes.
    async fn at(
        &mut self,
        store: &Store,
        instance: &str,
        sequence: i64,
    ) -> Result<Vec<(i64, Hash)>, StoreError> {
        let mut found = Vec::new();
        loop {
            while let Some((at, number, hash)) = self.page.pop_front_if(|(at, ..)| *at <= sequence) {
                if at == sequence {
                    found.push((number, hash));
                }
            }
            if !self.page.is_empty() || self.done {
                return Ok(found);
            }
            // Heads of missing records are skipped.
            let from = self.from.max(sequence);
            let after = if from == self.from { self.after } else { i64::MIN };
            let rows = store.heads_of(instance, from, after, PAGE).await?;
            match rows.last() {
                Some(last) => (self.from, self.after) = (last.sequence, last.number),
                None => self.done = true,
            }
            let row = |row: StoredStatement| {
                let statement = Statement::parse(&row.signed.statement)?;
                Some((row.sequence, row.number, parse(&statement.hash)))
            };
            self.page = rows.into_iter().filter_map(row).collect();
        }
    }
}

/// Finds changed records whose content belongs to another number or chain.
fn moved(changed: &[Record], report: &mut VerificationReport) {
    let fits = |entry: &access_log::Entry, previous: &Hash, target: &Record, expected: &Hash| {
        hash(previous, &target.instance, target.sequence, entry) == *expected
    };
    for here in changed {
        let origin = changed.iter().filter(|there| !std::ptr::eq(*there, here)).find(|there| {
            // Moved with its hashes, or without them.
            fits(&here.entry, &here.previous, there, &here.hash)
                || fits(&here.entry, &there.previous, there, &there.hash)
        });
        let Some(origin) = origin else { continue };
        let finding = report.findings.iter_mut().find(|finding| {
            finding.instance.as_ref() == Some(&here.instance) && finding.sequence == here.sequence
        });
        if let Some(finding) = finding {
            finding.what = format!(
                "the record was moved here: it is number {} of instance {}",
                origin.sequence, origin.instance
            );
        }
    }
}
