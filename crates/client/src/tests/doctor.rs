//! What the doctor says, check by check.

use std::{fs, net::TcpListener};

use efgs_protocol::{certificate::CertificateType, clock::Clock};
use efgs_test_ca::{Authority, KeyKind, KeyPair, Request};
use tempfile::TempDir;

use super::server::Server;
use crate::{
    Profile, Settings,
    doctor::{Check, State, examine_files, examine_gateway},
};

/// A profile with these settings.
fn profile(settings: &Settings) -> (TempDir, Profile) {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| fs::write(folder.path().join(name), content).unwrap();
    write("ca.pem", &settings.server_ca_pem);
    write("c.pem", &settings.certificate_pem);
    write("c.key", &settings.private_key_pem);
    let text = format!(
        "country = \"NL\"\n[gateway]\nurl = \"{}\"\nca = \"ca.pem\"\ntimeout = \"5s\"\n\
         [authentication]\ncertificate = \"c.pem\"\nprivate_key = \"c.key\"\n\
         [signing]\ncertificate = \"c.pem\"\nprivate_key = \"c.key\"\n\
         [trust]\nanchor = \"c.pem\"\n",
        settings.url
    );
    write("profile.toml", &text);
    let profile = Profile::load(&folder.path().join("profile.toml")).unwrap();
    (folder, profile)
}

async fn live(settings: &Settings) -> Check {
    let (_folder, profile) = profile(settings);
    let check = examine_gateway(&profile, &Clock::system()).await.remove(0);
    assert_eq!((check.check.as_str(), check.state), ("connection", State::Failed), "{check:?}");
    check
}

fn says(check: &Check, detail: &str, remedy: &str) {
    assert!(check.detail.contains(detail), "{check:?}");
    assert!(check.remedy.as_ref().unwrap().contains(remedy), "{check:?}");
}

#[tokio::test]
async fn each_step_to_the_gateway_fails_in_its_own_words() {
    let server = Server::start("");
    let at = |url: String| Settings { url, ..server.settings() };
    says(&live(&at("https://gateway.invalid".into())).await, "gateway.invalid cannot be looked up", "DNS");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    says(&live(&at(format!("https://{free}"))).await, "nothing listens", "is the port");

    // Something else than a gateway.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", other.local_addr().unwrap());
    std::thread::spawn(move || {
        use std::io::Write as _;
        other.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    says(&live(&at(url)).await, "corrupt message", "does not use TLS");
}

#[tokio::test]
async fn certificates_that_do_not_fit_are_told_apart() {
    let server = Server::start("");
    let strange = Authority::new("strange", KeyKind::Ec256).unwrap();
    let settings = Settings { server_ca_pem: strange.certificate().pem().to_owned(), ..server.settings() };
    says(&live(&settings).await, "UnknownIssuer", "did not issue the gateway's certificate");

    let server = Server::start("");
    // The same address by a name that no certificate has.
    let url = server.settings().url.replace("localhost", "[::ffff:127.0.0.1]");
    let check = live(&Settings { url, ..server.settings() }).await;
    says(&check, "not valid for name", "not one of the gateway's names");

    let server = Server::start("");
    let KeyPair { certificate, key_pem } =
        strange.issue(&Request::new(CertificateType::Authentication, "NL")).unwrap();
    let settings = Settings {
        certificate_pem: certificate.pem().to_owned(),
        private_key_pem: key_pem.into(),
        ..server.settings()
    };
    says(&live(&settings).await, "fatal alert", "rejects the client certificate");
}

#[test]
fn files_are_judged_by_the_rules_of_the_operator() {
    let pair = Request::new(CertificateType::Authentication, "NL").self_signed().unwrap();
    let settings = |pair: &KeyPair| Settings {
        url: "https://localhost".into(),
        server_ca_pem: pair.certificate.pem().to_owned(),
        certificate_pem: pair.certificate.pem().to_owned(),
        private_key_pem: pair.key_pem.clone().into(),
        timeout: std::time::Duration::from_secs(1),
    };
    let at = |pair: &KeyPair, clock: Clock| {
        let (_folder, profile) = profile(&settings(pair));
        let checks = examine_files(&profile, &clock);
        let bad = checks.into_iter().filter(|c| c.state != State::Ok && c.check != "permissions");
        bad.map(|c| (c.check, c.state)).collect::<Vec<_>>()
    };
    assert_eq!(at(&pair, Clock::system()), []);
    let end = pair.certificate.not_after();
    let warned = [("authentication.expiry", State::Warning), ("signing.expiry", State::Warning)];
    let soon = at(&pair, Clock::manual(end - chrono::Days::new(30)));
    assert_eq!(soon.iter().map(|(c, s)| (c.as_str(), *s)).collect::<Vec<_>>(), warned);
    assert_eq!(at(&pair, Clock::manual(end - chrono::Days::new(61))), []);
    let expired = at(&pair, Clock::manual(end + chrono::Days::new(1)));
    assert!(expired.contains(&("signing.expired".into(), State::Failed)), "{expired:?}");
    assert!(expired.contains(&("trust-anchor".into(), State::Warning)), "{expired:?}");

    let foreign = Request::new(CertificateType::Authentication, "DE").self_signed().unwrap();
    let checks = at(&foreign, Clock::system());
    assert!(checks.contains(&("authentication.country".into(), State::Failed)), "{checks:?}");
    let weak = Request { key: KeyKind::Rsa(2048), ..Request::new(CertificateType::Authentication, "NL") };
    let checks = at(&weak.self_signed().unwrap(), Clock::system());
    assert!(checks.contains(&("signing.key-size".into(), State::Warning)), "{checks:?}");
}

#[test]
fn the_export_and_the_folders_are_looked_at() {
    let server = Server::start("");
    let (folder, _) = profile(&server.settings());
    let path = folder.path().join("profile.toml");
    let text = fs::read_to_string(&path).unwrap();
    // A file is where the state folder should be.
    let more = "\n[export]\nsigning_key = \"export.key\"\nkey_id = \"204\"\nfolder = \"c.pem/phones\"\n";
    fs::write(&path, format!("state = \"c.pem\"\n{text}{more}")).unwrap();
    let checks = || {
        let checks = examine_files(&Profile::load(&path).unwrap(), &Clock::system());
        move |name: &str| checks.iter().find(|c| c.check == name).cloned().unwrap()
    };
    says(&checks()("state"), "c.pem cannot be written to", "allow this user to write there");
    says(&checks()("export"), "export.key", "remove `[export]`");
    let key = |name: &str| {
        let arguments = ["ecparam", "-name", name, "-genkey", "-noout", "-out", "export.key"];
        let made = std::process::Command::new("openssl").args(arguments).current_dir(folder.path()).status();
        assert!(made.unwrap().success());
    };
    key("secp384r1");
    says(&checks()("export"), "P-256", "remove `[export]`");
    key("prime256v1");
    assert_eq!(checks()("export").state, State::Ok);
    says(&checks()("export.folder"), "phones cannot be created", "allow this user to write there");
    fs::write(&path, format!("state = \"new/state\"\n{text}{}", more.replace("c.pem/", ""))).unwrap();
    assert_eq!(checks()("state").state, State::Ok);
    assert_eq!(checks()("export.folder").state, State::Ok);
    assert!(!folder.path().join("new").exists(), "nothing was made");
}
