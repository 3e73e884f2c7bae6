//! The layers of the code: which module and which crate may use which, and which names belong to one place.
//!
//! It works on the syntax tree, because a search in the text sees neither renames nor what a path reaches, and takes
//! comments for code. The tables are in `table.rs`.

mod cfg;
mod crates;
mod mentions;
mod modules;
mod names;
mod order;
mod resolve;
mod table;
mod text;
mod tokens;
mod tree;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

use std::fs;

use crate::step::{Outcome, root};
use crates::Member;
use mentions::Mention;
use order::Graph;
use resolve::Workspace;
use tree::{Read, Tree};

/// The document that shows the layers.
const DOCUMENT: &str = "ARCHITECTURE.md";
/// The package whose modules have layers of their own.
const GATEWAY: &str = "efgs-gateway";

/// The code that the tables are checked against.
struct Code {
    members: Vec<Member>,
    mentions: Vec<Mention>,
    modules: Graph,
    crates: Graph,
}

impl Code {
    fn read(members: Vec<Member>, read: Read) -> Outcome<Self> {
        let mut workspace = Workspace::default();
        for member in &members {
            if let Some((name, root)) = &member.library {
                workspace.trees.insert(name.clone(), Tree::load(root, read)?);
            }
            for root in &member.programs {
                workspace.trees.insert(root.clone(), Tree::load(root, read)?);
            }
        }
        let mentions: Vec<_> =
            workspace.trees.keys().flat_map(|name| mentions::of(&workspace, name)).collect();
        let gateway = members.iter().find(|member| member.name == GATEWAY);
        let (library, programs) = gateway
            .and_then(|member| Some((&member.library.as_ref()?.0, &member.programs)))
            .ok_or_else(|| format!("{GATEWAY} has no library"))?;
        let modules = modules::graph(&workspace, library, programs, &mentions);
        let crates = crates::graph(&members);
        Ok(Self { members, mentions, modules, crates })
    }

    fn of_repository() -> Outcome<Self> {
        Self::read(crates::members()?, &|file| fs::read_to_string(root().join(file)).ok())
    }

    fn breaches(&self) -> Vec<String> {
        [
            self.modules.breaches(table::MODULES, "MODULES in xtask/src/layers/table.rs"),
            self.crates.breaches(table::CRATES, "CRATES in xtask/src/layers/table.rs"),
            crates::breaches(table::DEPENDENCIES, &self.members),
            names::breaches(table::NAMES, &self.mentions),
        ]
        .concat()
    }

    fn text(&self) -> String {
        let modules = text::of(&self.modules, table::MODULES);
        let crates = text::of(&self.crates, table::CRATES);
        format!("Modules of {GATEWAY}\n{modules}\nCrates\n{crates}")
    }
}

/// Fails on everything that the tables forbid, and when the document shows other layers.
pub(crate) fn check() -> Outcome {
    let code = Code::of_repository()?;
    let found = code.breaches();
    if !found.is_empty() {
        return Err(format!("{} breaches of the layers:\n  {}", found.len(), found.join("\n  ")));
    }
    let document = document(DOCUMENT)?;
    if text::has_block(&document) { text::check(&document, &code.text(), DOCUMENT) } else { Ok(()) }
}

/// The layers as text.
pub(crate) fn shown() -> Outcome<String> {
    Ok(Code::of_repository()?.text())
}

/// Fails when the block in `file` is not the layers as they are.
pub(crate) fn check_document(file: &str) -> Outcome {
    text::check(&document(file)?, &shown()?, file)
}

/// Replaces the block in `file`.
pub(crate) fn write_document(file: &str) -> Outcome {
    let (before, layers) = (document(file)?, shown()?);
    let after = text::replaced(&before, &layers);
    // Without markers: says so.
    let after = after.map_or_else(|| text::check(&before, &layers, file).map(|()| before), Ok)?;
    fs::write(root().join(file), after).map_err(|e| format!("cannot write {file}: {e}"))
}

fn document(file: &str) -> Outcome<String> {
    fs::read_to_string(root().join(file)).map_err(|e| format!("cannot read {file}: {e}"))
}
