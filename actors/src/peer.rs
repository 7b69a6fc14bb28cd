//! One other member, and what can be sent to it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use actix::Recipient;
use bytes::Bytes;
use futures_core::Stream;
use memberlist_protocol::{
    link::Lane,
    member::{Member, NodeId},
    wire::codec,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    casts::Target,
    errors::{AskError, Cause, NotSent, SendError, Stopped},
    fate::Fate,
    handle::Handle,
    link::{Letter, Link, LinkStatus, What},
    messages::ToTransport,
    relay,
    ring::{Doors, after},
    typed::{self, PeerMessage},
    uploads::{self, Piece},
};

/// Another member. It does not keep the node running, and may outlive the member: then sending is an error.
#[derive(Clone)]
pub struct Peer {
    id: NodeId,
    handle: Handle,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Peer").field(&self.id).finish()
    }
}

impl Peer {
    pub(crate) fn new(id: NodeId, handle: Handle) -> Self {
        Self { id, handle }
    }

    /// Who it is. A restarted node is another one.
    pub fn id(&self) -> &NodeId {
        &self.id
    }

    /// Its record, as long as it is there.
    pub fn member(&self) -> Option<Arc<Member>> {
        present(self.handle.doors(), &self.id)
    }

    /// Sends bytes in a datagram, to its handlers of users' bytes
    /// ([`Cluster::serve_bytes`](crate::Cluster::serve_bytes)): at most once, in no order, perhaps never.
    /// memberlist's `SendBestEffort`.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] for what no datagram has room for, [`SendError::Gone`] when the member is not
    /// there any more, [`SendError::Full`], [`SendError::Stopped`].
    pub fn cast_bytes(&self, bytes: Bytes) -> Result<(), SendError> {
        self.datagram("", &bytes)
    }

    /// Sends a message in a datagram, to its handlers there: at most once, in no order, perhaps never. It never
    /// waits. Small messages that are sent shortly after each other share a packet; what no datagram has room for goes
    /// over the link.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] above [`Config::max_message_size`](crate::Config::max_message_size),
    /// [`SendError::Encode`] when serde cannot write it, [`SendError::Gone`] when the member is not there any more,
    /// [`SendError::Full`] when messages come faster than they leave, [`SendError::Stopped`]. It has not been sent
    /// then.
    pub fn cast<M: PeerMessage>(&self, msg: &M) -> Result<(), SendError> {
        typed::encode_in(msg, |bytes| match self.datagram(M::KIND, bytes) {
            Err(SendError::TooLarge { .. }) => {
                self.queue(M::LANE, M::KIND, Bytes::copy_from_slice(bytes)).map(drop)
            }
            sent => sent,
        })?
    }

    fn datagram(&self, kind: &str, bytes: &[u8]) -> Result<(), SendError> {
        let doors = self.handle.doors();
        let addr = match present(doors, &self.id) {
            Some(member) => member.addr,
            None => return Err(gone(doors)),
        };
        if !doors.config.allows(addr.ip()) {
            return Err(SendError::NotAllowed(addr));
        }
        let to = Target { addr, id: Some(self.id.clone()), run: self.id.run() };
        doors.casts.push(&to, kind, bytes, doors.max_broadcast.load(Relaxed))
    }

    /// Sends a message to its actor ([`Cluster::serve`](crate::Cluster::serve)) over the link, and tells what has
    /// become of it. Those of one [`Lane`] arrive in the order of the calls, each once, whatever becomes of the
    /// connection meanwhile. It never waits.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] above [`Config::max_message_size`](crate::Config::max_message_size),
    /// [`SendError::Gone`] when the member is not there any more, [`SendError::Full`] when too much waits for it,
    /// [`SendError::Encode`], [`SendError::Stopped`]. Nothing has been taken then.
    pub fn send<M: PeerMessage>(&self, msg: &M) -> Result<Sent, SendError> {
        self.queue(M::LANE, M::KIND, typed::encode(msg)?)
    }

    /// The same, but waits for room instead of saying [`SendError::Full`].
    ///
    /// # Errors
    /// As [`send`](Self::send), but for [`SendError::Full`].
    pub async fn send_wait<M: PeerMessage>(&self, msg: &M) -> Result<Sent, SendError> {
        let bytes = typed::encode(msg)?;
        loop {
            let link = self.link()?;
            let mut room = std::pin::pin!(link.room.notified());
            let mut anywhere = std::pin::pin!(self.doors().waiting.room.notified());
            room.as_mut().enable();
            anywhere.as_mut().enable();
            match self.queue(M::LANE, M::KIND, bytes.clone()) {
                Err(SendError::Full) => tokio::select! {
                    () = room => {}
                    () = anywhere => {}
                },
                sent => return sent,
            }
        }
    }

