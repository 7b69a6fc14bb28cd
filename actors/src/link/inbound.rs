//! The receiver's end of a link: who it is from, what has come, and the answers that go back.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use memberlist_protocol::{
    link::{
        Ack, Carrier, Heard, Hello, Incoming, Lane, Limits, Outgoing, Overtaken, Place, Received, Welcome,
    },
    member::{MemberState, NodeId},
    wire::{
        WireError, codec,
        link::{self as frames, Frame, How, MAX_AROUND},
        message::Receipt,
        state::Refusal,
    },
};
use tokio::{sync::Notify, time::timeout};

use super::{
    LinkEvent,
    duplex::{self, End, MISSED, Out, SILENT},
    outbound::nonsense,
    wide,
};
use crate::{
    answers::{Answer, Answered, Answers},
    events::Sender,
    metrics::{Lost, up},
    ring::{Doors, Shared, now},
    routes::Arrived,
    streams::{Failure, Line, Permit},
};

/// Bytes of a hello, at most.
const MAX_HELLO: usize = 1024;

/// How long a node that is no member here may wait until it has been heard of.
const PATIENCE: Duration = Duration::from_secs(2);

/// Nodes of which it is kept what has come from them. Above that those go first that have no connection.
const MAX_INBOUND: usize = 8192;

/// What has come from one node.
pub(super) struct Inbound {
    incoming: RefCell<Incoming>,
    answers: RefCell<Arc<AnswerBox>>,
    /// Told when a connection has taken the place of another one.
    taken_over: Notify,
    /// Connections that are open, and when the last one was closed.
    open: Cell<usize>,
    closed: Cell<Option<Instant>>,
}

/// A connection's place in its link.
pub(super) struct Seat {
    at: Place,
    from: Sender,
}

/// What has come from each node. Who can prove to be that node, by a seal or by where it comes from, shares nothing
/// with who only says so.
#[derive(Default)]
pub(crate) struct Inbounds {
    all: RefCell<BTreeMap<(NodeId, bool), Rc<Inbound>>>,
    /// When somebody was refused for want of room: connections that are silent after that give way.
    crowded: Cell<Option<Instant>>,
}

impl Inbounds {
    fn of(&self, ring: &Shared, from: NodeId, proven: bool) -> Option<Rc<Inbound>> {
        let mut all = self.all.borrow_mut();
        // What is kept longer than the sender keeps its side is of no use.
        let (now, window) = (now(), ring.config.link_window);
        all.retain(|_, inbound| {
            inbound.closed.get().is_none_or(|closed| now.saturating_duration_since(closed) <= 2 * window)
        });
        if all.len() >= MAX_INBOUND && !all.contains_key(&(from.clone(), proven)) {
            let idle = all.iter().find(|(_, inbound)| inbound.open.get() == 0).map(|(id, _)| id.clone())?;
            all.remove(&idle);
        }
        let new = || {
            Rc::new(Inbound {
                incoming: RefCell::default(),
                answers: RefCell::new(AnswerBox::new(ring)),
                taken_over: Notify::new(),
                open: Cell::default(),
                closed: Cell::default(),
            })
        };
        Some(all.entry((from, proven)).or_insert_with(new).clone())
    }
}

/// Counts a connection for as long as it is open.
struct Opened(Rc<Inbound>, Arc<Doors>);

impl Opened {
    fn new(inbound: Rc<Inbound>, doors: Arc<Doors>) -> Self {
        inbound.open.set(inbound.open.get() + 1);
        inbound.closed.set(None);
        up(&doors.counters.links_open);
        Self(inbound, doors)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.1.counters.links_open.fetch_sub(1, Relaxed);
        if self.0.open.get() == 0 {
            self.0.closed.set(Some(now()));
        }
    }
}

