//! What users send to single nodes in datagrams, and has not left yet. It is put into packets right away, one for
//! each node and as many more as it takes: however many messages wait, each is copied once, and none has memory of
//! its own.
//!
//! A node that has more of it than its handlers take says so, and is sent nothing for a few milliseconds; then this
//! queue fills, and its callers learn of that.
//!
//! It lies apart from everything that the membership needs: however much users send, no ping waits behind it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Instant,
};

use bytes::Bytes;
use memberlist_protocol::{
    member::NodeId,
    wire::{
        bundle::{Bundler, part_len},
        codec::around_direct,
    },
};

use crate::errors::SendError;

/// Messages that wait for one node. They leave in the next turns of this one.
const LANE_MESSAGES: usize = 8192;

/// Bytes that wait for one node.
const LANE_BYTES: usize = 1 << 20;

/// Bytes that wait in all.
const MAX_BYTES: usize = 32 << 20;

/// Buffers that are kept to be used again.
const SPARE: usize = 64;

/// Untyped bytes that are to be sent later.
pub(crate) struct Cast {
    pub(crate) to: Target,
    pub(crate) bytes: Bytes,
}

/// Where a datagram goes.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) addr: SocketAddr,
    /// Who is meant; nothing means whoever is there.
    pub(crate) id: Option<NodeId>,
    /// The run that it is sealed for, if it is known.
    pub(crate) run: u64,
}

/// Messages for one node that leave together.
pub(crate) struct Packet {
    pub(crate) to: Target,
    pub(crate) parts: Bundler,
}

/// What waits for one node.
#[derive(Default)]
struct Lane {
    packets: VecDeque<Packet>,
    messages: usize,
    bytes: usize,
    /// Until when it sends nothing: the node has asked for that.
    held: Option<Instant>,
}

/// A node, as packets are for it: where, and which run.
type Key = (SocketAddr, u64);

#[derive(Default)]
struct Waiting {
    /// Those for which something waits, or which are held.
    lanes: BTreeMap<Key, Lane>,
    /// Lanes with packets that may leave, in turn.
    ready: VecDeque<Key>,
    /// Lanes that are held, by when that ends.
    held: BTreeSet<(Instant, Key)>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
    waker: Option<Waker>,
    closed: bool,
}

/// What waits to be sent in datagrams.
pub(crate) struct Casts {
    waiting: Mutex<Waiting>,
    /// Bytes of this node's name.
    name: usize,
}

impl Casts {
    /// Of the node of that name.
    pub(crate) fn new(name: &str) -> Self {
        Self { waiting: Mutex::default(), name: name.len() }
    }

