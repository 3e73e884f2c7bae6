//! Key export files made and read by programs that are not ours: protoc, OpenSSL's command, zip and unzip.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::harness::output_of;

/// Whether the programs are there; when all are required, they must be.
pub(crate) fn are_there() -> bool {
    let there = |program: &str| {
        let run = Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status();
        run.is_ok()
    };
    let missing: Vec<_> =
        ["protoc", "openssl", "zip", "unzip"].into_iter().filter(|name| !there(name)).collect();
    let required = std::env::var_os("EFGS_TEST_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(
        missing.is_empty() || !required,
        "install {missing:?} (Debian: protobuf-compiler, openssl, zip, unzip)"
    );
    missing.is_empty()
}

/// A key as protoc writes it: the fields that are given, by their names.
pub(crate) type Fields = BTreeMap<String, String>;

/// How a file is made.
pub(crate) struct Made<'a> {
    /// The fields of the export besides its keys, as text.
    pub(crate) header: &'a str,
    /// The `signature_info` of the signature, as text.
    pub(crate) info: &'a str,
    pub(crate) keys: &'a [Fields],
    pub(crate) revised: &'a [Fields],
    /// Arguments of zip: how it packs.
    pub(crate) zip: &'a [&'a str],
    /// The entries in their order; those that are no part of an export are made up.
    pub(crate) entries: &'a [&'a str],
}

/// The publisher's key pair, in `publisher.key` and `publisher.pem`.
pub(crate) fn make_keys(folder: &Path) {
    output_of(
        "openssl",
        &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "publisher.key"],
        folder,
    );
    output_of("openssl", &["ec", "-in", "publisher.key", "-pubout", "-out", "publisher.pem"], folder);
}

/// Makes `name` in the folder of the publisher's keys.
pub(crate) fn make(folder: &Path, name: &str, made: &Made<'_>) {
    let mut text = made.header.to_owned();
    for (field, keys) in [("keys", made.keys), ("revised_keys", made.revised)] {
        for key in keys {
            write!(text, "\n{field} {{").unwrap();
            key.iter().for_each(|(name, value)| write!(text, " {name}: {value}").unwrap());
            text.push_str(" }");
        }
    }
    let export = [
        b"EK Export v1    ".to_vec(),
        protoc(folder, "encode", "TemporaryExposureKeyExport", text.as_bytes()),
    ];
    fs::write(folder.join("export.bin"), export.concat()).unwrap();
    let signature =
        output_of("openssl", &["dgst", "-sha256", "-sign", "publisher.key", "export.bin"], folder);
    let list = format!(
        "signatures {{ signature_info {{ {} }} batch_num: 1 batch_size: 1 signature: {} }}",
        made.info,
        quote(&signature)
    );
    fs::write(folder.join("export.sig"), protoc(folder, "encode", "TEKSignatureList", list.as_bytes()))
        .unwrap();
    for extra in made.entries.iter().filter(|entry| !entry.starts_with("export.")) {
        fs::write(folder.join(extra), "nothing of importance").unwrap();
    }
    drop(fs::remove_file(folder.join(name)));
    // zip keeps the order of its arguments.
    output_of("zip", &[made.zip, &["-q", "-X", name], made.entries].concat(), folder);
}

/// An export as the independent programs read it.
pub(crate) struct Export {
    pub(crate) header: Fields,
    pub(crate) keys: Vec<Fields>,
    pub(crate) revised: Vec<Fields>,
}

/// Reads an export and verifies its signature with the public key in a file.
pub(crate) fn read(zip: &Path, public_key: &Path, folder: &Path) -> Export {
    let zip = zip.to_str().unwrap();
    output_of("unzip", &["-tq", zip], folder);
    let export = output_of("unzip", &["-p", zip, "export.bin"], folder);
    fs::write(folder.join("read.bin"), &export).unwrap();
    let list =
        protoc(folder, "decode", "TEKSignatureList", &output_of("unzip", &["-p", zip, "export.sig"], folder));
    let list = String::from_utf8(list).unwrap();
    let signature = list.lines().find_map(|line| line.trim().strip_prefix("signature: ")).unwrap();
    fs::write(folder.join("read.sig"), unquote(signature)).unwrap();
    let key = public_key.to_str().unwrap();
    output_of("openssl", &["dgst", "-sha256", "-verify", key, "-signature", "read.sig", "read.bin"], folder);

    let message = export.strip_prefix(b"EK Export v1    ").unwrap();
    let text = String::from_utf8(protoc(folder, "decode", "TemporaryExposureKeyExport", message)).unwrap();
    let mut read = Export { header: Fields::new(), keys: Vec::new(), revised: Vec::new() };
    let mut message: Option<(&str, Fields)> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_suffix(" {") {
            message = Some((name, Fields::new()));
        } else if line == "}" {
            match message.take().unwrap() {
                ("keys", key) => read.keys.push(key),
                ("revised_keys", key) => read.revised.push(key),
                ("signature_infos", info) => read.header.extend(info),
                (other, _) => panic!("{other}"),
            }
        } else {
            let (name, value) = line.split_once(": ").unwrap();
            let fields = message.as_mut().map_or(&mut read.header, |(_, fields)| fields);
            fields.insert(name.to_owned(), value.to_owned());
        }
    }
    read
}

/// The bytes of a value, in protoc's text.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
    format!("\"{digits}\"")
}

/// The other way round, from what protoc prints.
pub(crate) fn unquote(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.strip_prefix('"').unwrap().strip_suffix('"').unwrap().bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next().unwrap() {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                first @ b'0'..=b'7' => {
                    rest.by_ref().take(2).fold(first - b'0', |all, digit| all * 8 + (digit - b'0'))
                }
                other => other,
            },
            other => other,
        });
    }
    bytes
}

fn protoc(folder: &Path, way: &str, message: &str, input: &[u8]) -> Vec<u8> {
    let path = folder.join("protoc.in");
    fs::write(&path, input).unwrap();
    let proto = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/integration");
    let output = Command::new("protoc")
        .args([
            format!("--{way}={message}"),
            format!("--proto_path={}", proto.display()),
            "export.proto".into(),
        ])
        .stdin(File::open(path).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
