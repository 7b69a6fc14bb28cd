//! What is said over a stream: exchanges of full states, and pings of nodes that do not answer on datagrams.
//! Each stream is a task of its own, so that a restart of Transport cuts none. Each phase has a time limit.

use std::{io, net::SocketAddr, rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use memberlist_protocol::{
    member::NodeId,
    wire::{
        WireError, codec,
        frame::StreamKind,
        message::{Ack, Message, Ping},
        state::State,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    errors::JoinError,
    inbox::Refused,
    logs::{self, Line as Kind, say},
    messages::{Exchange, ToState},
    metrics::{Lost, up},
    network::Connection,
    ring::Shared,
    transport::Open,
};

/// Room for one open stream.
pub(crate) struct Permit(pub(crate) Rc<Open>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// How a stream fails.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer in time")]
    Timeout,
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("the node is busy, or stops")]
    Unserved,
}

/// Memory is reserved in steps, as bytes arrive, however long a frame says that it is. A step is as long as
/// what has arrived, within these bounds.
const STEP: std::ops::RangeInclusive<usize> = 16 * 1024..=512 * 1024;

/// The part of a stream's time limit after which one that is silent gives way to others who wait.
const SILENT: u32 = 40;

/// Most bytes of a ping or its answer.
const MAX_PING: usize = 2048;

struct Line<'a> {
    ring: &'a Shared,
    connection: Box<dyn Connection>,
    limit: Duration,
}

