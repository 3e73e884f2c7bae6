//! The load balancers, and what of their files is another in a test than at an operator's.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
    process::{Child, Command, Stdio},
};

/// An account that may do nothing, for the load balancer when the test runs as root.
const NOBODY: u32 = 65534;

/// A load balancer: its files in `deploy/`, and what of them is another here than at an operator's.
pub(crate) struct Balancer {
    program: &'static str,
    /// A file that its configuration needs besides.
    module: Option<&'static str>,
    /// Of Debian; without it the load balancer need not be there.
    package: Option<&'static str>,
    folder: &'static str,
    config: &'static str,
    arguments: fn(config: &str) -> Vec<String>,
    changes: fn(&Places) -> Vec<(&'static str, String)>,
}

/// Where things are in a test.
pub(crate) struct Places {
    pub(crate) folder: String,
    pub(crate) listen: u16,
    pub(crate) gateway: u16,
    pub(crate) admin: u16,
}

pub(crate) const NGINX: Balancer = Balancer {
    program: "nginx",
    module: Some("/usr/lib/nginx/modules/ngx_http_js_module.so"),
    package: Some("nginx libnginx-mod-http-js"),
    folder: "nginx",
    config: "nginx.conf",
    arguments: |config| {
        ["-e", "stderr", "-c", config, "-g", "daemon off; master_process off;"].map(Into::into).into()
    },
    changes: |Places { folder, listen, gateway, .. }| {
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {folder}/{name};"));
        vec![
            ("/etc/nginx/", format!("{folder}/")),
            ("/var/log/nginx/error.log", "stderr".into()),
            ("/var/log/nginx/", format!("{folder}/")),
            ("/run/", format!("{folder}/")),
            ("http {\n", format!("http {{\n{}\n", temporary.concat())),
            ("listen 443 ssl", format!("listen 127.0.0.1:{listen} ssl")),
            ("listen [::]:443 ssl;", String::new()),
            ("10.0.0.11:8443", format!("127.0.0.1:{gateway}")),
            ("10.0.0.12:8443", format!("127.0.0.1:{gateway}")),
        ]
    },
};

pub(crate) const HAPROXY: Balancer = Balancer {
    program: "haproxy",
    module: None,
    package: Some("haproxy"),
    folder: "haproxy",
    config: "haproxy.cfg",
    arguments: |config| ["-db", "-f", config].map(Into::into).into(),
    changes: |Places { folder, listen, gateway, admin }| {
        vec![
            // It is started without the rights that it would give up here.
            ("    user haproxy\n    group haproxy\n    chroot /var/lib/haproxy\n", String::new()),
            ("log /dev/log local0", "log stderr format raw local0".into()),
            ("/etc/haproxy/", format!("{folder}/")),
            ("bind :443,:::443 v6only ssl", format!("bind 127.0.0.1:{listen} ssl")),
            ("10.0.0.11:8443", format!("127.0.0.1:{gateway}")),
            ("10.0.0.12:8443", format!("127.0.0.1:{gateway}")),
            ("check port 8081 inter 5s", format!("check port {admin} inter 100ms")),
        ]
    },
};

pub(crate) const ENVOY: Balancer = Balancer {
    program: "envoy",
    module: None,
    package: None,
    folder: "envoy",
    config: "envoy.yaml",
    arguments: |config| {
        ["--disable-hot-restart", "--concurrency", "1", "-l", "warn", "-c", config].map(Into::into).into()
    },
    changes: |Places { folder, listen, gateway, admin }| {
        vec![
            ("/etc/envoy/", format!("{folder}/")),
            (
                r#"address: "::", port_value: 443, ipv4_compat: true"#,
                format!("address: 127.0.0.1, port_value: {listen}"),
            ),
            ("10.0.0.11, port_value: 8443", format!("127.0.0.1, port_value: {gateway}")),
            ("10.0.0.12, port_value: 8443", format!("127.0.0.1, port_value: {gateway}")),
            ("port_value: 8081", format!("port_value: {admin}")),
        ]
    },
};

impl Balancer {
    pub(crate) fn is_there(&self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
        let module = self.module.is_none_or(|module| Path::new(module).is_file());
        if module && folders.any(|folder| folder.join(self.program).is_file()) {
            return true;
        }
        let required = std::env::var_os("EFGS_TEST_REQUIRE_ALL").is_some_and(|value| value == "1");
        match self.package {
            Some(package) if required => {
                panic!("{} is not installed: apt install {package}", self.program)
            }
            Some(package) => eprintln!("skipped: {} is not installed: apt install {package}", self.program),
            None => eprintln!("skipped: {} is not installed", self.program),
        }
        false
    }

    /// Starts it without any rights; it dies with this thread, whatever becomes of that.
    pub(crate) fn start(&self, folder: &Path, places: &Places) -> Child {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(self.folder);
        for file in fs::read_dir(&source).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
        let config = folder.join(self.config);
        let mut text = fs::read_to_string(&config).unwrap();
        for (from, to) in (self.changes)(places) {
            assert!(text.contains(from), "{:?} is not in {}", from, self.config);
            text = text.replace(from, &to);
        }
        fs::write(&config, text).unwrap();
        let mut command = Command::new("setpriv");
        // Not in the clone, which its account need not be able to enter.
        command.current_dir(folder).args(["--pdeathsig", "KILL", "--no-new-privs"]);
        if fs::metadata(folder).unwrap().uid() == 0 {
            let nobody = NOBODY.to_string();
            command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
            for file in fs::read_dir(folder).unwrap() {
                chown(file.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let log = File::create(folder.join("log")).unwrap();
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        command.arg(self.program).args((self.arguments)(config.to_str().unwrap())).env("PATH", path);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }
}
