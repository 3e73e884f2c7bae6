//! From a path as it is written to the item that it reaches: renames, re-exports, globs, `self` and `super`, across all
//! crates of the workspace.

use std::collections::{BTreeMap, HashMap};

use super::tree::{Tree, Written};

/// How many imports are followed one after the other. It ends loops, and is more than anybody writes.
const DEPTH: usize = 8;

/// The crates of the workspace by the name that paths use for them. A program's name cannot be used in a path.
#[derive(Default)]
pub(super) struct Workspace {
    pub(super) trees: BTreeMap<String, Tree>,
}

/// Where a path is written.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) tree: &'a str,
    pub(super) module: &'a [String],
    /// The names that the blocks around it give to other paths, the innermost block last.
    pub(super) blocks: &'a [HashMap<String, Written>],
}

impl Workspace {
    /// The path from its crate on, and after each import that it goes through: the last is where it ends.
    pub(super) fn steps(&self, scope: Scope, written: &Written) -> Vec<Vec<String>> {
        let mut steps = vec![self.absolute(scope, written, DEPTH)];
        while steps.len() <= DEPTH {
            match self.follow(&steps[steps.len() - 1], DEPTH) {
                Some(next) if !steps.contains(&next) => steps.push(next),
                _ => break,
            }
        }
        steps
    }

    /// The path with its crate as its first segment. A name that nothing here gives a meaning stays as it is: it is a
    /// crate, or comes from a glob or the prelude.
    fn absolute(&self, scope: Scope, written: &Written, depth: usize) -> Vec<String> {
        let Some((first, after)) = written.segments.split_first().filter(|_| depth > 0 && !written.external)
        else {
            return written.segments.clone();
        };
        let mut module = scope.module.to_vec();
        let keywords = written
            .segments
            .iter()
            .take_while(|segment| match segment.as_str() {
                "crate" => {
                    module.clear();
                    true
                }
                "super" => {
                    module.pop();
                    true
                }
                segment => segment == "self",
            })
            .count();
        if keywords == 0 {
            if let Some(import) = scope.blocks.iter().rev().find_map(|names| names.get(first)) {
                return [self.absolute(scope, &import_of(first, import), depth - 1), after.to_vec()].concat();
            }
            if !self.has(scope.tree, &module, first, depth) {
                return written.segments.clone();
            }
        }
        [&[scope.tree.to_owned()], &module[..], &written.segments[keywords..]].concat()
    }

    /// Replaces the first segment that is an import, if there is one.
    fn follow(&self, path: &[String], depth: usize) -> Option<Vec<String>> {
        let tree = self.trees.get(path.first()?)?;
        let mut end = 1;
        while end < path.len() && tree.modules.contains_key(&path[1..=end]) {
            end += 1;
        }
        let (name, module) = (path.get(end)?, &path[1..end]);
        let reached = match tree.modules.get(module)?.imports.get(name) {
            Some(import) => {
                let scope = Scope { tree: &path[0], module, blocks: &[] };
                self.absolute(scope, &import_of(name, import), depth)
            }
            None => self.through_globs(&path[0], module, name, depth)?,
        };
        Some([&reached[..], &path[end + 1..]].concat())
    }

    /// Whether a module has a module or an import of this name.
    fn has(&self, tree: &str, module: &[String], name: &str, depth: usize) -> bool {
        let Some(modules) = self.trees.get(tree).map(|tree| &tree.modules) else { return false };
        modules.contains_key(&[module, &[name.to_owned()]].concat())
            || modules.get(module).is_some_and(|module| module.imports.contains_key(name))
            || self.through_globs(tree, module, name, depth).is_some()
    }

    fn through_globs(&self, tree: &str, module: &[String], name: &str, depth: usize) -> Option<Vec<String>> {
        let depth = depth.checked_sub(1)?;
        let globs = &self.trees.get(tree)?.modules.get(module)?.globs;
        globs.iter().find_map(|glob| {
            let mut reached = self.absolute(Scope { tree, module, blocks: &[] }, glob, depth);
            for _ in 0..depth {
                reached = self.follow(&reached, depth).unwrap_or(reached);
            }
            let (tree, module) = reached.split_first()?;
            self.has(tree, module, name, depth).then(|| [&reached[..], &[name.to_owned()]].concat())
        })
    }
}

/// `use hyper;` and `use hyper::hyper;` name the crate: a name does not give a meaning to itself.
fn import_of(name: &str, import: &Written) -> Written {
    let external = import.external || import.segments.first().is_some_and(|first| first == name);
    Written { external, segments: import.segments.clone() }
}