    /// Sends a message to its actor, and waits for what that says. The actor hears it once or not at all; nothing is
    /// tried again. When no answer comes, nobody knows whether it has heard it.
    ///
    /// # Errors
    /// [`AskError::Send`] if it was not taken, [`AskError::NotSent`] if it has not got through,
    /// [`AskError::Timeout`] if no answer came `within` that time, [`AskError::HandlerGone`], [`AskError::Reply`].
    pub async fn ask<M: PeerMessage>(&self, msg: &M, within: Duration) -> Result<M::Result, AskError> {
        self.question::<M>(typed::encode(msg), within).await
    }

    /// Asks at once; the future is the answer. `bytes` are the message's.
    pub(crate) fn question<M: PeerMessage>(
        &self,
        bytes: Result<Bytes, SendError>,
        within: Duration,
    ) -> impl Future<Output = Result<M::Result, AskError>> + Send + use<M> {
        let (reply, answer) = oneshot::channel();
        let until = Instant::from_std(after(within));
        let asked = bytes.and_then(|bytes| {
            let what = What::Ask(M::KIND, until.into_std());
            self.put(M::LANE, Letter { what, bytes, fate: Fate::Ask(Some(reply)) })
        });
        let stopped = self.handle.doors().stopped.clone();
        async move {
            asked.map_err(AskError::Send)?;
            let answer = timeout_at(until, answer).await.map_err(|_| AskError::Timeout)?;
            let bytes = answer.unwrap_or_else(|_| {
                let cause = if stopped.load(Relaxed) { Cause::Stopped } else { Cause::Lost };
                Err(AskError::NotSent(NotSent::Unknown(cause)))
            })?;
            codec::decode_payload(&bytes).map_err(|error| AskError::Reply(error.to_string()))
        }
    }

    /// Sends a message with a body of any length behind it to its actor
    /// ([`Cluster::serve_upload`](crate::Cluster::serve_upload)), on a connection of its own, and waits for what that
    /// says. The body is asked for its pieces as fast as the actor reads them, and dropped when that has answered. An
    /// error of the body cuts the upload off. Dropping the future does so as well.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), but for [`AskError::Timeout`]; [`AskError::Body`] with the body's own error;
    /// `NotSent::Never(Busy)` when either side has no room for another stream, or the handler has 64 uploads to do.
    pub async fn upload<M: PeerMessage>(
        &self,
        head: &M,
        body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<M::Result, AskError> {
        let head = typed::encode(head).map_err(AskError::Send)?;
        let (len, max) = (head.len(), self.doors().config.max_ordered_size);
        if len > max {
            return Err(AskError::Send(SendError::TooLarge { len, max }));
        }
        if self.member().is_none() {
            return Err(AskError::Send(gone(self.doors())));
        }
        let (sender, pieces) = mpsc::channel(uploads::WAITING);
        let (reply, answer) = oneshot::channel();
        let upload = uploads::Outgoing { to: self.id.clone(), kind: M::KIND, head, pieces, reply };
        let command = self.doors().transport.command(ToTransport::Upload(upload));
        command.map_err(|refused| AskError::Send(refused.into()))?;
        let mut answer = std::pin::pin!(answer);
        let mut body = std::pin::pin!(body);
        let mut rest = Bytes::new();
        let mut open = Some(sender);
        let told = loop {
            let Some(sender) = &open else { break answer.await };
            if rest.is_empty() {
                let piece = tokio::select! {
                    biased;
                    told = &mut answer => break told,
                    piece = std::future::poll_fn(|cx| body.as_mut().poll_next(cx)) => piece,
                };
                match piece {
                    Some(Ok(bytes)) => rest = bytes,
                    Some(Err(error)) => return Err(AskError::Body(error.to_string())),
                    None => {
                        let _ = sender.send(Piece::End).await;
                        open = None;
                    }
                }
                continue;
            }
            let piece = rest.split_to(rest.len().min(uploads::PIECE));
            tokio::select! {
                biased;
                told = &mut answer => break told,
                sent = sender.send(Piece::Bytes(piece)) => if sent.is_err() {
                    open = None;
                },
            }
        };
        let lost = |_| {
            let cause = if self.doors().stopped.load(Relaxed) { Cause::Stopped } else { Cause::Lost };
            Err(AskError::NotSent(NotSent::Unknown(cause)))
        };
        let bytes = told.unwrap_or_else(lost)?;
        codec::decode_payload(&bytes).map_err(|error| AskError::Reply(error.to_string()))
    }

    /// An address of an actor that passes messages on to this member: a remote member where a
    /// [`Recipient`](actix::Recipient) is asked for. What is sent to it goes as with [`send`](Self::send); what has
    /// no room, or does not get through, is lost and counted (`memberlist_dropped{reason="undelivered"}`), since
    /// a `Recipient` of messages without a result has nobody to tell. The actor runs on the node's thread, and ends
    /// with the last address.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn recipient<M: PeerMessage<Result = ()> + Unpin>(&self) -> Result<Recipient<M>, Stopped> {
        relay::start(self.clone(), self.handle.doors())
    }

