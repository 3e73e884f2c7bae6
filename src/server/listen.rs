//! The listener for national backends: connection limits, the handshake, and what is known of a connection
//! before its first request.

use std::{
    any::Any,
    fmt::Debug,
    io,
    net::{Shutdown, TcpListener},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix_http::{
    HttpServiceBuilder, Request, Response, TlsAcceptorConfig,
    body::{BoxBody, MessageBody},
    error::DispatchError,
};
use actix_server::{GracefulShutdownSignal, Server};
use actix_service::{IntoServiceFactory, Service, ServiceFactory, fn_factory, forward_ready, map_config};
use actix_tls::accept::{TlsError, rustls_0_23::TlsStream};
use actix_web::{
    App as ActixApp,
    dev::{AppConfig, Extensions, ServiceResponse},
    rt::net::TcpStream,
};

use futures_util::future::LocalBoxFuture;
use rustls::ProtocolVersion;

use super::{App, StartError, routes};
use crate::{
    limits::Arrival,
    telemetry::{self, InFlight, handshake::Handshake, refusal},
    trust::{PeerIdentity, TlsSetup},
};

/// The longest duration of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Bytes that are encrypted and written at once: as many as rustls takes, four TLS records.
const WRITE_BUFFER: usize = 64 << 10;
/// The longest wait before a handshake, for an address that opens too many connections.
const PATIENCE: Duration = Duration::from_secs(5);

/// Does what `HttpServer` of actix-web does, and checks the connection limits before the handshake, so that a
/// client that opens connections without end is stopped before it costs a signature.
pub(crate) fn national_server(
    app: &Arc<App>,
    tls: Option<&Arc<TlsSetup>>,
    listener: TcpListener,
) -> Result<Server, StartError> {
    let settings = &app.config.server;
    let address = settings.listen;
    let workers =
        settings.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from));
    let timeout = settings.request_timeout;
    let server = Server::build()
        .workers(workers)
        .max_concurrent_connections(settings.max_connections.div_ceil(workers))
        .shutdown_timeout(timeout.as_secs().max(1))
        .disable_signals();
    let stopping = server.graceful_shutdown_signal();
    let app = app.clone();
    let server = match tls {
        Some(tls) => {
            let tls = tls.server_config()?;
            server.listen("national", listener, move || {
                let service = builder(&app, stopping.clone()).finish(answers(app.clone()));
                let handshake = TlsAcceptorConfig::default().handshake_timeout(timeout.min(HANDSHAKE));
                guarded(service.rustls_0_23_with_config(tls.clone(), handshake), app.clone())
            })
        }
        None => server.listen("national", listener, move || {
            builder(&app, stopping.clone()).finish(answers(app.clone())).tcp()
        }),
    };
    Ok(server.map_err(|source| StartError::Listen { key: "listen", address, source })?.run())
}

/// How requests are read from a connection.
fn builder<T, S>(app: &Arc<App>, stopping: GracefulShutdownSignal) -> HttpServiceBuilder<T, S>
where
    T: 'static,
    S: ServiceFactory<Request, Config = ()>,
    S::Error: Into<Response<BoxBody>> + 'static,
    S::InitError: Debug,
    <S::Service as Service<Request>>::Future: 'static,
{
    let app = app.clone();
    HttpServiceBuilder::default()
        .graceful_shutdown_signal(move || {
            let stopping = stopping.clone();
            async move { stopping.notified().await }
        })
        .keep_alive(Duration::from_secs(75))
        .client_request_timeout(app.config.server.request_timeout)
        .client_disconnect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .h1_write_buffer_size(WRITE_BUFFER)
        .on_connect_ext(move |connection: &T, extensions: &mut Extensions| {
            prepare(&app, connection, extensions);
        })
}

/// The HTTP service behind the handshake.
fn answers(
    app: Arc<App>,
) -> impl ServiceFactory<
    Request,
    Config = (),
    Response = ServiceResponse<impl MessageBody>,
    Error = actix_web::Error,
    InitError = (),
