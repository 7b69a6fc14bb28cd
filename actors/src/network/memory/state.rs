//! Everything a network in memory knows: links, endpoints, streams, and the schedule of what is on its way.
//! Ordered maps only, so that no iteration depends on the process; but for the links, which are looked up for each
//! datagram, by a hash that is the same in each process, and whose order nothing depends on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, hash_map::DefaultHasher},
    hash::BuildHasherDefault,
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::time::Instant;

use super::{
    Bursts, Link, Stats,
    stream::{Answer, Dial, FIRST_EPHEMERAL_PORT, Side},
    tap::Tap,
};
use crate::trace::Trace;

/// Datagrams that wait at one endpoint: about what a 4 MiB receive buffer of the kernel holds.
const QUEUE: usize = 4096;

/// Datagrams of a link that may be said again.
const REMEMBERED: usize = 8;

/// The most that UDP carries over IPv4.
const MAX_DATAGRAM: usize = 65_507;

/// Where ports for port 0 start: above the privileged ones.
const FIRST_PORT: u16 = 1024;

pub(super) type Pair = (SocketAddr, SocketAddr);

pub(super) struct State {
    rng: Xoshiro256PlusPlus,
    pub(super) trace: Option<Trace>,
    pub(super) tap: Option<Tap>,
    pub(super) stats: Stats,
    pub(super) default: Link,
    pub(super) links: HashMap<Pair, Link, BuildHasherDefault<DefaultHasher>>,
    /// Links from an address, and to one, where a pair has none of its own.
    pub(super) outward: BTreeMap<SocketAddr, Link>,
    pub(super) inward: BTreeMap<SocketAddr, Link>,
    /// Cuts and mends that go before what the links say.
    pub(super) cuts: BTreeMap<Pair, bool>,
    /// Hosts whose cable is out, whatever their links say.
    pub(super) unplugged: BTreeSet<SocketAddr>,
    pub(super) paused: BTreeSet<SocketAddr>,
    /// Hosts that cannot send.
    pub(super) failing: BTreeMap<SocketAddr, io::ErrorKind>,
    /// Links on which losses come together just now.
    bad: BTreeSet<Pair>,
    /// What was said last on links on which something is said again.
    said: BTreeMap<Pair, VecDeque<Bytes>>,
    pub(super) hash_order: bool,

    pub(super) endpoints: BTreeMap<SocketAddr, Bound>,
    pub(super) streams: BTreeMap<u64, [Side; 2]>,
    next_id: u64,
    next_port: BTreeMap<IpAddr, u16>,
    pub(super) next_ephemeral: u16,

    schedule: BTreeMap<(Instant, u64), Delivery>,
    sequence: u64,
    /// What fell due on a link that is cut, or is of a dial whose dialler is paused; in that order.
    pub(super) held: BTreeMap<Pair, VecDeque<Delivery>>,
    /// When the driver wakes; none while it runs or has nothing to wait for.
    armed: Option<Instant>,
    pub(super) driven: bool,

    // What to do once the lock is released.
    pub(super) woken: Vec<Waker>,
    pub(super) answers: Vec<(Answer, io::Result<u64>)>,
    pub(super) earlier: bool,
}

pub(super) struct Bound {
    pub(super) id: u64,
    datagrams: VecDeque<(Bytes, SocketAddr)>,
    pub(super) accepted: VecDeque<(u64, SocketAddr)>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    pub(super) acceptor: Option<Waker>,
}

pub(super) enum Delivery {
    Datagram {
        payload: Bytes,
        from: SocketAddr,
        to: SocketAddr,
    },
    /// The next item that comes to one side of a stream, or, `again`, what is under way there after a loss.
    Item {
        stream: u64,
        side: usize,
        again: bool,
    },
    /// The question of a dial, and its answer.
    Syn(Dial),
    SynAck(Dial, Result<(), io::ErrorKind>),
}