/// Serves a connection that somebody has dialled.
pub(crate) async fn serve(
    ring: &Shared,
    permit: &Permit,
    line: &mut Line<'_>,
    from: SocketAddr,
) -> Result<(), Failure> {
    let hello = codec::decode_hello(&line.frame(MAX_HELLO).await?)?;
    line.met_member(from, &hello.from).await?;
    let mut admitted = admit(ring, line.key().is_some(), &hello, from).await;
    if admitted.is_ok() && !permit.becomes_link() {
        ring.inbounds.crowded.set(Some(now()));
        admitted = Err(Refusal::Crowded);
    }
    let answer = admitted.as_ref().map(|(_, _, welcome)| welcome.clone()).map_err(Clone::clone);
    line.write(&[&codec::encode_welcome(&answer)]).await?;
    let (opened, seat, _) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            ring.refused(&refusal, &hello.from, from);
            ring.link_event(&LinkEvent::Refused { peer: hello.from, remote: from, why: refusal });
            return Ok(());
        }
    };
    let inbound = &*opened.0;
    let served = async {
        match seat.at.carrier {
            Carrier::Main => {
                let max = ring.config.max_ordered_size + MAX_AROUND;
                let mut listener = Listener { ring, inbound, seat: &seat, pong: None, unsaid: false };
                duplex::run(&ring.counters, line.channel(), &mut listener, max, max).await
            }
            Carrier::Bulk => wide::serve(ring, permit, line, inbound, &seat, from).await,
        }
    };
    tokio::select! {
        biased;
        // It gives its room back at once: else who dials again and again would hold all of it.
        () = inbound.overtaken(&seat) => Err(Failure::Unserved),
        served = served => served,
    }
}

/// Whether a connection is let in, and where its link stands.
async fn admit(
    ring: &Shared,
    sealed: bool,
    hello: &Hello,
    from: SocketAddr,
) -> Result<(Opened, Seat, Welcome), Refusal> {
    if ring.view.borrow().local().id != hello.to {
        return Err(Refusal::NotMe);
    }
    // Nobody has a link to itself.
    if hello.from == hello.to {
        return Err(Refusal::Stranger);
    }
    let state = |ring: &Shared| {
        let view = ring.view.borrow();
        view.get(hello.from.name()).filter(|member| member.id == hello.from).map(|m| (m.state, m.addr))
    };
    let there =
        |found: &Option<(MemberState, SocketAddr)>| found.is_some_and(|(state, _)| state.is_present());
    let mut found = state(ring);
    if found.is_some_and(|(state, _)| state == MemberState::Left) {
        return Err(Refusal::Removed);
    }
    if !there(&found) {
        // News of it may be on its way.
        let mut views = ring.view.follow();
        let heard = async { while !there(&state(ring)) && views.changed().await.is_ok() {} };
        let _ = timeout(PATIENCE, heard).await;
        found = state(ring);
    }
    let (_, addr) = found.filter(|found| there(&Some(*found))).ok_or(Refusal::Stranger)?;
    let proven = sealed || addr.ip() == from.ip();
    let inbound = ring.inbounds.of(ring, hello.from.clone(), proven).ok_or(Refusal::Crowded)?;
    let before = inbound.incoming.borrow().link();
    let lanes = inbound.incoming.borrow_mut().begin(hello).map_err(|_| Refusal::Overtaken)?;
    inbound.taken_over.notify_waiters();
    let welcome = Welcome { lanes, limits: Limits::of(&ring.config) };
    if before != hello.link {
        *inbound.answers.borrow_mut() = AnswerBox::new(ring);
    }
    if hello.carrier == Carrier::Main {
        inbound.answers.borrow().begin(hello).map_err(|()| Refusal::Overtaken)?;
    }
    let from = if proven { Sender::Member(hello.from.clone()) } else { Sender::Address(from) };
    // From here on it is kept, although the welcome is not written yet.
    Ok((Opened::new(inbound, ring.doors.clone()), Seat { at: hello.place(), from }, welcome))
}

impl Inbound {
    pub(super) fn receive(&self, seat: &Seat, lane: Lane, number: u64) -> Result<Received, Failure> {
        let received = self.incoming.borrow().receive(seat.at, lane, number);
        received.map_err(|overtaken| match overtaken {
            Overtaken::Replaced => Failure::Unserved,
            Overtaken::Gap => WireError::Replayed.into(),
        })
    }

