//! When an actor that panicked runs again: the ladder from "at once" over "after a pause" and "all of them"
//! to "no more".
//!
//! ```text
//!  panic ──► at once ──► from the 4th within 1 s: after 10 ms, doubling to 1 s ──► 10 of these within 60 s:
//!              ▲                    │                                               all restart
//!              └── 10 s of quiet ───┘                              again within 60 s ──► give up
//! ```

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// The rungs of the ladder. The default is the one of a node; as data, what is left out is as there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestartPolicy {
    /// Whether anything is restarted at all; without it the first panic gives up.
    pub enabled: bool,
    /// Panics of one actor within `window` that are answered at once. 3.
    pub immediate: u32,
    /// 1 s.
    #[serde(with = "crate::span")]
    pub window: Duration,
    /// First pause before a restart that is not at once. It doubles each time. 10 ms.
    #[serde(with = "crate::span")]
    pub first_delay: Duration,
    /// Longest pause. 1 s.
    #[serde(with = "crate::span")]
    pub max_delay: Duration,
    /// Time without a panic of that actor after which its pauses start from the first again. 10 s.
    #[serde(with = "crate::span")]
    pub quiet: Duration,
    /// Restarts with a pause, of all actors together within `escalation_window`, that restart all of them. 10.
    pub delayed_before_all: u32,
    /// 60 s. A second restart of all within it gives up.
    #[serde(with = "crate::span")]
    pub escalation_window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            immediate: 3,
            window: Duration::from_secs(1),
            first_delay: Duration::from_millis(10),
            max_delay: Duration::from_secs(1),
            quiet: Duration::from_secs(10),
            delayed_before_all: 10,
            escalation_window: Duration::from_secs(60),
        }
    }
}

impl RestartPolicy {
    /// Restarts nothing.
    pub fn never() -> Self {
        Self { enabled: false, ..Self::default() }
    }
}

/// What is to be done about a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Restart that actor now.
    Now,
    /// Restart that actor after a pause.
    After(Duration),
    /// Restart all of them now, in order.
    All,
    /// Restart nothing any more.
    GiveUp,
}

/// What one actor's panics so far have led to.
#[derive(Clone, Debug, Default)]
pub struct Record {
    recent: VecDeque<Instant>,
    delay: Option<Duration>,
    last: Option<Instant>,
}

/// The ladder of a group of actors. Each has a [`Record`] of its own.
#[derive(Clone, Debug)]
pub struct Ladder {
    policy: RestartPolicy,
    delayed: VecDeque<Instant>,
    all: Option<Instant>,
}

impl Ladder {
    /// At the foot.
    pub fn new(policy: RestartPolicy) -> Self {
        Self { policy, delayed: VecDeque::new(), all: None }
    }

    /// Says what to do about a panic at `now` of the actor whose record that is.
    pub fn panicked(&mut self, record: &mut Record, now: Instant) -> Verdict {
        let policy = &self.policy;
        if !policy.enabled {
            return Verdict::GiveUp;
        }
        if record.last.is_some_and(|last| now - last >= policy.quiet) {
            record.delay = None;
        }
        record.last = Some(now);
        expire(&mut record.recent, policy.window, now);
        record.recent.push_back(now);
        if record.recent.len() <= policy.immediate as usize {
            return Verdict::Now;
        }
        let delay = record.delay.map_or(policy.first_delay, |last| (last * 2).min(policy.max_delay));
        record.delay = Some(delay);
        expire(&mut self.delayed, policy.escalation_window, now);
        self.delayed.push_back(now);
        if self.delayed.len() <= policy.delayed_before_all as usize {
            return Verdict::After(delay);
        }
        self.delayed.clear();
        match self.all.replace(now) {
            Some(last) if now - last <= policy.escalation_window => Verdict::GiveUp,
            _ => Verdict::All,
        }
    }
}

/// Drops what lies further back than `window`. What is left is bounded by the rung above it: nobody panics
/// more often than the ladder lets him run.
fn expire(times: &mut VecDeque<Instant>, window: Duration, now: Instant) {
    while times.front().is_some_and(|then| now - *then >= window) {
        times.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn three_panics_in_a_second_restart_at_once_and_the_fourth_waits() {
        let (mut ladder, mut record, now) =
            (Ladder::new(RestartPolicy::default()), Record::default(), Instant::now());
        for _ in 0..3 {
            assert_eq!(ladder.panicked(&mut record, now), Verdict::Now);
        }
        assert_eq!(ladder.panicked(&mut record, now + ms(999)), Verdict::After(ms(10)));
    }

    #[test]
    fn panics_a_third_of_a_second_apart_never_wait() {
        let (mut ladder, mut record, mut now) =
            (Ladder::new(RestartPolicy::default()), Record::default(), Instant::now());
        for _ in 0..1000 {
            assert_eq!(ladder.panicked(&mut record, now), Verdict::Now);
            now += ms(334);
        }
    }

    #[test]
    fn the_pause_doubles_up_to_a_second_and_is_forgotten_after_ten_quiet_ones() {
        let policy = RestartPolicy { immediate: 0, delayed_before_all: 100, ..RestartPolicy::default() };
        let (mut ladder, mut record, mut now) = (Ladder::new(policy), Record::default(), Instant::now());
        for delay in [10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
            assert_eq!(ladder.panicked(&mut record, now), Verdict::After(ms(delay)));
            now += ms(1);
        }
        now += ms(10_000);
        assert_eq!(ladder.panicked(&mut record, now), Verdict::After(ms(10)));
    }

    #[test]
    fn ten_pauses_in_a_minute_restart_all_and_ten_more_give_up() {
        let policy = RestartPolicy { immediate: 0, ..RestartPolicy::default() };
        let (mut ladder, mut now) = (Ladder::new(policy), Instant::now());
        let mut records = [Record::default(), Record::default()];
        let mut seen = Vec::new();
        for i in 0..22 {
            seen.push(ladder.panicked(&mut records[i % 2], now));
            now += ms(1000);
        }
        assert!(seen[..10].iter().all(|v| matches!(v, Verdict::After(_))));
        assert_eq!(seen[10], Verdict::All);
        assert!(seen[11..21].iter().all(|v| matches!(v, Verdict::After(_))));
        assert_eq!(seen[21], Verdict::GiveUp);
    }

    #[test]
    fn a_second_restart_of_all_after_more_than_a_minute_does_not_give_up() {
        let policy = RestartPolicy { immediate: 0, ..RestartPolicy::default() };
        let (mut ladder, mut record, now) = (Ladder::new(policy), Record::default(), Instant::now());
        let late = now + ms(61_000);
        for start in [now, late] {
            for _ in 0..10 {
                assert!(matches!(ladder.panicked(&mut record, start), Verdict::After(_)));
            }
            assert_eq!(ladder.panicked(&mut record, start), Verdict::All);
        }
    }

    #[test]
    fn without_restarts_the_first_panic_gives_up() {
        let mut ladder = Ladder::new(RestartPolicy::never());
        assert_eq!(ladder.panicked(&mut Record::default(), Instant::now()), Verdict::GiveUp);
    }
}
