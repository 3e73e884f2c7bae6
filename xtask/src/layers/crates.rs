//! The workspace's crates: who depends on whom, and on which crates from outside.

use std::path::Path;

use serde_json::Value;

use super::order::Graph;
use crate::step::{Outcome, capture, cargo};

/// Which crates may depend on some others. Dependencies of tests do not count.
pub(super) struct Rule {
    /// Names of packages; `*` at the end stands for anything.
    pub(super) on: &'static [&'static str],
    pub(super) may: May,
    pub(super) reason: &'static str,
}

pub(super) enum May {
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
    /// These only behind a feature that a build can do without.
    OptionalIn(&'static [&'static str]),
}

/// A crate of the workspace.
#[derive(Debug, PartialEq)]
pub(super) struct Member {
    pub(super) name: String,
    /// Its Cargo.toml.
    pub(super) manifest: String,
    pub(super) dependencies: Vec<Dependency>,
    /// The root file of its library, and the name that paths use for it.
    pub(super) library: Option<(String, String)>,
    /// The root files of its programs.
    pub(super) programs: Vec<String>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Dependency {
    pub(super) name: String,
    pub(super) optional: bool,
}

/// The members as cargo understands their manifests.
pub(super) fn members() -> Outcome<Vec<Member>> {
    parse(&capture(&mut cargo(["metadata", "--no-deps", "--format-version", "1", "--offline"]))?)
}

pub(super) fn parse(metadata: &[u8]) -> Outcome<Vec<Member>> {
    let metadata: Value =
        serde_json::from_slice(metadata).map_err(|e| format!("cannot read cargo metadata: {e}"))?;
    let root = Path::new(text(&metadata["workspace_root"])?);
    list(&metadata["packages"])?.iter().map(|package| member(package, root)).collect()
}

fn member(package: &Value, root: &Path) -> Outcome<Member> {
    let relative = |path: &Value| -> Outcome<String> {
        let path = Path::new(text(path)?);
        Ok(path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned())
    };
    let mut member = Member {
        name: text(&package["name"])?.to_owned(),
        manifest: relative(&package["manifest_path"])?,
        dependencies: vec![],
        library: None,
        programs: vec![],
    };
    for dependency in list(&package["dependencies"])? {
        if dependency["kind"] != "dev" {
            let optional = dependency["optional"] == true;
            member.dependencies.push(Dependency { name: text(&dependency["name"])?.to_owned(), optional });
        }
    }
    for target in list(&package["targets"])? {
        let kinds = list(&target["kind"])?;
        if kinds.iter().any(|kind| kind == "bin") {
            member.programs.push(relative(&target["src_path"])?);
        } else if kinds.iter().any(|kind| kind == "lib") {
            let name = text(&target["name"])?.to_owned();
            member.library = Some((name, relative(&target["src_path"])?));
        }
    }
    Ok(member)
}

/// Who depends on whom within the workspace.
pub(super) fn graph(members: &[Member]) -> Graph {
    let mut graph =
        Graph { nodes: members.iter().map(|member| member.name.clone()).collect(), ..Graph::default() };
    for member in members {
        for dependency in &member.dependencies {
            if graph.nodes.contains(&dependency.name) {
                graph.add(&member.name, &dependency.name, || member.manifest.clone());
            }
        }
    }
    graph
}

pub(super) fn breaches(rules: &[Rule], members: &[Member]) -> Vec<String> {
    let mut found = Vec::new();
    for rule in rules {
        let named: &[&str] = match rule.may {
            May::Only(crates) | May::AllBut(crates) | May::OptionalIn(crates) => crates,
        };
        for name in named.iter().filter(|name| !members.iter().any(|member| member.name == **name)) {
            found.push(format!("{name} does not exist: remove it from the rule {:?}", rule.reason));
        }
        for member in members {
            let listed = named.contains(&member.name.as_str());
            let on = member.dependencies.iter().filter(|on| rule.on.iter().any(|name| fits(&on.name, name)));
            for dependency in on {
                let allowed = match rule.may {
                    May::Only(_) => listed,
                    May::AllBut(_) => !listed,
                    May::OptionalIn(_) => !listed || dependency.optional,
                };
                if !allowed {
                    found.push(format!("{}: {}: {}", member.manifest, dependency.name, rule.reason));
                }
            }
        }
    }
    found
}

fn fits(name: &str, wanted: &str) -> bool {
    wanted.strip_suffix('*').map_or(name == wanted, |start| name.starts_with(start))
}

fn text(value: &Value) -> Outcome<&str> {
    value.as_str().ok_or_else(|| format!("cargo metadata: {value} is no text"))
}

fn list(value: &Value) -> Outcome<&Vec<Value>> {
    value.as_array().ok_or_else(|| format!("cargo metadata: {value} is no list"))
}
