//! What users send to single nodes and has not left yet. It lies apart from everything that the membership
//! needs: however much users send, no ping waits behind it.
//!
//! Bytes for datagrams wait in one queue. Bytes for streams wait in a lane for each peer, which is emptied in
//! order, by one task at a time (see [`parcels`](crate::parcels)).

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Waker,
};

use bytes::Bytes;
use memberlist_protocol::{config::Config, member::NodeId, wire::message::Address};

use crate::{
    errors::{Cause, NotSent, SendError},
    messages::Reply,
};

/// Datagrams that wait. They leave in the node's next turn.
const MAX_CASTS: usize = 4096;

/// Bytes of datagrams that wait.
const MAX_CAST_BYTES: usize = 4 << 20;

/// One message for one peer.
pub(crate) struct Parcel {
    pub(crate) address: Address,
    pub(crate) bytes: Bytes,
    pub(crate) fate: Fate,
}

/// Who is told what has become of a parcel. Dropped, it tells that the parcel was lost.
pub(crate) enum Fate {
    /// A sender of one message.
    One(Reply<Result<(), NotSent>>),
    /// A broadcast that goes to many peers.
    Part(Part),
}

impl Fate {
    pub(crate) fn end(self, outcome: Result<(), NotSent>) {
        match self {
            Self::One(reply) => drop(reply.send(outcome)),
            Self::Part(part) => part.end(outcome),
        }
    }

    /// Whether the parcel need not be sent any more.
    fn is_void(&self) -> bool {
        match self {
            Self::One(_) => false,
            Self::Part(part) => part.fanout.is_void(),
        }
    }
}

/// A broadcast that is too large for gossip, on its way to each member.
pub(crate) struct Fanout {
    left: AtomicUsize,
    /// The best that has become of any part.
    best: Mutex<Option<Result<(), NotSent>>>,
    /// Bytes of the broadcast, which all its parcels share.
    pub(crate) len: usize,
    void: AtomicBool,
    spread: Mutex<Option<Reply<Result<(), NotSent>>>>,
}

impl Fanout {
    /// For so many members.
    pub(crate) fn new(members: usize, len: usize, spread: Reply<Result<(), NotSent>>) -> Arc<Self> {
        Arc::new(Self {
            left: members.into(),
            best: Mutex::default(),
            len,
            void: false.into(),
            spread: Mutex::new(Some(spread)),
        })
    }

    pub(crate) fn part(self: &Arc<Self>) -> Part {
        Part { fanout: self.clone(), outcome: Err(NotSent::Unknown(Cause::Lost)) }
    }

    /// A newer broadcast takes its place.
    pub(crate) fn invalidate(&self) {
        self.void.store(true, Ordering::Relaxed);
        self.tell(Err(NotSent::Never(Cause::Invalidated)));
    }

    pub(crate) fn is_void(&self) -> bool {
        self.void.load(Ordering::Relaxed)
    }

    fn tell(&self, outcome: Result<(), NotSent>) {
        let spread = self.spread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(spread) = spread {
            let _ = spread.send(outcome);
        }
    }
}

/// The part of a broadcast that is for one member.
pub(crate) struct Part {
    fanout: Arc<Fanout>,
    outcome: Result<(), NotSent>,
}

impl Part {
    fn end(mut self, outcome: Result<(), NotSent>) {
        self.outcome = outcome;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let fanout = &self.fanout;
        let mut best = fanout.best.lock().unwrap_or_else(PoisonError::into_inner);
        *best = Some(match (*best, self.outcome) {
            (Some(Ok(())), _) | (_, Ok(())) => Ok(()),
            // That one may have got it says more than that another surely has not.
            (Some(Err(NotSent::Unknown(cause))), _) => Err(NotSent::Unknown(cause)),
            (_, outcome) => outcome,
        });
        let outcome = best.unwrap_or(self.outcome);
        drop(best);
        if fanout.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            fanout.tell(outcome);
        }
    }
}

#[derive(Default)]
struct Lane {
    parcels: VecDeque<Parcel>,
    bytes: usize,
    /// Whether a task empties it.
    running: bool,
}

