//! Streams: frames on them, and what is said over them. Exchanges of full states are in
//! [`exchanges`](crate::exchanges), what users say in [`link`](crate::link); here are pings of nodes that
//! do not answer on datagrams.
//! Each stream is a task of its own, so that a restart of Transport cuts none. Each phase has a time limit.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use memberlist_protocol::{
    keyring::KeyId,
    member::NodeId,
    probe::Dialled,
    wire::{
        WireError, codec,
        compress::{BLOCK, BLOCK_HEAD, BlockHead, WORTHWHILE, pack_block},
        frame::{
            Barrier, Envelope, Head, LABEL, OTHER_WIRE, REFUSED, StreamKind, check_wire, is_other_wire,
            may_be_alert,
        },
        guard::Opened,
        message::{Ack, Message, Ping},
        seal::{End, Half, Opening, SEAL_HEAD},
        state::Refusal,
    },
};
use smallvec::SmallVec;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot},
    task::yield_now,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    exchanges,
    inbox::Refused,
    link,
    logs::{self, Line as Kind, say},
    messages::ToState,
    metrics::{Lost, up},
    network::{
        Connection,
        channel::{Channel, Refused as Closed},
        fault::{TlsFault, TlsFaultKind},
    },
    ring::Shared,
    rollout::{self, Way},
    transport::{Open, Use},
    uploads,
};

/// Room for one open stream; where it comes from, if somebody else has dialled.
pub(crate) struct Permit(pub(crate) Rc<Open>, Cell<(Use, Option<SocketAddr>)>);

impl Permit {
    pub(crate) fn new(open: Rc<Open>, of: Use, from: Option<SocketAddr>) -> Self {
        Self(open, Cell::new((of, from)))
    }

    /// The stream turns out to be a link's. Says whether there is room for one more of those.
    pub(crate) fn becomes_link(&self) -> bool {
        let room = self.0.has_room(Use::Linked, 0);
        if room {
            self.0.take(Use::Linked);
            let (of, from) = self.1.replace((Use::Linked, None));
            self.0.release(of, from);
        }
        room
    }

    /// Whether others wait for this stream's room.
    pub(crate) fn is_wanted(&self) -> bool {
        self.1.get().1.is_some_and(|from| self.0.is_crowded(from))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (of, from) = self.1.get();
        self.0.release(of, from);
    }
}

/// How a stream fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no answer in time")]
    Timeout,
    #[error("{0}")]
    Broken(io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("it speaks another version of the wire")]
    OtherWire,
    #[error("{0}")]
    Refused(Refusal),
    #[error("{0}")]
    Tls(Box<TlsFault>),
    #[error("the node is busy, or stops")]
    Unserved,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let inner = error.get_ref();
        if let Some(wire) = inner.and_then(|inner| inner.downcast_ref::<WireError>()) {
            return Self::Wire(*wire);
        }
        if let Some(fault) = TlsFault::of(&error) {
            return Self::Tls(Box::new(fault.clone()));
        }
        match inner.and_then(|inner| inner.downcast_ref::<Closed>()) {
            Some(Closed(why)) => Self::refused(*why),
            None => Self::Broken(error),
        }
    }
}

impl Failure {
    fn refused(why: Barrier) -> Self {
        Self::Refused(match why {
            Barrier::Label => Refusal::Label,
            Barrier::Key => Refusal::Key,
        })
    }
}

/// Memory is reserved in steps, as bytes arrive, however long a frame says that it is. A step is as long as
/// what has arrived, within these bounds.
const STEP: std::ops::RangeInclusive<usize> = 16 * 1024..=512 * 1024;

/// The part of a stream's time limit after which one that is silent gives way to others who wait.
const SILENT: u32 = 40;

/// The part of a stream's time limit that a peer of another version of the wire gets.
const HURRY: u32 = 10;

/// Bytes that such a peer may still send, to be thrown away.
const MAX_DRAINED: u64 = 1 << 20;

/// Bytes that a stranger has to have sent before it is told why it is refused: no answer is longer.
const ANSWERED: usize = OTHER_WIRE.len();

/// Bytes of a long frame that are read or written at once, before all else that the node has to do has its turn: a few
/// microseconds.
const HOLD: usize = 64 * 1024;

