//! Room for what waits for all peers together.

use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use tokio::sync::Notify;

/// Bytes that wait for peers, of all links of a node, and how many may.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    max: usize,
    /// Whether somebody has found no room since there was some again.
    short: AtomicBool,
    /// Told when there may be room again.
    pub(crate) room: Notify,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Self {
        Self { used: 0.into(), max, short: false.into(), room: Notify::new() }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Takes room for so many bytes. A message that is larger than all of it finds room when nothing else waits.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| {
            let sum = used.saturating_add(bytes);
            (used == 0 || sum <= self.max).then_some(sum)
        };
        if self.used.fetch_update(SeqCst, SeqCst, more).is_ok() {
            return true;
        }
        // Whoever makes room from here on tells; who has made some since is seen now.
        self.short.store(true, SeqCst);
        self.used.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, SeqCst);
        if bytes > 0 && self.short.load(SeqCst) && self.short.swap(false, SeqCst) {
            self.room.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_bounded_and_given_back_and_a_single_large_one_fits() {
        let budget = Budget::new(100);
        assert!(budget.take(60) && !budget.take(41) && budget.take(40));
        budget.give_back(60);
        budget.give_back(40);
        assert_eq!(budget.used(), 0);
        assert!(budget.take(1000) && !budget.take(1));
    }

    #[tokio::test]
    async fn who_found_no_room_is_told_when_there_is_some() {
        let budget = Budget::new(100);
        let mut room = std::pin::pin!(budget.room.notified());
        assert!(budget.take(100));
        room.as_mut().enable();
        assert!(!budget.take(1));
        budget.give_back(100);
        room.await;
    }
}
