//! What users send in datagrams and has not left yet. It lies apart from everything that the membership needs:
//! however much users send, no ping waits behind it. And who is told what has become of what users send.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Waker,
};

use bytes::Bytes;

use crate::{
    errors::{AskError, Cause, NotSent, SendError},
    messages::Reply,
};

/// Datagrams that wait. They leave in the node's next turn.
const MAX_CASTS: usize = 4096;

/// Bytes of datagrams that wait.
const MAX_CAST_BYTES: usize = 4 << 20;

/// Who is told what has become of a parcel. Dropped, it tells that the parcel was lost.
pub(crate) enum Fate {
    /// A sender of one message.
    One(Reply<Result<(), NotSent>>),
    /// Who waits for an answer, until the question has a number: then the link keeps that.
    Ask(Option<Reply<Result<Bytes, AskError>>>),
    /// A broadcast that goes to many peers.
    Part(Part),
}

impl Fate {
    pub(crate) fn end(self, outcome: Result<(), NotSent>) {
        match self {
            Self::One(reply) => drop(reply.send(outcome)),
            Self::Ask(reply) => {
                if let (Some(reply), Err(not_sent)) = (reply, outcome) {
                    let _ = reply.send(Err(AskError::NotSent(not_sent)));
                }
            }
            Self::Part(part) => part.end(outcome),
        }
    }

    /// Whether the parcel need not be sent any more.
    pub(crate) fn is_void(&self) -> bool {
        match self {
            Self::One(_) => false,
            Self::Ask(reply) => reply.as_ref().is_some_and(Reply::is_closed),
            Self::Part(part) => part.fanout.is_void(),
        }
    }
}

/// A broadcast that is too large for gossip, on its way to each member.
pub(crate) struct Fanout {
    left: AtomicUsize,
    /// The best that has become of any part.
    best: Mutex<Option<Result<(), NotSent>>>,
    /// Bytes of the broadcast, which all its parcels share.
    pub(crate) len: usize,
    void: AtomicBool,
    spread: Mutex<Option<Reply<Result<(), NotSent>>>>,
}

impl Fanout {
    /// For so many members.
    pub(crate) fn new(members: usize, len: usize, spread: Reply<Result<(), NotSent>>) -> Arc<Self> {
        Arc::new(Self {
            left: members.into(),
            best: Mutex::default(),
            len,
            void: false.into(),
            spread: Mutex::new(Some(spread)),
        })
    }

    pub(crate) fn part(self: &Arc<Self>) -> Part {
        Part { fanout: self.clone(), outcome: Err(NotSent::Unknown(Cause::Lost)) }
    }

    /// A newer broadcast takes its place.
    pub(crate) fn invalidate(&self) {
        self.void.store(true, Ordering::Relaxed);
        self.tell(Err(NotSent::Never(Cause::Invalidated)));
    }

    pub(crate) fn is_void(&self) -> bool {
        self.void.load(Ordering::Relaxed)
    }

    fn tell(&self, outcome: Result<(), NotSent>) {
        let spread = self.spread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(spread) = spread {
            let _ = spread.send(outcome);
        }
    }
}

/// The part of a broadcast that is for one member.
pub(crate) struct Part {
    fanout: Arc<Fanout>,
    outcome: Result<(), NotSent>,
}

impl Part {
    fn end(mut self, outcome: Result<(), NotSent>) {
        self.outcome = outcome;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let fanout = &self.fanout;
        let mut best = fanout.best.lock().unwrap_or_else(PoisonError::into_inner);
        *best = Some(match (*best, self.outcome) {
            (Some(Ok(())), _) | (_, Ok(())) => Ok(()),
            // That one may have got it says more than that another surely has not.
            (Some(Err(NotSent::Unknown(cause))), _) => Err(NotSent::Unknown(cause)),
            (_, outcome) => outcome,
        });
        let outcome = best.unwrap_or(self.outcome);
        drop(best);
        if fanout.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            fanout.tell(outcome);
        }
    }
}

/// A message that goes in a datagram.
pub(crate) struct Cast {
    pub(crate) to: SocketAddr,
    /// The run that is meant, if it is known.
    pub(crate) run: u64,
    pub(crate) message: Bytes,
}

#[derive(Default)]
struct Waiting {
    casts: VecDeque<Cast>,
    cast_bytes: usize,
    waker: Option<Waker>,
    closed: bool,
}

/// What waits to be sent for users.
#[derive(Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
}

impl Outbox {
    /// Queues a datagram.
    pub(crate) fn cast(&self, cast: Cast) -> Result<(), SendError> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(SendError::Stopped);
        }
        if waiting.casts.len() >= MAX_CASTS || waiting.cast_bytes + cast.message.len() > MAX_CAST_BYTES {
            return Err(SendError::Full);
        }
        waiting.cast_bytes += cast.message.len();
        waiting.casts.push_back(cast);
        wake(waiting);
        Ok(())
    }

    /// The next datagram.
    pub(crate) fn next_cast(&self) -> Option<Cast> {
        let mut waiting = self.lock();
        let cast = waiting.casts.pop_front()?;
        waiting.cast_bytes -= cast.message.len();
        Some(cast)
    }

    /// Gives a datagram back that did not leave in this turn.
    pub(crate) fn put_back(&self, cast: Cast) {
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.cast_bytes += cast.message.len();
            waiting.casts.push_front(cast);
        }
    }

    /// Datagrams that wait.
    pub(crate) fn len(&self) -> usize {
        let waiting = self.lock();
        waiting.casts.len()
    }

    /// Whether there is something to do.
    pub(crate) fn is_ready(&self, waker: &Waker) -> bool {
        let mut waiting = self.lock();
        match &mut waiting.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        !waiting.casts.is_empty()
    }

    /// Takes nothing more, and drops what waits, so that whoever waits for it learns of that.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let rest = std::mem::take(&mut waiting.casts);
        drop(waiting);
        drop(rest);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(mut waiting: MutexGuard<'_, Waiting>) {
    let waker = waiting.waker.take();
    drop(waiting);
    if let Some(waker) = waker {
        waker.wake();
    }
}
