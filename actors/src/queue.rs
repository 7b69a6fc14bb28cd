//! **BroadcastQueue** holds what is still to be gossiped, and packs every packet that leaves. It hears news
//! from NodeState, broadcasts from users, and messages to single nodes; it says packets to Transport.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use actix::{Actor, Context, StreamHandler};
use bytes::Bytes;
use memberlist_protocol::{
    broadcast::{End, TooLarge},
    gossip::{self, Gossip},
    member::Member,
    wire::{
        codec,
        message::{Message, UserBroadcast},
    },
};
use rand::RngExt;

use crate::{
    errors::{Cause, NotSent},
    inbox::{Alarm, Turn, Turns},
    messages::{QUEUE, Reply, ToQueue, ToTransport},
    metrics::Lost,
    ring::{Shared, now},
    supervisor::Child,
};

/// Members that are told directly when this node leaves; in a cluster up to this size, all of them.
const FAREWELLS: usize = 128;

/// Who waits for a broadcast to have spread.
type Spread = Reply<Result<(), NotSent>>;

/// What survives a restart.
pub(crate) struct Kept {
    gossip: Gossip<Spread>,
    /// The first tick; the others follow at whole intervals.
    first_tick: Instant,
    next_tick: Option<Instant>,
}

impl Kept {
    pub(crate) fn new(ring: &Shared, now: Instant) -> Self {
        let phase = ring.config.gossip_interval.mul_f64(ring.rng.borrow_mut().random::<f64>());
        let gossip = Gossip::new(&ring.config, ring.envelope.clone());
        ring.max_broadcast.store(gossip.max_len(), Relaxed);
        Self { gossip, first_tick: now + phase, next_tick: None }
    }

    /// The next tick after `now`.
    fn tick_after(&self, now: Instant, interval: Duration) -> Instant {
        let (passed, tick) = (now.saturating_duration_since(self.first_tick).as_nanos(), interval.as_nanos());
        let left = tick - passed.checked_rem(tick).unwrap_or(0);
        now.max(self.first_tick) + Duration::from_nanos(left as u64)
    }
}

pub(crate) struct BroadcastQueue {
    ring: Shared,
    kept: Rc<RefCell<Kept>>,
    alarm: Alarm,
}

fn ended(spread: Option<Spread>, end: End) {
    let outcome = match end {
        End::Sent => Ok(()),
        End::Replaced => Err(NotSent::Never(Cause::Invalidated)),
        End::Pruned => Err(NotSent::Unknown(Cause::Busy)),
    };
    if let Some(spread) = spread {
        let _ = spread.send(outcome);
    }
}

impl BroadcastQueue {
    pub(crate) fn new(ring: Shared, kept: Rc<RefCell<Kept>>) -> Self {
        Self { ring, kept, alarm: Alarm::default() }
    }

    fn hear(&self, item: ToQueue) {
        let ring = &self.ring;
        match item {
            ToQueue::News { about, bytes } => match self.kept.borrow_mut().gossip.news(about, bytes) {
                Ok(pruned) => ring.counters.drop_many(Lost::Pruned, pruned),
                Err(_) => ring.counters.drop(Lost::NoRoom),
            },
            ToQueue::Send { to, messages, piggyback, report } => {
                let packet =
                    self.kept.borrow_mut().gossip.packet_with(&messages, piggyback, self.limit(), ended);
                match packet {
                    Some(bytes) => {
                        messages.iter().for_each(|message| ring.counters.sent(message));
                        ring.command(&ring.transport, ToTransport::Packet { to, bytes, report });
                    }
                    None => ring.counters.drop(Lost::NoRoom),
                }
            }
            ToQueue::Broadcast { name, replaces, message, spread } => {
                self.user(message, |gossip, bytes, ended| {
                    gossip.user(name, &replaces, bytes, Some(spread), ended)
                });
            }
            ToQueue::Forward(message) => {
                self.user(message, |gossip, bytes, ended| gossip.forward(bytes, ended))
            }
            ToQueue::Farewell { bytes, reply } => {
                let packets = self.farewell(&bytes);
                ring.command(&ring.transport, ToTransport::Farewell { packets, reply });
            }
        }
    }

