//! What the API takes (contract: `OPTIONS /diagnosiskeys`).

use actix_web::HttpResponse;
use efgs_protocol::media::{Format, MediaType, SUPPORTED};

use crate::http::reply;

/// Says which methods and formats there are. Needs a client certificate, as every connection does, but not one
/// of a country.
#[utoipa::path(
    options,
    path = "/diagnosiskeys",
    tag = "options",
    responses((status = 200, description = "The methods and formats that the gateway takes.", headers(
        ("Allow" = String, description = "POST,GET,OPTIONS"),
        ("Accept" = String, description = "application/json; version=1.0, application/protobuf; version=1.0"),
    )))
)]
pub async fn options() -> HttpResponse {
    let accept =
        [Format::Json, Format::Protobuf].map(|format| MediaType { format, version: SUPPORTED }.to_string());
    reply::options("POST,GET,OPTIONS", accept.join(", "))
}
