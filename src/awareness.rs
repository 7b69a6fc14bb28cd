//! Local health (Lifeguard, section IV.A): how far this node should distrust its own judgement.

use std::time::Duration;

/// A saturating score, 0 for a node in good health. Timeouts of the prober are scaled by `score + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awareness {
    score: u32,
    max: u32,
}

impl Awareness {
    /// A healthy node; the score stays below `multiplier`, which is at least 1.
    pub fn new(multiplier: u32) -> Self {
        Self { score: 0, max: multiplier.saturating_sub(1) }
    }

    /// 0 is healthy; each point lengthens the probe interval by one more base interval.
    pub fn score(self) -> u32 {
        self.score
    }

    /// Makes the score worse (positive) or better (negative), within 0 and the limit.
    pub fn apply(&mut self, delta: i32) {
        self.score = self.score.saturating_add_signed(delta).min(self.max);
    }

    /// `base * (score + 1)`.
    pub fn scale(self, base: Duration) -> Duration {
        base.saturating_mul(self.score + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_clamped_and_scales_a_duration() {
        let mut health = Awareness::new(8);
        let base = Duration::from_secs(1);
        for (delta, score) in [
            (0, 0),
            (-1, 0),
            (-10, 0),
            (1, 1),
            (10, 7),
            (-1, 6),
            (-1, 5),
            (-1, 4),
            (-1, 3),
            (-1, 2),
            (-1, 1),
            (-1, 0),
            (-1, 0),
        ] {
            health.apply(delta);
            assert_eq!(health.score(), score, "after {delta}");
            assert_eq!(health.scale(base), base * (score + 1));
        }
    }

    #[test]
    fn weak_point_21_a_limit_of_zero_or_one_never_leaves_the_range() {
        for limit in [0, 1] {
            let mut health = Awareness::new(limit);
            health.apply(3);
            assert_eq!(health.scale(Duration::from_secs(1)), Duration::from_secs(1));
        }
    }
}
