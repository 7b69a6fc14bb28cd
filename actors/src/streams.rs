//! Streams: frames on them, and what is said over them. Exchanges of full states are in
//! [`exchanges`](crate::exchanges), bytes of users in [`parcels`](crate::parcels); here are pings of nodes that
//! do not answer on datagrams.
//! Each stream is a task of its own, so that a restart of Transport cuts none. Each phase has a time limit.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use memberlist_protocol::{
    member::NodeId,
    wire::{
        WireError, codec,
        frame::{OTHER_WIRE, StreamKind, check_wire, is_other_wire},
        message::{Ack, Message, Ping},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    exchanges,
    inbox::Refused,
    logs::{self, Line as Kind, say},
    messages::ToState,
    metrics::{Lost, up},
    network::Connection,
    parcels,
    ring::Shared,
    transport::{Open, Use},
};

/// Room for one open stream; where it comes from, if somebody else has dialled.
pub(crate) struct Permit(pub(crate) Rc<Open>, pub(crate) Use, pub(crate) Option<SocketAddr>);

impl Permit {
    /// Whether others wait for this stream's room.
    pub(crate) fn is_wanted(&self) -> bool {
        self.2.is_some_and(|from| self.0.is_crowded(from))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release(self.1, self.2);
    }
}

/// How a stream fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no answer in time")]
    Timeout,
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("it speaks another version of the wire")]
    OtherWire,
    #[error("the node is busy, or stops")]
    Unserved,
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

/// Most bytes of a ping or its answer.
const MAX_PING: usize = 2048;

pub(crate) struct Line<'a> {
    pub(crate) ring: &'a Shared,
    pub(crate) connection: Box<dyn Connection>,
    /// Time limit of each phase.
    pub(crate) limit: Duration,
    /// Room for the bytes of the last frame.
    held: Option<SemaphorePermit<'a>>,
    /// The same of its address' part, if somebody else has dialled.
    held_of_source: Option<OwnedSemaphorePermit>,
    bodies_of_source: Option<Arc<Semaphore>>,
}

impl<'a> Line<'a> {
    pub(crate) fn new(ring: &'a Shared, connection: Box<dyn Connection>) -> Self {
        Self {
            ring,
            connection,
            limit: ring.config.tcp_timeout,
            held: None,
            held_of_source: None,
            bodies_of_source: None,
        }
    }

    async fn within<T>(limit: Duration, io: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
        timeout(limit, io).await.map_err(|_| Failure::Timeout)?.map_err(Failure::Broken)
    }

    /// Says what the stream is for.
    pub(crate) async fn open(&mut self, kind: StreamKind) -> Result<(), Failure> {
        let head = self.ring.envelope.open_stream(kind);
        Self::within(self.limit, self.connection.write_all(&head)).await?;
        self.ring.counters.stream_bytes_sent.fetch_add(head.len() as u64, Relaxed);
        Ok(())
    }

    /// Writes one frame: `body` in parts, with `head` in front of it.
    pub(crate) async fn write(&mut self, head: &[u8], body: &[&[u8]]) -> Result<(), Failure> {
        let len: usize = body.iter().map(|part| part.len()).sum();
        let len_bytes = u32::try_from(len).map_err(|_| WireError::TooLong)?.to_le_bytes();
        let connection = &mut self.connection;
        Self::within(self.limit, async {
            connection.write_all(&[head, &len_bytes].concat()).await?;
            for part in body {
                connection.write_all(part).await?;
            }
            connection.flush().await
        })
        .await?;
        self.ring.counters.stream_bytes_sent.fetch_add((head.len() + 4 + len) as u64, Relaxed);
        Ok(())
    }

    /// The first bytes of an accepted stream: what it is for. They have the limit of one phase together. While others wait to be accepted, whoever says
    /// nothing soon is dropped.
    async fn kind(&mut self, permit: &Permit) -> Result<StreamKind, Failure> {
        let mut head = vec![0; self.ring.envelope.len() + 1];
        let deadline = Instant::now() + self.limit;
        let mut patience =
            tokio::time::interval_at(Instant::now() + self.limit / SILENT, self.limit / SILENT);
        {
            // Of another version of the wire nothing is known but its first byte.
            let mut first = std::pin::pin!(async {
                self.read_exact(&mut head[..1], deadline).await?;
                check_wire(head[0])?;
                self.read_exact(&mut head[1..], deadline).await
            });
            loop {
                tokio::select! {
                    biased;
                    read = &mut first => break read?,
                    _ = patience.tick() => if permit.is_wanted() {
                        return Err(Failure::Timeout);
                    },
                }
            }
        }
        let [kind] = self.ring.envelope.strip(&head)? else { return Err(WireError::Label.into()) };
        Ok(StreamKind::of(*kind)?)
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
            let mut read = std::pin::pin!(Self::within(limit, self.connection.read(&mut first)));
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
        if is_other_wire(len) { Err(Failure::OtherWire) } else { self.body(len, max).await }
    }

