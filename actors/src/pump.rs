//! Between the node and its users: a bounded queue for each subscriber, and a pump that empties it into the
//! subscriber's mailbox, one message at a time. However slow a subscriber is, the node and the other
//! subscribers do not wait for it.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use actix::Recipient;
use futures_core::Stream;
use memberlist_protocol::view::View;

use crate::{
    events::{MemberEvent, Replay},
    inbox::Inbox,
    latest::Follower,
    messages::ToDelegates,
    metrics::Lost,
    ring::Doors,
};

/// What a queue does with more than it can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overflow {
    /// It forgets all that waits, and says so once: the subscriber gets a fresh snapshot.
    Restart,
    /// It refuses the newest.
    Refuse,
}

struct Waiting<T> {
    items: VecDeque<T>,
    bytes: usize,
    lagged: bool,
    closed: bool,
    waker: Option<Waker>,
}

/// The queue of one subscriber.
pub(crate) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    max: usize,
    max_bytes: usize,
    overflow: Overflow,
}

/// What comes out of a queue.
pub(crate) enum Next<T> {
    Item(T),
    /// Some have been forgotten.
    Lagged,
}

impl<T> Queue<T> {
    pub(crate) fn new(max: usize, max_bytes: usize, overflow: Overflow) -> Arc<Self> {
        let waiting = Waiting { items: VecDeque::new(), bytes: 0, lagged: false, closed: false, waker: None };
        Arc::new(Self { waiting: Mutex::new(waiting), max, max_bytes, overflow })
    }

    /// Adds an item of `bytes`. Says whether there was room.
    pub(crate) fn push(&self, item: T, bytes: usize) -> bool {
        let mut waiting = self.lock();
        if waiting.closed {
            return true;
        }
        // A single item may be larger than the bound: else it would never be taken.
        let room = waiting.bytes + bytes <= self.max_bytes || waiting.items.is_empty();
        let fits = waiting.items.len() < self.max && room;
        match (fits, self.overflow) {
            (true, _) => {
                waiting.items.push_back(item);
                waiting.bytes += bytes;
            }
            (false, Overflow::Refuse) => return false,
            (false, Overflow::Restart) => {
                waiting.items.clear();
                waiting.bytes = 0;
                waiting.lagged = true;
            }
        }
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
        fits
    }

    /// Adds the last item, for which there is always room.
    fn push_last(&self, item: T) {
        self.lock().items.push_back(item);
        self.close();
    }