> {
    let routes = ActixApp::new().configure(|config| app.provide(config)).configure(routes::routes);
    map_config(routes.into_factory(), |()| AppConfig::default())
}

/// Why a connection ended with an error.
type Failure = TlsError<io::Error, DispatchError>;

/// The service behind the connection limits.
fn guarded<F>(
    service: F,
    app: Arc<App>,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = Failure, InitError = F::InitError>
where
    F: ServiceFactory<TcpStream, Config = (), Response = (), Error = Failure>,
    F::Service: 'static,
    F::Future: 'static,
{
    fn_factory(move || {
        let (service, app) = (service.new_service(()), app.clone());
        async move { Ok(Guarded { service: Rc::new(service.await?), app }) }
    })
}

struct Guarded<S> {
    service: Rc<S>,
    app: Arc<App>,
}

impl<S> Service<TcpStream> for Guarded<S>
where
    S: Service<TcpStream, Response = (), Error = Failure> + 'static,
{
    type Response = ();
    type Error = Failure;
    type Future = LocalBoxFuture<'static, Result<(), Failure>>;

    forward_ready!(service);

    fn call(&self, stream: TcpStream) -> Self::Future {
        // Without an address the peer has already disconnected.
        let Ok(peer) = stream.peer_addr() else { return Box::pin(std::future::ready(Ok(()))) };
        let peer = peer.ip().to_canonical();
        let arrival = self.app.limits.arrive(peer, PATIENCE);
        let service = self.service.clone();
        Box::pin(async move {
            let _open = match arrival {
                Arrival::Refused => return Ok(()),
                Arrival::Free => None,
                Arrival::Counted(open, wait) => {
                    if !wait.is_zero() {
                        tokio::time::sleep(wait).await;
                    }
                    Some(open)
                }
            };
            let ended = service.call(stream).await;
            match &ended {
                Err(TlsError::Tls(error)) => refusal::handshake(peer, Some(error)),
                Err(TlsError::Timeout) => refusal::handshake(peer, None),
                Err(TlsError::Service(_)) | Ok(()) => {}
            }
            ended
        })
    }
}

/// Counts the connection, reads its client certificate once, and closes connections above the country's limit.
fn prepare(app: &Arc<App>, connection: &dyn Any, extensions: &mut Extensions) {
    let (tcp, session) = match connection.downcast_ref::<TlsStream<TcpStream>>() {
        Some(stream) => {
            let (tcp, session) = stream.get_ref();
            (tcp, Some(session))
        }
        None => match connection.downcast_ref::<TcpStream>() {
            Some(tcp) => (tcp, None),
            None => return,
        },
    };
    let socket = socket2::SockRef::from(tcp);
    // Frees the connection and its buffers if the client stops reading.
    if let Err(error) = socket.set_tcp_user_timeout(Some(app.config.server.request_timeout)) {
        tracing::debug!(%error, "a connection has no time limit for unread data");
    }
    extensions.insert(InFlight::new(metrics::gauge!(telemetry::CONNECTIONS)));
    let version = match session.map(|session| session.protocol_version()) {
        Some(Some(ProtocolVersion::TLSv1_3)) => "1.3",
        Some(_) => "1.2",
        None => "none",
    };
    metrics::counter!(telemetry::CONNECTIONS_MADE, "tls" => version).increment(1);
    if let Some(took) = telemetry::handshake::end() {
        extensions.insert(Handshake::new(took, version));
    }
    // Behind a load balancer each request may belong to another country.
    let Some(session) = session else { return };
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let identity = leaf.and_then(|leaf| PeerIdentity::from_der(leaf));
    let caller = identity.as_ref().and_then(|identity| app.admission.caller(identity).ok());
    match app.limits.enter(caller.map(|caller| caller.country)) {
        Some(open) => drop(extensions.insert(open)),
        None => {
            if let Err(error) = socket.shutdown(Shutdown::Both) {
                tracing::debug!(%error, "a connection was closed by its other side");
            }
        }
    }
    if let Some(identity) = identity {
        extensions.insert(identity);
    }
}
