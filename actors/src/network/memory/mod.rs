//! A network in memory, for tests: latency, loss, cuts, stopped hosts, all in tokio's (possibly paused) time
//! and all from one seed.
//!
//! A run repeats to the byte if everything on the network lives on one thread, in paused time, and takes its
//! own chances from a seed. tokio's timers have a resolution of one millisecond: what falls due within one is
//! delivered at its end, in the order in which it fell due.

use std::{
    fmt, io,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{Binding, Connection, Dialing, Endpoint, Network};
use crate::trace::Trace;

mod segments;
mod state;
mod stream;
mod tap;
#[cfg(test)]
mod tests;

use state::State;
use stream::MemoryStream;
pub use tap::{Tap, TappedDatagram, TappedStream};

/// What happens to traffic from one address to another. Streams feel the latency, the cut and what is said of streams
/// or their segments only: TCP hides the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Time on the way, chosen evenly for each datagram and each chunk of a stream. If the end is not above
    /// the start, it is always the start. From 1 ms to 2 ms by default.
    pub latency: Range<Duration>,
    /// How probable it is that a datagram is lost, 0 to 1. None by default.
    pub loss: f64,
    /// How probable it is that a segment of a stream is lost, 0 to 1; dials and acknowledgments are segments too. It
    /// is sent again later, as TCP would, and all that comes after it in its stream waits for it. None by default.
    pub segment_loss: f64,
    /// How probable it is that a datagram arrives twice, 0 to 1. None by default.
    pub duplicate: f64,
    /// How probable it is that a datagram is held up by up to `reorder_by`, 0 to 1. None by default.
    pub reorder: f64,
    /// The longest delay of a datagram that is held up, on top of its latency. 10 ms by default.
    pub reorder_by: Duration,
    /// Losses that come together, besides those by `loss`. None by default.
    pub bursts: Option<Bursts>,
    /// Datagrams above so many bytes are lost. None is, by default.
    pub largest: usize,
    /// How probable it is that some bits of a datagram are turned over, 0 to 1. None by default.
    pub corrupt: f64,
    /// How probable it is that a datagram loses its end, 0 to 1. None by default.
    pub truncate: f64,
    /// How probable it is that a datagram is followed by one of the last eight that went before it, 0 to 1. None by
    /// default.
    pub replay: f64,
    /// Dials are refused.
    pub refuse: bool,
    /// Streams come about, and what is written to them does not arrive.
    pub mute: bool,
    /// How probable it is that a piece of a stream breaks that instead of arriving, 0 to 1. None by default.
    pub reset: f64,
    /// Nothing gets through: datagrams vanish, streams stall until the link is mended, and no dial in either
    /// direction succeeds, because it takes a question and an answer.
    pub cut: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(1)..Duration::from_millis(2),
            loss: 0.0,
            segment_loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(10),
            bursts: None,
            largest: usize::MAX,
            corrupt: 0.0,
            truncate: 0.0,
            replay: 0.0,
            refuse: false,
            mute: false,
            reset: 0.0,
            cut: false,
        }
    }
}

impl Link {
    /// A link that loses so large a share of all packets, be they datagrams or segments of streams.
    #[must_use]
    pub fn lossy(share: f64) -> Self {
        Self { loss: share, segment_loss: share, ..Self::default() }
    }
}

/// Losses that come together, after Gilbert and Elliott: a link is good or bad, and may change with each datagram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bursts {
    /// How probable it is that a good link turns bad before a datagram, 0 to 1.
    pub begin: f64,
    /// How probable it is that a bad one turns good, 0 to 1.
    pub end: f64,
    /// How probable it is that a datagram is lost while the link is bad, 0 to 1.
    pub loss: f64,
}

/// What went over a network since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Datagrams sent, those included that never arrived.
    pub datagrams: u64,
    /// Bytes sent, in datagrams and in chunks.
    pub bytes: u64,
    /// Datagrams lost by chance.
    pub lost: u64,
    /// Datagrams that were sent on twice.
    pub duplicated: u64,
    /// Datagrams that met a cut.
    pub cut: u64,
    /// Datagrams that were larger than their link takes.
    pub too_large: u64,
    /// Datagrams that were changed or cut off on their way.
    pub spoilt: u64,
    /// Datagrams that were said again.
    pub replayed: u64,
    /// Datagrams that a host could not send.
    pub unsent: u64,
    /// Pieces that broke their stream.
    pub broken: u64,
    /// Datagrams dropped because the receiver's queue was full.
    pub overflowed: u64,
    /// Streams dialled, with or without success.
    pub dials: u64,
    /// Dials refused because nobody had bound the address.
    pub refused: u64,
    /// Pieces written to streams.
    pub chunks: u64,
    /// How often a sender of segments, or a dialler, has waited in vain for what it then sent again.
    pub timeouts: u64,
}

