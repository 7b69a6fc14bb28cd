//! The part of a [`Cluster`](crate::Cluster) that does not keep the node running: questions to the actors, from
//! any thread, each with its answer or an error.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix::Recipient;
use bytes::Bytes;
use memberlist_protocol::{
    member::{MAX_META, NodeId, Tags, canonical, check_addr, check_meta, check_name, meta_len},
    view::View,
    wire::message::Ack,
};
use tokio::sync::oneshot;

use crate::{
    errors::{AskError, Cause, JoinError, NotSent, SendError, Stopped, UpdateError},
    events::{MemberEvent, Replay},
    inbox::Refused,
    join::{self, Joined, Until},
    messages::{Reply, Then, ToDelegates, ToDetector, ToQueue, ToState},
    node::LeaveReport,
    pump::{self, Events, Of, Overflow, Pump, Queue, Subscribing, Subscription},
    ring::{Doors, after},
};

/// The part of a handle that does not keep the node running. It works from any thread.
#[derive(Clone)]
pub(crate) struct Handle {
    doors: Arc<Doors>,
}

impl Handle {
    pub(crate) fn new(doors: Arc<Doors>) -> Self {
        Self { doors }
    }

    pub(crate) fn doors(&self) -> &Arc<Doors> {
        &self.doors
    }

    pub(crate) fn view(&self) -> View {
        self.doors.view.borrow().clone()
    }

    pub(crate) fn stop(&self) {
        self.doors.stop.notify_one();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.doors.closing.borrow()
    }