// Links and the schedule.
impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            trace: None,
            tap: None,
            stats: Stats::default(),
            default: Link::default(),
            links: HashMap::default(),
            outward: BTreeMap::new(),
            inward: BTreeMap::new(),
            cuts: BTreeMap::new(),
            unplugged: BTreeSet::new(),
            paused: BTreeSet::new(),
            failing: BTreeMap::new(),
            bad: BTreeSet::new(),
            said: BTreeMap::new(),
            hash_order: false,
            endpoints: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_id: 0,
            next_port: BTreeMap::new(),
            next_ephemeral: FIRST_EPHEMERAL_PORT,
            schedule: BTreeMap::new(),
            sequence: 0,
            held: BTreeMap::new(),
            armed: None,
            driven: false,
            woken: Vec::new(),
            answers: Vec::new(),
            earlier: false,
        }
    }

    pub(super) fn link(&self, pair: Pair) -> &Link {
        let of_host = || self.outward.get(&pair.0).or_else(|| self.inward.get(&pair.1));
        self.links.get(&pair).or_else(of_host).unwrap_or(&self.default)
    }

    /// A time that something takes on the way.
    pub(super) fn latency(&mut self, pair: Pair) -> Duration {
        let latency = self.link(pair).latency.clone();
        self.between(latency)
    }

    fn is_cut(&self, pair: Pair) -> bool {
        self.is_cut_unless(pair, self.link(pair).cut)
    }

    /// The same where it is known what the link says.
    fn is_cut_unless(&self, pair: Pair, link: bool) -> bool {
        self.unplugged.contains(&pair.0)
            || self.unplugged.contains(&pair.1)
            || self.cuts.get(&pair).copied().unwrap_or(link)
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.random::<f64>() < probability
    }

    fn between(&mut self, range: std::ops::Range<Duration>) -> Duration {
        if range.is_empty() { range.start } else { self.rng.random_range(range) }
    }

    pub(super) fn record(&self, kind: &'static str, (from, to): Pair, bytes: &[u8]) {
        if let Some(trace) = &self.trace {
            trace.record(kind, format_args!("{from}->{to}"), bytes);
        }
    }

    pub(super) fn schedule(&mut self, pair: Pair, extra: Duration, delivery: Delivery) {
        let latency = self.link(pair).latency.clone();
        self.send_on(latency, extra, delivery);
    }

    fn send_on(&mut self, latency: std::ops::Range<Duration>, extra: Duration, delivery: Delivery) {
        let due = Instant::now() + self.between(latency) + extra;
        self.schedule.insert((due, self.sequence), delivery);
        self.sequence += 1;
        self.earlier |= self.armed.is_none_or(|armed| due < armed);
    }

    /// Delivers what is due and returns when the next is.
    pub(super) fn deliver_due(&mut self, now: Instant) -> Option<Instant> {
        let mut due = Vec::new();
        while let Some(first) = self.schedule.first_entry()
            && first.key().0 <= now
        {
            due.push(first.remove_entry());
        }
        if self.hash_order {
            due.into_iter().collect::<HashMap<_, _>>().into_values().for_each(|each| self.deliver(each));
        } else {
            due.into_iter().for_each(|(_, each)| self.deliver(each));
        }
        self.armed = self.schedule.first_key_value().map(|(&(due, _), _)| due);
        // The driver is about to look at `armed` itself.
        self.earlier = false;
        self.armed
    }

    pub(super) fn deliver(&mut self, delivery: Delivery) {
        let pair = match &delivery {
            Delivery::Datagram { from, to, .. } => (*from, *to),
            Delivery::Syn(dial) => (dial.from, dial.to),
            Delivery::SynAck(dial, _) => (dial.to, dial.from),
            Delivery::Item { stream, side, .. } => match self.streams.get(stream) {
                Some(sides) => (sides[1 - side].bound, sides[*side].bound),
                None => return,
            },
        };
        let waits = match &delivery {
            // Its fate was decided when it was sent.
            Delivery::Datagram { .. } => false,
            Delivery::Item { stream, side, .. } => {
                self.is_cut(pair) || self.link(pair).mute && self.is_open(*stream, *side)
            }
            // A stopped host neither asks nor hears the answer; its kernel answers for it.
            Delivery::Syn(dial) | Delivery::SynAck(dial, _) => {
                self.is_cut(pair) || self.paused.contains(&dial.from)
            }
        };
        if waits {
            self.hold(pair, delivery);
            return;
        }
        let Some(delivery) = self.shake_hands(pair, delivery) else { return };
        match delivery {
            Delivery::Datagram { payload, from, to } => self.arrive_datagram(payload, from, to),
            Delivery::Item { stream, side, again } => self.transmit(stream, side, again),
            Delivery::Syn(dial) => self.arrive_syn(dial),
            Delivery::SynAck(dial, outcome) => self.arrive_syn_ack(dial, outcome),
        }
    }

    fn hold(&mut self, pair: Pair, delivery: Delivery) {
        let held = self.held.entry(pair).or_default();
        // Dials are given up and tried again all through a long cut.
        held.retain(|each| match each {
            Delivery::Syn(dial) | Delivery::SynAck(dial, _) => !dial.answer.is_closed(),
            Delivery::Item { .. } | Delivery::Datagram { .. } => true,
        });
        held.push_back(delivery);
    }

    /// Sends on what was held, where the link is whole again.
    pub(super) fn release(&mut self) {
        for pair in self.held.keys().copied().collect::<Vec<_>>() {
            self.release_one(pair);
        }
    }

    /// The same of one link.
    pub(super) fn release_one(&mut self, pair: Pair) {
        if self.held.contains_key(&pair) && !self.is_cut(pair) && !self.link(pair).mute {
            let held = self.held.remove(&pair).unwrap_or_default();
            held.into_iter().for_each(|each| self.schedule(pair, Duration::ZERO, each));
        }
    }

    pub(super) fn resume(&mut self, addr: SocketAddr) {
        if !self.paused.remove(&addr) {
            return;
        }
        if let Some(bound) = self.endpoints.get_mut(&addr) {
            self.woken.extend(
                [bound.reader.take(), bound.writer.take(), bound.acceptor.take()].into_iter().flatten(),
            );
        }
        for side in self.streams.values_mut().flatten().filter(|side| side.bound == addr) {
            self.woken.extend(side.reader.take().into_iter().chain(side.writer.take()));
        }
        self.release();
    }
}

