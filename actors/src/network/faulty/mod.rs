//! Faults for tests, on any network: cuts, pauses, delay, loss, broken streams. [`Faulty`] stands between a node and its
//! network, and [`Faults`] says what becomes of what goes through. With the feature `testing` each node has one:
//! [`Cluster::faults`](crate::Cluster::faults).
//!
//! ```text
//!   node ──► Faulty ──► sockets, memory, or a network of one's own ──► the peer
//!              ▲ to: what the node says to the peer
//!              │ from: what the peer says to the node
//!           Faults
//! ```
//!
//! It is one node's view of the network: a fault holds for what that node sends and gets, so one handle cuts two nodes
//! off from each other, and no other node needs to take part. Peers are told apart by the addresses that they are known
//! by. A stream that somebody else has dialled comes from a port that says nothing: it is nobody's until the node has
//! read who it is from. Then the faults of that peer hold, and nothing of what was read is answered or heeded while the
//! way is cut.
//!
//! Chance comes from a seed, and time from tokio's clock, which a test may have paused. As long as there is no fault, a
//! packet costs one relaxed load of an atomic.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use memberlist_protocol::member::canonical;
use tokio::time::{Sleep, sleep_until};

use super::{Binding, Connection, Dialing, Endpoint, Host, Network};

mod handle;
mod state;
mod stream;
mod wire;

pub use handle::{Everyone, FaultStats, Faults, NoSuchPeer, Place, Way, Whom};
use state::{Direction, Shared, Slot, Verdict};
use stream::FaultyStream;

/// Datagrams that are dropped in one call before the caller has another turn.
const DROPPED_PER_CALL: usize = 64;

/// A network with faults, around any other. Each node has one of its own: what is said of a peer holds for all that is
/// bound through it.
#[derive(Clone, Debug)]
pub struct Faulty<N> {
    inner: N,
    faults: Faults,
}

impl<N: Network> Faulty<N> {
    /// Without any fault so far; chance begins with `seed`.
    pub fn new(inner: N, seed: u64) -> Self {
        Self { inner, faults: Faults::new(seed) }
    }

    /// The handle on its faults. It knows peers by their addresses only; that of a node,
    /// [`Cluster::faults`](crate::Cluster::faults), knows them by name as well.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }
}

impl<N: Network> Network for Faulty<N> {
    fn bind(&self, addr: SocketAddr) -> Binding {
        let (binding, shared) = (self.inner.bind(addr), self.faults.shared.clone());
        Box::pin(async move {
            let inner = binding.await?;
            let slot = Arc::<Slot>::default();
            let id = shared.with(|state| state.bind(slot.clone()));
            Ok(Arc::new(FaultyEndpoint { inner, shared, slot, id, timer: Mutex::default() })
                as Arc<dyn Endpoint>)
        })
    }

    fn host(&self) -> Host {
        self.inner.host()
    }

    fn faults(&self) -> Option<Faults> {
        Some(self.faults())
    }
}

struct FaultyEndpoint {
    inner: Arc<dyn Endpoint>,
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    id: u64,
    /// Runs until the next datagram that is held up.
    timer: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl Drop for FaultyEndpoint {
    fn drop(&mut self) {
        self.shared.with(|state| state.unbind(self.id));
    }
}

impl FaultyEndpoint {
    fn is_calm(&self) -> bool {
        !self.shared.active.load(Relaxed)
    }

    /// Sends and delivers what has been held up for long enough, and wakes `cx` when there is more to do.
    fn run_late(&self, cx: &mut Context<'_>) {
        loop {
            let now = tokio::time::Instant::now();
            let (out, next) = self.shared.with(|state| state.late(self.id, now));
            for (datagram, to) in out {
                if self.inner.try_send(&datagram, to).is_err() {
                    self.shared.with(|state| state.stats.overflowed += 1);
                }
            }
            let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
            *timer = next.map(|due| Box::pin(sleep_until(due)));
            // A timer that is over already has to be seen to be, or nobody is woken.
            if timer.as_mut().is_none_or(|timer| timer.as_mut().poll(cx).is_pending()) {
                return;
            }
        }
    }

    fn wrap(
        shared: &Arc<Shared>,
        inner: Box<dyn Connection>,
        peer: Option<SocketAddr>,
        seen: Option<SocketAddr>,
    ) -> Box<dyn Connection> {
        Box::new(FaultyStream::new(shared.clone(), inner, peer, seen))
    }
}

impl Endpoint for FaultyEndpoint {
    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_calm() {
            let ready = self.inner.poll_readable(cx);
            if ready.is_ready() {
                return ready;
            }
            self.slot.wait(Direction::From, cx);
            if self.is_calm() {
                return Poll::Pending;
            }
        }
        self.slot.wait(Direction::From, cx);
        self.run_late(cx);
        self.shared.run_lingering(cx);
        if self.shared.with(|state| state.has_ready(self.id)) {
            return Poll::Ready(Ok(()));
        }
        self.inner.poll_readable(cx)
    }

    fn try_recv(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        if self.is_calm() {
            return self.inner.try_recv(buf);
        }
        if let Some((datagram, from)) = self.shared.with(|state| state.take_ready(self.id)) {
            let len = datagram.len().min(buf.len());
            buf[..len].copy_from_slice(&datagram[..len]);
            return Ok((len, from));
        }
        for _ in 0..DROPPED_PER_CALL {
            let (len, from) = self.inner.try_recv(buf)?;
            match self.shared.with(|state| state.came(self.id, &buf[..len], from)) {
                Verdict::Pass => return Ok((len, from)),
                // The timer of a late one is set by whoever asks whether there is something to read.
                Verdict::Drop | Verdict::Later => {}
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn try_send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        if self.is_calm() {
            return self.inner.try_send(datagram, to);
        }
        let (verdict, copy) = self.shared.with(|state| state.goes(self.id, datagram, to));
        match verdict {
            Verdict::Pass => {
                self.inner.try_send(datagram, to)?;
                if copy {
                    let _ = self.inner.try_send(datagram, to);
                }
            }
            Verdict::Drop => {}
            Verdict::Later => self.slot.wake(),
        }
        Ok(())
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_writable(cx)
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Box<dyn Connection>, SocketAddr)>> {
        self.inner
            .poll_accept(cx)
            .map_ok(|(stream, from)| (Self::wrap(&self.shared, stream, None, Some(canonical(from))), from))
    }

    fn dial(&self, to: SocketAddr) -> Dialing {
        let (shared, inner, peer) = (self.shared.clone(), Arc::downgrade(&self.inner), canonical(to));
        Box::pin(async move {
            shared.way_for_dial(peer).await;
            // Whoever waits here keeps no address bound.
            let dialling = inner.upgrade().ok_or(io::ErrorKind::ConnectionAborted)?.dial(to);
            let dialled = dialling.await;
            // The answer, too, has to get through.
            shared.way_for_dial_back(peer).await;
            dialled.map(|stream| Self::wrap(&shared, stream, Some(peer), None))
        })
    }
}