/// The length of a frame that goes in compressed blocks has this bit.
const PACKED: u32 = 1 << 31;

/// Most bytes of a ping or its answer.
const MAX_PING: usize = 2048;

pub(crate) struct Line<'a> {
    pub(crate) ring: &'a Shared,
    channel: Channel,
    /// Time limit of each phase.
    pub(crate) limit: Duration,
    /// Bytes a second that a long frame may take its time for, beyond that.
    pub(crate) pace: Option<u32>,
    /// What goes in front of the first frame.
    first: SmallVec<[u8; 16]>,
    /// Bytes of a stranger, so far.
    heard: usize,
    /// The key that the stream is sealed with.
    key: Option<KeyId>,
    /// The label that whoever has dialled says; of one that is not sealed and was dialled here: none.
    label: SmallVec<[u8; 32]>,
    /// Room for the bytes of the last frame.
    held: Option<SemaphorePermit<'a>>,
    /// The same of its address' part, if somebody else has dialled.
    held_of_source: Option<OwnedSemaphorePermit>,
    bodies_of_source: Option<Arc<Semaphore>>,
}

impl<'a> Line<'a> {
    pub(crate) fn new(ring: &'a Shared, connection: Box<dyn Connection>) -> Self {
        let (channel, limit) = (Channel::new(connection), ring.config.tcp_timeout);
        Self {
            ring,
            channel,
            limit,
            pace: None,
            first: SmallVec::new(),
            heard: 0,
            key: None,
            label: SmallVec::new(),
            held: None,
            held_of_source: None,
            bodies_of_source: None,
        }
    }

