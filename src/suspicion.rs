//! How long a suspect has to refute (Lifeguard, section IV.B): long while one node alone accuses it, shorter
//! with each other one that confirms.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use crate::{accusation::Evidence, config::Config};

/// The bounds of a suspicion in a cluster of some size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Confirmations that bring the time down to `min`.
    pub needed: u32,
    /// Shortest time, with all confirmations in.
    pub min: Duration,
    /// Longest time, with none.
    pub max: Duration,
    /// Whether witnesses beyond those that are needed bring it below `min`.
    pub early: bool,
    /// Whether those who were refused a connection end it.
    pub refusals: bool,
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
        Self {
            needed,
            min,
            max: min * config.suspicion_max_timeout_mult,
            early: config.early_verdicts,
            refusals: config.count_refusals,
        }
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

impl Bounds {
    /// Accusers that can make a difference, if all are witnesses.
    fn most(&self) -> u32 {
        if self.early && self.needed > 0 { 2 * (self.needed + 1) } else { self.needed + 1 }
    }

    /// Time that a suspect has in all, if so many of its accusers, the first one included, have full evidence: with
    /// more of them than the `needed + 1` that bring the time down to `min`, `min * (needed + 1) / witnesses`, and
    /// with twice as many half of `min`. Less than that there never is: whoever is wrongly accused has to hear of it,
    /// and to be heard.
    fn early(&self, witnesses: u32) -> Option<Duration> {
        let enough = self.needed + 1;
        let counted = witnesses.min(self.most());
        (self.early && self.needed > 0 && counted > enough).then(|| self.min * enough / counted)
    }
}

/// Accusers that are counted, whatever they have seen.
const MOST: u32 = 32;

/// One running suspicion.
#[derive(Clone, Debug)]
pub struct Suspicion {
    bounds: Bounds,
    start: Instant,
    /// The last confirmation: it cannot have ended the suspicion before it came.
    heard: Instant,
    accuser: Arc<str>,
    confirmed_by: SmallVec<[Arc<str>; 4]>,
    /// How many of the accusers, the first one included, have full evidence.
    witnesses: u32,
    /// How many were refused a connection.
    refused: u32,
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
    /// Starts when `accuser` says what it has seen.
    pub fn new(bounds: Bounds, accuser: Arc<str>, evidence: Evidence, now: Instant) -> Self {
        let (confirmed_by, witnesses, refused) = Default::default();
        let mut new = Self { bounds, start: now, heard: now, accuser, confirmed_by, witnesses, refused };
        new.count(evidence);
        new
    }

    fn count(&mut self, evidence: Evidence) {
        self.witnesses += u32::from(evidence.is_full());
        self.refused += u32::from(evidence == Evidence::Refused);
    }

    /// What an accusation by `from` would do.
    pub fn weigh(&self, from: &str, evidence: Evidence) -> Confirmation {
        let accusers = self.confirmed_by.len() as u32 + 1;
        let enough = accusers > self.bounds.needed;
        let enough = enough && !(evidence.is_full() && accusers < self.bounds.most());
        let refused = self.bounds.refusals && evidence == Evidence::Refused && !self.is_refused();
        let enough = enough && (!refused || accusers >= MOST);
        let known = *self.accuser == *from || self.confirmed_by.iter().any(|name| **name == *from);
        if enough || known { Confirmation::Known } else { Confirmation::New }
    }

    /// Counts `from` among those who confirm, unless it does not count.
    pub fn confirm(&mut self, from: Arc<str>, evidence: Evidence, now: Instant) -> Confirmation {
        let weight = self.weigh(&from, evidence);
        if weight == Confirmation::New {
            self.heard = now;
            self.count(evidence);
            self.confirmed_by.push(from);
        }
        weight
    }

    /// When the suspect is dead unless it refutes.
    pub fn deadline(&self) -> Instant {
        if self.is_refused() {
            return self.heard;
        }
        let confirmations = (self.confirmed_by.len() as u32).min(self.bounds.needed);
        let usual = self.bounds.timeout(confirmations);
        let time = self.bounds.early(self.witnesses).map_or(usual, |early| early.min(usual));
        self.heard.max(self.start + time)
    }

    /// Whether enough were told by the suspect's host that it is gone.
    pub fn is_refused(&self) -> bool {
        self.bounds.refusals && self.bounds.needed > 0 && self.refused > self.bounds.needed
    }

