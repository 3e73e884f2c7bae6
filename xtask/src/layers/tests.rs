//! Small trees that stand for the repository.

mod crates;
mod graph;
mod names;
mod text;

use super::crates::Member;
use super::{Code, GATEWAY};
use crate::step::Outcome;

/// A gateway of these files, its only crate.
fn code(files: &[(&str, &str)]) -> Outcome<Code> {
    crates_of(files, vec![gateway(files)])
}

fn crates_of(files: &[(&str, &str)], members: Vec<Member>) -> Outcome<Code> {
    Code::read(members, &|wanted| {
        files.iter().find(|(file, _)| *file == wanted).map(|(_, text)| (*text).to_owned())
    })
}

fn gateway(files: &[(&str, &str)]) -> Member {
    let program = files.iter().any(|(file, _)| *file == "src/main.rs").then(|| "src/main.rs".to_owned());
    Member {
        name: GATEWAY.to_owned(),
        manifest: "Cargo.toml".to_owned(),
        dependencies: vec![],
        library: Some(("efgs_gateway".to_owned(), "src/lib.rs".to_owned())),
        programs: program.into_iter().collect(),
    }
}