    /// Runs something on the node's thread for as long as somebody waits for it.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Refused> {
        let (mut reply, answer) = oneshot::channel();
        let work: Pump = Box::pin(async move {
            tokio::select! {
                biased;
                () = reply.closed() => {}
                done = work => drop(reply.send(done)),
            }
        });
        self.doors.delegates.insist(ToDelegates::Work(work))?;
        answer.await.map_err(|_| if self.is_stopped() { Refused::Closed } else { Refused::Busy })
    }

    pub(crate) async fn join(&self, seeds: Vec<String>) -> Result<Joined, JoinError> {
        self.doors.links.open();
        self.work(join::join(self.doors.clone(), seeds, join::Members::Try)).await.unwrap_or_else(|refused| {
            Err(match refused {
                Refused::Busy => JoinError::Lost,
                Refused::Closed => JoinError::Stopped,
            })
        })
    }

    pub(crate) async fn ready(&self, until: Until, within: Duration) -> Result<bool, Stopped> {
        match self.work(join::ready(self.doors.clone(), until, within)).await {
            Ok(ready) => Ok(ready),
            Err(Refused::Busy) => Ok(false),
            Err(Refused::Closed) => Err(Stopped),
        }
    }

    pub(crate) async fn update(&self, tags: Option<Tags>, meta: Option<Bytes>) -> Result<(), UpdateError> {
        let local = self.view().local().clone();
        let (new_meta, new_tags) =
            (meta.as_ref().unwrap_or(&local.meta), tags.as_ref().unwrap_or(&local.tags));
        check_meta(new_meta, new_tags)
            .map_err(|_| UpdateError::TooLarge { len: meta_len(new_meta, new_tags), max: MAX_META })?;
        self.tell_state(|reply| ToState::Update { tags, meta, reply }).await
    }

    pub(crate) async fn force_leave(&self, name: String) -> Result<(), UpdateError> {
        self.tell_state(|reply| ToState::ForceLeave { name, reply }).await
    }

    pub(crate) async fn tell_state(
        &self,
        what: impl FnOnce(Reply<Result<(), UpdateError>>) -> ToState,
    ) -> Result<(), UpdateError> {
        let (reply, answer) = oneshot::channel();
        self.doors.state.command(what(reply)).map_err(|refused| match refused {
            Refused::Busy => UpdateError::Busy,
            Refused::Closed => UpdateError::Stopped,
        })?;
        answer
            .await
            .unwrap_or_else(|_| Err(if self.is_stopped() { UpdateError::Stopped } else { UpdateError::Lost }))
    }

    pub(crate) fn set_ping_payload(&self, payload: Bytes) -> Result<(), UpdateError> {
        if payload.len() > Ack::MAX_PAYLOAD {
            return Err(UpdateError::TooLarge { len: payload.len(), max: Ack::MAX_PAYLOAD });
        }
        if self.is_stopped() {
            return Err(UpdateError::Stopped);
        }
        *self.doors.ping_payload() = payload;
        Ok(())
    }

    pub(crate) async fn ping(&self, name: &str, addr: SocketAddr) -> Result<Duration, AskError> {
        let addr = canonical(addr);
        check_name(name).and_then(|()| check_addr(addr, addr)).map_err(AskError::Target)?;
        if !self.doors.config.allows(addr.ip()) {
            return Err(AskError::Send(SendError::NotAllowed(addr)));
        }
        let (reply, answer) = oneshot::channel();
        let target = NodeId::new(name, NodeId::ANY_RUN);
        self.doors
            .detector
            .command(ToDetector::Ask { target, addr, then: Then::Tell(reply) })
            .map_err(|refused| AskError::Send(refused.into()))?;
        answer.await.unwrap_or_else(|_| {
            let cause = if self.is_stopped() { Cause::Stopped } else { Cause::Lost };
            Err(AskError::NotSent(NotSent::Unknown(cause)))
        })
    }

    pub(crate) async fn leave(&self, within: Duration) -> Result<LeaveReport, Stopped> {
        let doors = self.doors.clone();
        let leave = async move {
            let view = doors.view.borrow().clone();
            let others = view.alive().any(|m| m.id != view.local().id);
            // Half of the time is for what was sent before.
            let (drained, discarded) = doors.links.drain(after(within / 2)).await;
            let sent = async {
                let (reply, farewell) = oneshot::channel();
                doors.state.command(ToState::Leave { reply }).ok()?;
                let bytes = farewell.await.ok()?;
                let (reply, sent) = oneshot::channel();
                doors.queue.command(ToQueue::Farewell { bytes, reply }).ok()?;
                sent.await.ok()
            };
            let sent = tokio::time::timeout(within, sent).await.ok().flatten();
            LeaveReport { drained, discarded, ..LeaveReport::new(sent.is_some_and(|m| m > 0 || !others)) }
        };
        match self.work(leave).await {
            Ok(report) => Ok(report),
            Err(Refused::Busy) => Ok(LeaveReport::new(false)),
            Err(Refused::Closed) => Err(Stopped),
        }
    }

    pub(crate) fn subscribe(
        &self,
        to: Recipient<MemberEvent>,
        replay: Replay,
    ) -> Result<Subscription, Stopped> {
        let (number, events) =
            self.events_with(replay, |events| Some(Box::pin(pump::pump_events(events, to))));
        events.map(|_| Subscription::new(number, Of::Delegates(Arc::downgrade(&self.doors.delegates))))
    }

    /// A queue of events: emptied by the pump that `pump` makes of it, or else by the caller.
    pub(crate) fn events_with(
        &self,
        replay: Replay,
        pump: impl FnOnce(Events) -> Option<Pump>,
    ) -> (u64, Result<Arc<Queue<MemberEvent>>, Stopped>) {
        let queue = Queue::new(self.doors.config.subscriber_queue_depth, usize::MAX, Overflow::Restart);
        let number = self.doors.number();
        let pump = pump(Events::new(queue.clone(), self.doors.view.follow()));
        let subscribing = Subscribing { number, queue: Some(queue.clone()), replay, pump };
        let subscribed = self.doors.delegates.insist(ToDelegates::Subscribe(subscribing));
        (number, subscribed.map(|()| queue).map_err(|_| Stopped))
    }
}
