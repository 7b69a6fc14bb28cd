//! Users' messages that have come in datagrams, on their way to the handlers. They are taken from the network as fast
//! as they come, so that nothing of the membership waits behind them, and wait here for a handler that is about to
//! make room. One that does not makes them wait no longer.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use memberlist_protocol::{
    member::{Member, NodeId},
    wire::message::Direct,
};
use tokio::time::Instant;

use super::Transport;
use crate::{
    events::Sender,
    logs::{Line, say},
    metrics::Lost,
    peer::present,
    ring::Ring,
    routes::Arrived,
};

/// Bytes that wait for handlers.
const MAX_BYTES: usize = 32 << 20;

/// Bytes from which on members are asked to wait: some milliseconds of work.
const CROWDED: usize = 1 << 20;

/// How long a member is asked to wait for each [`CROWDED`] bytes: not as long as it takes to work them off.
const WAIT: u8 = 2;

/// The same member is asked again after that.
const ASKED: Duration = Duration::from_millis(1);

/// What a packet takes besides its bytes, about.
const AROUND: usize = 256;

/// Users' messages that are given to handlers in one turn, or a packet's more.
const MESSAGES_PER_TURN: usize = 512;

/// How often it is looked whether a handler has made room that had none. Then it has had time for hundreds, or is
/// slow.
const LOOKS: u8 = 10;

/// Between two looks. When the whole thread had no processor for longer, that is one.
const LOOK: Duration = Duration::from_millis(1);

/// What survives a restart.
#[derive(Default)]
pub(crate) struct Backlog {
    packets: VecDeque<(Direct, SocketAddr, usize)>,
    bytes: usize,
    /// When to look again whether there is room for the first one, and how often.
    until: Option<Instant>,
    looks: u8,
    pub(super) waker: Option<Waker>,
    /// When members were asked to wait.
    asked: BTreeMap<NodeId, Instant>,
    /// Who is to be asked, in this turn.
    asking: Vec<Arc<Member>>,
}

impl Backlog {
    /// Whether the first packet can be given to its handlers, or is not to wait any longer.
    pub(super) fn is_ready(&self, ring: &Ring) -> bool {
        let Some((message, _, count)) = self.packets.front() else { return false };
        self.has_room(ring, message, *count) || self.until.is_some_and(|until| until <= Instant::now())
    }

    fn has_room(&self, ring: &Ring, message: &Direct, count: usize) -> bool {
        let waker = self.waker.as_ref().unwrap_or(Waker::noop());
        message.parts.kinds().all(|kind| ring.routes.takes(kind, count, waker))
    }

    /// When to look again even if no room is made.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// When too much waits, a member that sends more is to be asked to stop for a moment.
    fn ask(&mut self, ring: &Ring, from: &NodeId) {
        if self.bytes < CROWDED {
            self.asked.clear();
            return;
        }
        let now = Instant::now();
        if self.asked.get(from).is_none_or(|asked| now >= *asked + ASKED)
            && let Some(member) = present(ring, from)
        {
            self.asked.insert(from.clone(), now);
            self.asking.push(member);
        }
    }

    /// The next packet to be given to its handlers.
    fn next(&mut self, ring: &Ring) -> Option<(Direct, SocketAddr, usize)> {
        let (message, _, count) = self.packets.front()?;
        if !self.has_room(ring, message, *count) {
            let now = Instant::now();
            if self.until.is_none() {
                self.looks = LOOKS;
            }
            if self.until.is_none_or(|until| until <= now) && self.looks > 0 {
                self.looks -= 1;
                self.until = Some(now + LOOK);
            }
            if self.until.is_some_and(|until| now < until) {
                return None;
            }
            message.parts.kinds().for_each(|kind| ring.routes.give_up(kind, *count));
        }
        self.until = None;
        let next = self.packets.pop_front()?;
        self.bytes -= next.0.parts.as_bytes().len() + AROUND;
        Some(next)
    }
}

impl Transport {
    /// Keeps what is for this node.
    pub(super) fn put_by(&self, message: Direct, addr: SocketAddr) {
        let ring = &self.ring;
        if message.to.as_ref().is_some_and(|to| ring.view.borrow().local().id != *to) {
            ring.counters.drop(Lost::NotForUs);
            return;
        }
        let backlog = &mut self.kept.borrow_mut().backlog;
        let (count, size) = (message.parts.count(), message.parts.as_bytes().len() + AROUND);
        if backlog.bytes + size > MAX_BYTES {
            ring.counters.drop_many(Lost::HandlerBusy, count);
            say!(ring, Line::HandlerBusy, warn, "handlers of users' messages are slow: they miss some");
            return;
        }
        backlog.bytes += size;
        backlog.ask(ring, &message.from);
        backlog.packets.push_back((message, addr, count));
    }

    /// Gives handlers what waits for them, as much as one turn has time for.
    pub(super) fn deliver_some(&self) {
        let (asking, bytes) = {
            let backlog = &mut self.kept.borrow_mut().backlog;
            (std::mem::take(&mut backlog.asking), backlog.bytes)
        };
        let millis = WAIT.saturating_mul(u8::try_from(bytes / CROWDED).unwrap_or(u8::MAX));
        for member in asking {
            self.ask_to_wait(&member.id, member.addr, millis);
        }
        let mut given = 0;
        while given < MESSAGES_PER_TURN {
            let next = self.kept.borrow_mut().backlog.next(&self.ring);
            let Some((message, addr, count)) = next else { return };
            self.deliver(&message, addr);
            given += count;
        }
    }

    /// Gives each handler its own.
    fn deliver(&self, message: &Direct, addr: SocketAddr) {
        let ring = &self.ring;
        let (untyped, typed) = self.senders(&message.from, addr);
        for (kind, bytes) in message.parts.parts() {
            let from = if kind.is_empty() { &untyped } else { &typed };
            ring.routes
                .deliver(ring, Arrived { from, kind, bytes, reliable: false, answer: None, until: None });
        }
    }

    /// Who it is that sends: a member, if there is one of that name and run on that host. Handlers of bytes hear of
    /// others by their address, those of types by the name that they give, unless it is a member's.
    fn senders(&self, claimed: &NodeId, addr: SocketAddr) -> (Sender, Sender) {
        match present(&self.ring, claimed) {
            Some(member) if member.addr.ip() == addr.ip() => {
                (Sender::Member(claimed.clone()), Sender::Member(claimed.clone()))
            }
            Some(_) => (Sender::Address(addr), Sender::Address(addr)),
            None => (Sender::Address(addr), Sender::Stranger(claimed.clone())),
        }
    }
}