    /// Queues a message, in a packet that has room for it, or in a new one. `max` is what one packet has room for in
    /// all.
    pub(crate) fn push(&self, to: &Target, kind: &str, bytes: &[u8], max: usize) -> Result<(), SendError> {
        let room = self.check(to, kind, bytes.len(), max)?;
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(SendError::Stopped);
        }
        if !waiting.has_room(key(to), part_len(kind.len(), bytes.len())) {
            return Err(SendError::Full);
        }
        if waiting.put(to, kind, bytes, room) {
            wake(waiting);
        }
        Ok(())
    }

    /// The room for messages in a packet for that node, if one of `len` bytes fits into it.
    pub(crate) fn check(&self, to: &Target, kind: &str, len: usize, max: usize) -> Result<usize, SendError> {
        let around = around_direct(self.name, to.id.as_ref().map_or(0, |id| id.name().len()));
        let room = max.saturating_sub(around);
        if part_len(kind.len(), len) > room {
            return Err(SendError::TooLarge { len, max: room.saturating_sub(part_len(kind.len(), 0)) });
        }
        Ok(room)
    }

    /// The next packet; those for different nodes take turns.
    pub(crate) fn next(&self) -> Option<Packet> {
        let mut waiting = self.lock();
        let key = waiting.ready.pop_front()?;
        let lane = waiting.lanes.get_mut(&key)?;
        let packet = lane.packets.pop_front()?;
        let (messages, bytes) = (packet.parts.parts(), packet.parts.as_bytes().len());
        lane.messages -= messages;
        lane.bytes -= bytes;
        if lane.packets.is_empty() {
            waiting.lanes.remove(&key);
        } else {
            waiting.ready.push_back(key);
        }
        waiting.bytes -= bytes;
        Some(packet)
    }

    /// Gives a packet back that the network did not take.
    pub(crate) fn put_back(&self, packet: Packet) {
        let mut waiting = self.lock();
        if waiting.closed {
            return;
        }
        let (key, bytes) = (key(&packet.to), packet.parts.as_bytes().len());
        let lane = waiting.lanes.entry(key).or_default();
        let first = lane.packets.is_empty() && lane.held.is_none();
        lane.messages += packet.parts.parts();
        lane.bytes += bytes;
        lane.packets.push_front(packet);
        if first {
            waiting.ready.push_front(key);
        }
        waiting.bytes += bytes;
    }

    /// Sends nothing to that node until then. An earlier word of it does not count any more.
    pub(crate) fn hold(&self, addr: SocketAddr, run: u64, until: Instant) {
        let mut waiting = self.lock();
        if waiting.closed {
            return;
        }
        let key = (addr, run);
        let before = waiting.lanes.entry(key).or_default().held.replace(until);
        match before {
            Some(before) => drop(waiting.held.remove(&(before, key))),
            None => waiting.ready.retain(|ready| *ready != key),
        }
        waiting.held.insert((until, key));
    }

    /// When something may leave that is held now.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.lock().held.first().map(|(until, _)| *until)
    }

    /// Gives the memory of a packet back that has left.
    pub(crate) fn done(&self, packet: Packet) {
        let mut waiting = self.lock();
        if waiting.spare.len() < SPARE && !waiting.closed {
            waiting.spare.push(packet.parts.into_bytes());
        }
    }

    /// Messages that wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().lanes.values().map(|lane| lane.messages).sum()
    }

    /// Whether there is something to send; else the waker is called once there is.
    pub(crate) fn is_ready(&self, now: Instant, waker: &Waker) -> bool {
        let mut waiting = self.lock();
        waiting.release(now);
        if !waiting.ready.is_empty() {
            return true;
        }
        match &mut waiting.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        false
    }

    /// Takes nothing more, and drops what waits.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        *waiting = Waiting { closed: true, ..Waiting::default() };
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn has_room(&self, key: Key, bytes: usize) -> bool {
        let lane = self.lanes.get(&key).map_or((0, 0), |lane| (lane.messages, lane.bytes));
        self.bytes + bytes <= MAX_BYTES && lane.0 < LANE_MESSAGES && lane.1 + bytes <= LANE_BYTES
    }

    /// Says whether something may leave that could not before.
    fn put(&mut self, to: &Target, kind: &str, bytes: &[u8], room: usize) -> bool {
        let Self { lanes, spare, .. } = self;
        let lane = lanes.entry(key(to)).or_default();
        lane.messages += 1;
        if let Some(packet) = lane.packets.back_mut()
            && packet.to.id == to.id
        {
            let before = packet.parts.as_bytes().len();
            if packet.parts.push(kind, bytes, room) {
                let more = packet.parts.as_bytes().len() - before;
                lane.bytes += more;
                self.bytes += more;
                return false;
            }
        }
        let mut parts = Bundler::reuse(spare.pop().unwrap_or_default());
        parts.push(kind, bytes, room);
        let more = parts.as_bytes().len();
        let first = lane.packets.is_empty() && lane.held.is_none();
        lane.bytes += more;
        lane.packets.push_back(Packet { to: to.clone(), parts });
        self.bytes += more;
        if first {
            self.ready.push_back(key(to));
        }
        first
    }

    /// Lets those go on that were held until now.
    fn release(&mut self, now: Instant) {
        while let Some(&(until, key)) = self.held.first()
            && until <= now
        {
            self.held.pop_first();
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            lane.held = None;
            if lane.packets.is_empty() {
                self.lanes.remove(&key);
            } else {
                self.ready.push_back(key);
            }
        }
    }
}

fn key(to: &Target) -> Key {
    (to.addr, to.run)
}