    /// The bare stream, once it is open.
    pub(crate) fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }

    /// Whoever has dialled turns out to be known by this address. It is heard further when a test lets it through.
    pub(crate) async fn met(&self, seen: SocketAddr, addr: SocketAddr) -> Result<(), Failure> {
        timeout(self.limit, self.ring.hooks.met(seen, addr)).await.map_err(|_| Failure::Timeout)
    }

    /// The same, by what it says who it is.
    pub(crate) async fn met_member(&self, seen: SocketAddr, id: &NodeId) -> Result<(), Failure> {
        let addr = self.ring.view.borrow().get(id.name()).map(|member| member.addr);
        match addr {
            Some(addr) => self.met(seen, addr).await,
            None => Ok(()),
        }
    }

    /// The key that the stream is sealed with.
    pub(crate) fn key(&self) -> Option<KeyId> {
        self.key
    }

    /// How the other side, which has dialled, can be spoken to: under the key and the label that it has used.
    pub(crate) fn way(&self) -> Option<Way> {
        let label = std::str::from_utf8(&self.label).ok().and_then(|label| Envelope::new(label).ok());
        Some(Way { key: self.key?, label: Some(label?) })
    }

    async fn within<T>(limit: Duration, io: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
        timeout(limit, io).await.map_err(|_| Failure::Timeout)?.map_err(Failure::from)
    }

    /// Says what the stream is for, and agrees on its seals. What it is for goes with the first frame.
    pub(crate) async fn open(&mut self, kind: StreamKind) -> Result<(), Failure> {
        let run = self.ring.run();
        let opened = self.ring.guard().open_stream(run);
        self.agree(kind, opened).await
    }

    /// The same under seal in any case, with that key, and perhaps another label than this node's.
    pub(crate) async fn open_sealed(
        &mut self,
        kind: StreamKind,
        key: KeyId,
        label: Option<&Envelope>,
    ) -> Result<(), Failure> {
        let run = self.ring.run();
        let opened = self.ring.guard().open_sealed(run, key, label);
        self.agree(kind, opened).await
    }

    async fn agree(&mut self, kind: StreamKind, opened: Opened) -> Result<(), Failure> {
        match opened {
            Opened::Plain(head) => self.first.extend_from_slice(&head),
            Opened::Sealed(head, opening) => {
                self.label = SmallVec::from_slice(Head::of(&head)?.label);
                let limit = self.limit;
                let channel = &mut self.channel;
                Self::within(limit, channel.write_all(&head)).await?;
                self.ring.counters.stream_bytes_sent.fetch_add(head.len() as u64, Relaxed);
                let half = self.answer(Half::LEN).await?;
                let half = half.first_chunk().ok_or(WireError::Truncated)?;
                self.seal(opening, Half::read(*half), End::Dialled)?;
            }
        }
        self.first.push(kind.byte());
        Ok(())
    }

    fn seal(&mut self, opening: Opening, accepted: Half, end: End) -> Result<(), Failure> {
        let seals = self.ring.guard().seals().stream(&self.label, opening, accepted, end);
        self.key = Some(opening.key);
        self.channel.seal(seals.ok_or(WireError::Sealed)?);
        Ok(())
    }

    /// How long a frame of so many bytes may take.
    fn time_for(&self, len: usize) -> Duration {
        let paced = self.pace.map(|pace| Duration::from_secs(len as u64 / u64::from(pace.max(1))));
        self.limit.max(paced.unwrap_or_default())
    }

    /// Writes one frame: `body` in parts.
    pub(crate) async fn write(&mut self, body: &[&[u8]]) -> Result<(), Failure> {
        let len: usize = body.iter().map(|part| part.len()).sum();
        let len_bytes = u32::try_from(len).ok().filter(|len| len & PACKED == 0).ok_or(WireError::TooLong)?;
        let mut head = std::mem::take(&mut self.first);
        let mut blocks = Blocks::of(body);
        let mut packed = Vec::new();
        let compress = self.ring.config.compress_streams && len >= WORTHWHILE;
        let mut sent = head.len() + 4 + len;
        if compress && blocks.next(&mut packed) {
            head.extend_from_slice(&(len_bytes | PACKED).to_le_bytes());
            sent = head.len();
            let (limit, channel) = (self.time_for(len), &mut self.channel);
            Self::within(limit, async {
                channel.write_all(&head).await?;
                while !packed.is_empty() {
                    sent += packed.len();
                    channel.write_all(&packed).await?;
                    packed.clear();
                    // A long frame takes its time beside all else that the node has to do.
                    yield_now().await;
                    blocks.next(&mut packed);
                }
                channel.flush().await
            })
            .await?;
        } else {
            head.extend_from_slice(&len_bytes.to_le_bytes());
            let (limit, channel) = (self.time_for(len), &mut self.channel);
            Self::within(limit, async {
                channel.write_all(&head).await?;
                for part in body {
                    for some in part.chunks(HOLD) {
                        channel.write_all(some).await?;
                        if part.len() > HOLD {
                            yield_now().await;
                        }
                    }
                }
                channel.flush().await
            })
            .await?;
        }
        self.ring.counters.stream_bytes_sent.fetch_add(sent as u64, Relaxed);
        Ok(())
    }

    /// The first bytes of an accepted stream: what it is for. They have the limit of one phase together.
    /// While others wait to be accepted, whoever says nothing soon is dropped.
    async fn kind(&mut self, permit: &Permit) -> Result<StreamKind, Failure> {
        let mut patience =
            tokio::time::interval_at(Instant::now() + self.limit / SILENT, self.limit / SILENT);
        let mut first = std::pin::pin!(self.begin());
        loop {
            tokio::select! {
                biased;
                kind = &mut first => return kind,
                _ = patience.tick() => if permit.is_wanted() {
                    return Err(Failure::Timeout);
                },
            }
        }
    }

    /// Reads what a stream begins with, as far as it is understood and let in.
    async fn begin(&mut self) -> Result<StreamKind, Failure> {
        let deadline = Instant::now() + self.limit;
        let mut head = SmallVec::<[u8; 32]>::new();
        // Of another version of the wire nothing is known but its first byte.
        self.hear(1, &mut head, deadline).await?;
        check_wire(head[0])?;
        self.hear(1, &mut head, deadline).await?;
        if head[1] == LABEL {
            self.hear(1, &mut head, deadline).await?;
            let len = usize::from(head[2]);
            self.hear(len + 1, &mut head, deadline).await?;
        }
        let head = Head::of(&head)?;
        let sealed = self.ring.guard().admit_stream(head)?;
        self.label = SmallVec::from_slice(head.label);
        let mut kind = SmallVec::<[u8; 32]>::new();
        if sealed {
            let mut opening = SmallVec::<[u8; 32]>::new();
            self.hear(SEAL_HEAD, &mut opening, deadline).await?;
            let opening =
                opening.first_chunk().map(|bytes| Opening::read(*bytes)).ok_or(WireError::Truncated)?;
            if !self.ring.guard().seals().has(opening.key) {
                return Err(WireError::Sealed.into());
            }
            let run = self.ring.run();
            let half = self.ring.guard().seals().half(run);
            let answer = [&(Half::LEN as u32).to_le_bytes()[..], &half.to_bytes()].concat();
            let channel = &mut self.channel;
            Self::within(self.limit, channel.write_all(&answer)).await?;
            self.ring.counters.stream_bytes_sent.fetch_add(answer.len() as u64, Relaxed);
            self.seal(opening, half, End::Accepted)?;
        } else if self.ring.guard().is_open() {
            up(&self.ring.counters.streams_unsealed);
        }
        self.hear(1, &mut kind, deadline).await?;
        Ok(StreamKind::of(kind[0])?)
    }

    /// Reads `len` bytes of somebody who is not let in so far.
    async fn hear(
        &mut self,
        len: usize,
        into: &mut SmallVec<[u8; 32]>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let at = into.len();
        into.resize(at + len, 0);
        self.read_exact(&mut into[at..], deadline).await?;
        self.heard += len;
        Ok(())
    }

    /// The next frame of at most `max` bytes.
    pub(crate) async fn frame(&mut self, max: usize) -> Result<Bytes, Failure> {
        self.next_frame(max).await?.ok_or(WireError::Truncated.into())
    }

    /// The next frame, unless the other side has ended the stream.
    pub(crate) async fn next_frame(&mut self, max: usize) -> Result<Option<Bytes>, Failure> {
        match self.length().await? {
            Some(len) => self.body(len, max).await.map(Some),
            None => Ok(None),
        }
    }

    /// The next frame, unless the other side has ended the stream, or says nothing while others wait to be
    /// accepted.
    pub(crate) async fn next_frame_or_way(
        &mut self,
        max: usize,
        permit: &Permit,
    ) -> Result<Option<Bytes>, Failure> {
        // What the last one took is free again.
        self.let_go();
        let mut patience =
            tokio::time::interval_at(Instant::now() + self.limit / SILENT, self.limit / SILENT);
        let mut first = [0];
        let (limit, deadline) = (self.limit, Instant::now() + self.limit);
        let read = {
            let mut read = std::pin::pin!(Self::within(limit, self.channel.read(&mut first)));
            loop {
                tokio::select! {
                    biased;
                    read = &mut read => break read?,
                    _ = patience.tick() => if permit.is_wanted() {
                        return Ok(None);
                    },
                }
            }
        };
        if read == 0 {
            return Ok(None);
        }
        let mut rest = [0; 3];
        self.read_exact(&mut rest, deadline).await?;
        self.body([first[0], rest[0], rest[1], rest[2]], max).await.map(Some)
    }

    /// The answer of whoever was dialled.
    pub(crate) async fn answer(&mut self, max: usize) -> Result<Bytes, Failure> {
        let len = self.length().await?.ok_or(WireError::Truncated)?;
        self.answer_of(len, max).await
    }

    /// The same, when its first byte has been read.
    pub(crate) async fn rest_of_answer(&mut self, first: u8, max: usize) -> Result<Bytes, Failure> {
        let mut rest = [0; 3];
        self.read_exact(&mut rest, Instant::now() + self.limit).await?;
        self.answer_of([first, rest[0], rest[1], rest[2]], max).await
    }

    async fn answer_of(&mut self, len: [u8; 4], max: usize) -> Result<Bytes, Failure> {
        if is_other_wire(len) {
            return Err(Failure::OtherWire);
        }
        if len == REFUSED {
            let mut why = [0];
            self.read_exact(&mut why, Instant::now() + self.limit).await?;
            return Err(Failure::refused(Barrier::read(why[0])?));
        }
        match self.body(len, max).await {
            // No answer was, but the end or too much of one: so it was an alert.
            Err(Failure::Wire(WireError::Truncated | WireError::TooLong) | Failure::Broken(_))
                if may_be_alert(len) =>
            {
                Err(WireError::Tls.into())
            }
            body => body,
        }
    }

    /// The length of the next frame, unless the other side has ended the stream.
    async fn length(&mut self) -> Result<Option<[u8; 4]>, Failure> {
        let (mut len, deadline) = ([0; 4], Instant::now() + self.limit);
        let first = Self::within(self.limit, self.channel.read(&mut len)).await?;
        if first == 0 {
            return Ok(None);
        }
        self.read_exact(&mut len[first..], deadline).await?;
        Ok(Some(len))
    }

    async fn body(&mut self, len: [u8; 4], max: usize) -> Result<Bytes, Failure> {
        let len = u32::from_le_bytes(len);
        let (len, packed) = ((len & !PACKED) as usize, len & PACKED != 0);
        if len > max {
            return Err(WireError::TooLong.into());
        }
        let deadline = Instant::now() + self.time_for(len);
        let mut body = Vec::new();
        self.let_go();
        let read = if packed {
            self.blocks(len, deadline, &mut body).await
        } else {
            self.bytes(len, deadline, &mut body).await
        };
        let received = read?;
        self.ring.counters.stream_bytes_received.fetch_add((4 + received) as u64, Relaxed);
        Ok(body.into())
    }

    /// Makes more room in memory for a body, of which `left` bytes have none so far.
    async fn reserve(&mut self, body: &mut Vec<u8>, left: usize, deadline: Instant) -> Result<(), Failure> {
        // What is short waits for nobody: a ping must not be late because of states and messages.
        if body.capacity() == 0 && left <= MAX_PING {
            body.reserve_exact(left);
            return Ok(());
        }
        let step = body.capacity().clamp(*STEP.start(), *STEP.end()).min(left);
        let kib = u32::try_from(step.div_ceil(1024)).unwrap_or(u32::MAX);
        self.of_source(kib, deadline).await?;
        let room = timeout_at(deadline, self.ring.bodies.acquire_many(kib)).await;
        let room = room.map_err(|_| Failure::Timeout)?.map_err(|_| Failure::Unserved)?;
        match &mut self.held {
            Some(held) => held.merge(room),
            none => *none = Some(room),
        }
        // A block may need more than one step: what is there already is not this one's.
        body.reserve_exact(body.capacity() - body.len() + step);
        Ok(())
    }

    async fn bytes(&mut self, len: usize, deadline: Instant, body: &mut Vec<u8>) -> Result<usize, Failure> {
        while body.len() < len {
            let left = len - body.len();
            if body.capacity() == body.len() {
                self.reserve(body, left, deadline).await?;
            }
            let mut rest = (&mut self.channel).take(left.min(HOLD) as u64);
            let read = timeout_at(deadline, rest.read_buf(body)).await;
            if read.map_err(|_| Failure::Timeout)?? == 0 {
                return Err(WireError::Truncated.into());
            }
            if body.len() < len && len > HOLD {
                yield_now().await;
            }
        }
        Ok(len)
    }

    /// Reads compressed blocks. Says how many bytes they were.
    async fn blocks(&mut self, len: usize, deadline: Instant, body: &mut Vec<u8>) -> Result<usize, Failure> {
        let (mut block, mut received) = (Vec::new(), 0);
        while body.len() < len {
            let left = len - body.len();
            let mut head = [0; BLOCK_HEAD];
            let read = timeout_at(deadline, self.channel.read_exact(&mut head)).await;
            read.map_err(|_| Failure::Timeout)?.map_err(cut_off)?;
            let head = BlockHead::read(head, left)?;
            block.resize(head.packed, 0);
            let read = timeout_at(deadline, self.channel.read_exact(&mut block)).await;
            read.map_err(|_| Failure::Timeout)?.map_err(cut_off)?;
            while body.capacity() < body.len() + head.len {
                let more = left - (body.capacity() - body.len()).min(left);
                self.reserve(body, more, deadline).await?;
            }
            head.unpack(&block, body)?;
            received += BLOCK_HEAD + block.len();
            yield_now().await;
        }
        Ok(received)
    }

    /// The bytes of the last frame are somebody else's concern.
    fn let_go(&mut self) {
        (self.held, self.held_of_source) = (None, None);
    }

    /// Takes from what the streams of one address may hold, so that they leave something to others.
    async fn of_source(&mut self, kib: u32, deadline: Instant) -> Result<(), Failure> {
        let Some(bodies) = &self.bodies_of_source else { return Ok(()) };
        let room = timeout_at(deadline, bodies.clone().acquire_many_owned(kib)).await;
        let room = room.map_err(|_| Failure::Timeout)?.map_err(|_| Failure::Unserved)?;
        match &mut self.held_of_source {
            Some(held) => held.merge(room),
            none => *none = Some(room),
        }
        Ok(())
    }

    /// Tells whoever is not let in why it has no other answer.
    async fn refuse(&mut self, answer: &[u8]) {
        // Whatever was sealed has led to nothing.
        self.channel.unseal();
        let missing = if answer.is_empty() { 0 } else { ANSWERED.saturating_sub(self.heard) };
        let channel = &mut self.channel;
        let sent = &self.ring.counters.stream_bytes_sent;
        let farewell = async {
            let mut rest = [0; ANSWERED];
            channel.read_exact(&mut rest[..missing]).await?;
            channel.write_all(answer).await?;
            sent.fetch_add(answer.len() as u64, Relaxed);
            channel.shutdown().await?;
            // A close with bytes unread could take the answer back on its way.
            tokio::io::copy(&mut channel.take(MAX_DRAINED), &mut tokio::io::sink()).await
        };
        let _ = timeout(self.limit / HURRY, farewell).await;
    }

    /// However the bytes trickle in: a phase ends at its deadline.
    async fn read_exact(&mut self, buf: &mut [u8], deadline: Instant) -> Result<(), Failure> {
        let read = timeout_at(deadline, self.channel.read_exact(buf)).await;
        read.map_err(|_| Failure::Timeout)?.map(drop).map_err(cut_off)
    }
}

