//! The last incarnation of members that are gone, kept for a while after they are forgotten: without it, old
//! news from a slow node would bring them back.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::member::NodeId;

/// Gone members, bounded in number and in time.
#[derive(Debug)]
pub struct Tombstones {
    max: usize,
    retention: Duration,
    graves: BTreeMap<NodeId, (u32, Instant)>,
    order: VecDeque<(Instant, NodeId)>,
}

impl Tombstones {
    /// Keeps at most `max`, each for `retention`.
    pub fn new(max: usize, retention: Duration) -> Self {
        Self { max, retention, graves: BTreeMap::new(), order: VecDeque::new() }
    }

    /// Notes that `id` was gone at `incarnation`.
    pub fn bury(&mut self, id: NodeId, incarnation: u32, now: Instant) {
        if let Some((known, _)) = self.graves.get_mut(&id) {
            *known = incarnation.max(*known);
            return;
        }
        while self.graves.len() >= self.max {
            let Some((_, oldest)) = self.order.pop_front() else { return };
            self.graves.remove(&oldest);
        }
        self.order.push_back((now, id.clone()));
        self.graves.insert(id, (incarnation, now));
    }

    /// Whether news of `id` at `incarnation` is older than its end.
    pub fn covers(&self, id: &NodeId, incarnation: u32) -> bool {
        self.graves.get(id).is_some_and(|(gone, _)| incarnation <= *gone)
    }

    /// Forgets those that are older than the retention.
    pub fn expire(&mut self, now: Instant) {
        while let Some((at, id)) = self.order.front() {
            if now.saturating_duration_since(*at) <= self.retention {
                return;
            }
            self.graves.remove(id);
            self.order.pop_front();
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
