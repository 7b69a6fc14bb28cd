//! Which handler gets what other nodes' programs send: a queue for each handler, filled by whoever receives, on
//! the node's thread, and emptied by a pump into the handler's mailbox.
//!
//! ```text
//!   deliver ──► table: KIND ──► read ──► queue ──► pump ──► at most 64 requests to the actor
//!      │                                             │          │
//!      └─► receipt                                   └──────────┴─► answer, if it was a question
//! ```
//!
//! The table lies outside of Delegates, which fills it, so queues outlive its restarts. Of the user's there runs
//! only what serde and a message's `Drop` call, and a panic there is caught.

use std::{cell::RefCell, collections::BTreeMap, marker::PhantomData, rc::Rc, task::Waker, time::Instant};

use actix::Recipient;
use bytes::Bytes;
use memberlist_protocol::{
    member::NodeId,
    wire::{codec, message::Receipt},
};
use tokio::sync::oneshot;

use crate::{
    answers::{Answer, Answered},
    events::{Sender, UserBytes},
    logs::{Line, say},
    metrics::Lost,
    ring::Ring,
    supervisor::catch,
    typed::{FromPeer, PeerMessage},
    uploads::{Body, Receiver, Receives, Upload},
};

mod pump;
mod queue;
mod window;

use pump::Pump;
use queue::{Handled, Item, Queue};

/// What has come, and from whom.
pub(crate) struct Arrived<'a> {
    pub(crate) from: &'a Sender,
    /// Nothing for bytes without a type.
    pub(crate) kind: &'a str,
    pub(crate) bytes: Bytes,
    /// Whether it came over a stream.
    pub(crate) reliable: bool,
    /// How to answer, if it is a question.
    pub(crate) answer: Option<Answer>,
    /// Until when the asker waits for it.
    pub(crate) until: Option<Instant>,
}

/// A handler that is to be given a queue and a pump.
pub(crate) struct Serving(Box<dyn FnOnce(&Ring) + Send>);

impl Serving {
    /// All users' bytes without a type.
    pub(crate) fn bytes(number: u64, to: Recipient<UserBytes>) -> Self {
        Self(Box::new(move |ring| {
            let queue = Queue::new(to);
            ring.routes.table.borrow_mut().bytes.push((number, queue.clone()));
            ring.spawn_pump(Pump::new(queue, ring.doors.clone()));
        }))
    }

    /// Messages of one type.
    pub(crate) fn typed<M: PeerMessage>(number: u64, to: Recipient<M>) -> Self {
        Self::route(number, to, |_| Some(|msg| msg))
    }

    /// Messages of one type with their senders.
    pub(crate) fn from_peer<M: PeerMessage>(number: u64, to: Recipient<FromPeer<M>>) -> Self {
        Self::route(number, to, |from| match from {
            Sender::Member(id) | Sender::Stranger(id) => {
                let from = id.clone();
                Some(|msg| FromPeer { from, msg })
            }
            // It has no name that the handler could be told.
            Sender::Address(_) => None,
        })
    }

    fn route<M, T, W>(number: u64, to: Recipient<T>, wrap: fn(&Sender) -> Option<W>) -> Self
    where
        M: PeerMessage,
        T: Handled,
        W: FnOnce(M) -> T + 'static,
    {
        Self(Box::new(move |ring| {
            let queue = Queue::new(to);
            let route = Typed { queue: queue.clone(), kind: M::KIND, wrap, _reads: PhantomData };
            let before = ring.routes.table.borrow_mut().typed.insert(M::KIND, (number, Rc::new(route)));
            if let Some((_, before)) = before {
                before.close();
                tracing::info!(
                    node = %ring.logs.node(),
                    kind = M::KIND,
                    "served by another actor before: that one gets what waits for it, and no more"
                );
            }
            ring.spawn_pump(Pump::new(queue, ring.doors.clone()));
        }))
    }

