//! The operations for national backends, in one table. The router, the names of operations in log, metrics and
//! access log, and the test of authorisation use it.

use actix_web::{
    HttpResponse, Route,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::Method,
    middleware::{Next, from_fn},
    web::{self, ServiceConfig},
};

use super::observe;
use crate::{
    access_log::operation,
    audit, callback, download,
    http::{Error, NoOperation},
    options, upload, withdrawal,
};

/// An operation of the API.
#[derive(Debug)]
pub struct Operation {
    /// Its name in the access log.
    pub name: &'static str,
    /// Its group in metrics and log lines, from the table `GROUPS`.
    pub group: &'static str,
    /// Its method.
    pub method: Method,
    /// Its path as in the API document.
    pub path: &'static str,
    handler: fn() -> Route,
}

/// The groups of operations in metrics and log lines, and the group of requests that match no operation.
pub(super) const GROUPS: [&str; 6] = ["upload", "download", "audit", "callback", "options", OTHER];

const OTHER: &str = "other";

/// Every operation for national backends.
pub static OPERATIONS: [Operation; 8] = [
    Operation {
        name: "options",
        group: "options",
        method: Method::OPTIONS,
        path: "/diagnosiskeys",
        handler: || web::method(Method::OPTIONS).to(options::options),
    },
    Operation {
        name: operation::UPLOAD,
        group: "upload",
        method: Method::POST,
        path: "/diagnosiskeys/upload",
        handler: || web::post().to(upload::upload),
    },
    Operation {
        name: operation::WITHDRAW,
        group: "upload",
        method: Method::DELETE,
        path: "/diagnosiskeys/upload/{batchTag}",
        handler: || web::delete().to(withdrawal::withdraw),
    },
    Operation {
        name: operation::DOWNLOAD,
        group: "download",
        method: Method::GET,
        path: "/diagnosiskeys/download/{date}",
        handler: || web::get().to(download::download),
    },
    Operation {
        name: operation::AUDIT,
        group: "audit",
        method: Method::GET,
        path: "/diagnosiskeys/audit/download/{date}/{batchTag}",
        handler: || web::get().to(audit::audit),
    },
    Operation {
        name: "callback-list",
        group: "callback",
        method: Method::GET,
        path: "/diagnosiskeys/callback",
        handler: || web::get().to(callback::register::list),
    },
    Operation {
        name: "callback-put",
        group: "callback",
        method: Method::PUT,
        path: "/diagnosiskeys/callback/{id}",
        handler: || web::put().to(callback::register::put),
    },
    Operation {
        name: "callback-delete",
        group: "callback",
        method: Method::DELETE,
        path: "/diagnosiskeys/callback/{id}",
        handler: || web::delete().to(callback::register::delete),
    },
];

impl Operation {
    /// The operation of a request by its path and method. If only the path matches, the first one with that
    /// path.
    pub fn of(method: &Method, path: &str) -> Option<&'static Self> {
        let mut fitting = OPERATIONS.iter().filter(|operation| operation.fits(path));
        let first = fitting.clone().next();
        fitting.find(|operation| operation.method == method).or(first)
    }

    /// Its name, or the name for requests that match no operation.
    pub fn name(of: Option<&Self>) -> &'static str {
        of.map_or(OTHER, |operation| operation.name)
    }

    /// Its group.
    pub fn group(of: Option<&Self>) -> &'static str {
        of.map_or(OTHER, |operation| operation.group)
    }

    fn fits(&self, path: &str) -> bool {
        if self.takes_slashes() {
            let fixed = self.path.trim_end_matches("{batchTag}");
            return path.strip_prefix(fixed).is_some_and(|tag| !tag.is_empty());
        }
        let (parts, found) = (self.path.split('/'), path.split('/'));
        parts.clone().count() == found.clone().count()
            && parts
                .zip(found)
                .all(|(part, found)| part == found || (part.starts_with('{') && !found.is_empty()))
    }

    /// Whether the last part of the path may contain slashes, as an upload tag may.
    fn takes_slashes(&self) -> bool {
        self.path.ends_with("/upload/{batchTag}")
    }

    /// The path in the router's syntax.
    fn pattern(&self) -> String {
        if self.takes_slashes() {
            self.path.replace("{batchTag}", "{batchTag:.+}")
        } else {
            self.path.to_owned()
        }
    }
}

