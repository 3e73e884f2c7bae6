//! The API document (OpenAPI 3.1), made from the handlers. It is a build product: `openapi/` holds the
//! committed copy, and a check fails when that is stale.

use utoipa::OpenApi;

use crate::{
    http::{
        Code, ErrorBody,
        schema::{AuditEntrySchema, DiagnosisKey, DiagnosisKeyBatch, ReportType},
    },
    upload::MultiStatus,
};

/// The document.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "EFGS Federation Gateway",
        description = "National contact-tracing backends exchange signed batches of diagnosis keys.\n\nEvery connection needs a client certificate that the operator has registered. Paths may end with a slash. Header names are case-insensitive.\n\nErrors are JSON with a `message` for people and a `code` for programs; codes are added, never renamed.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(crate::upload::upload, crate::withdrawal::withdraw, crate::download::download, crate::audit::audit, crate::callback::register::list, crate::callback::register::put, crate::callback::register::delete, crate::options::options),
    components(schemas(ErrorBody, Code, MultiStatus, DiagnosisKeyBatch, DiagnosisKey, ReportType, AuditEntrySchema, crate::callback::register::Callback)),
    tags(
        (name = "upload", description = "Give keys to the other countries (spec §5.4)."),
        (name = "download", description = "Get the keys of the other countries (spec §5.3)."),
        (name = "audit", description = "Prove that nothing was altered (spec §5.7)."),
        (name = "callback", description = "Be told when there is a new batch (spec §5.6)."),
        (name = "options", description = "What the gateway speaks."),
    ),
    modifiers(&MutualTls),
    security(("mutualTLS" = [])),
)]
pub struct ApiDoc;

struct MutualTls;

impl utoipa::Modify for MutualTls {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::SecurityScheme;
        if let Some(components) = &mut document.components {
            let description = "A client certificate that is registered for AUTHENTICATION and names the country (C) it was registered for.";
            components.add_security_scheme(
                "mutualTLS",
                SecurityScheme::MutualTls {
                    description: Some(description.into()),
                    deprecated: None,
                    extensions: None,
                },
            );
        }
    }
}

/// The document as it is committed: JSON, with a line feed at the end.
pub fn document() -> String {
    // A document made of derived types always is valid JSON.
    ApiDoc::openapi().to_pretty_json().unwrap_or_default() + "\n"
}
