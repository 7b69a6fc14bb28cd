//! One other member, and what can be sent to it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use memberlist_protocol::{
    member::{Member, NodeId},
    wire::message::Address,
};
use tokio::sync::oneshot;

use crate::{
    casts::Target,
    errors::{AskError, Cause, NotSent, SendError},
    handle::Handle,
    outbox::{Fate, Parcel},
    ring::Doors,
    typed::{self, PeerMessage},
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
    /// waits. Small messages that are sent shortly after each other share a packet.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] for what no datagram has room for, [`SendError::Encode`] when serde cannot write it, [`SendError::Gone`] when the member is not there any more,
    /// [`SendError::Full`] when messages come faster than they leave, [`SendError::Stopped`]. It has not been sent
    /// then.
    pub fn cast<M: PeerMessage>(&self, msg: &M) -> Result<(), SendError> {
        typed::encode_in(msg, |bytes| match self.datagram(M::KIND, bytes) {
            // THE LINK GOES HERE: what no datagram has room for is to be sent over it.
            Err(SendError::TooLarge { len, max }) => Err(SendError::TooLarge { len, max }),
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

    /// Sends bytes over a stream, in the order of the calls, and tells what has become of them. After one that
    /// has ended as `Unknown`, that one may still arrive behind later ones. memberlist's
    /// `SendReliable`, with an answer.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] above [`Config::max_message_size`](crate::Config::max_message_size),
    /// [`SendError::Gone`] when the member is not there any more, [`SendError::Full`] when too much waits for
    /// it, [`SendError::Stopped`]. Nothing has been taken then.
    pub fn send_bytes(&self, bytes: Bytes) -> Result<Sent, SendError> {
        let doors = self.handle.doors();
        let (len, max) = (bytes.len(), doors.config.max_message_size);
        if len > max {
            return Err(SendError::TooLarge { len, max });
        }
        if self.member().is_none() {
            return Err(gone(doors));
        }
        let (reply, fate) = oneshot::channel();
        let from = self.handle.view().local().id.clone();
        let address = Address::Direct { from, to: self.id.clone() };
        let parcel = Parcel { address, bytes, fate: Fate::One(reply) };
        doors.outbox.send(&self.id, parcel).map_err(|(error, _)| error)?;
        Ok(Sent(Outcome::new(fate, doors)))
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