/// An end in the middle of something is bad bytes.
fn cut_off(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::UnexpectedEof { WireError::Truncated.into() } else { error.into() }
}

/// A body in parts, as compressed blocks.
struct Blocks<'a> {
    parts: &'a [&'a [u8]],
    at: usize,
    block: Vec<u8>,
}

impl<'a> Blocks<'a> {
    fn of(parts: &'a [&'a [u8]]) -> Self {
        Self { parts, at: 0, block: Vec::new() }
    }

    /// Adds the next block to `out`, if there is one, and says whether it is shorter than what it stands for.
    fn next(&mut self, out: &mut Vec<u8>) -> bool {
        self.block.clear();
        while let Some((part, rest)) = self.parts.split_first() {
            let len = (BLOCK - self.block.len()).min(part.len() - self.at);
            self.block.extend_from_slice(&part[self.at..self.at + len]);
            self.at += len;
            if self.at < part.len() {
                break;
            }
            (self.parts, self.at) = (rest, 0);
        }
        !self.block.is_empty() && pack_block(&self.block, out)
    }
}

/// Asks NodeState something.
pub(crate) async fn ask<T>(
    ring: &Shared,
    question: impl FnOnce(oneshot::Sender<T>) -> ToState,
) -> Result<T, Failure> {
    let (reply, answer) = oneshot::channel();
    ring.state.command(question(reply)).map_err(|refused| {
        if refused == Refused::Busy {
            ring.counters.drop(Lost::InboxControl);
        }
        Failure::Unserved
    })?;
    answer.await.map_err(|_| Failure::Unserved)
}

