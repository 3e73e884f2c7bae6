#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use proptest::prelude::*;

use super::{load::parse, *};

const MINIMAL: &str = r#"
[tls]
certificate = "server.pem"
private_key = "server.key"
[database]
url = "mysql://app:hunter2@db:3306/efgs"
[trust]
anchor = "anchor.pem"
[encryption]
keys = [{ id = 1, file = "1.key" }]
"#;

fn parsed(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    parse(text, Path::new("gateway.toml"), environment)
}

fn with(more: &str) -> Result<Config, ConfigError> {
    parsed(&format!("{MINIMAL}{more}"), &[])
}

/// What an operator reads.
fn complaint(result: Result<Config, ConfigError>) -> String {
    match result {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_example_is_accepted_and_shows_the_defaults() {
    let example = parsed(EXAMPLE, &[]).unwrap();
    let minimal = with("").unwrap();
    assert_eq!(format!("{:?}", example.server), format!("{:?}", minimal.server));
    assert_eq!(format!("{:?}", example.upload), format!("{:?}", minimal.upload));
    assert_eq!(format!("{:?}", example.limits), format!("{:?}", minimal.limits));
    assert_eq!(format!("{:?}", example.batching), format!("{:?}", minimal.batching));
    assert_eq!(format!("{:?}", example.download), format!("{:?}", minimal.download));
    assert_eq!(format!("{:?}", example.retention), format!("{:?}", minimal.retention));
    assert_eq!(format!("{:?}", example.access_log), format!("{:?}", minimal.access_log));
    assert_eq!(
        (example.database.pool, example.database.timeout),
        (minimal.database.pool, minimal.database.timeout)
    );
    assert_eq!(example.trust.refresh, minimal.trust.refresh);
    assert_eq!(minimal.participant("NL".parse().unwrap()).chain, ChainScope::SinceDate);
}

#[test]
fn what_the_example_has_commented_out_is_accepted_too() {
    let line = |line: &str| {
        let shown = line.strip_prefix("# ").unwrap_or(line);
        let is_setting =
            shown.starts_with('[') || shown.split_once(" = ").is_some_and(|(k, _)| !k.contains(' '));
        // These stand for something else than the rest of the example.
        let instead = ["url_file", "trusted_proxies", "folder"].iter().any(|name| shown.starts_with(name));
        if is_setting && !instead { shown.to_owned() } else { line.to_owned() }
    };
    let text: Vec<String> = EXAMPLE.lines().map(line).collect();
    let config = parsed(&text.join("\n"), &[]).unwrap();
    assert_eq!(config.server.workers, Some(2));
    assert!(format!("{:?}", config.tls).contains("client-ca.pem") && config.database.tls_ca.is_some());
    assert_eq!(config.participants.len(), 1);
}

#[test]
fn an_unknown_key_is_named_with_its_nearest_neighbour() {
    for (more, key, nearest) in [
        ("[server]\nlisen = \"0.0.0.0:1\"", "server.lisen", "server.listen"),
        ("[sever]\nlisten = \"0.0.0.0:1\"", "sever", "server"),
        ("[upload]\nmax_key = 1", "upload.max_key", "upload.max_keys"),
        ("[batching]\nintervall = \"1s\"", "batching.intervall", "batching.interval"),
        ("[batching]\nlingers = \"1s\"", "batching.lingers", "batching.linger"),
        ("[batching]\nspaceing = \"1s\"", "batching.spaceing", "batching.spacing"),
        ("[participants.NL]\ntag = \"object-id\"", "participants.NL.tag", "participants.NL.tags"),
        ("[limits]\nkeys_per_dey = 1", "limits.keys_per_dey", "limits.keys_per_day"),
    ] {
        let text = complaint(with(more));
        assert_eq!(text, format!("unknown key `{key}`; did you mean `{nearest}`?"));
    }
    let text = complaint(parsed(&MINIMAL.replace("file = ", "path = "), &[]));
    assert!(text.contains("`encryption.keys[0].path`"), "{text}");
    let text = complaint(parsed(&MINIMAL.replace("anchor =", "ancor ="), &[]));
    assert!(text.contains("`trust.ancor`") && text.contains("`trust.anchor`"), "{text}");
}

#[test]
fn what_cannot_be_right_is_refused_by_the_name_of_its_key() {
    for (more, named) in [
        ("[upload]\nmax_keys = 0", "upload.max_keys"),
        ("[upload]\nmax_bytes = \"0B\"", "upload.max_bytes"),
        ("[batching]\ninterval = \"0s\"", "batching.interval"),
        ("[batching]\nmax_keys = 0", "batching.max_keys"),
        ("[retention]\ndays = 0", "retention.days"),
        ("[access_log]\nretention = \"0s\"", "access_log.retention"),
        ("[access_log]\nsync = \"0s\"", "access_log.sync"),
        ("[access_log]\nsync = \"often\"", "always"),
        ("[access_log]\nspool_max = \"1KiB\"", "access_log.spool_max"),
        ("[server]\nworkers = 0", "server.workers"),
        ("[server]\nrequest_timeout = \"0s\"", "server.request_timeout"),
        ("[batching]\ntags = \"uuid\"", "object-id"),
        ("[batching]\ninterval = 300", "interval"),
        ("[limits]\nrequests_per_second = 0", "limits.requests_per_second"),
        ("[limits]\nburst = 0", "limits.burst"),
        ("[limits]\nmemory = \"1MiB\"", "limits.memory"),
        ("[limits]\nqueue = 0", "limits.queue"),
        ("[participants.NL]\nconnections = 0", "participants.NL.connections"),
        ("[participants.nl]\nchain = \"day\"", "nl"),
        ("[participants.NL]\nchain = \"week\"", "since-date"),
        ("[server]\nlisten = \"nowhere\"", "listen"),
        ("[tracing]\nendpoint = \"collector:4318\"", "tracing.endpoint"),
        ("[tracing]\nendpoint = \"https://collector\"", "tracing.ca"),
        ("[tracing]\nendpoint = \"http://collector\"\nratio = 1.5", "tracing.ratio"),
        ("[journal]", "journal.folder"),
        ("[journal]\nfolder = \"a\"\nbucket = \"b\"", "not both"),
        ("[journal]\nbucket = \"b\"", "journal.endpoint"),
        ("[journal]\nfolder = \"a\"\nsecret_key_file = \"b\"", "journal.access_key_file"),
        ("[journal]\nfolder = \"a\"\ntimeout = \"0s\"", "journal.timeout"),
    ] {
        let text = complaint(with(more));
        assert!(text.contains(named), "{more}: {text}");
    }
    let replaced = |from: &str, to: &str| complaint(parsed(&MINIMAL.replace(from, to), &[]));
    assert!(replaced("url = \"mysql", "url_file = \"x\"\nurl = \"mysql").contains("not both"));
    let both = "read_urls = [\"mysql://a\"]\nread_urls_file = \"x\"\nurl = \"mysql";
    assert!(replaced("url = \"mysql", both).contains("`database.read_urls_file`, not both"));
    assert!(replaced("url = \"mysql://app:hunter2@db:3306/efgs\"", "").contains("`database.url` is missing"));
    assert!(replaced("[{ id = 1, file = \"1.key\" }]", "[]").contains("openssl rand -base64 32"));
    let twice = replaced("[{ id = 1,", "[{ id = 1, file = \"2.key\" }, { id = 1,");
    assert!(twice.contains("uses an id twice"), "{twice}");
    assert!(complaint(parsed("[server", &[])).contains("not valid TOML"));
    assert!(complaint(parsed("", &[])).contains("missing field"));
}

#[test]
fn the_environment_overrides_and_can_add_whole_sections() {
    let config = parsed(
        MINIMAL,
        &[
            ("EFGS__SERVER__LISTEN", "127.0.0.1:4433"),
            ("EFGS__UPLOAD__MAX_KEYS", "7"),
            ("EFGS__UPLOAD__MAX_BYTES", "2MiB"),
            ("EFGS__PARTICIPANTS__NL__CHAIN", "day"),
            ("EFGS__PARTICIPANTS__NL__ALLOW_SHA1_SIGNATURES", "true"),
            ("EFGS__DATABASE__URL", "mysql://a:p=\"w@h/d"),
            ("EFGS__ENCRYPTION__KEYS", "[{ id = 2, file = \"2.key\" }]"),
            ("PATH", "/bin"),
            ("EFGS_TEST_MYSQL", "x"),
        ],
    )
    .unwrap();
    assert_eq!(config.server.listen.port(), 4433);
    assert_eq!((config.upload.max_keys, config.upload.max_bytes), (7, ByteSize::mib(2)));
    let dutch = config.participant("NL".parse().unwrap());
    assert!(dutch.chain == ChainScope::Day && dutch.allow_sha1_signatures);
    assert_eq!(config.database_url().unwrap().reveal(), "mysql://a:p=\"w@h/d");
    assert_eq!(config.encryption.keys[0].id, 2);
    for name in ["EFGS__", "EFGS__SERVER__", "EFGS____LISTEN"] {
        assert!(complaint(parsed(MINIMAL, &[(name, "1")])).contains("EFGS__SECTION__KEY"), "{name}");
    }
    let unknown = complaint(parsed(MINIMAL, &[("EFGS__SERVER__LISEN", "1")]));
    assert!(unknown.contains("`server.lisen`"), "{unknown}");
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.toml");
    let text = MINIMAL.replace("mysql://app:hunter2@db:3306/efgs", "sqlite:data/efgs.db");
    std::fs::write(&path, text.replace("1.key", "/etc/efgs/1.key")).unwrap();
    let config = load::load(&path, std::iter::empty()).unwrap();
    let certificate = folder.path().join("server.pem").display().to_string();
    assert!(format!("{:?}", config.tls).contains(&certificate), "{:?}", config.tls);
    assert_eq!(config.trust.anchor, folder.path().join("anchor.pem"));
    assert_eq!(config.encryption.keys[0].file, Path::new("/etc/efgs/1.key"));
    let url = format!("sqlite:{}", folder.path().join("data/efgs.db").display());
    assert_eq!(config.database_url().unwrap().reveal(), url);
    let missing = load::load(&folder.path().join("none.toml"), std::iter::empty()).unwrap_err();
    assert!(missing.to_string().contains("config example"), "{missing}");
}

#[test]
fn the_database_url_can_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.toml");
    let url = "url = \"mysql://app:hunter2@db:3306/efgs\"";
    std::fs::write(&path, MINIMAL.replace(url, "url_file = \"url.txt\"")).unwrap();
    let config = load::load(&path, std::iter::empty()).unwrap();
    assert!(config.database_url().unwrap_err().to_string().contains("database.url_file"));
    std::fs::write(folder.path().join("url.txt"), "mysql://app:hunter2@db/efgs\n").unwrap();
    assert_eq!(config.database_url().unwrap().reveal(), "mysql://app:hunter2@db/efgs");
}

#[test]
fn secrets_do_not_show() {
    let config = with("").unwrap();
    let shown = format!("{config:?} {:#?}", config.database_url().unwrap());
    assert!(!shown.contains("hunter2") && shown.contains("[redacted]"), "{shown}");
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    for (variable, value) in [
        ("EFGS__DATABASE", "mysql://u:hunter2@h/d"),
        ("EFGS__ENCRYPTION__KEYS", "\"hunter2, expected nothing\""),
        ("EFGS__UPLOAD__MAX_KEYS", "hunter2"),
    ] {
        let error = parsed(MINIMAL, &[(variable, value)]).unwrap_err().to_string();
        assert!(!error.contains("hunter2") && error.contains("invalid type: string, expected"), "{error}");
    }
}

#[test]
fn what_works_but_is_probably_not_meant_is_warned_of() {
    let warnings = |more: &str| with(more).unwrap().warnings();
    let quiet = warnings("").len();
    for (more, named) in [
        ("[upload]\nmax_keys = 9000", "upload.max_keys"),
        ("[server]\nadmin_listen = \"0.0.0.0:8081\"", "server.admin_listen"),
        ("[participants.IE]\nconcurrent_uploads = 64", "limits.queue"),
        ("[participants.IE]\nallow_sha1_signatures = true", "participants.IE.allow_sha1_signatures"),
    ] {
        let warnings = warnings(more);
        assert_eq!(warnings.len(), quiet + 1, "{warnings:?}");
        assert!(warnings.iter().any(|warning| warning.contains(named)), "{warnings:?}");
    }
}

proptest! {
    #[test]
    fn nothing_in_a_file_or_the_environment_makes_it_panic(
        text in "\\PC{0,80}",
        name in "EFGS__[A-Z_]{0,30}",
        value in "\\PC{0,40}",
    ) {
        drop(parsed(&text, &[]));
        drop(parsed(MINIMAL, &[(&name, &value)]));
    }
}

#[test]
fn a_participant_has_the_common_limits_but_for_its_own() {
    let config =
        with("[limits]\nburst = 7\n[participants.NL]\nkeys_per_day = 3\nbytes_per_day = \"1kB\"\nrequests_per_second = 5\nconnections = 9")
            .unwrap();
    let common = config.limits_of("DE".parse().unwrap());
    let own = config.limits_of("NL".parse().unwrap());
    assert_eq!((common.keys_per_day, common.bytes_per_day, common.burst), (5_000_000, 2_000_000_000, 7));
    let changed = CountryLimits {
        keys_per_day: 3,
        bytes_per_day: 1000,
        requests_per_second: 5.0,
        connections: 9,
        ..common
    };
    assert_eq!(own, changed);
}

#[test]
fn the_access_log_has_a_spool_unless_its_folder_is_empty() {
    let log = |more: &str| with(&format!("[access_log]\n{more}")).unwrap().access_log;
    let standard = log("");
    assert_eq!(standard.spool(), Some(Path::new("spool")));
    assert_eq!(standard.sync, LogSync::Within(std::time::Duration::from_millis(50)));
    assert_eq!(log("sync = \"always\"").sync, LogSync::Always);
    assert_eq!(log("spool = \"\"").spool(), None);
}
