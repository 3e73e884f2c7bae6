//! Withdrawing uploads, and what an operator may see of them.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
};

use chrono::{DateTime, Utc};
use efgs_protocol::country::Country;
use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, sea_query::SelectStatement,
};

use super::{
    Store, StoreError,
    entity::{upload, withdrawal},
    error::Failure,
    journal,
};

/// Who withdraws an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithdrawnBy {
    /// The country that made it, through the API.
    Country,
    /// The operator, by a command.
    Operator,
}

impl WithdrawnBy {
    fn as_str(self) -> &'static str {
        match self {
            Self::Country => "country",
            Self::Operator => "operator",
        }
    }
}

/// What became of a withdrawal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// The upload is withdrawn now.
    Done {
        /// Keys in it.
        keys: u32,
    },
    /// It had been withdrawn before; nothing was changed.
    Already,
    /// The country has no upload with this tag.
    Unknown,
}

/// An upload as an operator sees it; no keys.
#[derive(Clone, Debug)]
pub struct UploadRow {
    /// The upload's row.
    pub id: i64,
    /// Whose upload it is.
    pub country: String,
    /// The country's name for it.
    pub tag: String,
    /// How many keys it has.
    pub amount: u32,
    /// When it came.
    pub uploaded_at: DateTime<Utc>,
    /// ObjectId of its batch, in hexadecimal, once it is in one.
    pub batch: Option<String>,
    /// When it was withdrawn, by whom, and why.
    pub withdrawn: Option<(DateTime<Utc>, String, String)>,
}

impl Store {
    /// Withdraws an upload. Its tag and its keys stay taken until they expire.
    pub async fn withdraw(
        &self,
        country: Country,
        tag: &str,
        by: WithdrawnBy,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<Withdrawal, StoreError> {
        // After an attempt whose outcome is not known, what stands there may be this very withdrawal.
        let unsure = AtomicBool::new(false);
        self.repeat("withdraw", || async {
            let earlier = unsure.swap(true, Ordering::Relaxed);
            let found = upload::Entity::find()
                .filter(upload::Column::Country.eq(country.as_str()))
                .filter(upload::Column::UploadTag.eq(tag.as_bytes().to_vec()))
                .one(&self.db)
                .await?;
            let Some(found) = found else { return Ok(Withdrawal::Unknown) };
            let keys = found.amount as u32;
            let row = withdrawal::ActiveModel {
                upload_id: Set(found.id),
                country: Set(found.country),
                upload_tag: Set(found.upload_tag),
                amount: Set(found.amount),
                withdrawn_at: Set(now.naive_utc()),
                withdrawn_by: Set(by.as_str().to_owned()),
                reason: Set(reason.to_owned()),
            };
            let tx = self.begin().await?;
            match withdrawal::Entity::insert(row).exec_without_returning(&tx).await.map_err(Failure::from) {
                Ok(_) => {}
                Err(Failure::Duplicate) => {
                    tx.rollback().await?;
                    let there = withdrawal::Entity::find_by_id(found.id).one(&self.db).await?;
                    let ours = earlier && there.is_some_and(|there| there.withdrawn_at == now.naive_utc());
                    return Ok(if ours { Withdrawal::Done { keys } } else { Withdrawal::Already });
                }
                Err(failure) => return Err(failure),
            }
            if self.journal {
                tx.execute_raw(self.statement(journal::PENDING_WITHDRAWAL, [found.id.into()])).await?;
            }
            tx.commit().await?;
            Ok(Withdrawal::Done { keys })
        })
        .await
    }

    /// All uploads that are stored but withdrawn: few.
    pub async fn withdrawn_uploads(&self) -> Result<HashSet<i64>, StoreError> {
        self.repeat("list withdrawals", || async {
            let rows = self
                .db
                .query_all_raw(self.statement(
                    "SELECT w.upload_id AS id FROM withdrawal w JOIN upload u ON u.id = w.upload_id",
                    [],
                ))
                .await?;
            Ok(rows.iter().map(|row| row.try_get("", "id")).collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The newest uploads of a country (or of all), with the tag given only that one.
    pub async fn uploads(
        &self,
        country: Option<Country>,
        tag: Option<&str>,
        limit: u32,
    ) -> Result<Vec<UploadRow>, StoreError> {
        self.repeat("list uploads", || async {
            let mut sql = "SELECT u.id AS id, u.country AS country, u.upload_tag AS tag, u.amount AS amount, \
                           u.uploaded_at AS uploaded_at, u.batch_id AS batch, w.withdrawn_at AS withdrawn_at, \
                           w.withdrawn_by AS withdrawn_by, w.reason AS reason \
                           FROM upload u LEFT JOIN withdrawal w ON w.upload_id = u.id WHERE 1 = 1"
                .to_owned();
            let mut values: Vec<sea_orm::Value> = Vec::new();
            if let Some(country) = country {
                sql += " AND u.country = ?";
                values.push(country.as_str().into());
            }
            if let Some(tag) = tag {
                sql += " AND u.upload_tag = ?";
                values.push(tag.as_bytes().to_vec().into());
            }
            sql += " ORDER BY u.id DESC LIMIT ?";
            values.push(limit.into());
            let rows = self.db.query_all_raw(self.statement(&sql, values)).await?;
            rows.iter().map(row).collect()
        })
        .await
    }
}

/// For the uploads that a batch may take in: not the withdrawn ones.
pub(super) fn withdrawn_ids() -> SelectStatement {
    sea_orm::sea_query::Query::select()
        .column(withdrawal::Column::UploadId)
        .from(withdrawal::Entity)
        .to_owned()
}

fn row(row: &sea_orm::QueryResult) -> Result<UploadRow, Failure> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let withdrawn_at: Option<chrono::NaiveDateTime> = row.try_get("", "withdrawn_at")?;
    let withdrawn = match withdrawn_at {
        Some(at) => Some((at.and_utc(), row.try_get("", "withdrawn_by")?, row.try_get("", "reason")?)),
        None => None,
    };
    Ok(UploadRow {
        id: row.try_get("", "id")?,
        country: row.try_get("", "country")?,
        tag: text(row.try_get("", "tag")?),
        amount: row.try_get::<i32>("", "amount")? as u32,
        uploaded_at: row.try_get::<chrono::NaiveDateTime>("", "uploaded_at")?.and_utc(),
        batch: row.try_get::<Option<Vec<u8>>>("", "batch")?.map(hex),
        withdrawn,
    })
}