    /// Queues a user's broadcast as `put` does it, and counts what had to go.
    fn user(
        &self,
        message: UserBroadcast,
        put: impl FnOnce(&mut Gossip<Spread>, Bytes, &mut dyn FnMut(Option<Spread>, End)) -> Result<(), TooLarge>,
    ) {
        let Ok(bytes) = codec::encoded(&Message::User(message), usize::MAX) else { return };
        let mut pruned = 0;
        let queued = put(&mut self.kept.borrow_mut().gossip, bytes, &mut |ticket, end| {
            pruned += usize::from(end == End::Pruned);
            ended(ticket, end);
        });
        self.ring.counters.drop_many(Lost::Pruned, pruned);
        if queued.is_err() {
            self.ring.counters.drop(Lost::NoRoom);
        }
    }

    /// A farewell for as many members as are to be told directly, at once: the node may be gone before the
    /// next tick.
    fn farewell(&self, bytes: &Bytes) -> Vec<(SocketAddr, Bytes)> {
        let (ring, limit) = (&self.ring, self.limit());
        let view = ring.view.borrow().clone();
        let own = view.local().id.clone();
        let count = (limit as usize).max(FAREWELLS);
        let is_other = |m: &Member| m.state.is_present() && m.id != own;
        let members = view.roster().sample(count, &mut *ring.rng.borrow_mut(), is_other);
        let mut kept = self.kept.borrow_mut();
        let packet = |member: &Arc<Member>| Some((member.addr, kept.gossip.packet_of(bytes, limit, ended)?));
        members.iter().filter_map(packet).collect()
    }

    /// How often each piece of news is sent.
    fn limit(&self) -> u32 {
        self.ring.config.retransmit_limit(self.ring.view.borrow().alive_count())
    }

    /// A round of gossip: each of some random members gets a packet of its own.
    fn on_time(&self) {
        let (ring, now) = (&self.ring, now());
        if self.kept.borrow().next_tick.is_none_or(|at| at > now) {
            return;
        }
        self.kept.borrow_mut().next_tick = None;
        let view = ring.view.borrow().clone();
        let limit = self.limit();
        let targets = gossip::targets(&view, &ring.config, now, &mut *ring.rng.borrow_mut());
        if targets.is_empty() {
            // Whoever comes later gets the full state.
            self.kept.borrow_mut().gossip.finish(ended);
        }
        for target in targets {
            let packet = self.kept.borrow_mut().gossip.packet(limit, ended);
            let Some(bytes) = packet else { return };
            ring.command(&ring.transport, ToTransport::Packet { to: target.addr, bytes, report: None });
        }
    }

    /// Ticks only while there is something to say.
    fn set_alarm(&self) {
        let mut kept = self.kept.borrow_mut();
        let interval = self.ring.config.gossip_interval;
        let off = interval.is_zero() || self.ring.config.gossip_nodes == 0;
        kept.next_tick = match kept.next_tick {
            _ if off || kept.gossip.is_empty() => None,
            None => Some(kept.tick_after(now(), interval)),
            some => some,
        };
        let (news, users) = kept.gossip.len();
        self.ring.broadcasts_queued.store((news + users) as u64, Relaxed);
        self.alarm.set(kept.next_tick);
    }
}

impl Actor for BroadcastQueue {
    type Context = Context<Self>;
}

impl actix::Supervised for BroadcastQueue {}

impl Child for BroadcastQueue {
    fn boot(&mut self, ctx: &mut Context<Self>) {
        self.set_alarm();
        Self::add_stream(Turns::new(self.ring.queue.clone(), self.alarm.clone(), None), ctx);
    }
}

impl StreamHandler<Turn> for BroadcastQueue {
    fn handle(&mut self, _: Turn, _: &mut Context<Self>) {
        self.ring.turn(QUEUE, &self.ring.queue, |item| self.hear(item));
        self.ring.hooks.strike(QUEUE, "tick");
        self.on_time();
        self.set_alarm();
    }
}
