//! A real gateway with a load balancer before it, and clients that can also behave badly.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Child,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::NaiveDate;
use efgs_client::{Format, Settings, Upload};
use efgs_gateway::{
    clock::Clock,
    config::Config,
    server::{App, Gateway},
    store::NewCertificate,
};
use efgs_protocol::{
    certificate::{Certificate, CertificateType},
    country::Country,
    key::{DiagnosisKey, KeyBatch, KeyData, ReportType},
    wire,
};
use efgs_test_ca::{Identity, KeyKind, Participant, Pki, Request};
use openssl::{
    pkey::PKey,
    ssl::{SslConnector, SslConnectorBuilder, SslMethod},
    x509::X509,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tempfile::TempDir;

use crate::{
    balancers::{Balancer, Places},
    free_port::free_port,
};

/// A gateway with a load balancer before it, and what two countries and an unregistered caller need to call it.
pub(crate) struct Setup {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) pki: Pki,
    pub(crate) de: Participant,
    /// Its subject is one that must be escaped.
    pub(crate) nl: Participant,
    pub(crate) app: Arc<App>,
    gateway: Option<Gateway>,
    child: Child,
    port: u16,
    /// Of the load balancer.
    folder: PathBuf,
    /// Of everything.
    _folder: TempDir,
}

impl Drop for Setup {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        self.stop_gateway();
    }
}

pub(crate) fn country(code: &str) -> Country {
    Country::new(code).unwrap()
}

impl Setup {
    pub(crate) fn new(balancer: &Balancer) -> Option<Self> {
        if !balancer.is_there() {
            return None;
        }
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let everything = tempfile::tempdir().unwrap();
        let folder = everything.path().join("balancer");
        let pki = Pki::new(KeyKind::Ec256).unwrap();
        pki.write(everything.path()).unwrap();
        let de = pki.participant(country("DE")).unwrap();
        let mut nl = pki.participant(country("NL")).unwrap();
        let request = Request {
            common_name: "Gezondheid, C=DE + \"é\" 100 %; \\,C=DE".into(),
            ..Request::new(CertificateType::Authentication, "NL")
        };
        nl.authentication = pki.identity(nl.country, CertificateType::Authentication, &request).unwrap();

        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (app, gateway) = runtime.block_on(start_gateway(everything.path(), &[&de, &nl]));
        // Others may look into the test's folder, where the load balancer's own one is.
        let open = fs::Permissions::from_mode(0o711);
        fs::set_permissions(everything.path(), open).unwrap();
        fs::create_dir(&folder).unwrap();
        let chain = fs::read_to_string(everything.path().join("server.pem")).unwrap();
        fs::write(folder.join("server.pem"), chain + &pki.server.key_pem).unwrap();
        fs::write(folder.join("server.key"), &pki.server.key_pem).unwrap();

        let port = free_port();
        let places = Places {
            folder: folder.to_str().unwrap().into(),
            listen: port,
            gateway: gateway.address.port(),
            admin: gateway.admin_address.port(),
        };
        let child = balancer.start(&folder, &places);
        let mut setup = Self {
            runtime,
            pki,
            de,
            nl,
            app,
            gateway: Some(gateway),
            child,
            port,
            folder,
            _folder: everything,
        };
        setup.until("the load balancer listens", |setup| {
            assert_eq!(setup.child.try_wait().unwrap(), None, "it ended: {}", setup.log());
            TcpStream::connect(("127.0.0.1", setup.port)).is_ok()
        });
        Some(setup)
    }

    pub(crate) fn stop_gateway(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            self.runtime.block_on(gateway.stop());
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < deadline, "not in time: {what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn today(&self) -> NaiveDate {
        self.app.clock.now().date_naive()
    }

    /// A country as its backend calls.
    pub(crate) fn client(&self, participant: &Participant) -> efgs_client::Gateway {
        efgs_client::Gateway::new(Settings {
            url: format!("https://localhost:{}", self.port),
            server_ca_pem: self.pki.server_ca.certificate().pem().to_owned(),
            certificate_pem: participant.authentication.certificate.pem().to_owned(),
            private_key_pem: participant.authentication.key_pem.clone().into(),
            timeout: Duration::from_secs(20),
        })
        .unwrap()
    }

    pub(crate) fn connector(&self, identity: Option<&Identity>) -> SslConnectorBuilder {
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        let x509 = |der: &[u8]| X509::from_der(der).unwrap();
        connector.cert_store_mut().add_cert(x509(self.pki.server_ca.certificate().der())).unwrap();
        if let Some(identity) = identity {
            connector.set_certificate(&x509(identity.certificate.der())).unwrap();
            let key = PKey::private_key_from_pem(identity.key_pem.as_bytes()).unwrap();
            connector.set_private_key(&key).unwrap();
        }
        connector
    }

