//! Values and rows, the same for all three databases and both drivers.
//!
//! [`Bind`] is what can stand for a placeholder, [`Cell`] what can be read from a column, [`Row`] what is read from
//! the columns of a row in their order. `row!` defines a struct and, for a table, its columns once: for reading,
//! and for the INSERT of both drivers.

use std::{borrow::Cow, time::Duration};

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use efgs_protocol::{batch_tag::ObjectId, certificate::Thumbprint, country::Country};
use mysql_async::prelude::FromValue;
use sea_orm::{QueryResult, TryGetable, Value};

use super::{error::Failure, sql};

/// A value for a placeholder.
pub(super) trait Bind {
    fn bind(self) -> Value;
}

/// A value of a column.
pub(super) trait Cell: Sized + Send {
    /// What both drivers read.
    type Raw: TryGetable + FromValue;
    fn read(raw: Self::Raw) -> Result<Self, Failure>;
}

/// What is read from one row.
pub(super) trait Row: Sized + Send {
    fn read(cells: &mut Cells) -> Result<Self, Failure>;
}

/// The rows of a table, or the part of its columns that belongs together.
pub(super) trait Table: Row {
    const TABLE: &'static str;
    /// Their names, separated by commas.
    fn columns() -> String;
    /// In the order of the columns.
    fn values(self) -> Vec<Value>;

    /// An INSERT of so many rows.
    fn insert(rows: usize) -> String {
        sql::insert(Self::TABLE, &Self::columns(), rows)
    }

    /// `SELECT` all columns of the rows that `rest` describes.
    fn select(rest: &str) -> String {
        format!("SELECT {} FROM {} {rest}", Self::columns(), Self::TABLE)
    }
}

/// A row whose columns are read one after the other.
pub(super) struct Cells {
    row: Driver,
    at: usize,
}

enum Driver {
    SeaOrm(QueryResult),
    MySql(mysql_async::Row),
}

impl From<QueryResult> for Cells {
    fn from(row: QueryResult) -> Self {
        Self { row: Driver::SeaOrm(row), at: 0 }
    }
}

impl From<mysql_async::Row> for Cells {
    fn from(row: mysql_async::Row) -> Self {
        Self { row: Driver::MySql(row), at: 0 }
    }
}

impl Cells {
    /// The next column.
    pub(super) fn next<T: Cell>(&mut self) -> Result<T, Failure> {
        let at = self.at;
        self.at += 1;
        T::read(match &mut self.row {
            Driver::SeaOrm(row) => row.try_get_by_index(at)?,
            Driver::MySql(row) => row
                .take_opt(at)
                .ok_or_else(|| Failure::Permanent(format!("the row has no column {at}")))?
                .map_err(|error| Failure::Permanent(error.to_string()))?,
        })
    }

    /// Reads from the first column again. Not for rows of `mysql_async`, whose values have been moved out.
    pub(super) fn rewind(&mut self) {
        self.at = 0;
    }
}

macro_rules! bind {
    ($($ty:ty: $kind:ident, |$value:ident| $bound:expr;)*) => {
        $(impl Bind for $ty {
            fn bind(self) -> Value {
                let $value = self;
                Value::$kind(Some($bound))
            }
        })*
    };
}

bind! {
    i64: BigInt, |n| n;
    u8: BigInt, |n| n.into();
    u16: BigInt, |n| n.into();
    u32: BigInt, |n| n.into();
    u64: BigInt, |n| n as i64;
    // Milliseconds.
    Duration: BigInt, |time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2);
    &str: String, |text| text.to_owned();
    String: String, |text| text;
    Cow<'static, str>: String, |text| text.into_owned();
    Country: String, |country| country.to_string();
    &[u8]: Bytes, |bytes| bytes.to_vec();
    Vec<u8>: Bytes, |bytes| bytes;
    [u8; 32]: Bytes, |bytes| bytes.to_vec();
    Utf8: Bytes, |text| text.0.into_bytes();
    ObjectId: Bytes, |id| id.as_bytes().to_vec();
    Thumbprint: Bytes, |thumbprint| thumbprint.as_bytes().to_vec();
    NaiveDate: ChronoDate, |day| day;
    NaiveDateTime: ChronoDateTime, |time| time;
    DateTime<Utc>: ChronoDateTime, |time| time.naive_utc();
}

impl<T: Bind> Bind for Option<T> {
    fn bind(self) -> Value {
        self.map_or(Value::String(None), Bind::bind)
    }
}

/// The values for the placeholders of a statement, in their order.
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::row::Bind::bind($value)),*] };
}
pub(super) use values;

macro_rules! cell {
    ($($ty:ty: $raw:ty, |$value:ident| $read:expr;)*) => {
        $(impl Cell for $ty {
            type Raw = $raw;
            fn read($value: $raw) -> Result<Self, Failure> {
                Ok($read)
            }
        })*
    };
}

