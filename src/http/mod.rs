//! HTTP: from typed errors to answers, limits, routes, the API document and the admin listener. The only
//! place that knows status codes.

mod admin;
mod api;
mod body;
mod error;
mod observe;
pub mod reply;

use actix_web::{
    HttpRequest,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::{Next, from_fn},
    web::{self, ServiceConfig},
};
use efgs_protocol::wire;

pub use admin::configure as configure_admin;
pub use api::{ApiDoc, DiagnosisKeyBatch, Gone, document, example_audit, example_batch};
pub use body::{BodyError, read_body};
pub use error::{Code, Error, ErrorBody};
pub use observe::{OPERATIONS, note, note_caller, trail};

/// The national side: every path, each also with a slash behind it.
pub fn routes(config: &mut ServiceConfig) {
    config.service(
        web::scope("")
            .wrap(from_fn(observe::observe))
            .wrap(from_fn(trim_slash))
            .service(
                web::resource(wire::ROOT_PATH)
                    .route(web::method(actix_web::http::Method::OPTIONS).to(crate::options::options))
                    .default_service(web::to(|| reply::method_not_allowed("OPTIONS"))),
            )
            .service(
                web::resource(wire::UPLOAD_PATH)
                    .route(web::post().to(crate::upload::upload))
                    .default_service(web::to(|| reply::method_not_allowed("POST"))),
            )
            .service(
                // A tag may have slashes in it.
                web::resource([wire::UPLOAD_PATH, "/{batchTag:.+}"].concat())
                    .route(web::delete().to(crate::withdrawal::withdraw))
                    .default_service(web::to(|| reply::method_not_allowed("DELETE"))),
            )
            .service(
                web::resource([wire::DOWNLOAD_PATH, "/{date}"].concat())
                    .route(web::get().to(crate::download::download))
                    .default_service(web::to(|| reply::method_not_allowed("GET"))),
            )
            .service(
                web::resource([wire::AUDIT_PATH, "/{date}/{batchTag}"].concat())
                    .route(web::get().to(crate::audit::audit))
                    .default_service(web::to(|| reply::method_not_allowed("GET"))),
            )
            .service(
                web::resource(wire::CALLBACK_PATH)
                    .route(web::get().to(crate::callback::register::list))
                    .default_service(web::to(|| reply::method_not_allowed("GET"))),
            )
            .service(
                web::resource([wire::CALLBACK_PATH, "/{id}"].concat())
                    .route(web::put().to(crate::callback::register::put))
                    .route(web::delete().to(crate::callback::register::delete))
                    .default_service(web::to(|| reply::method_not_allowed("PUT,DELETE"))),
            )
            .default_service(web::to(|| async { Err::<actix_web::HttpResponse, _>(Error::NoSuchPath) })),
    );
}

/// Takes one slash off the end of the path: backends of some countries put one there. Nothing else of the path
/// is touched, because slashes inside an upload tag count.
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

/// A request header as text, or why it cannot be used.
pub fn header<'a>(request: &'a HttpRequest, name: &'static str) -> Result<Option<&'a str>, HeaderError> {
    let mut values = request.headers().get_all(name);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(HeaderError::Repeated(name));
    }
    value.to_str().map(|text| Some(text.trim())).map_err(|_| HeaderError::NotText(name))
}

/// A request header that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It has to be there.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// It is there more than once.
    #[error("the header {0} is there more than once")]
    Repeated(&'static str),
    /// It has characters other than visible ASCII.
    #[error("the header {0} has characters that are not visible ASCII")]
    NotText(&'static str),
}
