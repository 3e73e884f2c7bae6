//! The admin listener: the operator's page, health, metrics and the API document. It has no authentication and
//! must never be public.

use std::sync::Arc;

use actix_web::{
    HttpResponse,
    http::header,
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
