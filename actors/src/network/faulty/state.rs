//! What all parts of a faulty network share: the rules, the streams that are open, the datagrams that are held up.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    num::NonZeroU64,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Waker},
    time::Duration,
};

use bytes::Bytes;
use memberlist_protocol::member::{NodeId, canonical};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{FaultStats, wire::Wire};

/// Datagrams that are held up at one endpoint, both ways together.
const MAX_LATE: usize = 4096;

/// Streams that were dropped here while something of them was still on its way.
const MAX_LINGERING: usize = 256;

/// Which way something goes, as the node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the peer.
    To = 0,
    /// From the peer.
    From = 1,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::To, Self::From];
}

/// The faults of one direction.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rules {
    pub(super) cut: bool,
    pub(super) paused: bool,
    pub(super) stalled: bool,
    pub(super) delay: Option<Range<Duration>>,
    pub(super) loss: f64,
    pub(super) duplicate: f64,
    /// Bytes that a stream carries in a second.
    pub(super) rate: Option<NonZeroU64>,
}

impl Rules {
    /// Whether streams carry nothing in this direction.
    pub(super) fn hold_streams(&self) -> bool {
        self.cut || self.paused || self.stalled
    }

    fn hold_dials(&self) -> bool {
        self.cut || self.paused
    }
}

/// How much a stream still carries in one direction, and what ends then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) left: u64,
    pub(super) ends: Ends,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    Direction,
    Stream,
}

/// Where somebody waits for the network, and for changes of its faults.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Of a stream: whether it has to look at the rules.
    pub(super) touched: AtomicBool,
    waiting: Mutex<[Option<Waker>; 2]>,
}

impl Slot {
    pub(super) fn wait(&self, direction: Direction, cx: &Context<'_>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut waiting[direction as usize] {
            Some(known) => known.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Wakes whoever waits for the other direction.
    pub(super) fn wake_other(&self, than: Direction) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let woken = waiting[1 - than as usize].take();
        drop(waiting);
        woken.into_iter().for_each(Waker::wake);
    }

    pub(super) fn wake(&self) {
        let woken = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        woken.into_iter().flatten().for_each(Waker::wake);
    }
}

/// A stream that is open, or of which something is still on its way.
pub(super) struct Open {
    pub(super) peer: Option<SocketAddr>,
    seen: Option<SocketAddr>,
    pub(super) slot: std::sync::Arc<Slot>,
    pub(super) reset: bool,
    pub(super) budgets: [Option<Budget>; 2],
}

/// What a stream has to heed in one direction.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pub(super) rules: Rules,
    pub(super) reset: bool,
    pub(super) budget: Option<Budget>,
    /// Whether nothing is to be heard of the other side.
    pub(super) deaf: bool,
}

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    Drop,
    Later,
}

/// A datagram that is held up.
enum Late {
    Out(Bytes, SocketAddr),
    In(Bytes, SocketAddr),
}

struct Bound {
    slot: std::sync::Arc<Slot>,
    late: BTreeMap<(Instant, u64), Late>,
    ready: VecDeque<(Bytes, SocketAddr)>,
}

pub(super) struct State {
    rng: Xoshiro256PlusPlus,
    /// For whoever has no rules of its own.
    all: [Rules; 2],
    peers: BTreeMap<SocketAddr, [Rules; 2]>,
    /// Whom faults were named for, and where that is.
    pub(super) named: BTreeMap<NodeId, SocketAddr>,
    pub(super) streams: BTreeMap<u64, Open>,
    seen: BTreeMap<SocketAddr, u64>,
    endpoints: BTreeMap<u64, Bound>,
    lingering: VecDeque<Wire>,
    pub(super) stats: FaultStats,
    numbers: u64,
}

pub(super) struct Shared {
    /// Whether there is anything to look at.
    pub(super) active: AtomicBool,
    state: Mutex<State>,
    changed: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("active", &self.active).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(seed: u64) -> Self {
        let state = State {
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            all: Default::default(),
            peers: BTreeMap::new(),
            named: BTreeMap::new(),
            streams: BTreeMap::new(),
            seen: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            lingering: VecDeque::new(),
            stats: FaultStats::default(),
            numbers: 0,
        };
        Self { active: AtomicBool::new(false), state: Mutex::new(state), changed: Notify::new() }
    }

