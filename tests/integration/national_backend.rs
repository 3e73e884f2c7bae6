//! The national backend's side, `efgs` and its library, against the real gateway.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use efgs_client::{
    Format, Gateway, Profile, Settings, Upload,
    callback::{Receiver, ReceiverEvent},
    doctor::{self, Check, State},
};
use efgs_gateway::clock::Clock;
use efgs_protocol::{
    canonical::CanonicalKeys,
    media::{MediaType, SUPPORTED},
    signature::Identity as BackendIdentity,
    wire,
};
use efgs_test_ca::{Identity, Participant};

use crate::harness::{Case, PKI, Running, country, participant, tests, until};

tests![
    callbacks_are_registered_listed_and_deleted,
    an_upload_is_withdrawn_by_its_tag,
    the_command_withdraws_and_a_dry_run_does_not,
    a_probe_needs_no_registered_certificate,
    the_doctor_finds_nothing_and_leaves_nothing,
    the_doctor_says_what_the_operator_has_to_register,
    the_doctor_tells_clocks_apart,
    the_command_checks_the_profile_and_prints_no_secret,
    what_the_command_signs_the_gateway_and_openssl_accept,
    the_command_registers_callbacks_and_a_dry_run_does_not,
    the_receiver_hears_what_the_gateway_announces,
    what_is_announced_is_downloaded_by_callback_serve,
];

/// With this variable the test program is the command `efgs`: Cargo offers a package's tests only the package's
/// own programs.
pub(crate) const AS_EFGS: &str = "EFGS_TEST_AS_EFGS";

/// The command `efgs`, to be run in a folder, with the profile there.
pub(crate) fn efgs(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments).current_dir(folder).env(AS_EFGS, "1").stdin(Stdio::null());
    command.env_remove("EFGS_PROFILE");
    command
}

/// The most memory that the command may have resident, for a million keys too.
pub(crate) const MOST_MEMORY: u64 = 256 << 20;

