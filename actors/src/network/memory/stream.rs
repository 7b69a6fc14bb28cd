//! Streams in memory: how they are dialled, what is on its way in each direction, and the end that a user
//! holds.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

use super::{
    MemoryNetwork,
    segments::Flow,
    state::{Delivery, Pair, State},
};

/// Bytes of one direction of a stream that are written and not yet read.
const WINDOW: usize = 64 << 10;

/// Streams that wait to be accepted at one endpoint, as many as the system's network asks for.
const BACKLOG: usize = 4096;

/// Where the ports start that accepted streams come from.
pub(super) const FIRST_EPHEMERAL_PORT: u16 = 40_000;

/// Gives a dial its stream, or why there is none.
pub(super) type Answer = oneshot::Sender<io::Result<MemoryStream>>;

/// One end of a stream: side 0 has dialled, side 1 has accepted. Dropping it closes both directions.
pub(super) struct MemoryStream {
    network: MemoryNetwork,
    id: u64,
    side: usize,
}

impl MemoryStream {
    pub(super) fn new(network: MemoryNetwork, id: u64, side: usize) -> Self {
        Self { network, id, side }
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        self.network.with(|state| state.abandon(self.id, self.side));
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.network.with(|state| state.poll_read(self.id, self.side, cx, buf))
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.network.with(|state| state.poll_write(self.id, self.side, cx, buf))
    }

    /// In one piece, as TCP would send it.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut piece = Vec::new();
        for buf in bufs {
            piece.extend_from_slice(&buf[..buf.len().min(WINDOW - piece.len())]);
        }
        self.poll_write(cx, &piece)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.network.with(|state| state.poll_shutdown(self.id, self.side, cx))
    }
}

/// One end of a stream, and the direction that leads to it.
pub(super) struct Side {
    pub(super) bound: SocketAddr,
    /// The endpoint that it falls with; none until it is there to be accepted.
    owner: Option<u64>,
    /// On the way to here. It arrives in this order, whatever the latencies.
    coming: VecDeque<Item>,
    flow: Flow,
    /// Arrived and not yet read.
    inbox: VecDeque<Bytes>,
    /// Bytes in `coming` and `inbox`.
    unread: usize,
    ended: bool,
    reset: bool,
    /// This end has sent its `Fin` or `Reset`.
    closed: bool,
    /// This end has been dropped.
    gone: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

enum Item {
    /// The stream is there to be accepted, and where it seems to come from.
    Open(SocketAddr),
    Data(Bytes),
    Fin,
    Reset,
}

pub(super) struct Dial {
    owner: u64,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) answer: Answer,
    /// How often the question was sent again, or the answer.
    pub(super) tries: u32,
}

impl Side {
    fn new(bound: SocketAddr, owner: Option<u64>) -> Self {
        Self {
            bound,
            owner,
            coming: VecDeque::new(),
            flow: Flow::default(),
            inbox: VecDeque::new(),
            unread: 0,
            ended: false,
            reset: false,
            closed: false,
            gone: false,
            reader: None,
            writer: None,
        }
    }
}

impl State {
    pub(super) fn dial(&mut self, owner: u64, from: SocketAddr, to: SocketAddr, answer: Answer) {
        self.stats.dials += 1;
        self.record("dial", (from, to), &[]);
        if let Some(error) = self.failing.get(&from) {
            self.answers.push((answer, Err((*error).into())));
            return;
        }
        self.schedule((from, to), Duration::ZERO, Delivery::Syn(Dial { owner, from, to, answer, tries: 0 }));
    }

    pub(super) fn arrive_syn(&mut self, dial: Dial) {
        let back = (dial.to, dial.from);
        if self.endpoints.contains_key(&dial.to) && !self.link((dial.from, dial.to)).refuse {
            self.schedule(back, Duration::ZERO, Delivery::SynAck(dial, Ok(())));
        } else {
            // A refusal takes one latency, not two; a cut on the way back still holds it.
            self.stats.refused += 1;
            self.deliver(Delivery::SynAck(dial, Err(io::ErrorKind::ConnectionRefused)));
        }
    }

