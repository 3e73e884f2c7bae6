use super::super::order::{Graph, Layer};
use super::code;

fn edges(files: &[(&str, &str)]) -> Vec<String> {
    let graph = code(files).unwrap().modules;
    graph.edges.keys().map(|(from, to)| format!("{from} → {to}")).collect()
}

/// The edges of a library where `download` contains this.
fn edges_of(download: &str) -> Vec<String> {
    let root = "mod audit; mod download; mod limits;";
    edges(&[
        ("src/lib.rs", root),
        ("src/audit.rs", "pub struct Report;"),
        ("src/limits.rs", ""),
        ("src/download.rs", download),
    ])
}

#[test]
fn every_way_to_name_a_module_is_an_edge() {
    for text in [
        "use crate::audit;",
        "use crate::audit::*;",
        "use crate::{limits, audit::{self, Report as R}};",
        "use crate::audit as other;",
        "use super::audit;",
        "use self::super::audit::Report;",
        "mod inner { use super::super::audit; }",
        "mod inner { mod deeper { fn f() { super::super::super::audit::run() } } }",
        "fn f() { crate::audit::run() }",
        "fn f() { use crate::audit as a; a::run() }",
        "fn f() -> Vec<crate::audit::Report> { vec![] }",
        "fn f() { match x { crate::audit::Kind::A => {} } }",
        "fn f() { <crate::audit::Report>::new() }",
        "fn f() { <Vec<u8> as crate::audit::Signed>::new() }",
        "fn f() { let _ = crate::audit::Report { a: 1 }; }",
        "fn f<T: crate::audit::Signed>() {}",
        "impl crate::audit::Signed for u8 {}",
        "struct S { at: crate::audit::Report }",
        "fn f() { println!(\"{}\", crate::audit::COUNT) }",
        "fn f() { vec![Vec::<crate::audit::Report>::new()] }",
        "fn f() { select! { x = g() => { nested!(crate::audit::run(x)) } } }",
        "macro_rules! m { ($a:expr) => { $crate::audit::run($a) } }",
        "macro_rules! m { () => { use crate::{limits, audit::{a, b}}; } }",
        "fn f() { odd!(a::< crate::audit::run); odd!(a::<) }",
        "fn f() { log!(Vec::<crate::audit::Report>::new()) }",
        "fn f() { log!(::efgs_gateway::audit::run()) }",
        "#[handler(crate::audit::run)] fn f() {}",
        "struct S { #[serde(with = \"crate::audit::seconds\")] at: u8 }",
        "#[cfg(any(test, feature = \"x\"))] use crate::audit;",
        "#[cfg(not(test))] use crate::audit;",
    ] {
        assert!(edges_of(text).contains(&"download → audit".to_owned()), "{text}: {:?}", edges_of(text));
    }
}

