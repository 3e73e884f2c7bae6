//! Which top-level module of the gateway uses which.

use std::path::Path;

use super::mentions::Mention;
use super::order::Graph;
use super::resolve::Workspace;

/// The graph of the modules below one library's root, with its programs on top. `lib` is the root itself and a program
/// is one node, by the name of its file (`main`).
pub(super) fn graph(
    workspace: &Workspace,
    library: &str,
    programs: &[String],
    mentions: &[Mention],
) -> Graph {
    let mut graph = Graph::default();
    let Some(tree) = workspace.trees.get(library) else { return graph };
    graph.nodes.insert("lib".to_owned());
    graph.nodes.extend(tree.modules.keys().filter_map(|path| path.first().cloned()));
    graph.nodes.extend(programs.iter().map(|program| node_of_program(workspace, program)));
    for mention in mentions {
        let from = if mention.tree == library {
            mention.module.first().cloned().unwrap_or_else(|| "lib".to_owned())
        } else if programs.contains(&mention.tree) {
            node_of_program(workspace, &mention.tree)
        } else {
            continue;
        };
        let Some(path) = mention.steps.iter().find(|path| names_module(path, library, &graph)) else {
            // It ends in another crate, or at an item of the root itself.
            if mention.steps.last().is_some_and(|end| end.len() > 1 && end[0] == library) {
                graph.add(&from, "lib", || place(mention, &mention.steps[0]));
            }
            continue;
        };
        let to = path[1].clone();
        graph.add(&from, &to, || place(mention, path));
    }
    graph
}

/// Whether a path goes to a top-level module. If it goes to an import of the root instead, its next step does.
fn names_module(path: &[String], library: &str, graph: &Graph) -> bool {
    path.len() > 1 && path[0] == library && graph.nodes.contains(&path[1])
}

fn node_of_program(workspace: &Workspace, program: &str) -> String {
    let file = workspace.trees.get(program).map(|tree| Path::new(&tree.root));
    file.and_then(Path::file_stem).unwrap_or_default().to_string_lossy().into_owned()
}

fn place(mention: &Mention, path: &[String]) -> String {
    format!("{}:{}: crate::{}", mention.file, mention.line, path[1..].join("::"))
}
