//! The lease of the rotation, which re-encrypts stored payloads with another encryption key (spec §8.2).

/// Expands: a row that earlier versions do not use.
pub(crate) const STEP: crate::Step = crate::Step { name: "m0007_rotation", mysql: MYSQL, sqlite: SQLITE };

const MYSQL: &[&str] =
    &["INSERT INTO job (name, owner, token, expires_at, due_at) VALUES ('rotation', NULL, 0, 0, 0)
     ON DUPLICATE KEY UPDATE name = VALUES(name)"];

const SQLITE: &[&str] = &[
    "INSERT OR IGNORE INTO job (name, owner, token, expires_at, due_at) VALUES ('rotation', NULL, 0, 0, 0)",
];
