//! Walls between the parts of the code that neither the compiler nor clippy can keep: which file may name what.
//!
//! It reads lines, not syntax: what stands behind `//` on a line does not count.

use std::fs;
use std::path::Path;

use crate::step::{Outcome, root};

struct Wall {
    /// Files whose path begins so…
    below: &'static str,
    /// …unless it also begins with one of these…
    except: &'static [&'static str],
    /// …must not contain these words.
    words: &'static [&'static str],
    reason: &'static str,
}

const WALLS: [Wall; 4] = [
    Wall {
        below: "src/",
        except: &["src/store/", "src/store.rs"],
        words: &["sea_orm", "sea_orm_migration", "sqlx", "mysql_async"],
        reason: "only the store knows SQL: it speaks in protocol and domain types, so that two databases stay one concern",
    },
    Wall {
        below: "src/",
        except: &["src/http/", "src/http.rs"],
        words: &["StatusCode"],
        reason: "status codes only in src/http: features return typed errors, one exhaustive match maps them",
    },
    Wall {
        below: "src/",
        except: &["src/callback/guard", "src/cli/", "src/telemetry/traces.rs"],
        words: &["TcpStream::connect", "TcpSocket", "lookup_host", "hyper", "tokio_rustls", "reqwest"],
        reason: "the server opens connections only through the callback guard, which checks the address that it connects to, \
                 and to the journal's store and the collector of traces, which the operator names",
    },
    Wall {
        below: "crates/protocol/Cargo.toml",
        except: &[],
        words: &["tokio", "actix-web", "sea-orm", "reqwest"],
        reason: "the protocol is pure: national backends and auditors use it without a server's dependencies",
    },
];

/// Walks the repository's sources and names every breach.
pub(crate) fn check() -> Outcome {
    let mut found = Vec::new();
    for top in ["src", "crates/protocol/Cargo.toml"] {
        walk(&root().join(top), top, &mut found).map_err(|e| format!("cannot read {top}: {e}"))?;
    }
    if found.is_empty() { Ok(()) } else { Err(format!("walls are broken:\n{}", found.join("\n"))) }
}

fn walk(path: &Path, shown: &str, found: &mut Vec<String>) -> std::io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            walk(&entry.path(), &format!("{shown}/{}", entry.file_name().to_string_lossy()), found)?;
        }
    } else if shown.ends_with(".rs") || shown.ends_with(".toml") {
        found.extend(breaches(shown, &fs::read_to_string(path)?));
    }
    Ok(())
}

fn breaches(path: &str, text: &str) -> Vec<String> {
    let comment = if path.ends_with(".toml") { "#" } else { "//" };
    let mut found = Vec::new();
    for wall in WALLS.iter().filter(|wall| path.starts_with(wall.below)) {
        if wall.except.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split(comment).next().unwrap_or_default();
            for word in wall.words.iter().filter(|word| has_word(code, word)) {
                found.push(format!("  {path}:{number}: {word}: {}", wall.reason));
            }
        }
    }
    found
}

/// Whether `word` stands in `code` with no letter, digit or underscore beside it.
fn has_word(code: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(start, _)| !code[..start].ends_with(inside) && !code[start + word.len()..].starts_with(inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breach_is_named_with_its_place_and_reason() {
        let found = breaches("src/upload.rs", "use std::fmt;\nuse sea_orm::EntityTrait;\n");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("src/upload.rs:2: sea_orm: only the store"), "{found:?}");
        assert_eq!(breaches("src/http_client.rs", "fn f() -> StatusCode {").len(), 1);
        assert_eq!(breaches("src/jobs.rs", "TcpStream::connect(address)").len(), 1);
        assert_eq!(breaches("crates/protocol/Cargo.toml", "tokio = \"1\"").len(), 1);
    }

    #[test]
    fn what_is_allowed_is_left_alone() {
        for (path, line) in [
            ("src/store/bulk.rs", "use mysql_async::Conn;"),
            ("src/http/errors.rs", "StatusCode::CONFLICT"),
            ("src/callback/guard.rs", "TcpStream::connect(address)"),
            ("src/upload.rs", "// sqlx would do the same"),
            ("src/upload.rs", "let my_sqlx_count = MyStatusCode;"),
            ("src/trust/tls.rs", "TlsStream<TcpStream>"),
            ("crates/protocol/Cargo.toml", "# no tokio here"),
            ("tests/integration/main.rs", "StatusCode"),
        ] {
            assert_eq!(breaches(path, line), Vec::<String>::new(), "{path}: {line}");
        }
    }
}