    /// Whether one of its accusers at least has full evidence.
    pub fn is_witnessed(&self) -> bool {
        self.witnesses > 0
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

    const WORD: Evidence = Evidence::Hearsay;
    const FULL: Evidence = Evidence::NoAnswer { direct: true, helpers: 3, nacks: 3, healthy: true };

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_timeout_shrinks_with_each_confirmation() {
        let bounds = Bounds { needed: 3, min: ms(2000), max: ms(30000), early: false, refusals: false };
        assert_eq!([0, 1, 2, 3, 4].map(|n| bounds.timeout(n)), [30000, 16000, 7810, 2000, 2000].map(ms));
        let bounds = Bounds { needed: 3, min: ms(500), max: ms(2000), early: false, refusals: false };
        assert_eq!([1, 2, 3].map(|n| bounds.timeout(n)), [1250, 811, 500].map(ms));
        let bounds = Bounds { needed: 3, min: ms(500), max: ms(1000), early: false, refusals: false };
        assert_eq!([0, 1, 2, 3].map(|n| bounds.timeout(n)), [1000, 750, 603, 500].map(ms));
    }

    #[test]
    fn bounds_grow_with_the_logarithm_of_the_cluster() {
        let of = |config: Config, n| Bounds::new(&config, n);
        assert_eq!(
            of(Config::lan(), 10),
            Bounds { needed: 2, min: ms(4000), max: ms(24000), early: true, refusals: true }
        );
        assert_eq!(
            of(Config::wan(), 10),
            Bounds { needed: 4, min: ms(30000), max: ms(180_000), early: true, refusals: true }
        );
        assert_eq!(
            of(Config::local(), 10),
            Bounds { needed: 1, min: ms(3000), max: ms(18000), early: true, refusals: true }
        );
        let config = Config { suspicion_mult: 3, probe_interval: ms(1000), ..Config::lan() };
        assert_eq!([5, 50, 500].map(|n| of(config.clone(), n).min), [3000, 5094, 8094].map(ms));
    }

    #[test]
    fn nobody_is_waited_for_where_too_few_could_confirm() {
        let bounds = Bounds::new(&Config::lan(), 3);
        assert_eq!(bounds.needed, 0);
        let now = Instant::now();
        let mut suspicion = Suspicion::new(bounds, "a".into(), WORD, now);
        assert_eq!(suspicion.confirm("b".into(), WORD, now), Confirmation::Known);
        assert_eq!(suspicion.deadline(), suspicion.start + bounds.min);
    }

    #[test]
    fn the_first_accuser_repeated_ones_and_surplus_ones_do_not_confirm() {
        let now = Instant::now();
        let bounds = Bounds { needed: 2, min: ms(100), max: ms(1000), early: false, refusals: false };
        let mut suspicion = Suspicion::new(bounds, "a".into(), WORD, now);
        assert_eq!(suspicion.confirm("a".into(), WORD, now), Confirmation::Known);
        assert_eq!(suspicion.deadline(), now + ms(1000));
        assert_eq!(suspicion.confirm("b".into(), WORD, now), Confirmation::New);
        assert_eq!(suspicion.confirm("b".into(), WORD, now), Confirmation::Known);
        assert!(suspicion.is_degraded());
        assert_eq!(suspicion.confirm("c".into(), WORD, now), Confirmation::New);
        assert_eq!(suspicion.deadline(), now + ms(100));
        assert_eq!(suspicion.confirm("d".into(), WORD, now), Confirmation::Known);
        assert!(!suspicion.is_degraded());
    }

    #[test]
    fn more_witnesses_than_are_needed_end_a_suspicion_sooner() {
        let now = Instant::now();
        let bounds = Bounds { needed: 2, min: ms(9000), max: ms(54_000), early: true, refusals: false };
        let mut suspicion = Suspicion::new(bounds, "a".into(), FULL, now);
        let mut times = Vec::new();
        for from in ["b", "c", "d", "e", "f", "g"] {
            suspicion.confirm(from.into(), FULL, now);
            times.push(suspicion.deadline() - now);
        }
        // Three of them bring it down to its shortest time; six to half of that, and a seventh changes nothing.
        assert_eq!(times[1..], [9000, 6750, 5400, 4500, 4500].map(ms));
        // Whoever has not seen so much brings it down to the shortest time and no further.
        let mut suspicion = Suspicion::new(bounds, "a".into(), WORD, now);
        for from in ["b", "c", "d", "e", "f", "g"] {
            suspicion.confirm(from.into(), WORD, now);
        }
        assert_eq!((suspicion.deadline() - now, suspicion.confirmed_by().len()), (ms(9000), 2));
        // Without the setting, witnesses are as good as others.
        let mut suspicion = Suspicion::new(Bounds { early: false, ..bounds }, "a".into(), FULL, now);
        for from in ["b", "c", "d", "e", "f", "g"] {
            suspicion.confirm(from.into(), FULL, now);
        }
        assert_eq!((suspicion.deadline() - now, suspicion.confirmed_by().len()), (ms(9000), 2));
    }

    #[test]
    fn a_suspicion_ends_at_once_when_enough_were_refused_a_connection() {
        let now = Instant::now();
        let bounds = Bounds { needed: 2, min: ms(9000), max: ms(54_000), early: false, refusals: true };
        let mut suspicion = Suspicion::new(bounds, "a".into(), WORD, now);
        for from in ["b", "c", "d"] {
            suspicion.confirm(from.into(), WORD, now);
        }
        assert_eq!(suspicion.deadline() - now, ms(9000));
        // Those who were refused count although there are enough others.
        for (from, refused) in
            [("e", Confirmation::New), ("f", Confirmation::New), ("e", Confirmation::Known)]
        {
            assert_eq!(suspicion.confirm(from.into(), Evidence::Refused, now + ms(10)), refused);
            assert_eq!(suspicion.deadline() - now, ms(9000));
        }
        assert_eq!(suspicion.confirm("g".into(), Evidence::Refused, now + ms(20)), Confirmation::New);
        assert_eq!(suspicion.deadline() - now, ms(20));
        assert_eq!(suspicion.confirm("h".into(), Evidence::Refused, now + ms(30)), Confirmation::Known);
        // Where nobody could confirm it, a refusal is worth as much as silence.
        let bounds = Bounds { needed: 0, ..bounds };
        let suspicion = Suspicion::new(bounds, "a".into(), Evidence::Refused, now);
        assert_eq!(suspicion.deadline() - now, ms(9000));
    }
}