/// A network in memory. Clones are the same network.
///
/// Faults are set for the addresses that the nodes have bound, even for streams, which a peer sees coming
/// from another port. They may be set before the address is bound. An address is taken literally: a node
/// bound to `0.0.0.0` is not reached by any other address of its host.
///
/// Everything is delivered by one task. It starts at the first `bind`, on the thread and in the actix runtime
/// that polls it, and ends when the network, its endpoints and its streams are gone. If that runtime stops
/// earlier, the next `bind` starts it anew.
#[derive(Clone)]
pub struct MemoryNetwork(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Tells the driver that something falls due before it would wake, or that the network is gone.
    earlier: Arc<Notify>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.earlier.notify_one();
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryNetwork").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl MemoryNetwork {
    /// A network without faults whose every chance comes from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Shared { state: Mutex::new(State::new(seed)), earlier: Arc::default() }))
    }

    /// Records into `trace`, by the addresses bound: "datagram" or "lost" and "chunk" with their bytes when
    /// they are sent, "dial", and "close" with `fin` or `reset`.
    #[must_use]
    pub fn with_trace(self, trace: Trace) -> Self {
        self.with(|state| state.trace = Some(trace));
        self
    }

    /// Keeps all that is said from now on in `tap`.
    pub fn tap(&self, tap: Tap) {
        self.with(|state| state.tap = Some(tap));
    }

    /// Sends a datagram that seems to come from an address, whoever has bound that, or nobody.
    ///
    /// # Errors
    /// As [`Endpoint::try_send`].
    pub fn forge(&self, datagram: &[u8], from: SocketAddr, to: SocketAddr) -> io::Result<()> {
        self.with(|state| state.send(datagram, from, to))
    }

    /// Sets the link of all pairs that have none of their own.
    pub fn set_default(&self, link: Link) {
        self.with(|state| {
            state.default = link;
            state.release();
        });
    }

    /// Sets the link from one address to another, in that direction only. It replaces an earlier `cut` or
    /// `mend` of the direction.
    pub fn set_link(&self, from: SocketAddr, to: SocketAddr, link: Link) {
        self.with(|state| {
            state.cuts.remove(&(from, to));
            state.links.insert((from, to), link);
            state.release_one((from, to));
        });
    }

    /// Sets the link from an address to all others, where a pair has no link of its own; `None` takes it away.
    pub fn set_outward(&self, from: SocketAddr, link: Option<Link>) {
        self.with(|state| {
            match link {
                Some(link) => drop(state.outward.insert(from, link)),
                None => drop(state.outward.remove(&from)),
            }
            state.release();
        });
    }

    /// Sets the link from all others to an address, where neither the pair nor the sender has one of its own; `None`
    /// takes it away.
    pub fn set_inward(&self, to: SocketAddr, link: Option<Link>) {
        self.with(|state| {
            match link {
                Some(link) => drop(state.inward.insert(to, link)),
                None => drop(state.inward.remove(&to)),
            }
            state.release();
        });
    }

    /// Cuts one direction. What is on the way as a datagram still arrives.
    pub fn cut(&self, from: SocketAddr, to: SocketAddr) {
        self.with(|state| state.cuts.insert((from, to), true));
    }

    /// Mends one direction: streams go on, and dials that are still waited for are answered.
    pub fn mend(&self, from: SocketAddr, to: SocketAddr) {
        self.with(|state| {
            state.cuts.insert((from, to), false);
            state.release_one((from, to));
        });
    }

    /// Cuts a host off from all others, whatever their links say.
    pub fn unplug(&self, addr: SocketAddr) {
        self.with(|state| state.unplugged.insert(addr));
    }

    /// Ends that.
    pub fn plug_in(&self, addr: SocketAddr) {
        self.with(|state| {
            state.unplugged.remove(&addr);
            state.release();
        });
    }

    /// Cuts both directions between every address of one group and every address of the other.
    pub fn partition(&self, one: &[SocketAddr], other: &[SocketAddr]) {
        self.with(|state| {
            for &a in one {
                for &b in other {
                    state.cuts.insert((a, b), true);
                    state.cuts.insert((b, a), true);
                }
            }
        });
    }

    /// Mends all cuts, those in the links included. Loss, latency and the rest stay.
    pub fn heal(&self) {
        self.with(|state| {
            state.cuts.clear();
            state.unplugged.clear();
            state.default.cut = false;
            let links = state.links.values_mut().chain(state.outward.values_mut());
            links.chain(state.inward.values_mut()).for_each(|link| link.cut = false);
            state.release();
        });
    }

    /// Breaks every stream between two hosts, in both directions: what is on its way does not arrive.
    pub fn reset_streams(&self, one: SocketAddr, other: SocketAddr) {
        self.with(|state| state.reset_between(one, other));
    }

    /// From now on no datagram can be sent from `addr`, and nothing be dialled: each attempt is this error, as of a host
    /// whose interface is down. `None` ends that.
    pub fn fail_sends(&self, addr: SocketAddr, error: Option<io::ErrorKind>) {
        self.with(|state| match error {
            Some(error) => drop(state.failing.insert(addr, error)),
            None => drop(state.failing.remove(&addr)),
        });
    }

    /// Stops the host at `addr`, as SIGSTOP would: what arrives waits in its bounded queues and wakes nobody,
    /// nothing can be read or accepted there, and nothing is taken from it: datagrams get
    /// [`io::ErrorKind::WouldBlock`], writes and dials wait.
    pub fn pause(&self, addr: SocketAddr) {
        self.with(|state| state.paused.insert(addr));
    }

    /// Ends a pause and wakes everything that waits at `addr`.
    pub fn resume(&self, addr: SocketAddr) {
        self.with(|state| state.resume(addr));
    }

    /// What went over the network so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.with(|state| state.stats)
    }

    /// A planted fault, for a test of the tests of determinism: what falls due in the same instant, as the
    /// clock can be read, is delivered in the order of a standard `HashMap`, another one in each process.
    pub fn plant_hash_order(&self, on: bool) {
        self.with(|state| state.hash_order = on);
    }

    /// Acts on the state, then does what must wait until the lock is released: whoever is woken may come back.
    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut state);
        let (woken, answers) = (std::mem::take(&mut state.woken), std::mem::take(&mut state.answers));
        let earlier = std::mem::take(&mut state.earlier);
        drop(state);

        if earlier {
            self.0.earlier.notify_one();
        }
        for (answer, outcome) in answers {
            // A stream that nobody waits for any more is dropped, and so closed, here.
            let _ = answer.send(outcome.map(|id| MemoryStream::new(self.clone(), id, 0)));
        }
        woken.into_iter().for_each(std::task::Waker::wake);
        result
    }

    fn ensure_driver(&self) {
        if self.with(|state| std::mem::replace(&mut state.driven, true)) {
            return;
        }
        let driver = Driver { network: Arc::downgrade(&self.0), earlier: self.0.earlier.clone() };
        // It stands for the wires between the hosts, so it belongs to no node and to no supervisor.
        #[allow(clippy::disallowed_methods)]
        actix_rt::spawn(driver.run());
    }
}

