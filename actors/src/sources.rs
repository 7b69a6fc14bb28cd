//! Who has dialled, by address: how many streams of each are served, and those that wait for their turn. One
//! address that opens streams without end keeps no other out, and many nodes behind one all have their turn.
//!
//! Streams from loopback are not counted: they are the host's own, whose processes share that address.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::sync::Semaphore;

use crate::network::Connection;

/// A stream that was accepted, and from where.
pub(crate) type Accepted = (Box<dyn Connection>, SocketAddr);

/// One address.
struct Source {
    /// Streams that are served, or are about to be.
    served: usize,
    waiting: VecDeque<Accepted>,
    /// Memory for what is being read from its streams, in KiB.
    bodies: Arc<Semaphore>,
}

/// All addresses from which there are streams.
pub(crate) struct Sources {
    by: BTreeMap<IpAddr, Source>,
    /// Addresses that have got room for one of those who wait, in that order.
    ready: VecDeque<IpAddr>,
    waiting: usize,
    /// Streams of one address that are served at once, and as many that wait.
    max: usize,
    max_waiting: usize,
    max_bodies: usize,
}

/// What becomes of a stream that was accepted.
pub(crate) enum Turn {
    /// It is to be served, now.
    Now(Accepted),
    /// It waits.
    Later,
    /// Too many of its address wait, or too many in all. It is closed.
    Never,
}

impl Sources {
    /// `max` streams of one address, `max_waiting` that wait in all, and `max_bodies` KiB for one address.
    pub(crate) fn new(max: usize, max_waiting: usize, max_bodies: usize) -> Self {
        Self { by: BTreeMap::new(), ready: VecDeque::new(), waiting: 0, max, max_waiting, max_bodies }
    }

    /// Whether an address is counted.
    fn of(from: SocketAddr) -> Option<IpAddr> {
        (!from.ip().is_loopback()).then(|| from.ip())
    }

    /// Somebody has dialled, and there is room in all. Whoever waits already goes first.
    pub(crate) fn enter(&mut self, stream: Accepted) -> Turn {
        let Some(ip) = Self::of(stream.1) else { return Turn::Now(stream) };
        let bodies = self.max_bodies;
        let source = self.by.entry(ip).or_insert_with(|| Source {
            served: 0,
            waiting: VecDeque::new(),
            bodies: Arc::new(Semaphore::new(bodies)),
        });
        if source.served < self.max && source.waiting.is_empty() {
            source.served += 1;
            return Turn::Now(stream);
        }
        if source.waiting.len() >= self.max || self.waiting >= self.max_waiting {
            return Turn::Never;
        }
        source.waiting.push_back(stream);
        self.waiting += 1;
        Turn::Later
    }

    /// The next of those who wait that may be served, if there is room in all.
    pub(crate) fn next(&mut self) -> Option<Accepted> {
        while let Some(ip) = self.ready.pop_front() {
            let Some(source) = self.by.get_mut(&ip) else { continue };
            if let Some(stream) = source.waiting.pop_front() {
                source.served += 1;
                self.waiting -= 1;
                return Some(stream);
            }
        }
        None
    }

    /// A stream has ended. Says whether another one may have its turn.
    pub(crate) fn leave(&mut self, from: SocketAddr) -> bool {
        let Some(ip) = Self::of(from) else { return false };
        let Some(source) = self.by.get_mut(&ip) else { return false };
        source.served -= 1;
        if !source.waiting.is_empty() {
            self.ready.push_back(ip);
            return true;
        }
        if source.served == 0 {
            self.by.remove(&ip);
        }
        false
    }

    /// Whether others from the same address wait.
    pub(crate) fn is_crowded(&self, from: SocketAddr) -> bool {
        Self::of(from).and_then(|ip| self.by.get(&ip)).is_some_and(|source| !source.waiting.is_empty())
    }

    /// The memory that the streams of this address share.
    pub(crate) fn bodies(&self, from: SocketAddr) -> Option<Arc<Semaphore>> {
        Self::of(from).and_then(|ip| self.by.get(&ip)).map(|source| source.bodies.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(from: &str) -> Accepted {
        (Box::new(tokio::io::duplex(1).0), from.parse().unwrap())
    }

    fn enter(sources: &mut Sources, from: &str) -> &'static str {
        match sources.enter(stream(from)) {
            Turn::Now(_) => "now",
            Turn::Later => "later",
            Turn::Never => "never",
        }
    }

    #[test]
    fn an_address_has_so_many_streams_as_many_wait_and_the_rest_is_closed() {
        let mut sources = Sources::new(2, 100, 1);
        let turns: Vec<_> = (0..5).map(|port| enter(&mut sources, &format!("10.0.0.1:{port}"))).collect();
        assert_eq!(turns, ["now", "now", "later", "later", "never"]);
        assert_eq!(enter(&mut sources, "10.0.0.2:1"), "now", "another one is not concerned");
        let own: Vec<_> = (0..5).map(|_| enter(&mut sources, "127.0.0.1:1")).collect();
        assert_eq!(own, ["now"; 5], "nor is the host itself");
    }

    #[test]
    fn whoever_waits_has_its_turn_before_those_who_come_later_and_nothing_is_left_at_the_end() {
        let mut sources = Sources::new(1, 100, 1);
        let at = |port: u16| SocketAddr::from(([10, 0, 0, 1], port));
        assert_eq!(["10.0.0.1:1", "10.0.0.1:2"].map(|from| enter(&mut sources, from)), ["now", "later"]);
        assert!(sources.is_crowded(at(9)) && sources.next().is_none());
        assert!(sources.leave(at(1)));
        assert_eq!(enter(&mut sources, "10.0.0.1:3"), "never", "the one who waits goes first");
        assert_eq!(sources.next().map(|(_, from)| from), Some(at(2)));
        assert!(!sources.is_crowded(at(9)) && sources.next().is_none());
        assert!(!sources.leave(at(2)));
        assert_eq!((sources.by.len(), sources.waiting, sources.ready.len()), (0, 0, 0));
    }

    #[test]
    fn all_that_wait_are_bounded_however_many_addresses_there_are() {
        let mut sources = Sources::new(1, 3, 1);
        let later =
            (0..50).flat_map(|i| [i, i]).filter(|i| enter(&mut sources, &format!("10.0.0.{i}:1")) == "later");
        assert_eq!(later.count(), 3);
    }
}
