//! A connection of the national side: what is read from it, and until when.
//!
//! The HTTP library reads for as long as the peer sends: it serves requests that were sent before the answer that
//! closes the connection, drains bodies without end, and waits for the rest of a second request's head without a
//! time limit. This stream bounds all three.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use actix_web::rt::net::TcpStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};
use tokio_rustls::server::TlsStream;

/// How long a connection without a request is kept.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a peer has to read its last answer, and how much of what it still sends is thrown away meanwhile: a
/// connection that is closed with unread data may lose the answer.
const LINGER: Duration = Duration::from_secs(1);
const THROWN_AWAY: usize = 256 * 1024;

/// The answer to a request whose head is not complete in time.
const TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// The answer to a request whose body is framed wrongly.
const MALFORMED: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 85\r\nconnection: close\r\n\r\n{\"message\":\"the body ended early or is not framed correctly\",\"code\":\"malformed-body\"}";

/// What the requests of a connection tell its stream. In `conn_data` of every request.
#[derive(Clone, Debug, Default)]
pub(super) struct Conversation(Rc<State>);

#[derive(Debug, Default)]
struct State {
    /// Nothing more is read; the connection closes when the answer is out.
    over: Cell<bool>,
    /// Requests of which the head was read.
    requests: Cell<u64>,
    /// Whether one of them has no answer yet.
    serving: Cell<bool>,
    /// When the first byte of the request arrived whose head is being read.
    began: Cell<Option<Instant>>,
}

impl Conversation {
    /// Whether the answer that ends the connection has been given: a request that was sent behind it is not served.
    pub(super) fn is_over(&self) -> bool {
        self.0.over.get()
    }

    /// Ends the connection with the answer that is given next.
    pub(super) fn end(&self) {
        self.0.over.set(true);
    }

    /// The head of a request was read. Returns when its first byte arrived.
    pub(super) fn request(&self) -> Instant {
        self.0.requests.set(self.0.requests.get() + 1);
        self.0.serving.set(true);
        self.0.began.take().unwrap_or_else(Instant::now)
    }

    /// The request was answered; its body may still be on its way.
    pub(super) fn answered(&self) {
        self.0.serving.set(false);
    }
}

/// The bytes below HTTP.
pub(super) enum Transport {
    /// Behind a load balancer.
    Plain(TcpStream),
    /// TLS ends here.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection, as the HTTP library reads it.
pub(super) struct Connection {
    transport: Transport,
    conversation: Conversation,
    /// `server.request_timeout`.
    timeout: Duration,
    wait: Wait,
    timer: Pin<Box<Sleep>>,
    /// The number of requests when the timer was set.
    seen: u64,
    /// Whether the peer has not taken all that was written.
    blocked: bool,
    /// Whether the peer has closed the connection.
    gone: bool,
    /// What was thrown away, once the connection has been closed for writing.
    closed: Option<usize>,
}

/// What the timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// For a request, or for the peer to read its answer.
    Idle,
    /// For the rest of a request's head.
    Head,
}

impl Connection {
    pub(super) fn new(transport: Transport, timeout: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(KEEP_ALIVE + timeout));
        let conversation = Conversation::default();
        Self {
            transport,
            conversation,
            timeout,
            wait: Wait::Idle,
            timer,
            seen: 0,
            blocked: false,
            gone: false,
            closed: None,
        }
    }

    /// What its requests tell it.
    pub(super) fn conversation(&self) -> Conversation {
        self.conversation.clone()
    }

    /// The bytes below HTTP.
    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Writes a last answer, if the connection takes it at once.
    fn end_with(&mut self, context: &mut Context<'_>, answer: &[u8]) {
        // The peer may not read it; then nothing can be done.
        let _ = Pin::new(&mut self.transport).poll_write(context, answer);
        let _ = Pin::new(&mut self.transport).poll_flush(context);
        let _ = Pin::new(&mut self.transport).poll_shutdown(context);
    }

    fn set_timer(&mut self, wait: Wait) {
        // When idle, the HTTP library closes first.
        let after = if wait == Wait::Head { self.timeout } else { KEEP_ALIVE + self.timeout };
        self.wait = wait;
        self.timer.as_mut().reset(Instant::now() + after);
    }

    /// What follows the last answer: throws away what arrives, for a moment, and ends in an error.
    fn poll_linger(&mut self, context: &mut Context<'_>, thrown_away: usize) -> Poll<io::Error> {
        let mut total = thrown_away;
        while total < THROWN_AWAY && self.timer.as_mut().poll(context).is_pending() {
            let mut space = [0; 4096];
            let mut space = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut self.transport).poll_read(context, &mut space));
            if read.is_err() || space.filled().is_empty() {
                break;
            }
            total += space.filled().len();
            self.closed = Some(total);
        }
        Poll::Ready(io::ErrorKind::ConnectionAborted.into())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(thrown_away) = this.closed {
            return this.poll_linger(context, thrown_away).map(Err);
        }
        let state = this.conversation.0.clone();
        if state.over.get() {
            // Until the answer is out. Writing it wakes this task.
            return Poll::Pending;
        }
        if this.seen != state.requests.get() {
            this.seen = state.requests.get();
            this.set_timer(Wait::Idle);
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.transport).poll_read(context, buffer) {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => {
                if !state.serving.get() && this.wait == Wait::Idle {
                    state.began.set(Some(Instant::now()));
                    this.set_timer(Wait::Head);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending if !state.serving.get() && this.timer.as_mut().poll(context).is_ready() => {
                if this.wait == Wait::Head && !this.blocked {
                    this.end_with(context, TIMEOUT);
                }
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Pending => Poll::Pending,
            ended => {
                this.gone = true;
                ended
            }
        }
    }
}

impl Drop for Connection {
    /// The HTTP library gives up a connection without an answer when a chunk of a body is framed wrongly.
    fn drop(&mut self) {
        if self.conversation.0.serving.get() && !self.gone && !self.blocked {
            self.end_with(&mut Context::from_waker(Waker::noop()), MALFORMED);
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.transport).poll_write(context, bytes);
        this.blocked = written.is_pending();
        if matches!(written, Poll::Ready(Ok(1..))) && this.wait == Wait::Idle {
            this.set_timer(Wait::Idle);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.transport).poll_flush(context))?;
        let state = &this.conversation.0;
        if state.over.get() && !state.serving.get() && this.closed.is_none() {
            ready!(Pin::new(&mut this.transport).poll_shutdown(context))?;
            this.closed = Some(0);
            this.timer.as_mut().reset(Instant::now() + LINGER);
            // A request that was sent behind is waiting for nothing: reading ends it.
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(context)
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