    /// Sends bytes over the link, to its handlers of users' bytes, and tells what has become of them: as
    /// [`send`](Self::send) does for messages. memberlist's `SendReliable`, with an answer.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_bytes(&self, bytes: Bytes) -> Result<Sent, SendError> {
        self.queue(Lane::Ordered, "", bytes)
    }

    /// What its link is doing; nothing much, as long as nothing was sent.
    pub fn status(&self) -> LinkStatus {
        self.handle.doors().links.get(&self.id).map(|link| link.status()).unwrap_or_default()
    }

    pub(crate) fn doors(&self) -> &Doors {
        self.handle.doors()
    }

    fn link(&self) -> Result<Arc<Link>, SendError> {
        let doors = self.handle.doors();
        doors.links.to(doors, &self.id)
    }

    /// Sends a message that is written already.
    pub(crate) fn send_encoded<M: PeerMessage>(&self, bytes: Bytes) -> Result<Sent, SendError> {
        self.queue(M::LANE, M::KIND, bytes)
    }

    fn queue(&self, lane: Lane, kind: &'static str, bytes: Bytes) -> Result<Sent, SendError> {
        let (reply, fate) = oneshot::channel();
        self.put(lane, Letter { what: What::Tell(kind), bytes, fate: Fate::One(reply) })?;
        Ok(Sent(Outcome::new(fate, self.handle.doors())))
    }

    fn put(&self, lane: Lane, letter: Letter) -> Result<(), SendError> {
        let config = &self.handle.doors().config;
        let (len, max) = (letter.bytes.len(), config.max_message_size);
        if len > max {
            return Err(SendError::TooLarge { len, max });
        }
        let lane = if len > config.max_ordered_size { Lane::Bulk } else { lane };
        self.link()?.send(self.handle.doors(), lane, letter).map_err(|(error, _)| error)
    }

    /// Pings it, as [`Cluster::ping`](crate::Cluster::ping) does.
    ///
    /// # Errors
    /// Those of [`Cluster::ping`](crate::Cluster::ping), and [`SendError::Gone`] within.
    pub async fn ping(&self) -> Result<Duration, AskError> {
        let member = self.member().ok_or_else(|| AskError::Send(gone(self.handle.doors())))?;
        self.handle.ping(member.name(), member.addr).await
    }
}

/// The member of that very run, if it is there.
pub(crate) fn present(doors: &Doors, id: &NodeId) -> Option<Arc<Member>> {
    let view = doors.view.borrow();
    view.get(id.name()).filter(|member| member.id == *id && member.state.is_present()).cloned()
}

fn gone(doors: &Doors) -> SendError {
    if *doors.closing.borrow() { SendError::Stopped } else { SendError::Gone }
}

/// What becomes of something that was taken.
#[derive(Debug)]
pub(crate) struct Outcome {
    told: oneshot::Receiver<Result<(), NotSent>>,
    stopped: Arc<AtomicBool>,
}

impl Outcome {
    pub(crate) fn new(told: oneshot::Receiver<Result<(), NotSent>>, doors: &Doors) -> Self {
        Self { told, stopped: doors.stopped.clone() }
    }
}

impl Future for Outcome {
    type Output = Result<(), NotSent>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let told = std::task::ready!(Pin::new(&mut self.told).poll(cx));
        let lost = if self.stopped.load(Relaxed) { Cause::Stopped } else { Cause::Lost };
        Poll::Ready(told.unwrap_or(Err(NotSent::Unknown(lost))))
    }
}

/// The fate of a message to a peer: `Ok` when it lies in the queue of a handler there, `Never` when none surely
/// gets it. A handler that stops takes along what lies in its queue. Dropping it changes nothing.
#[derive(Debug)]
pub struct Sent(Outcome);

impl Future for Sent {
    type Output = Result<(), NotSent>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}
