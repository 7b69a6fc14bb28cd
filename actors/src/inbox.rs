//! Where an actor of the ring finds its work: two bounded lanes beside its mailbox. They lie outside of the
//! actor, so what waits in them survives a restart.
//!
//! Control is taken first: acks, commands, what is said of this node itself. Beyond its bound a command is
//! refused. News is the rest; beyond its bounds the oldest is dropped.

use std::{
    cell::Cell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use tokio::time::{Instant, Sleep};

use crate::errors::SendError;

/// Items that an actor takes in one turn; then the others have theirs.
pub(crate) const TURN: usize = 64;

/// Memory that the news of one inbox may take, in bytes.
const MAX_NEWS_BYTES: usize = 8 << 20;

/// Items for which a lane keeps room when it is empty. In a calm cluster one or two wait; a burst's memory is given
/// back, for a node has ten lanes.
const KEPT: usize = 4;

/// What lies in an inbox.
pub(crate) trait Item: 'static {
    /// Every kind there is, by name.
    #[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "tests go through all of them"))]
    const KINDS: &'static [&'static str];

    /// The name of this one.
    fn kind(&self) -> &'static str;

    /// Bytes that it holds beyond its own size, about.
    fn weight(&self) -> usize {
        0
    }
}

impl From<Refused> for SendError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Busy => Self::Full,
            Refused::Closed => Self::Stopped,
        }
    }
}

/// Why an inbox did not take an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no room.
    Busy,
    /// The node has stopped.
    Closed,
}

struct Lanes<T> {
    control: VecDeque<T>,
    news: VecDeque<T>,
    news_bytes: usize,
    /// The one accusation against this node itself that matters: that of the highest incarnation.
    accusation: Option<(u32, T)>,
    waker: Option<Waker>,
    closed: bool,
}

/// What has gone through an inbox.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Items taken in.
    pub(crate) offered: AtomicU64,
    /// Items given to the actor.
    pub(crate) taken: AtomicU64,
    /// News that had to make room for newer.
    pub(crate) dropped: AtomicU64,
    /// Items refused for want of room.
    pub(crate) refused: AtomicU64,
    /// Accusations that gave way to one of a higher incarnation.
    pub(crate) coalesced: AtomicU64,
}

/// The inbox of one actor.
pub(crate) struct Inbox<T> {
    lanes: Mutex<Lanes<T>>,
    max_control: usize,
    max_news: usize,
    pub(crate) traffic: Traffic,
}

impl<T: Item> Inbox<T> {
    pub(crate) fn new(max_control: usize, max_news: usize) -> Arc<Self> {
        let lanes = Lanes {
            control: VecDeque::new(),
            news: VecDeque::new(),
            news_bytes: 0,
            accusation: None,
            waker: None,
            closed: false,
        };
        Arc::new(Self { lanes: Mutex::new(lanes), max_control, max_news, traffic: Traffic::default() })
    }

    /// Offers control. A refused item is dropped, and with it the way to answer it.
    pub(crate) fn command(&self, item: T) -> Result<(), Refused> {
        self.control(item, self.max_control)
    }

    /// Offers control that this process itself asks for, and that nobody outside can multiply: there is
    /// always room for it.
    pub(crate) fn insist(&self, item: T) -> Result<(), Refused> {
        self.control(item, usize::MAX)
    }

    fn control(&self, item: T, max: usize) -> Result<(), Refused> {
        let mut lanes = self.lock();
        if lanes.closed {
            return Err(Refused::Closed);
        }
        if lanes.control.len() >= max {
            drop(lanes);
            count(&self.traffic.refused);
            return Err(Refused::Busy);
        }
        lanes.control.push_back(item);
        self.wake(lanes);
        Ok(())
    }

    /// Offers news. Says whether older news had to go.
    pub(crate) fn news(&self, item: T) -> bool {
        let mut lanes = self.lock();
        if lanes.closed {
            return false;
        }
        lanes.news_bytes += item.weight();
        lanes.news.push_back(item);
        let mut old = Vec::new();
        while lanes.news.len() > self.max_news || (lanes.news_bytes > MAX_NEWS_BYTES && lanes.news.len() > 1)
        {
            let Some(oldest) = lanes.news.pop_front() else { break };
            lanes.news_bytes -= oldest.weight();
            old.push(oldest);
        }
        self.wake(lanes);
        self.traffic.dropped.fetch_add(old.len() as u64, Ordering::Relaxed);
        !old.is_empty()
    }

