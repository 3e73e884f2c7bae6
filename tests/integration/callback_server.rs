//! A national backend that is called back, and can behave badly.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use efgs_gateway::{config::Tls, trust::TlsSetup};
use efgs_test_ca::Identity;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::harness::PKI;

/// What it does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    Answer(u16),
    Redirect(String),
    /// Never says anything, until [`CallbackServer::hang_up`].
    Hang,
    /// Closes without an answer.
    Close,
    /// Says more than anybody wants to read.
    Flood,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    tls: Mutex<TlsAcceptor>,
    /// The only client certificate that is let in.
    client: Mutex<Vec<u8>>,
    /// Request lines, in order, with the User-Agent behind them.
    calls: Mutex<Vec<(String, String)>>,
    connections: AtomicUsize,
    hung_up: Notify,
}

pub(crate) struct CallbackServer {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Drop for CallbackServer {
    fn drop(&mut self) {
        self.accepting.abort();
        // No gateway that stops needs to wait.
        self.hang_up();
    }
}

fn acceptor(identity: &Identity) -> TlsAcceptor {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, private_key) = (folder.path().join("c.pem"), folder.path().join("c.key"));
    std::fs::write(&certificate, identity.certificate.pem()).unwrap();
    std::fs::write(&private_key, &identity.key_pem).unwrap();
    // It requires a client certificate, as the gateway itself does.
    let setup = TlsSetup::load(&Tls { certificate, private_key, client_ca: None }).unwrap();
    TlsAcceptor::from(Arc::new(setup.server_config().unwrap()))
}

impl CallbackServer {
    pub(crate) async fn start(identity: &Identity, behaviour: Behaviour) -> Self {
        Self::start_on("127.0.0.1".parse().unwrap(), identity, behaviour).await
    }

    pub(crate) async fn start_on(ip: IpAddr, identity: &Identity, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            tls: Mutex::new(acceptor(identity)),
            client: Mutex::new(PKI.callback_client.certificate.der().to_vec()),
            calls: Mutex::default(),
            connections: AtomicUsize::new(0),
            hung_up: Notify::new(),
        });
        let serving = shared.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                serving.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(serving.clone(), tcp));
            }
        });
        Self { address, shared, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}/notify", self.address)
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    /// Ends the calls that hang.
    pub(crate) fn hang_up(&self) {
        self.shared.hung_up.notify_waiters();
    }

    pub(crate) fn show(&self, identity: &Identity) {
        *self.shared.tls.lock().unwrap() = acceptor(identity);
    }

    pub(crate) fn accept_client(&self, client: &[u8]) {
        *self.shared.client.lock().unwrap() = client.to_vec();
    }

    /// Values of `batchTag`, in the order of the requests.
    pub(crate) fn tags(&self) -> Vec<String> {
        let tag = |line: &str| line.split("batchTag=").nth(1).unwrap().split('&').next().unwrap().to_owned();
        self.calls().iter().map(|(line, _)| tag(line)).collect()
    }

    pub(crate) fn calls(&self) -> Vec<(String, String)> {
        self.shared.calls.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

/// Errors are the caller's, who was tested for them.
async fn serve(shared: Arc<Shared>, tcp: TcpStream) -> Option<()> {
    let tls = shared.tls.lock().unwrap().clone();
    let mut stream = tls.accept(tcp).await.ok()?;
    let client = stream.get_ref().1.peer_certificates()?.first()?.to_vec();
    assert_eq!(client, *shared.client.lock().unwrap(), "another client certificate than the gateway's");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let header = |name: &str| {
        let line = head.lines().find_map(|line| line.to_lowercase().strip_prefix(name).map(str::to_owned));
        line.unwrap_or_default()
    };
    assert!(!header("host: ").is_empty());
    let call = (head.lines().next().unwrap().to_owned(), header("user-agent: "));
    let behaviour = shared.behaviour.lock().unwrap().clone();
    shared.calls.lock().unwrap().push(call);
    let answer = match behaviour {
        Behaviour::Answer(status) => format!("HTTP/1.1 {status} x\r\nContent-Length: 2\r\n\r\nok"),
        Behaviour::Redirect(to) => {
            format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")
        }
        Behaviour::Hang => {
            let mut byte = [0];
            tokio::select! {
                _ = stream.read_exact(&mut byte) => {}
                () = shared.hung_up.notified() => {}
            }
            return None;
        }
        Behaviour::Close => return None,
        Behaviour::Flood => format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1 << 20)),
    };
    stream.write_all(answer.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}
