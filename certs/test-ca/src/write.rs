//! The PKI as files, under the names that the configuration example uses.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::{Error, Identity, Participant, Pki};

impl Pki {
    /// Writes the operator's side into a folder, which is made if need be: `trust-anchor`, `server` and
    /// `callback-client` as `.pem` and `.key`, and `server-ca.pem`. Only the owner may read private keys.
    ///
    /// # Errors
    /// When a file cannot be written, or a private key's file exists already.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        make_folder(folder)?;
        public(&folder.join("trust-anchor.pem"), self.anchor_pair.certificate.pem())?;
        private(&folder.join("trust-anchor.key"), &self.anchor_pair.key_pem)?;
        public(&folder.join("server-ca.pem"), self.server_ca.certificate().pem())?;
        let chain = [self.server.certificate.pem(), self.server_ca.certificate().pem()].concat();
        public(&folder.join("server.pem"), &chain)?;
        private(&folder.join("server.key"), &self.server.key_pem)?;
        public(&folder.join("callback-client.pem"), self.callback_client.certificate.pem())?;
        private(&folder.join("callback-client.key"), &self.callback_client.key_pem)
    }
}

impl Participant {
    /// Writes a country's side into a folder, which is made if need be: `authentication`, `signing` and
    /// `callback` as `.pem`, `.key` and `.bundle`. Only the owner may read private keys.
    ///
    /// # Errors
    /// When a file cannot be written, or a private key's file exists already.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        make_folder(folder)?;
        let identities = [
            ("authentication", &self.authentication),
            ("signing", &self.signing),
            ("callback", &self.callback),
        ];
        for (name, Identity { certificate, key_pem, bundle }) in identities {
            public(&folder.join(format!("{name}.pem")), certificate.pem())?;
            private(&folder.join(format!("{name}.key")), key_pem)?;
            public(&folder.join(format!("{name}.bundle")), &bundle.to_string())?;
        }
        Ok(())
    }
}

fn make_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::Write { path: path.to_owned(), source })
}

fn public(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Never into a file that exists, whose permissions may be wider.
fn private(path: &Path, text: &str) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| Error::Write { path: path.to_owned(), source })
}