/// The task that delivers. It keeps no network alive.
struct Driver {
    network: Weak<Shared>,
    earlier: Arc<Notify>,
}

impl Driver {
    async fn run(self) {
        while let Some(shared) = self.network.upgrade() {
            let next = MemoryNetwork(shared).with(|state| state.deliver_due(Instant::now()));
            match next {
                Some(due) => tokio::select! {
                    biased;
                    () = self.earlier.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => self.earlier.notified().await,
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(shared) = self.network.upgrade() {
            MemoryNetwork(shared).with(|state| state.driven = false);
        }
    }
}

impl Network for MemoryNetwork {
    fn bind(&self, addr: SocketAddr) -> Binding {
        let network = self.clone();
        Box::pin(async move {
            let (id, local) = network.with(|state| state.bind(addr))?;
            let endpoint = Arc::new(MemoryEndpoint { network, id, local });
            endpoint.network.ensure_driver();
            Ok(endpoint as Arc<dyn Endpoint>)
        })
    }
}

struct MemoryEndpoint {
    network: MemoryNetwork,
    id: u64,
    local: SocketAddr,
}

impl Drop for MemoryEndpoint {
    fn drop(&mut self) {
        self.network.with(|state| state.unbind(self.local, self.id));
    }
}

impl Endpoint for MemoryEndpoint {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.network.with(|state| state.poll_readable(self.local, cx)).map(Ok)
    }

    fn try_recv(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (datagram, from) =
            self.network.with(|state| state.receive(self.local)).ok_or(io::ErrorKind::WouldBlock)?;
        let length = datagram.len().min(buf.len());
        buf[..length].copy_from_slice(&datagram[..length]);
        Ok((length, from))
    }

    fn try_send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.network.with(|state| state.send(datagram, self.local, to))
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.network.with(|state| state.poll_writable(self.local, cx))
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Box<dyn Connection>, SocketAddr)>> {
        self.network.with(|state| state.poll_accept(self.local, cx)).map(|(id, from)| {
            let stream = MemoryStream::new(self.network.clone(), id, 1);
            Ok((Box::new(stream) as Box<dyn Connection>, from))
        })
    }

    fn dial(&self, to: SocketAddr) -> Dialing {
        let (network, id, from) = (self.network.clone(), self.id, self.local);
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            network.with(|state| state.dial(id, from, to, answer));
            let stream = answered.await.map_err(|_| io::ErrorKind::ConnectionAborted)??;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}
