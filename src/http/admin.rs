//! The admin listener: health, metrics and the API document. It has no authentication and is never public.

use actix_web::{
    HttpResponse,
    http::header,
    web::{self, ServiceConfig},
};
use serde::Serialize;
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use super::ApiDoc;
use crate::{app::App, health::Readiness, telemetry};

/// Whether the gateway can do its work, as `GET /health/ready` says it.
#[derive(Debug, Serialize)]
struct Answer {
    status: &'static str,
    reasons: Vec<String>,
    /// What is no reason yet.
    warnings: Vec<String>,
}

/// Routes of the admin listener.
pub fn configure(config: &mut ServiceConfig) {
    config
        .route(
            "/health/live",
            web::get().to(|| async {
                HttpResponse::Ok().json(Answer { status: "up", reasons: vec![], warnings: vec![] })
            }),
        )
        .route("/health/ready", web::get().to(ready))
        .route("/metrics", web::get().to(metrics))
        .route(
            "/",
            web::get().to(|| async {
                HttpResponse::Found().insert_header((header::LOCATION, "/swagger/")).finish()
            }),
        )
        .route(
            "/swagger",
            web::get().to(|| async {
                HttpResponse::Found().insert_header((header::LOCATION, "/swagger/")).finish()
            }),
        )
        .service(SwaggerUi::new("/swagger/{_:.*}").url("/openapi.json", ApiDoc::openapi()));
}

async fn ready(app: web::Data<App>) -> HttpResponse {
    let app = app.into_inner();
    let Readiness { reasons, warnings, .. } = app.readiness(app.config.database.timeout * 2).await;
    if reasons.is_empty() {
        HttpResponse::Ok().json(Answer { status: "up", reasons, warnings })
    } else {
        HttpResponse::ServiceUnavailable().json(Answer { status: "down", reasons, warnings })
    }
}

async fn metrics(app: web::Data<App>) -> HttpResponse {
    telemetry::collect(&app.clone().into_inner()).await;
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
        .body(app.metrics())
}
