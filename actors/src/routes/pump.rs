//! From the queue of a handler into its mailbox, and results back.

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use actix::MailboxError;
use serde::Serialize;

use super::{
    queue::{BYTES, Handled, Item, Queue},
    window::Window,
};
use crate::{
    answers::{Answer, Answered},
    metrics::Lost,
    ring::Doors,
    supervisor::catch,
};

/// A request that is under way.
struct Request {
    len: usize,
    answer: Option<Answer>,
}

/// Empties a queue into a mailbox, and sends the results of questions back.
pub(super) struct Pump<T: Handled> {
    queue: Rc<Queue<T>>,
    doors: Arc<Doors>,
    window: Window<T, Request>,
    /// Bytes that are under way.
    bytes: usize,
}

impl<T: Handled> Pump<T> {
    pub(super) fn new(queue: Rc<Queue<T>>, doors: Arc<Doors>) -> Self {
        Self { queue, doors, window: Window::new(), bytes: 0 }
    }

    /// Whether another request may be made, and of how many bytes.
    fn room(&self) -> Option<usize> {
        match () {
            () if self.window.is_full() => None,
            () if self.window.is_empty() => Some(usize::MAX),
            () => Some(BYTES.saturating_sub(self.bytes)),
        }
    }
}

/// What becomes of a request's result.
fn end<R: Serialize>(doors: &Doors, request: Request, result: Result<R, MailboxError>) {
    match (result, request.answer) {
        // A result's `Drop` is the user's.
        (Ok(result), None) => drop(catch(|| drop(result))),
        (Ok(result), Some(answer)) => answer.give(Answered::encode(result, doors.config.max_message_size)),
        (Err(_), answer) => {
            doors.counters.drop(Lost::HandlerGone);
            if let Some(answer) = answer {
                answer.give(Answered::HandlerGone);
            }
        }
    }
}

impl<T: Handled> Future for Pump<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { doors, window, bytes, .. } = &mut *self;
        let mut failed = false;
        window.poll_woken(cx, |(request, result)| {
            *bytes -= request.len;
            failed |= result.is_err();
            end(doors, request, result);
        });
        // One round in each turn: what is woken meanwhile wakes this task again.
        while let Some(room) = self.room()
            && let Some(item) = self.queue.take(room)
        {
            if item.is_late() {
                self.doors.counters.drop(Lost::Expired);
                // A message's `Drop` is the user's.
                let _ = catch(|| drop(item));
                continue;
            }
            let Item { msg, len, answer, .. } = item;
            self.bytes += len;
            let request = self.queue.to.send(msg);
            if let Some((request, result)) = self.window.push(request, Request { len, answer }) {
                self.bytes -= request.len;
                failed |= result.is_err();
                end(&self.doors, request, result);
            }
        }
        // One that panics may run again, under a supervisor; one that has stopped does not.
        if failed && !self.queue.to.connected() {
            let lost = self.queue.abandon();
            self.doors.counters.drop_many(Lost::HandlerGone, lost);
        }
        if self.queue.is_done(cx) && self.window.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl<T: Handled> Drop for Pump<T> {
    /// Whatever ends it, nothing waits in vain.
    fn drop(&mut self) {
        let lost = self.queue.abandon();
        self.doors.counters.drop_many(Lost::HandlerGone, lost);
    }
}
