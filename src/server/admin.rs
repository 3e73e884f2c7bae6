//! The admin listener: the operator's page, health, metrics and the API document. It has no authentication and
//! must never be public. It answers only when it is asked by an address, a name without a dot, or one of
//! `server.admin_hosts`: a web page from outside could otherwise read it with the operator's browser, under a name
//! of its own that resolves to this address.

use std::sync::Arc;

use actix_web::{
    HttpResponse,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header,
    middleware::Next,
    web::{self, ServiceConfig},
};
use serde::Serialize;
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use super::{
    ApiDoc, App, Readiness, collect,
    overview::{self, Overview},
};

/// The answer of `GET /health/ready`.
#[derive(Debug, Serialize)]
struct Answer {
    status: &'static str,
    reasons: Vec<String>,
    /// Warnings: these do not make the instance unready.
    warnings: Vec<String>,
}

/// Refuses what is asked by a foreign name.
pub(super) async fn check_host<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let allowed = |host: &str| {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_matches(['[', ']']).trim_end_matches('.');
        let listed = |app: &web::Data<App>| {
            app.config.server.admin_hosts.iter().any(|listed| listed.eq_ignore_ascii_case(name))
        };
        !name.contains('.')
            || name.parse::<std::net::IpAddr>().is_ok()
            || request.app_data::<web::Data<App>>().is_some_and(listed)
    };
    // Without Host it is no browser.
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("."));
    if host.is_none_or(allowed) {
        return Ok(next.call(request).await?.map_into_left_body());
    }
    let text = "This name is not known: ask by address, or add the name to `server.admin_hosts`.\n";
    let answer = HttpResponse::MisdirectedRequest()
        .insert_header((header::CONTENT_TYPE, "text/plain; charset=utf-8"))
        .body(text);
    Ok(request.into_response(answer).map_into_right_body())
}

/// Routes of the admin listener.
pub(super) fn configure(config: &mut ServiceConfig) {
    config
        .route(
            "/health/live",
            web::get().to(|| async {
                HttpResponse::Ok().json(Answer { status: "up", reasons: vec![], warnings: vec![] })
            }),
        )
        .route("/health/ready", web::get().to(ready))
        .route("/metrics", web::get().to(metrics))
        .route("/", web::get().to(page))
        .route("/overview.json", web::get().to(overview_json))
        .route(
            "/swagger",
            web::get().to(|| async {
                HttpResponse::Found().insert_header((header::LOCATION, "/swagger/")).finish()
            }),
        )
        .service(SwaggerUi::new("/swagger/{_:.*}").url("/openapi.json", ApiDoc::openapi()));
}

async fn ready(app: web::Data<App>) -> HttpResponse {
    let readiness = app.readiness(app.config.database.timeout * 2).await;
    let status = readiness.status();
    let Readiness { reasons, warnings, .. } = readiness;
    let warnings = warnings.into_iter().map(|warning| warning.text).collect();
    // A load balancer goes on sending readers to an instance that serves only them.
    let mut response = if status == "down" { HttpResponse::ServiceUnavailable() } else { HttpResponse::Ok() };
    response.json(Answer { status, reasons, warnings })
}

/// The operator's page.
async fn page(app: web::Data<App>) -> HttpResponse {
    match look(app).await {
        Ok(overview) => HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, "text/html; charset=utf-8"))
            .insert_header((header::CONTENT_SECURITY_POLICY, overview::content_security_policy()))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((header::X_FRAME_OPTIONS, "DENY"))
            .insert_header((header::REFERRER_POLICY, "no-referrer"))
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .body(overview::page(&overview)),
        Err(answer) => answer,
    }
}

/// The operator's page as JSON.
async fn overview_json(app: web::Data<App>) -> HttpResponse {
    match look(app).await {
        Ok(overview) => {
            HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(&*overview)
        }
        Err(answer) => answer,
    }
}

/// The answer may include the reason: only the operator reaches this listener.
async fn look(app: web::Data<App>) -> Result<Arc<Overview>, HttpResponse> {
    let looking = app.clone().into_inner();
    let reason = match app.workers.run(async move { looking.overview.look(&looking).await }).await {
        Ok(Ok(overview)) => return Ok(overview),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let text =
        format!("The overview is not available: {reason}.\nThe state of this instance: /health/ready\n");
    Err(HttpResponse::ServiceUnavailable()
        .insert_header((header::CONTENT_TYPE, "text/plain; charset=utf-8"))
        .body(text))
}

async fn metrics(app: web::Data<App>) -> HttpResponse {
    collect::collect(&app).await;
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
        .body(app.metrics())
}
