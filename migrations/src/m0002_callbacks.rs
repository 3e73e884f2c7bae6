//! Callback subscriptions, the notifications that wait, and what each country has downloaded (spec §5.6).

/// Callbacks.
pub(crate) const STEP: crate::Step = crate::Step { name: "m0002_callbacks", mysql: MYSQL, sqlite: SQLITE };

// Times are milliseconds since 1970 by the clock of the database, as in `job`.
const MYSQL: &[&str] = &[
    // `name` is the id that the country chose, up to 64 characters. `state` is active, paused (after failures)
    // or held (by the operator). Whoever delivers holds the lease: `owner` is new each time, so that it also
    // fences off earlier holders. NULL: nobody.
    "CREATE TABLE IF NOT EXISTS callback_subscription (
        id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
        country CHAR(2) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        name VARBINARY(256) NOT NULL,
        url TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
        state VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        failures INT NOT NULL,
        last_error TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
        last_attempt_at BIGINT NULL,
        last_success_at BIGINT NULL,
        next_attempt_at BIGINT NOT NULL,
        owner VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
        lease_expires_at BIGINT NOT NULL,
        UNIQUE KEY callback_subscription_country_name (country, name)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    // A queue per subscription, in the order of the batches.
    "CREATE TABLE IF NOT EXISTS callback_notification (
        subscription_id BIGINT NOT NULL,
        batch_id BINARY(12) NOT NULL,
        queued_at BIGINT NOT NULL,
        PRIMARY KEY (subscription_id, batch_id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    // The newest batch that a country has downloaded.
    "CREATE TABLE IF NOT EXISTS downloaded (
        country CHAR(2) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
        batch_id BINARY(12) NOT NULL
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
];

const SQLITE: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS callback_subscription (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        country TEXT NOT NULL,
        name BLOB NOT NULL,
        url TEXT NOT NULL,
        state TEXT NOT NULL,
        failures INTEGER NOT NULL,
        last_error TEXT NULL,
        last_attempt_at INTEGER NULL,
        last_success_at INTEGER NULL,
        next_attempt_at INTEGER NOT NULL,
        owner TEXT NULL,
        lease_expires_at INTEGER NOT NULL,
        UNIQUE (country, name)
    )",
    "CREATE TABLE IF NOT EXISTS callback_notification (
        subscription_id INTEGER NOT NULL,
        batch_id BLOB NOT NULL,
        queued_at INTEGER NOT NULL,
        PRIMARY KEY (subscription_id, batch_id)
    ) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS downloaded (
        country TEXT NOT NULL PRIMARY KEY,
        batch_id BLOB NOT NULL
    ) WITHOUT ROWID",
];
