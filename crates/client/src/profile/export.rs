//! `[export]`: what phones get.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use efgs_protocol::{country::Country, key::ReportType};
use serde::{Deserialize, Deserializer, de};

use super::{Profile, ProfileError};
use crate::{
    export::{Bucket, BucketSettings, ExportSettings, Period, Region},
    gaen::ExportSigner,
};

/// The European Union, the European Economic Area and Switzerland: the countries of interest when the profile
/// names none.
const COUNTRIES: [&str; 31] = [
    "AT", "BE", "BG", "CH", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IS",
    "IT", "LI", "LT", "LU", "LV", "MT", "NL", "NO", "PL", "PT", "RO", "SE", "SI", "SK",
];

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportSection {
    folder: Option<PathBuf>,
    batches: Option<PathBuf>,
    pub(super) signing_key: PathBuf,
    key_id: String,
    key_version: Option<String>,
    countries: Option<Vec<Country>>,
    combined: Option<String>,
    #[serde(default)]
    region_codes: BTreeMap<String, String>,
    period: Option<Period>,
    #[serde(default, with = "humantime_serde")]
    margin: Option<Duration>,
    minimum: Option<usize>,
    padding: Option<bool>,
    max_keys: Option<usize>,
    retention_days: Option<u32>,
    #[serde(default, deserialize_with = "report_types")]
    report_types: Option<Vec<ReportType>>,
    bucket: Option<BucketSettings>,
}

fn report_types<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<ReportType>>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let of_phones = |report: &ReportType| !matches!(report, ReportType::Recursive | ReportType::Revoked);
    let parse = |name: String| {
        ReportType::from_name(&name).filter(of_phones).ok_or_else(|| {
            let known: Vec<_> = ReportType::ALL.into_iter().filter(of_phones).map(ReportType::name).collect();
            de::Error::custom(format!("{name:?} is none of {}", known.join(", ")))
        })
    };
    names.into_iter().map(parse).collect::<Result<_, _>>().map(Some)
}

/// What `[export]` says.
pub struct ExportProfile {
    /// How keys become archives.
    pub settings: ExportSettings,
    /// Where the archives go.
    pub folder: PathBuf,
    /// Where downloaded batches lie.
    pub batches: PathBuf,
    /// The bucket that is made like the folder, if there is one.
    pub bucket: Option<Bucket>,
}

impl Profile {
    /// What phones get: the section `[export]`, with its signing key.
    ///
    /// # Errors
    /// When the section is missing, or its key cannot be used.
    pub fn export(&self) -> Result<ExportProfile, ProfileError> {
        let section = self.section("export", self.content.export.as_ref())?;
        let refuse = |reason: String| ProfileError::section("export", reason);
        let key = self.read("export.signing_key", &section.signing_key)?;
        let signer =
            ExportSigner::from_pem(&key, &section.key_id, section.key_version.as_deref().unwrap_or("v1"))
                .map_err(|error| refuse(format!("`signing_key`: {error}")))?;

        let all = || COUNTRIES.iter().filter_map(|country| country.parse().ok()).collect();
        let countries: Vec<Country> = section.countries.clone().unwrap_or_else(all);
        if let Some(stray) = section
            .region_codes
            .keys()
            .find(|code| !countries.iter().any(|country| country.as_str() == code.as_str()))
        {
            return Err(refuse(format!("`region_codes` names {stray}, which is none of the `countries`")));
        }
        let usual = ExportSettings::new(countries, vec![signer]);
        let code = |region: Region| match section.region_codes.get(region.country.as_str()) {
            Some(code) => Region { code: code.clone(), ..region },
            None => region,
        };
        Ok(ExportProfile {
            settings: ExportSettings {
                countries: usual.countries.into_iter().map(code).collect(),
                combined: section.combined.clone().or(usual.combined).filter(|code| !code.is_empty()),
                period: section.period.unwrap_or(usual.period),
                margin: section.margin.unwrap_or(usual.margin),
                minimum: section.minimum.unwrap_or(usual.minimum),
                padding: section.padding.unwrap_or(usual.padding),
                max_keys: section.max_keys.unwrap_or(usual.max_keys),
                retention_days: section.retention_days.unwrap_or(usual.retention_days),
                report_types: section.report_types.clone().unwrap_or(usual.report_types),
                signers: usual.signers,
                trust_clock: usual.trust_clock,
            },
            folder: self.resolve(section.folder.as_deref().unwrap_or("phones".as_ref())),
            batches: self.resolve(section.batches.as_deref().unwrap_or("batches".as_ref())),
            bucket: section.bucket.as_ref().map(|section| self.bucket(section)).transpose()?,
        })
    }

