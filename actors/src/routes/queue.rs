//! What waits for one handler, on the node's thread.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    task::{Context, Waker},
    time::Instant,
};

use actix::{Message, Recipient};
use serde::Serialize;

use crate::{answers::Answer, ring::now, supervisor::catch};

/// Messages that wait for one handler.
const DEPTH: usize = 1024;

/// Encoded bytes that wait for one handler, and as many that are in its mailbox. A single message may have more.
pub(super) const BYTES: usize = 4 << 20;

/// A message of a handler's: what a pump can send, and whose result it can send back.
pub(super) trait Handled: Message<Result: Serialize + Send> + Send + 'static {}

impl<T: Message<Result: Serialize + Send> + Send + 'static> Handled for T {}

/// What waits for a handler.
pub(super) struct Item<T> {
    pub(super) msg: T,
    /// Encoded.
    pub(super) len: usize,
    pub(super) answer: Option<Answer>,
    /// Until when somebody waits for the result.
    pub(super) until: Option<Instant>,
}

impl<T> Item<T> {
    /// Whether nobody waits for its result any more.
    pub(super) fn is_late(&self) -> bool {
        self.until.is_some_and(|until| until <= now())
    }
}

struct Waiting<T> {
    items: VecDeque<Item<T>>,
    bytes: usize,
    closed: bool,
    pump: Option<Waker>,
    /// Who has more for it, and waits for room.
    filler: Option<Waker>,
    /// Whoever waited for room has waited in vain: nobody does until the handler has taken so many more.
    stuck: usize,
}

/// The queue of one handler. It stays on the node's thread.
pub(super) struct Queue<T: Handled> {
    pub(super) to: Recipient<T>,
    waiting: RefCell<Waiting<T>>,
}

impl<T: Handled> Queue<T> {
    pub(super) fn new(to: Recipient<T>) -> Rc<Self> {
        let waiting =
            Waiting { items: VecDeque::new(), bytes: 0, closed: false, pump: None, filler: None, stuck: 0 };
        Rc::new(Self { to, waiting: RefCell::new(waiting) })
    }

    /// Whether the handler is there, as far as can be known.
    pub(super) fn is_open(&self) -> bool {
        self.to.connected() && !self.waiting.borrow().closed
    }

    pub(super) fn has_room(&self, len: usize) -> bool {
        let waiting = self.waiting.borrow();
        waiting.items.len() < DEPTH && (waiting.bytes + len <= BYTES || waiting.items.is_empty())
    }

    /// Whether `more` messages have room, or it is not worth waiting for that; else the waker is called when half of
    /// the queue is free, or the handler is gone.
    pub(super) fn takes(&self, more: usize, waker: &Waker) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let takes = waiting.closed || waiting.stuck > 0 || waiting.items.len() + more.min(DEPTH / 2) <= DEPTH;
        if !takes {
            waiting.filler = Some(waker.clone());
        }
        takes
    }

    /// Nobody waits for room any more, until the handler has taken half a queue.
    pub(super) fn give_up(&self) {
        self.waiting.borrow_mut().stuck = DEPTH / 2;
    }

    pub(super) fn push(&self, item: Item<T>) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.bytes += item.len;
        waiting.items.push_back(item);
        let pump = waiting.pump.take();
        drop(waiting);
        wake(pump);
    }

    /// The next one, if it has at most `room` bytes.
    pub(super) fn take(&self, room: usize) -> Option<Item<T>> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.items.front()?.len > room {
            return None;
        }
        let item = waiting.items.pop_front()?;
        waiting.bytes -= item.len;
        waiting.stuck = waiting.stuck.saturating_sub(1);
        if waiting.items.len() <= DEPTH / 2 {
            let filler = waiting.filler.take();
            drop(waiting);
            wake(filler);
        }
        Some(item)
    }

    /// Whether nothing waits, nor ever will. The pump is woken when something comes that it does not know of.
    pub(super) fn is_done(&self, cx: &Context<'_>) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.items.is_empty() {
            return false;
        }
        if !waiting.pump.as_ref().is_some_and(|pump| pump.will_wake(cx.waker())) {
            waiting.pump = Some(cx.waker().clone());
        }
        waiting.closed
    }

    /// Lets the handler take what waits, and then ends.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.closed = true;
        let (pump, filler) = (waiting.pump.take(), waiting.filler.take());
        drop(waiting);
        wake(pump);
        wake(filler);
    }

    /// Ends at once, and says how many nobody will get. Who has asked something is told.
    pub(super) fn abandon(&self) -> usize {
        let mut waiting = self.waiting.borrow_mut();
        let items = std::mem::take(&mut waiting.items);
        waiting.bytes = 0;
        drop(waiting);
        self.close();
        let len = items.len();
        for item in items {
            // A message's `Drop` is the user's.
            let _ = catch(|| drop(item));
        }
        len
    }
}

fn wake(pump: Option<Waker>) {
    if let Some(pump) = pump {
        pump.wake();
    }
}
