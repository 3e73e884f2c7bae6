use super::super::order::{Graph, Layer};
use super::super::text;

#[test]
fn a_layer_is_a_line_with_what_its_members_use() {
    let mut graph = Graph::default();
    graph.nodes.extend(["upload", "download", "store"].map(str::to_owned));
    graph.add("upload", "store", String::new);
    graph.add("upload", "clock", String::new);
    let layers = [
        Layer { name: "features", members: &["upload", "download", "gone"], together: false },
        Layer { name: "store", members: &["store"], together: false },
    ];
    assert_eq!(
        text::of(&graph, &layers),
        "features    upload → clock store, download\n\
         store       store\n"
    );
}

#[test]
fn a_long_line_is_wrapped() {
    let mut graph = Graph::default();
    graph.nodes.insert("a".to_owned());
    (10..60).for_each(|number| graph.add("a", &format!("m{number}"), String::new));
    let shown = text::of(&graph, &[Layer { name: "top", members: &["a"], together: false }]);
    assert_eq!(shown.lines().count(), 2, "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 118), "{shown}");
    assert!(shown.lines().nth(1).unwrap().starts_with("            m"), "{shown}");
}

#[test]
fn a_document_shows_the_layers_as_they_are() {
    let document = "# A\n<!-- layers -->\nold\n<!-- /layers -->\nb\n";
    let written = text::replaced(document, "top a\n").unwrap();
    assert_eq!(written, "# A\n<!-- layers -->\n```text\ntop a\n```\n<!-- /layers -->\nb\n");
    assert!(text::has_block(&written));
    text::check(&written, "top a\n", "A.md").unwrap();
    let error = text::check(&written, "top a → b\n", "A.md").unwrap_err();
    assert!(error.starts_with("A.md does not show the layers as they are"), "{error}");
    assert!(!text::has_block("# A\n"));
    text::check("# A\n", "top a\n", "A.md").unwrap_err();
}
