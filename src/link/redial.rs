//! When a link that has lost its connection dials again.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

/// The longest pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause of all.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// A connection that has lasted so long was a good one.
const HEALTHY: Duration = Duration::from_secs(10);

/// Pauses between dials: each is drawn evenly from nothing up to a bound that doubles with each failure, so that many
/// who lost the same peer do not come back at once.
#[derive(Clone, Debug, Default)]
pub struct Redial {
    failures: u32,
    due: Option<Instant>,
}

impl Redial {
    /// When to dial, if a pause has begun.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A dial has failed, or a connection that was up since `up` has ended.
    pub fn failed(&mut self, up: Option<Instant>, now: Instant, rng: &mut impl Rng) {
        if up.is_some_and(|up| now.saturating_duration_since(up) >= HEALTHY) {
            self.failures = 0;
        }
        let bound = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(MAX_PAUSE);
        self.failures += 1;
        self.due = Some(now + bound.mul_f64(rng.random::<f64>()));
    }

    /// Something says that the peer is there: it is dialled at once.
    pub fn hurry(&mut self, now: Instant) {
        self.failures = 0;
        self.due = self.due.map(|due| due.min(now));
    }

    /// A dial begins.
    pub fn begin(&mut self) {
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_good_connection() {
        let (mut rng, start) = (Xoshiro256PlusPlus::seed_from_u64(1), Instant::now());
        let longest = |failures: u32, up: Option<Duration>, rng: &mut Xoshiro256PlusPlus| {
            let now = start + Duration::from_secs(100);
            let one = |_| {
                let mut redial = Redial { failures, due: None };
                redial.failed(up.map(|up| now - up), now, rng);
                redial.due().unwrap() - now
            };
            (0..2000).map(one).max().unwrap().as_millis().next_multiple_of(50)
        };
        let all: Vec<_> = (0..9).map(|failures| longest(failures, None, &mut rng)).collect();
        assert_eq!(all, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!(longest(8, Some(Duration::from_secs(9)), &mut rng), 5000);
        assert_eq!(longest(8, Some(HEALTHY), &mut rng), 100);
    }

    #[test]
    fn good_news_end_the_pause() {
        let (mut rng, now) = (Xoshiro256PlusPlus::seed_from_u64(1), Instant::now());
        let mut redial = Redial { failures: 9, due: None };
        redial.failed(None, now, &mut rng);
        redial.hurry(now);
        assert_eq!(redial.due(), Some(now));
        redial.begin();
        assert_eq!(redial.due(), None);
    }
}