#[test]
fn what_only_tests_compile_and_what_is_no_code_is_no_edge() {
    for text in [
        "// use crate::audit;",
        "/* crate::audit::run() */",
        "//! See [`crate::audit::run`].",
        "/// See [`crate::audit::run`].\n#[doc = \"crate::audit::run\"] fn f() {}",
        "#[doc(alias = \"crate::audit::run\")] fn f() {}",
        "const A: &str = \"crate::audit::run()\";",
        "fn f() { println!(\"crate::audit::run\") }",
        "#[cfg(test)] mod tests { use crate::audit; }",
        "#[cfg(test)] mod tests;",
        "#[cfg(all(test, unix))] mod tests { use crate::audit; }",
        "#[cfg(any(test, all(test, unix)))] use crate::audit;",
        "#[cfg(test)] use crate::audit;",
        "fn f() { #[cfg(test)] use crate::audit; }",
        "fn f() { mod inner { #[cfg(test)] use crate::audit; } }",
        "#[test] fn f() { crate::audit::run() }",
        "#[tokio::test] async fn f() { crate::audit::run() }",
        "impl S { #[cfg(test)] fn f() { crate::audit::run() } }",
        "trait T { #[cfg(test)] fn f() { crate::audit::run() } }",
        "struct S { #[cfg(test)] at: crate::audit::Report }",
        "enum E { #[cfg(test)] A(crate::audit::Report) }",
        "fn f() { #[cfg(test)] crate::audit::run(); #[cfg(test)] let a = crate::audit::run(); }",
        "fn f() { match x { #[cfg(test)] crate::audit::A => {} _ => {} } S { #[cfg(test)] a: crate::audit::A }; }",
        "#[cfg_attr(test, handler(crate::audit::run))] fn f() {}",
        "use audit::Report;", // a crate of that name
        "pub(crate) fn f() {}",
        "mod audit {} use self::audit as a; fn f() { a::run() }",
        "mod inner { use super::audit; }", // no module of its own, nor the root's
    ] {
        assert_eq!(edges_of(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn two_colons_at_the_front_name_a_crate() {
    let root = "mod audit; use ::audit::Report; fn f() { log!(::audit::run()); ::audit::run() }";
    assert_eq!(edges(&[("src/lib.rs", root), ("src/audit.rs", "")]), Vec::<String>::new());
}

#[test]
fn a_re_export_of_the_root_leads_to_where_it_comes_from() {
    let root = "mod audit; mod download; pub use audit::Report; pub use efgs_protocol::clock; pub const LIMIT: u8 = 1;";
    let edges =
        |download| edges(&[("src/lib.rs", root), ("src/audit.rs", ""), ("src/download.rs", download)]);
    assert_eq!(edges("use crate::Report;"), ["download → audit", "lib → audit"]);
    assert_eq!(edges("use crate::clock::Clock;"), ["lib → audit"]);
    assert_eq!(edges("use crate::LIMIT;"), ["download → lib", "lib → audit"]);
}

#[test]
fn a_re_export_of_a_module_belongs_to_that_module() {
    let found = edges(&[
        ("src/lib.rs", "mod audit; mod download; mod limits;"),
        ("src/audit.rs", "pub use crate::limits::Quota;"),
        ("src/limits.rs", ""),
        ("src/download.rs", "use crate::audit::Quota;"),
    ]);
    assert_eq!(found, ["audit → limits", "download → audit"]);
}

#[test]
fn files_are_found_as_the_compiler_finds_them() {
    let found = edges(&[
        (
            "src/lib.rs",
            "mod audit; mod cli; #[path = \"other/name.rs\"] mod limits; mod store { mod rows; } mod testing;",
        ),
        ("src/main.rs", "fn main() { efgs_gateway::cli::main() }"),
        ("src/cli.rs", "mod upload;"),
        ("src/cli/upload.rs", "use crate::limits;"),
        ("src/audit/mod.rs", "mod sign;"),
        ("src/audit/sign.rs", "use super::super::cli;"),
        ("src/other/name.rs", "mod deeper;"),
        ("src/other/deeper.rs", "use crate::store;"),
        ("src/store/rows.rs", "use crate::audit;"),
        ("src/forgotten.rs", "use crate::audit;"),
        ("src/testing.rs", "#![cfg(test)] use crate::audit;"),
    ]);
    assert_eq!(found, ["audit → cli", "cli → limits", "limits → store", "main → cli", "store → audit"]);
}

#[test]
fn a_file_that_is_missing_or_no_rust_is_named() {
    let error = |files: &[(&str, &str)]| code(files).err().unwrap();
    assert_eq!(error(&[("src/lib.rs", "mod audit;")]), "cannot read src/audit/mod.rs");
    let broken = error(&[("src/lib.rs", "mod audit;"), ("src/audit.rs", "fn f() {}\nfn {")]);
    assert!(broken.starts_with("cannot parse src/audit.rs:2: "), "{broken}");
}

const LAYERS: [Layer; 4] = [
    Layer { name: "top", members: &["lib"], together: false },
    Layer { name: "features", members: &["audit", "callback", "download"], together: false },
    Layer { name: "store", members: &["store"], together: false },
    Layer { name: "kit", members: &["clock", "jobs"], together: true },
];

/// What is wrong with a library of these modules, each with its text, beside those of `LAYERS` that are missing.
fn breaches(modules: &[(&str, &str)]) -> Vec<String> {
    let all = ["audit", "callback", "download", "store", "clock", "jobs"];
    let more = modules.iter().map(|(name, _)| *name).filter(|name| !all.contains(name));
    let names: Vec<_> = all.into_iter().chain(more).collect();
    let root: String = names.iter().map(|name| format!("mod {name};\n")).collect();
    let paths: Vec<_> = names.iter().map(|name| format!("src/{name}.rs")).collect();
    let text = |name| modules.iter().find(|(module, _)| *module == name).map_or("", |(_, text)| *text);
    let mut files: Vec<_> =
        names.iter().zip(&paths).map(|(name, path)| (path.as_str(), text(*name))).collect();
    files.push(("src/lib.rs", &root));
    code(&files).unwrap().modules.breaches(&LAYERS, "the table")
}

#[test]
fn a_module_uses_only_lower_layers() {
    assert_eq!(
        breaches(&[
            ("download", "use crate::{store, clock};"),
            ("store", "use crate::clock;"),
            ("clock", "use crate::jobs;"),
        ]),
        Vec::<String>::new()
    );
    assert_eq!(
        breaches(&[("download", "\nuse crate::audit::{Report, sign};")]),
        [
            "sideways: download must not use audit, both are features: src/download.rs:2: crate::audit::Report (2 places)"
        ]
    );
    assert_eq!(
        breaches(&[("store", "use crate::callback;")]),
        ["upward: store (store) must not use callback (features): src/store.rs:1: crate::callback"]
    );
}

#[test]
fn a_cycle_is_shown_with_a_place_for_each_edge() {
    let found = breaches(&[
        ("clock", "fn f() {\n    crate::jobs::run()\n}"),
        ("jobs", "fn f() { log!(crate::clock::now()) }"),
    ]);
    let expected = "cycle of 2 (clock, jobs); the shortest cycle:\n    \
                    clock uses jobs: src/clock.rs:2: crate::jobs::run\n    \
                    jobs uses clock: src/jobs.rs:1: crate::clock::now";
    assert_eq!(found, [expected]);
}

#[test]
fn the_shortest_cycle_of_a_component_is_shown() {
    let mut graph = Graph::default();
    for (from, to) in [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "c"), ("d", "e")] {
        graph.nodes.extend([from.to_owned(), to.to_owned()]);
        graph.add(from, to, || format!("{from}.rs:1"));
    }
    let found: Vec<_> =
        graph.breaches(&[], "").into_iter().filter(|breach| breach.starts_with("cycle")).collect();
    let expected = "cycle of 4 (a, b, c, d); the shortest cycle:\n    c uses d: c.rs:1\n    d uses c: d.rs:1";
    assert_eq!(found, [expected]);
}

#[test]
fn the_table_names_every_module_once_and_no_other() {
    assert_eq!(
        breaches(&[("novelty", "")]),
        ["novelty is in no layer: decide what may use it, and add it to the table"]
    );
    let graph = Graph { nodes: ["lib".to_owned()].into(), ..Graph::default() };
    let twice = Layer { name: "top", members: &["lib", "lib", "gone"], together: true };
    assert_eq!(
        graph.breaches(&[twice], "the table"),
        ["lib is twice in the table", "gone does not exist: remove it from the table"]
    );
}
