//! nginx, set as one runs it for static files, with the same certificate and cipher as the gateway.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

use crate::{Outcome, process::Server};

/// A static web server that runs.
pub(crate) struct Nginx {
    server: Server,
    pub(crate) port: u16,
}

impl Nginx {
    /// Serves the files of `folder/static`, with the certificate in `folder`.
    pub(crate) fn start(folder: &Path) -> Outcome<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let dir = folder.display();
        let config = format!(
            "daemon off; worker_processes 2; pid {dir}/nginx.pid; error_log stderr notice;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on;
  keepalive_timeout 75; keepalive_requests 1000000000; open_file_cache max=100;
  default_type 'application/protobuf; version=1.0';
  client_body_temp_path {dir}/nginx-body; proxy_temp_path {dir}/nginx-proxy; fastcgi_temp_path {dir}/nginx-fastcgi;
  uwsgi_temp_path {dir}/nginx-uwsgi; scgi_temp_path {dir}/nginx-scgi;
  server {{
    listen 127.0.0.1:{port} ssl backlog=511; server_name localhost;
    ssl_certificate {dir}/server.pem; ssl_certificate_key {dir}/server.key;
    ssl_protocols TLSv1.3; ssl_session_cache shared:tls:1m; ssl_verify_client optional_no_ca;
    root {dir}/static;
    location = /diagnosiskeys {{ return 200; }}
  }}
}}
"
        );
        let path = folder.join("nginx.conf");
        fs::write(&path, config)?;
        let path = path.display().to_string();
        let prefix = format!("{dir}");
        // Debian keeps servers off an ordinary account's path.
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"]
            .into_iter()
            .map(Path::new)
            .find(|path| path.exists());
        let program = program.ok_or("there is no nginx to compare with: apt-get install nginx-light")?;
        let (server, ()) = Server::start(program, &["-p", &prefix, "-c", &path], |line| {
            // The second of the two processes that serve.
            line.contains("start worker process ").then_some(())
        })?;
        Ok(Self { server, port })
    }

    pub(crate) fn id(&self) -> u32 {
        self.server.id()
    }
}