// Endpoints and datagrams.
impl State {
    pub(super) fn bind(&mut self, mut addr: SocketAddr) -> io::Result<(u64, SocketAddr)> {
        if addr.port() == 0 {
            let next = self.next_port.get(&addr.ip()).copied().unwrap_or(FIRST_PORT);
            let free = (next..=u16::MAX)
                .chain(FIRST_PORT..next)
                .find(|&port| !self.endpoints.contains_key(&SocketAddr::new(addr.ip(), port)))
                .ok_or(io::ErrorKind::AddrInUse)?;
            addr.set_port(free);
            self.next_port.insert(addr.ip(), free.checked_add(1).unwrap_or(FIRST_PORT));
        }
        if self.endpoints.contains_key(&addr) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let id = self.fresh_id();
        let bound = Bound {
            id,
            datagrams: VecDeque::new(),
            accepted: VecDeque::new(),
            reader: None,
            writer: None,
            acceptor: None,
        };
        self.endpoints.insert(addr, bound);
        Ok((id, addr))
    }

    pub(super) fn unbind(&mut self, addr: SocketAddr, id: u64) {
        let Some(bound) = self.endpoints.remove(&addr) else { return };
        self.fell(id);
        bound.accepted.into_iter().for_each(|(stream, _)| self.abandon(stream, 1));
    }

