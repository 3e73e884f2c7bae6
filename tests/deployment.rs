//! What an operator starts, `docker-compose.yml` and the files that it names, checked without a container engine: it is
//! well-formed, everything that it refers to exists, and it is as closed as the documentation says.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use efgs_gateway::config::Config;
use serde::Deserialize;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The part of the Compose format that is used here. An unknown (misspelt) key is an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "some keys are there for the parser only")]
struct Compose {
    name: String,
    services: BTreeMap<String, Service>,
    networks: BTreeMap<String, Network>,
    volumes: BTreeMap<String, Volume>,
    configs: BTreeMap<String, FromFile>,
    secrets: BTreeMap<String, FromFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "some keys are there for the parser only")]
struct Service {
    build: Option<String>,
    image: String,
    #[serde(default)]
    profiles: Vec<String>,
    restart: String,
    init: Option<bool>,
    #[serde(default)]
    depends_on: BTreeMap<String, Dependency>,
    networks: Vec<String>,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    configs: Vec<Mount>,
    #[serde(default)]
    secrets: Vec<String>,
    #[serde(default)]
    volumes: Vec<String>,
    healthcheck: HealthCheck,
    stop_grace_period: String,
    user: String,
    read_only: bool,
    tmpfs: Vec<String>,
    cap_drop: Vec<String>,
    security_opt: Vec<String>,
    #[serde(default)]
    ulimits: BTreeMap<String, u32>,
    deploy: Deploy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dependency {
    condition: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mount {
    source: String,
    target: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "some keys are there for the parser only")]
struct HealthCheck {
    test: Vec<String>,
    start_period: String,
    start_interval: String,
    interval: String,
    timeout: String,
    retries: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deploy {
    resources: Resources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    limits: Limits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    cpus: String,
    memory: String,
    pids: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    #[serde(default)]
    internal: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Volume {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FromFile {
    file: String,
}

fn compose() -> Compose {
    serde_saphyr::from_str(&read("docker-compose.yml")).unwrap_or_else(|e| panic!("docker-compose.yml: {e}"))
}

/// The secrets that a text expects to find in the container.
fn secrets_named_in(text: &str) -> impl Iterator<Item = &str> {
    text.split("/run/secrets/").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn everything_that_a_service_refers_to_is_declared_and_nothing_is_declared_in_vain() {
    let compose = compose();
    let mut granted = Vec::new();
    for (name, service) in &compose.services {
        for network in &service.networks {
            assert!(compose.networks.contains_key(network), "{name}: network {network}");
        }
        for secret in &service.secrets {
            assert!(compose.secrets.contains_key(secret), "{name}: secret {secret}");
            granted.push(secret);
        }
        for config in &service.configs {
            let file = &compose.configs[&config.source].file;
            assert!(Path::new(ROOT).join(file).is_file(), "{name}: config {file}");
        }
        for volume in &service.volumes {
            let (source, _) = volume.split_once(':').unwrap();
            // How full the disks are is seen from the host's root, and nothing is written there.
            let looks_at_host = name == "node" && volume == "/:/host:ro,rslave";
            assert!(looks_at_host || compose.volumes.contains_key(source), "{name}: volume {source}");
        }
        for (other, dependency) in &service.depends_on {
            assert!(compose.services.contains_key(other), "{name}: depends on {other}");
            assert_eq!(dependency.condition, "service_healthy", "{name}: depends on {other}");
        }
        let texts = service.command.iter().chain(service.environment.values());
        for secret in texts.flat_map(|text| secrets_named_in(text)) {
            assert!(
                service.secrets.iter().any(|granted| granted == secret),
                "{name}: {secret} is not granted"
            );
        }
    }
    for secret in compose.secrets.keys() {
        assert!(granted.contains(&secret), "no service uses the secret {secret}");
    }
}

#[test]
fn the_containers_are_closed_and_watched() {
    let compose = compose();
    for (name, service) in &compose.services {
        assert_eq!(service.healthcheck.test[0], "CMD", "{name}");
        assert!(service.read_only, "{name}: read-only root file system");
        assert_eq!(service.cap_drop, ["ALL"], "{name}: capabilities");
        assert_eq!(service.security_opt, ["no-new-privileges:true"], "{name}: privileges");
        assert!(!["", "0", "root"].contains(&service.user.split(':').next().unwrap()), "{name}: user");
        let (_, version) = service.image.split_once(':').expect("an image with its version");
        assert!(
            version == "local" || version.starts_with(|c: char| c == 'v' || c.is_ascii_digit()),
            "{version}"
        );
        let limits = &service.deploy.resources.limits;
        assert!(limits.pids > 0 && !limits.memory.is_empty() && !limits.cpus.is_empty(), "{name}: limits");
        for (key, value) in &service.environment {
            let secret = key.contains("PASSWORD") || key.contains("KEY");
            assert!(!secret || key.ends_with("_FILE"), "{name}: {key}={value} must come from a file");
        }
    }
    let gateway = &compose.services["gateway"];
    assert_eq!(gateway.ports, ["8443:8443", "127.0.0.1:8081:8081"], "the admin listener on loopback only");

    let database = &compose.services["database"];
    let (image, version) = database.image.split_once(':').expect("an image with its version");
    let (major, minor) = version.split_once('.').unwrap();
    assert_eq!(image, "mysql");
    assert!((major.parse::<u32>().unwrap(), minor.parse::<u32>().unwrap()) >= (8, 4), "MySQL {version}");
    assert!(database.ports.is_empty(), "the database is not published");
    assert!(
        database.networks.iter().all(|network| compose.networks[network].internal),
        "nor can it reach out"
    );
    assert!(database.command.iter().any(|option| option == "--require-secure-transport=ON"));
}

/// Prometheus and Grafana are there only when they are asked for, and reach nothing but what they show.
#[test]
fn monitoring_is_optional_and_sees_the_admin_listener_only() {
    let compose = compose();
    let (optional, always): (Vec<_>, Vec<_>) =
        compose.services.iter().partition(|(_, service)| !service.profiles.is_empty());
    assert_eq!(
        optional.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["grafana", "node", "prometheus"]
    );
    assert!(optional.iter().all(|(_, service)| service.profiles == ["monitoring"]));
    for (name, service) in always {
        let needs = service.depends_on.keys().all(|other| compose.services[other].profiles.is_empty());
        assert!(needs, "{name} starts without the profile");
    }
    assert!(compose.networks["monitoring"].internal);
    for name in ["prometheus", "node"] {
        let service = &compose.services[name];
        assert_eq!(
            (&service.networks[..], service.ports.len()),
            (&["monitoring".to_owned()][..], 0),
            "{name}"
        );
    }
    let grafana = &compose.services["grafana"];
    assert_eq!(grafana.ports, ["127.0.0.1:3000:3000"], "on loopback only");
    assert!(!compose.services["database"].networks.contains(&"monitoring".to_owned()));
    for service in compose.services.values() {
        let dashboard = service.networks.contains(&"dashboard".to_owned());
        assert!(!dashboard || service.image == grafana.image, "nobody else is where Grafana is published");
    }

    // Each file names the others as they are called here.
    let target = |service: &str, config: &str| {
        let mounts = &compose.services[service].configs;
        mounts.iter().find(|mount| mount.source == config).unwrap().target.clone()
    };
    let prometheus: serde_json::Value =
        serde_saphyr::from_str(&read("deploy/prometheus/prometheus.yml")).unwrap();
    for job in prometheus["scrape_configs"].as_array().unwrap() {
        let host = at(job, "static_configs.0.targets.0").as_str().unwrap();
        let (service, _) = host.split_once(':').unwrap();
        assert!(compose.services[service].networks.contains(&"monitoring".to_owned()), "{host}");
    }
    let gateway: toml::Table = read("deploy/compose/gateway.toml").parse().unwrap();
    let admin = gateway["server"]["admin_listen"].as_str().unwrap().rsplit_once(':').unwrap().1;
    let scraped = at(&prometheus, "scrape_configs.0.static_configs.0.targets.0");
    assert_eq!(scraped, &format!("gateway:{admin}"));
    let config = target("prometheus", "prometheus");
    assert!(compose.services["prometheus"].command.contains(&format!("--config.file={config}")));
    let rules = target("prometheus", "prometheus_rules");
    let beside = Path::new(&config).with_file_name(at(&prometheus, "rule_files.0").as_str().unwrap());
    assert_eq!(Path::new(&rules), beside);

    let provisioning = |file: &str| -> serde_json::Value {
        serde_saphyr::from_str(&read(&format!("deploy/grafana/provisioning/{file}"))).unwrap()
    };
    let source = provisioning("datasources/prometheus.yml");
    assert_eq!(at(&source, "datasources.0.url"), "http://prometheus:9090");
    let dashboard = target("grafana", "grafana_dashboard");
    let folder = provisioning("dashboards/efgs.yml");
    let folder = at(&folder, "providers.0.options.path").as_str().unwrap().to_owned();
    assert_eq!(Path::new(&dashboard).parent().unwrap(), Path::new(&folder));
    assert_eq!(grafana.environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"], dashboard);
}

#[test]
fn the_gateways_configuration_fits_its_container() {
    let compose = compose();
    let gateway = &compose.services["gateway"];
    let file = &compose.configs["gateway"].file;
    Config::load(&Path::new(ROOT).join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let text = read(file);
    let config: toml::Table = text.parse().unwrap();

    for secret in secrets_named_in(&text) {
        assert!(
            gateway.secrets.iter().any(|granted| granted == secret),
            "{secret} is not granted to the gateway"
        );
    }
    for secret in &gateway.secrets {
        assert!(secrets_named_in(&text).any(|named| named == secret), "{secret} is granted but not used");
    }
    let server = config["server"].as_table().unwrap();
    for (key, port) in [("listen", &gateway.ports[0]), ("admin_listen", &gateway.ports[1])] {
        let listen = server[key].as_str().unwrap();
        assert_eq!(listen.rsplit_once(':').unwrap().1, port.rsplit_once(':').unwrap().1, "server.{key}");
    }
    assert!(config["database"].get("tls_ca").is_some(), "TLS to the database");
    let place = &gateway.configs[0].target;
    assert!(gateway.healthcheck.test.contains(place), "the health check reads {place}");
    assert!(read("Dockerfile").contains(place), "the image starts with {place}");
}

#[test]
fn the_instructions_make_every_secret() {
    let instructions = read("deploy/compose/README.md");
    let (secrets, _) = instructions.split_once("\n## 2. Start").unwrap();
    let mut script = String::from("set -euo pipefail\n");
    for block in secrets.split("```sh\n").skip(1) {
        script += block.split_once("```").unwrap().0;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("deploy/compose/secrets");
    fs::create_dir_all(&place).unwrap();
    let script = script.replace("/path/to/offline/", "").replace("rsa:4096", "rsa:2048"); // it takes seconds
    let made = Command::new("bash").args(["-c", &script]).current_dir(folder.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    for secret in compose().secrets.values() {
        let content =
            fs::read(folder.path().join(&secret.file)).unwrap_or_else(|e| panic!("{}: {e}", secret.file));
        assert!(!content.is_empty(), "{} is empty", secret.file);
    }
    let verify = |args: &[&str]| {
        let output = Command::new("openssl").arg("verify").args(args).current_dir(&place).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    verify(&["-x509_strict", "-CAfile", "database-ca.pem", "-verify_hostname", "database", "database.pem"]);
    verify(&["-x509_strict", "-CAfile", "server.pem", "-verify_hostname", "localhost", "server.pem"]);
    // rustls does not take an authority for a server.
    let shown = Command::new("openssl")
        .args(["x509", "-noout", "-ext", "basicConstraints", "-in", "server.pem"])
        .current_dir(&place)
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&shown.stdout).contains("CA:TRUE"));
}

#[test]
fn what_the_image_is_built_from_exists_and_is_all_that_cargo_needs() {
    let dockerfile = read("Dockerfile");
    let ignored = read(".dockerignore");
    let build = tempfile::tempdir().unwrap();
    let mut sources = Vec::new();
    for line in dockerfile.lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from=")) {
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        sources.extend_from_slice(&words[..words.len() - 1]);
    }
    for source in &sources {
        let path = Path::new(ROOT).join(source);
        assert!(path.exists(), "COPY {source}: there is no such file");
        assert!(ignored.lines().any(|line| line == format!("!{source}")), ".dockerignore keeps {source} out");
        std::os::unix::fs::symlink(path, build.path().join(source)).unwrap();
    }
    for line in ignored.lines().filter_map(|line| line.strip_prefix('!')) {
        assert!(sources.contains(&line), ".dockerignore lets {line} in, which the Dockerfile does not copy");
    }
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--no-deps", "--format-version=1", "--manifest-path"])
        .arg(build.path().join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let main = build.path().join("src/main.rs").display().to_string();
    assert!(String::from_utf8_lossy(&metadata.stdout).contains(&main), "the gateway itself is missing");

    let images = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM "));
    for image in images {
        let name = image.split(' ').next().unwrap();
        assert!(name.contains(':') && !name.ends_with(":latest"), "{image}: an image with its version");
    }
    let user = dockerfile.lines().rev().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert_eq!(user, compose().services["gateway"].user);
}

/// What is at a path of keys and indexes such as `a.0.b`.
fn at<'a>(value: &'a serde_json::Value, path: &str) -> &'a serde_json::Value {
    value.pointer(&format!("/{}", path.replace('.', "/"))).unwrap_or_else(|| panic!("{path}: not there"))
}

/// nginx's and HAProxy's configurations are run by `load_balancer`; Envoy's is at least read.
#[test]
fn the_sample_for_envoy_says_who_calls_and_nobody_else_does() {
    let envoy: serde_json::Value = serde_saphyr::from_str(&read("deploy/envoy/envoy.yaml")).unwrap();
    let chain = at(&envoy, "static_resources.listeners.0.filter_chains.0");
    let tls = at(chain, "transport_socket.typed_config");
    assert_eq!(at(tls, "require_client_certificate"), true);
    let common = at(tls, "common_tls_context");
    assert_eq!(at(common, "validation_context.trust_chain_verification"), "ACCEPT_UNTRUSTED");
    assert_eq!(at(common, "tls_params.tls_minimum_protocol_version"), "TLSv1_2");
    assert_eq!(at(common, "tls_params.tls_maximum_protocol_version"), "TLSv1_3");

    let http = at(chain, "filters.0.typed_config");
    assert_eq!(at(http, "common_http_protocol_options.headers_with_underscores_action"), "DROP_HEADER");
    let body = at(http, "http_filters.0.typed_config.max_request_bytes").as_u64();
    let limit = efgs_gateway::config::Upload::default().max_bytes.as_u64();
    assert_eq!(body, Some(limit), "upload.max_bytes");
    let routes = at(http, "route_config");
    let added = [
        ("X-SSL-Client-SHA256", "%DOWNSTREAM_PEER_FINGERPRINT_256%"),
        ("X-SSL-Client-DN", "%DOWNSTREAM_PEER_SUBJECT%"),
    ];
    for (i, (name, value)) in added.into_iter().enumerate() {
        assert_eq!(at(routes, &format!("request_headers_to_remove.{i}")), name);
        let add = at(routes, &format!("request_headers_to_add.{i}"));
        assert_eq!((at(add, "header.key"), at(add, "header.value")), (&name.into(), &value.into()));
        assert_eq!(at(add, "append_action"), "OVERWRITE_IF_EXISTS_OR_ADD");
    }
    let cluster = at(&envoy, "static_resources.clusters.0");
    assert_eq!(at(cluster, "health_checks.0.http_health_check.path"), "/health/ready");
}
