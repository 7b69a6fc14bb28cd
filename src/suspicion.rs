//! How long a suspect has to refute (Lifeguard, section IV.B): long while one node alone accuses it, shorter
//! with each other one that confirms.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use crate::config::Config;

/// The bounds of a suspicion in a cluster of some size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Confirmations that bring the time down to `min`.
    pub needed: u32,
    /// Shortest time, with all confirmations in.
    pub min: Duration,
    /// Longest time, with none.
    pub max: Duration,
}

impl Bounds {
    /// What holds in a cluster of `members` present members, self and the suspect included.
    ///
    /// `needed = suspicion_mult - 2`, but 0 where fewer than that many others could confirm;
    /// `min = suspicion_mult * max(1, log10 members) * probe_interval`, the logarithm cut to three decimals;
    /// `max = suspicion_max_timeout_mult * min`.
    pub fn new(config: &Config, members: usize) -> Self {
        let wanted = config.suspicion_mult.saturating_sub(2);
        let others = u32::try_from(members.saturating_sub(2)).unwrap_or(u32::MAX);
        let needed = if others < wanted { 0 } else { wanted };
        let scale = (members.max(1) as f64).log10().max(1.0);
        let thousandths = (scale * 1000.0).floor() as u32;
        let min = config.suspicion_base() * config.suspicion_mult * thousandths / 1000;
        Self { needed, min, max: min * config.suspicion_max_timeout_mult }
    }

    /// Time that a suspect has in all, counted from the first accusation, after `confirmations` others:
    /// `max - ln(confirmations + 1) / ln(needed + 1) * (max - min)`, in whole milliseconds, at least `min`.
    pub fn timeout(&self, confirmations: u32) -> Duration {
        if self.needed == 0 {
            return self.min;
        }
        let share = f64::from(confirmations + 1).ln() / f64::from(self.needed + 1).ln();
        let span = (self.max - self.min).as_secs_f64();
        let millis = ((self.max.as_secs_f64() - share * span) * 1000.0).floor().max(0.0);
        Duration::from_millis(millis as u64).max(self.min)
    }
}

/// One running suspicion.
#[derive(Clone, Debug)]
pub struct Suspicion {
    bounds: Bounds,
    start: Instant,
    /// The last confirmation: it cannot have ended the suspicion before it came.
    heard: Instant,
    accuser: Arc<str>,
    confirmed_by: SmallVec<[Arc<str>; 4]>,
}

/// What a further accusation did to a suspicion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// It counts, and is to be passed on.
    New,
    /// The accuser was known, or enough have confirmed.
    Known,
}

impl Suspicion {
    /// Starts when `accuser` says that it had no answer.
    pub fn new(bounds: Bounds, accuser: Arc<str>, now: Instant) -> Self {
        Self { bounds, start: now, heard: now, accuser, confirmed_by: SmallVec::new() }
    }

    /// What an accusation by `from` would do.
    pub fn weigh(&self, from: &str) -> Confirmation {
        let enough = self.confirmed_by.len() as u32 >= self.bounds.needed;
        let known = *self.accuser == *from || self.confirmed_by.iter().any(|name| **name == *from);
        if enough || known { Confirmation::Known } else { Confirmation::New }
    }

    /// Counts `from` among those who confirm, unless it does not count.
    pub fn confirm(&mut self, from: Arc<str>, now: Instant) -> Confirmation {
        let weight = self.weigh(&from);
        if weight == Confirmation::New {
            self.heard = now;
            self.confirmed_by.push(from);
        }
        weight
    }

    /// When the suspect is dead unless it refutes.
    pub fn deadline(&self) -> Instant {
        self.heard.max(self.start + self.bounds.timeout(self.confirmed_by.len() as u32))
    }

    /// Who confirmed, in the order of hearing.
    pub fn confirmed_by(&self) -> &[Arc<str>] {
        &self.confirmed_by
    }

    /// Whether fewer have confirmed than were hoped for.
    pub fn is_degraded(&self) -> bool {
        (self.confirmed_by.len() as u32) < self.bounds.needed
    }

    /// Begins anew, with those who have confirmed so far.
    pub fn renew(&mut self, now: Instant) {
        (self.start, self.heard) = (now, now);
    }

    /// Moves the suspicion by the time in which this node itself did not run, `stood` until `now`, and by `grace`. What
    /// has happened since then has lost none of that time.
    pub fn postpone(&mut self, stood: Duration, grace: Duration, now: Instant) {
        for at in [&mut self.start, &mut self.heard] {
            *at += stood.min(now.saturating_duration_since(*at)) + grace;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_timeout_shrinks_with_each_confirmation() {
        let bounds = Bounds { needed: 3, min: ms(2000), max: ms(30000) };
        assert_eq!([0, 1, 2, 3, 4].map(|n| bounds.timeout(n)), [30000, 16000, 7810, 2000, 2000].map(ms));
        let bounds = Bounds { needed: 3, min: ms(500), max: ms(2000) };
        assert_eq!([1, 2, 3].map(|n| bounds.timeout(n)), [1250, 811, 500].map(ms));
        let bounds = Bounds { needed: 3, min: ms(500), max: ms(1000) };
        assert_eq!([0, 1, 2, 3].map(|n| bounds.timeout(n)), [1000, 750, 603, 500].map(ms));
    }

    #[test]
    fn bounds_grow_with_the_logarithm_of_the_cluster() {
        let of = |config: Config, n| Bounds::new(&config, n);
        assert_eq!(of(Config::lan(), 10), Bounds { needed: 2, min: ms(4000), max: ms(24000) });
        assert_eq!(of(Config::wan(), 10), Bounds { needed: 4, min: ms(30000), max: ms(180_000) });
        assert_eq!(of(Config::local(), 10), Bounds { needed: 1, min: ms(3000), max: ms(18000) });
        let config = Config { suspicion_mult: 3, probe_interval: ms(1000), ..Config::lan() };
        assert_eq!([5, 50, 500].map(|n| of(config.clone(), n).min), [3000, 5094, 8094].map(ms));
    }

    #[test]
    fn nobody_is_waited_for_where_too_few_could_confirm() {
        let bounds = Bounds::new(&Config::lan(), 3);
        assert_eq!(bounds.needed, 0);
        let now = Instant::now();
        let mut suspicion = Suspicion::new(bounds, "a".into(), now);
        assert_eq!(suspicion.confirm("b".into(), now), Confirmation::Known);
        assert_eq!(suspicion.deadline(), suspicion.start + bounds.min);
    }

    #[test]
    fn the_first_accuser_repeated_ones_and_surplus_ones_do_not_confirm() {
        let now = Instant::now();
        let bounds = Bounds { needed: 2, min: ms(100), max: ms(1000) };
        let mut suspicion = Suspicion::new(bounds, "a".into(), now);
        assert_eq!(suspicion.confirm("a".into(), now), Confirmation::Known);
        assert_eq!(suspicion.deadline(), now + ms(1000));
        assert_eq!(suspicion.confirm("b".into(), now), Confirmation::New);
        assert_eq!(suspicion.confirm("b".into(), now), Confirmation::Known);
        assert!(suspicion.is_degraded());
        assert_eq!(suspicion.confirm("c".into(), now), Confirmation::New);
        assert_eq!(suspicion.deadline(), now + ms(100));
        assert_eq!(suspicion.confirm("d".into(), now), Confirmation::Known);
        assert!(!suspicion.is_degraded());
    }
}
