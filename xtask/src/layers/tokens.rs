//! Paths in tokens that are not parsed: macros' input and attributes' arguments.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use syn::ext::IdentExt;

use super::tree::{Written, written};

/// A path or, after a dot, a method or field.
pub(super) struct Found {
    pub(super) written: Written,
    pub(super) after_dot: bool,
    pub(super) line: usize,
}

/// Every path in the tokens. In an attribute a text can be a path too: `with = "crate::seconds"`.
pub(super) fn paths(tokens: TokenStream, in_attribute: bool) -> Vec<Found> {
    let mut scan = Scan { found: vec![], in_attribute };
    scan.all(tokens, &Written { external: false, segments: vec![] });
    scan.found
}

struct Scan {
    found: Vec<Found>,
    in_attribute: bool,
}

impl Scan {
    /// `before` is what stands before a group of `use`: `crate::upload::{…}`.
    fn all(&mut self, tokens: TokenStream, before: &Written) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let nothing = Written { external: false, segments: vec![] };
        let mut at = 0;
        while at < tokens.len() {
            let (marked, dotted) = (
                at > 0 && is(&tokens[at - 1], '$'),
                at > 0 && is(&tokens[at - 1], '.') && !range(&tokens, at),
            );
            match &tokens[at] {
                TokenTree::Group(group) => self.all(group.stream(), &nothing),
                TokenTree::Literal(literal) if self.in_attribute => {
                    let text = syn::parse_str::<syn::LitStr>(&literal.to_string());
                    if let Some(path) = text.ok().and_then(|text| text.parse::<syn::Path>().ok()) {
                        self.push(written(&path), false, literal.span().start().line);
                    }
                }
                // A variable of `macro_rules!`.
                TokenTree::Ident(ident) if marked && ident != "crate" => {}
                TokenTree::Ident(ident) if dotted => {
                    let segments = vec![ident.unraw().to_string()];
                    self.push(Written { external: false, segments }, true, ident.span().start().line);
                }
                TokenTree::Ident(_) => at = self.path(&tokens, at, before.clone()),
                TokenTree::Punct(_)
                    if colons(&tokens, at) && matches!(tokens.get(at + 2), Some(TokenTree::Ident(_))) =>
                {
                    at = self.path(&tokens, at + 2, Written { external: true, segments: vec![] });
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// Reads the path whose first identifier is at `at`; returns where its last token is.
    fn path(&mut self, tokens: &[TokenTree], mut at: usize, mut path: Written) -> usize {
        let line = tokens[at].span().start().line;
        path.segments.push(identifier(&tokens[at]).unwrap_or_default());
        while colons(tokens, at + 1) {
            match tokens.get(at + 3) {
                Some(TokenTree::Ident(_)) => {
                    path.segments.extend(identifier(&tokens[at + 3]));
                    at += 3;
                }
                Some(TokenTree::Punct(punct)) if punct.as_char() == '*' => {
                    path.segments.push("*".to_owned());
                    at += 3;
                }
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    self.all(group.stream(), &path);
                    return at + 3;
                }
                Some(TokenTree::Punct(punct)) if punct.as_char() == '<' => {
                    let end = closing(tokens, at + 3);
                    let inside = tokens.get(at + 4..end).unwrap_or_default().iter().cloned().collect();
                    self.all(inside, &Written { external: false, segments: vec![] });
                    at = end;
                }
                _ => break,
            }
        }
        self.push(path, false, line);
        at
    }

    fn push(&mut self, written: Written, after_dot: bool, line: usize) {
        self.found.push(Found { written, after_dot, line });
    }
}

fn is(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

/// Whether the token at `at` follows `..`.
fn range(tokens: &[TokenTree], at: usize) -> bool {
    at > 1
        && matches!(&tokens[at - 2], TokenTree::Punct(dot) if dot.as_char() == '.' && dot.spacing() == Spacing::Joint)
}

fn colons(tokens: &[TokenTree], at: usize) -> bool {
    let two = tokens.get(at).zip(tokens.get(at + 1));
    two.is_some_and(|(first, second)| {
        is(second, ':')
            && matches!(first, TokenTree::Punct(p) if p.as_char() == ':' && p.spacing() == Spacing::Joint)
    })
}

fn identifier(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Ident(ident) => Some(ident.unraw().to_string()),
        _ => None,
    }
}

/// Where the `>` is that closes the `<` at `open`, or the last token.
fn closing(tokens: &[TokenTree], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        if is(token, '<') {
            depth += 1;
        } else if is(token, '>') && !is(&tokens[at - 1], '-') {
            depth -= 1;
        }
        if depth == 0 {
            return at;
        }
    }
    tokens.len() - 1
}