cell! {
    i64: i64, |n| n;
    u16: i64, |n| n as u16;
    u32: i64, |n| n as u32;
    u64: i64, |n| n as u64;
    // Milliseconds; none are none.
    Duration: Option<i64>, |ms| Duration::from_millis(ms.unwrap_or(0).max(0) as u64);
    String: String, |text| text;
    Vec<u8>: Vec<u8>, |bytes| bytes;
    Utf8: Vec<u8>, |bytes| Utf8(String::from_utf8_lossy(&bytes).into_owned());
    [u8; 32]: Vec<u8>, |bytes| bytes.try_into().map_err(|_| Failure::Permanent("a hash has another length".into()))?;
    NaiveDate: NaiveDate, |day| day;
    DateTime<Utc>: NaiveDateTime, |time| time.and_utc();
    ObjectId: Vec<u8>, |id| ObjectId::from_bytes(
        id.try_into().map_err(|_| Failure::Permanent("a batch's id has not 12 bytes".into()))?
    );
    Country: String, |country| Country::new(&country)
        .map_err(|_| Failure::Permanent("an upload's country is not two capital letters".into()))?;
}

impl<T: Cell> Cell for Option<T>
where
    Option<T::Raw>: TryGetable + FromValue,
{
    type Raw = Option<T::Raw>;
    fn read(raw: Self::Raw) -> Result<Self, Failure> {
        raw.map(T::read).transpose()
    }
}

/// A text in a column of bytes; what is not UTF-8 is replaced.
pub(super) struct Utf8(String);

impl From<String> for Utf8 {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<Utf8> for String {
    fn from(text: Utf8) -> Self {
        text.0
    }
}

impl<T: Cell> Row for T {
    fn read(cells: &mut Cells) -> Result<Self, Failure> {
        cells.next()
    }
}

macro_rules! tuple {
    ($($name:ident)+) => {
        impl<$($name: Cell),+> Row for ($($name,)+) {
            fn read(cells: &mut Cells) -> Result<Self, Failure> {
                Ok(($(cells.next::<$name>()?,)+))
            }
        }
    };
}

tuple!(A B);
tuple!(A B C);
tuple!(A B C D);
tuple!(A B C D E);

/// Defines a struct that is read from a row: a field for each column, in their order. With a table it also gives the
/// columns, named like the fields unless `= "…"` says otherwise, and the values of an INSERT. `as` names another type
/// by which the column is read and written. Fields behind `with` are not columns: a read row has their default.
macro_rules! row {
    (
        $(#[$meta:meta])* pub struct $name:ident $(in $table:literal)? {
            $($(#[$doc:meta])* $field:ident: $ty:ty $(as $cell:ty)? $(= $column:literal)?,)+
        }
        $(with { $($(#[$other_doc:meta])* $other:ident: $other_ty:ty,)+ })?
    ) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[$doc])* pub $field: $ty,)+
            $($($(#[$other_doc])* pub $other: $other_ty,)+)?
        }
        $crate::row::row!(
            impl $name $(in $table)? { $($field: $ty $(as $cell)? $(= $column)?,)+ } $(with { $($other,)+ })?
        );
    };
    (impl $name:ident in $table:literal $fields:tt $(with $others:tt)?) => {
        $crate::row::row!(@row $name $fields $($others)?);
        $crate::row::row!(@table $name $table $fields);
    };
    (impl $name:ident $fields:tt $(with $others:tt)?) => {
        $crate::row::row!(@row $name $fields $($others)?);
    };
    (@row $name:ident { $($field:ident: $ty:ty $(as $cell:ty)? $(= $column:literal)?,)+ } $({ $($other:ident,)+ })?) => {
        impl $crate::row::Row for $name {
            fn read(cells: &mut $crate::row::Cells) -> Result<Self, $crate::error::Failure> {
                Ok(Self {
                    $($field: $crate::row::row!(@read cells, $ty $(, $cell)?),)+
                    $($($other: Default::default(),)+)?
                })
            }
        }
    };
    (@table $name:ident $table:literal { $($field:ident: $ty:ty $(as $cell:ty)? $(= $column:literal)?,)+ }) => {
        impl $crate::row::Table for $name {
            const TABLE: &'static str = $table;
            fn columns() -> String {
                [$($crate::row::row!(@column $field $($column)?)),+].join(", ")
            }
            fn values(self) -> Vec<sea_orm::Value> {
                vec![$($crate::row::Bind::bind($crate::row::row!(@write self.$field $(, $cell)?))),+]
            }
        }
    };
    (@read $cells:ident, $ty:ty) => { $cells.next::<$ty>()? };
    (@read $cells:ident, $ty:ty, $cell:ty) => { $cells.next::<$cell>()?.into() };
    (@write $value:expr) => { $value };
    (@write $value:expr, $cell:ty) => { <$cell>::from($value) };
    (@column $field:ident) => { stringify!($field) };
    (@column $field:ident $column:literal) => { $column };
}
pub(super) use row;
