//! Nodes in ordered layers and who uses whom: the same for modules and for crates.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A layer of a table whose first entry is the top.
pub(super) struct Layer {
    pub(super) name: &'static str,
    pub(super) members: &'static [&'static str],
    /// Whether its members may use each other, without a cycle.
    pub(super) together: bool,
}

/// What one node uses of another.
#[derive(Debug, PartialEq)]
pub(super) struct Uses {
    /// The first place, as it is shown: `src/upload.rs:12: crate::audit::Report`.
    pub(super) first: String,
    pub(super) places: usize,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) nodes: BTreeSet<String>,
    /// From who uses to who is used.
    pub(super) edges: BTreeMap<(String, String), Uses>,
}

impl Graph {
    pub(super) fn add(&mut self, from: &str, to: &str, place: impl FnOnce() -> String) {
        if from != to {
            let uses = self.edges.entry((from.to_owned(), to.to_owned()));
            uses.or_insert_with(|| Uses { first: place(), places: 0 }).places += 1;
        }
    }

    pub(super) fn used_by<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a str> {
        self.edges.keys().filter(move |(from, _)| from == node).map(|(_, to)| to.as_str())
    }

    /// Everything that is wrong with the graph; `table` is where the layers are written.
    pub(super) fn breaches(&self, layers: &[Layer], table: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut placed = BTreeMap::new();
        for (position, layer) in layers.iter().enumerate() {
            for member in layer.members {
                if placed.insert(*member, position).is_some() {
                    found.push(format!("{member} is twice in {table}"));
                }
                if !self.nodes.contains(*member) {
                    found.push(format!("{member} does not exist: remove it from {table}"));
                }
            }
        }
        for node in self.nodes.iter().filter(|node| !placed.contains_key(node.as_str())) {
            found.push(format!("{node} is in no layer: decide what may use it, and add it to {table}"));
        }
        for ((from, to), uses) in &self.edges {
            let (Some(&user), Some(&used)) = (placed.get(from.as_str()), placed.get(to.as_str())) else {
                continue;
            };
            let more = if uses.places > 1 { format!(" ({} places)", uses.places) } else { String::new() };
            let (user_layer, used_layer) = (layers[user].name, layers[used].name);
            if user > used {
                found.push(format!(
                    "upward: {from} ({user_layer}) must not use {to} ({used_layer}): {}{more}",
                    uses.first
                ));
            } else if user == used && !layers[user].together {
                found.push(format!(
                    "sideways: {from} must not use {to}, both are {user_layer}: {}{more}",
                    uses.first
                ));
            }
        }
        found.extend(self.cycles());
        found
    }

    /// One message for each set of nodes that use each other, with its shortest cycle.
    fn cycles(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for node in &self.nodes {
            if seen.contains(node.as_str()) {
                continue;
            }
            let reached = self.reachable(node);
            let component: Vec<_> = reached
                .iter()
                .copied()
                .filter(|other| self.reachable(other).contains(node.as_str()))
                .collect();
            seen.extend(component.iter().copied());
            let Some(cycle) =
                component.iter().filter_map(|member| self.cycle_through(member)).min_by_key(Vec::len)
            else {
                continue;
            };
            let edges = cycle.windows(2).map(|pair| {
                let uses = &self.edges[&(pair[0].to_owned(), pair[1].to_owned())];
                format!("\n    {} uses {}: {}", pair[0], pair[1], uses.first)
            });
            let edges: String = edges.collect();
            found.push(format!(
                "cycle of {} ({}); the shortest cycle:{edges}",
                component.len(),
                component.join(", ")
            ));
        }
        found
    }

    fn reachable<'a>(&'a self, start: &'a str) -> BTreeSet<&'a str> {
        let mut reached = BTreeSet::new();
        let mut next: VecDeque<_> = self.used_by(start).collect();
        while let Some(node) = next.pop_front() {
            if reached.insert(node) {
                next.extend(self.used_by(node));
            }
        }
        reached
    }

    /// The shortest path from a node back to it.
    fn cycle_through<'a>(&'a self, start: &'a str) -> Option<Vec<&'a str>> {
        let mut paths = VecDeque::from([vec![start]]);
        let mut seen = BTreeSet::new();
        while let Some(path) = paths.pop_front() {
            for node in self.used_by(path[path.len() - 1]) {
                let extended = [&path[..], &[node]].concat();
                if node == start {
                    return Some(extended);
                }
                if seen.insert(node) {
                    paths.push_back(extended);
                }
            }
        }
        None
    }
}