    /// Offers an accusation against this node itself; of several that wait, the highest incarnation is kept.
    pub(crate) fn accusation(&self, incarnation: u32, item: T) {
        let mut lanes = self.lock();
        if lanes.closed {
            return;
        }
        match &lanes.accusation {
            Some((known, _)) if *known >= incarnation => {
                drop(lanes);
                count(&self.traffic.offered);
                count(&self.traffic.coalesced);
            }
            waiting => {
                if waiting.is_some() {
                    count(&self.traffic.coalesced);
                }
                lanes.accusation = Some((incarnation, item));
                self.wake(lanes);
            }
        }
    }

    /// The next item: accusations, control, news.
    pub(crate) fn take(&self) -> Option<T> {
        let mut lanes = self.lock();
        let item =
            lanes.accusation.take().map(|(_, item)| item).or_else(|| next(&mut lanes.control)).or_else(
                || {
                    let item = next(&mut lanes.news)?;
                    lanes.news_bytes -= item.weight();
                    Some(item)
                },
            );
        drop(lanes);
        if item.is_some() {
            count(&self.traffic.taken);
        }
        item
    }

    /// Takes nothing more, and drops what waits, so that whoever waits for an answer learns of it.
    pub(crate) fn close(&self) {
        let mut lanes = self.lock();
        lanes.closed = true;
        let rest =
            (std::mem::take(&mut lanes.control), std::mem::take(&mut lanes.news), lanes.accusation.take());
        drop(lanes);
        drop(rest);
    }

    /// Items that wait.
    pub(crate) fn len(&self) -> usize {
        let lanes = self.lock();
        lanes.control.len() + lanes.news.len() + usize::from(lanes.accusation.is_some())
    }

