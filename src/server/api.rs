//! The API document (OpenAPI 3.1), made from the handlers and from the types that are sent. It is a build product:
//! `openapi/` holds the committed copy, and a check fails when that is stale.

use efgs_protocol::{audit::AuditEntry, key::ReportType, wire::KeyObject};
use utoipa::{
    OpenApi, ToResponse,
    openapi::{Ref, RefOr},
};

use crate::{
    http::{
        Code, ErrorBody,
        schema::{DiagnosisKeyBatch, Gone},
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
    components(
        schemas(ErrorBody, Code, MultiStatus, DiagnosisKeyBatch, KeyObject, ReportType, AuditEntry, crate::callback::register::Callback),
        responses(Forbidden, TooManyRequests, Unavailable, Gone),
    ),
    tags(
        (name = "upload", description = "Give keys to the other countries (spec §5.4)."),
        (name = "download", description = "Get the keys of the other countries (spec §5.3)."),
        (name = "audit", description = "Prove that nothing was altered (spec §5.7)."),
        (name = "callback", description = "Be told when there is a new batch (spec §5.6)."),
        (name = "options", description = "What the gateway speaks."),
    ),
    modifiers(&MutualTls, &SharedAnswers),
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

/// Adds 403, 429 and 503 to every operation that a country calls and that does not describe them itself.
/// OPTIONS needs no authentication.
struct SharedAnswers;

impl utoipa::Modify for SharedAnswers {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            let operations = [
                &mut item.get,
                &mut item.head,
                &mut item.post,
                &mut item.put,
                &mut item.patch,
                &mut item.delete,
            ];
            for operation in operations.into_iter().flatten() {
                for (status, (name, _)) in [
                    ("403", Forbidden::response()),
                    ("429", TooManyRequests::response()),
                    ("503", Unavailable::response()),
                ] {
                    let answers = &mut operation.responses.responses;
                    let answer = RefOr::Ref(Ref::from_response_name(name));
                    answers.entry(status.to_owned()).or_insert(answer);
                }
            }
        }
    }
}

/// The client certificate does not let the caller in.
#[derive(ToResponse)]
#[response(example = json!({"message": "the client certificate 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 is not registered for AUTHENTICATION", "code": "forbidden"}))]
#[expect(dead_code, reason = "only describes the answer in the API document")]
struct Forbidden(ErrorBody);

/// The country sends too many requests. Try again at the time in Retry-After (an HTTP date).
#[derive(ToResponse)]
#[response(headers(("Retry-After" = String, description = "An HTTP date.")), example = json!({"message": "NL sends more than 100 requests per second: send fewer", "code": "too-many-requests"}))]
#[expect(dead_code, reason = "only describes the answer in the API document")]
struct TooManyRequests(ErrorBody);

/// Try again at the time in Retry-After (an HTTP date).
#[derive(ToResponse)]
#[response(headers(("Retry-After" = String, description = "An HTTP date.")), example = json!({"message": "the gateway cannot answer right now; try again a little later", "code": "unavailable"}))]
#[expect(dead_code, reason = "only describes the answer in the API document")]
struct Unavailable(ErrorBody);

/// The document as it is committed: JSON, with a line feed at the end.
pub fn document() -> String {
    // A document of derived types is always valid JSON.
    ApiDoc::openapi().to_pretty_json().unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests;