    pub(crate) fn rustls_config(
        &self,
        identity: &Identity,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> rustls::ClientConfig {
        let der = |certificate: &Certificate| CertificateDer::from(certificate.der().to_vec());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der(self.pki.server_ca.certificate())).unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
        rustls::ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![der(&identity.certificate)], key)
            .unwrap()
    }

    pub(crate) fn tcp(&self) -> TcpStream {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        tcp
    }

    /// Sends these bytes on a connection of their own; all that comes back until it is closed, or what is
    /// wrong with TLS.
    pub(crate) fn talk(&self, identity: Option<&Identity>, bytes: &[u8]) -> Result<String, String> {
        let connector = self.connector(identity).build();
        let mut stream = connector.connect("localhost", self.tcp()).map_err(|e| e.to_string())?;
        finish(&mut stream, bytes)
    }

    /// A download as bytes, with more lines in its head.
    pub(crate) fn download(&self, lines: &str) -> Vec<u8> {
        format!(
            "GET {}/{} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json; version=1.0\r\n\
             Connection: close\r\nX-Last: x\r\n{lines}\r\n",
            wire::DOWNLOAD_PATH,
            self.today()
        )
        .into_bytes()
    }

    /// DE and NL upload, and all of it is in a batch.
    pub(crate) fn uploads(&self) -> [KeyBatch; 2] {
        [&self.de, &self.nl].map(|participant| {
            let keys = keys(participant.country, 5, self.today());
            let signer = participant.signing.signer().unwrap();
            let client = self.client(participant);
            let tag = participant.country.as_str().parse().unwrap();
            let uploading = client.upload(&tag, Format::Protobuf, &keys, &signer);
            assert_eq!(self.runtime.block_on(uploading).unwrap(), Upload::Stored);
            self.runtime.block_on(self.app.batching.form_now()).unwrap();
            keys
        })
    }
}

/// A gateway in proxy mode that believes loopback, with these countries registered.
async fn start_gateway(folder: &Path, participants: &[&Participant]) -> (Arc<App>, Gateway) {
    fs::write(folder.join("payload-1.key"), BASE64_STANDARD.encode([1; 32])).unwrap();
    let config = folder.join("gateway.toml");
    let text = "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\nauth = \"proxy\"\n\
         trusted_proxies = [\"127.0.0.1/32\"]\nworkers = 2\n[database]\nurl = \"sqlite:efgs.db\"\n\
         [trust]\nanchor = \"trust-anchor.pem\"\nrefresh = \"1h\"\n\
         [encryption]\nkeys = [{ id = 1, file = \"payload-1.key\" }]\n[batching]\ninterval = \"1h\"\n";
    fs::write(&config, text).unwrap();
    let app = App::new(Config::load(&config).unwrap(), Clock::system(), None).unwrap();
    app.store.migrate().await.unwrap();
    for participant in participants {
        for identity in [&participant.authentication, &participant.signing, &participant.callback] {
            let bundle = &identity.bundle;
            let new = NewCertificate {
                thumbprint: bundle.certificate.thumbprint(),
                kind: bundle.kind,
                country: bundle.country.to_string(),
                pem: bundle.certificate.pem().to_owned(),
                operator_signature: bundle.operator_signature.clone(),
                registration_signature: bundle.registration_signature.clone(),
                waived: String::new(),
                waived_by: String::new(),
                waived_because: String::new(),
            };
            app.store.import_certificate(&new, app.clock.now()).await.unwrap();
        }
    }
    let gateway = Gateway::start(app.clone(), true).await.unwrap();
    (app, gateway)
}

pub(crate) fn finish(stream: &mut (impl Read + Write), bytes: &[u8]) -> Result<String, String> {
    // It may be refused, and the connection closed, before all is written.
    drop(stream.write_all(bytes));
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if answer.is_empty() => Err(error.to_string()),
        // Whether the end of TLS is said before the connection ends is not what is tested here.
        _ => Ok(String::from_utf8(answer).unwrap()),
    }
}

pub(crate) fn keys(origin: Country, amount: usize, day: NaiveDate) -> KeyBatch {
    let start = day.and_hms_opt(0, 0, 0).unwrap().and_utc().timestamp() as u32 / 600;
    let key = |_| DiagnosisKey {
        key_data: KeyData::new(efgs_protocol::random::bytes()),
        rolling_start_interval_number: start,
        rolling_period: 144,
        transmission_risk_level: 3,
        origin,
        report_type: ReportType::ConfirmedTest,
        days_since_onset_of_symptoms: 1,
    };
    let mut batch = KeyBatch::new();
    for key in (0..amount).map(key) {
        batch.push(key, &[]);
    }
    batch
}

pub(crate) fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {answer:?}")).parse().unwrap()
}