    pub(super) fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes faults, and lets everybody know who waits for something.
    pub(super) fn change<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let (result, slots, over) = self.with(|state| {
            let result = act(state);
            self.active.store(state.is_active(), Relaxed);
            let mut slots: Vec<_> = state.endpoints.values().map(|bound| bound.slot.clone()).collect();
            for open in state.streams.values() {
                open.slot.touched.store(true, Relaxed);
                slots.push(open.slot.clone());
            }
            (result, slots, state.linger_over())
        });
        self.changed.notify_waiters();
        slots.iter().for_each(|slot| slot.wake());
        drop(over);
        result
    }

    async fn until(&self, free: impl Fn(&State) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.with(|state| free(state)) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until a dial gets to the peer. It takes a question and an answer.
    pub(super) async fn way_for_dial(&self, peer: SocketAddr) {
        self.pass_for_dial(peer, Direction::To).await;
    }

    /// Waits until the answer to a dial gets back.
    pub(super) async fn way_for_dial_back(&self, peer: SocketAddr) {
        self.pass_for_dial(peer, Direction::From).await;
    }

    async fn pass_for_dial(&self, peer: SocketAddr, direction: Direction) {
        if !self.active.load(Relaxed) {
            return;
        }
        let free = |state: &State| {
            let rules = state.rules(Some(peer));
            !rules[0].hold_dials() && !rules[1].hold_dials()
        };
        self.until(free).await;
        let delay = self.with(|state| {
            let delay = state.rules(Some(peer))[direction as usize].delay.clone();
            delay.map(|range| state.between(range))
        });
        if let Some(delay) = delay {
            sleep(delay).await;
        }
    }

    /// A stream that was dialled by others turns out to be of this peer. It goes on when what that says gets through.
    pub(super) async fn met(&self, seen: SocketAddr, peer: SocketAddr) {
        let peer = canonical(peer);
        self.with(|state| state.meet(canonical(seen), peer));
        if self.active.load(Relaxed) {
            self.until(|state| !state.rules(Some(peer))[Direction::From as usize].hold_streams()).await;
        }
    }

    /// Brings home what is left of streams that were dropped.
    pub(super) fn run_lingering(&self, cx: &mut Context<'_>) {
        let mut wires = self.with(|state| std::mem::take(&mut state.lingering));
        if wires.is_empty() {
            return;
        }
        wires.retain_mut(|wire| !wire.poll_home(self, cx));
        let crowded = self.with(|state| {
            // What has been dropped meanwhile comes behind.
            wires.append(&mut state.lingering);
            state.lingering = wires;
            let crowded = state.crowded();
            self.active.store(state.is_active(), Relaxed);
            crowded
        });
        drop(crowded);
    }

    /// Keeps a stream that was dropped until all of it has got through.
    pub(super) fn linger(&self, wire: Wire) {
        let crowded = self.with(|state| {
            state.lingering.push_back(wire);
            self.active.store(true, Relaxed);
            state.crowded()
        });
        drop(crowded);
        let slots: Vec<_> =
            self.with(|state| state.endpoints.values().map(|bound| bound.slot.clone()).collect());
        slots.iter().for_each(|slot: &std::sync::Arc<Slot>| slot.wake());
    }
}

