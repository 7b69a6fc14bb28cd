//! "At most once in a while for each": for what a stranger could make a node say over and over.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// Keys that are remembered at once. When all are taken, none is allowed until the oldest expires.
const MAX_KEYS: usize = 1024;

/// Allows each key once per interval.
#[derive(Debug)]
pub struct Limiter<K> {
    interval: Duration,
    last: BTreeMap<K, Instant>,
    /// The same in the order of time.
    order: VecDeque<(Instant, K)>,
}

impl<K: Ord + Clone> Limiter<K> {
    /// Allows each key once per `interval`.
    pub fn new(interval: Duration) -> Self {
        Self { interval, last: BTreeMap::new(), order: VecDeque::new() }
    }

    /// Whether `key` may happen at `now`.
    pub fn allows(&self, key: &K, now: Instant) -> bool {
        let is_over = |last: &Instant| now.saturating_duration_since(*last) >= self.interval;
        match self.last.get(key) {
            Some(last) => is_over(last),
            None => self.last.len() < MAX_KEYS || self.order.front().is_some_and(|(at, _)| is_over(at)),
        }
    }

    /// Notes that `key` has happened.
    pub fn note(&mut self, key: K, now: Instant) {
        while let Some((at, old)) = self.order.front() {
            if now.saturating_duration_since(*at) < self.interval {
                break;
            }
            if self.last.get(old) == Some(at) {
                self.last.remove(old);
            }
            self.order.pop_front();
        }
        self.order.push_back((now, key.clone()));
        self.last.insert(key, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_allowed_once_in_a_while_and_their_number_is_bounded() {
        let (mut limiter, now) = (Limiter::new(Duration::from_secs(1)), Instant::now());
        limiter.note(1, now);
        assert!(!limiter.allows(&1, now + Duration::from_millis(999)));
        assert!(limiter.allows(&1, now + Duration::from_secs(1)));
        assert!(limiter.allows(&2, now));
        for key in 0..MAX_KEYS {
            limiter.note(key, now);
        }
        assert!(!limiter.allows(&9999, now));
        assert!(limiter.allows(&9999, now + Duration::from_secs(1)), "the oldest has expired");
        limiter.note(9999, now + Duration::from_secs(1));
        assert_eq!((limiter.last.len(), limiter.order.len()), (1, 1));
    }
}
