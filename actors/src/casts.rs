//! What users send to single nodes in datagrams, and has not left yet. It is put into packets right away, one for
//! each node and as many more as it takes: however many messages wait, each is copied once, and none has memory of
//! its own.
//!
//! It lies apart from everything that the membership needs: however much users send, no ping waits behind it.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Waker,
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

/// Messages that wait. They leave in the node's next turns.
const MAX_WAITING: usize = 8192;

/// Bytes that wait.
const MAX_BYTES: usize = 4 << 20;

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

#[derive(Default)]
struct Waiting {
    packets: VecDeque<Packet>,
    /// The number of the first packet; the others follow.
    first: u64,
    /// For each node the packet that was begun last, if it waits.
    open: BTreeMap<(SocketAddr, u64), u64>,
    messages: usize,
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
        let weight = part_len(kind.len(), bytes.len());
        if waiting.messages >= MAX_WAITING || waiting.bytes + weight > MAX_BYTES {
            return Err(SendError::Full);
        }
        waiting.put(to, kind, bytes, room);
        wake(waiting);
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

    /// The next packet.
    pub(crate) fn next(&self) -> Option<Packet> {
        let mut waiting = self.lock();
        let packet = waiting.packets.pop_front()?;
        let (number, key) = (waiting.first, key(&packet.to));
        waiting.first += 1;
        if waiting.open.get(&key) == Some(&number) {
            waiting.open.remove(&key);
        }
        waiting.messages -= packet.parts.parts();
        waiting.bytes -= packet.parts.as_bytes().len();
        Some(packet)
    }

    /// Gives a packet back that the network did not take.
    pub(crate) fn put_back(&self, packet: Packet) {
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.first -= 1;
            waiting.messages += packet.parts.parts();
            waiting.bytes += packet.parts.as_bytes().len();
            waiting.packets.push_front(packet);
        }
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
        self.lock().messages
    }

    /// Whether there is something to send; else the waker is called once there is.
    pub(crate) fn is_ready(&self, waker: &Waker) -> bool {
        let mut waiting = self.lock();
        if !waiting.packets.is_empty() {
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
    fn put(&mut self, to: &Target, kind: &str, bytes: &[u8], room: usize) {
        self.messages += 1;
        let open = self.open.get(&key(to)).map(|number| (number - self.first) as usize);
        if let Some(packet) = open.and_then(|at| self.packets.get_mut(at))
            && packet.to.id == to.id
        {
            let before = packet.parts.as_bytes().len();
            if packet.parts.push(kind, bytes, room) {
                self.bytes += packet.parts.as_bytes().len() - before;
                return;
            }
        }
        let mut parts = Bundler::reuse(self.spare.pop().unwrap_or_default());
        parts.push(kind, bytes, room);
        self.bytes += parts.as_bytes().len();
        self.open.insert(key(to), self.first + self.packets.len() as u64);
        self.packets.push_back(Packet { to: to.clone(), parts });
    }
}

fn key(to: &Target) -> (SocketAddr, u64) {
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

    #[test]
    fn messages_for_one_node_share_packets_even_if_others_are_between_them() {
        let casts = Casts::new("me");
        for n in 0..60 {
            casts.push(&to(n % 3), "k", &[n; 20], MAX).unwrap();
        }
        assert_eq!(casts.len(), 60);
        let sizes = sizes(&casts);
        assert_eq!(sizes, [(0, 7), (1, 7), (2, 7), (0, 7), (1, 7), (2, 7), (0, 6), (1, 6), (2, 6)]);
        let waiting = casts.lock();
        assert_eq!((waiting.messages, waiting.bytes, waiting.open.len()), (0, 0, 0));
    }

    #[test]
    fn beyond_the_bounds_the_newest_is_refused_and_nothing_is_lost() {
        let casts = Casts::new("me");
        let taken = (0..MAX_WAITING + 5).filter(|_| casts.push(&to(1), "", b"x", MAX).is_ok()).count();
        assert_eq!(taken, MAX_WAITING);
        assert!(matches!(casts.push(&to(1), "", b"x", MAX), Err(SendError::Full)));
        assert_eq!(sizes(&casts).iter().map(|(_, parts)| parts).sum::<usize>(), MAX_WAITING);
        let large = vec![0; 60_000];
        let taken = (0..1000).filter(|_| casts.push(&to(1), "", &large, 65_000).is_ok()).count();
        assert_eq!(taken, MAX_BYTES / part_len(0, large.len()));
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
    fn a_packet_that_is_given_back_is_the_next_one_and_takes_no_more() {
        let casts = Casts::new("me");
        casts.push(&to(1), "", b"1", MAX).unwrap();
        let packet = casts.next().unwrap();
        casts.push(&to(1), "", b"2", MAX).unwrap();
        casts.put_back(packet);
        casts.push(&to(1), "", b"3", MAX).unwrap();
        let bytes: Vec<_> =
            std::iter::from_fn(|| casts.next()).map(|packet| packet.parts.as_bytes().to_vec()).collect();
        assert_eq!(bytes, [&b"\0\x01\x001"[..], b"\0\x01\x002\xff\x01\x003"]);
        assert_eq!((casts.len(), casts.lock().open.len()), (0, 0));
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
        assert!(casts.next().is_none() && !casts.is_ready(Waker::noop()));
    }
}
