//! The door to the network. A node knows nothing of sockets: it binds an [`Endpoint`] of a [`Network`] and
//! speaks through that. [`SystemNetwork`] is UDP and TCP; with the `testing` feature there is one in memory.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) mod channel;
pub(crate) mod fault;
#[cfg(feature = "testing")]
pub mod faulty;
#[cfg(feature = "testing")]
pub mod memory;
#[cfg(feature = "tls")]
pub(crate) mod secured;
mod system;

pub use system::SystemNetwork;

/// A stream of bytes in both directions, as TCP gives.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

/// A dial in progress.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>>;

/// A bind in progress.
pub type Binding = Pin<Box<dyn Future<Output = io::Result<Arc<dyn Endpoint>>> + Send>>;

/// Where endpoints come from.
pub trait Network: Send + Sync + 'static {
    /// Takes `addr` for datagrams and streams alike. Port 0 means one port that is free for both.
    ///
    /// # Errors
    /// What the system says: the address is in use, is not this host's, or may not be taken.
    fn bind(&self, addr: SocketAddr) -> Binding;

    /// What the host is known by, for a node that is bound to all of its addresses and not told what to
    /// advertise. Without an answer of one's own: nothing. It may not block for long.
    fn host(&self) -> Host {
        Host::default()
    }

    /// The handle on its faults, if it is a [`Faulty`](faulty::Faulty) one: a node that is given one has no other.
    #[cfg(feature = "testing")]
    fn faults(&self) -> Option<faulty::Faults> {
        None
    }
}

impl<N: Network + ?Sized> Network for Arc<N> {
    fn bind(&self, addr: SocketAddr) -> Binding {
        (**self).bind(addr)
    }

    fn host(&self) -> Host {
        (**self).host()
    }

    #[cfg(feature = "testing")]
    fn faults(&self) -> Option<faulty::Faults> {
        (**self).faults()
    }
}

/// The addresses of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Those that packets by the default routes come from, one of each family at most.
    pub routed: Vec<IpAddr>,
    /// Those of each interface, in the system's order.
    pub interfaces: Vec<Interface>,
}

/// One address of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The interface's name.
    pub name: String,
    /// The address.
    pub ip: IpAddr,
    /// Whether the interface works.
    pub up: bool,
}

/// One bound address: datagrams and streams, in and out. It closes when the last reference is dropped.
///
/// The node calls it from one thread at a time. A call never blocks.
pub trait Endpoint: Send + Sync + 'static {
    /// The address taken, with its real port.
    fn local_addr(&self) -> SocketAddr;

    /// Ready when a datagram may be waiting; else the waker is called once one is.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Takes one waiting datagram: its length and where it came from. What does not fit into `buf` is cut off.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when none is waiting.
    fn try_recv(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// Hands one datagram to the network.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the network takes no more just now; else why it cannot be sent.
    fn try_send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()>;

    /// Ready when the network may take a datagram; else the waker is called once it may. The node asks after
    /// [`Endpoint::try_send`] has said [`io::ErrorKind::WouldBlock`]. Without an answer of one's own: always ready.
    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// The next stream that somebody opened to here, and from where.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Box<dyn Connection>, SocketAddr)>>;

    /// Opens a stream. The caller sets the time limit.
    fn dial(&self, to: SocketAddr) -> Dialing;
}
