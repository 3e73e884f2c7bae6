//! What was accepted of each country on each day, so that the quotas of a day are exact over all instances
//! (expand: a new table, which the version before does not need).

/// One row per country and day.
pub(crate) const STEP: crate::Step = crate::Step { name: "m0005_quota", mysql: MYSQL, sqlite: SQLITE };

const MYSQL: &[&str] = &["CREATE TABLE IF NOT EXISTS quota (
        country CHAR(2) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        day DATE NOT NULL,
        used_keys BIGINT NOT NULL,
        used_bytes BIGINT NOT NULL,
        PRIMARY KEY (country, day)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"];

const SQLITE: &[&str] = &["CREATE TABLE IF NOT EXISTS quota (
        country TEXT NOT NULL,
        day TEXT NOT NULL,
        used_keys INTEGER NOT NULL,
        used_bytes INTEGER NOT NULL,
        PRIMARY KEY (country, day)
    ) WITHOUT ROWID"];