    fn bucket(&self, section: &BucketSettings) -> Result<Bucket, ProfileError> {
        let refuse = |reason: String| ProfileError::section("export.bucket", reason);
        let text = |key: &str, path| {
            let bytes = self.read(&format!("export.bucket.{key}"), path)?;
            let text =
                String::from_utf8(bytes.to_vec()).map_err(|_| refuse(format!("`{key}` is not text")))?;
            Ok::<_, ProfileError>(text.trim().to_owned())
        };
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let credentials = match (&section.access_key_file, &section.secret_key_file) {
            (Some(access), Some(secret)) => {
                Some((text("access_key_file", access)?, text("secret_key_file", secret)?))
            }
            _ => variable("AWS_ACCESS_KEY_ID").zip(variable("AWS_SECRET_ACCESS_KEY")),
        };
        let credentials = credentials.ok_or_else(|| {
            refuse(
                "there are no credentials: set `access_key_file` and `secret_key_file`, or AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY in the environment"
                    .into(),
            )
        })?;
        let ca = section.ca.as_ref().map(|path| text("ca", path)).transpose()?;
        Bucket::new(section, ca.as_deref(), credentials).map_err(|error| refuse(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;

    use efgs_test_ca::{Authority, KeyKind};
    use openssl::{
        ec::{EcGroup, EcKey},
        nid::Nid,
    };

    use super::*;
    use crate::profile::EXAMPLE;

    fn load(section: &str) -> Result<ExportProfile, String> {
        let folder = tempfile::tempdir().unwrap();
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = EcKey::generate(&group).unwrap().private_key_to_pem().unwrap();
        fs::write(folder.path().join("export.key"), key).unwrap();
        for name in ["rsa.key", "s3-access.key", "s3-secret.key"] {
            fs::write(folder.path().join(name), "no key").unwrap();
        }
        let ca = Authority::new("store", KeyKind::Ec256).unwrap();
        fs::write(folder.path().join("s3-ca.pem"), ca.certificate().pem()).unwrap();
        let path = folder.path().join("profile.toml");
        fs::write(&path, section).unwrap();
        Profile::load(&path).map_err(|e| e.to_string())?.export().map_err(|e| e.to_string())
    }

    #[test]
    fn the_example_shows_every_key_with_its_default() {
        let (_, rest) = EXAMPLE.split_once("[export]").unwrap();
        // Each comment that is a key shows its default, or belongs to the bucket.
        let is_key = |line: &&str| line.starts_with('[') || line.contains(" = ");
        let mut complete = "country = \"DE\"\n[export]\n".to_owned();
        for line in rest.lines() {
            if line.starts_with('[') && !line.starts_with("[export") {
                break;
            }
            complete += line.strip_prefix("# ").filter(is_key).unwrap_or(line);
            complete.push('\n');
        }
        let said = load(&complete).unwrap();
        assert!(said.bucket.is_some());
        let short = "country = \"DE\"\n[export]\nsigning_key = \"export.key\"\nkey_id = \"262\"";
        let usual = load(short).unwrap().settings;
        assert_eq!(said.settings.combined, usual.combined);
        assert_eq!((said.settings.period, said.settings.margin), (usual.period, usual.margin));
        assert_eq!((said.settings.minimum, said.settings.padding), (usual.minimum, usual.padding));
        assert_eq!(said.settings.max_keys, usual.max_keys);
        assert_eq!(said.settings.retention_days, usual.retention_days);
        assert_eq!(said.settings.report_types, usual.report_types);
        assert_eq!(usual.countries.len(), 31);
        let codes: Vec<_> = said.settings.countries.iter().map(|region| region.code.as_str()).collect();
        assert_eq!(codes, ["DE", "FR", "204"]);
        assert_eq!(said.folder.file_name().unwrap(), "phones");
        assert_eq!(said.batches.file_name().unwrap(), "batches");
    }

    #[test]
    fn what_cannot_work_is_named() {
        let refused =
            |keys: &str| load(&format!("country = \"DE\"\n[export]\nkey_id = \"1\"\n{keys}")).err().unwrap();
        assert!(load("country = \"DE\"").err().unwrap().contains("`[export]` is missing"));
        assert!(refused("").contains("missing field `signing_key`"));
        assert!(refused("signing_key = \"rsa.key\"").contains("`signing_key`: it is not a private key"));
        let with = |more: &str| refused(&format!("signing_key = \"export.key\"\n{more}"));
        assert!(with("report_types = [\"REVOKED\"]").contains("none of UNKNOWN, CONFIRMED_TEST"));
        assert!(with("period = \"weekly\"").contains("hourly"));
        let bucket = |more: &str| with(&format!("[export.bucket]\nname = \"a\"\n{more}"));
        assert!(bucket("").contains("missing field `endpoint`"));
        let keys = "access_key_file = \"s3-access.key\"\nsecret_key_file = \"s3-secret.key\"";
        assert!(bucket(&format!("endpoint = \"http://s3.example\"\n{keys}")).contains("https://"));
        assert!(bucket("endpoint = \"https://s3.example\"").contains("there are no credentials"));
        assert!(with("countries = [\"DE\"]\nregion_codes = { NL = \"204\" }").contains("NL"));
    }
}