    pub(super) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn send(&mut self, datagram: &[u8], from: SocketAddr, to: SocketAddr) -> io::Result<()> {
        if datagram.len() > MAX_DATAGRAM {
            let error = format!("datagram of {} bytes, the limit is {MAX_DATAGRAM}", datagram.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        if self.paused.contains(&from) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(error) = self.failing.get(&from) {
            self.stats.unsent += 1;
            return Err((*error).into());
        }
        let pair = (from, to);
        self.stats.datagrams += 1;
        self.stats.bytes += datagram.len() as u64;
        if let Some(tap) = &self.tap {
            tap.datagram(from, to, datagram);
        }

        let link = self.link(pair).clone();
        if self.is_cut_unless(pair, link.cut) {
            self.stats.cut += 1;
            self.record("lost", pair, datagram);
            return Ok(());
        }
        let Link { latency, loss, duplicate, reorder, reorder_by, bursts, largest, replay, .. } = link;
        if datagram.len() > largest {
            self.stats.too_large += 1;
            self.record("lost", pair, datagram);
            return Ok(());
        }
        if bursts.is_some_and(|bursts| self.is_in_burst(pair, bursts)) || self.chance(loss) {
            self.stats.lost += 1;
            self.record("lost", pair, datagram);
            return Ok(());
        }
        self.record("datagram", pair, datagram);
        let copies = if self.chance(duplicate) { 2 } else { 1 };
        self.stats.duplicated += copies - 1;
        let payload = self.spoilt(link.corrupt, link.truncate, datagram);
        for _ in 0..copies {
            let late = self.chance(reorder);
            let extra = if late { self.between(Duration::ZERO..reorder_by) } else { Duration::ZERO };
            self.send_on(latency.clone(), extra, Delivery::Datagram { payload: payload.clone(), from, to });
        }
        if replay > 0.0 {
            self.replay(pair, payload, replay);
        }
        Ok(())
    }

    /// Whether a datagram is lost along with others.
    fn is_in_burst(&mut self, pair: Pair, bursts: Bursts) -> bool {
        let bad = self.bad.contains(&pair);
        let turns = self.chance(if bad { bursts.end } else { bursts.begin });
        match (bad, turns) {
            (false, true) => drop(self.bad.insert(pair)),
            (true, true) => drop(self.bad.remove(&pair)),
            _ => {}
        }
        bad != turns && self.chance(bursts.loss)
    }

    /// A datagram as it arrives.
    fn spoilt(&mut self, corrupt: f64, truncate: f64, datagram: &[u8]) -> Bytes {
        let (corrupt, truncate) = (self.chance(corrupt), self.chance(truncate));
        if !corrupt && !truncate || datagram.is_empty() {
            return Bytes::copy_from_slice(datagram);
        }
        self.stats.spoilt += 1;
        let mut bytes = datagram.to_vec();
        if corrupt {
            for _ in 0..self.rng.random_range(1..=8) {
                let at = self.rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << self.rng.random_range(0..8);
            }
        }
        if truncate {
            bytes.truncate(self.rng.random_range(0..bytes.len()));
        }
        bytes.into()
    }

    /// Perhaps says again what was said before this datagram.
    fn replay(&mut self, pair: Pair, payload: Bytes, probability: f64) {
        let again = self.chance(probability);
        let said = self.said.entry(pair).or_default();
        if again && !said.is_empty() {
            let payload = said[self.rng.random_range(0..said.len())].clone();
            self.stats.replayed += 1;
            let (from, to) = pair;
            self.schedule(pair, Duration::ZERO, Delivery::Datagram { payload, from, to });
        }
        let said = self.said.entry(pair).or_default();
        if said.len() == REMEMBERED {
            said.pop_front();
        }
        said.push_back(payload);
    }

    fn arrive_datagram(&mut self, payload: Bytes, from: SocketAddr, to: SocketAddr) {
        let Some(bound) = self.endpoints.get_mut(&to) else { return };
        if bound.datagrams.len() == QUEUE {
            self.stats.overflowed += 1;
            return;
        }
        bound.datagrams.push_back((payload, from));
        if !self.paused.contains(&to) {
            self.woken.extend(bound.reader.take());
        }
    }

    pub(super) fn poll_readable(&mut self, addr: SocketAddr, cx: &Context<'_>) -> Poll<()> {
        let paused = self.paused.contains(&addr);
        match self.endpoints.get_mut(&addr) {
            Some(bound) if paused || bound.datagrams.is_empty() => {
                bound.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    pub(super) fn poll_writable(&mut self, addr: SocketAddr, cx: &Context<'_>) -> Poll<()> {
        match self.endpoints.get_mut(&addr) {
            Some(bound) if self.paused.contains(&addr) => {
                bound.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    pub(super) fn receive(&mut self, addr: SocketAddr) -> Option<(Bytes, SocketAddr)> {
        if self.paused.contains(&addr) { None } else { self.endpoints.get_mut(&addr)?.datagrams.pop_front() }
    }
}
