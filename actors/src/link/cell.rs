//! What a link holds: a cell that users' threads fill and the node's thread empties.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

use bytes::Bytes;
use memberlist_protocol::{
    config::Config,
    link::{Carrier, Full, Hello, Lane, Limits, Nonsense, Outgoing, Settled, Welcome},
    member::NodeId,
    members::Change,
    wire::{link::How, message::Receipt},
};

use tokio::sync::Notify;

use super::LinkEvent;
use crate::{
    answers,
    errors::{AskError, Cause, NotSent, SendError},
    fate::Fate,
    inbox::Inbox,
    messages::{Reply, ToLink, ToTransport},
    metrics::{Lost, up},
    ring::Doors,
};

/// What an actor of a link may have to hear at once.
const INBOX: usize = 64;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A message of this kind; the empty one are bytes without a type.
    Tell(&'static str),
    /// A question of this kind, of which the asker waits for the answer until then.
    Ask(&'static str, Instant),
    /// A broadcast; an address comes first.
    Broadcast,
}

/// One message.
pub(crate) struct Letter {
    pub(crate) what: What,
    pub(crate) bytes: Bytes,
    pub(crate) fate: Fate,
}

impl Letter {
    fn over(self, lane: Lane, outcome: Result<(), NotSent>) -> Over {
        Over { lane, bytes: self.bytes.len(), fate: self.fate, outcome }
    }
}

/// How a connection of a link stands.
#[derive(Default)]
struct Writer {
    /// Wakes the task of the connection.
    waker: Option<Waker>,
    /// Whether the task of a connection runs, and whether that is up.
    running: bool,
    up: bool,
    /// Whether PeerLink knows that one is wanted.
    asked: bool,
}

/// What a peer's link is doing: [`Peer::status`](crate::Peer::status).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStatus {
    /// Since when the connection for ordered messages has been up; `None` while there is none.
    pub active_since: Option<Instant>,
    /// The last round trip over it.
    pub rtt: Option<Duration>,
    /// Where it leads.
    pub remote: Option<SocketAddr>,
    /// Messages that are not settled: they wait, or no answer to them has come.
    pub queued: usize,
    /// Their bytes.
    pub queued_bytes: usize,
    /// Messages that a handler's queue there has taken.
    pub sent: u64,
    /// Messages that have not got through, or of which that is not known.
    pub dropped: u64,
}

struct State {
    out: Outgoing<Letter>,
    questions: BTreeMap<(Lane, u64), Reply<Result<Bytes, AskError>>>,
    /// The number of the answer that comes next.
    answers: u64,
    writers: [Writer; 2],
    /// The number of the last connection, and of the last one of each carrier that was welcomed.
    connection: u64,
    welcomed: [u64; 2],
    /// What the peer takes, as soon as it has said so.
    limits: Option<Limits>,
    /// Whether something was settled over each connection since PeerLink has looked.
    progress: [bool; 2],
    /// Whether it has its PeerLink, and why that is to end it.
    started: bool,
    gone: Option<Cause>,
    ended: Option<Cause>,
    status: LinkStatus,
}

impl State {
    /// What waits and was never sent goes as the peer takes it. Says whether the bulk connection has more to do.
    fn heed(&mut self, limits: Limits, told: &mut Told) -> bool {
        if self.limits.replace(limits) == Some(limits) {
            return false;
        }
        let mut others = Vec::new();
        let goes = |lane, letter: &Letter| fitting(lane, letter.bytes.len(), limits) == Ok(lane);
        self.out.take_back(|lane, letter| !goes(lane, letter), |lane, letter| others.push((lane, letter)));
        let mut bulk = false;
        for (lane, letter) in others {
            let len = letter.bytes.len();
            let refused = match fitting(lane, len, limits) {
                Ok(lane) => self.out.push(lane, letter, len).err().map(|(Full, letter)| letter),
                Err(_) => Some(letter),
            };
            bulk |= refused.is_none();
            let over = refused.map(|letter| letter.over(lane, Err(NotSent::Never(Cause::TooLarge))));
            told.extend(over);
        }
        bulk
    }
}

