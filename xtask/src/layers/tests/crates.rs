use super::super::crates::{self, Dependency, May, Member, Rule};
use super::super::order::Layer;
use super::super::table::DEPENDENCIES;

fn member(name: &str, dependencies: &[(&str, bool)]) -> Member {
    let dependencies = dependencies
        .iter()
        .map(|(name, optional)| Dependency { name: (*name).to_owned(), optional: *optional });
    Member {
        name: name.to_owned(),
        manifest: format!("{name}/Cargo.toml"),
        dependencies: dependencies.collect(),
        library: None,
        programs: vec![],
    }
}

/// The dependencies of one crate that the repository's own rules refuse.
fn refused(name: &str, dependencies: &[(&str, bool)]) -> Vec<String> {
    let found = crates::breaches(DEPENDENCIES, &[member(name, dependencies)]);
    let mut refused: Vec<_> = found
        .iter()
        .filter_map(|breach| breach.strip_prefix(&format!("{name}/Cargo.toml: ")))
        .filter_map(|breach| Some(breach.split_once(':')?.0.to_owned()))
        .collect();
    refused.dedup();
    refused
}

#[test]
fn sql_belongs_to_the_store_and_the_protocol_is_pure() {
    let sql = [
        ("sea-orm", false),
        ("sea-orm-migration", false),
        ("sqlx", true),
        ("mysql_async", false),
        ("serde", false),
    ];
    assert_eq!(refused("efgs-client", &sql), ["sea-orm", "sea-orm-migration", "sqlx", "mysql_async"]);
    assert_eq!(refused("efgs-migrations", &sql), Vec::<String>::new());
    let server =
        [("tokio", false), ("actix-web", false), ("reqwest", false), ("hyper-util", true), ("serde", false)];
    // By the rule for the protocol, and by the one for HTTP servers.
    let protocol = ["tokio", "actix-web", "reqwest", "hyper-util", "actix-web"];
    assert_eq!(refused("efgs-protocol", &server), protocol);
    assert_eq!(refused("efgs-client", &server), ["actix-web"]);
    assert_eq!(refused("efgs-gateway", &server), Vec::<String>::new());
}

#[test]
fn the_gateway_can_be_built_without_the_client_and_the_test_pki() {
    assert_eq!(
        refused("efgs-gateway", &[("efgs-client", false), ("efgs-test-ca", false)]),
        ["efgs-client", "efgs-test-ca"]
    );
    assert_eq!(
        refused("efgs-gateway", &[("efgs-client", true), ("efgs-test-ca", true)]),
        Vec::<String>::new()
    );
}

#[test]
fn crates_have_layers_like_modules() {
    let layers = [
        Layer { name: "gateway", members: &["efgs-gateway"], together: false },
        Layer { name: "store", members: &["efgs-store"], together: false },
    ];
    let upward =
        [member("efgs-gateway", &[]), member("efgs-store", &[("efgs-gateway", false), ("serde", false)])];
    assert_eq!(
        crates::graph(&upward).breaches(&layers, "the table"),
        ["upward: efgs-store (store) must not use efgs-gateway (gateway): efgs-store/Cargo.toml"]
    );
    let new = [
        member("efgs-gateway", &[("efgs-store", false)]),
        member("efgs-store", &[]),
        member("efgs-new", &[]),
    ];
    assert_eq!(
        crates::graph(&new).breaches(&layers, "the table"),
        ["efgs-new is in no layer: decide what may use it, and add it to the table"]
    );
}

#[test]
fn a_rule_names_only_crates_that_exist() {
    let rule = Rule { on: &["sqlx"], may: May::Only(&["gone"]), reason: "why" };
    assert_eq!(
        crates::breaches(&[rule], &[member("efgs-store", &[])]),
        ["gone does not exist: remove it from the rule \"why\""]
    );
}

#[test]
fn members_are_what_cargo_understands() {
    let metadata = br#"{"workspace_root": "/w", "packages": [{
        "name": "efgs-client", "manifest_path": "/w/crates/client/Cargo.toml",
        "dependencies": [
            {"name": "clap", "kind": null, "optional": true},
            {"name": "cc", "kind": "build", "optional": false},
            {"name": "efgs-test-ca", "kind": "dev", "optional": false}],
        "targets": [
            {"kind": ["lib"], "name": "efgs_client", "src_path": "/w/crates/client/src/lib.rs"},
            {"kind": ["bin"], "name": "efgs", "src_path": "/w/crates/client/src/bin/efgs.rs"},
            {"kind": ["test"], "name": "t", "src_path": "/w/crates/client/tests/t.rs"}]}]}"#;
    let expected = Member {
        manifest: "crates/client/Cargo.toml".to_owned(),
        library: Some(("efgs_client".to_owned(), "crates/client/src/lib.rs".to_owned())),
        programs: vec!["crates/client/src/bin/efgs.rs".to_owned()],
        ..member("efgs-client", &[("clap", true), ("cc", false)])
    };
    assert_eq!(crates::parse(metadata).unwrap(), [expected]);
}