    /// Waits until a later connection has taken the place of this one.
    async fn overtaken(&self, seat: &Seat) {
        loop {
            let taken_over = self.taken_over.notified();
            if !self.incoming.borrow().is_current(seat.at) {
                return;
            }
            taken_over.await;
        }
    }

    pub(super) fn settle(&self, lane: Lane, receipt: Receipt) {
        self.incoming.borrow_mut().settle(lane, receipt);
    }

    pub(super) fn ack(&self, lane: Lane) -> Option<Ack> {
        self.incoming.borrow_mut().ack(lane)
    }

    /// Puts a message into its handler's queue.
    pub(super) fn deliver(
        &self,
        ring: &Shared,
        seat: &Seat,
        lane: Lane,
        number: u64,
        what: frames::What<'_>,
        bytes: Bytes,
    ) -> Receipt {
        let (kind, answer, until) = match what {
            frames::What::Tell(kind) => (kind, None, None),
            frames::What::Ask(kind, within) => {
                let question = number << 2 | u64::from(lane.byte());
                let answer = Answer::new(self.answers.borrow().clone(), question);
                (kind, Some(answer), now().checked_add(Duration::from_millis(within.into())))
            }
            frames::What::Broadcast => {
                ring.counters.drop(Lost::Undecodable);
                return Receipt::Undecodable;
            }
        };
        let len = bytes.len();
        let arrived = Arrived { from: &seat.from, kind, bytes, reliable: true, answer, until };
        let receipt = ring.routes.deliver(ring, arrived);
        ring.counters.lanes[lane as usize].received(len, receipt);
        receipt
    }
}

/// The receiver's end of a main connection.
struct Listener<'a> {
    ring: &'a Shared,
    inbound: &'a Inbound,
    seat: &'a Seat,
    pong: Option<u64>,
    /// Whether something may have to be acknowledged.
    unsaid: bool,
}

impl End for Listener<'_> {
    fn frame(&mut self, frame: Frame<'_>) -> Result<(), Failure> {
        match frame {
            Frame::Message { lane, number, what, payload } => {
                if self.inbound.receive(self.seat, lane, number)? == Received::New {
                    let bytes = Bytes::copy_from_slice(payload);
                    let receipt = self.inbound.deliver(self.ring, self.seat, lane, number, what, bytes);
                    self.inbound.settle(lane, receipt);
                } else {
                    // What has come is not sent again once the welcome has said so.
                    self.ring.counters.drop(WireError::Replayed);
                }
                self.unsaid = true;
                Ok(())
            }
            // The answers may be another link's by now.
            Frame::Answered(_) if !self.is_current() => Err(Failure::Unserved),
            Frame::Answered(next) => self.inbound.answers.borrow().arrived(next).map_err(|()| nonsense()),
            Frame::Ping(token) => {
                self.pong = Some(token);
                Ok(())
            }
            Frame::Bye(_) => Err(Failure::Unserved),
            _ => Err(WireError::Kind.into()),
        }
    }

    fn fill(&mut self, out: &mut Out, cx: &mut Context<'_>) -> Result<(), Failure> {
        if !self.is_current() {
            return Err(Failure::Unserved);
        }
        if let Some(token) = self.pong.take() {
            out.push(&Frame::Pong(token), &Bytes::new());
        }
        // Acks go in front of the answers to what they acknowledge.
        if std::mem::take(&mut self.unsaid) {
            for lane in Carrier::Main.lanes() {
                if let Some(ack) = self.inbound.ack(*lane) {
                    let mut refused = Vec::new();
                    frames::append_refused(&ack.refused, &mut refused);
                    out.push(&Frame::Ack { lane: *lane, next: ack.next, refused: &refused }, &Bytes::new());
                }
            }
        }
        self.inbound.answers.borrow().next(cx.waker(), out);
        Ok(())
    }

    fn is_sated(&self) -> bool {
        let incoming = self.inbound.incoming.borrow();
        Carrier::Main.lanes().iter().any(|lane| incoming.is_sated(*lane))
    }

    fn silent(&mut self, missed: u32, _: &mut Out) -> Result<(), Failure> {
        let idle = self.inbound.answers.borrow().is_empty();
        let crowded = self.ring.inbounds.crowded.get();
        let wanted = crowded.is_some_and(|at| now().saturating_duration_since(at) <= SILENT);
        if missed > MISSED {
            return Err(Failure::Timeout);
        }
        if idle && wanted {
            return Err(Failure::Unserved);
        }
        Ok(())
    }
}

