//! Names that only certain files may use.

use std::collections::BTreeSet;

use super::mentions::{Kind, Mention};

pub(super) struct Rule {
    /// Files and folders, without `.rs`…
    pub(super) within: &'static [&'static str],
    /// …except these…
    pub(super) except: &'static [&'static str],
    /// …and except in an `impl` of these traits. Where there are some, an import alone is allowed everywhere.
    pub(super) except_impl_of: &'static [&'static str],
    /// …must not use these: consecutive segments of a path, `*` at the end of one stands for anything. `.name` is a method.
    pub(super) names: &'static [&'static str],
    pub(super) reason: &'static str,
}

/// Every breach, and every exception that nothing needs.
pub(super) fn breaches(rules: &[Rule], mentions: &[Mention]) -> Vec<String> {
    let mut found = BTreeSet::new();
    let mut unneeded: BTreeSet<_> = rules
        .iter()
        .enumerate()
        .flat_map(|(at, rule)| rule.except.iter().map(move |place| (at, *place)))
        .collect();
    for mention in mentions {
        for (at, rule) in rules.iter().enumerate() {
            if !rule.within.iter().any(|place| is_in(&mention.file, place)) {
                continue;
            }
            let Some(name) = rule.names.iter().find(|name| is_named(name, mention)) else { continue };
            let excepted: Vec<_> = rule.except.iter().filter(|place| is_in(&mention.file, place)).collect();
            if !excepted.is_empty() {
                excepted.iter().for_each(|place| {
                    unneeded.remove(&(at, **place));
                });
                continue;
            }
            let for_an_impl = !rule.except_impl_of.is_empty() && mention.kind == Kind::Import;
            if !for_an_impl && !mention.inside.iter().any(|of| rule.except_impl_of.contains(&of.as_str())) {
                found.insert((&mention.file, mention.line, name, rule.reason));
            }
        }
    }
    let found =
        found.into_iter().map(|(file, line, name, reason)| format!("{file}:{line}: {name}: {reason}"));
    let unneeded = unneeded.into_iter().map(|(at, place)| {
        format!("{place} needs no exception any more: remove it from the rule {:?}", rules[at].reason)
    });
    found.chain(unneeded).collect()
}

/// Whether a file is `place.rs` or in the folder `place`.
fn is_in(file: &str, place: &str) -> bool {
    file.strip_prefix(place).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

fn is_named(name: &str, mention: &Mention) -> bool {
    if let Some(method) = name.strip_prefix('.') {
        return mention.kind == Kind::Method && mention.steps[0] == [method];
    }
    let wanted: Vec<_> = name.split("::").collect();
    mention.kind != Kind::Method
        && mention.steps.iter().any(|path| {
            path.windows(wanted.len())
                .any(|part| part.iter().zip(&wanted).all(|(segment, wanted)| fits(segment, wanted)))
        })
}

fn fits(segment: &str, wanted: &str) -> bool {
    wanted.strip_suffix('*').map_or(segment == wanted, |start| segment.starts_with(start))
}
