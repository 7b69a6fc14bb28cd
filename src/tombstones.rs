//! The last incarnation of members that are gone, kept for a while after they are forgotten: without it, old
//! news from a slow node would bring them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::member::NodeId;

/// Gone members, bounded in number and in time.
#[derive(Debug)]
pub struct Tombstones {
    max: usize,
    retention: Duration,
    graves: BTreeMap<NodeId, (u32, Instant)>,
    order: BTreeSet<(Instant, NodeId)>,
}

impl Tombstones {
    /// Keeps at most `max`, each for `retention`.
    pub fn new(max: usize, retention: Duration) -> Self {
        Self { max, retention, graves: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// Notes that `id` was gone at `incarnation`. If that was known, the time begins anew: what is buried when it dies
    /// is buried again when it is forgotten, and needs its grave from then on.
    pub fn bury(&mut self, id: NodeId, incarnation: u32, now: Instant) {
        if let Some((known, at)) = self.graves.get_mut(&id) {
            self.order.remove(&(*at, id.clone()));
            (*known, *at) = (incarnation.max(*known), now);
            self.order.insert((now, id));
            return;
        }
        while self.graves.len() >= self.max {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.graves.remove(&oldest);
        }
        self.order.insert((now, id.clone()));
        self.graves.insert(id, (incarnation, now));
    }

    /// Whether news of `id` at `incarnation` is older than its end.
    pub fn covers(&self, id: &NodeId, incarnation: u32) -> bool {
        self.graves.get(id).is_some_and(|(gone, _)| incarnation <= *gone)
    }

    /// Forgets those that are older than the retention.
    pub fn expire(&mut self, now: Instant) {
        while let Some((at, id)) = self.order.first() {
            if now.saturating_duration_since(*at) <= self.retention {
                return;
            }
            self.graves.remove(id);
            self.order.pop_first();
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.graves.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.graves.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grave_covers_what_came_before_it_and_not_what_comes_after() {
        let (mut graves, now, x) =
            (Tombstones::new(4, Duration::from_secs(9)), Instant::now(), NodeId::new("x", 1));
        graves.bury(x.clone(), 5, now);
        graves.bury(x.clone(), 3, now);
        assert!(graves.covers(&x, 5) && graves.covers(&x, 4) && !graves.covers(&x, 6));
        assert!(!graves.covers(&NodeId::new("x", 2), 1));
    }

    #[test]
    fn whoever_is_buried_again_rests_from_then_on() {
        let (second, now, x) = (Duration::from_secs(1), Instant::now(), NodeId::new("x", 1));
        let mut graves = Tombstones::new(2, 9 * second);
        graves.bury(x.clone(), 5, now);
        graves.bury(NodeId::new("y", 1), 1, now + second);
        graves.bury(x.clone(), 5, now + 9 * second);
        graves.expire(now + 18 * second);
        assert!(graves.covers(&x, 5) && graves.len() == 1);
        graves.bury(NodeId::new("z", 1), 1, now + 18 * second);
        graves.expire(now + 19 * second);
        assert!(!graves.covers(&x, 5) && graves.len() == 1);
    }

    #[test]
    fn graves_are_bounded_in_number_and_in_time() {
        let (mut graves, now) = (Tombstones::new(4, Duration::from_secs(9)), Instant::now());
        for i in 0..100 {
            graves.bury(NodeId::new(format!("n{i}"), 0), 1, now + Duration::from_secs(i));
        }
        assert_eq!(graves.len(), 4);
        assert!(graves.covers(&NodeId::new("n99", 0), 1));
        graves.expire(now + Duration::from_secs(107));
        assert_eq!(graves.len(), 2);
        let mut none = Tombstones::new(0, Duration::ZERO);
        none.bury(NodeId::new("x", 0), 1, now);
        assert!(none.is_empty());
    }
}
