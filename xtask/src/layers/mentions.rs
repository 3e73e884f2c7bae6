//! Every path in a crate's code, with its place and what it reaches. Comments, texts and test code do not count.

use std::collections::HashMap;

use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ImplItem, Item, Lit, Meta, Path, QSelf, Stmt, TraitItem, Type};

use super::cfg;
use super::resolve::{Scope, Workspace};
use super::tokens::{self, Found};
use super::tree::{self, Written};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// A leaf of a `use` item.
    Import,
    Path,
    /// What follows a dot; its only step is that name.
    Method,
}

#[derive(Debug)]
pub(super) struct Mention {
    pub(super) tree: String,
    pub(super) module: Vec<String>,
    pub(super) file: String,
    pub(super) line: usize,
    pub(super) kind: Kind,
    /// [`Workspace::steps`].
    pub(super) steps: Vec<Vec<String>>,
    /// The names of the traits whose `impl` this is in.
    pub(super) inside: Vec<String>,
}

/// All mentions of one crate.
pub(super) fn of(workspace: &Workspace, name: &str) -> Vec<Mention> {
    let mut found = Vec::new();
    for (path, module) in workspace.trees.get(name).into_iter().flat_map(|tree| &tree.modules) {
        let mut visitor = Visitor {
            workspace,
            tree: name,
            module: path,
            file: &module.file,
            blocks: vec![],
            inside: vec![],
            selves: vec![],
            found: vec![],
        };
        module.items.iter().for_each(|item| visitor.visit_item(item));
        found.append(&mut visitor.found);
    }
    found
}

struct Visitor<'a> {
    workspace: &'a Workspace,
    tree: &'a str,
    module: &'a [String],
    file: &'a str,
    blocks: Vec<HashMap<String, Written>>,
    inside: Vec<String>,
    /// What `Self` is.
    selves: Vec<Written>,
    found: Vec<Mention>,
}

impl Visitor<'_> {
    fn steps(&self, written: &Written) -> Vec<Vec<String>> {
        let scope = Scope { tree: self.tree, module: self.module, blocks: &self.blocks };
        match (self.selves.last(), written.segments.split_first()) {
            (Some(this), Some((first, after))) if first == "Self" => {
                let segments = [&this.segments[..], after].concat();
                self.workspace.steps(scope, &Written { external: this.external, segments })
            }
            _ => self.workspace.steps(scope, written),
        }
    }

    fn push(&mut self, kind: Kind, line: usize, steps: Vec<Vec<String>>) {
        self.found.push(Mention {
            tree: self.tree.to_owned(),
            module: self.module.to_vec(),
            file: self.file.to_owned(),
            line,
            kind,
            steps,
            inside: self.inside.clone(),
        });
    }

    fn path(&mut self, written: &Written, line: usize) {
        let steps = self.steps(written);
        self.push(Kind::Path, line, steps);
    }

    /// `<T>::f` and `<T as Trait>::f`: as if it were `T::f`.
    fn qualified(&mut self, this: Option<&QSelf>, path: &Path) {
        if let Some(this) = this
            && let Type::Path(of) = &*this.ty
        {
            let mut written = tree::written(&of.path);
            written.segments.extend(tree::written(path).segments.split_off(this.position));
            self.path(&written, line_of(path));
        }
    }

    fn tokens(&mut self, found: Vec<Found>) {
        for Found { written, after_dot, line } in found {
            if after_dot {
                self.push(Kind::Method, line, vec![written.segments]);
            } else {
                self.path(&written, line);
            }
        }
    }
}

fn line_of(path: &Path) -> usize {
    path.segments.first().map_or(0, |first| first.ident.span().start().line)
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_path(&mut self, path: &'ast Path) {
        self.path(&tree::written(path), line_of(path));
        visit::visit_path(self, path);
    }

    fn visit_expr_path(&mut self, path: &'ast syn::ExprPath) {
        self.qualified(path.qself.as_ref(), &path.path);
        visit::visit_expr_path(self, path);
    }

    fn visit_type_path(&mut self, path: &'ast syn::TypePath) {
        self.qualified(path.qself.as_ref(), &path.path);
        visit::visit_type_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        for import in tree::imports(item) {
            // Not through the block that the item itself gives a name to.
            let scope = Scope { tree: self.tree, module: self.module, blocks: &[] };
            let steps = self.workspace.steps(scope, &import.written);
            self.push(Kind::Import, import.line, steps);
        }
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        self.push(Kind::Import, item.ident.span().start().line, vec![vec![item.ident.to_string()]]);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let of = item.trait_.as_ref().and_then(|(of, _)| self.steps(&tree::written(of)).pop()?.pop());
        let this = match &*item.self_ty {
            Type::Path(this) if this.qself.is_none() => Some(tree::written(&this.path)),
            _ => None,
        };
        let (insides, selves) = (self.inside.len(), self.selves.len());
        self.inside.extend(of);
        self.selves.extend(this);
        visit::visit_item_impl(self, item);
        self.inside.truncate(insides);
        self.selves.truncate(selves);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.push(Kind::Method, call.method.span().start().line, vec![vec![call.method.to_string()]]);
        visit::visit_expr_method_call(self, call);
    }

    /// A macro's input, and syntax that is newer than the parser.
    fn visit_token_stream(&mut self, tokens: &'ast proc_macro2::TokenStream) {
        self.tokens(tokens::paths(tokens.clone(), false));
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if attribute.path().is_ident("doc") || cfg::adds_in_tests_only(attribute) {
            return;
        }
        self.visit_path(attribute.path());
        match &attribute.meta {
            Meta::Path(_) => {}
            Meta::List(list) => self.tokens(tokens::paths(list.tokens.clone(), true)),
            Meta::NameValue(meta) => match &meta.value {
                Expr::Lit(literal) if matches!(literal.lit, Lit::Str(_)) => {}
                value => self.visit_expr(value),
            },
        }
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        let items = block.stmts.iter().filter_map(|statement| match statement {
            Stmt::Item(item) if !cfg::test_only(cfg::of_item(item)) => Some(item),
            _ => None,
        });
        self.blocks.push(items.flat_map(tree::names).collect());
        visit::visit_block(self, block);
        self.blocks.pop();
    }

    fn visit_item(&mut self, item: &'ast Item) {
        if !cfg::test_only(cfg::of_item(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        if !cfg::test_only(cfg::of_impl_item(item)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        if !cfg::test_only(cfg::of_trait_item(item)) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if !cfg::test_only(cfg::of_statement(statement)) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !cfg::test_only(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        if !cfg::test_only(&field.attrs) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !cfg::test_only(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !cfg::test_only(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }
}
