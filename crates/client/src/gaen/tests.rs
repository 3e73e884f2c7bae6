#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Cursor, Read, Write as _};

use openssl::{
    ec::{EcGroup, EcKey},
    nid::Nid,
    rsa::Rsa,
};
use proptest::prelude::*;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use super::*;

fn key(byte: u8) -> TemporaryExposureKey {
    TemporaryExposureKey {
        key_data: KeyData::new([byte; 16]),
        rolling_start_interval_number: 2_676_960,
        rolling_period: 144,
        transmission_risk_level: Some(3),
        report_type: Some(ReportType::ConfirmedTest),
        days_since_onset_of_symptoms: Some(-2),
    }
}

fn header() -> ExportHeader {
    ExportHeader {
        start_timestamp: Some(1_606_176_000),
        end_timestamp: Some(1_606_179_600),
        region: Some("DE".into()),
        batch_num: Some(1),
        batch_size: Some(2),
        signature_infos: Vec::new(),
    }
}

fn private_key(curve: Nid) -> Vec<u8> {
    let group = EcGroup::from_curve_name(curve).unwrap();
    EcKey::generate(&group).unwrap().private_key_to_pem().unwrap()
}

fn signer(version: &str) -> ExportSigner {
    ExportSigner::from_pem(&private_key(Nid::X9_62_PRIME256V1), "262", version).unwrap()
}

fn written(keys: &[(Section, TemporaryExposureKey)], signers: &[ExportSigner]) -> Vec<u8> {
    write(Cursor::new(Vec::new()), &header(), keys.iter().copied(), signers).unwrap().0.into_inner()
}

