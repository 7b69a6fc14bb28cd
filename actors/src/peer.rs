//! One other member, and what can be sent to it.

use std::{
    net::SocketAddr,
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
    wire::{
        codec,
        message::{Address, Direct, Message},
    },
};
use tokio::sync::oneshot;

use crate::{
    errors::{AskError, Cause, NotSent, SendError},
    handle::Handle,
    outbox::{Cast, Fate, Parcel},
    ring::Doors,
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

    /// Sends bytes in one datagram, to its handlers of users' bytes
    /// ([`Cluster::serve_bytes`](crate::Cluster::serve_bytes)): at most once, in no order, perhaps never.
    /// memberlist's `SendBestEffort`.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] for what no datagram has room for, [`SendError::Gone`] when the member is not
    /// there any more, [`SendError::Full`], [`SendError::Stopped`].
    pub fn cast_bytes(&self, bytes: Bytes) -> Result<(), SendError> {
        let member = self.member().ok_or_else(|| gone(self.handle.doors()))?;
        let doors = self.handle.doors();
        doors.outbox.cast(datagram(doors, member.addr, Some(self.id.clone()), bytes)?)
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

/// A datagram of a user.
pub(crate) fn datagram(
    doors: &Doors,
    addr: SocketAddr,
    to: Option<NodeId>,
    bytes: Bytes,
) -> Result<Cast, SendError> {
    if !doors.config.allows(addr.ip()) {
        return Err(SendError::NotAllowed(addr));
    }
    let from = doors.view.borrow().local().id.clone();
    let (len, max) = (bytes.len(), doors.max_broadcast.load(Relaxed));
    let run = to.as_ref().map_or(NodeId::ANY_RUN, NodeId::run);
    let message = Message::Direct(Direct { from, to, bytes });
    // Around the bytes there are their length, two names and two runs.
    let encoded = if len > max { None } else { codec::encoded(&message, usize::MAX).ok() };
    match encoded {
        Some(encoded) if encoded.len() <= max => Ok(Cast { to: addr, run, message: encoded }),
        _ => {
            let empty = match message {
                Message::Direct(direct) => Message::Direct(Direct { bytes: Bytes::new(), ..direct }),
                other => other,
            };
            // Three bytes for the length of any message that a datagram has room for.
            let around = codec::encoded(&empty, usize::MAX).map_or(0, |bytes| bytes.len()) + 2;
            Err(SendError::TooLarge { len, max: max.saturating_sub(around) })
        }
    }
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