/// Waits for the end of a process; the most memory that it had resident, in bytes.
pub(crate) async fn peak_memory(child: &mut Child) -> (ExitStatus, u64) {
    let mut peak = 0;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (status, peak);
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        let kilobytes = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
        peak = peak.max(kilobytes.unwrap_or_default() * 1024);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// A country's folder: its certificates and keys, the operator's, and a profile for this gateway.
pub(crate) fn profile(gateway: &Running, folder: &Path, participant: &Participant) -> PathBuf {
    participant.write(folder).unwrap();
    std::fs::write(folder.join("server-ca.pem"), PKI.server_ca.certificate().pem()).unwrap();
    std::fs::write(folder.join("trust-anchor.pem"), PKI.anchor.anchor().certificate().pem()).unwrap();
    let text = format!(
        "country = \"{}\"\n[gateway]\nurl = \"https://localhost:{}\"\nca = \"server-ca.pem\"\n\
         [authentication]\ncertificate = \"authentication.pem\"\nprivate_key = \"authentication.key\"\n\
         [signing]\ncertificate = \"signing.pem\"\nprivate_key = \"signing.key\"\n\
         [trust]\nanchor = \"trust-anchor.pem\"\n",
        participant.country, gateway.address
    );
    let path = folder.join("efgs-client.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// The library's way to the gateway.
pub(crate) fn backend(gateway: &Running, identity: &Identity) -> Gateway {
    Gateway::new(Settings {
        url: format!("https://localhost:{}", gateway.address),
        server_ca_pem: PKI.server_ca.certificate().pem().to_owned(),
        certificate_pem: identity.certificate.pem().to_owned(),
        private_key_pem: identity.key_pem.clone().into(),
        timeout: std::time::Duration::from_secs(20),
    })
    .unwrap()
}

async fn callbacks_are_registered_listed_and_deleted(case: &Case) {
    let gateway = case.gateway_with(crate::callback::calling(case)).await;
    let nl = backend(&gateway, &participant("NL").authentication);
    assert!(nl.callbacks().await.unwrap().is_empty());
    let url = "https://127.0.0.1:1/%C3%A4+b";
    nl.put_callback("a/b c", url).await.unwrap();
    nl.put_callback("a/b c", url).await.unwrap();
    let all = nl.callbacks().await.unwrap();
    assert_eq!(
        all.iter().map(|c| (c.callback_id.as_str(), c.url.as_str())).collect::<Vec<_>>(),
        [("a/b c", url)]
    );
    let refused = nl.put_callback("b", "http://127.0.0.1:1/").await.unwrap_err();
    assert!(refused.to_string().contains("406 url-refused"), "{refused}");
    assert_eq!(nl.delete_callback("a/b c").await, Ok(true));
    assert_eq!(nl.delete_callback("a/b c").await, Ok(false));
}

async fn an_upload_is_withdrawn_by_its_tag(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("NL").upload_new("a/b=", 1, case.clock.now()).await;
    let (nl, de) = (&participant("NL").authentication, &participant("DE").authentication);
    let tag = "a/b=".parse().unwrap();
    assert_eq!(backend(&gateway, de).withdraw(&tag).await, Ok(false));
    assert_eq!(backend(&gateway, nl).withdraw(&tag).await, Ok(true));
    assert_eq!(backend(&gateway, nl).withdraw(&tag).await, Ok(true));
    assert_eq!(gateway.app.store.pending().await.unwrap().keys, 0);
}

async fn the_command_withdraws_and_a_dry_run_does_not(case: &Case) {
    let gateway = case.gateway().await;
    gateway.client("NL").upload_new("nl-1", 1, case.clock.now()).await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    profile(&gateway, folder, participant("NL"));
    let (code, said, _) = run(folder, &["withdraw", "nl-1", "--dry-run"]);
    assert_eq!((code, said.as_str()), (0, "nl-1 would be withdrawn\n"));
    assert_eq!(gateway.app.store.pending().await.unwrap().keys, 1);
    let (code, said, _) = run(folder, &["withdraw", "nl-1", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &json["tag"], &json["dryRun"]), (0, &"nl-1".into(), &false.into()), "{said}");
    assert_eq!(gateway.app.store.pending().await.unwrap().keys, 0);
    let (code, _, why) = run(folder, &["withdraw", "nl-2"]);
    assert!(code == 1 && why.contains("the gateway has no upload nl-2 of NL"), "{why}");
}

async fn a_probe_needs_no_registered_certificate(case: &Case) {
    let gateway = case.gateway().await;
    let unknown = PKI.participant(country("FR")).unwrap().authentication;
    let probe = backend(&gateway, &unknown).probe().await.unwrap();
    assert!(probe.date.is_some());
    assert_eq!(probe.formats.len(), 2);
}

fn named<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks.iter().find(|check| check.check == name).unwrap_or_else(|| panic!("{name}: {checks:?}"))
}

async fn the_doctor_finds_nothing_and_leaves_nothing(case: &Case) {
    let clock = Clock::system();
    let gateway = case.gateway_at(clock.clone(), |_| {}).await;
    let folder = tempfile::tempdir().unwrap();
    let profile = Profile::load(&profile(&gateway, folder.path(), participant("NL"))).unwrap();
    let mut checks = doctor::examine_files(&profile, &clock);
    checks.extend(doctor::examine_gateway(&profile, &clock).await);
    assert!(checks.iter().all(|check| check.state == State::Ok), "{checks:#?}");
    for name in ["connection", "clock", "authorisation", "signing-identity"] {
        named(&checks, name);
    }
    for table in ["upload", "diagnosis_key"] {
        assert_eq!(case.db.number(&format!("SELECT COUNT(*) FROM {table}")).await, 0, "{table}");
    }
    // Nor is its tag used up.
    gateway.client("NL").upload_new("efgs-doctor", 1, clock.now()).await;
}

async fn the_doctor_says_what_the_operator_has_to_register(case: &Case) {
    let clock = Clock::system();
    let gateway = case.gateway_at(clock.clone(), |_| {}).await;
    let unknown = PKI.participant(country("NL")).unwrap();
    let known = participant("NL");
    let examine = async |authentication: &Identity, signing: &Identity| {
        let folder = tempfile::tempdir().unwrap();
        let mixed = Participant {
            country: country("NL"),
            authentication: authentication.clone(),
            signing: signing.clone(),
            callback: known.callback.clone(),
        };
        let profile = Profile::load(&profile(&gateway, folder.path(), &mixed)).unwrap();
        doctor::examine_gateway(&profile, &clock).await
    };
    let checks = examine(&unknown.authentication, &known.signing).await;
    let check = named(&checks, "authorisation");
    assert_eq!(check.state, State::Failed);
    let thumbprint = unknown.authentication.certificate.thumbprint().to_string();
    assert!(check.remedy.as_ref().unwrap().contains(&thumbprint), "{check:?}");
    assert_eq!(named(&checks, "signing-identity").state, State::Skipped);

    let checks = examine(&known.authentication, &unknown.signing).await;
    assert_eq!(named(&checks, "authorisation").state, State::Ok);
    let check = named(&checks, "signing-identity");
    assert_eq!(check.state, State::Failed);
    let thumbprint = unknown.signing.certificate.thumbprint().to_string();
    assert!(check.remedy.as_ref().unwrap().contains(&thumbprint), "{check:?}");

    let checks = examine(&known.authentication, &participant("DE").signing).await;
    assert_eq!(named(&checks, "signing-identity").state, State::Failed);
}

async fn the_doctor_tells_clocks_apart(case: &Case) {
    let gateway = case.gateway_at(Clock::system(), |_| {}).await;
    let folder = tempfile::tempdir().unwrap();
    let profile = Profile::load(&profile(&gateway, folder.path(), participant("NL"))).unwrap();
    // The answers' Date is the machine's own; it is ours that is wrong.
    for (seconds, state) in
        [(0, State::Ok), (-150, State::Warning), (150, State::Warning), (-900, State::Failed)]
    {
        let wrong = Clock::manual(Clock::system().now() + chrono::Duration::seconds(seconds));
        let checks = doctor::examine_gateway(&profile, &wrong).await;
        assert_eq!(named(&checks, "clock").state, state, "{checks:?}");
    }
}

async fn the_command_checks_the_profile_and_prints_no_secret(case: &Case) {
    let gateway = case.gateway_at(Clock::system(), |_| {}).await;
    let folder = tempfile::tempdir().unwrap();
    let nl = participant("NL");
    profile(&gateway, folder.path(), nl);
    let run = |arguments: &[&str]| {
        let output = efgs(folder.path(), arguments).output().unwrap();
        let text = [output.stdout.clone(), output.stderr.clone()].concat();
        let text = String::from_utf8(text).unwrap();
        for secret in
            nl.authentication.key_pem.lines().chain(nl.signing.key_pem.lines()).filter(|l| l.len() > 40)
        {
            assert!(!text.contains(secret), "{arguments:?}: {text}");
        }
        (output.status.code().unwrap(), text)
    };
    let (code, text) = run(&["doctor"]);
    assert_eq!((code, text.lines().last().unwrap()), (0, "all is well"), "{text}");
    let (code, text) = run(&["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["failed"], &json["checks"][0]["state"]), (0, &0.into(), &"ok".into()), "{text}");

    // Somebody mixed up the keys.
    std::fs::copy(folder.path().join("authentication.key"), folder.path().join("signing.key")).unwrap();
    let (code, text) = run(&["doctor"]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("FAILED  signing ") && text.contains("does not belong to the certificate"),
        "{text}"
    );
    // A file that is no key, but a secret.
    std::fs::write(folder.path().join("signing.key"), &nl.authentication.key_pem[..100]).unwrap();
    assert_eq!(run(&["doctor"]).0, 1);
    assert_eq!(run(&["doctor", "--profile", "signing.key"]).0, 1);
    let (code, text) = run(&["doctor", "--profile", "none.toml"]);
    assert!(code == 1 && text.contains("`efgs init` writes one"), "{text}");
}

/// Runs the command; its exit code and what it printed on standard output and error.
fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = efgs(folder, arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

async fn what_the_command_signs_the_gateway_and_openssl_accept(case: &Case) {
    let gateway = case.gateway_at(Clock::system(), |_| {}).await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    profile(&gateway, folder, participant("NL"));
    let keys = crate::client::keys(country("NL"), 3, Clock::system().now());
    for (name, format) in [("a.json", Format::Json), ("a.pb", Format::Protobuf)] {
        std::fs::write(folder.join(name), wire::encode(format, &keys)).unwrap();
    }
    let (code, signatures, warnings) = run(folder, &["sign", "a.json", "a.pb"]);
    assert_eq!((code, warnings.as_str()), (0, ""));
    let lines: Vec<_> = signatures.lines().collect();
    assert_eq!(lines.len(), 2);
    let media = MediaType { format: Format::Json, version: SUPPORTED };
    let nl = backend(&gateway, &participant("NL").authentication);
    let body = std::fs::read(folder.join("a.json")).unwrap();
    assert_eq!(nl.upload_signed(&"a".parse().unwrap(), media, body, lines[0]).await, Ok(Upload::Stored));

    let verify = |more: &[&str]| run(folder, &[&["verify", "a.pb", "--signature", "s"], more].concat());
    std::fs::write(folder.join("s"), lines[1]).unwrap();
    let thumbprint = participant("NL").signing.certificate.thumbprint().to_string();
    let (code, said, _) = verify(&[]);
    assert!(code == 0 && said.contains("3 keys") && said.contains(&thumbprint), "{said}");
    assert_eq!(verify(&["--certificate", "signing.pem"]).0, 0);
    let (code, _, why) = verify(&["--certificate", "authentication.pem"]);
    assert!(code == 3 && why.contains(&thumbprint), "{why}");
    // The CMS itself.
    let der = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, lines[1]).unwrap();
    std::fs::write(folder.join("s"), &der).unwrap();
    assert_eq!(verify(&["--json"]).0, 0);
    std::fs::write(folder.join("bytes"), CanonicalKeys::of(&keys).signed_bytes()).unwrap();
    let openssl =
        ["cms", "-verify", "-binary", "-inform", "DER", "-in", "s", "-content", "bytes", "-noverify"];
    crate::harness::output_of("openssl", &openssl, folder);

    // Another order is the same; another key is not.
    std::fs::write(
        folder.join("a.pb"),
        wire::encode(Format::Protobuf, &crate::client::pick(&keys, [2, 0, 1])),
    )
    .unwrap();
    assert_eq!(verify(&[]).0, 0);
    std::fs::write(folder.join("a.pb"), wire::encode(Format::Protobuf, &crate::client::pick(&keys, [0, 1])))
        .unwrap();
    let (code, said, why) = verify(&[]);
    assert!(code == 3 && said.is_empty() && why.contains("efgs: "), "{said}{why}");

    // What the gateway would refuse is said before it is sent.
    let foreign = crate::client::keys(country("DE"), 1, Clock::system().now());
    std::fs::write(folder.join("de.json"), wire::encode(Format::Json, &foreign)).unwrap();
    let (code, _, warning) = run(folder, &["sign", "de.json"]);
    assert!(code == 0 && warning.contains("its origin is not NL"), "{warning}");
}

async fn the_command_registers_callbacks_and_a_dry_run_does_not(case: &Case) {
    let gateway = case.gateway_with(crate::callback::calling(case)).await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    profile(&gateway, folder, participant("NL"));
    let url = "https://127.0.0.1:1/efgs";
    let (code, said, _) = run(folder, &["callback", "put", "main", url, "--dry-run"]);
    assert_eq!((code, said.as_str()), (0, "main would be registered: https://127.0.0.1:1/efgs\n"));
    assert_eq!(run(folder, &["callback", "list", "--json"]), (0, "[]\n".into(), String::new()));
    assert_eq!(run(folder, &["callback", "put", "main", url]).0, 0);
    assert_eq!(run(folder, &["callback", "list"]).1, format!("main  {url}\n"));
    let (code, said, _) =
        run(folder, &["callback", "put", "main", "https://127.0.0.1:2/", "--dry-run", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &json["before"], &json["dryRun"]), (0, &url.into(), &true.into()), "{said}");
    assert_eq!(run(folder, &["callback", "delete", "main", "--dry-run"]).1, "main would be deleted\n");
    assert_eq!(run(folder, &["callback", "list"]).1, format!("main  {url}\n"));
    assert_eq!(run(folder, &["callback", "delete", "main"]).0, 0);
    let (code, _, why) = run(folder, &["callback", "delete", "main"]);
    assert!(code == 1 && why.contains("`efgs callback list` shows them"), "{why}");
    let (code, _, why) = run(folder, &["callback", "put", "main", "http://127.0.0.1/"]);
    assert!(code == 1 && why.contains("url-refused"), "{why}");
    case.stop(&gateway).await;
    let (code, _, why) = run(folder, &["callback", "list"]);
    assert!(code == 5 && why.contains("no answer from the gateway"), "{why}");
}

async fn the_receiver_hears_what_the_gateway_announces(case: &Case) {
    let gateway = case.gateway_with(crate::callback::calling(case)).await;
    let server = &participant("NL").callback;
    let identity = BackendIdentity::from_pem(server.certificate.pem(), &server.key_pem, None).unwrap();
    let pins = vec![PKI.callback_client.certificate.clone()];
    let receiver = Receiver::bind("127.0.0.1:0".parse().unwrap(), "/efgs", &identity, pins).await.unwrap();
    let url = format!("https://{}/efgs", receiver.address().unwrap());
    let (send, mut events) = tokio::sync::mpsc::unbounded_channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running =
        tokio::spawn(receiver.run(async { drop(stopped.await) }, move |event| send.send(event).unwrap()));
    backend(&gateway, &participant("NL").authentication).put_callback("main", &url).await.unwrap();
    for tag in ["1", "2"] {
        let batch = crate::callback::batch(&gateway, tag).await;
        match events.recv().await.unwrap() {
            ReceiverEvent::Announced(announcement) => {
                assert_eq!(announcement.batch_tag.to_string(), batch);
                assert_eq!(announcement.date, case.today());
            }
            other => panic!("{other:?}"),
        }
    }
    crate::callback::quiet(case).await;
    stop.send(()).unwrap();
    running.await.unwrap();
}

async fn what_is_announced_is_downloaded_by_callback_serve(case: &Case) {
    let gateway = case.gateway_at(Clock::system(), crate::callback::calling(case)).await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let path = profile(&gateway, folder, participant("NL"));
    std::fs::write(folder.join("gateway.pem"), PKI.callback_client.certificate.pem()).unwrap();
    let more = "[callback]\npath = \"/efgs\"\ngateway = [\"gateway.pem\"]\n\
                [callback.server]\ncertificate = \"callback.pem\"\nprivate_key = \"callback.key\"\n";
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + more).unwrap();
    let (code, said, _) = run(folder, &["doctor"]);
    assert!(code == 0 && said.contains("callback "), "{said}");

    // It polls only once a day, so it gets batches because of callbacks.
    let arguments = [
        "callback",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--into",
        "batches",
        "--follow",
        "--interval",
        "86400",
    ];
    let mut child = efgs(folder, &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = stderr.next().unwrap().unwrap();
    let url = first.strip_prefix("listening at ").unwrap();
    let drained = std::thread::spawn(move || stderr.map_while(Result::ok).collect::<Vec<_>>());
    assert_eq!(run(folder, &["callback", "put", "main", url]).0, 0);
    for tag in ["1", "2"] {
        let batch = crate::callback::batch(&gateway, tag).await;
        until("the announced batch is stored", async || {
            let names = std::fs::read_dir(folder.join("batches")).ok()?;
            let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.any(|name| name.ends_with(&format!("{batch}.pb"))).then_some(())
        })
        .await;
    }
    crate::callback::quiet(case).await;
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{:?}", drained.join());
}