/// Serves a stream that somebody opened.
pub(crate) async fn serve(ring: Shared, permit: Permit, connection: Box<dyn Connection>, from: SocketAddr) {
    let mut line = Line::new(&ring, connection);
    line.bodies_of_source = permit.0.sources.borrow().bodies(from);
    if let Err(failure) = served(&ring, &permit, &mut line, from).await {
        count(&ring, &failure);
        match failure {
            Failure::Wire(WireError::WireVersion | WireError::Tls) => line.refuse(&OTHER_WIRE).await,
            Failure::Wire(error) => {
                if let Some(barrier) = Barrier::of(error) {
                    line.refuse(&barrier.answer()).await;
                }
            }
            // Its alert is on the way.
            Failure::Tls(ref fault) if fault.linger => line.refuse(&[]).await,
            _ => {}
        }
        match failure {
            Failure::OtherWire | Failure::Refused(_) | Failure::Tls(_) => {}
            Failure::Timeout => {
                say!(ring, Kind::StreamTimeout, debug, %from, "stream dropped: it takes too long")
            }
            Failure::Broken(error) => say!(ring, Kind::StreamBroken, debug, %from, %error, "stream broke"),
            Failure::Unserved => {
                say!(ring, Kind::StreamUnserved, debug, %from, "stream dropped: no time for it")
            }
            Failure::Wire(error) => {
                let hint = logs::hint(error);
                say!(ring, Kind::Stream(error), warn, %from, hint, "stream dropped: {error}");
            }
        }
    }
    drop(permit);
}

