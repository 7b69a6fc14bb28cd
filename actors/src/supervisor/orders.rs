//! What the supervisor tells a shell. A shell looks for orders whenever its child runs, and nearly never finds any:
//! so they are a number in one place, and no queue.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Poll, Waker},
};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Put a fresh instance in.
    Restart,
    /// Stop the child.
    Stop,
}

const NONE: u8 = 0;
const RESTART: u8 = 1;
const STOP: u8 = 2;

/// The orders of one child. Two to restart that have not been heeded yet are one, and one to stop is the last.
#[derive(Debug, Default)]
struct Orders {
    pending: AtomicU8,
    /// The shell's, as long as it has not changed.
    waker: Mutex<Option<Waker>>,
}

impl Orders {
    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The shell's side.
#[derive(Debug)]
pub(super) struct Inbox {
    orders: Arc<Orders>,
    /// What is to be woken, as it was told.
    told: Option<Waker>,
}

impl Inbox {
    /// An order to be heeded; or else the waker is called once there is one.
    pub(super) fn poll(&mut self, waker: &Waker) -> Poll<Order> {
        if !self.told.as_ref().is_some_and(|told| told.will_wake(waker)) {
            *self.orders.lock() = Some(waker.clone());
            self.told = Some(waker.clone());
        }
        let pending = &self.orders.pending;
        match pending.load(Ordering::Acquire) {
            NONE => Poll::Pending,
            STOP => Poll::Ready(Order::Stop),
            _ => {
                // One to stop that comes just now stays.
                let _ = pending.compare_exchange(RESTART, NONE, Ordering::AcqRel, Ordering::Acquire);
                Poll::Ready(Order::Restart)
            }
        }
    }
}

/// The supervisor's side. Without a supervisor nobody is to run: when it goes, the child stops.
#[derive(Debug)]
pub(super) struct Desk(Arc<Orders>);

impl Desk {
    pub(super) fn new() -> (Self, Inbox) {
        let orders = Arc::<Orders>::default();
        (Self(orders.clone()), Inbox { orders, told: None })
    }

    pub(super) fn give(&self, order: Order) {
        let number = if order == Order::Stop { STOP } else { RESTART };
        // After this: a shell that tells its waker later sees the order.
        self.0.pending.fetch_max(number, Ordering::AcqRel);
        let waker = self.0.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.give(Order::Stop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_to_stop_is_the_last_and_stays() {
        let (desk, mut orders) = Desk::new();
        assert_eq!(orders.poll(Waker::noop()), Poll::Pending);
        desk.give(Order::Restart);
        assert_eq!(orders.poll(Waker::noop()), Poll::Ready(Order::Restart));
        assert_eq!(orders.poll(Waker::noop()), Poll::Pending);
        desk.give(Order::Stop);
        desk.give(Order::Restart);
        for _ in 0..2 {
            assert_eq!(orders.poll(Waker::noop()), Poll::Ready(Order::Stop));
        }
    }

    #[test]
    fn whoever_waits_is_woken_by_each_order() {
        struct Woken(AtomicU8);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken(AtomicU8::new(0)));
        let (desk, mut orders) = Desk::new();
        for n in 1..4 {
            assert_eq!(orders.poll(&woken.clone().into()), Poll::Pending);
            desk.give(Order::Restart);
            assert_eq!(woken.0.load(Ordering::Relaxed), n);
            assert_eq!(orders.poll(&woken.clone().into()), Poll::Ready(Order::Restart));
        }
    }

    #[test]
    fn a_child_without_a_supervisor_stops() {
        let (desk, mut orders) = Desk::new();
        drop(desk);
        assert_eq!(orders.poll(Waker::noop()), Poll::Ready(Order::Stop));
    }
}