/// Every path of the table, with and without a slash at its end.
pub(super) fn routes(config: &mut ServiceConfig) {
    let mut scope = web::scope("").wrap(from_fn(observe::observe)).wrap(from_fn(trim_slash));
    for operations in OPERATIONS.chunk_by(|one, other| one.path == other.path) {
        let allow: &'static str = allow(operations);
        let mut resource = web::resource(operations.first().map(Operation::pattern).unwrap_or_default());
        for operation in operations {
            resource = resource.route((operation.handler)());
        }
        scope =
            scope.service(resource.default_service(web::to(move || refuse(NoOperation::Method { allow }))));
    }
    config.service(scope.default_service(web::to(|| refuse(NoOperation::Path))));
}

/// The methods of a path, for the header `Allow`.
fn allow(operations: &[Operation]) -> &'static str {
    let methods: Vec<&str> = operations.iter().map(|operation| operation.method.as_str()).collect();
    // Leaks a few bytes per worker, once.
    Box::leak(methods.join(",").into_boxed_str())
}

async fn refuse(problem: NoOperation) -> Result<HttpResponse, Error> {
    Err(problem.into())
}

/// Removes one slash from the end of the path, which the backends of some countries add. The rest stays as it
/// is, because slashes inside an upload tag are significant.
async fn trim_slash<B: MessageBody>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let uri = request.uri();
    if let Some(path) = uri.path().strip_suffix('/').filter(|path| !path.is_empty()) {
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        if let Ok(trimmed) = format!("{path}{query}").parse::<actix_web::http::Uri>() {
            request.match_info_mut().get_mut().update(&trimmed);
            request.head_mut().uri = trimmed;
        }
    }
    next.call(request).await
}

#[cfg(test)]
mod tests {
    use utoipa::OpenApi as _;

    use super::*;
    use crate::server::ApiDoc;

    #[test]
    fn the_table_has_the_paths_of_the_api_document() {
        let document: Vec<String> = ApiDoc::openapi().paths.paths.into_keys().collect();
        let mut table: Vec<&str> = OPERATIONS.iter().map(|operation| operation.path).collect();
        table.dedup();
        table.sort_unstable();
        assert_eq!(document, table);
    }

    #[test]
    fn a_request_is_named_by_path_and_method() {
        let name = |method: Method, path: &str| Operation::name(Operation::of(&method, path));
        for (method, path, expected) in [
            (Method::OPTIONS, "/diagnosiskeys", "options"),
            (Method::GET, "/diagnosiskeys/upload", "upload"),
            (Method::DELETE, "/diagnosiskeys/upload/a", "withdraw"),
            (Method::DELETE, "/diagnosiskeys/upload/a/b/", "withdraw"),
            (Method::DELETE, "/diagnosiskeys/upload//", "withdraw"),
            (Method::DELETE, "/diagnosiskeys/upload/", "other"),
            (Method::GET, "/diagnosiskeys/download/2026-11-22", "download"),
            (Method::GET, "/diagnosiskeys/audit/download/2026-11-22/a", "audit"),
            (Method::GET, "/diagnosiskeys/callback", "callback-list"),
            (Method::PUT, "/diagnosiskeys/callback/b", "callback-put"),
            (Method::DELETE, "/diagnosiskeys/callback/b", "callback-delete"),
            (Method::GET, "/diagnosiskeys/callback/b", "callback-put"),
            (Method::GET, "/", "other"),
            (Method::GET, "/diagnosiskeys/download", "other"),
            (Method::GET, "/diagnosiskeys/callback/a/b", "other"),
            (Method::GET, "/../etc", "other"),
        ] {
            assert_eq!(name(method.clone(), path), expected, "{method} {path}");
        }
    }
}