    /// Lets the subscriber take what waits, and then ends.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends at once, and says how many items nobody will get.
    pub(crate) fn abandon(&self) -> usize {
        let mut waiting = self.lock();
        let items = std::mem::take(&mut waiting.items);
        waiting.lagged = false;
        drop(waiting);
        self.close();
        items.len()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn poll_next(&self, cx: &mut Context<'_>, size: impl Fn(&T) -> usize) -> Poll<Option<Next<T>>> {
        let mut waiting = self.lock();
        if std::mem::take(&mut waiting.lagged) {
            return Poll::Ready(Some(Next::Lagged));
        }
        if let Some(item) = waiting.items.pop_front() {
            waiting.bytes -= size(&item).min(waiting.bytes);
            return Poll::Ready(Some(Next::Item(item)));
        }
        if waiting.closed {
            return Poll::Ready(None);
        }
        waiting.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Member events of one subscriber, in order, without a gap that a snapshot does not say.
pub(crate) struct Events {
    queue: Arc<Queue<MemberEvent>>,
    view: Follower<View>,
    /// Events up to this number are in the last snapshot.
    known: u64,
}

impl Events {
    pub(crate) fn new(queue: Arc<Queue<MemberEvent>>, view: Follower<View>) -> Self {
        Self { queue, view, known: 0 }
    }
}

impl Stream for Events {
    type Item = MemberEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<MemberEvent>> {
        loop {
            match self.queue.poll_next(cx, |_| 0) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Next::Lagged)) => {
                    let view = self.view.borrow().clone();
                    self.known = view.rev();
                    return Poll::Ready(Some(MemberEvent::Snapshot(view)));
                }
                Poll::Ready(Some(Next::Item(event))) => {
                    // The view may have been further than the queue when the last snapshot was taken.
                    let snapshot = matches!(event, MemberEvent::Snapshot(_));
                    if event.rev() < self.known || (!snapshot && event.rev() == self.known) {
                        continue;
                    }
                    if snapshot {
                        self.known = event.rev();
                    }
                    return Poll::Ready(Some(event));
                }
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

/// Empties a subscriber's events into its mailbox.
pub(crate) async fn pump_events(mut events: Events, to: Recipient<MemberEvent>) {
    while let Some(event) = std::future::poll_fn(|cx| Pin::new(&mut events).poll_next(cx)).await {
        // The answer comes once the event is handled: one is on its way at a time.
        if to.send(event).await.is_err() && !to.connected() {
            return;
        }
    }
}

/// Empties a queue of what is never forgotten into a mailbox.
pub(crate) async fn pump<T>(queue: Arc<Queue<T>>, to: Recipient<T>, doors: Arc<Doors>, size: fn(&T) -> usize)
where
    T: actix::Message<Result = ()> + Send,
{
    while let Some(next) = std::future::poll_fn(|cx| queue.poll_next(cx, size)).await {
        let Next::Item(item) = next else { continue };
        if to.send(item).await.is_err() && !to.connected() {
            doors.counters.drop_many(Lost::HandlerGone, 1 + queue.abandon());
            return;
        }
    }
}

/// A pump to be run on the node's arbiter.
pub(crate) type Pump = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A queue that is to be filled, and the pump that empties it, if it is not the subscriber itself who does.
pub(crate) struct Subscribing<T> {
    pub(crate) number: u64,
    pub(crate) queue: Option<Arc<Queue<T>>>,
    pub(crate) replay: Replay,
    pub(crate) pump: Option<Pump>,
}

impl<T> Drop for Subscribing<T> {
    /// Nobody is left to wait for events that will never come.
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.close();
        }
    }
}

/// Queues of those who hear what becomes of the node itself, or of its links. They are told by whoever knows, not by
/// an actor that may be the one that fails.
pub(crate) struct Listeners<T>(Mutex<Listening<T>>);

struct Listening<T> {
    queues: Vec<(u64, Arc<Queue<T>>)>,
    closed: bool,
}

impl<T> Default for Listeners<T> {
    fn default() -> Self {
        Self(Mutex::new(Listening { queues: Vec::new(), closed: false }))
    }
}

impl<T: Clone> Listeners<T> {
    /// One more. If the last event has been told, it gets `last`.
    pub(crate) fn add(&self, number: u64, queue: Arc<Queue<T>>, last: Option<T>) {
        let mut listening = self.lock();
        if listening.closed {
            end(&queue, last);
        } else {
            listening.queues.retain(|(_, queue)| !queue.is_closed());
            listening.queues.push((number, queue));
        }
    }

    /// Says whether all had room for it.
    pub(crate) fn tell(&self, event: &T) -> bool {
        self.lock().queues.iter().fold(true, |all, (_, queue)| queue.push(event.clone(), 0) && all)
    }

    /// The last event, if there is one.
    pub(crate) fn close(&self, last: Option<T>) {
        let mut listening = self.lock();
        listening.closed = true;
        for (_, queue) in listening.queues.drain(..) {
            end(&queue, last.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Listening<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end<T>(queue: &Queue<T>, last: Option<T>) {
    match last {
        Some(last) => queue.push_last(last),
        None => queue.close(),
    }
}

/// What knows its listeners by number.
pub(crate) trait Forgets: Send + Sync {
    fn remove(&self, number: u64);
}

impl<T: Clone + Send> Forgets for Listeners<T> {
    fn remove(&self, number: u64) {
        self.lock().queues.retain(|(n, queue)| {
            if *n == number {
                queue.abandon();
            }
            *n != number
        });
    }
}

/// What a subscriber holds: dropping it ends the subscription, unless it is [detached](Subscription::detach).
///
/// An actor that keeps its own subscription keeps itself alive, since the subscription holds its address:
/// detach it, or keep it elsewhere.
#[must_use = "dropping a subscription ends it"]
#[derive(Debug)]
pub struct Subscription {
    number: u64,
    of: Option<Of>,
}

pub(crate) enum Of {
    Delegates(Weak<Inbox<ToDelegates>>),
    Listeners(Weak<dyn Forgets>),
}

impl std::fmt::Debug for Of {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Delegates(_) => "Delegates",
            Self::Listeners(_) => "Listeners",
        })
    }
}

impl Subscription {
    pub(crate) fn new(number: u64, of: Of) -> Self {
        Self { number, of: Some(of) }
    }

    /// Lets the subscription last as long as the node and the subscriber.
    pub fn detach(mut self) {
        self.of = None;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        match self.of.take() {
            Some(Of::Delegates(inbox)) => {
                if let Some(inbox) = inbox.upgrade() {
                    let _ = inbox.insist(ToDelegates::Unsubscribe { number: self.number });
                }
            }
            Some(Of::Listeners(events)) => {
                if let Some(events) = events.upgrade() {
                    events.remove(self.number);
                }
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(queue: &Queue<u32>) -> Option<Option<u32>> {
        match queue.poll_next(&mut Context::from_waker(Waker::noop()), |_| 1) {
            Poll::Pending => None,
            Poll::Ready(None) => Some(None),
            Poll::Ready(Some(Next::Item(n))) => Some(Some(n)),
            Poll::Ready(Some(Next::Lagged)) => Some(Some(u32::MAX)),
        }
    }

    #[test]
    fn a_queue_that_restarts_forgets_what_waits_and_says_so_once() {
        let queue = Queue::new(2, 100, Overflow::Restart);
        assert_eq!([1, 2, 3, 4].map(|n| queue.push(n, 1)), [true, true, false, true]);
        assert_eq!([next(&queue), next(&queue), next(&queue)], [Some(Some(u32::MAX)), Some(Some(4)), None]);
    }

    #[test]
    fn a_queue_that_refuses_keeps_what_it_has_taken() {
        let queue = Queue::new(5, 2, Overflow::Refuse);
        assert_eq!([1, 2, 3].map(|n| queue.push(n, 1)), [true, true, false]);
        assert_eq!(next(&queue), Some(Some(1)));
        assert!(queue.push(4, 1));
        queue.close();
        assert_eq!([next(&queue), next(&queue), next(&queue)], [Some(Some(2)), Some(Some(4)), Some(None)]);
    }
}