    fn is_ready(&self, waker: &Waker) -> bool {
        let mut lanes = self.lock();
        if !lanes.control.is_empty() || !lanes.news.is_empty() || lanes.accusation.is_some() {
            return true;
        }
        match &mut lanes.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, Lanes<T>> {
        // Nothing that can panic runs under the lock.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, mut lanes: MutexGuard<'_, Lanes<T>>) {
        let waker = lanes.waker.take();
        drop(lanes);
        count(&self.traffic.offered);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The first of a lane.
fn next<T>(lane: &mut VecDeque<T>) -> Option<T> {
    let item = lane.pop_front()?;
    if lane.is_empty() && lane.capacity() > KEPT {
        *lane = VecDeque::new();
    }
    Some(item)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// "There is something to do": items wait, or it is time.
pub(crate) struct Turn;

/// When an actor wants its next turn even if nothing arrives.
#[derive(Clone, Default)]
pub(crate) struct Alarm(Rc<Cell<Option<Instant>>>);

impl Alarm {
    /// Wants a turn at `due`, or none.
    pub(crate) fn set(&self, due: Option<std::time::Instant>) {
        self.0.set(due.map(Instant::from_std));
    }
}

/// Something else that may want a turn, such as a socket.
pub(crate) type Ready = Box<dyn FnMut(&mut Context<'_>) -> bool>;

/// The turns of one actor, as a stream that never ends. It is the only future in the actor's context, since
/// actix polls all of them whenever it polls one.
pub(crate) struct Turns<T> {
    inbox: Arc<Inbox<T>>,
    alarm: Alarm,
    armed: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
    other: Option<Ready>,
    had_turn: bool,
}

impl<T: Item> Turns<T> {
    /// Turns for the items of `inbox`, at the times that `alarm` is set to, and when `other` says so.
    pub(crate) fn new(inbox: Arc<Inbox<T>>, alarm: Alarm, other: Option<Ready>) -> Self {
        let sleep = Box::pin(tokio::time::sleep_until(Instant::now()));
        Self { inbox, alarm, armed: None, sleep, other, had_turn: false }
    }

    fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        self.is_due(cx) | self.inbox.is_ready(cx.waker()) | self.other.as_mut().is_some_and(|ready| ready(cx))
    }

    fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(due) = self.alarm.0.get() else { return false };
        if self.armed != Some(due) {
            self.armed = Some(due);
            self.sleep.as_mut().reset(due);
        }
        // The timer has a resolution of a millisecond, and may be due while the clock is not yet.
        self.sleep.as_mut().poll(cx).is_ready() && {
            self.armed = None;
            true
        }
    }
}

impl<T: Item> Stream for Turns<T> {
    type Item = Turn;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Turn>> {
        let this = &mut *self;
        if !this.is_ready(cx) {
            this.had_turn = false;
            return Poll::Pending;
        }
        if std::mem::take(&mut this.had_turn) {
            // The others first.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.had_turn = true;
        Poll::Ready(Some(Turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Item for Vec<u8> {
        const KINDS: &'static [&'static str] = &["bytes"];
        fn kind(&self) -> &'static str {
            "bytes"
        }
        fn weight(&self) -> usize {
            self.len()
        }
    }

    fn item(n: u8) -> Vec<u8> {
        vec![n]
    }

    fn all(inbox: &Inbox<Vec<u8>>) -> Vec<u8> {
        std::iter::from_fn(|| inbox.take()).map(|item| item[0]).collect()
    }

    #[test]
    fn control_comes_before_news_and_an_accusation_before_both() {
        let inbox = Inbox::new(8, 8);
        inbox.news(item(1));
        inbox.command(item(2)).unwrap();
        inbox.accusation(7, item(3));
        assert_eq!(all(&inbox), [3, 2, 1]);
    }

    #[test]
    fn weak_point_25_news_beyond_the_bound_drops_the_oldest_and_keeps_the_order() {
        let inbox = Inbox::new(8, 3);
        let dropped: Vec<bool> = (0..5).map(|n| inbox.news(item(n))).collect();
        assert_eq!(dropped, [false, false, false, true, true]);
        assert_eq!(all(&inbox), [2, 3, 4]);
        assert_eq!(inbox.traffic.dropped.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn news_is_bounded_in_bytes_too() {
        let inbox = Inbox::new(8, 1000);
        for _ in 0..20 {
            inbox.news(vec![0; 1 << 20]);
        }
        assert_eq!(inbox.len(), MAX_NEWS_BYTES >> 20);
    }

    #[test]
    fn the_memory_of_a_burst_is_given_back_once_it_is_worked_off() {
        let inbox = Inbox::new(100, 100);
        for n in 0..100 {
            inbox.news(item(n));
            inbox.command(item(n)).unwrap();
        }
        let room = |inbox: &Inbox<Vec<u8>>| {
            let lanes = inbox.lock();
            (lanes.control.capacity(), lanes.news.capacity())
        };
        assert_eq!(all(&inbox).len(), 200);
        assert!(room(&inbox).0 <= KEPT && room(&inbox).1 <= KEPT, "{:?}", room(&inbox));
        inbox.news(item(1));
        assert_eq!(all(&inbox), [1]);
        assert!(room(&inbox).1 > 0, "what a calm cluster needs stays");
    }

    #[test]
    fn a_command_beyond_the_bound_is_refused_and_so_is_one_after_the_end() {
        let inbox = Inbox::new(2, 3);
        assert_eq!([1, 2, 3].map(|n| inbox.command(item(n))), [Ok(()), Ok(()), Err(Refused::Busy)]);
        inbox.close();
        assert_eq!(inbox.command(item(4)), Err(Refused::Closed));
        assert_eq!(inbox.len(), 0);
    }

    #[test]
    fn of_the_accusations_against_this_node_the_highest_is_kept() {
        let inbox = Inbox::new(2, 3);
        for (incarnation, n) in [(5, 1), (9, 2), (7, 3)] {
            inbox.accusation(incarnation, item(n));
        }
        assert_eq!(all(&inbox), [2]);
        assert_eq!(inbox.traffic.coalesced.load(Ordering::Relaxed), 2);
        assert_eq!(inbox.traffic.offered.load(Ordering::Relaxed), 3);
    }
}
