#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use efgs_protocol::certificate::CertificateType;
use efgs_test_ca::Request;

use super::*;

fn parse(text: &str) -> Result<Profile, ProfileError> {
    Profile::parse(text, Path::new("folder/profile.toml"))
}

#[test]
fn the_example_is_read_and_paths_are_relative_to_it() {
    let profile = parse(EXAMPLE).unwrap();
    assert_eq!(profile.country().as_str(), "XX");
    assert_eq!(profile.state(), Path::new("folder/efgs-state"));
    assert_eq!(profile.resolve(Path::new("/absolute")), Path::new("/absolute"));
    assert_eq!(profile.content.gateway.unwrap().timeout, Some(Duration::from_secs(60)));
}

#[test]
fn what_is_commented_out_in_the_example_is_understood() {
    // A key is a word and an equals sign; the rest are explanations.
    let is_key = |line: &str| {
        let rest = line.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        line.starts_with('[') || (rest.len() < line.len() && rest.starts_with(" = "))
    };
    let set = |line: &str| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line).to_owned();
    let all: Vec<_> = EXAMPLE.lines().map(set).collect();
    let profile = parse(&all.join("\n")).unwrap();
    assert!(profile.content.callback.is_some() && profile.content.signing.unwrap().pkcs12.is_some());
}

#[test]
fn what_nobody_knows_is_refused_with_its_neighbour_and_line() {
    let refused = |text: &str| parse(text).unwrap_err().to_string();
    assert_eq!(
        refused("country = \"NL\"\n[authentication]\ncertifcate = \"a\""),
        "folder/profile.toml, line 3: unknown key `certifcate`; did you mean `certificate`?"
    );
    assert!(refused("country = \"NL\"\nsigner = 1").contains("did you mean `signing`?"));
    assert!(refused("country = \"nl\"").contains("line 1"));
    assert!(refused("state = \"a\"").contains("missing field `country`"));
    assert!(refused("country").contains("line 1"));
}

#[test]
fn what_is_needed_is_asked_for_when_it_is_needed() {
    let profile = parse("country = \"NL\"").unwrap();
    assert_eq!(profile.state(), Path::new("folder/efgs-state"));
    for error in [profile.signer().err(), profile.gateway().err(), profile.anchor().err()] {
        assert!(error.unwrap().to_string().contains("is missing in folder/profile.toml"));
    }
    let profile = parse("country = \"NL\"\n[trust]\nanchor = \"none.pem\"").unwrap();
    let error = profile.anchor().unwrap_err().to_string();
    assert!(error.starts_with("`trust.anchor`: cannot read folder/none.pem"), "{error}");
    let both = "country = \"NL\"\n[signing]\ncertificate = \"a\"\npkcs12 = \"b\"";
    assert!(parse(both).unwrap().signer().err().unwrap().to_string().contains("or one `pkcs12` file"));
}

/// A folder with a profile whose `[signing]` is this.
fn signing(section: &str, files: &[(&str, &[u8])]) -> (tempfile::TempDir, Profile) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let path = folder.path().join("profile.toml");
    fs::write(&path, format!("country = \"NL\"\n[signing]\n{section}")).unwrap();
    let profile = Profile::load(&path).unwrap();
    (folder, profile)
}

#[test]
fn identities_are_read_from_pem_and_from_pkcs12() {
    use openssl::{pkcs12::Pkcs12, pkey::PKey, symm::Cipher, x509::X509};
    let pair = Request::new(CertificateType::Signing, "NL").self_signed().unwrap();
    let key = PKey::private_key_from_pem(pair.key_pem.as_bytes()).unwrap();
    let encrypted = key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), b"geheim").unwrap();
    let x509 = X509::from_der(pair.certificate.der()).unwrap();
    let pkcs12 = Pkcs12::builder().cert(&x509).pkey(&key).build2("geheim").unwrap().to_der().unwrap();
    let files: &[(&str, &[u8])] = &[
        ("c.pem", pair.certificate.pem().as_bytes()),
        ("k.pem", pair.key_pem.as_bytes()),
        ("e.pem", &encrypted),
        ("p.p12", &pkcs12),
        ("right", b"geheim\n"),
        ("wrong", b"Geheim\n"),
    ];
    let pem = |key: &str| format!("certificate = \"c.pem\"\nprivate_key = \"{key}\"\n");
    for section in [
        pem("k.pem"),
        pem("e.pem") + "password_file = \"right\"",
        "pkcs12 = \"p.p12\"\npassword_file = \"right\"".to_owned(),
    ] {
        let (_folder, profile) = signing(&section, files);
        let signer = profile.signer().unwrap();
        assert_eq!(signer.certificate().thumbprint(), pair.certificate.thumbprint());
    }
    for section in [
        pem("e.pem"),
        pem("e.pem") + "password_file = \"wrong\"",
        "pkcs12 = \"p.p12\"\npassword_file = \"wrong\"".to_owned(),
        "pkcs12 = \"p.p12\"".to_owned(),
    ] {
        let (_folder, profile) = signing(&section, files);
        let error = profile.signer().err().unwrap().to_string();
        assert!(
            error.contains("set `signing.password_file` or the variable EFGS_SIGNING_PASSWORD"),
            "{error}"
        );
        assert!(!error.contains("eheim"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_key_that_everybody_may_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let (folder, profile) = signing("certificate = \"c.pem\"\nprivate_key = \"k.pem\"", &[("k.pem", b"")]);
    let mode = |mode| {
        fs::set_permissions(folder.path().join("k.pem"), fs::Permissions::from_mode(mode)).unwrap();
        profile.warnings()
    };
    assert_eq!(mode(0o600), Vec::<String>::new());
    assert_eq!(mode(0o640), Vec::<String>::new());
    assert!(mode(0o644)[0].contains("chmod 600"));
}