/// An archive made without our writer.
fn archive(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// An archive around a message, without signatures.
fn export_of(message: &[u8]) -> Vec<u8> {
    let export = [HEADER, message].concat();
    archive(&[(SIGNATURE_ENTRY, b""), (EXPORT_ENTRY, &export)], CompressionMethod::Stored)
}

fn open(bytes: &[u8]) -> Result<ExportFile<Cursor<&[u8]>>, ReadError> {
    ExportFile::open(Cursor::new(bytes))
}

/// Reads all that there is, as a user would.
fn read(bytes: &[u8]) -> Result<(ExportHeader, Vec<Result<ExportedKey, ReadError>>), ReadError> {
    let mut file = open(bytes)?;
    let mut keys = file.keys()?;
    let all: Vec<_> = keys.by_ref().collect();
    Ok((keys.header().unwrap_or_default(), all))
}

fn entry(file: &[u8], name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    ZipArchive::new(Cursor::new(file)).unwrap().by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn error(result: Result<(ExportHeader, Vec<Result<ExportedKey, ReadError>>), ReadError>) -> String {
    match result {
        Err(error) => error.to_string(),
        Ok((_, keys)) => keys.into_iter().next_back().unwrap().unwrap_err().to_string(),
    }
}

#[test]
fn every_signer_signs_and_no_other_key_verifies() {
    let (first, second) = (signer("v1"), signer("v2"));
    let other_signer = signer("v1").verifying_key().unwrap();
    let keys = [first.verifying_key().unwrap(), second.verifying_key().unwrap()];
    let mut bytes = written(&[(Section::New, key(1))], &[first, second]);
    let versions: Vec<_> = keys
        .iter()
        .map(|key| open(&bytes).unwrap().verify(key).unwrap().verification_key_version.unwrap())
        .collect();
    assert_eq!(versions, ["v1", "v2"]);
    let error = open(&bytes).unwrap().verify(&other_signer).unwrap_err();
    assert!(matches!(error, ReadError::NotVerified { signatures: 2 }), "{error}");

    // One other bit in export.bin, in an archive that is whole.
    let mut export = entry(&bytes, EXPORT_ENTRY);
    *export.last_mut().unwrap() ^= 1;
    let signatures = entry(&bytes, SIGNATURE_ENTRY);
    bytes = archive(&[(EXPORT_ENTRY, &export), (SIGNATURE_ENTRY, &signatures)], CompressionMethod::Deflated);
    assert!(matches!(open(&bytes).unwrap().verify(&keys[0]), Err(ReadError::NotVerified { .. })));
}

#[test]
fn a_file_says_with_which_keys_it_is_signed() {
    let bytes = written(&[(Section::New, key(1))], &[signer("v1"), signer("v2")]);
    let (header, _) = read(&bytes).unwrap();
    let infos: Vec<_> = open(&bytes).unwrap().signature_infos().cloned().collect();
    assert_eq!(header.signature_infos, infos);
    assert_eq!(infos[1].verification_key_id.as_deref(), Some("262"));
    assert_eq!(infos[1].signature_algorithm.as_deref(), Some("1.2.840.10045.4.3.2"));
}

#[test]
fn the_same_keys_give_the_same_archive_apart_from_the_signature() {
    let keys: Vec<_> = (0..200).map(|byte| (Section::New, key(byte))).collect();
    assert_eq!(written(&keys, &[]), written(&keys, &[]));
    let signers = [signer("v1")];
    let (one, other) = (written(&keys, &signers), written(&keys, &signers));
    assert_eq!(entry(&one, EXPORT_ENTRY), entry(&other, EXPORT_ENTRY));
}

#[test]
fn only_keys_on_p256_sign_and_verify() {
    let refused = |pem: &[u8]| ExportSigner::from_pem(pem, "262", "v1").err().unwrap();
    assert_eq!(refused(b"-----BEGIN nothing"), KeyError::Private);
    assert_eq!(refused(&private_key(Nid::SECP384R1)), KeyError::NotP256);
    let rsa = Rsa::generate(2048).unwrap();
    assert_eq!(refused(&rsa.private_key_to_pem().unwrap()), KeyError::NotP256);
    let public = |pem: &[u8]| VerifyingKey::from_pem(pem).err().unwrap();
    assert_eq!(public(&rsa.public_key_to_pem().unwrap()), KeyError::NotP256);
    assert_eq!(public(&private_key(Nid::X9_62_PRIME256V1)), KeyError::Public);
}

#[test]
fn what_a_key_does_not_say_has_its_default() {
    // A key of the first version of the format, with nothing but what it must have.
    let message =
        [&[0x3a, 18 + 4, 0x0a, 16][..], &[5; 16], &[0x18, 0xe0, 0xb1, 0xa3][..1], &[0x81, 0x80, 0x01]];
    let (_, keys) = read(&export_of(&message.concat())).unwrap();
    let key = keys.into_iter().next().unwrap().unwrap().key;
    assert_eq!((key.rolling_period, key.rolling_start_interval_number), (144, 0x4001));
    assert_eq!(
        (key.transmission_risk_level, key.report_type, key.days_since_onset_of_symptoms),
        (None, None, None)
    );
    let diagnosis = key.to_diagnosis_key("DE".parse().unwrap());
    assert_eq!(diagnosis.transmission_risk_level, 0x7fff_ffff);
    assert_eq!(diagnosis.report_type, ReportType::Unknown);
    assert_eq!(diagnosis.days_since_onset_of_symptoms, 4000);
}

#[test]
fn unknown_fields_and_fields_behind_the_keys_are_no_matter() {
    let key = [&[0x3a, 21, 0x0a, 16][..], &[5; 16], &[0xf8, 0x01, 7]].concat();
    let unknown = [0xfa, 0x01, 2, 1, 2, 0xf8, 0x01, 0xff, 0x01, 0xfd, 0x01, 1, 2, 3, 4];
    let region = [0x1a, 2, b'D', b'E'];
    let infos = [0x32, 9, 0x0a, 3, b'a', b'p', b'p', 0x22, 2, b'2', b'6'];
    let (header, keys) = read(&export_of(&[&unknown[..], &infos, &key, &region, &key].concat())).unwrap();
    assert_eq!(keys.len(), 2);
    assert!(keys.iter().all(Result::is_ok), "{keys:?}");
    assert_eq!(header.region.as_deref(), Some("DE"));
    assert_eq!(header.signature_infos[0].verification_key_id.as_deref(), Some("26"));
}

#[test]
fn a_key_of_another_length_does_not_hide_those_behind_it() {
    let good = [&[0x3a, 18, 0x0a, 16][..], &[5; 16]].concat();
    let bad = [0x3a, 3, 0x0a, 1, 9];
    let (_, keys) = read(&export_of(&[&good, &bad[..], &good].concat())).unwrap();
    assert_eq!(keys.len(), 3);
    assert!(matches!(keys[1], Err(ReadError::KeyDataLength { index: 1, found: 1 })), "{keys:?}");
    assert!(keys[2].is_ok());
}

#[test]
fn what_is_no_export_file_is_named() {
    assert!(error(read(b"no zip")).starts_with("it is not a zip archive that can be unpacked"));
    let other = archive(&[("index.txt", b"")], CompressionMethod::Stored);
    assert!(error(read(&other)).contains("no entry export.bin"));
    let unsigned = archive(&[(EXPORT_ENTRY, HEADER)], CompressionMethod::Stored);
    assert!(error(read(&unsigned)).contains("no entry export.sig"));
    let entries: [(&str, &[u8]); 2] = [(EXPORT_ENTRY, b"EK Export v2    "), (SIGNATURE_ENTRY, b"")];
    assert!(error(read(&archive(&entries, CompressionMethod::Deflated))).contains("EK Export v1"));
    let entries: [(&str, &[u8]); 2] = [(EXPORT_ENTRY, HEADER), (SIGNATURE_ENTRY, b"\xff")];
    assert!(
        error(read(&archive(&entries, CompressionMethod::Deflated))).contains("export.sig cannot be read")
    );

    assert!(error(read(&export_of(&[0x3a, 18, 0x0a]))).contains("cut off before byte 19"));
    assert!(error(read(&export_of(&[0x3a, 0xff, 0xff, 0x03]))).contains("a key that is too long"));
    assert!(error(read(&export_of(&[0x1a, 0xff, 0xff, 0xff, 0x03]))).contains("a header that is too long"));
    for number in [&[0xff; 20][..], &[&[0xff; 9][..], &[2]].concat()] {
        assert!(error(read(&export_of(number))).contains("a number that does not end"));
    }
    assert!(error(read(&export_of(&[0x0b]))).contains("an unknown wire type"));
    assert!(error(read(&export_of(&[0x1a, 1, 0xff]))).contains("a header field of another type"));
}

#[test]
fn an_entry_that_unpacks_to_more_than_any_real_one_is_refused() {
    let bomb = vec![0; 1 + (64 << 10)];
    let bytes = archive(&[(EXPORT_ENTRY, HEADER), (SIGNATURE_ENTRY, &bomb)], CompressionMethod::Deflated);
    assert!(bytes.len() < 1000);
    let error = open(&bytes).err().unwrap();
    assert!(matches!(error, ReadError::TooLong { entry: SIGNATURE_ENTRY, limit: 65536 }), "{error}");
}

#[test]
fn a_damaged_archive_is_noticed_even_without_its_signature() {
    let mut bytes = export_of(&[&[0x3a, 18, 0x0a, 16][..], &[5; 16]].concat());
    let place = bytes.windows(16).position(|window| window == [5; 16]).unwrap();
    bytes[place] ^= 1;
    assert!(error(read(&bytes)).contains("export.bin: Invalid checksum"));
}

#[test]
fn no_text_shows_key_data() {
    let bytes = written(&[(Section::New, key(0xab))], &[]);
    let shown = format!("{:?}", read(&bytes).unwrap());
    assert!(!shown.contains("171") && !shown.contains("ab, ab"), "{shown}");
}

fn any_key() -> impl Strategy<Value = TemporaryExposureKey> {
    (
        any::<[u8; 16]>(),
        any::<u32>(),
        any::<u32>(),
        any::<Option<i32>>(),
        prop::option::of(prop::sample::select(&ReportType::ALL[..])),
        any::<Option<i32>>(),
    )
        .prop_map(|(bytes, start, period, risk, report_type, days)| TemporaryExposureKey {
            key_data: KeyData::new(bytes),
            rolling_start_interval_number: start,
            rolling_period: period,
            transmission_risk_level: risk,
            report_type,
            days_since_onset_of_symptoms: days,
        })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        keys in prop::collection::vec(any_key(), 0..50),
        revised in prop::collection::vec(any_key(), 0..5),
        start in any::<Option<u64>>(),
        region in any::<Option<String>>(),
        number in any::<Option<i32>>(),
    ) {
        let header = ExportHeader { start_timestamp: start, region, batch_num: number, ..header() };
        let all: Vec<_> = keys.into_iter().map(|key| (Section::New, key))
            .chain(revised.into_iter().map(|key| (Section::Revised, key))).collect();
        let bytes = write(Cursor::new(Vec::new()), &header, all.iter().copied(), &[]).unwrap().0.into_inner();
        let (found, entries) = read(&bytes).unwrap();
        prop_assert_eq!(found, header);
        let entries: Vec<_> = entries.into_iter().map(|entry| entry.map(|e| (e.section, e.key)).unwrap()).collect();
        prop_assert_eq!(entries, all);
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        _ = read(&bytes);
        _ = read(&export_of(&bytes));
    }

    #[test]
    fn damage_never_panics_nor_changes_a_key(place in any::<prop::sample::Index>(), bit in 0..8, cut in any::<bool>()) {
        let signer = signer("v1");
        let verifying = signer.verifying_key().unwrap();
        let mut bytes = written(&[(Section::New, key(1)), (Section::New, key(2))], &[signer]);
        let whole = read(&bytes).unwrap().1.into_iter().map(Result::unwrap).collect::<Vec<_>>();
        let place = place.index(bytes.len());
        if cut { bytes.truncate(place); } else { bytes[place] ^= 1u8 << bit; }
        if let Ok((_, keys)) = read(&bytes)
            && let Ok(keys) = keys.into_iter().collect::<Result<Vec<_>, _>>()
        {
            prop_assert_eq!(keys, whole);
        }
        _ = open(&bytes).and_then(|mut file| file.verify(&verifying));
    }
}