/// The lane of a message of so many bytes: its own, or bulk. Without one, the bytes that would fit.
fn fitting(lane: Lane, len: usize, limits: Limits) -> Result<Lane, usize> {
    let max = limits.over(Carrier::Bulk).max(limits.over(lane.carrier()));
    match lane {
        _ if len <= limits.over(lane.carrier()) => Ok(lane),
        _ if len <= max => Ok(Lane::Bulk),
        _ => Err(max),
    }
}

/// A link to one peer.
pub(crate) struct Link {
    pub(crate) peer: NodeId,
    /// No later link of this node has a lower one.
    pub(crate) number: u64,
    pub(crate) inbox: Arc<Inbox<ToLink>>,
    state: Mutex<State>,
    max_questions: usize,
    /// Told when there may be room again.
    pub(crate) room: Notify,
}

/// A message that has ended.
struct Over {
    lane: Lane,
    bytes: usize,
    fate: Fate,
    outcome: Result<(), NotSent>,
}

/// Messages that have ended; told when no lock is held.
type Told = Vec<Over>;

impl Link {
    fn new(peer: NodeId, number: u64, config: &Config) -> Self {
        let state = State {
            out: Outgoing::new(config.peer_queue_depth, config.peer_queue_bytes),
            questions: BTreeMap::new(),
            answers: 0,
            writers: Default::default(),
            connection: 0,
            welcomed: [0; 2],
            limits: None,
            progress: [false; 2],
            started: false,
            gone: None,
            ended: None,
            status: LinkStatus::default(),
        };
        let inbox = Inbox::new(INBOX, INBOX);
        Self {
            peer,
            number,
            inbox,
            state: Mutex::new(state),
            max_questions: config.peer_queue_depth,
            room: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message.
    pub(crate) fn send(&self, doors: &Doors, lane: Lane, letter: Letter) -> Result<(), (SendError, Letter)> {
        let room = letter.fate.claim(letter.bytes.len());
        if !doors.waiting.take(room) {
            return Err((SendError::Full, letter));
        }
        let len = letter.bytes.len();
        let queued = self.queue(lane, letter);
        match &queued {
            Ok(lane) => doors.counters.lanes[*lane as usize].queued(len),
            Err(_) => doors.waiting.give_back(room),
        }
        queued.map(drop)
    }

    fn queue(&self, lane: Lane, letter: Letter) -> Result<Lane, (SendError, Letter)> {
        let mut state = self.lock();
        if let Some(cause) = state.ended {
            let error = if cause == Cause::Stopped { SendError::Stopped } else { SendError::Gone };
            return Err((error, letter));
        }
        if matches!(letter.fate, Fate::Ask(_)) && state.questions.len() >= self.max_questions {
            state.questions.retain(|_, reply| !reply.is_closed());
            if state.questions.len() >= self.max_questions {
                return Err((SendError::Full, letter));
            }
        }
        let len = letter.bytes.len();
        let lane = match state.limits.map(|limits| fitting(lane, len, limits)) {
            Some(Err(max)) => return Err((SendError::TooLarge { len, max }, letter)),
            Some(Ok(lane)) => lane,
            None => lane,
        };
        state.out.push(lane, letter, len).map_err(|(Full, letter)| (SendError::Full, letter))?;
        let writer = &mut state.writers[lane.carrier() as usize];
        let (waker, ask) = (writer.waker.take(), !writer.up && !writer.asked);
        writer.asked |= ask;
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        if ask {
            let _ = self.inbox.insist(ToLink::Wanted(lane.carrier()));
        }
        Ok(lane)
    }

    /// Whether nothing is held for that connection: nothing waits, nothing is unsettled.
    pub(crate) fn is_idle(&self, carrier: Carrier) -> bool {
        let state = self.lock();
        state.out.is_empty(carrier) && (carrier == Carrier::Bulk || state.questions.is_empty())
    }

    /// Whether every message that goes over it is settled.
    pub(crate) fn is_settled(&self, carrier: Carrier) -> bool {
        self.lock().out.is_empty(carrier)
    }

    pub(crate) fn is_up(&self, carrier: Carrier) -> bool {
        self.lock().writers[carrier as usize].up
    }

    /// Whether something is held for that connection. If not, whoever sends something next has to ask for one.
    pub(crate) fn is_wanted(&self, carrier: Carrier) -> bool {
        let mut state = self.lock();
        let questions = carrier == Carrier::Main && !state.questions.is_empty();
        let wanted = state.ended.is_none() && (questions || !state.out.is_empty(carrier));
        state.writers[carrier as usize].asked &= wanted;
        wanted
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.lock().ended.is_some()
    }

    /// Its PeerLink starts. Says whether there was none before.
    pub(crate) fn start(&self) -> bool {
        !std::mem::replace(&mut self.lock().started, true)
    }

    /// The task of a connection is about to run. Says whether there was none before.
    pub(crate) fn begin(&self, carrier: Carrier) -> bool {
        !std::mem::replace(&mut self.lock().writers[carrier as usize].running, true)
    }

    pub(crate) fn is_running(&self, carrier: Carrier) -> bool {
        self.lock().writers[carrier as usize].running
    }

    /// Whether something was settled over that connection since the last time.
    pub(crate) fn has_progressed(&self, carrier: Carrier) -> bool {
        std::mem::take(&mut self.lock().progress[carrier as usize])
    }

    /// The peer is not there any more. That is noted here, and not only said: a restart of PeerLink must not lose it.
    pub(crate) fn leave(&self, cause: Cause) {
        self.lock().gone.get_or_insert(cause);
        let _ = self.inbox.insist(ToLink::Gone);
    }

    /// Why PeerLink is to end it.
    pub(crate) fn gone(&self) -> Option<Cause> {
        self.lock().gone
    }

    pub(crate) fn status(&self) -> LinkStatus {
        let state = self.lock();
        let (queued, queued_bytes) = state.out.held();
        LinkStatus { queued, queued_bytes, ..state.status.clone() }
    }

    /// What the next connection begins with.
    pub(crate) fn hello(&self, carrier: Carrier, from: NodeId, config: &Config) -> Hello {
        let mut state = self.lock();
        state.connection += 1;
        Hello {
            from,
            to: self.peer.clone(),
            link: self.number,
            carrier,
            connection: state.connection,
            welcomed: state.welcomed[carrier as usize],
            lanes: state.out.sent(carrier),
            answers: state.answers,
            longest_answer: Limits::of(config).message,
        }
    }

    /// A connection is up.
    pub(crate) fn welcomed(
        &self,
        doors: &Doors,
        hello: &Hello,
        welcome: &Welcome,
        remote: SocketAddr,
        at: Instant,
    ) -> Result<(), Nonsense> {
        let carrier = hello.carrier;
        let mut told = Told::new();
        let mut state = self.lock();
        let State { out, questions, .. } = &mut *state;
        out.welcomed(carrier, &welcome.lanes, |letter, at, settled| {
            settle(&mut told, questions, letter, at, settled);
        })?;
        let bulk = state.heed(welcome.limits, &mut told);
        state.welcomed[carrier as usize] = hello.connection;
        state.writers[carrier as usize].up = true;
        // Where nothing is left to be sent again, nothing is in the way.
        state.progress[carrier as usize] |=
            !told.is_empty() || state.out.sent(carrier).iter().all(|sent| sent.first == sent.next);
        if carrier == Carrier::Main {
            (state.status.active_since, state.status.remote) = (Some(at), Some(remote));
        }
        count(&mut state.status, &told);
        drop(state);
        self.tell(doors, told);
        let _ = self.inbox.insist(ToLink::Up(carrier));
        if bulk {
            let _ = self.inbox.insist(ToLink::Wanted(Carrier::Bulk));
        }
        if carrier == Carrier::Main {
            doors.link_event(&LinkEvent::Up { peer: self.peer.clone(), remote });
        }
        Ok(())
    }

    /// A connection has ended.
    pub(crate) fn down(&self, carrier: Carrier) {
        let mut state = self.lock();
        state.writers[carrier as usize] = Writer::default();
        if carrier == Carrier::Main {
            (state.status.active_since, state.status.rtt) = (None, None);
        }
    }

    /// Gives the next messages to be written to `write`, until it says that it is enough. `waker` is woken when
    /// there are more.
    pub(crate) fn next(
        &self,
        carrier: Carrier,
        waker: &Waker,
        mut write: impl FnMut(Lane, u64, What, &Bytes) -> bool,
    ) {
        let mut state = self.lock();
        let State { out, questions, writers, ended, .. } = &mut *state;
        if ended.is_some() {
            return;
        }
        let mut asked = false;
        while let Some((lane, number, letter)) = out.next(carrier) {
            if let Fate::Ask(reply) = &mut letter.fate
                && let Some(reply) = reply.take()
            {
                questions.insert((lane, number), reply);
                asked = true;
            }
            if !write(lane, number, letter.what, &letter.bytes) {
                break;
            }
        }
        match &mut writers[carrier as usize].waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        // Answers come over the main connection, whichever way the questions go.
        let main = &mut writers[Carrier::Main as usize];
        let ask = asked && !main.up && !main.asked;
        main.asked |= ask;
        drop(state);
        if ask {
            let _ = self.inbox.insist(ToLink::Wanted(Carrier::Main));
        }
    }

    /// The peer has said what it has taken. Says whether that was anything.
    pub(crate) fn acked(
        &self,
        doors: &Doors,
        lane: Lane,
        next: u64,
        refused: &[(u64, Receipt)],
    ) -> Result<bool, Nonsense> {
        let mut told = Told::new();
        let mut state = self.lock();
        let State { out, questions, .. } = &mut *state;
        out.acked(lane, next, refused, |letter, at, settled| {
            settle(&mut told, questions, letter, at, settled);
        })?;
        let settled = !told.is_empty();
        state.progress[lane.carrier() as usize] |= settled;
        count(&mut state.status, &told);
        drop(state);
        self.tell(doors, told);
        Ok(settled)
    }

    /// An answer has arrived. Says which one comes next.
    pub(crate) fn answered(
        &self,
        doors: &Doors,
        number: u64,
        question: (Lane, u64),
        how: How,
        payload: &[u8],
    ) -> Result<u64, Nonsense> {
        let mut state = self.lock();
        if number > state.answers || !state.out.was_sent(question.0, question.1) {
            return Err(Nonsense);
        }
        if number < state.answers {
            doors.counters.drop(Lost::AnswerUnheard);
            return Ok(state.answers);
        }
        state.answers += 1;
        let (next, reply) = (state.answers, state.questions.remove(&question));
        drop(state);
        if let Some(reply) = reply {
            let answer = answers::told(how, Bytes::copy_from_slice(payload));
            let _ = reply.send(answer);
        } else {
            doors.counters.drop(Lost::AnswerUnheard);
        }
        Ok(next)
    }

    /// Whether somebody waits for the answer to that question.
    pub(crate) fn awaits(&self, question: (Lane, u64)) -> bool {
        self.lock().questions.contains_key(&question)
    }

    pub(crate) fn measured(&self, rtt: Duration) {
        self.lock().status.rtt = Some(rtt);
    }

    /// Forgets questions that nobody waits for any more, and takes back what was not sent and need not be.
    pub(crate) fn purge(&self, doors: &Doors, now: Instant) {
        let mut told = Told::new();
        let mut state = self.lock();
        state.questions.retain(|_, reply| !reply.is_closed());
        let is_over = |_, letter: &Letter| match (&letter.what, &letter.fate) {
            (What::Ask(_, until), _) => *until <= now,
            (_, fate) => fate.is_void(),
        };
        state.out.take_back(is_over, |lane, letter| {
            let cause = if letter.fate.is_void() { Cause::Invalidated } else { Cause::Expired };
            told.push(letter.over(lane, Err(NotSent::Never(cause))));
        });
        drop(state);
        self.tell(doors, told);
    }

    /// There has been no connection for too long: nothing that waits for it will get through. Says whether there is
    /// none just now.
    pub(crate) fn give_up(&self, doors: &Doors, carrier: Carrier) -> bool {
        let mut told = Told::new();
        let mut state = self.lock();
        let State { out, questions, writers, .. } = &mut *state;
        if writers[carrier as usize].up {
            return false;
        }
        writers[carrier as usize].asked = false;
        out.give_up(carrier, |letter, at, settled| {
            settle(&mut told, questions, letter, at, settled);
        });
        out.take_back(
            |lane, _| lane.carrier() == carrier,
            |lane, letter| told.push(letter.over(lane, Err(NotSent::Never(Cause::LinkLost)))),
        );
        let lost = || Err(AskError::NotSent(NotSent::Unknown(Cause::LinkLost)));
        if carrier == Carrier::Main {
            for (_, reply) in std::mem::take(questions) {
                let _ = reply.send(lost());
            }
        }
        count(&mut state.status, &told);
        drop(state);
        self.tell(doors, told);
        true
    }

    /// Tells whoever sent them what has become of messages.
    fn tell(&self, doors: &Doors, told: Told) {
        if !told.is_empty() {
            self.room.notify_waiters();
        }
        let mut lost: BTreeMap<(Lane, Cause), (u64, u64)> = BTreeMap::new();
        doors.waiting.give_back(told.iter().map(|over| over.fate.claim(over.bytes)).sum());
        for Over { lane, bytes, fate, outcome } in told {
            let counters = &doors.counters.lanes[lane as usize];
            match outcome {
                Ok(()) => {
                    up(&doors.counters.user_messages_sent);
                    up(&counters.delivered);
                }
                Err(NotSent::Never(cause) | NotSent::Unknown(cause)) => {
                    doors.counters.drop(Lost::Undelivered);
                    up(&counters.undelivered);
                    let (count, sum) = lost.entry((lane, cause)).or_default();
                    *count += 1;
                    *sum += bytes as u64;
                }
            }
            fate.end(outcome);
        }
        for ((lane, cause), (count, bytes)) in lost {
            let peer = self.peer.clone();
            doors.link_event(&LinkEvent::Dropped { peer, lane, count, bytes, cause });
        }
    }

    /// Ends everything: the peer is gone, or the node stops.
    pub(crate) fn end(&self, doors: &Doors, cause: Cause) {
        let mut told = Told::new();
        let mut state = self.lock();
        state.ended.get_or_insert(cause);
        state.out.end(|lane, letter, settled| {
            let outcome = match settled {
                Settled::Unsent => NotSent::Never(cause),
                _ => NotSent::Unknown(cause),
            };
            told.push(letter.over(lane, Err(outcome)));
        });
        let questions = std::mem::take(&mut state.questions);
        let wakers = state.writers.each_mut().map(|writer| writer.waker.take());
        count(&mut state.status, &told);
        drop(state);
        for (_, reply) in questions {
            let _ = reply.send(Err(AskError::NotSent(NotSent::Unknown(cause))));
        }
        self.tell(doors, told);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// Notes what a message's outcome is, and ends its question if it will not be answered.
fn settle(
    told: &mut Told,
    questions: &mut BTreeMap<(Lane, u64), Reply<Result<Bytes, AskError>>>,
    letter: Letter,
    at: (Lane, u64),
    settled: Settled,
) {
    let outcome = outcome(settled);
    if let (Fate::Ask(_), Err(not_sent)) = (&letter.fate, outcome)
        && let Some(reply) = questions.remove(&at)
    {
        let _ = reply.send(Err(AskError::NotSent(not_sent)));
    }
    told.push(letter.over(at.0, outcome));
}

fn outcome(settled: Settled) -> Result<(), NotSent> {
    let never = |cause| Err(NotSent::Never(cause));
    match settled {
        Settled::Receipt(Receipt::Taken) => Ok(()),
        Settled::Receipt(Receipt::NoHandler) => never(Cause::NoHandler),
        Settled::Receipt(Receipt::Busy) => never(Cause::Busy),
        Settled::Receipt(Receipt::NotMe) => never(Cause::PeerDead),
        Settled::Receipt(Receipt::Undecodable) => never(Cause::Undecodable),
        Settled::InDoubt => Err(NotSent::Unknown(Cause::LinkLost)),
        Settled::Unsent => never(Cause::LinkLost),
    }
}

fn count(status: &mut LinkStatus, told: &Told) {
    let sent = told.iter().filter(|over| over.outcome.is_ok()).count() as u64;
    status.sent += sent;
    status.dropped += told.len() as u64 - sent;
}

/// All links of a node, by their peers.
#[derive(Default)]
pub(crate) struct Links {
    all: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    links: BTreeMap<NodeId, Arc<Link>>,
    closed: bool,
    /// The node says farewell.
    leaving: bool,
}

impl Links {
    /// The link to a peer, which is made if there is none.
    pub(crate) fn to(&self, doors: &Doors, peer: &NodeId) -> Result<Arc<Link>, SendError> {
        let mut all = self.lock();
        if all.closed {
            return Err(SendError::Stopped);
        }
        if all.leaving {
            return Err(SendError::Leaving);
        }
        if let Some(link) = all.links.get(peer) {
            return Ok(link.clone());
        }
        // Whoever is gone gets no new one: the caller has looked, but not under this lock.
        crate::peer::present(doors, peer).ok_or(SendError::Gone)?;
        let link = Arc::new(Link::new(peer.clone(), doors.number(), &doors.config));
        all.links.insert(peer.clone(), link.clone());
        drop(all);
        let started = doors.transport.insist(ToTransport::Link { link: link.clone() });
        started.map(|()| link).map_err(|_| SendError::Stopped)
    }

    /// The link to a peer, if there is one.
    pub(crate) fn get(&self, peer: &NodeId) -> Option<Arc<Link>> {
        self.lock().links.get(peer).cloned()
    }

    /// Forgets a link that has ended.
    pub(crate) fn remove(&self, link: &Arc<Link>) {
        let mut all = self.lock();
        if all.links.get(&link.peer).is_some_and(|known| Arc::ptr_eq(known, link)) {
            all.links.remove(&link.peer);
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Link>> {
        self.lock().links.values().cloned().collect()
    }

    /// Something has become of a member.
    pub(crate) fn heed(&self, change: &Change) {
        let (name, member, gone) = match change {
            Change::Joined(member) | Change::Updated { member, .. } | Change::Refuted(member) => {
                (member.name(), Some(&member.id), Cause::Replaced)
            }
            Change::Left { member, .. } => (member.name(), None, Cause::PeerLeft),
            Change::Dead { member, .. } => (member.name(), None, Cause::PeerDead),
            Change::Reaped(id) => (id.name(), None, Cause::PeerDead),
            Change::Suspected { .. } | Change::Conflict { .. } => return,
        };
        let runs = NodeId::new(name, 0)..=NodeId::new(name, u64::MAX);
        for (id, link) in self.lock().links.range(runs) {
            if Some(id) == member {
                let _ = link.inbox.insist(ToLink::Alive);
            } else {
                link.leave(gone);
            }
        }
    }

    /// Makes no more until [`Links::open`], and waits until all that was sent is settled, but no longer than until
    /// `deadline`. What is left then is given up. Says how many messages were settled, and how many given up.
    pub(crate) async fn drain(&self, deadline: Instant) -> (u64, u64) {
        self.lock().leaving = true;
        let mut leaving = Leaving(self, true);
        let links = self.all();
        let queued = || links.iter().map(|link| link.status().queued as u64).sum::<u64>();
        let before = queued();
        for link in &links {
            let settled = async {
                loop {
                    let mut room = std::pin::pin!(link.room.notified());
                    room.as_mut().enable();
                    if link.status().queued == 0 {
                        return;
                    }
                    room.await;
                }
            };
            let _ = tokio::time::timeout_at(deadline.into(), settled).await;
        }
        leaving.1 = false;
        let left = queued();
        let links = std::mem::take(&mut self.lock().links);
        for link in links.into_values() {
            link.leave(Cause::Stopped);
        }
        (before.saturating_sub(left), left)
    }

    /// Makes links again.
    pub(crate) fn open(&self) {
        self.lock().leaving = false;
    }

    /// Makes no more, and ends those that are there.
    pub(crate) fn close(&self, doors: &Doors) {
        let mut all = self.lock();
        all.closed = true;
        let links = std::mem::take(&mut all.links);
        drop(all);
        for link in links.into_values() {
            link.end(doors, Cause::Stopped);
            link.inbox.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A leave whose caller does not wait any more before it has said anything is none.
struct Leaving<'a>(&'a Links, bool);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.open();
        }
    }
}
