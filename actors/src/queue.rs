//! **BroadcastQueue** holds what is still to be gossiped, and packs every packet that leaves. It hears news
//! from NodeState, broadcasts from users, and messages to single nodes; it says packets to Transport.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use actix::{Actor, Context, StreamHandler};
use bytes::Bytes;
use memberlist_protocol::{
    broadcast::{End, TooLarge},
    gossip::{self, Gossip},
    link::Lane,
    member::Member,
    wire::{
        codec,
        message::{Address, Message, UserBroadcast},
    },
};
use rand::RngExt;

use crate::{
    errors::{Cause, NotSent},
    fate::{Fanout, Fate},
    inbox::{Alarm, Turn, Turns},
    link::{Letter, What},
    logs::{Line, say},
    messages::{QUEUE, Reply, ToQueue, ToTransport},
    metrics::{Counters, Lost},
    ring::{Shared, now},
    supervisor::Child,
};

/// Members that are told directly when this node leaves; in a cluster up to this size, all of them.
const FAREWELLS: usize = 128;

/// Broadcasts that are on their way over streams at once.
const MAX_LARGE: usize = 256;

/// Who waits for a broadcast to have spread.
type Spread = Reply<Result<(), NotSent>>;

/// What comes back with something that was to be gossiped.
struct Ticket {
    queued: Instant,
    /// A user's broadcast; else news of the membership.
    user: bool,
    spread: Option<Spread>,
}

/// What survives a restart.
pub(crate) struct Kept {
    gossip: Gossip<Ticket>,
    /// Named broadcasts that are on their way over streams.
    fanouts: Vec<(Arc<str>, Weak<Fanout>)>,
    /// All broadcasts that are on their way over streams.
    large: Vec<Weak<Fanout>>,
    /// The first tick; the others follow at whole intervals.
    first_tick: Instant,
    next_tick: Option<Instant>,
    /// The last round, and whether something has come since that is to leave before the next one.
    last_round: Instant,
    fresh: bool,
}

