//! "So many in a second": for what strangers make a node do, and what it can do only so often.

use std::time::{Duration, Instant};

/// Lets so many things happen in a second; as many at once, if nothing has happened for a second.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Time that one of them takes up.
    each: Duration,
    /// When all that have happened are paid for.
    paid: Option<Instant>,
}

/// What may be owed.
const SECOND: Duration = Duration::from_secs(1);

impl Bucket {
    /// `rate` in a second, at least one.
    pub fn new(rate: usize) -> Self {
        Self { each: SECOND / u32::try_from(rate.max(1)).unwrap_or(u32::MAX), paid: None }
    }

    /// Whether one may happen at `now`. If so, it does.
    pub fn take(&mut self, now: Instant) -> bool {
        let paid = self.paid.map_or(now, |paid| paid.max(now)) + self.each;
        let may = paid <= now + SECOND;
        if may {
            self.paid = Some(paid);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_happen_in_a_second_and_no_more_are_saved_up_than_for_one() {
        let (mut bucket, start) = (Bucket::new(100), Instant::now());
        let taken = |bucket: &mut Bucket, now| (0..1000).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, start), 100);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(250)), 25);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(60)), 100);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(60)), 0);
        assert_eq!(taken(&mut Bucket::new(1), start), 1);
    }
}
