//! The modules of a crate as the compiler sees them: from its root file along the `mod` declarations, without those that
//! only tests compile.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use syn::{Attribute, Expr, Item, Lit, Meta, Type, UseTree, ext::IdentExt};

use super::cfg;
use crate::step::Outcome;

/// Reads a file by its path in the repository.
pub(super) type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A path as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written {
    /// It begins with `::`, so its first segment is a crate.
    pub(super) external: bool,
    pub(super) segments: Vec<String>,
}

/// One leaf of a `use` item.
pub(super) struct Import {
    pub(super) written: Written,
    /// Absent for a glob and for `as _`.
    pub(super) name: Option<String>,
    pub(super) line: usize,
}

pub(super) struct Module {
    pub(super) file: String,
    /// The names that `use` items, type aliases and `extern crate` give to other paths.
    pub(super) imports: HashMap<String, Written>,
    /// What is imported whole, without the `*`.
    pub(super) globs: Vec<Written>,
    /// Without the modules.
    pub(super) items: Vec<Item>,
}

/// A crate's modules by their path; the root's is empty.
pub(super) struct Tree {
    pub(super) root: String,
    pub(super) modules: BTreeMap<Vec<String>, Module>,
}

impl Tree {
    pub(super) fn load(root: &str, read: Read) -> Outcome<Self> {
        let mut tree = Self { root: root.to_owned(), modules: BTreeMap::new() };
        tree.add_file(vec![], root, folder_of(root), read)?;
        Ok(tree)
    }

    fn add_file(&mut self, path: Vec<String>, file: &str, folder: &str, read: Read) -> Outcome {
        let text = read(file).ok_or_else(|| format!("cannot read {file}"))?;
        let parsed = syn::parse_file(&text)
            .map_err(|e| format!("cannot parse {file}:{}: {e}", e.span().start().line))?;
        if cfg::test_only(&parsed.attrs) { Ok(()) } else { self.add(path, file, folder, parsed.items, read) }
    }

    /// `folder` is where the files of the module's own modules are.
    fn add(&mut self, path: Vec<String>, file: &str, folder: &str, items: Vec<Item>, read: Read) -> Outcome {
        let mut module =
            Module { file: file.to_owned(), imports: HashMap::new(), globs: vec![], items: vec![] };
        for item in items.into_iter().filter(|item| !cfg::test_only(cfg::of_item(item))) {
            let Item::Mod(child) = item else {
                module.take_names(&item);
                module.items.push(item);
                continue;
            };
            let name = child.ident.unraw().to_string();
            let inner = [&path[..], std::slice::from_ref(&name)].concat();
            if let Some((_, items)) = child.content {
                self.add(inner, file, &format!("{folder}/{name}"), items, read)?;
            } else if let Some(named) = path_attribute(&child.attrs) {
                let named = format!("{}/{named}", folder_of(file));
                self.add_file(inner, &named, folder_of(&named), read)?;
            } else {
                let folder = format!("{folder}/{name}");
                let beside = format!("{folder}.rs");
                let file = if read(&beside).is_some() { beside } else { format!("{folder}/mod.rs") };
                self.add_file(inner, &file, &folder, read)?;
            }
        }
        self.modules.insert(path, module);
        Ok(())
    }
}

impl Module {
    fn take_names(&mut self, item: &Item) {
        if let Item::Use(item) = item {
            let globs = imports(item).into_iter().filter(|import| is_glob(&import.written));
            self.globs.extend(globs.map(|import| Written {
                segments: import.written.segments[..import.written.segments.len() - 1].to_vec(),
                ..import.written
            }));
        }
        self.imports.extend(names(item));
    }
}

/// The names that an item gives to other paths.
pub(super) fn names(item: &Item) -> Vec<(String, Written)> {
    match item {
        Item::Use(item) => {
            imports(item).into_iter().filter_map(|import| Some((import.name?, import.written))).collect()
        }
        Item::ExternCrate(item) => {
            let name = item.rename.as_ref().map_or(&item.ident, |(_, name)| name).to_string();
            vec![(name, Written { external: true, segments: vec![item.ident.to_string()] })]
        }
        Item::Type(item) => match &*item.ty {
            Type::Path(aliased) if aliased.qself.is_none() => {
                vec![(item.ident.to_string(), written(&aliased.path))]
            }
            _ => vec![],
        },
        _ => vec![],
    }
}

pub(super) fn written(path: &syn::Path) -> Written {
    Written {
        external: path.leading_colon.is_some(),
        segments: path.segments.iter().map(|segment| segment.ident.unraw().to_string()).collect(),
    }
}

pub(super) fn is_glob(path: &Written) -> bool {
    path.segments.last().is_some_and(|last| last == "*")
}

/// Every leaf of a `use` item.
pub(super) fn imports(item: &syn::ItemUse) -> Vec<Import> {
    let mut found = Vec::new();
    let start = Written { external: item.leading_colon.is_some(), segments: vec![] };
    leaves(&item.tree, &start, &mut found);
    found
}

fn leaves(tree: &UseTree, before: &Written, found: &mut Vec<Import>) {
    let with = |name: &str| {
        let mut path = before.clone();
        if name != "self" || path.segments.is_empty() {
            path.segments.push(name.to_owned());
        }
        path
    };
    match tree {
        UseTree::Path(tree) => leaves(&tree.tree, &with(&tree.ident.unraw().to_string()), found),
        UseTree::Group(tree) => tree.items.iter().for_each(|tree| leaves(tree, before, found)),
        UseTree::Glob(glob) => {
            let line = glob.star_token.spans[0].start().line;
            found.push(Import { written: with("*"), name: None, line });
        }
        UseTree::Name(leaf) => {
            let written = with(&leaf.ident.unraw().to_string());
            let name = written.segments.last().cloned();
            found.push(Import { written, name, line: leaf.ident.span().start().line });
        }
        UseTree::Rename(leaf) => {
            let name = Some(leaf.rename.unraw().to_string()).filter(|name| name != "_");
            let line = leaf.ident.span().start().line;
            found.push(Import { written: with(&leaf.ident.unraw().to_string()), name, line });
        }
    }
}

fn folder_of(file: &str) -> &str {
    Path::new(file).parent().and_then(Path::to_str).unwrap_or_default()
}

fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(meta) if meta.path.is_ident("path") => match &meta.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    })
}