pub(crate) fn count(ring: &Shared, failure: &Failure) {
    match failure {
        Failure::Timeout => ring.counters.drop(Lost::StreamTimeout),
        Failure::Broken(_) => ring.counters.drop(Lost::StreamBroken),
        Failure::Wire(error) => ring.counters.drop(*error),
        Failure::OtherWire => ring.counters.drop(WireError::WireVersion),
        Failure::Refused(_) => ring.counters.drop(Lost::StreamRefused),
        Failure::Tls(fault) => {
            ring.counters.drop(fault.lost());
            let with = fault.with;
            if fault.kind == TlsFaultKind::Cut {
                say!(ring, fault.line(), debug, %with, "a stream has ended: {fault}");
            } else {
                say!(ring, fault.line(), warn, %with, "a stream has ended: {fault}");
            }
        }
        Failure::Unserved => {}
    }
}

async fn served(
    ring: &Shared,
    permit: &Permit,
    line: &mut Line<'_>,
    from: SocketAddr,
) -> Result<(), Failure> {
    match line.kind(permit).await? {
        StreamKind::PushPull => exchanges::serve(ring, &permit.0, line, from).await,
        StreamKind::Link => link::serve(ring, permit, line, from).await,
        StreamKind::Upload => uploads::serve(ring, permit, line, from).await,
        StreamKind::Order => rollout::serve(ring, line, from).await,
        StreamKind::Ping => {
            let bytes = line.frame(MAX_PING).await?;
            let Message::Ping(ping) = codec::decode(&bytes)? else { return Err(WireError::Kind.into()) };
            line.met_member(from, &ping.from).await?;
            if !ring.view.borrow().local().id.answers_to(&ping.target) {
                return Ok(());
            }
            let ack = Message::Ack(Ack { seq: ping.seq, payload: Bytes::new() });
            let bytes = codec::encoded(&ack, MAX_PING).map_err(|_| WireError::TooLong)?;
            line.write(&[&bytes]).await
        }
    }
}

