//! Who is told what has become of what users send: a sender of one message, of a question, or of a broadcast that goes
//! to many.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::Bytes;

use crate::{
    errors::{AskError, Cause, NotSent},
    messages::Reply,
};

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

    /// Of a parcel of `len` bytes, how many count among those that wait for all peers. Parts of a broadcast share
    /// theirs, which are bounded by themselves.
    pub(crate) fn claim(&self, len: usize) -> usize {
        if matches!(self, Self::Part(_)) { 0 } else { len }
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
