//! How often each kind of thing is said: a few times in an interval, and at its end how often it was left
//! unsaid. What strangers do fills no log, and yet nothing happens unnoticed.

use std::time::{Duration, Instant};

/// One kind.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The end of the interval that began with the first word.
    until: Option<Instant>,
    said: u32,
    left_out: u64,
}

/// Lets each of `N` kinds be said so often in an interval. The kinds are numbers from 0; others are said never.
#[derive(Clone, Debug)]
pub struct Throttle<const N: usize> {
    interval: Duration,
    /// Of the kinds that have been said, in their order: most never are.
    slots: Vec<(usize, Slot)>,
}

impl<const N: usize> Throttle<N> {
    /// An interval begins with the first thing said after the last one has ended.
    pub fn new(interval: Duration) -> Self {
        Self { interval, slots: Vec::new() }
    }

    /// Whether `kind`, of which `most` are allowed in an interval, may be said at `now`: if so, how often it
    /// was left out before and nobody was told. If not, it is left out.
    pub fn say(&mut self, kind: usize, most: u32, now: Instant) -> Option<u64> {
        let interval = self.interval;
        let slot = self.slot(kind)?;
        if slot.until.is_none_or(|until| until <= now) {
            let left_out = slot.left_out;
            *slot = Slot { until: Some(now + interval), said: 1, left_out: 0 };
            return Some(left_out);
        }
        if slot.said < most {
            slot.said += 1;
            return Some(0);
        }
        slot.left_out += 1;
        None
    }

    /// How often `kind` was left out since it was said or told of.
    pub fn unsaid(&self, kind: usize) -> u64 {
        self.slots.iter().find(|(of, _)| *of == kind).map_or(0, |(_, slot)| slot.left_out)
    }

    fn slot(&mut self, kind: usize) -> Option<&mut Slot> {
        if kind >= N {
            return None;
        }
        let place = self.slots.binary_search_by_key(&kind, |(of, _)| *of);
        let at = place.unwrap_or_else(|at| {
            self.slots.insert(at, (kind, Slot::default()));
            at
        });
        Some(&mut self.slots[at].1)
    }

    /// When [`Throttle::left_out`] has something to tell.
    pub fn due(&self) -> Option<Instant> {
        self.slots.iter().filter(|(_, slot)| slot.left_out > 0).filter_map(|(_, slot)| slot.until).min()
    }

    /// The next kind whose interval is over at `now` and of which some were left out, and how many. To tell it
    /// counts as said: a flood that goes on is told of once in each interval.
    pub fn left_out(&mut self, now: Instant) -> Option<(usize, u64)> {
        let over = |slot: &Slot| slot.left_out > 0 && slot.until.is_none_or(|until| until <= now);
        let kind = self.slots.iter().find(|(_, slot)| over(slot))?.0;
        Some((kind, self.say(kind, 0, now)?))
    }

    /// The next kind of which some were left out, at the end of everything.
    pub fn last_words(&mut self) -> Option<(usize, u64)> {
        let (kind, slot) = self.slots.iter_mut().find(|(_, slot)| slot.left_out > 0)?;
        Some((*kind, std::mem::take(&mut slot.left_out)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_flood_is_said_once_and_counted_at_the_end_of_each_interval() {
        let (mut throttle, start) = (Throttle::<2>::new(MINUTE), Instant::now());
        let said = (0..10_000).filter_map(|_| throttle.say(0, 1, start)).count();
        assert_eq!(said, 1);
        assert_eq!(throttle.due(), Some(start + MINUTE));
        assert_eq!(throttle.left_out(start + MINUTE - Duration::from_nanos(1)), None);
        assert_eq!(throttle.left_out(start + MINUTE), Some((0, 9_999)));
        assert_eq!((throttle.left_out(start + MINUTE), throttle.due()), (None, None));
        // It goes on: the count stood for the first of the new interval.
        assert_eq!(throttle.say(0, 1, start + MINUTE), None);
        assert_eq!(throttle.left_out(start + 2 * MINUTE), Some((0, 1)));
    }

    #[test]
    fn after_a_quiet_interval_a_kind_is_said_at_once() {
        let (mut throttle, start) = (Throttle::<1>::new(MINUTE), Instant::now());
        assert_eq!(throttle.say(0, 1, start), Some(0));
        assert_eq!(throttle.due(), None, "nothing was left out");
        assert_eq!(throttle.say(0, 1, start + MINUTE), Some(0));
        assert_eq!(throttle.say(0, 1, start + MINUTE), None);
        assert_eq!(throttle.say(0, 1, start + 3 * MINUTE), Some(1), "nobody has asked what was left out");
    }

    #[test]
    fn kinds_are_counted_apart_and_each_may_be_said_as_often_as_allowed() {
        let (mut throttle, start) = (Throttle::<2>::new(MINUTE), Instant::now());
        for said in [Some(0), Some(0), Some(0), None] {
            assert_eq!(throttle.say(1, 3, start), said);
        }
        assert_eq!(throttle.say(0, 1, start), Some(0));
        assert_eq!(throttle.say(2, 1, start), None, "there is no such kind");
        assert_eq!((throttle.last_words(), throttle.last_words()), (Some((1, 1)), None));
    }
}
