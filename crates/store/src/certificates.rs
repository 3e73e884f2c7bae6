//! Certificates of participants (spec §6.1.3).

use chrono::{DateTime, Utc};
use efgs_intake::StoredCertificate;
use efgs_protocol::certificate::{CertificateType, Thumbprint};

use super::{
    Store, StoreError,
    row::{Bind, Table, row, values},
    tx::{Queries, unless_taken},
};

/// A certificate to import; its signatures have been verified.
#[derive(Clone, Debug)]
pub struct NewCertificate {
    /// SHA-256 of the DER.
    pub thumbprint: Thumbprint,
    /// What it is for.
    pub kind: CertificateType,
    /// Two letters.
    pub country: String,
    /// The certificate.
    pub pem: String,
    /// The trust anchor's signature over the PEM text.
    pub operator_signature: String,
    /// The trust anchor's signature over country, type and thumbprint.
    pub registration_signature: String,
    /// Names of the rules that the operator waived, separated by commas.
    pub waived: String,
    /// Who waived them.
    pub waived_by: String,
    /// Why.
    pub waived_because: String,
}

/// What an import did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// The certificate is new.
    New,
    /// A certificate with this thumbprint and type was there with other signatures (of an earlier trust anchor,
    /// or tampered with); it has the new ones now.
    Renewed,
    /// A certificate with this thumbprint and type was there; it was left as it is.
    AlreadyThere,
}

impl Store {
    /// All certificates, oldest first, revoked ones too.
    pub async fn certificates(&self) -> Result<Vec<StoredCertificate>, StoreError> {
        self.rows("list certificates", &StoredCertificate::select("ORDER BY id"), values![]).await
    }

    /// Adds a certificate.
    pub async fn import_certificate(
        &self,
        new: &NewCertificate,
        now: DateTime<Utc>,
    ) -> Result<Imported, StoreError> {
        let mut values = StoredCertificate {
            id: 0,
            thumbprint: new.thumbprint.as_bytes().to_vec(),
            kind: new.kind.as_str().to_owned(),
            country: new.country.clone(),
            pem: new.pem.clone(),
            operator_signature: new.operator_signature.clone(),
            registration_signature: new.registration_signature.clone(),
            waived: new.waived.clone(),
            waived_by: new.waived_by.clone(),
            waived_because: new.waived_because.clone(),
            imported_at: now,
            revoked_at: None,
        }
        .values();
        // NULL: the next number.
        values[0] = None::<i64>.bind();
        let sql = StoredCertificate::insert(1);
        self.repeat("import certificate", || async {
            Ok(match unless_taken(self.db.run(&sql, values.clone()).await)? {
                Some(_) => Imported::New,
                None => Imported::AlreadyThere,
            })
        })
        .await
    }

    /// Writes the columns of a certificate that is there and not revoked anew, if any of them differs.
    pub async fn renew_certificate(&self, new: &NewCertificate) -> Result<bool, StoreError> {
        let sql = StoredCertificate::select("WHERE thumbprint = ? AND type = ? AND revoked_at IS NULL");
        self.repeat("renew certificate", || async {
            let there = self.db.row(&sql, values![new.thumbprint, new.kind.as_str()]).await?;
            let Some::<StoredCertificate>(there) = there else { return Ok(false) };
            let same = there.country == new.country
                && there.pem == new.pem
                && there.operator_signature == new.operator_signature
                && there.registration_signature == new.registration_signature;
            if same {
                return Ok(false);
            }
            let sql = "UPDATE certificate SET country = ?, pem = ?, operator_signature = ?, \
                       registration_signature = ?, waived = ?, waived_by = ?, waived_because = ? WHERE id = ?";
            let values = values![
                &*new.country,
                &*new.pem,
                &*new.operator_signature,
                &*new.registration_signature,
                &*new.waived,
                &*new.waived_by,
                &*new.waived_because,
                there.id,
            ];
            self.db.run(sql, values).await?;
            Ok(true)
        })
        .await
    }

    /// Revokes a certificate in all its types; says how many rows that changed (0: unknown or already revoked).
    pub async fn revoke_certificate(
        &self,
        thumbprint: Thumbprint,
        now: DateTime<Utc>,
    ) -> Result<u64, StoreError> {
        let sql = "UPDATE certificate SET revoked_at = ? WHERE thumbprint = ? AND revoked_at IS NULL";
        self.run("revoke certificate", sql, values![now, thumbprint]).await
    }
}

row! {
    impl StoredCertificate in "certificate" {
        id: i64,
        thumbprint: Vec<u8>,
        kind: String = "type",
        country: String,
        pem: String,
        operator_signature: String,
        registration_signature: String,
        waived: String,
        waived_by: String,
        waived_because: String,
        imported_at: DateTime<Utc>,
        revoked_at: Option<DateTime<Utc>>,
    }
}
