//! Wraps every request: an id, one log line, metrics, the access log, and the answer for errors.

use std::{sync::Arc, time::Instant};

use actix_web::{
    HttpMessage,
    body::{BodySize, EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        ConnectionType,
        header::{HeaderName, HeaderValue},
    },
    middleware::Next,
    web::Data,
};
use efgs_protocol::country::Country;
use efgs_protocol::random;
use metrics::{counter, gauge, histogram};
use tracing::{Instrument as _, field::Empty, trace_span};

use super::{connection::Conversation, routes::Operation};
use crate::{
    access_log::{AccessLog, Trail},
    clock::Clock,
    http::{Began, Code, Error, Problem},
    instance::Instance,
    telemetry::{self, InFlight, handshake::Handshake, refusal},
    trust::{Admission, known_caller},
};

/// The request cannot be recorded in the access log. Requests that are not recorded are not served.
#[derive(Debug, thiserror::Error)]
#[error("the request could not be written to the access log")]
struct Unrecorded;

impl Problem for Unrecorded {
    fn code(&self) -> Code {
        Code::Unavailable
    }
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What observing a request needs.
#[derive(Clone, Debug)]
pub(super) struct Observer {
    pub(super) access_log: Arc<AccessLog>,
    pub(super) admission: Admission,
    pub(super) clock: Clock,
    pub(super) instance: Instance,
}

pub(super) async fn observe<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let conversation = request.conn_data::<Conversation>().cloned();
    if conversation.as_ref().is_some_and(Conversation::is_over) {
        // Neither served nor recorded: the connection ends when the answer before it is out.
        std::future::pending::<()>().await;
    }
    let started = Instant::now();
    if let Some(conversation) = &conversation {
        request.extensions_mut().insert(Began(conversation.request()));
    }
    let id = random::hex::<8>();
    let app = request.app_data::<Data<Observer>>().cloned();
    let found = Operation::of(request.method(), request.path());
    let operation = Operation::group(found);
    let peer = request.peer_addr().map(|peer| peer.ip().to_canonical());
    let _in_flight = InFlight::new(gauge!(telemetry::REQUESTS_IN_FLIGHT, "operation" => operation));
    let trail = app.as_ref().map(|app| {
        let queue = app.access_log.queue();
        let place = (Operation::name(found), found.map(|operation| operation.path));
        let trail = Trail::begin(queue, id.clone(), app.clock.now(), request.method().as_str(), place);
        trail.note(|facts| facts.thumbprint = app.admission.shown_certificate(request.request()));
        Arc::new(trail)
    });
    if let Some(trail) = &trail {
        request.extensions_mut().insert(trail.clone());
    }
    let span = trace_span!(
        target: telemetry::SPANS,
        "request",
        otel.name = operation,
        otel.kind = "server",
        otel.status_code = Empty,
        instance = app.as_ref().map(|app| app.instance.id.as_str()),
        request_id = id,
        caller = Empty,
        http.request.method = request.method().as_str(),
        http.response.status_code = Empty,
    );
    if !span.is_disabled() {
        let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        telemetry::link(&span, traceparent);
        if let (Some(handshake), Some(app)) = (request.conn_data::<Handshake>(), &app) {
            handshake.tell(&span, app.clock.now());
        }
    }
    let response = next.call(request).instrument(span.clone()).await?;

    let failed = response.response().error().and_then(|error| error.as_error::<Error>());
    let mut reason = failed.map(ToString::to_string);
    let code = failed.map(|error| error.code().text());
    if let Some(limit) = failed.and_then(Error::limit) {
        limit.note();
    }
    let answer = match (failed, &app) {
        (Some(error), Some(app)) => Some(error.respond(&id, app.clock.now())),
        _ => None,
    };
    let mut response = match answer {
        Some(answer) => response.into_response(answer).map_into_right_body(),
        None => response.map_into_left_body(),
    };
    let caller = known_caller(response.request());
    let unregistered =
        caller.is_none() && !app.as_ref().is_some_and(|app| app.admission.may_know(response.request()));
    let mut received = 0;
    if let (Some(trail), Some(app)) = (&trail, &app) {
        let bytes = match response.response().body().size() {
            BodySize::Sized(bytes) => bytes,
            BodySize::None | BodySize::Stream => 0,
        };
        trail.note(|facts| received = facts.request_bytes);
        let (status, error) = (response.status().as_u16(), code.clone().map(Into::into));
        // The record comes before the answer.
        let recorded = if unregistered {
            app.admission.delay_unregistered().await;
            trail.count(status, error, bytes)
        } else {
            let recording = trace_span!(target: telemetry::SPANS, parent: &span, "access log");
            trail.end(status, error, bytes).instrument(recording).await
        };
        if !recorded {
            reason = Some(Unrecorded.to_string());
            let answer = Error::from(Unrecorded).respond(&id, app.clock.now());
            response = response.into_response(answer).map_into_right_body();
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }

    let status = response.status();
    // Rejected callers must not keep connections, because these are limited. And the HTTP library would read a chunked
    // body to its end, which the sender decides.
    let unread = received == 0 && response.request().chunked().unwrap_or(false);
    if unregistered || unread {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
        conversation.iter().for_each(Conversation::end);
    }
    conversation.iter().for_each(Conversation::answered);
    let caller = caller.as_ref().map_or("-", Country::as_str);
    if let Some(code) = code.filter(|_| status.is_client_error()) {
        let labels = [("country", caller.to_owned()), ("operation", operation.to_owned()), ("code", code)];
        counter!(telemetry::REFUSED, &labels).increment(1);
    }
    span.record("caller", caller);
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    let seconds = started.elapsed().as_secs_f64();
    counter!(telemetry::REQUESTS, "operation" => operation, "status" => status.as_u16().to_string())
        .increment(1);
    histogram!(telemetry::REQUEST_SECONDS, "operation" => operation).record(seconds);
    let bytes = |name, bytes| {
        counter!(name, "country" => caller.to_owned(), "operation" => operation).increment(bytes)
    };
    bytes(telemetry::REQUEST_BYTES, received);
    if let BodySize::Sized(size) = response.response().body().size() {
        bytes(telemetry::RESPONSE_BYTES, size);
    }
    let status_code = status.as_u16();
    match reason {
        // Anyone can send these: the same line is written once a minute.
        Some(reason) if unregistered && !status.is_server_error() => refusal::caller(peer, &id, &reason),
        Some(reason) if unregistered && !refusal::failure(&reason) => {}
        Some(reason) if status.is_server_error() => {
            tracing::error!(
                request_id = id,
                operation,
                caller,
                status = status_code,
                seconds,
                reason,
                "a request failed"
            );
        }
        Some(reason) => {
            tracing::info!(
                request_id = id,
                operation,
                caller,
                status = status_code,
                seconds,
                reason,
                "a request was refused"
            );
        }
        None => tracing::debug!(
            request_id = id,
            operation,
            caller,
            status = status_code,
            seconds,
            "a request was answered"
        ),
    }
    Ok(response)
}
