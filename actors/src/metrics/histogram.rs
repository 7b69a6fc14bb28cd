//! How long things take, and how large they are, in buckets of fixed bounds. To note one is two additions to
//! atomics, without a lock or an allocation.

use std::{
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The bounds of a sort of histogram, in nanoseconds or bytes.
pub(crate) trait Scale {
    const BOUNDS: [u64; BOUNDS];
    /// How many of these are one of what users are shown: seconds, or bytes.
    const UNIT: f64;
}

/// Bounds of each histogram; above the last there is one more bucket.
const BOUNDS: usize = 16;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

/// From 100 µs to 10 s: what goes over the network once.
#[derive(Debug, Default)]
pub(crate) struct Short;

impl Scale for Short {
    const BOUNDS: [u64; BOUNDS] = [
        MS / 10,
        MS / 4,
        MS / 2,
        MS,
        5 * MS / 2,
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        S,
        5 * S / 2,
        5 * S,
        10 * S,
    ];
    const UNIT: f64 = S as f64;
}

/// From 50 ms to 5 minutes: what takes rounds of gossip or of probes.
#[derive(Debug, Default)]
pub(crate) struct Long;

impl Scale for Long {
    const BOUNDS: [u64; BOUNDS] = [
        50 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        S,
        2 * S,
        3 * S,
        5 * S,
        15 * S / 2,
        10 * S,
        15 * S,
        20 * S,
        30 * S,
        60 * S,
        120 * S,
        300 * S,
    ];
    const UNIT: f64 = S as f64;
}

/// From 64 bytes to 64 MiB.
#[derive(Debug, Default)]
pub(crate) struct Size;

impl Scale for Size {
    const BOUNDS: [u64; BOUNDS] = {
        let (mut bounds, mut i) = ([64; BOUNDS], 1);
        while i < BOUNDS {
            // Doubled up to 64 KiB, then by four.
            bounds[i] = bounds[i - 1] * if i <= 10 { 2 } else { 4 };
            i += 1;
        }
        bounds
    };
    const UNIT: f64 = 1.0;
}

/// A histogram that is being filled.
#[derive(Debug)]
pub(crate) struct Buckets<S> {
    counts: [AtomicU64; BOUNDS + 1],
    sum: AtomicU64,
    scale: PhantomData<S>,
}

impl<S> Default for Buckets<S> {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BOUNDS + 1], sum: AtomicU64::new(0), scale: PhantomData }
    }
}

impl<S: Scale> Buckets<S> {
    pub(crate) fn observe(&self, time: Duration) {
        self.observe_value(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn observe_value(&self, value: u64) {
        let at = S::BOUNDS.iter().position(|bound| value <= *bound).unwrap_or(BOUNDS);
        self.counts[at].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    pub(crate) fn read(&self) -> Histogram {
        Histogram {
            bounds: S::BOUNDS.iter().map(|bound| *bound as f64 / S::UNIT).collect(),
            counts: self.counts.iter().map(|count| count.load(Relaxed)).collect(),
            sum: self.sum.load(Relaxed) as f64 / S::UNIT,
        }
    }
}

/// How often a measured value fell between which bounds, in seconds or bytes.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Histogram {
    /// The upper bounds of the buckets, ascending; each belongs to its bucket.
    pub bounds: Vec<f64>,
    /// Values in each bucket, and at the end those above the last bound: one more than there are bounds.
    pub counts: Vec<u64>,
    /// The sum of all values.
    pub sum: f64,
}

impl Histogram {
    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The mean of all values, if there are any.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum / count as f64)
    }

    /// The smallest bound that at least this share (0 to 1) of the values does not exceed; infinite if it is
    /// above the last bound, nothing without values.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        let wanted = (count as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at = self.counts.iter().position(|n| {
            seen += n;
            seen >= wanted
        })?;
        Some(self.bounds.get(at).copied().unwrap_or(f64::INFINITY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_ascend_from_the_smallest_to_the_largest_that_the_documentation_names() {
        fn of<S: Scale>() -> (f64, f64) {
            assert!(S::BOUNDS.is_sorted_by(|a, b| a < b));
            let Histogram { bounds, counts, .. } = Buckets::<S>::default().read();
            assert_eq!(counts.len(), bounds.len() + 1);
            (bounds[0], bounds[BOUNDS - 1])
        }
        assert_eq!(of::<Short>(), (0.0001, 10.0));
        assert_eq!(of::<Long>(), (0.05, 300.0));
        assert_eq!(of::<Size>(), (64.0, 67_108_864.0));
    }

    #[test]
    fn a_value_is_counted_in_the_first_bucket_that_holds_it() {
        let buckets = Buckets::<Short>::default();
        for time in [0, 100, 101, 1000, 20_000_000].map(Duration::from_micros) {
            buckets.observe(time);
        }
        let histogram = buckets.read();
        assert_eq!(histogram.counts[..4], [2, 1, 0, 1]);
        assert_eq!(histogram.counts[BOUNDS], 1);
        assert_eq!(histogram.count(), 5);
        assert!((histogram.sum - 20.001_201).abs() < 1e-9);
    }

    #[test]
    fn a_quantile_is_a_bound_that_so_many_do_not_exceed() {
        let buckets = Buckets::<Short>::default();
        assert_eq!((buckets.read().quantile(0.5), buckets.read().mean()), (None, None));
        for n in 0..99 {
            buckets.observe(Duration::from_millis(if n < 50 { 1 } else { 80 }));
        }
        let histogram = buckets.read();
        assert_eq!([0.0, 0.5, 0.51, 1.0].map(|q| histogram.quantile(q)), [0.001, 0.001, 0.1, 0.1].map(Some));
        buckets.observe(Duration::from_secs(60));
        assert_eq!(buckets.read().quantile(1.0), Some(f64::INFINITY));
    }
}
