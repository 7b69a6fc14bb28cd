//! TLS between a node and its network: each stream goes through it, dialled or accepted; datagrams go past it.
//!
//! ```text
//!   accepted:  Shaking ──► Open          the handshake is done by whoever reads or writes first, in that one's time
//!               ▲  └─────► Failed        what still comes is thrown away, nothing is written
//!             First ─────► Plain         only where streams without TLS are taken in: the first byte tells
//!   dialled:   Open                      the handshake is a part of the dial
//! ```

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use memberlist_protocol::member::canonical;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::unconstrained,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector, TlsStream,
    rustls::{Error, InvalidMessage},
    server::FallibleAccept,
};

use super::{
    Binding, Connection, Dialing, Endpoint, Host, Network,
    fault::{TlsFault, TlsFaultKind},
};
use crate::{
    logs,
    tls::{Tls, TlsUse},
};

/// The first byte of whoever begins with TLS.
const HANDSHAKE: u8 = 0x16;

/// A network whose streams go through TLS.
pub(crate) struct Secured {
    inner: Arc<dyn Network>,
    tls: Tls,
}

impl Secured {
    pub(crate) fn new(inner: Arc<dyn Network>, tls: Tls) -> Self {
        Self { inner, tls }
    }
}

impl Network for Secured {
    fn bind(&self, addr: SocketAddr) -> Binding {
        let (binding, tls) = (self.inner.bind(addr), self.tls.clone());
        Box::pin(async move {
            let inner = binding.await?;
            Ok(Arc::new(SecuredEndpoint { inner, tls }) as Arc<dyn Endpoint>)
        })
    }

    fn host(&self) -> Host {
        self.inner.host()
    }
}

struct SecuredEndpoint {
    inner: Arc<dyn Endpoint>,
    tls: Tls,
}

impl Endpoint for SecuredEndpoint {
    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_readable(cx)
    }

    fn try_recv(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.inner.try_recv(buf)
    }

    fn try_send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.inner.try_send(datagram, to)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_writable(cx)
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Box<dyn Connection>, SocketAddr)>> {
        let (raw, from) = ready!(self.inner.poll_accept(cx))?;
        let raw = Raw { first: None, rest: raw };
        let (acceptor, how) = self.tls.server();
        let stage = match how {
            TlsUse::Required => Stage::Shaking(Box::new(acceptor.accept(raw).into_fallible())),
            TlsUse::Heard | TlsUse::Spoken => Stage::First(Some((raw, acceptor))),
        };
        Poll::Ready(Ok((Box::new(TlsConnection { stage, with: canonical(from) }), from)))
    }

    fn dial(&self, to: SocketAddr) -> Dialing {
        let (dialing, tls) = (self.inner.dial(to), self.tls.clone());
        Box::pin(async move {
            let raw = dialing.await?;
            let Some((config, name)) = tls.client(to) else { return Ok(raw) };
            let raw = Raw { first: None, rest: raw };
            let stream = TlsConnector::from(config).connect(name, raw).await;
            let stream = stream.map_err(|error| tell(error, to, true))?;
            let stage = Stage::Open(Box::new(TlsStream::Client(stream)));
            Ok(Box::new(TlsConnection { stage, with: to }) as Box<dyn Connection>)
        })
    }
}

/// A stream of the network below, and its first byte, if that has been looked at.
struct Raw {
    first: Option<u8>,
    rest: Box<dyn Connection>,
}

impl AsyncRead for Raw {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buf.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.rest).poll_read(cx, buf)
    }
}

impl AsyncWrite for Raw {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.rest).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.rest).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.rest.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_shutdown(cx)
    }
}

enum Stage {
    /// Always there, but for the moment in which it becomes another.
    First(Option<(Raw, TlsAcceptor)>),
    Plain(Raw),
    Shaking(Box<FallibleAccept<Raw>>),
    Open(Box<TlsStream<Raw>>),
    Failed(Raw),
}

struct TlsConnection {
    stage: Stage,
    with: SocketAddr,
}

