//! The listener for national backends: connection limits, the handshake, and what is known of a connection
//! before its first request.

use std::{
    net::{IpAddr, Shutdown, SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix_http::{HttpServiceBuilder, Request, body::MessageBody, error::DispatchError};
use actix_server::Server;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, fn_factory, forward_ready, map_config};
use actix_web::{
    App as ActixApp,
    dev::{AppConfig, Extensions, ServiceResponse},
    rt::net::TcpStream,
};

use futures_util::future::LocalBoxFuture;
use rustls::ProtocolVersion;
use tokio_rustls::TlsAcceptor;

use super::{
    App, StartError,
    connection::{Connection, KEEP_ALIVE, Transport},
    routes,
};
use crate::{
    limits::{Arrival, Open},
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
    let tls = match tls {
        Some(tls) => {
            let mut config = tls.server_config()?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Some(TlsAcceptor::from(Arc::new(config)))
        }
        None => None,
    };
    let server = server.listen("national", listener, move || {
        let (app, tls, stopping) = (app.clone(), tls.clone(), stopping.clone());
        fn_factory(move || {
            let (app, tls, connected) = (app.clone(), tls.clone(), app.clone());
            let stopping = stopping.clone();
            let http = HttpServiceBuilder::default()
                .graceful_shutdown_signal(move || {
                    let stopping = stopping.clone();
                    async move { stopping.notified().await }
                })
                .keep_alive(KEEP_ALIVE)
                .client_request_timeout(timeout)
                .client_disconnect_timeout(Duration::from_secs(1))
                .h1_write_buffer_size(WRITE_BUFFER)
                .on_connect_ext(move |connection: &Connection, extensions: &mut Extensions| {
                    prepare(&connected, connection, extensions);
                })
                .h1(answers(app.clone()))
                .new_service(());
            async move { Ok::<_, ()>(Connections { http: Rc::new(http.await?), app, tls }) }
        })
    });
    Ok(server.map_err(|source| StartError::Listen { key: "listen", address, source })?.run())
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

/// Takes connections: limits, handshake, requests.
struct Connections<S> {
    http: Rc<S>,
    app: Arc<App>,
    tls: Option<TlsAcceptor>,
}

impl<S> Service<TcpStream> for Connections<S>
where
    S: Service<(Connection, Option<SocketAddr>), Response = (), Error = DispatchError> + 'static,
{
    type Response = ();
    type Error = DispatchError;
    type Future = LocalBoxFuture<'static, Result<(), DispatchError>>;

    forward_ready!(http);

    fn call(&self, stream: TcpStream) -> Self::Future {
        // Without an address the peer has already disconnected.
        let Ok(peer) = stream.peer_addr() else { return Box::pin(std::future::ready(Ok(()))) };
        let (http, app, tls) = (self.http.clone(), self.app.clone(), self.tls.clone());
        Box::pin(async move {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection may delay small packets");
            }
            let timeout = app.config.server.request_timeout;
            let (transport, _open) = match tls {
                // The connections are the load balancer's.
                None => (Transport::Plain(stream), None),
                Some(tls) => {
                    let Some((stream, open)) =
                        shake_hands(&app, &tls, stream, peer.ip().to_canonical()).await
                    else {
                        return Ok(());
                    };
                    (stream, open)
                }
            };
            http.call((Connection::new(transport, timeout), Some(peer))).await
        })
    }
}

/// Does the handshake within the limits, and counts the connection; `None` if it is over.
async fn shake_hands(
    app: &App,
    tls: &TlsAcceptor,
    stream: TcpStream,
    peer: IpAddr,
) -> Option<(Transport, Option<Open>)> {
    let (open, wait) = match app.limits.arrive(peer, PATIENCE) {
        Arrival::Refused => return None,
        Arrival::Free => (None, Duration::ZERO),
        Arrival::Counted(open, wait) => (Some(open), wait),
    };
    let unfinished = app.limits.begin_handshake();
    let handshake = async {
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let timeout = app.config.server.request_timeout.min(HANDSHAKE);
        tokio::time::timeout(timeout, tls.accept(stream)).await
    };
    match unfinished.unless_displaced(handshake).await? {
        Ok(Ok(stream)) => return Some((Transport::Tls(Box::new(stream)), open)),
        Ok(Err(error)) => refusal::handshake(peer, Some(&error)),
        Err(_) => refusal::handshake(peer, None),
    }
    None
}

/// Counts the connection, reads its client certificate once, and closes connections above the country's limit.
fn prepare(app: &Arc<App>, connection: &Connection, extensions: &mut Extensions) {
    let (tcp, session) = match connection.transport() {
        Transport::Tls(stream) => {
            let (tcp, session) = stream.get_ref();
            (tcp, Some(session))
        }
        Transport::Plain(tcp) => (tcp, None),
    };
    extensions.insert(connection.conversation());
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
    let country = identity.as_ref().and_then(|identity| app.admission.country(identity));
    match app.limits.enter(country) {
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