    pub(super) fn arrive_syn_ack(&mut self, dial: Dial, outcome: Result<(), io::ErrorKind>) {
        let Dial { owner, from, to, answer, .. } = dial;
        let fallen = self.endpoints.get(&from).is_none_or(|bound| bound.id != owner);
        let outcome = if fallen { Err(io::ErrorKind::ConnectionAborted) } else { outcome };
        if let Err(error) = outcome {
            self.answers.push((answer, Err(error.into())));
            return;
        }
        if answer.is_closed() {
            return;
        }
        let id = self.fresh_id();
        if let Some(tap) = &self.tap {
            tap.dialled(id, from, to);
        }
        self.streams.insert(id, [Side::new(from, Some(owner)), Side::new(to, None)]);
        let seen = SocketAddr::new(from.ip(), self.next_ephemeral);
        self.next_ephemeral = self.next_ephemeral.checked_add(1).unwrap_or(FIRST_EPHEMERAL_PORT);
        self.push(id, 1, Item::Open(seen));
        self.answers.push((answer, Ok(id)));
    }

    pub(super) fn poll_accept(&mut self, addr: SocketAddr, cx: &Context<'_>) -> Poll<(u64, SocketAddr)> {
        let paused = self.paused.contains(&addr);
        let Some(bound) = self.endpoints.get_mut(&addr) else { return Poll::Pending };
        if !paused && let Some(accepted) = bound.accepted.pop_front() {
            return Poll::Ready(accepted);
        }
        bound.acceptor = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Sends an item to one side of a stream.
    fn push(&mut self, stream: u64, side: usize, item: Item) {
        let Some(sides) = self.streams.get_mut(&stream) else { return };
        let pair = (sides[1 - side].bound, sides[side].bound);
        sides[side].coming.push_back(item);
        self.schedule(pair, Duration::ZERO, Delivery::Item { stream, side, again: false });
    }

    /// Whether what comes next to one side of a stream is something that was written to it.
    pub(super) fn is_open(&self, stream: u64, side: usize) -> bool {
        let next = self.streams.get(&stream).and_then(|sides| sides[side].coming.front());
        !matches!(next, Some(Item::Open(_)))
    }

    /// The direction that leads to one side of a stream, and what of it is under way.
    pub(super) fn flow(&mut self, stream: u64, side: usize) -> Option<(Pair, &mut Flow)> {
        let sides = self.streams.get_mut(&stream)?;
        Some(((sides[1 - side].bound, sides[side].bound), &mut sides[side].flow))
    }

    /// Bytes of what comes next to one side of a stream.
    pub(super) fn next_piece(&self, stream: u64, side: usize) -> usize {
        match self.streams.get(&stream).and_then(|sides| sides[side].coming.front()) {
            Some(Item::Data(data)) => data.len(),
            _ => 0,
        }
    }

    pub(super) fn arrive_item(&mut self, stream: u64, side: usize) {
        let Some(sides) = self.streams.get(&stream) else { return };
        let pair = (sides[1 - side].bound, sides[side].bound);
        if self.is_open(stream, side) && self.chance(self.link(pair).reset) {
            self.stats.broken += 1;
            self.reset(stream, 0);
            self.reset(stream, 1);
        }
        let Some(sides) = self.streams.get_mut(&stream) else { return };
        let (here, there) = pick(sides, side);
        let Some(item) = here.coming.pop_front() else { return };
        let awake = !self.paused.contains(&here.bound);
        match item {
            Item::Open(from) => match self.endpoints.get_mut(&here.bound) {
                Some(bound) if bound.accepted.len() < BACKLOG => {
                    here.owner = Some(bound.id);
                    bound.accepted.push_back((stream, from));
                    if awake {
                        self.woken.extend(bound.acceptor.take());
                    }
                }
                _ => {
                    self.reset(stream, side);
                    self.abandon(stream, side);
                }
            },
            Item::Data(data) if here.gone || here.reset => {
                here.unread -= data.len();
                self.woken.extend(there.writer.take());
                self.reset(stream, side);
            }
            news => {
                match news {
                    Item::Data(data) => here.inbox.push_back(data),
                    Item::Fin => here.ended = true,
                    _ => here.reset = true,
                }
                if awake {
                    let writer = here.writer.take_if(|_| here.reset);
                    self.woken.extend(here.reader.take().into_iter().chain(writer));
                }
            }
        }
    }

    pub(super) fn poll_read(
        &mut self,
        stream: u64,
        side: usize,
        cx: &Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(sides) = self.streams.get_mut(&stream) else { return Poll::Ready(Ok(())) };
        let (here, there) = pick(sides, side);
        if self.paused.contains(&here.bound) {
            here.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let before = buf.remaining();
        while let Some(data) = here.inbox.front_mut()
            && buf.remaining() > 0
        {
            let length = data.len().min(buf.remaining());
            buf.put_slice(&data[..length]);
            data.advance(length);
            if data.is_empty() {
                here.inbox.pop_front();
            }
        }
        let read = before - buf.remaining();
        if read > 0 || before == 0 {
            here.unread -= read;
            if !self.paused.contains(&there.bound) {
                self.woken.extend(there.writer.take());
            }
            return Poll::Ready(Ok(()));
        }
        if here.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if here.ended {
            return Poll::Ready(Ok(()));
        }
        here.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn poll_write(
        &mut self,
        stream: u64,
        side: usize,
        cx: &Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(sides) = self.streams.get_mut(&stream) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let (here, there) = pick(sides, side);
        let length = buf.len().min(WINDOW - there.unread);
        if self.paused.contains(&here.bound)
            || (length == 0 && !buf.is_empty() && !here.reset && !here.closed)
        {
            here.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if here.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if here.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if length > 0 {
            there.unread += length;
            let pair = (here.bound, there.bound);
            self.stats.chunks += 1;
            self.stats.bytes += length as u64;
            self.record("chunk", pair, &buf[..length]);
            if let Some(tap) = &self.tap {
                tap.said(stream, side, &buf[..length]);
            }
            self.push(stream, 1 - side, Item::Data(Bytes::copy_from_slice(&buf[..length])));
        }
        Poll::Ready(Ok(length))
    }

    pub(super) fn poll_shutdown(
        &mut self,
        stream: u64,
        side: usize,
        cx: &Context<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(sides) = self.streams.get_mut(&stream)
            && self.paused.contains(&sides[side].bound)
        {
            sides[side].writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.close(stream, side, Item::Fin);
        Poll::Ready(Ok(()))
    }

    /// Ends the direction from one side to the other, once.
    fn close(&mut self, stream: u64, side: usize, last: Item) {
        let Some(sides) = self.streams.get_mut(&stream) else { return };
        let pair = (sides[side].bound, sides[1 - side].bound);
        // Nothing is left to say to a peer that has reset the stream.
        let silent = sides[side].reset && matches!(last, Item::Fin);
        if silent || std::mem::replace(&mut sides[side].closed, true) {
            return;
        }
        self.record("close", pair, if matches!(last, Item::Fin) { b"fin" } else { b"reset" });
        self.push(stream, 1 - side, last);
    }

    /// One side of a stream breaks: its own host knows at once, the other when the news arrives.
    fn reset(&mut self, stream: u64, side: usize) {
        let Some(sides) = self.streams.get_mut(&stream) else { return };
        let here = &mut sides[side];
        if std::mem::replace(&mut here.reset, true) {
            return;
        }
        self.woken.extend(here.reader.take().into_iter().chain(here.writer.take()));
        // A side that has said it writes no more can still break.
        here.closed = false;
        self.close(stream, side, Item::Reset);
    }

    /// Every stream between two endpoints breaks, at both ends at once.
    pub(super) fn reset_between(&mut self, one: SocketAddr, other: SocketAddr) {
        let between = |[first, second]: &[Side; 2]| {
            (first.bound, second.bound) == (one, other) || (first.bound, second.bound) == (other, one)
        };
        let broken: Vec<_> =
            self.streams.iter().filter(|(_, sides)| between(sides)).map(|(&stream, _)| stream).collect();
        for stream in broken {
            self.reset(stream, 0);
            self.reset(stream, 1);
        }
    }

    /// Every stream of an endpoint breaks with it.
    pub(super) fn fell(&mut self, owner: u64) {
        let fallen: Vec<_> = self
            .streams
            .iter()
            .flat_map(|(&stream, [first, second])| [(stream, 0, first), (stream, 1, second)])
            .filter(|(_, _, side)| side.owner == Some(owner) && !side.gone)
            .map(|(stream, side, _)| (stream, side))
            .collect();
        fallen.into_iter().for_each(|(stream, side)| self.reset(stream, side));
    }

    /// One side of a stream is dropped: what it has sent still arrives, then its end.
    pub(super) fn abandon(&mut self, stream: u64, side: usize) {
        self.close(stream, side, Item::Fin);
        let Some(sides) = self.streams.get_mut(&stream) else { return };
        let (here, there) = pick(sides, side);
        here.gone = true;
        // Room for what nobody will read: a writer learns from a reset that it talks to no one. If the stream
        // is reset already, that news is on its way.
        if !here.reset {
            here.unread -= here.inbox.drain(..).map(|data| data.len()).sum::<usize>();
            self.woken.extend(there.writer.take());
        }
        if there.gone {
            self.streams.remove(&stream);
        }
    }
}

/// One side of a stream and the other.
fn pick(sides: &mut [Side; 2], side: usize) -> (&mut Side, &mut Side) {
    let [first, second] = sides;
    if side == 0 { (first, second) } else { (second, first) }
}