impl TlsConnection {
    /// Does what is left of the handshake.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Stage::First(first) = &mut self.stage {
            let Some((raw, _)) = first else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
            let mut byte = [0];
            let mut buf = ReadBuf::new(&mut byte);
            ready!(Pin::new(raw).poll_read(cx, &mut buf))?;
            let byte = buf.filled().first().copied();
            let Some((mut raw, acceptor)) = first.take() else { return Poll::Pending };
            raw.first = byte;
            self.stage = if byte == Some(HANDSHAKE) {
                Stage::Shaking(Box::new(acceptor.accept(raw).into_fallible()))
            } else {
                Stage::Plain(raw)
            };
        }
        if let Stage::Shaking(accept) = &mut self.stage {
            match ready!(Pin::new(accept).poll(cx)) {
                Ok(stream) => self.stage = Stage::Open(Box::new(TlsStream::Server(stream))),
                Err((error, raw)) => {
                    self.stage = Stage::Failed(raw);
                    return Poll::Ready(Err(tell(error, self.with, true)));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The stream, whose handshake is done.
    fn open(&mut self) -> io::Result<Pin<&mut dyn Connection>> {
        match &mut self.stage {
            Stage::Open(stream) => Ok(Pin::new(&mut **stream)),
            Stage::Plain(raw) => Ok(Pin::new(raw)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Stage::Failed(raw) = &mut self.stage {
            // That something comes may be known, but not what.
            let before = buf.filled().len();
            let read = ready!(Pin::new(raw).poll_read(cx, buf));
            buf.filled_mut()[before..].fill(0);
            return Poll::Ready(read);
        }
        ready!(self.poll_open(cx))?;
        let with = self.with;
        self.open()?.poll_read(cx, buf).map_err(|error| tell(error, with, false))
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?;
        self.open()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?;
        self.open()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Stage::Failed(raw) = &mut self.stage {
            return Pin::new(raw).poll_flush(cx);
        }
        ready!(self.poll_open(cx))?;
        self.open()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Stage::Failed(raw) = &mut self.stage {
            return Pin::new(raw).poll_shutdown(cx);
        }
        ready!(self.poll_open(cx))?;
        self.open()?.poll_shutdown(cx)
    }
}

/// Streams end when they are dropped. As far as the network takes it at once, the other side is told that nothing is
/// missing.
impl Drop for TlsConnection {
    fn drop(&mut self) {
        if let Stage::Open(stream) = &mut self.stage {
            let farewell = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx));
            let _ = pin!(unconstrained(farewell)).poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// What an error of a stream under TLS tells. The network's own stay as they are.
fn tell(error: io::Error, with: SocketAddr, handshake: bool) -> io::Error {
    let kind = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) if handshake => TlsFaultKind::NoTls,
        Some(why @ (Error::InvalidCertificate(_) | Error::NoCertificatesPresented)) => {
            TlsFaultKind::Certificate(logs::text(why).to_string())
        }
        Some(Error::AlertReceived(alert)) => TlsFaultKind::Alert(format!("{alert:?}")),
        Some(why) => TlsFaultKind::Broken(logs::text(why).to_string()),
        None if error.kind() == io::ErrorKind::UnexpectedEof => TlsFaultKind::Cut,
        None => return error,
    };
    let linger = handshake && !matches!(kind, TlsFaultKind::Alert(_) | TlsFaultKind::Cut);
    // Not `UnexpectedEof`, which is what an honest end too early looks like.
    io::Error::new(io::ErrorKind::InvalidData, TlsFault { with, kind, linger })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn of_a_stream_whose_handshake_has_failed_nothing_is_heard_and_nothing_is_said() {
        let (raw, mut stranger) = duplex(1000);
        let with = ([10, 0, 0, 1], 1).into();
        let raw = Raw { first: None, rest: Box::new(raw) };
        let mut stream = TlsConnection { stage: Stage::Failed(raw), with };
        stranger.write_all(b"secret").await.unwrap();
        let mut heard = [1; 6];
        assert_eq!(stream.read_exact(&mut heard).await.unwrap(), 6);
        assert_eq!(heard, [0; 6]);
        assert_eq!(stream.write(b"answer").await.unwrap_err().kind(), io::ErrorKind::NotConnected);
        assert_eq!(
            stream.write_vectored(&[io::IoSlice::new(b"answer")]).await.unwrap_err().kind(),
            io::ErrorKind::NotConnected
        );
        stream.flush().await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = Vec::new();
        stranger.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"");
    }
}