impl State {
    fn is_active(&self) -> bool {
        let clear = Rules::default();
        self.all.iter().chain(self.peers.values().flatten()).any(|rules| *rules != clear)
            || self.endpoints.values().any(|bound| !bound.late.is_empty() || !bound.ready.is_empty())
            || !self.lingering.is_empty()
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// The rules for a peer, or for somebody who is not known yet.
    pub(super) fn rules(&self, peer: Option<SocketAddr>) -> &[Rules; 2] {
        peer.and_then(|peer| self.peers.get(&peer)).unwrap_or(&self.all)
    }

    /// Changes the rules for a peer, or for all.
    pub(super) fn set(
        &mut self,
        peer: Option<SocketAddr>,
        ways: &[Direction],
        mut change: impl FnMut(&mut Rules),
    ) {
        let rules = match peer {
            Some(peer) => self.peers.entry(peer).or_insert_with(|| self.all.clone()),
            None => &mut self.all,
        };
        ways.iter().for_each(|way| change(&mut rules[*way as usize]));
        // Where nothing is wrong with anybody, nobody is an exception.
        if self.all == <[Rules; 2]>::default() {
            let all = &self.all;
            self.peers.retain(|_, rules| rules != all);
        }
    }

    /// There is no fault any more.
    pub(super) fn clear(&mut self) {
        (self.all, self.peers) = (Default::default(), BTreeMap::new());
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.random::<f64>() < probability
    }

    pub(super) fn between(&mut self, range: Range<Duration>) -> Duration {
        if range.is_empty() { range.start } else { self.rng.random_range(range) }
    }
}

// Datagrams.
impl State {
    pub(super) fn bind(&mut self, slot: std::sync::Arc<Slot>) -> u64 {
        let id = self.number();
        self.endpoints.insert(id, Bound { slot, late: BTreeMap::new(), ready: VecDeque::new() });
        id
    }

    pub(super) fn unbind(&mut self, id: u64) {
        self.endpoints.remove(&id);
    }

    /// A datagram is sent: what becomes of it, and whether it goes twice.
    pub(super) fn goes(&mut self, id: u64, datagram: &[u8], to: SocketAddr) -> (Verdict, bool) {
        let peer = canonical(to);
        let Some(copies) = self.copies(peer, Direction::To) else { return (Verdict::Drop, false) };
        let verdict =
            self.hold_up(id, peer, Direction::To, copies, || Late::Out(Bytes::copy_from_slice(datagram), to));
        (verdict, copies > 1)
    }

    /// A datagram has come.
    pub(super) fn came(&mut self, id: u64, datagram: &[u8], from: SocketAddr) -> Verdict {
        let peer = canonical(from);
        let Some(copies) = self.copies(peer, Direction::From) else { return Verdict::Drop };
        let verdict = self
            .hold_up(id, peer, Direction::From, copies, || Late::In(Bytes::copy_from_slice(datagram), from));
        if verdict == Verdict::Pass
            && copies > 1
            && let Some(bound) = self.endpoints.get_mut(&id)
            && bound.ready.len() < MAX_LATE
        {
            bound.ready.push_back((Bytes::copy_from_slice(datagram), from));
        }
        verdict
    }

    /// How often a datagram arrives; none if it does not.
    fn copies(&mut self, peer: SocketAddr, direction: Direction) -> Option<usize> {
        let Rules { cut, loss, duplicate, .. } = self.rules(Some(peer))[direction as usize];
        if cut {
            self.stats.cut += 1;
            return None;
        }
        if self.chance(loss) {
            self.stats.lost += 1;
            return None;
        }
        let twice = self.chance(duplicate);
        self.stats.duplicated += u64::from(twice);
        Some(1 + usize::from(twice))
    }

    fn hold_up(
        &mut self,
        id: u64,
        peer: SocketAddr,
        direction: Direction,
        copies: usize,
        late: impl Fn() -> Late,
    ) -> Verdict {
        let Some(range) = self.rules(Some(peer))[direction as usize].delay.clone() else {
            return Verdict::Pass;
        };
        for _ in 0..copies {
            let due = Instant::now() + self.between(range.clone());
            let number = self.number();
            let Some(bound) = self.endpoints.get_mut(&id) else { return Verdict::Drop };
            if bound.late.len() + bound.ready.len() >= MAX_LATE {
                self.stats.overflowed += 1;
                continue;
            }
            bound.late.insert((due, number), late());
            self.stats.delayed += 1;
        }
        Verdict::Later
    }

    /// What is due at an endpoint: what is to be sent now, and when the next one is due.
    pub(super) fn late(&mut self, id: u64, now: Instant) -> (Vec<(Bytes, SocketAddr)>, Option<Instant>) {
        let mut out = Vec::new();
        let Some(bound) = self.endpoints.get_mut(&id) else { return (out, None) };
        while let Some(first) = bound.late.first_entry()
            && first.key().0 <= now
        {
            match first.remove() {
                Late::Out(datagram, to) => out.push((datagram, to)),
                Late::In(datagram, from) => bound.ready.push_back((datagram, from)),
            }
        }
        (out, bound.late.first_key_value().map(|((due, _), _)| *due))
    }