/// A message that goes in a datagram.
pub(crate) struct Cast {
    pub(crate) to: SocketAddr,
    /// The run that is meant, if it is known.
    pub(crate) run: u64,
    pub(crate) message: Bytes,
}

#[derive(Default)]
struct Waiting {
    casts: VecDeque<Cast>,
    cast_bytes: usize,
    lanes: BTreeMap<NodeId, Lane>,
    /// Lanes that want a task.
    idle: VecDeque<NodeId>,
    waker: Option<Waker>,
    closed: bool,
}

/// What waits to be sent for users.
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    max: usize,
    max_bytes: usize,
}

impl Outbox {
    pub(crate) fn new(config: &Config) -> Self {
        Self { waiting: Mutex::default(), max: config.peer_queue_depth, max_bytes: config.peer_queue_bytes }
    }

    /// Queues a datagram.
    pub(crate) fn cast(&self, cast: Cast) -> Result<(), SendError> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(SendError::Stopped);
        }
        if waiting.casts.len() >= MAX_CASTS || waiting.cast_bytes + cast.message.len() > MAX_CAST_BYTES {
            return Err(SendError::Full);
        }
        waiting.cast_bytes += cast.message.len();
        waiting.casts.push_back(cast);
        wake(waiting);
        Ok(())
    }

    /// Queues a parcel for a peer.
    pub(crate) fn send(&self, to: &NodeId, parcel: Parcel) -> Result<(), (SendError, Fate)> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err((SendError::Stopped, parcel.fate));
        }
        let Waiting { lanes, idle, .. } = &mut *waiting;
        let lane = lanes.entry(to.clone()).or_default();
        let fits = lane.parcels.len() < self.max
            && (lane.bytes + parcel.bytes.len() <= self.max_bytes || lane.parcels.is_empty());
        if !fits {
            return Err((SendError::Full, parcel.fate));
        }
        if !lane.running && lane.parcels.is_empty() {
            idle.push_back(to.clone());
        }
        lane.bytes += parcel.bytes.len();
        lane.parcels.push_back(parcel);
        wake(waiting);
        Ok(())
    }

    /// The next datagram.
    pub(crate) fn next_cast(&self) -> Option<Cast> {
        let mut waiting = self.lock();
        let cast = waiting.casts.pop_front()?;
        waiting.cast_bytes -= cast.message.len();
        Some(cast)
    }

    /// Gives a datagram back that did not leave in this turn.
    pub(crate) fn put_back(&self, cast: Cast) {
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.cast_bytes += cast.message.len();
            waiting.casts.push_front(cast);
        }
    }

    /// A lane that wants a task; the caller runs one.
    pub(crate) fn next_lane(self: &Arc<Self>) -> Option<Run> {
        let mut waiting = self.lock();
        let peer = waiting.idle.pop_front()?;
        if let Some(lane) = waiting.lanes.get_mut(&peer) {
            lane.running = true;
        }
        Some(Run { outbox: self.clone(), peer })
    }

    /// Parcels that wait.
    pub(crate) fn len(&self) -> usize {
        let waiting = self.lock();
        waiting.casts.len() + waiting.lanes.values().map(|lane| lane.parcels.len()).sum::<usize>()
    }

    /// Whether there is something to do: a datagram, or a lane if there is `room` for its stream.
    pub(crate) fn is_ready(&self, room: bool, waker: &Waker) -> bool {
        let mut waiting = self.lock();
        match &mut waiting.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        !waiting.casts.is_empty() || (room && !waiting.idle.is_empty())
    }

    /// Drops what need not be sent any more.
    pub(crate) fn purge(&self) {
        let mut waiting = self.lock();
        let mut void = Vec::new();
        for lane in waiting.lanes.values_mut().filter(|lane| lane.parcels.iter().any(|p| p.fate.is_void())) {
            let (gone, left): (VecDeque<_>, _) =
                std::mem::take(&mut lane.parcels).into_iter().partition(|parcel| parcel.fate.is_void());
            lane.parcels = left;
            lane.bytes = lane.parcels.iter().map(|parcel| parcel.bytes.len()).sum();
            void.push(gone);
        }
        drop(waiting);
        drop(void);
    }

    /// Takes nothing more, and drops what waits, so that whoever waits for it learns of that.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let rest = (std::mem::take(&mut waiting.casts), std::mem::take(&mut waiting.lanes));
        waiting.idle.clear();
        drop(waiting);
        drop(rest);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(mut waiting: MutexGuard<'_, Waiting>) {
    let waker = waiting.waker.take();
    drop(waiting);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The right to empty the lane of one peer. However it ends, what is left in the lane gets another task.
pub(crate) struct Run {
    outbox: Arc<Outbox>,
    pub(crate) peer: NodeId,
}

impl Run {
    /// The next parcel that is still to be sent.
    pub(crate) fn next(&self) -> Option<Parcel> {
        loop {
            let parcel = self.pop()?;
            if !parcel.fate.is_void() {
                return Some(parcel);
            }
        }
    }

    /// Whether other lanes want a task.
    pub(crate) fn others_wait(&self) -> bool {
        !self.outbox.lock().idle.is_empty()
    }

    fn pop(&self) -> Option<Parcel> {
        let mut waiting = self.outbox.lock();
        let lane = waiting.lanes.get_mut(&self.peer)?;
        let parcel = lane.parcels.pop_front()?;
        lane.bytes -= parcel.bytes.len();
        Some(parcel)
    }

    /// Ends everything that waits now in the same way.
    pub(crate) fn end_all(&self, outcome: NotSent) -> usize {
        let mut waiting = self.outbox.lock();
        let Some(lane) = waiting.lanes.get_mut(&self.peer) else { return 0 };
        lane.bytes = 0;
        let parcels = std::mem::take(&mut lane.parcels);
        drop(waiting);
        let count = parcels.len();
        parcels.into_iter().for_each(|parcel| parcel.fate.end(Err(outcome)));
        count
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut waiting = self.outbox.lock();
        let Waiting { lanes, idle, .. } = &mut *waiting;
        let Some(lane) = lanes.get_mut(&self.peer) else { return };
        lane.running = false;
        if lane.parcels.is_empty() {
            lanes.remove(&self.peer);
        } else {
            idle.push_back(self.peer.clone());
            wake(waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn outbox() -> Arc<Outbox> {
        let config = Config { peer_queue_depth: 2, peer_queue_bytes: 10, ..Config::lan() };
        Arc::new(Outbox::new(&config))
    }

    fn id(name: &str) -> NodeId {
        NodeId::new(name, 1)
    }

    fn parcel(bytes: &'static [u8]) -> (Parcel, oneshot::Receiver<Result<(), NotSent>>) {
        let (reply, fate) = oneshot::channel();
        let address = Address::Direct { from: id("me"), to: id("a") };
        (Parcel { address, bytes: Bytes::from_static(bytes), fate: Fate::One(reply) }, fate)
    }

    fn cast() -> Cast {
        Cast { to: "127.0.0.1:1".parse().unwrap(), run: 0, message: Bytes::new() }
    }

    #[test]
    fn a_lane_is_emptied_in_order_by_one_task_at_a_time() {
        let outbox = outbox();
        let (first, _kept) = parcel(b"1");
        let (second, _kept_too) = parcel(b"2");
        assert!(outbox.send(&id("a"), first).is_ok() && outbox.send(&id("a"), second).is_ok());
        let run = outbox.next_lane().unwrap();
        assert!(outbox.next_lane().is_none());
        assert_eq!(run.next().unwrap().bytes, "1");
        drop(run);
        let run = outbox.next_lane().expect("what is left gets another task");
        assert_eq!(run.next().unwrap().bytes, "2");
        assert!(run.next().is_none());
        drop(run);
        assert!(outbox.next_lane().is_none() && outbox.lock().lanes.is_empty());
    }

    #[test]
    fn casts_that_wait_are_bounded_in_number_and_in_bytes() {
        let outbox = outbox();
        for _ in 0..MAX_CASTS {
            assert_eq!(outbox.cast(cast()), Ok(()));
        }
        assert_eq!(outbox.cast(cast()), Err(SendError::Full));
        while outbox.next_cast().is_some() {}
        let quarter = || Cast { message: vec![0; MAX_CAST_BYTES / 4].into(), ..cast() };
        for _ in 0..4 {
            assert_eq!(outbox.cast(quarter()), Ok(()));
        }
        assert_eq!(outbox.cast(quarter()), Err(SendError::Full));
        assert!(outbox.next_cast().is_some());
        assert_eq!(outbox.cast(quarter()), Ok(()));
    }

    #[test]
    fn each_peer_has_bounds_of_its_own_and_a_single_large_message_passes() {
        let outbox = outbox();
        let send = |to: &str, bytes| outbox.send(&id(to), parcel(bytes).0).map_err(|(error, _)| error);
        assert_eq!(send("a", b"larger than the bound"), Ok(()));
        assert_eq!(send("a", b"x"), Err(SendError::Full));
        assert_eq!(send("b", b"x"), Ok(()));
        assert_eq!(send("b", b"x"), Ok(()));
        assert_eq!(send("b", b"x"), Err(SendError::Full));
    }

    #[test]
    fn what_is_dropped_is_told() {
        let outbox = outbox();
        let (one, mut fate) = parcel(b"1");
        assert!(outbox.send(&id("a"), one).is_ok());
        outbox.close();
        assert!(matches!(fate.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert_eq!(outbox.send(&id("a"), parcel(b"x").0).map_err(|(e, _)| e), Err(SendError::Stopped));
        assert_eq!(outbox.cast(cast()), Err(SendError::Stopped));
    }

    #[test]
    fn a_broadcast_ends_with_its_last_part_and_a_newer_one_voids_it() {
        let (reply, mut spread) = oneshot::channel();
        let fanout = Fanout::new(2, 1, reply);
        let (first, second) = (fanout.part(), fanout.part());
        first.end(Err(NotSent::Never(Cause::LinkLost)));
        assert!(spread.try_recv().is_err());
        second.end(Ok(()));
        assert_eq!(spread.try_recv(), Ok(Ok(())));

        let (reply, mut spread) = oneshot::channel();
        let fanout = Fanout::new(1, 1, reply);
        for (outcomes, end) in [
            ([NotSent::Never(Cause::NoHandler); 2], NotSent::Never(Cause::NoHandler)),
            (
                [NotSent::Unknown(Cause::LinkLost), NotSent::Never(Cause::Busy)],
                NotSent::Unknown(Cause::LinkLost),
            ),
        ] {
            let (reply, mut spread) = oneshot::channel();
            let fanout = Fanout::new(2, 1, reply);
            outcomes.into_iter().for_each(|outcome| fanout.part().end(Err(outcome)));
            assert_eq!(spread.try_recv(), Ok(Err(end)));
        }

        let address = Address::Broadcast { origin: id("me"), id: 1 };
        let part = Parcel { address, bytes: Bytes::new(), fate: Fate::Part(fanout.part()) };
        let outbox = outbox();
        assert!(outbox.send(&id("a"), part).is_ok());
        fanout.invalidate();
        assert_eq!(spread.try_recv(), Ok(Err(NotSent::Never(Cause::Invalidated))));
        assert!(outbox.next_lane().unwrap().next().is_none(), "it is not sent any more");
    }

    #[test]
    fn without_room_for_a_stream_only_datagrams_are_something_to_do() {
        let outbox = outbox();
        let waker = Waker::noop();
        assert!(!outbox.is_ready(true, waker));
        assert!(outbox.send(&id("a"), parcel(b"1").0).is_ok());
        assert_eq!([outbox.is_ready(false, waker), outbox.is_ready(true, waker)], [false, true]);
        outbox.cast(cast()).unwrap();
        assert!(outbox.is_ready(false, waker));
        assert!(outbox.next_cast().is_some() && outbox.next_cast().is_none());
    }
}
