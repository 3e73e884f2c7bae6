//! The layers as text, and the copy of it in a document.

use super::order::{Graph, Layer};
use crate::step::Outcome;

const START: &str = "<!-- layers -->\n";
const END: &str = "<!-- /layers -->";
const WIDTH: usize = 118;
const INDENT: usize = 12;

/// A paragraph for each layer, the top first: its members, and behind the arrow what each uses.
pub(super) fn of(graph: &Graph, layers: &[Layer]) -> String {
    let mut lines = String::new();
    for layer in layers {
        let members: Vec<_> = layer.members.iter().filter(|member| graph.nodes.contains(**member)).collect();
        let words = members.iter().enumerate().flat_map(|(at, member)| {
            let end = if at + 1 < members.len() { "," } else { "" };
            let uses = graph.used_by(member).map(str::to_owned).collect::<Vec<_>>().join(" ");
            let of_one =
                if uses.is_empty() { format!("{member}{end}") } else { format!("{member} → {uses}{end}") };
            of_one.split(' ').map(str::to_owned).collect::<Vec<_>>()
        });
        let mut line = format!("{:<width$}", layer.name, width = INDENT - 1);
        for word in words {
            if line.chars().count() + 1 + word.chars().count() > WIDTH {
                lines.push_str(line.trim_end());
                lines.push('\n');
                line = " ".repeat(INDENT - 1);
            }
            line.push(' ');
            line.push_str(&word);
        }
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    lines
}

/// The document with the block between its markers replaced; `None` without markers.
pub(super) fn replaced(document: &str, layers: &str) -> Option<String> {
    let (before, rest) = document.split_once(START)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{START}```text\n{layers}```\n{END}{after}"))
}

/// Whether the block in the document is what the code says.
pub(super) fn check(document: &str, layers: &str, file: &str) -> Outcome {
    match replaced(document, layers) {
        Some(replaced) if replaced != document => {
            Err(format!("{file} does not show the layers as they are: cargo xtask layers --write {file}"))
        }
        Some(_) => Ok(()),
        None => Err(format!("{file} has no block between {} and {END}", START.trim_end())),
    }
}

/// Whether a document has a block for the layers.
pub(super) fn has_block(document: &str) -> bool {
    document.contains(START)
}
