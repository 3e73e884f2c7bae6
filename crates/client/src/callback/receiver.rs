//! A small server that the gateway calls (spec §5.6): mutual TLS, one caller, one question, an answer at once.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use efgs_protocol::{certificate::Certificate, signature::Identity};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{Announcement, pinned::Pinned};
use crate::connection;

/// Connections at once; further ones wait in the kernel's queue. The gateway opens one for each call.
const MAX_CONNECTIONS: usize = 32;
/// From a connection to its end, TLS included.
const MAX_TIME: Duration = Duration::from_secs(15);
/// For the TLS handshake. Short: whoever only connects must not keep the gateway out.
const MAX_HANDSHAKE: Duration = Duration::from_secs(3);
/// The head of a request. The gateway's has some hundred bytes.
const MAX_HEAD: usize = 8 << 10;

/// What happened at a [`Receiver`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiverEvent {
    /// The gateway announced a batch, and got the answer 200.
    Announced(Announcement),
    /// Somebody was turned away, or did not come to the point.
    TurnedAway {
        /// Who.
        peer: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// Listens for the gateway's calls. Who shows another certificate than the gateway's does not get beyond the
/// TLS handshake.
pub struct Receiver {
    listener: TcpListener,
    tls: TlsAcceptor,
    path: Arc<str>,
}

impl Receiver {
    /// Begins to listen. `identity` is the certificate that the operator registered as CALLBACK, with the
    /// server's name in it; `gateway` the certificates by which the gateway is known, several while it changes
    /// from one to the next; `path` that of the registered URL.
    ///
    /// # Errors
    /// When the certificates cannot be used or the address is not free.
    pub async fn bind(
        listen: SocketAddr,
        path: &str,
        identity: &Identity,
        gateway: Vec<Certificate>,
    ) -> Result<Self, ReceiverError> {
        if gateway.is_empty() {
            return Err(ReceiverError::NoGateway);
        }
        let tls = TlsAcceptor::from(Arc::new(config(identity, gateway)?));
        let listener =
            TcpListener::bind(listen).await.map_err(|error| ReceiverError::Listen(listen, error))?;
        Ok(Self { listener, tls, path: path.into() })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`; then finishes what is under way, for which there are time limits. `on_event` is
    /// called before the answer and must not wait: what takes time belongs elsewhere.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        on_event: impl Fn(ReceiverEvent) + Send + Sync + 'static,
    ) {
        let on_event: Arc<dyn Fn(ReceiverEvent) + Send + Sync> = Arc::new(on_event);
        let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut under_way = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepting = async {
                // Never closed.
                let place = free.clone().acquire_owned().await.ok();
                (place, self.listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = &mut stop => break,
                accepted = accepting => accepted,
            };
            while under_way.try_join_next().is_some() {}
            let Ok((tcp, peer)) = accepted else {
                // No more files, for example: others must end first.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (tls, path, on_event) = (self.tls.clone(), self.path.clone(), on_event.clone());
            under_way.spawn(async move {
                let serving = serve(tls, tcp, peer, path, &on_event);
                let reason = match timeout(MAX_TIME, serving).await {
                    Ok(Ok(())) => None,
                    Ok(Err(reason)) => Some(reason),
                    Err(_) => Some(format!("it took longer than {}s", MAX_TIME.as_secs())),
                };
                if let Some(reason) = reason {
                    on_event(ReceiverEvent::TurnedAway { peer, reason });
                }
                drop(place);
            });
        }
        drop(self.listener);
        under_way.join_all().await;
    }
}

async fn serve(
    tls: TlsAcceptor,
    tcp: TcpStream,
    peer: SocketAddr,
    path: Arc<str>,
    on_event: &Arc<dyn Fn(ReceiverEvent) + Send + Sync>,
) -> Result<(), String> {
    let stream = match timeout(MAX_HANDSHAKE, tls.accept(tcp)).await {
        Ok(accepted) => accepted.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("the TLS handshake took longer than {}s", MAX_HANDSHAKE.as_secs())),
    };
    let service = service_fn(|request: Request<Incoming>| {
        let answer = match judge(&request, &path) {
            Ok(announcement) => {
                on_event(ReceiverEvent::Announced(announcement));
                answer(StatusCode::OK, "")
            }
            Err((status, reason)) => {
                on_event(ReceiverEvent::TurnedAway { peer, reason: reason.to_owned() });
                answer(status, reason)
            }
        };
        async move { Ok::<_, Infallible>(answer) }
    });
    http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .timer(TokioTimer::new())
        .header_read_timeout(MAX_TIME)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|error| error.to_string())
}

fn judge(request: &Request<Incoming>, path: &str) -> Result<Announcement, (StatusCode, &'static str)> {
    if request.uri().path() != path {
        return Err((StatusCode::NOT_FOUND, "nothing is here"));
    }
    if request.method() != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "only GET is understood"));
    }
    Announcement::from_query(request.uri().query().unwrap_or_default())
        .map_err(|reason| (StatusCode::BAD_REQUEST, reason))
}

fn answer(status: StatusCode, text: &str) -> Response<String> {
    let mut answer = Response::new(text.to_owned());
    *answer.status_mut() = status;
    answer
}

fn config(identity: &Identity, gateway: Vec<Certificate>) -> Result<ServerConfig, ReceiverError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let unusable = |e: String| ReceiverError::Identity(e);
    let chain = connection::certificates(&identity.certificates_pem()).map_err(unusable)?;
    let key = identity.private_key_pem().map_err(|e| unusable(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| unusable(e.to_string()))?;
    ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable(e.to_string()))?
        .with_client_cert_verifier(Arc::new(Pinned::new(gateway, provider)))
        .with_single_cert(chain, key)
        .map_err(|e| unusable(e.to_string()))
}

/// Why a [`Receiver`] cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// Nobody could ever call.
    #[error("no certificate of the gateway is configured: every call would be rejected")]
    NoGateway,
    /// The server's own certificate or key cannot be used.
    #[error("the certificate of the callback server cannot be used: {0}")]
    Identity(String),
    /// The address cannot be listened at.
    #[error("cannot listen at {0}: {1}")]
    Listen(SocketAddr, io::Error),
}