impl Listener<'_> {
    fn is_current(&self) -> bool {
        self.inbound.incoming.borrow().is_current(self.seat.at)
    }
}

/// Answers on their way back to one node.
struct AnswerBox(Mutex<Answering>, Arc<Doors>);

struct Answering {
    out: Outgoing<Given>,
    waker: Option<Waker>,
    fresh: bool,
    /// Most bytes of an answer that the asker takes.
    longest: usize,
}

struct Given {
    lane: Lane,
    question: u64,
    how: How,
    bytes: Bytes,
}

impl AnswerBox {
    fn new(ring: &Shared) -> Arc<Self> {
        let out = Outgoing::new(ring.config.peer_queue_depth, ring.config.peer_queue_bytes);
        let answering = Answering { out, waker: None, fresh: true, longest: usize::MAX };
        Arc::new(Self(Mutex::new(answering), ring.doors.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Answering> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection begins; the hello says which answers the asker has, and how long one may be.
    fn begin(&self, hello: &Hello) -> Result<(), ()> {
        let mut now = self.lock();
        let next = hello.answers;
        now.longest = now.longest.min(hello.longest_answer as usize);
        if std::mem::take(&mut now.fresh) {
            now.out.begin_at(Lane::Ordered, next);
        }
        let first = now.out.sent(Carrier::Main)[0].first;
        let heard = |next| Heard { next: Some(next), refused: Vec::new() };
        now.out.welcomed(Carrier::Main, &[heard(first), heard(next)], |_, _, _| ()).map_err(drop)
    }

    fn is_empty(&self) -> bool {
        self.lock().out.is_empty(Carrier::Main)
    }

    fn arrived(&self, next: u64) -> Result<(), ()> {
        self.lock().out.acked(Lane::Ordered, next, &[], |_, _, _| ()).map_err(drop)
    }

    fn next(&self, waker: &Waker, out: &mut Out) {
        let mut now = self.lock();
        while !out.is_full()
            && let Some((_, number, given)) = now.out.next(Carrier::Main)
        {
            let Given { lane, question, how, bytes } = given;
            let (lane, question, how) = (*lane, *question, *how);
            out.push(&Frame::Answer { number, lane, question, how, payload: &[] }, bytes);
        }
        now.waker = Some(waker.clone());
    }
}

impl Answers for AnswerBox {
    fn answer(&self, question: u64, answered: Answered) {
        let (how, bytes) = answered.split();
        let lane = Lane::of((question & 3) as u8).unwrap_or(Lane::Ordered);
        let mut now = self.lock();
        let (how, bytes) = if bytes.len() <= now.longest { (how, bytes) } else { unfit(&bytes, now.longest) };
        let given = Given { lane, question: question >> 2, how, bytes };
        let len = given.bytes.len();
        if let Err((_, given)) = now.out.push(Lane::Ordered, given, len) {
            // Whoever asks for more than it reads learns that there was an answer, as long as that has room.
            self.1.counters.drop(Lost::AnswerUnfit);
            let why = Bytes::from_static(b"too many bytes of answers wait to be read");
            let _ = now.out.push(Lane::Ordered, Given { how: How::Unfit, bytes: why, ..given }, 0);
        }
        let waker = now.waker.take();
        drop(now);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Instead of an answer that the asker does not take.
fn unfit(bytes: &Bytes, max: usize) -> (How, Bytes) {
    let why = format!("the reply has {} bytes; the asker takes {max}", bytes.len());
    (How::Unfit, Bytes::from(why))
}