    /// The length of the next frame, unless the other side has ended the stream.
    async fn length(&mut self) -> Result<Option<[u8; 4]>, Failure> {
        let (mut len, deadline) = ([0; 4], Instant::now() + self.limit);
        let first = Self::within(self.limit, self.connection.read(&mut len)).await?;
        if first == 0 {
            return Ok(None);
        }
        self.read_exact(&mut len[first..], deadline).await?;
        Ok(Some(len))
    }

    async fn body(&mut self, len: [u8; 4], max: usize) -> Result<Bytes, Failure> {
        let len = u32::from_le_bytes(len) as usize;
        if len > max {
            return Err(WireError::TooLong.into());
        }
        let deadline = Instant::now() + self.limit;
        let (mut body, ring) = (Vec::new(), self.ring);
        self.let_go();
        while body.len() < len {
            let at = body.len();
            if body.capacity() == at {
                let step = at.clamp(*STEP.start(), *STEP.end()).min(len - at);
                let kib = u32::try_from(step.div_ceil(1024)).unwrap_or(u32::MAX);
                self.of_source(kib, deadline).await?;
                let room = timeout_at(deadline, ring.bodies.acquire_many(kib)).await;
                let room = room.map_err(|_| Failure::Timeout)?.map_err(|_| Failure::Unserved)?;
                match &mut self.held {
                    Some(held) => held.merge(room),
                    none => *none = Some(room),
                }
                body.reserve_exact(step);
            }
            let mut rest = (&mut self.connection).take((len - at) as u64);
            let read = timeout_at(deadline, rest.read_buf(&mut body)).await;
            if read.map_err(|_| Failure::Timeout)?? == 0 {
                return Err(WireError::Truncated.into());
            }
        }
        self.ring.counters.stream_bytes_received.fetch_add((4 + len) as u64, Relaxed);
        Ok(body.into())
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

    /// Tells a peer of another version of the wire why it has no other answer, once it has sent as many bytes as
    /// it gets. One has been read.
    async fn refuse_wire(&mut self) {
        let (connection, ring) = (&mut self.connection, self.ring);
        let farewell = async {
            connection.read_exact(&mut [0; OTHER_WIRE.len() - 1]).await?;
            connection.write_all(&OTHER_WIRE).await?;
            ring.counters.stream_bytes_sent.fetch_add(OTHER_WIRE.len() as u64, Relaxed);
            connection.shutdown().await?;
            // A close with bytes unread could take the answer back on its way.
            tokio::io::copy(&mut connection.take(MAX_DRAINED), &mut tokio::io::sink()).await
        };
        let _ = timeout(self.limit / HURRY, farewell).await;
    }

    /// However the bytes trickle in: a phase ends at its deadline.
    async fn read_exact(&mut self, buf: &mut [u8], deadline: Instant) -> Result<(), Failure> {
        match timeout_at(deadline, self.connection.read_exact(buf)).await.map_err(|_| Failure::Timeout)? {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(WireError::Truncated.into()),
            Err(error) => Err(error.into()),
        }
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
        if matches!(failure, Failure::Wire(WireError::WireVersion)) {
            line.refuse_wire().await;
        }
        match failure {
            Failure::OtherWire => {}
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
        StreamKind::PushPull => exchanges::serve(ring, line, from).await,
        StreamKind::User => parcels::serve(ring, permit, line, from).await,
        StreamKind::Ping => {
            let bytes = line.frame(MAX_PING).await?;
            let Message::Ping(ping) = codec::decode(&bytes)? else { return Err(WireError::Kind.into()) };
            if !ring.view.borrow().local().id.answers_to(&ping.target) {
                return Ok(());
            }
            let ack = Message::Ack(Ack { seq: ping.seq, payload: Bytes::new() });
            let bytes = codec::encoded(&ack, MAX_PING).map_err(|_| WireError::TooLong)?;
            line.write(&[], &[&bytes]).await
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

/// Pings over a stream, and says whether there was the right answer in time.
pub(crate) async fn ping(
    ring: &Shared,
    _permit: Permit,
    seq: u32,
    target: NodeId,
    addr: SocketAddr,
    deadline: Instant,
) -> bool {
    let exchange = async {
        let limit = ring.config.tcp_timeout;
        let mut line = Line::new(ring, dial(ring, addr, limit).await?);
        let from = ring.view.borrow().local().id.clone();
        let ping = Message::Ping(Ping { seq, target, from });
        let bytes = codec::encoded(&ping, MAX_PING).map_err(|_| WireError::TooLong)?;
        line.write(&ring.envelope.open_stream(StreamKind::Ping), &[&bytes]).await?;
        Ok::<_, Failure>(codec::decode(&line.answer(MAX_PING).await?)?)
    };
    match timeout_at(deadline, exchange).await {
        Ok(Ok(Message::Ack(ack))) => ack.seq == seq,
        _ => false,
    }
}
