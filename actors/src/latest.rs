//! The latest value of something, for any number of tasks that wait for it to change. They wake in the order in which
//! they began to wait, so that a run can be repeated: those who wait at a `tokio::sync::watch` wake in an order of chance.

use std::sync::{
    Arc, PoisonError, RwLock, RwLockReadGuard,
    atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Release},
    },
};

use tokio::sync::Notify;

/// Whoever changes the value is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone;

struct Shared<T> {
    value: RwLock<T>,
    changes: AtomicU64,
    gone: AtomicBool,
    changed: Notify,
}

impl<T> Shared<T> {
    fn borrow(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A value, and the right to change it.
pub(crate) struct Latest<T>(Arc<Shared<T>>);

impl<T> Latest<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(Shared {
            value: RwLock::new(value),
            changes: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            changed: Notify::new(),
        }))
    }

    pub(crate) fn borrow(&self) -> RwLockReadGuard<'_, T> {
        self.0.borrow()
    }

    pub(crate) fn replace(&self, value: T) {
        self.modify(|old| *old = value);
    }

    pub(crate) fn modify(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.0.value.write().unwrap_or_else(PoisonError::into_inner));
        self.0.changes.fetch_add(1, Release);
        self.0.changed.notify_waiters();
    }

    /// One who has seen the value as it is now.
    pub(crate) fn follow(&self) -> Follower<T> {
        Follower { shared: self.0.clone(), seen: self.0.changes.load(Acquire) }
    }
}

impl<T> Drop for Latest<T> {
    fn drop(&mut self) {
        self.0.gone.store(true, Release);
        self.0.changed.notify_waiters();
    }
}

/// One who waits for changes.
pub(crate) struct Follower<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Follower<T> {
    pub(crate) fn borrow(&self) -> RwLockReadGuard<'_, T> {
        self.shared.borrow()
    }

    /// The value, which counts as seen.
    pub(crate) fn see(&mut self) -> RwLockReadGuard<'_, T> {
        // Before the value: what changes in between is seen once more.
        self.seen = self.shared.changes.load(Acquire);
        self.shared.borrow()
    }

    /// Waits until there is a value that was not seen, which then counts as seen.
    pub(crate) async fn changed(&mut self) -> Result<(), Gone> {
        loop {
            let waits = self.shared.changed.notified();
            let mut waits = std::pin::pin!(waits);
            // From here on no change is missed.
            waits.as_mut().enable();
            let changes = self.shared.changes.load(Acquire);
            if changes != self.seen {
                self.seen = changes;
                return Ok(());
            }
            if self.shared.gone.load(Acquire) {
                return Err(Gone);
            }
            waits.await;
        }
    }

    /// Waits until `is_so` of the value, whether that was seen or not.
    pub(crate) async fn until(&mut self, mut is_so: impl FnMut(&T) -> bool) -> Result<(), Gone> {
        loop {
            if is_so(&self.see()) {
                return Ok(());
            }
            self.changed().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        pin::pin,
        rc::Rc,
        task::{Context, Poll, Waker},
    };

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    /// What comes of it without waiting.
    fn at_once<T>(what: impl Future<Output = T>) -> Option<T> {
        match pin!(what).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "the tasks of a test")]
    async fn those_who_wait_wake_in_the_order_in_which_they_began_to() {
        LocalSet::new()
            .run_until(async {
                let (latest, woken) = (Latest::new(0), Rc::new(RefCell::new(Vec::new())));
                for i in 0..50 {
                    let (mut follower, woken) = (latest.follow(), woken.clone());
                    spawn_local(async move {
                        follower.until(|value| *value == 7).await.unwrap();
                        woken.borrow_mut().push(i);
                    });
                }
                yield_now().await;
                latest.replace(3);
                yield_now().await;
                latest.replace(7);
                yield_now().await;
                assert_eq!(*woken.borrow(), (0..50).collect::<Vec<_>>());
            })
            .await;
    }

    #[tokio::test]
    async fn a_change_is_seen_once_also_when_nobody_waited_and_the_end_is_told() {
        let latest = Latest::new(1);
        let mut follower = latest.follow();
        assert!(at_once(follower.changed()).is_none(), "it has seen that");
        latest.replace(2);
        assert!(at_once(follower.changed()).unwrap().is_ok());
        assert_eq!(*follower.borrow(), 2);
        assert!(at_once(follower.changed()).is_none());
        latest.modify(|value| *value += 1);
        assert_eq!(*follower.see(), 3);
        assert!(at_once(follower.changed()).is_none());
        latest.replace(4);
        drop(latest);
        assert!(at_once(follower.changed()).unwrap().is_ok());
        assert!(at_once(follower.changed()).unwrap().is_err());
        assert!(at_once(follower.until(|value| *value == 4)).unwrap().is_ok());
        assert!(at_once(follower.until(|value| *value == 5)).unwrap().is_err());
    }
}