    /// Messages of one type with bodies.
    pub(crate) fn upload<M: PeerMessage>(number: u64, to: Recipient<Upload<M>>) -> Self {
        Self(Box::new(move |ring| {
            let route: Rc<dyn Receives> = Rc::new(Receiver::new(to));
            ring.routes.table.borrow_mut().uploads.insert(M::KIND, (number, route));
        }))
    }

    /// Opens the way to the handler.
    pub(crate) fn open(self, ring: &Ring) {
        (self.0)(ring);
    }
}

/// All handlers of a node.
#[derive(Default)]
pub(crate) struct Routes {
    table: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    /// By KIND: those of this program, never a peer's.
    typed: BTreeMap<&'static str, (u64, Rc<dyn Route>)>,
    bytes: Vec<(u64, Rc<Queue<UserBytes>>)>,
    uploads: BTreeMap<&'static str, (u64, Rc<dyn Receives>)>,
}

impl Routes {
    /// Gives an upload that begins to its handler; the answer comes when that has one.
    pub(crate) fn upload(
        &self,
        ring: &Ring,
        kind: &str,
        from: NodeId,
        head: &[u8],
        body: Body,
    ) -> Result<oneshot::Receiver<Answered>, Receipt> {
        let route = self.table.borrow().uploads.get(kind).map(|(_, route)| route.clone());
        match route.filter(|route| route.is_open()) {
            Some(route) => route.begin(ring, from, head, body),
            None => {
                ring.counters.drop(Lost::NoHandler);
                Err(Receipt::NoHandler)
            }
        }
    }

    /// Puts what has come into the queue of its handler, and says whether it lies there. Only then will a question
    /// be answered, and never before this returns; else the receipt is all that the asker gets.
    pub(crate) fn deliver(&self, ring: &Ring, arrived: Arrived<'_>) -> Receipt {
        if arrived.kind.is_empty() {
            return self.deliver_bytes(ring, arrived);
        }
        let kind = arrived.kind;
        let route = self.table.borrow().typed.get(kind).map(|(_, route)| route.clone());
        match route {
            Some(route) if route.is_open() => route.deliver(ring, arrived),
            Some(_) => {
                self.table.borrow_mut().typed.remove(kind);
                unserved(ring, arrived)
            }
            None => unserved(ring, arrived),
        }
    }

    /// Whether the handlers of that kind have room for `more` messages, as far as it is worth waiting for that; else
    /// the waker is called once they may have.
    pub(crate) fn takes(&self, kind: &str, more: usize, waker: &Waker) -> bool {
        let table = self.table.borrow();
        if kind.is_empty() {
            return table.bytes.iter().all(|(_, queue)| queue.takes(more, waker));
        }
        table.typed.get(kind).is_none_or(|(_, route)| route.takes(more, waker))
    }

    /// Nobody waits any more for room for `more` messages of that kind, until there is plenty.
    pub(crate) fn give_up(&self, kind: &str, more: usize) {
        let table = self.table.borrow();
        if kind.is_empty() {
            let full = table.bytes.iter().filter(|(_, queue)| !queue.takes(more, Waker::noop()));
            full.for_each(|(_, queue)| queue.give_up());
        } else if let Some((_, route)) = table.typed.get(kind)
            && !route.takes(more, Waker::noop())
        {
            route.give_up();
        }
    }

    /// Each handler gets them.
    fn deliver_bytes(&self, ring: &Ring, arrived: Arrived<'_>) -> Receipt {
        let mut table = self.table.borrow_mut();
        table.bytes.retain(|(_, queue)| queue.is_open());
        // Bytes without a type are no question.
        if table.bytes.is_empty() || arrived.answer.is_some() {
            return unserved(ring, arrived);
        }
        let mut receipt = Receipt::Busy;
        for (_, queue) in &table.bytes {
            let len = arrived.bytes.len();
            if queue.has_room(len) {
                let msg = UserBytes::new(arrived.from.clone(), arrived.bytes.clone(), arrived.reliable);
                queue.push(Item { msg, len, answer: None, until: None });
                receipt = Receipt::Taken;
            } else {
                busy(ring);
            }
        }
        receipt
    }

