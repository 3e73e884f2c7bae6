//! Certificates of participants (spec §6.1.3).

use chrono::{DateTime, Utc};
use efgs_protocol::certificate::{CertificateType, Thumbprint};
use sea_orm::{ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder};

use efgs_intake::StoredCertificate;

use super::{Store, StoreError, entity::certificate, error::Failure};

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
        self.repeat("list certificates", || async {
            let rows =
                certificate::Entity::find().order_by_asc(certificate::Column::Id).all(&self.db).await?;
            Ok(rows.into_iter().map(StoredCertificate::from).collect())
        })
        .await
    }

    /// Adds a certificate.
    pub async fn import_certificate(
        &self,
        new: &NewCertificate,
        now: DateTime<Utc>,
    ) -> Result<Imported, StoreError> {
        self.repeat("import certificate", || async {
            let row = certificate::ActiveModel {
                thumbprint: Set(new.thumbprint.as_bytes().to_vec()),
                kind: Set(new.kind.as_str().to_owned()),
                country: Set(new.country.clone()),
                pem: Set(new.pem.clone()),
                operator_signature: Set(new.operator_signature.clone()),
                registration_signature: Set(new.registration_signature.clone()),
                waived: Set(new.waived.clone()),
                waived_by: Set(new.waived_by.clone()),
                waived_because: Set(new.waived_because.clone()),
                imported_at: Set(now.naive_utc()),
                revoked_at: Set(None),
                ..Default::default()
            };
            match row.insert(&self.db).await.map_err(Failure::from) {
                Ok(_) => Ok(Imported::New),
                Err(Failure::Duplicate) => Ok(Imported::AlreadyThere),
                Err(other) => Err(other),
            }
        })
        .await
    }

    /// Writes the columns of a certificate that is there and not revoked anew, if any of them differs.
    pub async fn renew_certificate(&self, new: &NewCertificate) -> Result<bool, StoreError> {
        use certificate::Column;
        self.repeat("renew certificate", || async {
            let there = certificate::Entity::find()
                .filter(Column::Thumbprint.eq(new.thumbprint.as_bytes().to_vec()))
                .filter(Column::Kind.eq(new.kind.as_str()))
                .filter(Column::RevokedAt.is_null())
                .one(&self.db)
                .await?;
            let Some(there) = there else { return Ok(false) };
            let same = there.country == new.country
                && there.pem == new.pem
                && there.operator_signature == new.operator_signature
                && there.registration_signature == new.registration_signature;
            if same {
                return Ok(false);
            }
            let row = certificate::ActiveModel {
                id: Set(there.id),
                country: Set(new.country.clone()),
                pem: Set(new.pem.clone()),
                operator_signature: Set(new.operator_signature.clone()),
                registration_signature: Set(new.registration_signature.clone()),
                waived: Set(new.waived.clone()),
                waived_by: Set(new.waived_by.clone()),
                waived_because: Set(new.waived_because.clone()),
                ..Default::default()
            };
            certificate::Entity::update(row).exec(&self.db).await?;
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
        self.repeat("revoke certificate", || async {
            let result = certificate::Entity::update_many()
                .col_expr(certificate::Column::RevokedAt, sea_orm::sea_query::Expr::value(now.naive_utc()))
                .filter(certificate::Column::Thumbprint.eq(thumbprint.as_bytes().to_vec()))
                .filter(certificate::Column::RevokedAt.is_null())
                .exec(&self.db)
                .await?;
            Ok(result.rows_affected)
        })
        .await
    }
}

impl From<certificate::Model> for StoredCertificate {
    fn from(row: certificate::Model) -> Self {
        Self {
            id: row.id,
            thumbprint: row.thumbprint,
            kind: row.kind,
            country: row.country,
            pem: row.pem,
            operator_signature: row.operator_signature,
            registration_signature: row.registration_signature,
            waived: row.waived,
            waived_by: row.waived_by,
            waived_because: row.waived_because,
            imported_at: row.imported_at.and_utc(),
            revoked_at: row.revoked_at.map(|t| t.and_utc()),
        }
    }
}
