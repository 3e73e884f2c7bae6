//! The journal's bucket of an S3-compatible store. The endpoint is the operator's choice, so it is not a matter of the
//! guard, which protects from addresses that others choose.

use std::path::Path;

use efgs_object_store::{Credentials, Error, ObjectStore, Settings, SettingsError};
use zeroize::Zeroizing;

use super::{JournalError, medium::Listed};
use crate::config::{self, ConfigError};

#[derive(Debug)]
pub(super) struct Bucket(ObjectStore);

impl Bucket {
    pub(super) fn open(config: &config::Journal) -> Result<Self, ConfigError> {
        let endpoint = config.endpoint.as_deref().unwrap_or_default();
        let settings = Settings {
            endpoint: endpoint
                .parse()
                .map_err(|e| invalid("endpoint", format!("{endpoint:?} is not a URL: {e}")))?,
            name: config.bucket.clone().unwrap_or_default(),
            region: config.region.clone(),
            prefix: config.prefix.clone(),
            path_style: config.path_style,
            ca_pem: config.ca.as_deref().map(|path| read("ca", path)).transpose()?,
            credentials: credentials(config)?,
            timeout: config.timeout,
            user_agent: concat!("efgs-gateway/", env!("CARGO_PKG_VERSION")),
        };
        ObjectStore::new(settings).map(Self).map_err(|error| match error {
            SettingsError::Ca(reason) => {
                let path = config.ca.as_deref().unwrap_or(Path::new("")).display();
                invalid("ca", format!("{path}: {reason}"))
            }
            SettingsError::Endpoint(reason) | SettingsError::Client(reason) => invalid("endpoint", reason),
        })
    }

    /// Returns when the store has the object.
    pub(super) async fn put(&self, name: &str, body: Vec<u8>) -> Result<(), JournalError> {
        self.0.put(name, body, &[]).await.map_err(|e| JournalError::Write(self.about(name, &e)))
    }

    /// Reads an object that was listed. None is longer than the list says, because none is ever replaced.
    pub(super) async fn get(&self, listed: &Listed) -> Result<Vec<u8>, JournalError> {
        let object = self.0.get(&listed.name, listed.bytes).await;
        object.map_err(|e| JournalError::Read(self.about(&listed.name, &e)))
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), JournalError> {
        self.0.delete(name).await.map_err(|e| JournalError::Write(self.about(name, &e)))
    }

    /// The names of the days of which there are objects.
    pub(super) async fn days(&self) -> Result<Vec<String>, JournalError> {
        self.0.folders().await.map_err(|e| self.unlisted(&e))
    }

    /// The objects of one day, or all; `step` is called after each page.
    pub(super) async fn list(
        &self,
        day: Option<&str>,
        step: impl FnMut(),
    ) -> Result<Vec<Listed>, JournalError> {
        let start = day.map_or(String::new(), |day| format!("{day}/"));
        let objects = self.0.list(&start, step).await.map_err(|e| self.unlisted(&e))?;
        Ok(objects.into_iter().map(|object| Listed { name: object.name, bytes: object.bytes }).collect())
    }

    fn about(&self, name: &str, error: &Error) -> String {
        format!("{}: {error}", self.0.key(name))
    }

    fn unlisted(&self, error: &Error) -> JournalError {
        JournalError::Read(format!("the bucket {}: {error}", self.0.name()))
    }
}

/// From files, or from the environment.
fn credentials(config: &config::Journal) -> Result<Credentials, ConfigError> {
    let read = |key, path| read(key, path).map(Zeroizing::new);
    match (&config.access_key_file, &config.secret_key_file) {
        (Some(access), Some(secret)) => {
            let (access, secret) = (read("access_key_file", access)?, read("secret_key_file", secret)?);
            Ok(Credentials::new(access.trim(), secret.trim()))
        }
        _ => Credentials::from_env().ok_or_else(|| {
            ConfigError::Invalid(
                "`[journal]` with a bucket needs credentials: set `journal.access_key_file` and \
                 `journal.secret_key_file`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
                    .into(),
            )
        }),
    }
}

fn read(key: &str, path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|e| invalid(key, format!("cannot read {}: {e}", path.display())))
}

fn invalid(key: &str, reason: String) -> ConfigError {
    ConfigError::Invalid(format!("`journal.{key}`: {reason}"))
}
