#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use efgs_protocol::{
    canonical::CanonicalKeys,
    key::{DiagnosisKey, KeyData, ReportType},
};
use proptest::prelude::*;

use super::*;
use crate::{
    config::{Encryption, EncryptionKey},
    http::Code,
    store::BatchUpload,
};

fn country(code: &str) -> Country {
    Country::new(code).unwrap()
}

pub(super) fn keyring() -> Keyring {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("1.key");
    std::fs::write(&file, BASE64_STANDARD.encode([7; 32])).unwrap();
    Keyring::load(&Encryption { keys: vec![EncryptionKey { id: 1, file }] }).unwrap()
}

fn keys_of(code: &str, amount: usize) -> KeyBatch {
    let mut keys = KeyBatch::new();
    for i in 0..amount {
        let key = DiagnosisKey {
            key_data: KeyData::new([i as u8; 16]),
            rolling_start_interval_number: 2_987_136,
            rolling_period: 144,
            transmission_risk_level: 3,
            origin: country(code),
            report_type: ReportType::ConfirmedTest,
            days_since_onset_of_symptoms: -1,
        };
        keys.push(key, &[country("FR")]);
    }
    keys
}

/// A batch of uploads of these countries and sizes, its keys, and its rows as the store gives them.
fn batch(uploads: &[(&str, usize)], keyring: &Keyring) -> (BatchRecord, Vec<KeyBatch>, Vec<StoredPayload>) {
    let mut record = BatchRecord {
        id: ObjectId::from_bytes([1; 12]),
        day: chrono::NaiveDate::MIN,
        sequence: 1,
        format_major: 1,
        uploads: Vec::new(),
        withdrawn: 0,
    };
    let (mut all, mut rows) = (Vec::new(), Vec::new());
    for (id, (code, amount)) in (0..).zip(uploads) {
        let keys = keys_of(code, *amount);
        record.uploads.push(BatchUpload { id, country: country(code), amount: *amount as u32 });
        let nonces = Keyring::nonces(keys.len());
        for ((key, hash), nonce) in keys.iter().zip(CanonicalKeys::of(&keys).payload_hashes()).zip(nonces) {
            let mut plain = Vec::new();
            wire::encode_key(Format::Protobuf, key, &mut plain);
            let payload = keyring.seal(&hash, nonce, &plain).unwrap();
            rows.push(StoredPayload { upload_id: id, payload_hash: hash.to_vec(), payload });
        }
        all.push(keys);
    }
    (record, all, rows)
}

/// Builds the segments from these rows, page by page as the store would give them.
fn open(
    record: &BatchRecord,
    rows: &[StoredPayload],
    format: Format,
    keyring: &Arc<Keyring>,
) -> Result<Segments, Error> {
    let mut opening = Opening::new(record, format, keyring.clone());
    for page in pages(&record.uploads) {
        let of = |id: i64| {
            let (start, end) = (page.positions.start as usize, page.positions.end as usize);
            let rows = rows.iter().filter(move |row| row.upload_id == id);
            rows.skip(start).take(end - start).cloned()
        };
        opening.add(page.uploads.iter().flat_map(|id| of(*id)).collect())?;
    }
    opening.finish()
}

#[test]
fn pages_are_whole_uploads_or_parts_of_one() {
    let upload = |id, amount| BatchUpload { id, country: country("DE"), amount };
    let amounts = [1, PAGE_KEYS - 1, 1, PAGE_KEYS * 2 + 1, 5];
    let uploads: Vec<_> = (1..).zip(amounts).map(|(id, amount)| upload(id, amount)).collect();
    let page = |uploads: &[i64], positions, keys| Page { uploads: uploads.into(), positions, keys };
    let expected = [
        page(&[1, 2], ALL_POSITIONS, PAGE_KEYS),
        page(&[3], ALL_POSITIONS, 1),
        page(&[4], 0..PAGE_KEYS, PAGE_KEYS),
        page(&[4], PAGE_KEYS..2 * PAGE_KEYS, PAGE_KEYS),
        page(&[4], 2 * PAGE_KEYS..ALL_POSITIONS.end, 1),
        page(&[5], ALL_POSITIONS, 5),
    ];
    assert_eq!(pages(&uploads), expected);
    assert_eq!(pages(&[upload(1, PAGE_KEYS)]), [page(&[1], ALL_POSITIONS, PAGE_KEYS)]);
    assert_eq!(pages(&[]), []);
}

#[test]
fn an_upload_of_several_pages_is_one_segment() {
    let keyring = Arc::new(keyring());
    let amount = PAGE_KEYS as usize + 3;
    let (record, all, rows) = batch(&[("DE", amount), ("NL", 1)], &keyring);
    for format in Format::ALL {
        let segments = open(&record, &rows, format, &keyring).unwrap();
        assert_eq!(segments.all.len(), 2);
        let body = assemble(&segments.all, format, Some(country("NL"))).concat();
        assert_eq!(body, wire::encode(format, &all[0]));
    }
    assert!(open(&record, &rows[1..], Format::Protobuf, &keyring).is_err());
}

proptest! {
    #[test]
    fn the_segments_of_the_others_are_the_batch_without_ones_own(
        sizes in prop::collection::vec((prop::sample::select(vec!["DE", "NL", "IT"]), 1usize..4), 0..6),
        own in prop::sample::select(vec![None, Some("DE"), Some("NL")]),
    ) {
        let keyring = Arc::new(keyring());
        let (record, all, rows) = batch(&sizes, &keyring);
        let others = sizes.iter().zip(&all).filter(|((code, _), _)| Some(*code) != own);
        let expected: KeyBatch = others.flat_map(|(_, keys)| keys.iter()).collect();
        for format in Format::ALL {
            let segments = open(&record, &rows, format, &keyring).unwrap();
            let body = assemble(&segments.all, format, own.map(country)).concat();
            prop_assert_eq!(body, wire::encode(format, &expected));
        }
    }
}

#[test]
fn a_part_of_an_upload_is_never_served() {
    let keyring = Arc::new(keyring());
    let (record, _, rows) = batch(&[("DE", 3), ("NL", 2)], &keyring);
    for missing in 0..rows.len() {
        let mut rows = rows.clone();
        rows.remove(missing);
        let error = open(&record, &rows, Format::Protobuf, &keyring).err().unwrap();
        let reason = error.to_string();
        assert_eq!(error.code(), Code::Internal);
        assert!(reason.contains("instead of"), "{reason}");
    }
    assert!(open(&record, &rows, Format::Protobuf, &keyring).is_ok());
}