pub(crate) async fn dial(
    ring: &Shared,
    addr: SocketAddr,
    limit: Duration,
) -> Result<Box<dyn Connection>, Failure> {
    up(&ring.counters.streams_dialled);
    Line::within(limit, ring.endpoint.dial(addr)).await
}

/// Pings over a stream.
pub(crate) async fn ping(
    ring: &Shared,
    _permit: Permit,
    seq: u32,
    target: NodeId,
    addr: SocketAddr,
    deadline: Instant,
) -> Dialled {
    let exchange = async {
        let limit = ring.config.tcp_timeout;
        let mut line = Line::new(ring, dial(ring, addr, limit).await?);
        let from = ring.view.borrow().local().id.clone();
        let ping = Message::Ping(Ping { seq, target, from });
        let bytes = codec::encoded(&ping, MAX_PING).map_err(|_| WireError::TooLong)?;
        line.open(StreamKind::Ping).await?;
        line.write(&[&bytes]).await?;
        Ok::<_, Failure>(codec::decode(&line.answer(MAX_PING).await?)?)
    };
    match timeout_at(deadline, exchange).await {
        Ok(Ok(Message::Ack(ack))) if ack.seq == seq => Dialled::Answered,
        Ok(Err(Failure::Broken(error))) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Dialled::Refused
        }
        Ok(Err(failure @ Failure::Tls(_))) => {
            count(ring, &failure);
            Dialled::Silent
        }
        _ => Dialled::Silent,
    }
}
