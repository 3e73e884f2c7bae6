//! A backend whose archives a test reads as a phone would, and keys for it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
};

use chrono::TimeDelta;
use efgs_protocol::{
    key::{KeyBatch, KeyData},
    media::Format,
    wire,
};
use openssl::{
    ec::{EcGroup, EcKey},
    nid::Nid,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::super::*;
use crate::gaen::{ExportFile, Section, TemporaryExposureKey};

/// A backend that exports, with folders of its own.
pub(super) struct Backend {
    pub(super) folders: TempDir,
    pub(super) key: Vec<u8>,
    pub(super) settings: fn(&mut ExportSettings),
}

impl Backend {
    pub(super) fn new(settings: fn(&mut ExportSettings)) -> Self {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = EcKey::generate(&group).unwrap().private_key_to_pem().unwrap();
        Self { folders: tempfile::tempdir().unwrap(), key, settings }
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.folders.path().join("phones")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.folders.path().join("state")
    }

    pub(super) fn open(&self, now: DateTime<Utc>) -> Exporter {
        self.try_open(now, &self.folder()).unwrap()
    }

    pub(super) fn try_open(&self, now: DateTime<Utc>, folder: &Path) -> Result<Exporter, ExportError> {
        let signer = ExportSigner::from_pem(&self.key, "262", "v1").unwrap();
        let countries = ["DE", "NL", "FR"].map(|country| country.parse().unwrap());
        let mut settings = ExportSettings { minimum: 0, ..ExportSettings::new(countries, vec![signer]) };
        (self.settings)(&mut settings);
        Exporter::open(settings, &self.state(), folder, now)
    }

    pub(super) fn run(&self, now: DateTime<Utc>, keys: &[(DiagnosisKey, &[&str])]) -> Published {
        let mut exporter = self.open(now);
        for (key, visited) in keys {
            let visited: Vec<_> = visited.iter().map(|country| country.parse().unwrap()).collect();
            exporter.add(key, &visited);
        }
        exporter.publish(false).unwrap()
    }

    pub(super) fn batches(&self) -> PathBuf {
        self.folders.path().join("batches")
    }

    /// Stores a downloaded batch with these keys.
    pub(super) fn batch(&self, name: &str, keys: std::ops::Range<u32>) {
        let mut batch = KeyBatch::new();
        many(keys, "DE").iter().for_each(|(key, _)| batch.push(*key, &["NL".parse().unwrap()]));
        fs::create_dir_all(self.batches()).unwrap();
        fs::write(self.batches().join(name), wire::encode(Format::Protobuf, &batch)).unwrap();
    }

    /// Publishes what is in the downloaded batches; also says how many were new.
    pub(super) fn run_batches(&self, now: DateTime<Utc>) -> (usize, Published) {
        let mut exporter = self.open(now);
        let batches = exporter.add_batches(&self.batches()).unwrap();
        (batches, exporter.publish(false).unwrap())
    }

    /// All archives of a region, as the index has them; each verified, whole and as the index says.
    pub(super) fn region(&self, region: &str) -> Vec<(Section, TemporaryExposureKey)> {
        let index: Value =
            serde_json::from_slice(&fs::read(self.folder().join("index.json")).unwrap()).unwrap();
        let of_region: Value =
            serde_json::from_slice(&fs::read(self.folder().join(region).join("index.json")).unwrap())
                .unwrap();
        assert_eq!(index["regions"][region]["days"], of_region["days"]);
        let days = of_region["days"].as_object().unwrap().values();
        let files = days.flat_map(|day| {
            let hours = day.get("hours").into_iter().flat_map(|hours| hours.as_object().unwrap().values());
            hours.chain(day.get("files")).flat_map(|files| files.as_array().unwrap())
        });
        let mut all = Vec::new();
        let mut paths = String::new();
        for file in files {
            let file: IndexFile = serde_json::from_value(file.clone()).unwrap();
            assert!(file.end > file.start);
            paths += &format!("{}\n", file.path);
            let path = self.folder().join(&file.path);
            let bytes = fs::read(&path).unwrap();
            assert_eq!((file.size, file.sha256), (bytes.len(), crate::hex(&Sha256::digest(&bytes))));
            let mut export = ExportFile::open(File::open(&path).unwrap()).unwrap();
            let signer = ExportSigner::from_pem(&self.key, "", "").unwrap();
            export.verify(&signer.verifying_key().unwrap()).unwrap();
            let mut keys = export.keys().unwrap();
            let entries: Vec<_> = keys.by_ref().map(Result::unwrap).map(|e| (e.section, e.key)).collect();
            let header = keys.header().unwrap();
            assert_eq!(header.region.as_deref(), Some(region));
            assert_eq!(header.batch_num, Some(file.batch_num as i32));
            assert_eq!(header.batch_size, Some(file.batch_size as i32));
            assert_eq!(header.end_timestamp, Some(file.end as u64));
            assert_eq!(entries.len(), file.keys);
            assert!(entries.is_sorted_by_key(|(section, key)| (*section, *key.key_data.as_bytes())));
            all.extend(entries);
        }
        assert_eq!(fs::read_to_string(self.folder().join(region).join("index.txt")).unwrap(), paths);
        all
    }

    pub(super) fn count(&self, region: &str) -> usize {
        self.region(region).len()
    }

    /// All files below the folder, by their names.
    pub(super) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(folder: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, into);
                } else {
                    into.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        let mut files = BTreeMap::new();
        walk(&self.folder(), &mut files);
        files
    }
}

pub(super) fn now() -> DateTime<Utc> {
    "2026-11-24T10:20:00Z".parse().unwrap()
}

pub(super) fn hours(hours: i64) -> DateTime<Utc> {
    now() + TimeDelta::hours(hours)
}

/// A key of yesterday.
pub(super) fn key(number: u32, origin: &str) -> DiagnosisKey {
    let mut data = [0; 16];
    // Not in the order of their numbers.
    data[..4].copy_from_slice(&number.reverse_bits().to_be_bytes());
    data[12..].copy_from_slice(&number.to_be_bytes());
    DiagnosisKey {
        key_data: KeyData::new(data),
        rolling_start_interval_number: (now().timestamp() / 86_400 - 1) as u32 * 144,
        rolling_period: 144,
        transmission_risk_level: 0x7fff_ffff,
        origin: origin.parse().unwrap(),
        report_type: ReportType::ConfirmedTest,
        days_since_onset_of_symptoms: 1,
    }
}

pub(super) fn many(
    range: std::ops::Range<u32>,
    origin: &str,
) -> Vec<(DiagnosisKey, &'static [&'static str])> {
    range.map(|number| (key(number, origin), &[][..])).collect()
}