impl Line<'_> {
    async fn within<T>(limit: Duration, io: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
        timeout(limit, io).await.map_err(|_| Failure::Timeout)?.map_err(Failure::Broken)
    }

    async fn write(&mut self, head: &[u8], body: &[u8]) -> Result<(), Failure> {
        let len = u32::try_from(body.len()).map_err(|_| WireError::TooLong)?.to_le_bytes();
        let connection = &mut self.connection;
        Self::within(self.limit, async {
            connection.write_all(&[head, &len].concat()).await?;
            connection.write_all(body).await?;
            connection.flush().await
        })
        .await?;
        self.ring.counters.stream_bytes_sent.fetch_add((head.len() + 4 + body.len()) as u64, Relaxed);
        Ok(())
    }

    /// The first bytes of an accepted stream: what it is for. While others wait to be accepted, whoever says
    /// nothing soon is dropped.
    async fn kind(&mut self, open: &Open) -> Result<StreamKind, Failure> {
        let mut head = vec![0; self.ring.envelope.len() + 1];
        let mut patience =
            tokio::time::interval_at(Instant::now() + self.limit / SILENT, self.limit / SILENT);
        {
            let mut first = std::pin::pin!(self.read_exact(&mut head));
            loop {
                tokio::select! {
                    biased;
                    read = &mut first => break read?,
                    _ = patience.tick() => if open.is_crowded() {
                        return Err(Failure::Timeout);
                    },
                }
            }
        }
        let [kind] = self.ring.envelope.strip(&head)? else { return Err(WireError::Label.into()) };
        Ok(StreamKind::of(*kind)?)
    }

    async fn frame(&mut self, max: usize) -> Result<Bytes, Failure> {
        let mut len = [0; 4];
        self.read_exact(&mut len).await?;
        let len = u32::from_le_bytes(len) as usize;
        if len > max {
            return Err(WireError::TooLong.into());
        }
        let deadline = Instant::now() + self.limit;
        let mut body = Vec::new();
        while body.len() < len {
            let at = body.len();
            if body.capacity() == at {
                body.reserve_exact(at.clamp(*STEP.start(), *STEP.end()).min(len - at));
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

    async fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), Failure> {
        match Self::within(self.limit, self.connection.read_exact(buf)).await {
            Err(Failure::Broken(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(WireError::Truncated.into())
            }
            other => other.map(drop),
        }
    }
}

/// Asks NodeState something.
async fn ask<T>(ring: &Shared, question: impl FnOnce(oneshot::Sender<T>) -> ToState) -> Result<T, Failure> {
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
    let mut line = Line { ring: &ring, connection, limit: ring.config.tcp_timeout };
    if let Err(failure) = served(&ring, &permit.0, &mut line, from).await {
        count(&ring, &failure);
        match failure {
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

fn count(ring: &Shared, failure: &Failure) {
    match failure {
        Failure::Timeout => ring.counters.drop(Lost::StreamTimeout),
        Failure::Broken(_) => ring.counters.drop(Lost::StreamBroken),
        Failure::Wire(error) => ring.counters.drop(*error),
        Failure::Unserved => {}
    }
}

async fn served(ring: &Shared, open: &Open, line: &mut Line<'_>, from: SocketAddr) -> Result<(), Failure> {
    match line.kind(open).await? {
        StreamKind::PushPull => {
            let bytes = line.frame(ring.config.max_state_size).await?;
            ring.counters.size_remote.observe_value(bytes.len() as u64);
            let Ok(peer) = State::decode(bytes)? else { return Err(WireError::Kind.into()) };
            let peer_id = peer.sender()?.alive.id;
            let answer = ask(ring, |reply| ToState::Exchange { peer: Box::new(peer), reply }).await?;
            if let Err(refusal) = &answer {
                let (peer, why) = (logs::node(&peer_id), logs::text(refusal));
                say!(ring, Kind::Refused, warn, %peer, %from, %why, "refused a peer that wants to join or to exchange states");
            }
            line.write(&[], &answer.unwrap_or_else(State::refuse)).await
        }
        StreamKind::Ping => {
            let bytes = line.frame(MAX_PING).await?;
            let Message::Ping(ping) = codec::decode(&bytes)? else { return Err(WireError::Kind.into()) };
            if ping.target != ring.view.borrow().local().id {
                return Ok(());
            }
            let ack = Message::Ack(Ack { seq: ping.seq, payload: Bytes::new() });
            let bytes = codec::encoded(&ack, MAX_PING).map_err(|_| WireError::TooLong)?;
            line.write(&[], &bytes).await
        }
    }
}

async fn dial(ring: &Shared, addr: SocketAddr, limit: Duration) -> Result<Box<dyn Connection>, Failure> {
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
        let mut line = Line { ring, connection: dial(ring, addr, limit).await?, limit };
        let from = ring.view.borrow().local().id.clone();
        let ping = Message::Ping(Ping { seq, target, from });
        let bytes = codec::encoded(&ping, MAX_PING).map_err(|_| WireError::TooLong)?;
        line.write(&ring.envelope.open_stream(StreamKind::Ping), &bytes).await?;
        Ok::<_, Failure>(codec::decode(&line.frame(MAX_PING).await?)?)
    };
    match timeout_at(deadline, exchange).await {
        Ok(Ok(Message::Ack(ack))) => ack.seq == seq,
        _ => false,
    }
}

/// Exchanges full states with whoever is at `addr`, and says who that was once its state is taken in.
pub(crate) async fn push_pull(
    ring: &Shared,
    permit: Permit,
    addr: SocketAddr,
    why: Exchange,
) -> Result<NodeId, JoinError> {
    let (join, start) = (why == Exchange::Join, Instant::now());
    let limit = ring.config.tcp_timeout;
    let own = ask(ring, |reply| ToState::Give { join, reply }).await.map_err(|_| JoinError::Lost)?;
    up(&ring.counters.states_dialled);
    let connection = dial(ring, addr, limit).await.map_err(|failure| match failure {
        Failure::Timeout => JoinError::Timeout,
        failure => JoinError::Unreachable(addr, failure.to_string()),
    })?;
    let mut line = Line { ring, connection, limit };
    let exchanged = async {
        line.write(&ring.envelope.open_stream(StreamKind::PushPull), &own).await?;
        let bytes = line.frame(ring.config.max_state_size).await?;
        ring.counters.size_remote.observe_value(bytes.len() as u64);
        let answer = State::decode(bytes)?;
        if let Ok(peer) = &answer {
            peer.sender()?;
        }
        Ok(answer)
    };
    let answer = exchanged.await.map_err(|failure| {
        count(ring, &failure);
        match failure {
            Failure::Timeout => JoinError::Timeout,
            Failure::Broken(_) | Failure::Wire(WireError::Truncated) => JoinError::NoAnswer(addr),
            failure => JoinError::Garbled(addr, failure.to_string()),
        }
    })?;
    drop((line, permit));
    let peer = answer.map_err(JoinError::Refused)?;
    if peer.header.from == ring.view.borrow().local().id {
        return Err(JoinError::Oneself);
    }
    let merged = ask(ring, |reply| ToState::Merge { peer: Box::new(peer), why, reply }).await;
    ring.counters.push_pull.observe(start.elapsed());
    merged.map_err(|_| JoinError::Lost)?.map_err(JoinError::Refused)
}