    /// Ends one subscription at once.
    pub(crate) fn remove(&self, number: u64) {
        let mut table = self.table.borrow_mut();
        table.uploads.retain(|_, (n, _)| *n != number);
        let typed = table.typed.iter().find(|(_, (n, _))| *n == number).map(|(kind, _)| *kind);
        let typed = typed.and_then(|kind| table.typed.remove(kind));
        let bytes = table.bytes.iter().position(|(n, _)| *n == number).map(|at| table.bytes.remove(at));
        drop(table);
        if let Some((_, route)) = typed {
            route.abandon();
        }
        if let Some((_, queue)) = bytes {
            queue.abandon();
        }
    }

    /// Lets the handlers take what waits for them, and then end.
    pub(crate) fn close(&self) {
        let table = self.table.take();
        for (_, route) in table.typed.into_values() {
            route.close();
        }
        for (_, queue) in table.bytes {
            queue.close();
        }
    }
}

fn unserved(ring: &Ring, arrived: Arrived<'_>) -> Receipt {
    ring.counters.drop(Lost::NoHandler);
    refused(arrived.answer, Receipt::NoHandler)
}

fn busy(ring: &Ring) {
    ring.counters.drop(Lost::HandlerBusy);
    say!(ring, Line::HandlerBusy, warn, "a handler of users' messages is slow: it misses some");
}

fn refused(answer: Option<Answer>, receipt: Receipt) -> Receipt {
    if let Some(answer) = answer {
        answer.waive();
    }
    receipt
}

/// The way to the handler of one type.
trait Route {
    fn is_open(&self) -> bool;
    fn takes(&self, more: usize, waker: &Waker) -> bool;
    fn give_up(&self);
    fn deliver(&self, ring: &Ring, arrived: Arrived<'_>) -> Receipt;
    fn close(&self);
    fn abandon(&self);
}

/// Reads `M`, and makes of it what the handler gets.
struct Typed<M, T: Handled, W> {
    queue: Rc<Queue<T>>,
    kind: &'static str,
    wrap: fn(&Sender) -> Option<W>,
    _reads: PhantomData<fn() -> M>,
}

impl<M, T, W> Route for Typed<M, T, W>
where
    M: PeerMessage,
    T: Handled,
    W: FnOnce(M) -> T,
{
    fn is_open(&self) -> bool {
        self.queue.is_open()
    }

    fn takes(&self, more: usize, waker: &Waker) -> bool {
        self.queue.takes(more, waker)
    }

    fn give_up(&self) {
        self.queue.give_up();
    }

    fn deliver(&self, ring: &Ring, arrived: Arrived<'_>) -> Receipt {
        let Some(wrap) = (self.wrap)(arrived.from) else { return unserved(ring, arrived) };
        let len = arrived.bytes.len();
        // What has no room is not even read.
        if !self.queue.has_room(len) {
            busy(ring);
            return refused(arrived.answer, Receipt::Busy);
        }
        match catch(|| codec::decode_payload(&arrived.bytes)) {
            Ok(Ok(msg)) => {
                self.queue.push(Item { msg: wrap(msg), len, answer: arrived.answer, until: arrived.until });
                Receipt::Taken
            }
            _ => {
                ring.counters.drop(Lost::Undecodable);
                let kind = self.kind;
                say!(
                    ring,
                    Line::Undecodable,
                    warn,
                    kind,
                    "a message is none of the type that is served here"
                );
                refused(arrived.answer, Receipt::Undecodable)
            }
        }
    }

    fn close(&self) {
        self.queue.close();
    }

    fn abandon(&self) {
        self.queue.abandon();
    }
}

#[cfg(test)]
mod tests;