fn wake(mut waiting: MutexGuard<'_, Waiting>) {
    let waker = waiting.waker.take();
    drop(waiting);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 200;

    fn to(host: u8) -> Target {
        let id = NodeId::new(format!("n{host}").as_str(), 7);
        Target { addr: ([10, 0, 0, host], 1).into(), run: id.run(), id: Some(id) }
    }

    fn sizes(casts: &Casts) -> Vec<(u8, usize)> {
        let packets = std::iter::from_fn(|| casts.next());
        let host = |packet: &Packet| match packet.to.addr.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        packets.map(|packet| (host(&packet), packet.parts.parts())).collect()
    }

    fn is_empty(casts: &Casts) -> bool {
        let waiting = casts.lock();
        (waiting.bytes, waiting.lanes.len(), waiting.ready.len(), waiting.held.len()) == (0, 0, 0, 0)
    }

    #[test]
    fn messages_for_one_node_share_packets_even_if_others_are_between_them() {
        let casts = Casts::new("me");
        for n in 0..60 {
            casts.push(&to(n % 3), "k", &[n; 20], MAX).unwrap();
        }
        assert_eq!(casts.len(), 60);
        let sizes = sizes(&casts);
        assert_eq!(sizes, [(0, 7), (1, 7), (2, 7), (0, 7), (1, 7), (2, 7), (0, 6), (1, 6), (2, 6)]);
        assert!(is_empty(&casts));
    }

    #[test]
    fn beyond_the_bounds_the_newest_is_refused_and_nothing_is_lost() {
        let casts = Casts::new("me");
        let taken = (0..LANE_MESSAGES + 5).filter(|_| casts.push(&to(1), "", b"x", MAX).is_ok()).count();
        assert_eq!(taken, LANE_MESSAGES);
        assert!(matches!(casts.push(&to(1), "", b"x", MAX), Err(SendError::Full)));
        assert!(casts.push(&to(2), "", b"x", MAX).is_ok(), "there is room for another node");
        assert_eq!(sizes(&casts).iter().map(|(_, parts)| parts).sum::<usize>(), LANE_MESSAGES + 1);
        let (large, mut taken) = (vec![0; 60_000], [0; 60]);
        for host in 0..60 {
            while casts.push(&to(host), "", &large, 65_000).is_ok() {
                taken[usize::from(host)] += 1;
            }
        }
        assert_eq!(taken[0], LANE_BYTES / part_len(0, large.len()));
        assert_eq!(taken.iter().sum::<usize>(), MAX_BYTES / part_len(0, large.len()));
    }

    #[test]
    fn what_is_too_large_says_what_would_fit_and_that_fits() {
        let casts = Casts::new("me");
        let Err(SendError::TooLarge { len: 500, max }) = casts.push(&to(1), "kind", &[0; 500], MAX) else {
            panic!()
        };
        assert!(casts.push(&to(1), "kind", &vec![0; max + 1], MAX).is_err());
        assert!(casts.push(&to(1), "kind", &vec![0; max], MAX).is_ok());
        assert!(casts.push(&to(1), "kind", b"", 5).is_err(), "names alone may be too long");
    }

    #[test]
    fn a_packet_that_is_given_back_is_the_next_one() {
        let casts = Casts::new("me");
        for n in 0..10 {
            casts.push(&to(1), "", &[n; 50], MAX).unwrap();
        }
        casts.push(&to(2), "", b"2", MAX).unwrap();
        let packet = casts.next().unwrap();
        let first = packet.parts.as_bytes().to_vec();
        casts.put_back(packet);
        let bytes: Vec<_> =
            std::iter::from_fn(|| casts.next()).map(|p| p.parts.as_bytes().to_vec()).collect();
        let of_one = bytes.iter().filter(|bytes| bytes.len() > 10).collect::<Vec<_>>();
        assert_eq!((of_one.len(), of_one[0]), (4, &first));
        assert!(is_empty(&casts));
    }

    #[test]
    fn a_node_that_asks_for_it_is_sent_nothing_for_a_while_and_others_do_not_wait() {
        let (casts, now) = (Casts::new("me"), Instant::now());
        let ms = |n| now + std::time::Duration::from_millis(n);
        casts.push(&to(1), "", b"1", MAX).unwrap();
        let addr = to(1).addr;
        casts.hold(addr, 7, ms(10));
        casts.hold(addr, 7, ms(5));
        casts.hold(to(3).addr, 7, ms(9));
        casts.push(&to(1), "", b"2", MAX).unwrap();
        casts.push(&to(2), "", b"3", MAX).unwrap();
        assert_eq!((sizes(&casts), casts.len(), casts.held_until()), (vec![(2, 1)], 2, Some(ms(5))));
        assert!(!casts.is_ready(ms(4), Waker::noop()));
        assert!(casts.is_ready(ms(5), Waker::noop()));
        assert_eq!((sizes(&casts), casts.held_until()), (vec![(1, 2)], Some(ms(9))));
        assert!(!casts.is_ready(ms(9), Waker::noop()) && is_empty(&casts));
    }

    #[test]
    fn another_run_at_the_same_address_gets_packets_of_its_own() {
        let casts = Casts::new("me");
        casts.push(&to(1), "", b"1", MAX).unwrap();
        let other = Target { id: None, ..to(1) };
        casts.push(&other, "", b"2", MAX).unwrap();
        casts.push(&Target { run: 8, ..to(1) }, "", b"3", MAX).unwrap();
        assert_eq!(sizes(&casts), [(1, 1), (1, 1), (1, 1)]);
    }

    #[test]
    fn nothing_is_taken_after_the_end() {
        let casts = Casts::new("me");
        casts.push(&to(1), "", b"1", MAX).unwrap();
        casts.close();
        assert!(matches!(casts.push(&to(1), "", b"2", MAX), Err(SendError::Stopped)));
        assert!(casts.next().is_none() && !casts.is_ready(Instant::now(), Waker::noop()));
    }
}