    pub(super) fn has_ready(&self, id: u64) -> bool {
        self.endpoints.get(&id).is_some_and(|bound| !bound.ready.is_empty())
    }

    pub(super) fn take_ready(&mut self, id: u64) -> Option<(Bytes, SocketAddr)> {
        self.endpoints.get_mut(&id)?.ready.pop_front()
    }
}

// Streams.
impl State {
    pub(super) fn open(
        &mut self,
        peer: Option<SocketAddr>,
        seen: Option<SocketAddr>,
        slot: std::sync::Arc<Slot>,
    ) -> u64 {
        let id = self.number();
        slot.touched.store(self.is_active(), Relaxed);
        if let Some(seen) = seen {
            self.seen.insert(seen, id);
        }
        self.streams.insert(id, Open { peer, seen, slot, reset: false, budgets: [None; 2] });
        id
    }

    pub(super) fn close(&mut self, id: u64) {
        if let Some(open) = self.streams.remove(&id)
            && let Some(seen) = open.seen
            && self.seen.get(&seen) == Some(&id)
        {
            self.seen.remove(&seen);
        }
    }

    fn meet(&mut self, seen: SocketAddr, peer: SocketAddr) {
        let active = self.is_active();
        if let Some(open) = self.seen.get(&seen).and_then(|id| self.streams.get_mut(id)) {
            open.peer = Some(peer);
            open.slot.touched.fetch_or(active, Relaxed);
        }
    }

    pub(super) fn look(&self, id: u64, direction: Direction) -> Look {
        let Some(open) = self.streams.get(&id) else { return Look::default() };
        let rules = self.rules(open.peer);
        Look {
            rules: rules[direction as usize].clone(),
            reset: open.reset,
            budget: open.budgets[direction as usize],
            deaf: rules[Direction::From as usize].hold_streams(),
        }
    }

    /// So many bytes have gone over a stream.
    pub(super) fn carried(&mut self, id: u64, direction: Direction, len: usize) {
        if let Some(open) = self.streams.get_mut(&id)
            && let Some(budget) = &mut open.budgets[direction as usize]
        {
            budget.left = budget.left.saturating_sub(len as u64);
        }
    }

    /// Nothing is left that a stream would have to heed, if that is so.
    pub(super) fn calm(&self, id: u64) {
        let clear = Rules::default();
        if let Some(open) = self.streams.get(&id)
            && !open.reset
            && open.budgets.iter().all(Option::is_none)
            && self.rules(open.peer).iter().all(|rules| *rules == clear)
        {
            open.slot.touched.store(false, Relaxed);
        }
    }

    /// Those with a peer, or all.
    pub(super) fn streams_with(&mut self, peer: Option<SocketAddr>) -> impl Iterator<Item = &mut Open> {
        self.streams.values_mut().filter(move |open| peer.is_none() || open.peer == peer)
    }

    /// Those whose last word has got through. The caller drops them when it holds no lock.
    fn linger_over(&mut self) -> Vec<Wire> {
        let Self { streams, lingering, all, peers, .. } = self;
        let mut over = Vec::new();
        for wire in std::mem::take(lingering) {
            let peer = streams.get(&wire.id).and_then(|open| open.peer);
            let rules = peer.and_then(|peer| peers.get(&peer)).unwrap_or(all);
            let held = rules[Direction::To as usize].hold_streams();
            if held || wire.has_words() { lingering.push_back(wire) } else { over.push(wire) }
        }
        over.iter().for_each(|wire| self.close(wire.id));
        over
    }

    /// Those for which there is no room any more.
    fn crowded(&mut self) -> Vec<Wire> {
        let more = self.lingering.len().saturating_sub(MAX_LINGERING);
        let crowded: Vec<_> = self.lingering.drain(..more).collect();
        crowded.iter().for_each(|wire| self.close(wire.id));
        self.stats.forgotten += more as u64;
        crowded
    }
}