impl Kept {
    pub(crate) fn new(ring: &Shared, now: Instant) -> Self {
        let phase = ring.config.gossip_interval.mul_f64(ring.rng.borrow_mut().random::<f64>());
        let gossip = Gossip::new(&ring.config, ring.guard().overhead());
        ring.max_broadcast.store(gossip.max_len(), Relaxed);
        Self {
            gossip,
            fanouts: Vec::new(),
            large: Vec::new(),
            first_tick: now + phase,
            next_tick: None,
            last_round: now,
            fresh: false,
        }
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

/// Tells whoever waits for it.
fn ended(ticket: Option<Ticket>, end: End) {
    let outcome = match end {
        End::Sent => Ok(()),
        End::Replaced => Err(NotSent::Never(Cause::Invalidated)),
        End::Pruned => Err(NotSent::Unknown(Cause::Busy)),
    };
    if let Some(spread) = ticket.and_then(|ticket| ticket.spread) {
        let _ = spread.send(outcome);
    }
}

/// The same, and notes how long it took to be sent as often as it should.
fn sent(counters: &Counters, ticket: Option<Ticket>, end: End) {
    if let (Some(ticket), End::Sent) = (&ticket, end) {
        let time = now().saturating_duration_since(ticket.queued);
        if ticket.user { &counters.spread_user } else { &counters.spread_news }.observe(time);
    }
    ended(ticket, end);
}

impl BroadcastQueue {
    pub(crate) fn new(ring: Shared, kept: Rc<RefCell<Kept>>) -> Self {
        Self { ring, kept, alarm: Alarm::default() }
    }

    fn hear(&self, item: ToQueue) {
        let ring = &self.ring;
        match item {
            ToQueue::News { about, bytes } => {
                let ticket = Ticket { queued: now(), user: false, spread: None };
                match self.kept.borrow_mut().gossip.news_with(about, bytes, Some(ticket)) {
                    Ok(pruned) => self.pruned(pruned),
                    Err(_) => self.no_room(),
                }
                self.kept.borrow_mut().fresh = ring.config.gossip_at_once;
            }
            ToQueue::Send { to, run, messages, piggyback, report } => {
                let limit = self.limit();
                let ended = |ticket, end| sent(&ring.counters, ticket, end);
                let packet = self.kept.borrow_mut().gossip.packet_with(&messages, piggyback, limit, ended);
                match packet {
                    Some(bytes) => {
                        messages.iter().for_each(|message| ring.counters.sent(message));
                        ring.command(&ring.transport, ToTransport::Packet { to, run, bytes, report });
                    }
                    None => self.no_room(),
                }
            }
            ToQueue::Broadcast { name, replaces, message, spread } => {
                if message.bytes.len() <= ring.config.gossiped_broadcast_size {
                    self.invalidate_large(name.as_deref(), &replaces);
                    let ticket = Some(Ticket { queued: now(), user: true, spread: Some(spread) });
                    self.user(message, |gossip, bytes, ended| {
                        gossip.user(name, &replaces, bytes, ticket, ended)
                    });
                } else {
                    self.fan_out(name, &replaces, message, spread);
                }
            }
            ToQueue::Forward(message) => {
                self.user(message, |gossip, bytes, ended| gossip.forward(bytes, ended));
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
        put: impl FnOnce(&mut Gossip<Ticket>, Bytes, &mut dyn FnMut(Option<Ticket>, End)) -> Result<(), TooLarge>,
    ) {
        let Ok(bytes) = codec::encoded(&Message::User(message), usize::MAX) else { return };
        let mut pruned = 0;
        let queued = put(&mut self.kept.borrow_mut().gossip, bytes, &mut |ticket, end| {
            pruned += usize::from(end == End::Pruned);
            ended(ticket, end);
        });
        self.pruned(pruned);
        if queued.is_err() {
            self.no_room();
        }
    }

    /// Broadcasts of these names that are on their way over streams are sent to nobody else.
    fn invalidate_large(&self, name: Option<&str>, replaces: &[String]) {
        let mut kept = self.kept.borrow_mut();
        let before = kept.fanouts.len();
        kept.fanouts.retain(|(known, fanout)| {
            let old = name == Some(&**known) || replaces.iter().any(|name| *name == **known);
            match fanout.upgrade() {
                Some(fanout) if old => fanout.invalidate(),
                Some(_) => return true,
                None => {}
            }
            false
        });
        if kept.fanouts.len() < before {
            for link in self.ring.links.all() {
                link.purge(&self.ring, now());
            }
        }
        kept.large.retain(|fanout| fanout.upgrade().is_some_and(|fanout| !fanout.is_void()));
    }

    /// A broadcast that is too large for gossip goes to each member by itself.
    fn fan_out(&self, name: Option<Arc<str>>, replaces: &[String], m: UserBroadcast, spread: Spread) {
        let (ring, len) = (&self.ring, m.bytes.len());
        // Those that this one replaces make room for it.
        self.invalidate_large(name.as_deref(), replaces);
        self.kept.borrow_mut().gossip.invalidate(name.as_deref(), replaces, ended);
        let waiting: Vec<_> = self.kept.borrow().large.iter().filter_map(Weak::upgrade).collect();
        let bytes: usize = waiting.iter().map(|fanout| fanout.len).sum();
        let room = waiting.is_empty() || bytes + len <= ring.config.peer_queue_bytes;
        if waiting.len() >= MAX_LARGE || !room {
            ring.counters.drop(Lost::NoRoom);
            let _ = spread.send(Err(NotSent::Never(Cause::Busy)));
            return;
        }
        let view = ring.view.borrow().clone();
        let others: Vec<_> = view.alive().filter(|member| member.id != view.local().id).collect();
        if others.is_empty() {
            let _ = spread.send(Ok(()));
            return;
        }
        let fanout = Fanout::new(others.len(), len, spread);
        let address = Address::Broadcast { origin: m.origin, id: m.id, kind: m.kind };
        let bytes = Bytes::from([&codec::encode_address(&address)[..], &m.bytes].concat());
        for member in others {
            let (bytes, fate) = (bytes.clone(), Fate::Part(fanout.part()));
            let letter = Letter { what: What::Broadcast, bytes, fate };
            let sent = match ring.links.to(ring, &member.id) {
                Ok(link) => link.send(ring, Lane::Bulk, letter).map_err(|(_, letter)| letter),
                Err(_) => Err(letter),
            };
            if let Err(letter) = sent {
                ring.counters.drop(Lost::Undelivered);
                letter.fate.end(Err(NotSent::Never(Cause::Busy)));
            }
        }
        let mut kept = self.kept.borrow_mut();
        kept.large.push(Arc::downgrade(&fanout));
        if let Some(name) = name {
            kept.fanouts.push((name, Arc::downgrade(&fanout)));
        }
    }

    fn pruned(&self, pruned: usize) {
        if pruned > 0 {
            self.ring.counters.drop_many(Lost::Pruned, pruned);
            say!(
                self.ring,
                Line::Pruned,
                warn,
                "too much is to be gossiped: what was sent the most gives way"
            );
        }
    }

    fn no_room(&self) {
        self.ring.counters.drop(Lost::NoRoom);
        say!(self.ring, Line::NoRoom, warn, "no packet has room for a message: see udp_buffer_size");
    }

    /// A farewell for as many members as are to be told directly, at once: the node may be gone before the
    /// next tick.
    fn farewell(&self, bytes: &Bytes) -> Vec<(SocketAddr, u64, Bytes)> {
        let (ring, limit) = (&self.ring, self.limit());
        let view = ring.view.borrow().clone();
        let own = view.local().id.clone();
        let count = (limit as usize).max(FAREWELLS);
        let is_other = |m: &Member| m.state.is_present() && m.id != own;
        let members = view.roster().sample(count, &mut *ring.rng.borrow_mut(), is_other);
        let mut kept = self.kept.borrow_mut();
        let ended = |ticket, end| sent(&ring.counters, ticket, end);
        let packet = |member: &Arc<Member>| {
            Some((member.addr, member.id.run(), kept.gossip.packet_of(bytes, limit, ended)?))
        };
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
        {
            let mut kept = self.kept.borrow_mut();
            (kept.next_tick, kept.last_round, kept.fresh) = (None, now, false);
        }
        let view = ring.view.borrow().clone();
        let limit = self.limit();
        let targets = gossip::targets(&view, &ring.config, now, &mut *ring.rng.borrow_mut());
        if targets.is_empty() {
            // Whoever comes later gets the full state.
            self.kept.borrow_mut().gossip.finish(ended);
        }
        for target in targets {
            let ended = |ticket, end| sent(&ring.counters, ticket, end);
            let packet = self.kept.borrow_mut().gossip.packet(limit, ended);
            let Some(bytes) = packet else { break };
            let (to, run) = (target.addr, target.id.run());
            ring.command(&ring.transport, ToTransport::Packet { to, run, bytes, report: None });
        }
        ring.counters.gossip.observe(self::now().saturating_duration_since(now));
    }

    /// Ticks only while there is something to say.
    fn set_alarm(&self) {
        let mut kept = self.kept.borrow_mut();
        let interval = self.ring.config.gossip_interval;
        let off = interval.is_zero() || self.ring.config.gossip_nodes == 0;
        if off && self.ring.view.borrow().alive_count() == 1 {
            // Whoever comes later gets the full state.
            kept.gossip.finish(ended);
        }
        kept.next_tick = match kept.next_tick {
            _ if off || kept.gossip.is_empty() => None,
            None => Some(kept.tick_after(now(), interval)),
            some => some,
        };
        if kept.fresh {
            let soon = now().max(kept.last_round + interval / 8);
            kept.next_tick = kept.next_tick.map(|at| at.min(soon));
        }
        let (news, users) = kept.gossip.len();
        self.ring.broadcasts_queued.store((news + users) as u64, Relaxed);
        self.ring.news_queued.store(news as u64, Relaxed);
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
