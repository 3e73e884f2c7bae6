//! The tables as sea-orm sees them. They do not leave the store.
#![expect(unreachable_pub, reason = "sea-orm's derive macros want the models public")]

pub(super) mod certificate {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, DeriveEntityModel)]
    #[sea_orm(table_name = "certificate")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub thumbprint: Vec<u8>,
        #[sea_orm(column_name = "type")]
        pub kind: String,
        pub country: String,
        pub pem: String,
        pub operator_signature: String,
        pub registration_signature: String,
        pub waived: String,
        pub waived_by: String,
        pub waived_because: String,
        pub imported_at: ChronoDateTime,
        pub revoked_at: Option<ChronoDateTime>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(super) mod upload {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, DeriveEntityModel)]
    #[sea_orm(table_name = "upload")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub country: String,
        pub upload_tag: Vec<u8>,
        pub format: String,
        pub format_major: i16,
        pub format_minor: i16,
        pub amount: i32,
        pub payload_bytes: i64,
        pub content_hash: Vec<u8>,
        pub batch_signature: String,
        pub uploader_certificate_id: i64,
        pub uploader_thumbprint: Vec<u8>,
        pub signing_certificate_id: i64,
        pub signing_thumbprint: Vec<u8>,
        pub uploaded_at: ChronoDateTime,
        pub batch_id: Option<Vec<u8>>,
        pub key_id: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(super) mod diagnosis_key {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, DeriveEntityModel)]
    #[sea_orm(table_name = "diagnosis_key")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub upload_id: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub position: i32,
        pub payload_hash: Vec<u8>,
        pub report_type: i16,
        pub payload: Vec<u8>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(super) mod batch {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, DeriveEntityModel)]
    #[sea_orm(table_name = "batch")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Vec<u8>,
        pub day: ChronoDate,
        pub sequence: i32,
        pub format_major: i16,
        pub amount: i32,
        pub formed_at: ChronoDateTime,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(super) mod withdrawal {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, DeriveEntityModel)]
    #[sea_orm(table_name = "withdrawal")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub upload_id: i64,
        pub country: String,
        pub upload_tag: Vec<u8>,
        pub amount: i32,
        pub withdrawn_at: ChronoDateTime,
        pub withdrawn_by: String,
        pub reason: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
